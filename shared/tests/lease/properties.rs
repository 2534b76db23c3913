//! What must hold.

use std::collections::BTreeMap;

use tollway_shared::budget::terms::Mode;
use tollway_shared::ids::Incarnation;
use tollway_shared::lease::book::Book;
use tollway_shared::lease::holder::IDLE_MS;
use tollway_shared::lease::member::Standing;

use crate::steps::Setup;
use crate::world::{Flight, Place, World};

/// Rounds of asking within which a node must have what is there: each is a nap, longer than any patience.
const ROUNDS_MAX: usize = 6;

/// In every state: books balance, no unit can be spent twice, nothing is charged that was not spent.
pub(crate) fn holds(world: &World) -> Result<(), String> {
    if let Some(text) = world.books.broken() {
        return Err(format!("conservation: {text}"));
    }
    let mut might: BTreeMap<Place, i64> = world.spent.clone();
    for node in &world.nodes {
        for Flight(parts) in &node.flights {
            for (place, amount) in parts {
                *might.entry(place.clone()).or_default() += amount;
            }
        }
        let Some(holder) = node.holder() else {
            continue;
        };
        for place in world.ceiling.keys() {
            if let Some(slice) = holder.slice(&place.0, place.1) {
                *might.entry(place.clone()).or_default() += slice.numbers().room.max(0);
            }
        }
    }
    for (place, might) in &might {
        let limit = world.ceiling.get(place).copied().unwrap_or(0);
        if *might > limit {
            return Err(format!("overspend: {might} of {limit} can be spent of {place:?}"));
        }
    }
    for (place, book) in books(world) {
        let spent = world.spent.get(&place).copied().unwrap_or(0);
        if book.settled > i128::from(spent) {
            return Err(format!(
                "counted: {} is charged to {place:?}, {spent} was spent",
                book.settled
            ));
        }
    }
    Ok(())
}

/// From this state on without faults: whoever asks gets what is there, and in the end every unit is spent or free again.
pub(crate) fn heals(world: &World, setup: &Setup) -> Result<(), String> {
    let mut world = world.clone();
    world.confirms = true;
    world.deliver_all(setup)?;
    // Disks that are lost: their lives are fenced, and released where that is the truth.
    let mut lost = Vec::new();
    for n in 0..world.nodes.len() {
        if world.nodes[n].running.is_none()
            || world.nodes[n].holder().is_some_and(|holder| holder.fenced())
            || !standing_is_live(&world, n)
        {
            settle_all(&mut world, n)?;
            if world.nodes[n].running.is_some() {
                let holder = world.nodes[n].holder().unwrap();
                let node = world.nodes[n].id.clone();
                world.books.close(&holder.closing(), &node, world.now);
            }
            world.start(setup, n);
        } else {
            settle_all(&mut world, n)?;
            // Its former life's closing may have been lost: it says so again.
            let readable = world.nodes[n].readable.clone();
            if !readable.is_empty() {
                let holder = world.nodes[n].holder().unwrap();
                let node = world.nodes[n].id.clone();
                world.books.close(&holder.closing(), &node, world.now);
                world.start(setup, n);
            }
        }
    }
    world.deliver_all(setup)?;
    let members: Vec<(Incarnation, Standing)> = world
        .books
        .members
        .iter()
        .map(|(id, member)| (*id, member.standing))
        .collect();
    for (id, standing) in members {
        let running = world
            .nodes
            .iter()
            .any(|node| node.holder().is_some_and(|holder| holder.incarnation() == id));
        if !running && !matches!(standing, Standing::Closed | Standing::Released) {
            if world.nodes.iter().any(|node| node.readable.contains(&id)) {
                return Err(format!(
                    "lost money: {id}'s spool was read and its lease is still out"
                ));
            }
            world.books.fence(id, world.now);
            if world.spends_nothing_more(id) {
                world.books.release(id, world.now);
            } else {
                lost.push(id);
            }
        }
    }
    for n in 0..world.nodes.len() {
        asks_for_what_is_there(&world, setup, n)?;
    }
    // Nobody asks for anything any more: it all comes back.
    for _ in 0..3 {
        world.nap(IDLE_MS);
        for n in 0..world.nodes.len() {
            world.report(n);
        }
        world.deliver_all(setup)?;
    }
    holds(&world)?;
    for (place, book) in books(&world) {
        let current = book.epoch == world.books.accounts.get(&place.0).unwrap().book.epoch;
        let out: Vec<_> = book
            .leases
            .iter()
            .filter(|(id, lease)| lease.outstanding() > 0 && !lost.contains(id))
            .collect();
        // What is out of a window that is over is of no use to anybody.
        let kept = out
            .first()
            .filter(|(_, lease)| current && lease.outstanding() > lease.reserve);
        if let Some((id, lease)) = kept {
            return Err(format!(
                "lost money: {id} keeps {} of {place:?}",
                lease.outstanding()
            ));
        }
        let truth = |id: &Incarnation| {
            let spool = world.nodes.iter().find_map(|node| node.spool.get(id));
            spool.and_then(|spool| spool.get(&place)).copied().unwrap_or(0)
        };
        let unseen: i64 = lost
            .iter()
            .map(|id| truth(id) - book.leases.get(id).map_or(0, |lease| lease.spent))
            .sum();
        let spent = world.spent.get(&place).copied().unwrap_or(0);
        if book.settled + i128::from(unseen) != i128::from(spent) {
            return Err(format!(
                "counted: {} is charged to {place:?}, {spent} was spent",
                book.settled
            ));
        }
    }
    Ok(())
}

fn standing_is_live(world: &World, n: usize) -> bool {
    let holder = world.nodes[n].holder().unwrap();
    let member = world.books.members.get(&holder.incarnation());
    member.is_some_and(|member| member.standing == Standing::Live)
}

fn settle_all(world: &mut World, n: usize) -> Result<(), String> {
    while !world.nodes[n].flights.is_empty() {
        world.finish(n, 0, 1)?;
    }
    Ok(())
}

/// A request is served if and only if every level has its worst case unspent somewhere in reach.
fn asks_for_what_is_there(world: &World, setup: &Setup, n: usize) -> Result<(), String> {
    let mut world = world.clone();
    let budgets: Vec<_> = setup.budgets.iter().map(|(id, _)| id).collect();
    for roll in world.books.due(budgets, world.now).unwrap() {
        world.books.roll(&roll, world.now);
    }
    for node in 0..world.nodes.len() {
        world.report(node);
    }
    world.deliver_all(setup)?;
    let live = |id: &Incarnation| {
        world
            .books
            .members
            .get(id)
            .is_some_and(|member| member.standing == Standing::Live)
    };
    let there = setup.budgets.iter().map(|(id, _)| {
        let book = &world.books.accounts.get(id).unwrap().book;
        let reach = book.leases.iter().filter(|(id, _)| live(id));
        book.free
            + reach
                .map(|(_, lease)| i128::from(lease.outstanding()))
                .sum::<i128>()
    });
    let there = there.min().unwrap_or(0);
    let clamps = setup.budgets.iter().all(|(_, terms)| terms.mode == Mode::Clamp);
    let wanted = if clamps { 1 } else { setup.worst };
    for _ in 0..ROUNDS_MAX {
        world.nap(600);
        for node in 0..world.nodes.len() {
            world.report(node);
        }
        world.deliver_all(setup)?;
        world.nodes[n].todo = 1;
        world.attempt(setup, n);
        world.deliver_all(setup)?;
        if !world.nodes[n].flights.is_empty() {
            break;
        }
    }
    holds(&world)?;
    let served = !world.nodes[n].flights.is_empty();
    if served == (there >= i128::from(wanted)) {
        return Ok(());
    }
    Err(format!(
        "refused: {there} is left, {wanted} is wanted, served: {served}"
    ))
}

fn books(world: &World) -> impl Iterator<Item = (Place, &Book)> {
    world.books.accounts.iter().flat_map(|(id, account)| {
        let books = std::iter::once(&account.book).chain(&account.past);
        books.map(move |book| ((id.clone(), book.epoch), book))
    })
}
