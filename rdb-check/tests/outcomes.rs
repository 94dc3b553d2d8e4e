//! What each outcome tells, case by case.

use rdb_check::{
    Budget, Call, Op, Outcome, Verdict, check_linearizable, check_linearizable_within,
};

const READ: Op = Op::Read;
const DONE: Outcome = Outcome::Done;
const LOST: Outcome = Outcome::CasLost;
const UNKNOWN: Outcome = Outcome::Unknown;
const REFUSED: Outcome = Outcome::NotApplied;
const NIL: Outcome = Outcome::Read(None);

const fn write(value: u64) -> Op {
    Op::Write(value)
}

const fn cas(from: u64, to: u64) -> Op {
    Op::Cas {
        from: Some(from),
        to,
    }
}

const fn create(to: u64) -> Op {
    Op::Cas { from: None, to }
}

const fn saw(value: u64) -> Outcome {
    Outcome::Read(Some(value))
}

/// Invoked, returned (0: never), operation, outcome.
type Row = (u64, u64, Op, Outcome);

fn history(rows: &[Row]) -> Vec<Call> {
    let mut process = 0;
    let mut call = |&(invoked_ns, returned, op, outcome): &Row| {
        process += 1;
        let returned_ns = (returned > 0).then_some(returned);
        Call {
            process,
            key: 0,
            op,
            invoked_ns,
            returned_ns,
            outcome,
        }
    };
    rows.iter().map(&mut call).collect()
}

#[track_caller]
fn verdict_is(good: bool, rows: &[Row]) {
    let verdict = check_linearizable(&history(rows));
    match verdict {
        Verdict::Linearizable => assert!(good, "linearizable: {rows:?}"),
        Verdict::NotLinearizable(why) => assert!(!good, "{why}\n{rows:?}"),
        Verdict::Undecided { why } => panic!("{why}\n{rows:?}"),
    }
}

#[test]
fn nothing_happened() {
    verdict_is(true, &[]);
}

#[test]
fn a_register_starts_empty() {
    verdict_is(true, &[(1, 2, READ, NIL)]);
    verdict_is(false, &[(1, 2, READ, saw(1))]);
}

#[test]
fn a_read_sees_the_last_write() {
    verdict_is(true, &[(1, 2, write(1), DONE), (3, 4, READ, saw(1))]);
    verdict_is(false, &[(1, 2, write(1), DONE), (3, 4, READ, NIL)]);
    verdict_is(
        false,
        &[
            (1, 2, write(1), DONE),
            (3, 4, write(2), DONE),
            (5, 6, READ, saw(1)),
        ],
    );
    // A write that overlaps may be seen or not, but not seen and then unseen.
    verdict_is(
        true,
        &[
            (1, 9, write(1), DONE),
            (2, 3, READ, NIL),
            (4, 5, READ, saw(1)),
        ],
    );
    verdict_is(
        false,
        &[
            (1, 9, write(1), DONE),
            (2, 3, READ, saw(1)),
            (4, 5, READ, NIL),
        ],
    );
    // Two overlapping reads need not agree on the order with a write.
    verdict_is(
        true,
        &[
            (1, 9, write(1), DONE),
            (2, 5, READ, saw(1)),
            (3, 6, READ, NIL),
        ],
    );
}

#[test]
fn a_call_that_returns_as_another_is_invoked_overlaps_it() {
    verdict_is(true, &[(1, 2, write(1), DONE), (2, 3, READ, NIL)]);
    verdict_is(false, &[(1, 2, write(1), DONE), (3, 3, READ, NIL)]);
}

#[test]
fn a_certain_call_without_a_return_overlaps_all_later_ones() {
    verdict_is(
        true,
        &[
            (1, 0, write(1), DONE),
            (5, 6, READ, NIL),
            (7, 8, READ, saw(1)),
        ],
    );
    // But it did happen: a swap needs its value, whenever that is.
    verdict_is(false, &[(1, 0, cas(1, 2), DONE), (5, 6, READ, NIL)]);
}

#[test]
fn a_delete_empties_the_register() {
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 4, Op::Delete, DONE),
            (5, 6, READ, NIL),
        ],
    );
    verdict_is(
        false,
        &[
            (1, 2, write(1), DONE),
            (3, 4, Op::Delete, DONE),
            (5, 6, READ, saw(1)),
        ],
    );
    verdict_is(true, &[(1, 2, Op::Delete, DONE), (3, 4, create(1), DONE)]);
}

#[test]
fn a_done_cas_needs_its_value() {
    verdict_is(
        true,
        &[
            (1, 2, create(1), DONE),
            (3, 4, cas(1, 2), DONE),
            (5, 6, READ, saw(2)),
        ],
    );
    verdict_is(false, &[(1, 2, cas(1, 2), DONE)]);
    verdict_is(false, &[(1, 2, write(1), DONE), (3, 4, create(2), DONE)]);
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 4, cas(1, 1), DONE),
            (5, 6, READ, saw(1)),
        ],
    );
    verdict_is(false, &[(1, 2, write(1), DONE), (3, 4, cas(2, 2), DONE)]);
}

#[test]
fn of_two_overlapping_cas_from_one_value_one_loses() {
    let start = (1, 2, write(1), DONE);
    verdict_is(
        false,
        &[start, (3, 6, cas(1, 2), DONE), (4, 5, cas(1, 3), DONE)],
    );
    verdict_is(
        true,
        &[start, (3, 6, cas(1, 2), DONE), (4, 5, cas(1, 3), LOST)],
    );
    // Both can win if the value came back in between.
    let back = (3, 7, write(1), DONE);
    verdict_is(
        true,
        &[
            start,
            (3, 6, cas(1, 2), DONE),
            (4, 5, cas(1, 3), DONE),
            back,
        ],
    );
}

#[test]
fn a_lost_cas_tells_that_its_value_was_not_there() {
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 4, cas(2, 3), LOST),
            (5, 6, READ, saw(1)),
        ],
    );
    verdict_is(false, &[(1, 2, write(1), DONE), (3, 4, cas(1, 3), LOST)]);
    verdict_is(false, &[(1, 2, cas(2, 3), LOST), (3, 4, READ, saw(3))]);
    verdict_is(false, &[(1, 2, create(1), LOST)]);
    // An overlapping write explains it; so does one of unknown outcome, though nobody saw it.
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 6, write(2), DONE),
            (4, 5, cas(1, 3), LOST),
        ],
    );
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 3, write(2), UNKNOWN),
            (4, 5, cas(1, 3), LOST),
        ],
    );
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 0, cas(1, 2), UNKNOWN),
            (4, 5, cas(1, 3), LOST),
        ],
    );
    verdict_is(
        false,
        &[
            (1, 2, write(1), DONE),
            (3, 0, cas(4, 2), UNKNOWN),
            (4, 5, cas(1, 3), LOST),
        ],
    );
    verdict_is(
        false,
        &[
            (1, 2, write(1), DONE),
            (3, 0, write(1), UNKNOWN),
            (4, 5, cas(1, 3), LOST),
        ],
    );
    // Whoever explained it stays explained: the value is gone then.
    verdict_is(
        false,
        &[
            (1, 2, write(1), DONE),
            (3, 0, write(2), UNKNOWN),
            (4, 5, cas(1, 3), LOST),
            (6, 7, READ, saw(1)),
        ],
    );
}

#[test]
fn what_was_not_applied_tells_nothing() {
    for op in [write(1), create(1), Op::Delete, READ] {
        verdict_is(true, &[(1, 2, op, REFUSED), (3, 4, READ, NIL)]);
        verdict_is(false, &[(1, 2, op, REFUSED), (3, 4, READ, saw(1))]);
        verdict_is(
            true,
            &[
                (1, 2, write(7), DONE),
                (3, 4, op, REFUSED),
                (5, 6, READ, saw(7)),
            ],
        );
    }
    // Unlike a lost one, a refused swap may have found its value.
    verdict_is(true, &[(1, 2, write(1), DONE), (3, 4, cas(1, 2), REFUSED)]);
}

#[test]
fn what_is_unknown_applies_late_or_never_but_once_and_not_early() {
    let late = (1, 2, write(1), UNKNOWN);
    verdict_is(
        true,
        &[
            late,
            (3, 4, READ, NIL),
            (5, 6, READ, saw(1)),
            (7, 8, READ, saw(1)),
        ],
    );
    verdict_is(true, &[late, (3, 4, READ, NIL), (5, 6, READ, NIL)]);
    verdict_is(false, &[late, (3, 4, READ, saw(1)), (5, 6, READ, NIL)]);
    verdict_is(false, &[(1, 2, READ, saw(1)), (3, 0, write(1), UNKNOWN)]);
    let again = [
        late,
        (3, 4, READ, saw(1)),
        (5, 6, write(2), DONE),
        (7, 8, READ, saw(1)),
    ];
    verdict_is(false, &again);
    // Two of them can apply twice.
    verdict_is(true, &[&again[..], &[(0, 0, write(1), UNKNOWN)]].concat());
    // An unknown read tells nothing.
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 0, READ, UNKNOWN),
            (4, 5, READ, saw(1)),
        ],
    );
    // An unknown delete.
    verdict_is(
        true,
        &[
            (1, 2, write(1), DONE),
            (3, 0, Op::Delete, UNKNOWN),
            (4, 5, READ, NIL),
        ],
    );
}

#[test]
fn unknown_cas_form_chains() {
    let chain = [
        (1, 2, write(1), DONE),
        (3, 0, cas(2, 3), UNKNOWN),
        (3, 0, cas(1, 2), UNKNOWN),
    ];
    verdict_is(true, &[&chain[..], &[(4, 5, READ, saw(3))]].concat());
    verdict_is(
        true,
        &[&chain[..], &[(4, 5, READ, saw(2)), (6, 7, READ, saw(3))]].concat(),
    );
    verdict_is(
        false,
        &[&chain[..], &[(4, 5, READ, saw(3)), (6, 7, READ, saw(2))]].concat(),
    );
    verdict_is(
        true,
        &[&chain[..], &[(4, 5, cas(3, 4), DONE), (6, 7, READ, saw(4))]].concat(),
    );
    // The link between is missing, or came too late.
    verdict_is(false, &[chain[0], chain[1], (4, 5, READ, saw(3))]);
    verdict_is(
        false,
        &[
            chain[0],
            chain[1],
            (4, 5, READ, saw(3)),
            (6, 0, cas(1, 2), UNKNOWN),
        ],
    );
    // The chain may begin with a write, and cross the content that it started from.
    let detour = [
        (1, 2, write(1), DONE),
        (3, 0, write(5), UNKNOWN),
        (3, 0, cas(5, 6), UNKNOWN),
    ];
    verdict_is(true, &[&detour[..], &[(4, 5, READ, saw(6))]].concat());
}

#[test]
fn every_link_of_a_chain_is_used_once() {
    let twice = [
        (1, 0, write(5), UNKNOWN),
        (1, 0, write(5), UNKNOWN),
        (1, 0, cas(5, 6), UNKNOWN),
        (2, 3, write(1), DONE),
        (4, 5, READ, saw(6)),
        (6, 7, write(1), DONE),
        (8, 9, READ, saw(6)),
    ];
    verdict_is(false, &twice);
    verdict_is(true, &[&twice[..], &[(1, 0, cas(5, 6), UNKNOWN)]].concat());
    // The first link, too.
    verdict_is(
        false,
        &[&twice[1..], &[(1, 0, cas(5, 6), UNKNOWN)]].concat(),
    );
}

#[test]
fn keys_are_registers_of_their_own() {
    let mut calls = history(&[(1, 2, write(1), DONE), (3, 4, READ, NIL)]);
    assert!(!check_linearizable(&calls).is_linearizable());
    calls[1].key = 7;
    assert_eq!(check_linearizable(&calls), Verdict::Linearizable);
}

#[test]
fn a_call_that_cannot_be_is_undecided() {
    let bad: [Row; 5] = [
        (1, 2, READ, DONE),
        (1, 2, write(1), NIL),
        (1, 2, write(1), LOST),
        (1, 2, Op::Delete, LOST),
        (2, 1, write(1), DONE),
    ];
    for row in bad {
        let verdict = check_linearizable(&history(&[(1, 2, write(1), DONE), row]));
        let Verdict::Undecided { why } = verdict else {
            panic!("{row:?}: {verdict}")
        };
        assert!(why.contains("call 1 of the history (process 2)"), "{why}");
    }
}

#[test]
fn an_exhausted_budget_is_undecided_and_hides_no_violation() {
    // Twelve overlapping writes, read in no order that exists.
    let mut rows: Vec<Row> = (0..12).map(|value| (1, 100, write(value), DONE)).collect();
    rows.extend([(200, 210, READ, saw(3)), (220, 230, READ, saw(4))]);
    let steps = Budget {
        steps: 1000,
        ..Budget::default()
    };
    let memory = Budget {
        memory_bytes: 1000,
        ..Budget::default()
    };
    for budget in [steps, memory] {
        let mut calls = history(&rows);
        // Rule 4 of the search would see at once that 4 cannot come back: let it be possible.
        calls.extend(history(&[(1, 0, cas(99, 4), UNKNOWN)]));
        let verdict = check_linearizable_within(&calls, budget);
        let Verdict::Undecided { why } = verdict else {
            panic!("{verdict}")
        };
        assert!(
            why.starts_with("key 0: gave up on its 15 calls after"),
            "{why}"
        );
        assert!(!check_linearizable(&calls).is_linearizable());

        let mut other = history(&[(1, 2, READ, saw(1))]);
        other[0].key = 9;
        calls.extend(other);
        let verdict = check_linearizable_within(&calls, budget);
        let Verdict::NotLinearizable(explanation) = verdict else {
            panic!("{verdict}")
        };
        assert_eq!(explanation.key, 9);
    }
}

#[test]
fn an_explanation_can_be_read() {
    let mut calls = history(&[
        (1, 2, write(1), DONE),
        (3, 4, write(2), DONE),
        (5, 0, write(3), UNKNOWN),
        (6, 9, READ, saw(1)),
        (7, 12, write(4), DONE),
        (20, 21, READ, saw(4)),
    ]);
    calls.iter_mut().for_each(|call| call.key = 42);
    let Verdict::NotLinearizable(explanation) = check_linearizable(&calls) else {
        panic!("the read of 1 is stale");
    };
    assert_eq!(explanation.stuck, calls[3]);
    assert_eq!(explanation.possible, [Some(2)]);
    assert_eq!(explanation.writers, [calls[0].clone()]);
    assert_eq!(explanation.concurrent, [calls[4].clone()]);
    assert_eq!(explanation.unknown, [calls[2].clone()]);
    assert_eq!(explanation.order, [calls[0].clone(), calls[1].clone()]);
    assert!(explanation.is_first);
    let expected = "\
key 42, 6 calls. No order explains this call:
    6 .. 9  process 4: read returned 1
  All calls that returned before it can be ordered; when its turn comes, the register holds 2, or what the overlapping and unknown calls below leave there.
  What it saw may come from:
    1 .. 2  process 1: write 1 applied
  An order that explains the calls before it ends with:
    1 .. 2  process 1: write 1 applied
    3 .. 4  process 2: write 2 applied
  Calls that overlap it:
    7 .. 12  process 5: write 4 applied
  Calls of unknown outcome, which may apply at any time:
    5 .. ?  process 3: write 3 outcome unknown
";
    assert_eq!(explanation.to_string(), expected);
}
