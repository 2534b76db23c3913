//! Lines of the billing store, for a handler: read on a thread of their own, and only so many readers at once.

use std::ops::ControlFlow;
use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};
use tollway_proto::admin::problem::ProblemCode;
use tollway_shared::ids::OrganizationId;
use tollway_shared::time::Day;

use super::super::Api;
use super::super::fault::Fault;
use super::super::usage::whole::Stand;
use crate::billing::Place;
use crate::billing::lines::{self, Wanted};
use crate::report::line::Line;
use crate::state::State;

/// Most reports that read the store at once. A reader keeps the store from tidying up behind itself.
const READERS_MAX: usize = 4;
/// Longest that a report may read.
const READ_WITHIN_S: u64 = 900;

static READERS: Semaphore = Semaphore::const_new(READERS_MAX);

/// A way to the store.
pub(super) struct Source {
    place: Place,
    _permit: SemaphorePermit<'static>,
}

/// Why lines did not come to their end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    #[error(transparent)]
    Store(#[from] lines::ReadFault),
    #[error("the report takes longer than {READ_WITHIN_S} s; ask for fewer days")]
    Slow,
}

impl From<ReadFault> for Fault {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Slow => Self::new(ProblemCode::Timeout, fault.to_string()),
            ReadFault::Store(fault) => {
                tracing::warn!(error = %fault, "the billing store cannot be read");
                Self::new(
                    ProblemCode::Unavailable,
                    "the billing store cannot be read right now",
                )
            }
        }
    }
}

impl Source {
    /// Refuses where there is no store, and when too many read already.
    fn of(api: &Api) -> Result<Self, Fault> {
        let place = api.billing.place();
        if matches!(place, Place::None) {
            let detail = "this replica keeps no billing store, of which reports are made; see `billing.store` and `usage.source`";
            return Err(Fault::new(ProblemCode::Unavailable, detail));
        }
        let permit = READERS.try_acquire().map_err(|_| {
            let detail = format!("{READERS_MAX} reports are being made; ask again when one of them is done");
            Fault::new(ProblemCode::Unavailable, detail)
        })?;
        Ok(Self {
            place: place.clone(),
            _permit: permit,
        })
    }

    /// The same, of a store that has everything of one organization, or of all, on these days; and how far it is.
    pub(super) async fn whole(
        api: &Api,
        state: &State,
        days: (Day, Day),
        organization: Option<&OrganizationId>,
    ) -> Result<(Self, Stand), Fault> {
        let source = Self::of(api)?;
        let stand = Stand::of(&api.billing, state).await?;
        stand.must_have(state, days, organization)?;
        Ok((source, stand))
    }

    /// Reads lines until `each` breaks with what is wrong. Blocks.
    pub(super) fn lines<E: From<ReadFault>>(
        &self,
        wanted: &Wanted,
        mut each: impl FnMut(Line) -> Result<(), E>,
    ) -> Result<(), E> {
        let begun = Instant::now();
        let read = lines::lines(&self.place, wanted, |line| {
            if begun.elapsed().as_secs() >= READ_WITHIN_S {
                return ControlFlow::Break(E::from(ReadFault::Slow));
            }
            match each(line) {
                Ok(()) => ControlFlow::Continue(()),
                Err(fault) => ControlFlow::Break(fault),
            }
        });
        match read.map_err(ReadFault::from)? {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(fault) => Err(fault),
        }
    }
}

/// The instants of days.
pub(super) fn wanted((from, to): (Day, Day), organization: Option<OrganizationId>) -> Wanted {
    Wanted {
        from: from.start(),
        to: Day(to.0.saturating_add(1)).start(),
        organization,
    }
}
