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
use tollway_shared::lease::slice::{Reach, Slice};

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
#[derive(Debug)]
pub enum Told {
    /// Something has changed: let go of what is kept, and hold again.
    Again(Kept),
    /// There is no such budget any more.
    Gone(BudgetId),
    /// The control plane could not be asked in time.
    Unreachable,
}

/// What was granted for a request that waits, set aside until that request has heard of it. A node that waits for the same money
/// would otherwise have it recalled in that moment, this node would have it back in the next, and neither would spend it.
#[derive(Debug, Default)]
pub struct Kept(Vec<(Arc<Slice>, i64)>);

impl Kept {
    /// The least of each want; nothing if one of them is not there.
    fn of(wants: &[Want], slices: &Slices) -> Self {
        let mut kept = Self::default();
        for want in wants {
            match slices.get(&want.budget) {
                Some(slice) if slice.take(want.least, Reach::Connected) => {
                    kept.0.push((slice.clone(), want.least));
                }
                _ => return Self::default(),
            }
        }
        kept
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (slice, amount) in &self.0 {
            slice.untake(*amount);
        }
    }
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

    /// Tells everybody to hold again, and keeps what they want for as many as there is enough for.
    pub(super) fn tell_again(&mut self, slices: &Slices) {
        for waiting in self.waiting.drain(..) {
            let kept = Kept::of(&waiting.wants, slices);
            let _ = waiting.told.send(Told::Again(kept));
        }
    }

    /// Tells everybody that a budget is no more.
    pub(super) fn tell_gone(&mut self, budget: &BudgetId) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.told.send(Told::Gone(budget.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tollway_shared::lease::message::{Epoch, Grant};

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
        line.tell_again(&Slices::default());
        assert!(
            heard
                .into_iter()
                .all(|mut hears| matches!(hears.try_recv(), Ok(Told::Again(_))))
        );
        assert_eq!(asked(&mut line), None);
    }

    #[test]
    fn what_is_granted_to_a_request_that_waits_is_there_when_it_hears_of_it() {
        let grant = Grant {
            budget: BudgetId::trusted("b"),
            epoch: Epoch(1),
            ends_at: None,
            granted: 50,
            spent: 0,
            returned: 0,
            reserve: 0,
            open: false,
            short: false,
            recall: 0,
            recall_amount: 0,
        };
        let slice = Arc::new(Slice::of(&grant));
        let slices = Slices::unit(grant.budget.clone(), slice.clone());
        let mut line = Line::default();
        let mut heard = Vec::new();
        for amount in [30, 10, 20] {
            let (waiting, hears) = waiting(amount);
            line.push(waiting);
            heard.push(hears);
        }
        line.tell_again(&slices);
        // There is enough for two of them, and another node's recall finds the rest only.
        assert_eq!((slice.give_back(i64::MAX), slice.room(Reach::Connected)), (10, 0));
        let told: Vec<_> = heard.iter_mut().map(|hears| hears.try_recv()).collect();
        assert_eq!(slice.room(Reach::Connected), 0);
        drop(told);
        assert_eq!(slice.room(Reach::Connected), 40);
        // Whoever has given up keeps nothing.
        let (waiting, hears) = waiting(40);
        line.push(waiting);
        drop(hears);
        line.tell_again(&slices);
        assert_eq!(slice.room(Reach::Connected), 40);
    }
}
