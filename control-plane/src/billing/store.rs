//! The store, whichever it is, for the one who writes it. Everything here waits for a disk or a server: call it where that may be.

use tokio::runtime::Handle;
use tollway_shared::time::UnixMillis;

use super::fold::Batch;
use super::progress::{Book, Progress};
use super::{Place, StoreFault, postgres, sqlite};

/// The one who writes.
pub enum Writer {
    /// Into a file of this replica.
    File(Box<sqlite::Writer>),
    /// Into a server that all replicas share.
    Server(Box<postgres::Writer>),
}

/// What opening came to.
pub enum Opened {
    /// This replica writes. The flag says that the tables were made.
    Writes(Writer, bool),
    /// Another replica writes, and is so far.
    Reads(Vec<Progress>),
}

impl Writer {
    /// Opens the store of a cluster.
    pub fn open(place: &Place, cluster: &str) -> Result<Opened, StoreFault> {
        match place {
            Place::None => Err(StoreFault::Absent),
            Place::File(path) => {
                let (writer, made) = sqlite::Writer::open(path, cluster)?;
                Ok(Opened::Writes(Self::File(Box::new(writer)), made))
            }
            Place::Server(server) => {
                let runtime = Handle::current();
                match postgres::Writer::open(&runtime, server, cluster)? {
                    postgres::Opened::Writes(writer, made) => Ok(Opened::Writes(Self::Server(writer), made)),
                    postgres::Opened::Reads(progress) => Ok(Opened::Reads(progress)),
                }
            }
        }
    }

    /// How far the store is.
    pub fn book(&self) -> Result<Book, StoreFault> {
        match self {
            Self::File(writer) => writer.book(),
            Self::Server(writer) => writer.book(),
        }
    }

    /// Writes stretches of some partitions, all of them or none. After a fault, open it again.
    pub fn write(&mut self, batches: &[Batch<'_>]) -> Result<(), StoreFault> {
        match self {
            Self::File(writer) => writer.write(batches),
            Self::Server(writer) => writer.write(batches),
        }
    }

    /// Notes that the log has lost a partition's records from the next one on (the first, of a partition that is not in the store) up to
    /// `to`, all of them of before `at`.
    pub fn skip(&mut self, partition: i32, to: i64, at: UnixMillis) -> Result<(), StoreFault> {
        match self {
            Self::File(writer) => writer.skip(partition, to, at),
            Self::Server(writer) => writer.skip(partition, to, at),
        }
    }

    /// Removes some of the generations that ended before an instant, and returns whether there may be more.
    pub fn forget(&mut self, before: UnixMillis) -> Result<bool, StoreFault> {
        match self {
            Self::File(writer) => writer.forget(before),
            Self::Server(writer) => writer.forget(before),
        }
    }

    /// Forgets writers that have been silent everywhere since before an instant, as the replicated state does.
    pub fn forget_writers(&mut self, before: UnixMillis) -> Result<(), StoreFault> {
        match self {
            Self::File(writer) => writer.forget_writers(before),
            Self::Server(writer) => writer.forget_writers(before),
        }
    }
}
