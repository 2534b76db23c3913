//! Commands on leases: what nodes say, and what is done about nodes that say nothing.
//!
//! The arithmetic is [`tollway_shared::lease::grantor`]; here is who may say what.

use tollway_proto::command::{Refusal, RefusalCode};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_shared::ids::{Incarnation, NodeId};
use tollway_shared::lease::member::{Member, Standing};
use tollway_shared::lease::message::{Closing, Confirmed};
use tollway_shared::time::UnixMillis;

use super::{State, Step, audit, credit, not_found, refuse};

/// What a node says. Only about its own incarnations.
pub(super) fn call(
    state: &mut State,
    step: &mut Step<'_>,
    node: &NodeId,
    call: &LeaseCall,
) -> Result<(), Refusal> {
    if !state.nodes.contains_key(node) {
        return Err(refuse(RefusalCode::Forbidden, "node", "is not registered"));
    }
    let incarnation = call.incarnation();
    let owner = state.books.members.get(&incarnation).map(|member| &member.node);
    if owner.is_some_and(|owner| owner != node) {
        let detail = "is another node's; mint a new one";
        return Err(refuse(RefusalCode::Conflict, "incarnation", detail));
    }
    let now = state.now;
    let (answer, effects) = match call {
        LeaseCall::Enlist(incarnation) => {
            let incarnation = *incarnation;
            let live = state.books.enlist(incarnation, node, now);
            close_empty(state, node, now);
            (LeaseAnswer::Enlisted { incarnation, live }, Vec::new())
        }
        LeaseCall::Ask(ask) => {
            let (answer, effects) = state.books.grant(ask, now);
            (LeaseAnswer::Answer(answer), effects)
        }
        LeaseCall::Report(report) => {
            let (confirmed, effects) = state.books.settle(report, now);
            (LeaseAnswer::Confirmed(confirmed), effects)
        }
        LeaseCall::Closing(closing) => {
            let (known, effects) = state.books.close(closing, node, now);
            (LeaseAnswer::Closed { incarnation, known }, effects)
        }
    };
    step.effects.extend(effects);
    step.lease = Some(Box::new(answer));
    Ok(())
}

/// What a report is answered that changes nothing; `None` when it has to be applied.
///
/// Any replica may answer from what it has applied. One that lags says less than there is to say, and the next one says it.
pub fn unchanged(state: &State, node: &NodeId, call: &LeaseCall) -> Option<LeaseAnswer> {
    let LeaseCall::Report(report) = call else {
        return None;
    };
    let member = state.books.members.get(&report.incarnation)?;
    let quiet = report.lines.is_empty() && member.untold.is_empty() && member.node == *node;
    quiet.then(|| {
        LeaseAnswer::Confirmed(Confirmed {
            incarnation: report.incarnation,
            serial: report.serial,
            live: member.standing == Standing::Live,
            grants: Vec::new(),
        })
    })
}

/// Former lives that never had a lease have nothing to settle: a node that starts again and again leaves no trail.
fn close_empty(state: &mut State, node: &NodeId, now: UnixMillis) {
    let empty = |member: &Member| {
        member.node == *node && member.standing == Standing::Superseded && member.leases.is_empty()
    };
    let members = state.books.members.iter();
    let over: Vec<Incarnation> = members
        .filter(|(_, member)| empty(member))
        .map(|(incarnation, _)| *incarnation)
        .collect();
    for incarnation in over {
        let closing = Closing {
            incarnation,
            lines: Vec::new(),
            doubtful: false,
        };
        state.books.close(&closing, node, now);
    }
}

/// Declares an incarnation dead.
pub(super) fn fence(state: &mut State, step: &mut Step<'_>, incarnation: Incarnation) -> Result<(), Refusal> {
    let before = touch(state, step, incarnation)?;
    state.books.fence(incarnation, state.now);
    note(state, step, incarnation, before);
    Ok(())
}

/// Frees what a fenced incarnation has out.
pub(super) fn release(
    state: &mut State,
    step: &mut Step<'_>,
    incarnation: Incarnation,
) -> Result<(), Refusal> {
    let before = touch(state, step, incarnation)?;
    if !state.books.release(incarnation, state.now) {
        return Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail: format!(
                "incarnation `{incarnation}` is {}; only a fenced one can be released",
                standing(before)
            ),
        });
    }
    let member = state.books.members.get(&incarnation);
    let leases = member.map(|member| member.leases.clone()).unwrap_or_default();
    for organization in leases.iter().filter_map(tollway_shared::credit::organization_of) {
        credit::settle(state, step, &organization);
    }
    note(state, step, incarnation, before);
    Ok(())
}

/// Forgets incarnations that were closed long ago.
pub(super) fn forget(state: &mut State, before: UnixMillis) {
    state.books.forget(before);
}

fn touch(state: &State, step: &Step<'_>, incarnation: Incarnation) -> Result<Standing, Refusal> {
    step.expect_revision(None)?;
    let member = state.books.members.get(&incarnation);
    let member = member.ok_or_else(|| not_found("incarnation", incarnation))?;
    Ok(member.standing)
}

fn note(state: &State, step: &mut Step<'_>, incarnation: Incarnation, before: Standing) {
    let Some(member) = state.books.members.get(&incarnation) else {
        return;
    };
    step.audit = Some(audit::Touched {
        target: format!("incarnation {incarnation} of node {}", member.node),
        before: Some(standing(before).to_owned()),
        after: Some(standing(member.standing).to_owned()),
    });
}

/// What it is called.
pub fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Live => "live",
        Standing::Superseded => "superseded",
        Standing::Fenced => "fenced",
        Standing::Released => "released",
        Standing::Closed => "closed",
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
