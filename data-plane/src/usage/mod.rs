//! Usage records: what a request writes before it reaches a provider, and after it has ended.

use std::cell::RefCell;
use std::rc::Rc;

use tollway_proto::usage::UsageEvent;

/// Why a record could not be written. Paid traffic is shed until it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpoolFault {
    /// The spool has reached its size limit.
    #[error("the usage spool is full")]
    Full,
    /// The disk refused.
    #[error("the usage spool could not be written")]
    Disk,
}

/// What a [`Writer`] of memory was given, in order.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Intents.
    pub intents: Rc<RefCell<Vec<UsageEvent>>>,
    /// Outcomes.
    pub outcomes: Rc<RefCell<Vec<UsageEvent>>>,
}

/// The usage writer of one core.
#[derive(Debug)]
pub struct Writer(Kept);

impl Writer {
    /// A writer that keeps events in memory: for tests of the request path.
    pub fn memory() -> (Self, Kept) {
        let kept = Kept::default();
        (Self(kept.clone()), kept)
    }

    /// Notes that a request is about to reach a provider.
    pub fn intent(&self, event: &UsageEvent) -> Result<(), SpoolFault> {
        self.0.intents.borrow_mut().push(event.clone());
        Ok(())
    }

    /// Closes the intent of the same request.
    pub fn outcome(&self, event: UsageEvent) {
        self.0.outcomes.borrow_mut().push(event);
    }
}
