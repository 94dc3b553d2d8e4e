//! Decides whether a history of registers is linearizable: whether every call can be given one
//! instant between its invocation and its return such that the registers, taking the calls in the
//! order of these instants, answer as they did.
//!
//! Owns the split of a history by key (linearizability is a property of each register by itself)
//! and the verdict. [`model`] reduces one key's calls to what matters, [`search`] looks for an
//! order, helped by [`memo`], and [`explain`] tells a human why there is none.
//!
//! Invariant: `Linearizable` and `NotLinearizable` are proofs. What the budget did not suffice for,
//! and what no client can have seen, is `Undecided`.

mod explain;
mod memo;
mod model;
mod search;

use std::collections::BTreeMap;
use std::fmt;

pub use explain::Explanation;
pub use search::Budget;

use crate::history::Call;
use model::Model;
use search::Found;

/// What is known about a history. Only `Linearizable` is good news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// An order exists for every key.
    Linearizable,
    /// No order exists for the key that the explanation names.
    NotLinearizable(Box<Explanation>),
    /// Nobody knows; callers count it as a failure.
    Undecided {
        /// What kept the checker from deciding, and what to do about it.
        why: String,
    },
}

impl Verdict {
    /// Whether the history is known to be linearizable.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Verdict::Linearizable)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Linearizable => f.write_str("linearizable"),
            Verdict::NotLinearizable(explanation) => write!(f, "not linearizable: {explanation}"),
            Verdict::Undecided { why } => write!(f, "undecided: {why}"),
        }
    }
}

/// Judges a history, key by key, with the default [`Budget`] for each. Every register starts empty.
/// The order of `calls` does not matter.
pub fn check_linearizable(calls: &[Call]) -> Verdict {
    check_linearizable_within(calls, Budget::default())
}

/// [`check_linearizable`] with another budget for each key.
///
/// A violation in any key is reported even where another key could not be decided.
pub fn check_linearizable_within(calls: &[Call], budget: Budget) -> Verdict {
    let mut by_key: BTreeMap<u64, Vec<&Call>> = BTreeMap::new();
    for (number, call) in calls.iter().enumerate() {
        if let Err(what) = call.validate() {
            let process = call.process;
            let why = format!(
                "call {number} of the history (process {process}) makes no sense: {what}; \
                 whoever recorded it has a defect"
            );
            return Verdict::Undecided { why };
        }
        by_key.entry(call.key).or_default().push(call);
    }
    let mut undecided = None;
    for (key, calls) in by_key {
        let model = Model::of(&calls);
        match search::search(&model, budget) {
            Found::Order => {}
            Found::NoOrder => {
                let explanation = explain::explain(key, &calls, budget);
                return Verdict::NotLinearizable(Box::new(explanation));
            }
            Found::BudgetExhausted { states } => {
                undecided.get_or_insert_with(|| Verdict::Undecided {
                    why: format!(
                        "key {key}: gave up on its {} calls after {states} states; record shorter \
                         histories, over more keys or with fewer unknown outcomes, or give a \
                         larger budget",
                        calls.len()
                    ),
                });
            }
        }
    }
    undecided.unwrap_or(Verdict::Linearizable)
}
