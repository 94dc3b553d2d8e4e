//! What clients read and wrote through strong namespaces is linearizable, key by key (Herlihy and Wing).

use rdb_check::{Call, Outcome, Verdict, check_linearizable};

/// Its name.
pub const NAME: &str = "linearizable";

/// Judges the calls of all clients.
///
/// # Errors
/// There is no order that explains them, or none could be found, or they prove nothing.
pub fn check(calls: &[Call]) -> Result<(), String> {
    let read_something = calls
        .iter()
        .any(|call| matches!(call.outcome, Outcome::Read(Some(_))));
    match check_linearizable(calls) {
        Verdict::Linearizable if read_something => Ok(()),
        Verdict::Linearizable => {
            Err("no read ever returned a value: the history proves nothing".to_owned())
        }
        verdict => Err(verdict.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_check::Op;

    fn call(op: Op, outcome: Outcome, from_ns: u64) -> Call {
        Call {
            process: 1,
            key: 1,
            op,
            invoked_ns: from_ns,
            returned_ns: Some(from_ns + 1),
            outcome,
        }
    }

    #[test]
    fn a_stale_read_is_seen() {
        let mut calls = vec![
            call(Op::Write(1), Outcome::Done, 0),
            call(Op::Read, Outcome::Read(Some(1)), 10),
            call(Op::Write(2), Outcome::Done, 20),
        ];
        check(&calls).unwrap();
        calls.push(call(Op::Read, Outcome::Read(Some(1)), 30));
        assert!(check(&calls).is_err());
        assert!(check(&calls[..1]).is_err(), "nothing was read");
    }
}
