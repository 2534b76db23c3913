//! Leased budgets: a limit that holds on many nodes with no network on the hot path.
//!
//! The control plane (the *grantor*) leases slices of a budget to nodes (*holders*); a request sets its worst case aside on the
//! node's slices and settles it to what it really cost. Everything here is arithmetic: it takes the time as an argument and does
//! no I/O. The grantor is part of the replicated state; the holder is driven by one task of a node and read by all its cores.
//!
//! | file | what |
//! |---|---|
//! | [`message`] | what the two tell each other |
//! | [`book`] | one window of one budget: `limit = settled + outstanding + free` |
//! | [`account`] | one budget: its terms, its windows, what a lease gets |
//! | [`member`] | holders as the grantor knows them |
//! | [`former`] | budgets that were removed or changed while nodes had slices of them |
//! | [`release`] | what is freed on the word of an operator |
//! | [`grantor`] | [`grantor::Books`]: all budgets and holders; a function per command |
//! | [`size`] | how much to grant, whom to ask for money back |
//! | [`mod@slice`] | the atomic counters of a node's slice |
//! | [`hold`] | [`hold::hold()`] and [`hold::Hold`]: the hot path |
//! | [`holder`] | [`holder::Holder`]: asks, answers, reports, recalls |
//!
//! # What holds
//! - **No overspend.** A unit is granted only out of `free`, in a command that takes from every level of the path or from none;
//!   a node holds only what it was granted and has not given back. So what requests spend of a hard budget in one window is at
//!   most its limit, if no request costs more than its hold, whatever is lost, repeated, late or dead. A limit that is lowered
//!   binds what is granted from then on.
//! - **Conservation.** In every [`book::Book`], after every step.
//! - **Clocks decide nothing about money.** A lease does not expire: no time frees it. A window is identified by its [`message::Epoch`],
//!   so a node whose clock is an hour behind spends the old window's lease, which the old window pays.
//! - **Nothing is lost for ever.** What a node has comes back when it settles, gives back, closes, or when its successor reads the
//!   spool; failing all that, when the window is over, or when an operator releases what a fenced incarnation has out.
//! - **Refused only if spent.** Before a refusal the node asks once more; then free money is given to the last unit, and idle
//!   money of other live nodes is recalled. What stays out of reach is what is held in flight and what nodes that do not answer
//!   for [`size::RECALL_PATIENCE_MS`] have.
//!
//! # Counters, not deltas
//! `granted` is a counter that only the grantor raises; `spent` and `returned` only the holder; the other side merges each by
//! `max`. That makes every message safe to repeat, reorder and lose. An ask says how much the holder has seen, so a repeated ask
//! finds its grant already made. What is one-way by nature is fenced: a closed incarnation stays in [`grantor::Books::members`]
//! until none of its messages can be on the way.
//!
//! # One life of a lease
//! 1. A node starts: mint an [`crate::ids::Incarnation`], write it into the spool, [`grantor::Books::enlist`]. If the spool has records of
//!    former incarnations, sum them by (budget, epoch), requests without an outcome at their whole hold, and send a
//!    [`message::Closing`] for each ([`grantor::Books::close`]); `doubtful` if the machine has rebooted since and the spool is not
//!    synced before each hold is used. So intents in the spool must name budget, epoch and amount of each part of their hold.
//! 2. A request: look its budgets' slices up in the published [`holder::Slices`], [`hold::hold()`]. [`hold::Short::Lease`] → [`holder::Holder::ask`]
//!    → the leader adds [`grantor::Books::due`] to the command → `roll`, then [`grantor::Books::grant`] → [`holder::Holder::take`] →
//!    hold again. [`message::Verdict::Recalling`]: again in some tens of milliseconds, a few times.
//! 3. It ends: [`hold::Hold::settle`].
//! 4. Each second, and when enough has changed: [`holder::Holder::report`] → [`grantor::Books::settle`] → [`holder::Holder::confirmed`];
//!    [`holder::Holder::top_ups`] keeps requests from waiting. [`message::Effect::Recall`] → [`holder::Holder::recall`] → report at once.
//! 5. The node drains: [`holder::Holder::closing`]. Or it dies: back to 1, or [`grantor::Books::fence`] by an operator or for a node that is
//!    removed.
//!
//! Soft budgets are not leased: they refuse nothing, and the ledger counts them.
//!
//! # Why atomics that all cores share
//! A node runs one single-threaded runtime per core, and requests of one key arrive on all of them. A slice per core would need no
//! atomics but strands money: on 200 nodes of 64 cores a budget would be cut into 12,800 pieces, and a request would be refused
//! for what its neighbour core has. So there is one slice per budget and node, of atomics: a hold is one compare-and-swap per
//! level, which costs tens of nanoseconds, some hundreds when cores fight for one organization's slice, where the budget is ten
//! microseconds. There is no lock: the index is a persistent map, read from an immutable snapshot behind an atomic swap like the
//! catalog, and changed only by the task that owns the holder. `tests/lease/cost.rs` measures it with a million keys.

pub mod account;
pub mod book;
pub mod former;
pub mod grantor;
pub mod hold;
pub mod holder;
pub mod member;
pub mod message;
pub mod release;
pub mod size;
pub mod slice;
