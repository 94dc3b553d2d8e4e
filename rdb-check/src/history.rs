//! The words that a history is written in: calls, what they asked for, how they ended.
//!
//! Owns the types and the rule which outcome an operation can have. Knows nothing of how a history
//! came to be or what it is checked for.

use std::fmt;

/// A value of a register, named by a number. Whoever records a history maps the bytes it writes to
/// numbers; histories say most when every write has a number of its own.
pub type Value = u64;

/// What a call asked of its register. An absent key is a register that holds `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Return what the register holds.
    Read,
    /// Make it hold this value.
    Write(Value),
    /// Make it hold `to`, if it holds `from`.
    Cas {
        /// What the register has to hold; `None`: the key has to be absent.
        from: Option<Value>,
        /// What it holds afterwards.
        to: Value,
    },
    /// Make it hold nothing.
    Delete,
}

/// How a call ended, as far as its caller can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The read returned this.
    Read(Option<Value>),
    /// The write, the delete or the compare-and-swap was applied.
    Done,
    /// The compare-and-swap was not applied, *and* the register did not hold `from` at that point.
    CasLost,
    /// Certainly not applied (refused, say). It tells nothing else, and is ignored.
    NotApplied,
    /// May take effect at any time after its invocation, also after the call returned, or never:
    /// timed out, connection lost, or still running when the recording ended.
    Unknown,
}

/// One call of one client, from invocation to return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which client made it. Only for the reader of an explanation: real-time order is what counts.
    pub process: u64,
    /// Which register. Two keys must never share a number, or their histories are mixed up.
    pub key: u64,
    /// What it asked for.
    pub op: Op,
    /// When it was invoked, in nanoseconds of any monotonic clock that all calls share.
    pub invoked_ns: u64,
    /// When it returned, by the same clock; `None`: not before the recording ended. Meaningless when
    /// the outcome is [`Outcome::Unknown`]. A call returning at the very instant at which another
    /// is invoked counts as concurrent with it.
    pub returned_ns: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

impl Call {
    /// Says what is wrong with a call that no client can have made: an outcome that its operation
    /// does not have, or a return before the invocation.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let possible = match (self.op, self.outcome) {
            (_, Outcome::NotApplied | Outcome::Unknown) => true,
            (Op::Read, outcome) => matches!(outcome, Outcome::Read(_)),
            (Op::Write(_) | Op::Delete, outcome) => outcome == Outcome::Done,
            (Op::Cas { .. }, outcome) => matches!(outcome, Outcome::Done | Outcome::CasLost),
        };
        if !possible {
            return Err(format!("{:?} cannot end as {:?}", self.op, self.outcome));
        }
        match self.returned_ns {
            Some(returned_ns) if returned_ns < self.invoked_ns => Err(format!(
                "returned at {returned_ns} ns, before it was invoked at {} ns",
                self.invoked_ns
            )),
            _ => Ok(()),
        }
    }
}

/// Writes a register's content for a reader: the number, or `nil`.
pub(crate) struct Held(pub(crate) Option<Value>);

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value}"),
            None => f.write_str("nil"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Read => f.write_str("read"),
            Op::Write(value) => write!(f, "write {value}"),
            Op::Cas { from, to } => write!(f, "cas {} -> {to}", Held(*from)),
            Op::Delete => f.write_str("delete"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Read(held) => write!(f, "returned {}", Held(*held)),
            Outcome::Done => f.write_str("applied"),
            Outcome::CasLost => f.write_str("lost (the register held something else)"),
            Outcome::NotApplied => f.write_str("not applied"),
            Outcome::Unknown => f.write_str("outcome unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(op: Op, outcome: Outcome) -> Call {
        Call {
            process: 0,
            key: 0,
            op,
            invoked_ns: 5,
            returned_ns: Some(9),
            outcome,
        }
    }

    #[test]
    fn an_operation_has_only_its_own_outcomes() {
        let cas = Op::Cas { from: None, to: 1 };
        let ops = [Op::Read, Op::Write(1), cas, Op::Delete];
        let outcomes = [
            Outcome::Read(None),
            Outcome::Done,
            Outcome::CasLost,
            Outcome::NotApplied,
            Outcome::Unknown,
        ];
        let possible = [
            [true, false, false, true, true],
            [false, true, false, true, true],
            [false, true, true, true, true],
            [false, true, false, true, true],
        ];
        for (op, row) in ops.into_iter().zip(possible) {
            for (outcome, possible) in outcomes.into_iter().zip(row) {
                assert_eq!(
                    call(op, outcome).validate().is_ok(),
                    possible,
                    "{op:?} {outcome:?}"
                );
            }
        }
    }

    #[test]
    fn nobody_returns_before_being_invoked() {
        let mut early = call(Op::Read, Outcome::Read(None));
        early.returned_ns = Some(4);
        let why = early
            .validate()
            .expect_err("it returned at 4 and was invoked at 5");
        assert!(why.contains("4 ns") && why.contains("5 ns"), "{why}");
        early.returned_ns = Some(5);
        assert_eq!(early.validate(), Ok(()));
    }
}
