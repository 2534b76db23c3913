//! Every shape that crosses a process or a disk, and its one codec.
//!
//! | file | what |
//! |---|---|
//! | [`codec`] | the only bincode calls: magic, kind, length, checksum |
//! | [`command`] | Raft log entries: admin writes, joins, recorded spend; and their outcomes |
//! | [`push`] | the stream between control plane and nodes, and resources in their stored form |
//! | [`lease`] | what nodes and grantor tell each other about leased budgets |
//! | [`lease_journal`] | what a node keeps on disk about its leases |
//! | [`peer`] | what replicas say to each other |
//! | [`usage`] | the usage event: the JSON on Kafka, its headers, its partition |
//! | [`billing`] | aggregates by organization and hour: the JSON on Kafka |
//! | [`usage_log`] | the folder that stands in for Kafka |
//! | [`spool`] | usage records on a node's disk |
//! | [`identity`] | a member's certificate on disk |
//! | [`private_file`] | files replaced whole, readable by their owner only |
//! | [`admin`] | JSON bodies of the admin API |

pub mod admin;
pub mod billing;
mod blob;
pub mod codec;
pub mod command;
pub mod identity;
pub mod lease;
pub mod lease_journal;
pub mod peer;
pub mod private_file;
pub mod push;
pub mod spool;
pub mod usage;
pub mod usage_log;
