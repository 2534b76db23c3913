//! Breadth first through every state, so that a counterexample is as short as can be.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

/// States above which a model counts as too large to be looked through.
const STATES_MAX: usize = 3_000_000;

/// Something with states and steps.
pub(crate) trait Model {
    type State: Clone + Hash;
    type Step: Clone + Debug;
    /// Every step that can be taken.
    fn steps(&self, state: &Self::State) -> Vec<Self::Step>;
    /// The state after a step, or the promise that the step broke.
    fn after(&self, state: &Self::State, step: &Self::Step) -> Result<Self::State, String>;
    /// The promise that a state breaks, if any.
    fn check(&self, state: &Self::State) -> Result<(), String>;
}

/// A broken promise and the way to it.
#[derive(Debug)]
pub(crate) struct Broken<S> {
    pub(crate) promise: String,
    pub(crate) steps: Vec<S>,
}

/// 128 bits of a state: with a few million states, two alike by chance are less likely than a broken machine.
fn print(state: &impl Hash) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        state.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// Visits every state once. Returns their number.
pub(crate) fn explore<M: Model>(model: &M, start: M::State) -> Result<usize, Broken<M::Step>> {
    let mut seen: HashMap<u128, Option<(u128, M::Step)>> = HashMap::new();
    let mut waiting = VecDeque::new();
    let way = |seen: &HashMap<u128, Option<(u128, M::Step)>>, mut at: u128, last: Option<M::Step>| {
        let mut steps: Vec<M::Step> = last.into_iter().collect();
        while let Some(Some((before, step))) = seen.get(&at) {
            steps.push(step.clone());
            at = *before;
        }
        steps.reverse();
        steps
    };
    let first = print(&start);
    seen.insert(first, None);
    waiting.push_back((first, start));
    while let Some((at, state)) = waiting.pop_front() {
        if let Err(promise) = model.check(&state) {
            let steps = way(&seen, at, None);
            return Err(Broken { promise, steps });
        }
        for step in model.steps(&state) {
            let next = match model.after(&state, &step) {
                Ok(next) => next,
                Err(promise) => {
                    let steps = way(&seen, at, Some(step));
                    return Err(Broken { promise, steps });
                }
            };
            let name = print(&next);
            if let std::collections::hash_map::Entry::Vacant(free) = seen.entry(name) {
                free.insert(Some((at, step)));
                waiting.push_back((name, next));
            }
        }
        assert!(
            seen.len() <= STATES_MAX,
            "the model has more than {STATES_MAX} states"
        );
    }
    Ok(seen.len())
}
