//! What the cores see of the leases: the slices, and where to ask for more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tollway_shared::ids::{BudgetId, Incarnation};
use tollway_shared::lease::holder::Slices;
use tollway_shared::lease::message::{Recall, Want};
use tollway_shared::lease::slice::Reach;

/// Requests that may wait for a grant at once, on all cores; the next one is turned away.
const WAITING_MAX: usize = 4_096;
/// Recalls that wait for the task; one that is dropped comes again with the next confirmation.
const RECALLS_MAX: usize = 1_024;

/// The slices of one incarnation. A request holds on one shelf alone, so that all it holds is of one incarnation.
#[derive(Debug)]
pub struct Shelf {
    /// Whose.
    pub incarnation: Incarnation,
    /// The slices.
    pub slices: Slices,
}

/// What became of a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something has changed: hold again.
    Again,
    /// There is no such budget any more.
    Gone(BudgetId),
    /// The control plane could not be asked in time.
    Unreachable,
}

/// A request that waits for a grant.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) wants: Vec<Want>,
    pub(super) told: oneshot::Sender<Told>,
}

/// The task's ends of the queues.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) waiting: mpsc::Receiver<Waiting>,
    pub(super) recalls: mpsc::Receiver<Recall>,
}

/// What the cores see; cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shelf: ArcSwap<Shelf>,
    /// How many checkpoints have begun.
    mark: AtomicU64,
    lost: AtomicBool,
    waiting: mpsc::Sender<Waiting>,
    recalls: mpsc::Sender<Recall>,
}

impl Desk {
    /// A desk without slices, and its task's ends.
    pub(super) fn new(incarnation: Incarnation) -> (Self, Inbox) {
        let (waiting, waiting_end) = mpsc::channel(WAITING_MAX);
        let (recalls, recalls_end) = mpsc::channel(RECALLS_MAX);
        let slices = Slices::default();
        let inner = Inner {
            shelf: ArcSwap::from_pointee(Shelf { incarnation, slices }),
            mark: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            waiting,
            recalls,
        };
        let inbox = Inbox {
            waiting: waiting_end,
            recalls: recalls_end,
        };
        (Self(Arc::new(inner)), inbox)
    }

    /// The desk of a node without a control plane: leased budgets let nothing through, for nobody can say what they have left.
    pub fn closed() -> Self {
        Self::new(Incarnation(0)).0
    }

    /// A desk with these slices and no task behind it.
    #[cfg(test)]
    pub(crate) fn with(incarnation: Incarnation, slices: &Slices) -> Self {
        let (desk, _) = Self::new(incarnation);
        desk.publish(incarnation, slices);
        desk
    }

    /// The slices. Not to be held across an `.await`.
    pub fn shelf(&self) -> Guard<Arc<Shelf>> {
        self.0.shelf.load()
    }

    /// Whether the control plane can be asked.
    pub fn reach(&self) -> Reach {
        if self.0.lost.load(Ordering::Relaxed) {
            Reach::Lost
        } else {
            Reach::Connected
        }
    }

    /// The number of checkpoints that have begun; to be read after a hold was taken.
    pub fn mark(&self) -> u64 {
        // With the fence in `begin_checkpoint`: if this is the number from before it, the checkpoint has seen the hold.
        fence(Ordering::SeqCst);
        self.0.mark.load(Ordering::SeqCst)
    }

    /// Asks for a grant and waits for what becomes of it.
    pub async fn ask(&self, wants: Vec<Want>, until: Instant) -> Told {
        let (told, heard) = oneshot::channel();
        if self.0.waiting.try_send(Waiting { wants, told }).is_err() {
            return Told::Unreachable;
        }
        match timeout_at(until, heard).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) | Err(_) => Told::Unreachable,
        }
    }

    /// Passes a recall on to the task.
    pub fn recall(&self, recall: Recall) {
        let _ = self.0.recalls.try_send(recall);
    }

    pub(super) fn begin_checkpoint(&self) -> u64 {
        let mark = self.0.mark.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        mark
    }

    pub(super) fn publish(&self, incarnation: Incarnation, slices: &Slices) {
        let shelf = self.0.shelf.load();
        if shelf.incarnation == incarnation && shelf.slices.ptr_eq(slices) {
            return;
        }
        let slices = slices.clone();
        self.0.shelf.store(Arc::new(Shelf { incarnation, slices }));
    }

    pub(super) fn set_lost(&self, lost: bool) {
        self.0.lost.store(lost, Ordering::Relaxed);
    }
}

/// Requests that wait for the same budgets.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: Vec<Waiting>,
    /// An ask of theirs is under way, or will be shortly.
    pub(super) busy: bool,
    /// All of them together were refused: the one that wants least asks alone, so that nobody is refused for what others want.
    pub(super) alone: bool,
}

/// Who waits for what, by the budgets of the path.
pub(super) type Lines = BTreeMap<Vec<BudgetId>, Line>;

impl Line {
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// What to ask for now, and whether it is for more than one of them.
    pub(super) fn wants(&mut self) -> Option<(Vec<Want>, bool)> {
        self.waiting.retain(|waiting| !waiting.told.is_closed());
        let least = |waiting: &&Waiting| waiting.wants.iter().map(|want| want.least).collect::<Vec<_>>();
        let newest = self.waiting.last()?;
        if self.alone || self.waiting.len() == 1 {
            let one = self.waiting.iter().min_by_key(least)?;
            return Some((one.wants.clone(), false));
        }
        let mut sum = newest.wants.clone();
        for other in &self.waiting[..self.waiting.len() - 1] {
            for (want, more) in sum.iter_mut().zip(&other.wants) {
                want.amount = want.amount.saturating_add(more.amount);
                want.least = want.least.saturating_add(more.least);
            }
        }
        Some((sum, true))
    }

    /// Tells everybody.
    pub(super) fn tell(&mut self, told: &Told) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.told.send(told.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use tollway_shared::lease::message::Epoch;

    use super::*;

    fn waiting(amount: i64) -> (Waiting, oneshot::Receiver<Told>) {
        let (told, heard) = oneshot::channel();
        let want = Want {
            budget: BudgetId::trusted("b"),
            epoch: Epoch(0),
            seen: 0,
            room: 0,
            amount,
            least: amount,
            urgent: true,
            burn: 0,
        };
        let wants = vec![want];
        (Waiting { wants, told }, heard)
    }

    #[test]
    fn those_who_wait_ask_together_and_after_a_refusal_the_one_that_wants_least_alone() {
        let mut line = Line::default();
        let asked = |line: &mut Line| {
            let (wants, several) = line.wants()?;
            Some((wants[0].amount, wants[0].least, several))
        };
        assert_eq!(asked(&mut line), None);
        let mut heard = Vec::new();
        for amount in [30, 10, 20] {
            let (waiting, hears) = waiting(amount);
            line.push(waiting);
            heard.push(hears);
        }
        assert_eq!(asked(&mut line), Some((60, 60, true)));
        line.alone = true;
        assert_eq!(asked(&mut line), Some((10, 10, false)));
        // Who has given up wants nothing any more.
        drop(heard.remove(1));
        assert_eq!(asked(&mut line), Some((20, 20, false)));
        line.alone = false;
        assert_eq!(asked(&mut line), Some((50, 50, true)));
        line.tell(&Told::Again);
        assert!(
            heard
                .into_iter()
                .all(|mut hears| hears.try_recv() == Ok(Told::Again))
        );
        assert_eq!(asked(&mut line), None);
    }
}
