//! JSON bodies of the admin API.
