//! The checker against a reference that tries everything, on thousands of small histories.
//!
//! Every reduction that the search makes would show here if it changed a verdict.

mod support;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rdb_check::{Call, Op, Outcome, Value, Verdict, check_linearizable};
use support::{Random, Workload, linearizable_by_brute_force, simulate};

fn content() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![Just(None), (0..3_u64).prop_map(Some)]
}

fn op_and_outcome() -> impl Strategy<Value = (Op, Outcome)> {
    let sure = prop_oneof![
        5 => content().prop_map(|held| (Op::Read, Outcome::Read(held))),
        4 => (0..3_u64).prop_map(|to| (Op::Write(to), Outcome::Done)),
        1 => Just((Op::Delete, Outcome::Done)),
        3 => (content(), 0..3_u64).prop_map(|(from, to)| (Op::Cas { from, to }, Outcome::Done)),
        3 => (content(), 0..3_u64).prop_map(|(from, to)| (Op::Cas { from, to }, Outcome::CasLost)),
    ];
    let ending = prop_oneof![5 => Just(None), 3 => Just(Some(Outcome::Unknown)),
        1 => Just(Some(Outcome::NotApplied))];
    (sure, ending).prop_map(|((op, sure), other)| (op, other.unwrap_or(sure)))
}

/// Any calls at any times: mostly nonsense, much of it overlapping.
fn any_call() -> impl Strategy<Value = Call> {
    let times = (
        0..30_u64,
        prop_oneof![3 => (0..12_u64).prop_map(Some), 1 => Just(None)],
    );
    (op_and_outcome(), times).prop_map(|((op, outcome), (invoked_ns, lasts))| Call {
        process: 0,
        key: 0,
        op,
        invoked_ns,
        returned_ns: lasts.map(|lasts| invoked_ns + lasts),
        outcome,
    })
}

fn verdicts_agree(calls: &[Call]) -> bool {
    let expected = linearizable_by_brute_force(calls);
    match check_linearizable(calls) {
        Verdict::Linearizable => expected,
        Verdict::NotLinearizable(_) => !expected,
        Verdict::Undecided { .. } => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8192,
        rng_seed: RngSeed::Fixed(20_260_101),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_gets_the_verdict_of_brute_force(
        calls in prop::collection::vec(any_call(), 0..10),
    ) {
        prop_assert!(verdicts_agree(&calls));
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(
        (calls, shuffled) in prop::collection::vec(any_call(), 0..10)
            .prop_flat_map(|calls| (Just(calls.clone()), Just(calls).prop_shuffle())),
    ) {
        let verdicts = [&calls, &shuffled].map(|calls| check_linearizable(calls).is_linearizable());
        prop_assert_eq!(verdicts[0], verdicts[1]);
    }
}

/// Histories that are nearly right are where a wrong reduction hides: what a correct register
/// answered, with one answer changed.
#[test]
fn nearly_right_histories_get_the_verdict_of_brute_force() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..20_000 {
        let mut calls = simulate(&Workload {
            seed,
            calls: 13,
            processes: 4,
            unknown_permille: 250,
            cas_permille: 300,
            read_permille: 350,
            values: Some(4),
            ..Workload::default()
        });
        let unchanged = check_linearizable(&calls);
        assert!(
            unchanged.is_linearizable(),
            "seed {seed}: {unchanged}\n{calls:#?}"
        );

        let mut random = Random(seed ^ 0xabcd);
        let changed = random.below(calls.len() as u64) as usize;
        calls[changed].outcome = match calls[changed].outcome {
            Outcome::Read(_) => Outcome::Read(Some(random.below(4))),
            Outcome::Done if matches!(calls[changed].op, Op::Cas { .. }) => Outcome::CasLost,
            Outcome::CasLost => Outcome::Done,
            Outcome::Done => Outcome::NotApplied,
            other => other,
        };
        assert!(
            verdicts_agree(&calls),
            "seed {seed}, call {changed} changed: {calls:#?}"
        );
        match linearizable_by_brute_force(&calls) {
            true => right += 1,
            false => wrong += 1,
        }
    }
    // Else one of the two verdicts was hardly tested.
    assert!(right > 2000 && wrong > 2000, "{right} right, {wrong} wrong");
}

/// What an explanation claims is true: the calls that returned before the stuck one can be ordered,
/// and together with it they cannot.
#[test]
fn explanations_name_the_first_call_that_cannot_be() {
    // A search that stops at the first hopeless state would blame the wrong call.
    let mut explained = 0;
    for seed in 0..3000 {
        let calls = simulate(&Workload {
            seed,
            calls: 14,
            processes: 4,
            unknown_permille: 150,
            values: Some(3),
            lost_permille: 300,
            ..Workload::default()
        });
        let Verdict::NotLinearizable(explanation) = check_linearizable(&calls) else {
            continue;
        };
        explained += 1;
        let end_ns = explanation
            .stuck
            .returned_ns
            .expect("only certain calls can be stuck");
        // The history as it stood at an instant: later calls are not there, open ones unknown.
        let until = |end_ns: u64| -> Vec<Call> {
            let known = calls
                .iter()
                .filter(|call| call.invoked_ns <= end_ns)
                .cloned();
            known
                .map(|mut call| {
                    if call.returned_ns.is_none_or(|returned| returned > end_ns) {
                        call.outcome = Outcome::Unknown;
                    }
                    call
                })
                .collect()
        };
        assert!(
            linearizable_by_brute_force(&until(end_ns - 1)),
            "seed {seed}: {explanation}"
        );
        assert!(
            !linearizable_by_brute_force(&until(end_ns)),
            "seed {seed}: {explanation}"
        );
    }
    assert!(explained > 300, "only {explained} violations");
}
