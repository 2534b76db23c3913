//! What really happened, counted in the simplest way, and what must agree with it.
//!
//! A request whose end its node wrote down cost what it used; one whose node died under it cost all that it held, for nobody can say
//! less. That is the naive ledger: one sum per window of a budget.

use std::collections::{BTreeMap, BTreeSet};

use tollway_control::state::State;
use tollway_proto::command::{Command, Entry};
use tollway_shared::budget::terms::Unit;
use tollway_shared::ids::{BudgetId, Incarnation};
use tollway_shared::lease::book::Book;
use tollway_shared::lease::member::Standing;
use tollway_shared::lease::message::Epoch;
use tollway_shared::time::UnixMillis;
use tollway_shared::window::Span;

/// A property that does not hold, and how.
pub(crate) type Broken = (&'static str, String);
/// A window of a budget.
pub(crate) type Place = (BudgetId, Epoch);

/// What a request holds of one budget.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) place: Place,
    pub(crate) unit: Unit,
    pub(crate) held: i64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    spent: i64,
    held: i64,
}

/// The oracle.
#[derive(Default)]
pub(crate) struct Truth {
    sums: BTreeMap<Place, Sums>,
    by_life: BTreeMap<Incarnation, BTreeMap<Place, Sums>>,
    /// The highest limit that was in force in each window.
    ceiling: BTreeMap<Place, i64>,
    /// What budgets say: the limit, and raises with their ends.
    terms: BTreeMap<BudgetId, (i64, Vec<(i64, UnixMillis)>)>,
    /// The newest window of each budget.
    spans: BTreeMap<BudgetId, (Epoch, Span)>,
    /// What of its hold a request that ended has not used, of each life: charged if the life ends by a crash and its spool cannot say
    /// which request an outcome belongs to.
    unused: BTreeMap<Incarnation, BTreeMap<Place, i64>>,
    /// Lives of which no disk is left.
    pub(crate) lost: BTreeSet<Incarnation>,
    /// Lives that ended with a loss of power: the end of a request may be gone, and it costs what it held.
    pub(crate) doubted: BTreeSet<Incarnation>,
}

impl Truth {
    /// A request is sent.
    pub(crate) fn begin(&mut self, life: Incarnation, parts: &[Part]) -> Result<(), Broken> {
        for Part { place, held, .. } in parts {
            let sums = self.sums.entry(place.clone()).or_default();
            sums.held += held;
            let of_life = self.by_life.entry(life).or_default();
            of_life.entry(place.clone()).or_default().held += held;
        }
        self.within(parts)
    }

    /// What is spent and held is within the limit.
    fn within(&self, parts: &[Part]) -> Result<(), Broken> {
        for Part { place, .. } in parts {
            let sums = self.sums.get(place).copied().unwrap_or_default();
            let most = self.ceiling.get(place).copied().unwrap_or(0);
            if sums.spent + sums.held > most {
                let text = format!(
                    "{} are spent and {} held of {place:?}, whose limit is {most}",
                    sums.spent, sums.held
                );
                return Err(("overspend", text));
            }
        }
        Ok(())
    }

    /// A request has ended, and cost this much of each.
    pub(crate) fn end(
        &mut self,
        life: Incarnation,
        parts: &[Part],
        actual: impl Fn(&Part) -> i64,
    ) -> Result<(), Broken> {
        for part in parts {
            let actual = actual(part);
            let of_life = self.by_life.entry(life).or_default();
            for sums in [
                self.sums.entry(part.place.clone()).or_default(),
                of_life.entry(part.place.clone()).or_default(),
            ] {
                sums.held -= part.held;
                sums.spent += actual;
            }
            let unused = self.unused.entry(life).or_default();
            *unused.entry(part.place.clone()).or_default() += part.held - actual;
        }
        self.within(parts)
    }

    /// A node died under a request.
    pub(crate) fn interrupt(&mut self, life: Incarnation, parts: &[Part]) {
        let _ = self.end(life, parts, |part| part.held); // it was within the limit when it began
    }

    /// Follows what budgets say, and checks that windows begin when they should.
    pub(crate) fn limits(&mut self, entry: &Entry, done: bool, state: &State) {
        if done {
            match &entry.command {
                Command::PutBudget(put) => {
                    let terms = self.terms.entry(put.budget.id.clone()).or_default();
                    terms.0 = put.budget.terms.limit;
                }
                Command::RaiseBudget { budget, raise } => {
                    let terms = self.terms.entry(budget.clone()).or_default();
                    terms.1.push((raise.amount, raise.until));
                }
                Command::ClearRaises(budget) => {
                    self.terms.entry(budget.clone()).or_default().1.clear();
                }
                _ => {}
            }
        }
        for (id, account) in &state.books.accounts {
            let (limit, raises) = self.terms.entry(id.clone()).or_default();
            let raised = raises.iter().filter(|(_, until)| state.now < *until);
            let limit = *limit + raised.map(|(amount, _)| amount).sum::<i64>();
            let most = self.ceiling.entry((id.clone(), account.book.epoch)).or_insert(0);
            *most = (*most).max(limit);
        }
    }

    /// What must hold of the books after every step.
    pub(crate) fn books(&mut self, state: &State) -> Result<(), Broken> {
        if let Some(text) = state.books.broken() {
            return Err(("conservation", text));
        }
        for (id, account) in &state.books.accounts {
            let now = (account.book.epoch, account.book.span);
            let before = self.spans.insert(id.clone(), now);
            if let Some((epoch, span)) = before.filter(|before| *before != now) {
                let follows = span.end.is_some_and(|end| end <= now.1.start && end <= state.now);
                if !follows || now.0 <= epoch {
                    return Err(("windows", format!("{id}: {now:?} follows {epoch:?}, {span:?}")));
                }
            }
        }
        for (place, book) in books(state) {
            let spent = self.sums.get(&place).copied().unwrap_or_default().spent;
            let most = i128::from(spent + self.excused(&place)) + book.doubtful;
            if book.settled > most {
                let text = format!("{} is charged to {place:?}, {spent} was spent", book.settled);
                return Err(("counted", text));
            }
        }
        Ok(())
    }

    /// What may be charged above what was spent: in crashed lives whose spool has more than one file, or lost its end.
    fn excused(&self, place: &Place) -> i64 {
        let lives = self.unused.values();
        lives.filter_map(|places| places.get(place)).sum()
    }

    /// Forgets the excuse of lives whose spool had one file and kept it.
    pub(crate) fn no_excuse(&mut self) {
        self.unused.retain(|life, _| self.doubted.contains(life));
    }

    /// In the end, when everything was recovered: what is charged is what was spent.
    pub(crate) fn settled(&self, state: &State) -> Result<(), Broken> {
        for (place, book) in books(state) {
            let sums = self.sums.get(&place).copied().unwrap_or_default();
            if sums.held != 0 {
                return Err(("counted", format!("{} of {place:?} is still held", sums.held)));
            }
            let mut unseen = 0;
            let known = |life: &&Incarnation| {
                let member = state.books.members.get(*life);
                member.is_none_or(|member| member.standing == Standing::Closed)
            };
            for life in self.lost.iter().filter(|life| !known(life)) {
                let spent = self.of_life(*life, &place).spent;
                let reported = book.leases.get(life).map_or(0, |lease| lease.spent);
                unseen += i128::from(spent - reported);
            }
            let (least, spent) = (book.settled - book.doubtful + unseen, i128::from(sums.spent));
            let excused = i128::from(self.excused(&place));
            let most = book.settled + unseen;
            if least - excused > spent || most < spent {
                let text = format!(
                    "{} is charged to {place:?}, {} of it in doubt, {spent} was spent, {unseen} of it by lives without a disk",
                    book.settled, book.doubtful
                );
                return Err(("counted", text));
            }
            let out = book
                .leases
                .iter()
                .find(|(life, lease)| lease.outstanding() > 0 && !self.lost.contains(life));
            if let Some((life, lease)) = out {
                let text = format!("{life} keeps {} of {place:?} after its end", lease.outstanding());
                return Err(("nothing_lost", text));
            }
        }
        Ok(())
    }

    fn of_life(&self, life: Incarnation, place: &Place) -> Sums {
        let places = self.by_life.get(&life);
        places
            .and_then(|places| places.get(place))
            .copied()
            .unwrap_or_default()
    }

    /// Whether an incarnation has spent just what it reported.
    pub(crate) fn reported_all(&self, state: &State, life: Incarnation) -> bool {
        let known: BTreeMap<Place, &Book> = books(state).collect();
        let Some(places) = self.by_life.get(&life) else {
            return true;
        };
        places.iter().all(|(place, sums)| {
            let reported = |book: &&Book| book.leases.get(&life).map_or(0, |lease| lease.spent);
            let reported = known.get(place).map(reported);
            sums.held == 0 && reported.is_none_or(|reported| reported == sums.spent)
        })
    }

    /// What could still be spent of a budget's window by whoever is in reach.
    ///
    /// - `near`: whether a life is of a node that can be asked.
    pub(crate) fn reachable(
        &self,
        state: &State,
        id: &BudgetId,
        near: impl Fn(&Incarnation) -> bool,
    ) -> i128 {
        let Some(account) = state.books.accounts.get(id) else {
            return 0;
        };
        let book = &account.book;
        let live = |life: &Incarnation| {
            let member = state.books.members.get(life);
            member.is_some_and(|member| member.standing == Standing::Live)
        };
        let idle = book.leases.iter().filter(|(life, _)| live(life) && near(life));
        let idle = idle.map(|(life, lease)| {
            let sums = self.of_life(*life, &(id.clone(), book.epoch));
            i128::from((lease.granted - lease.returned - sums.spent - sums.held).max(0))
        });
        book.free + idle.sum::<i128>()
    }
}

/// Every window that is kept.
fn books(state: &State) -> impl Iterator<Item = (Place, &Book)> {
    state.books.accounts.iter().flat_map(|(id, account)| {
        let books = std::iter::once(&account.book).chain(&account.past);
        books.map(move |book| ((id.clone(), book.epoch), book))
    })
}
