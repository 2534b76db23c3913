//! Pure: what is leased and what is settled, by unit, and how many lives there are of each standing.

use tollway_shared::budget::terms::Unit;
use tollway_shared::lease::member::Standing;

use crate::state::State;

/// Sums over the current windows of all leased budgets of a unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfUnit {
    /// With nodes, and not settled.
    pub leased: i128,
    /// Settled by nodes.
    pub settled: i128,
    /// Recorded by the ledger.
    pub recorded: i128,
}

/// What is shown of leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums {
    /// By unit: money, tokens, requests.
    pub units: [OfUnit; 3],
    /// Lives by standing: live, superseded, fenced, released, closed.
    pub lives: [u64; 5],
}

/// Where a unit is in [`Sums::units`].
pub fn unit_place(unit: Unit) -> usize {
    match unit {
        Unit::Money => 0,
        Unit::Tokens => 1,
        Unit::Requests => 2,
    }
}

fn standing_place(standing: Standing) -> usize {
    match standing {
        Standing::Live => 0,
        Standing::Superseded => 1,
        Standing::Fenced => 2,
        Standing::Released => 3,
        Standing::Closed => 4,
    }
}

impl Sums {
    /// The sums of a state. Walks every budget and life.
    pub fn of(state: &State) -> Self {
        let mut sums = Self::default();
        for (id, account) in &state.books.accounts {
            let of = &mut sums.units[unit_place(account.terms.unit)];
            of.leased += account.book.outstanding;
            of.settled += account.book.settled;
            let tally = state.tallies.get(id);
            of.recorded += tally.map_or(0, |tally| i128::from(tally.current.amount));
        }
        for member in state.books.members.values() {
            sums.lives[standing_place(member.standing)] += 1;
        }
        sums
    }
}
