//! The simulator itself: one seed is one run, runs hold, broken rules are caught, and a failing plan gets
//! smaller. Short runs: the many seeds are run by `make sim`.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use rdb_sim::bugs::Bug;
use rdb_sim::search::{Limits, record_next, resume_from, search, shrink};
use rdb_sim::world::{Report, RunOptions, run};
use std::process::Command;
use std::time::Duration;

fn short(seed: u64) -> RunOptions {
    RunOptions {
        fault_s: 15,
        ..RunOptions::new(seed)
    }
}

fn held(report: &Report) {
    let found: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "seed {}: {found:#?}", report.seed);
    // A run in which nothing happened proves nothing.
    assert!(report.tally.acknowledged > 100, "{:?}", report.tally);
    assert!(report.tally.read > 100, "{:?}", report.tally);
    assert!(report.looked.leaders >= 3, "{:?}", report.looked);
    assert!(report.looked.entries > 100, "{:?}", report.looked);
    assert!(report.looked.digests > 100, "{:?}", report.looked);
    assert!(report.eventual.acknowledged > 100, "{:?}", report.eventual);
    assert!(report.eventual.entries > 100, "{:?}", report.eventual);
    assert!(report.eventual.digests > 20, "{:?}", report.eventual);
    assert!(report.switches.opened > 1, "{:?}", report.switches);
    assert!(report.switches.sealed > 1, "{:?}", report.switches);
    assert!(report.switches.judged > 20, "{:?}", report.switches);
}

#[test]
fn a_seed_is_one_run() {
    let (first, second) = (run(&short(11)).unwrap(), run(&short(11)).unwrap());
    assert_eq!(first.trace, second.trace);
    assert_eq!(first.tally, second.tally);
    assert_ne!(first.trace, run(&short(12)).unwrap().trace);
}

#[test]
fn a_seed_is_one_run_in_every_process() {
    let trace = || {
        let run = Command::new(env!("CARGO_BIN_EXE_rdb-sim"))
            .args(["run", "--seed", "11", "--seconds", "15"])
            .output()
            .unwrap();
        let text = String::from_utf8(run.stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with("trace: "));
        line.unwrap_or_else(|| panic!("no trace in {text}"))
            .to_owned()
    };
    assert_eq!(trace(), trace());
}

#[test]
fn invariants_hold_with_three_stores_and_with_five() {
    held(&run(&short(21)).unwrap());
    held(&run(&short(7)).unwrap());
    let five = RunOptions {
        stores: 5,
        ..short(13)
    };
    held(&run(&five).unwrap());
}

#[test]
fn a_broken_rule_is_caught() {
    let limits = Limits {
        seeds: 5,
        time: Duration::from_secs(600),
    };
    for bug in [
        Bug::AcknowledgeBeforeSync,
        Bug::ReadIndexSkipped,
        Bug::RequestIdDropped,
        Bug::RecordNotWritten,
        Bug::TombstoneDroppedEarly,
        Bug::GapAccepted,
    ] {
        let base = RunOptions {
            bug: Some(bug),
            ..RunOptions::new(1)
        };
        let found = search(&base, 1, &limits, |report| report.violations.is_empty()).unwrap();
        assert!(!found.failed.is_empty(), "{bug:?} was not caught");
    }
}

#[test]
fn a_failing_plan_gets_smaller_and_still_fails() {
    let failing = RunOptions {
        bug: Some(Bug::AcknowledgeBeforeSync),
        ..short(1)
    };
    let whole = run(&failing).unwrap();
    let broken = whole.violations.first().unwrap().invariant;
    let smallest = shrink(&failing, 12).unwrap();
    assert!(!smallest.without.is_empty());
    let again = run(&smallest).unwrap();
    let still = again
        .violations
        .iter()
        .any(|found| found.invariant == broken);
    assert!(still, "{broken} holds again: {:?}", again.violations);
}

#[test]
fn a_search_goes_on_where_it_was_stopped() {
    let file = std::env::temp_dir().join(format!("rdb-sim-state-{}", std::process::id()));
    assert_eq!(resume_from(&file).unwrap(), 1);
    record_next(&file, 42).unwrap();
    assert_eq!(resume_from(&file).unwrap(), 42);
    std::fs::write(&file, "no number").unwrap();
    assert!(resume_from(&file).is_err());
    std::fs::remove_file(&file).unwrap();
}
