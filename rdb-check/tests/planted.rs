//! Histories of the size that tests of FlareDB record, good ones and ones with a planted violation:
//! each is judged right, and soon.

#![allow(
    clippy::expect_used,
    reason = "a helper of tests stops at what it did not expect, as a test may"
)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdb_check::{Call, Explanation, Op, Outcome, Verdict, check_linearizable};
use support::{Random, Workload, simulate};

/// Far beyond what it takes (some 50 ms), so that a busy machine makes no test fail, and far below
/// what a search without its reductions would take.
const SOON: Duration = Duration::from_secs(5);

fn recorded(seed: u64) -> Vec<Call> {
    simulate(&Workload {
        seed,
        calls: 20_000,
        keys: 20,
        processes: 16,
        unknown_permille: 3,
        ..Workload::default()
    })
}

#[track_caller]
fn judge(calls: &[Call]) -> Verdict {
    let start = Instant::now();
    let verdict = check_linearizable(calls);
    assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
    verdict
}

#[track_caller]
fn violation(calls: &[Call]) -> Box<Explanation> {
    match judge(calls) {
        Verdict::NotLinearizable(explanation) => explanation,
        other => panic!("the planted violation was not found: {other}"),
    }
}

/// The wanted calls on the key of `a` that were invoked after `a` returned, by index.
fn later<'a>(
    calls: &'a [Call],
    a: &'a Call,
    wanted: impl Fn(&Call) -> bool + 'a,
) -> impl Iterator<Item = usize> + 'a {
    calls.iter().enumerate().filter_map(move |(index, b)| {
        let after = a
            .returned_ns
            .is_some_and(|returned| returned < b.invoked_ns);
        (b.key == a.key && after && wanted(b)).then_some(index)
    })
}

#[test]
fn good_histories_pass() {
    for seed in 0..4 {
        let calls = recorded(seed);
        let unknown = calls
            .iter()
            .filter(|call| call.outcome == Outcome::Unknown)
            .count();
        assert!(unknown > 30, "only {unknown} unknown outcomes");
        assert_eq!(judge(&calls), Verdict::Linearizable, "seed {seed}");
    }
}

#[test]
fn good_histories_with_few_values_pass() {
    for seed in 0..4 {
        let calls = simulate(&Workload {
            seed,
            calls: 20_000,
            keys: 20,
            processes: 16,
            unknown_permille: 5,
            values: Some(5),
            ..Workload::default()
        });
        assert_eq!(judge(&calls), Verdict::Linearizable, "seed {seed}");
    }
}

#[test]
fn many_processes_on_one_key_are_decided() {
    for seed in 0..4 {
        let calls = simulate(&Workload {
            seed,
            calls: 5000,
            processes: 16,
            unknown_permille: 10,
            ..Workload::default()
        });
        assert_eq!(judge(&calls), Verdict::Linearizable, "seed {seed}");
    }
}

#[test]
fn a_stale_read_is_found() {
    for seed in 0..4 {
        let mut calls = recorded(seed);
        let mut random = Random(seed);
        // A write, a later write, a still later read that is made to return the first one's value.
        let (stale, value) = loop {
            let first = &calls[random.below(10_000) as usize];
            let Op::Write(value) = first.op else { continue };
            if first.outcome != Outcome::Done {
                continue;
            }
            let wrote = |call: &Call| {
                call.outcome == Outcome::Done && matches!(call.op, Op::Write(_) | Op::Delete)
            };
            let read = |call: &Call| matches!(call.outcome, Outcome::Read(_));
            let second = later(&calls, first, wrote).next();
            let found = second.and_then(|second| later(&calls, &calls[second], read).nth(3));
            if let Some(index) = found {
                break (index, value);
            }
        };
        calls[stale].outcome = Outcome::Read(Some(value));
        let explanation = violation(&calls);
        assert_eq!(
            explanation.stuck, calls[stale],
            "seed {seed}: {explanation}"
        );
    }
}

#[test]
fn a_lost_write_is_found() {
    for seed in 0..4 {
        let calls = simulate(&Workload {
            seed,
            calls: 20_000,
            keys: 20,
            processes: 16,
            unknown_permille: 3,
            lost_permille: 1,
            ..Workload::default()
        });
        violation(&calls);
    }
}

#[test]
fn two_winners_of_one_cas_are_found() {
    for seed in 0..4 {
        let mut calls = recorded(seed);
        // One that lost is said to have won, from the value that another took away before.
        let mut winners: BTreeMap<(u64, Option<u64>), usize> = BTreeMap::new();
        let mut planted = None;
        for (index, call) in calls.iter().enumerate() {
            let Op::Cas {
                from: Some(from), ..
            } = call.op
            else {
                continue;
            };
            match (call.outcome, winners.get(&(call.key, Some(from)))) {
                (Outcome::Done, _) => {
                    winners.insert((call.key, Some(from)), index);
                }
                (Outcome::CasLost, Some(_)) => planted = Some(index),
                _ => {}
            }
        }
        let planted = planted.expect("among so many, one came too late");
        calls[planted].outcome = Outcome::Done;
        violation(&calls);
    }
}

#[test]
fn a_value_from_nowhere_is_found() {
    let mut calls = recorded(9);
    let read = |call: &Call| matches!(call.outcome, Outcome::Read(_));
    let index = calls
        .iter()
        .rposition(read)
        .expect("half of them are reads");
    calls[index].outcome = Outcome::Read(Some(u64::MAX));
    let explanation = violation(&calls);
    assert_eq!(explanation.stuck, calls[index]);
    assert!(explanation.writers.is_empty());
    let text = explanation.to_string();
    assert!(
        text.contains("Nothing before it could have written what it saw."),
        "{text}"
    );
}
