//! Incarnations that are over, of this life and of earlier ones: written down, then told until the control plane has heard.

use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use tollway_proto::lease::{CLOSED_LINES_MAX, LINES_MAX, LeaseAnswer, LeaseCall};
use tollway_shared::ids::Incarnation;
use tollway_shared::lease::holder::Holder;
use tollway_shared::lease::message::{ClosedLine, Closing, Line, Report};

use super::journal;
use super::link::{Call, CallFault};

/// How long one message may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is over.
pub(super) struct Past {
    folder: PathBuf,
    call: Call,
    /// Incarnations of this life that get nothing any more, while requests of theirs still run.
    former: Vec<Holder>,
    /// What is to be told, and whether it is being told.
    closings: Vec<(Closing, bool)>,
}

impl Past {
    /// What earlier lives left.
    pub(super) fn new(folder: PathBuf, call: Call, closings: Vec<Closing>) -> Self {
        Self {
            folder,
            call,
            former: Vec::new(),
            closings: closings.into_iter().map(|closing| (closing, false)).collect(),
        }
    }

    /// Whether no incarnation of this life waits for its requests to end.
    pub(super) fn is_settled(&self) -> bool {
        self.former.is_empty()
    }

    /// Another incarnation takes this one's place.
    pub(super) fn push(&mut self, holder: Holder) {
        self.former.push(holder);
    }

    /// Closes the incarnations whose last request has ended.
    pub(super) fn close(&mut self) {
        for holder in std::mem::take(&mut self.former) {
            if !holder.retire() {
                self.former.push(holder);
                continue;
            }
            let closing = holder.closing();
            match journal::end(&self.folder, &closing) {
                Ok(()) => self.closings.push((closing, false)),
                Err(fault) => {
                    tracing::error!(error = %fault, "the end of an incarnation cannot be written down yet");
                    self.former.push(holder);
                }
            }
        }
    }

    /// What is to be told now.
    pub(super) fn tell(&mut self) -> Vec<(Incarnation, BoxFuture<'static, Result<LeaseAnswer, CallFault>>)> {
        let mut calls = Vec::new();
        for (closing, telling) in &mut self.closings {
            if !std::mem::replace(telling, true) {
                calls.push((closing.incarnation, told(&self.call, closing.clone())));
            }
        }
        calls
    }

    /// Whether the control plane has heard of an end. If not, it is told again.
    pub(super) fn told(&mut self, incarnation: Incarnation, heard: bool) {
        if !heard {
            let again = |(closing, telling): &mut (Closing, bool)| {
                *telling &= closing.incarnation != incarnation;
            };
            return self.closings.iter_mut().for_each(again);
        }
        self.closings
            .retain(|(closing, _)| closing.incarnation != incarnation);
        match journal::forget(&self.folder, incarnation) {
            Ok(()) => tracing::info!(%incarnation, "an earlier incarnation of this node is closed"),
            Err(fault) => tracing::warn!(error = %fault, "a journal that is done with cannot be removed"),
        }
    }

    /// The end of the process: writes down what was spent, and tells it if anybody listens.
    ///
    /// - `holder`: the incarnation in use; its requests have ended, or count whole.
    /// - `release`: called once everything is written down.
    pub(super) async fn end(mut self, holder: &Holder, until: Instant, release: impl FnOnce()) {
        for holder in std::iter::once(holder).chain(&self.former) {
            let closing = holder.closing();
            if let Err(fault) = journal::end(&self.folder, &closing) {
                tracing::error!(error = %fault, "what was spent cannot be written down; the last checkpoint stands");
                return;
            }
            self.closings.push((closing, false));
        }
        release();
        for (closing, _) in self.closings {
            let incarnation = closing.incarnation;
            let answer = timeout_at(until, told(&self.call, closing)).await;
            if let Ok(Ok(LeaseAnswer::Closed { .. })) = answer {
                let _ = journal::forget(&self.folder, incarnation); // if it stays, it is told again
            }
        }
    }
}

/// Tells the end of an incarnation; what does not fit into one message goes ahead of it as reports.
fn told(call: &Call, mut closing: Closing) -> BoxFuture<'static, Result<LeaseAnswer, CallFault>> {
    let rest = closing.lines.split_off(closing.lines.len().min(CLOSED_LINES_MAX));
    let call = call.clone();
    async move {
        for (serial, lines) in (1..).zip(rest.chunks(LINES_MAX)) {
            let counters = |line: &ClosedLine| Line {
                budget: line.budget.clone(),
                epoch: line.epoch,
                spent: line.spent,
                returned: 0,
                seen: 0,
                held: 0,
                recall: 0,
            };
            let report = Report {
                incarnation: closing.incarnation,
                serial,
                lines: lines.iter().map(counters).collect(),
            };
            call(LeaseCall::Report(report), PATIENCE).await?;
        }
        call(LeaseCall::Closing(closing), PATIENCE).await
    }
    .boxed()
}
