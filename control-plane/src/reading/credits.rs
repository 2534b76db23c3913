//! An organization's credit, as two numbers: what it got, and what it used up. Pure.

use tollway_proto::push::v1::Credits;
use tollway_shared::credit::{AccountName, shown};
use tollway_shared::ids::OrganizationId;

use crate::state::State;

/// What an organization has bought, was given and had corrected, and what of it is gone. Fees on buying are in neither.
pub fn of(state: &State, id: &OrganizationId) -> Credits {
    let Some(account) = state.accounts.get(id) else {
        return Credits::default();
    };
    // Each of these is what came out of it: the other side of what the organization got. Cash came in with the fees on buying.
    let others = [
        AccountName::CashReceived,
        AccountName::Promo,
        AccountName::Refunds,
        AccountName::Adjustments,
    ];
    let got: i128 = others.iter().map(|name| -account.balances.of(*name)).sum();
    let total = got - account.moved.fees();
    Credits {
        total: shown(total).0,
        used: shown(total - account.available()).0,
    }
}
