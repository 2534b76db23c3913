//! The only opener of connections to providers: one pool per core, HTTP/1.1, with or without TLS.
//!
//! Hosts come from the snapshot alone. Redirects are not followed. A connection whose answer was not read to its end is closed,
//! which is how a provider learns that a caller hung up.

mod address;
mod origin;
mod pool;
mod sending;
mod tls;

pub use origin::Origin;
pub use pool::{Answer, AnswerBody, Settings, Upstream};
pub use tls::{TlsFault, client_config};
