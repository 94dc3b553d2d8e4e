//! Tells a human why a key's calls cannot be ordered.
//!
//! Owns the choice of calls worth showing, and the text. Decides nothing: the search did.

use std::fmt;

use super::model::Model;
use super::search::{Arrivals, Budget, Found, Step, search, search_arrivals};
use crate::history::{Call, Held, Op, Outcome, Value};

/// How many calls of a kind are shown at most.
const SHOWN: usize = 8;

/// Why a history is not linearizable: the first call to return that cannot be explained, and what
/// there is to know around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The key whose register misbehaved.
    pub key: u64,
    /// All calls that returned before this one can be ordered; together with it they cannot.
    pub stuck: Call,
    /// Whether the first half of that is certain. If not, the budget did not suffice to look for an
    /// earlier call to blame.
    pub is_first: bool,
    /// What the register holds when this call's turn comes, over all orders of those that returned
    /// before, unless one of `concurrent` or `unknown` changes it in time.
    pub possible: Vec<Option<Value>>,
    /// Calls that may have given the register what `stuck` saw, the last ones to be invoked.
    pub writers: Vec<Call>,
    /// The end of one order that explains all calls that returned before.
    pub order: Vec<Call>,
    /// Calls that overlap `stuck`, the last ones to be invoked.
    pub concurrent: Vec<Call>,
    /// Calls of unknown outcome, invoked before `stuck` returned, the last ones to be invoked. They
    /// may have applied at any time since, or never; that does not help.
    pub unknown: Vec<Call>,
    /// How many calls the key has.
    pub calls_of_key: usize,
}

/// Finds the call to blame, and gathers what is to be known around it. `calls` are those of one key,
/// known not to be linearizable.
pub(super) fn explain(key: u64, calls: &[&Call], budget: Budget) -> Explanation {
    let prefixes = Prefixes::of(calls);
    let (len, is_first) = prefixes.shortest_impossible(budget);
    let stuck = prefixes.returns[len - 1];
    let call = calls[stuck];
    let prefix = prefixes.first(len);
    let model = Model::with_all_values(&prefix.iter().collect::<Vec<_>>());
    let number = model
        .certain
        .iter()
        .position(|certain| certain.origin == stuck);
    let arrivals = match number {
        Some(number) => search_arrivals(&model, budget, number as u32),
        None => Arrivals::default(), // Cannot be: a call that returned is certain.
    };

    let end_ns = call.returned_ns.unwrap_or(u64::MAX);
    let wanted = match (call.op, call.outcome) {
        (_, Outcome::Read(held)) => Some(held),
        (Op::Cas { from, .. }, Outcome::Done) => Some(from),
        _ => None,
    };

    let before = || {
        let others = calls.iter().filter(|other| !std::ptr::eq(**other, call));
        others.filter(|other| other.invoked_ns <= end_ns)
    };
    let writers = before()
        .filter(|other| {
            let applies = matches!(other.outcome, Outcome::Done | Outcome::Unknown);
            let leaves = match other.op {
                Op::Cas { from, to } if from == Some(to) => None,
                Op::Write(to) | Op::Cas { to, .. } => Some(Some(to)),
                Op::Delete => Some(None),
                Op::Read => None,
            };
            applies && leaves.is_some() && leaves == wanted
        })
        .copied();
    let changes = |other: &Call| other.op != Op::Read && other.outcome == Outcome::Unknown;
    let unknown = before().filter(|other| changes(other)).copied();
    let concurrent = before()
        .filter(|other| other.outcome != Outcome::Unknown && other.outcome != Outcome::NotApplied)
        .filter(|other| other.returned_ns.is_none_or(|end| end >= call.invoked_ns))
        .copied();

    let origin_of = |step: &Step| match *step {
        Step::Certain(call) => calls[model.certain[call as usize].origin],
        Step::Unknown { class, nth } => {
            calls[model.classes[class as usize].invoked[nth as usize].1]
        }
    };
    let left_by = |step: &Option<Step>| match step.as_ref().map(|step| origin_of(step).op) {
        Some(Op::Write(to) | Op::Cas { to, .. }) => Some(to),
        Some(Op::Delete | Op::Read) | None => None,
    };
    let mut possible: Vec<_> = arrivals
        .contents
        .iter()
        .map(|(_, step)| left_by(step))
        .collect();
    possible.sort_unstable();

    Explanation {
        key,
        stuck: call.clone(),
        is_first,
        possible,
        writers: last_invoked(writers),
        order: arrivals
            .tail
            .iter()
            .map(|step| origin_of(step).clone())
            .collect(),
        concurrent: last_invoked(concurrent),
        unknown: last_invoked(unknown),
        calls_of_key: calls.len(),
    }
}

/// The history as it stood after each return. Once such a prefix cannot be ordered, no longer one
/// can.
struct Prefixes<'a> {
    calls: &'a [&'a Call],
    /// The calls that certainly took effect, in the order in which they returned.
    returns: Vec<usize>,
}

impl<'a> Prefixes<'a> {
    fn of(calls: &'a [&'a Call]) -> Self {
        let certain = |index: &usize| {
            !matches!(
                calls[*index].outcome,
                Outcome::Unknown | Outcome::NotApplied
            )
        };
        let mut returns: Vec<usize> = (0..calls.len()).filter(certain).collect();
        returns.sort_by_key(|index| calls[*index].returned_ns.unwrap_or(u64::MAX));
        Self { calls, returns }
    }

    /// The history after `len` returns, at least one: of the other calls, those already invoked are
    /// unknown. Those not yet invoked could not help, and are left out. Indexes stay what they are.
    fn first(&self, len: usize) -> Vec<Call> {
        let end_ns = self.calls[self.returns[len - 1]]
            .returned_ns
            .unwrap_or(u64::MAX);
        let mut prefix: Vec<Call> = self.calls.iter().copied().cloned().collect();
        for later in &self.returns[len..] {
            prefix[*later].outcome = Outcome::Unknown;
        }
        for call in prefix.iter_mut().filter(|call| call.invoked_ns > end_ns) {
            call.outcome = Outcome::NotApplied;
        }
        prefix
    }

    /// How many returns the shortest prefix has that cannot be ordered, and whether that is sure.
    /// The whole history cannot.
    fn shortest_impossible(&self, budget: Budget) -> (usize, bool) {
        // Some ten prefixes are tried; together they shall not cost more than the verdict did.
        let budget = Budget {
            steps: budget.steps / 16,
            ..budget
        };
        let (mut possible, mut impossible) = (0, self.returns.len());
        let mut sure = true;
        while impossible - possible > 1 {
            let middle = possible + (impossible - possible) / 2;
            let prefix = self.first(middle);
            match search(&Model::of(&prefix.iter().collect::<Vec<_>>()), budget) {
                Found::Order => possible = middle,
                Found::NoOrder => impossible = middle,
                Found::BudgetExhausted { .. } => {
                    possible = middle;
                    sure = false;
                }
            }
        }
        (impossible, sure)
    }
}

fn last_invoked<'a>(calls: impl Iterator<Item = &'a Call>) -> Vec<Call> {
    let mut calls: Vec<Call> = calls.cloned().collect();
    calls.sort_by_key(|call| call.invoked_ns);
    calls.split_off(calls.len().saturating_sub(SHOWN))
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "key {}, {} calls. No order explains this call:",
            self.key, self.calls_of_key
        )?;
        writeln!(f, "    {}", Line(&self.stuck))?;
        if self.is_first {
            f.write_str("  All calls that returned before it can be ordered")?;
        } else {
            f.write_str("  Perhaps an earlier one cannot be explained either")?;
        }
        if self.possible.is_empty() {
            f.write_str(".\n")?;
        } else {
            let possible: Vec<String> = self
                .possible
                .iter()
                .map(|held| Held(*held).to_string())
                .collect();
            let possible = possible.join(" or ");
            write!(f, "; when its turn comes, the register holds {possible}")?;
            if !self.concurrent.is_empty() || !self.unknown.is_empty() {
                f.write_str(", or what the overlapping and unknown calls below leave there")?;
            }
            f.write_str(".\n")?;
        }
        match (self.stuck.op, self.stuck.outcome, self.writers.is_empty()) {
            (Op::Cas { from, .. }, Outcome::CasLost, _) => {
                writeln!(
                    f,
                    "  It lost, so the register cannot have held {}.",
                    Held(from)
                )?;
            }
            (_, _, true) => writeln!(f, "  Nothing before it could have written what it saw.")?,
            (_, _, false) => section(f, "What it saw may come from", &self.writers)?,
        }
        section(
            f,
            "An order that explains the calls before it ends with",
            &self.order,
        )?;
        section(f, "Calls that overlap it", &self.concurrent)?;
        section(
            f,
            "Calls of unknown outcome, which may apply at any time",
            &self.unknown,
        )
    }
}

fn section(f: &mut fmt::Formatter<'_>, title: &str, calls: &[Call]) -> fmt::Result {
    if calls.is_empty() {
        return Ok(());
    }
    let at_most = if calls.len() >= SHOWN {
        " (the last ones)"
    } else {
        ""
    };
    writeln!(f, "  {title}{at_most}:")?;
    calls
        .iter()
        .try_for_each(|call| writeln!(f, "    {}", Line(call)))
}

/// One call on one line.
struct Line<'a>(&'a Call);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call {
            process,
            op,
            outcome,
            invoked_ns,
            returned_ns,
            ..
        } = self.0;
        let returned = match (outcome, returned_ns) {
            (Outcome::Unknown, _) | (_, None) => "?".to_owned(),
            (_, Some(returned_ns)) => At(*returned_ns).to_string(),
        };
        let what = format!("{op} {outcome}");
        write!(
            f,
            "{} .. {returned}  process {process}: {what}",
            At(*invoked_ns)
        )
    }
}

/// An instant. Histories that count lines or steps instead of nanoseconds keep small numbers.
struct At(u64);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            small @ 0..1_000_000 => write!(f, "{small}"),
            ns => write!(f, "{}.{:06} ms", ns / 1_000_000, ns % 1_000_000),
        }
    }
}
