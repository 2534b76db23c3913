//! The words and the arithmetic that both planes agree on.
//!
//! Pure: no clock, no randomness, no I/O. Time and entropy are arguments.
//!
//! | file | what |
//! |---|---|
//! | [`ids`] | names of things: newtypes over text, never bare strings |
//! | [`money`] | [`money::NanoUsd`], [`money::Price`] and the only rounding rules |
//! | [`tokens`], [`cost`], [`bill`] | token counts by kind, counts × prices, and what a tenant owes of that |
//! | [`time`] | wall-clock instants and calendar windows, given from outside |
//! | [`catalog`], [`notice`] | providers, models, endpoints, prices; retirement notices |
//! | [`tenant`], [`budget`] | organization → team → project → API key; money per period |
//! | [`credit`], [`webhook`] | accounts, fees on buying credits; signatures of webhooks |
//! | [`window`] | when a budget starts again: calendar windows in a time zone |
//! | [`lease`] | how a budget holds on many nodes: slices granted, held, settled |
//! | [`snapshot`] | what a node routes on: an indexed, read-only view of one revision |
//! | [`fault`] | the error table of the public API |
//! | [`wording`] | what a reader of JSON says, in plain words |
//! | [`settings`] | numbers and log filters in configuration files that cannot be |
//! | [`key_text`], [`seal`], [`secret`] | the text form of keys, sealing at rest, redaction |

pub mod bill;
pub mod budget;
pub mod catalog;
pub mod cost;
pub mod credit;
pub mod fault;
pub mod ids;
pub mod key_text;
pub mod labels;
pub mod lease;
pub mod money;
pub mod notice;
pub mod seal;
pub mod secret;
pub mod settings;
pub mod snapshot;
pub mod tenant;
pub mod time;
pub mod tokens;
pub mod webhook;
pub mod window;
pub mod wording;
