//! The mode with gRPC over simulated TCP: runs hold, one seed is one run, and what is broken at its edges is
//! caught. A few short runs: the two dozen seeds are run by `make sim`.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use rdb_sim::tcp::bugs::Bug;
use rdb_sim::tcp::{Options, Report, run};
use std::process::Command;

fn short(seed: u64) -> Options {
    Options {
        fault_s: 12,
        ..Options::new(seed)
    }
}

fn held(report: &Report) {
    let found: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "seed {}: {found:#?}", report.seed);
    // A run in which nothing happened proves nothing.
    assert!(report.tally.acknowledged > 100, "{:?}", report.tally);
    assert!(report.tally.read > 100, "{:?}", report.tally);
    assert!(report.looked.leaders >= 2 && report.looked.entries > 100);
    assert!(!report.plan.is_empty());
}

#[test]
fn stores_and_clients_hold_over_grpc() {
    let reports: Vec<Report> = [2, 6].into_iter().map(|seed| run(&short(seed))).collect();
    reports.iter().for_each(held);
    let restarts: u64 = reports.iter().map(|report| report.restarts).sum();
    assert!(restarts > 0, "nothing was ever killed");
}

#[test]
fn one_seed_is_one_run_in_every_process() {
    let here = run(&short(3));
    let hash = format!("trace {:016x} of {} events", here.trace.0, here.trace.1);
    let there = Command::new(env!("CARGO_BIN_EXE_rdb-sim"))
        .args(["tonic", "--first", "3", "--seeds", "1", "--seconds", "12"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&there.stdout);
    assert!(said.contains(&hash), "{hash} is not in {said}");
    assert_ne!(run(&short(4)).trace, here.trace);
}

#[test]
fn an_answer_for_another_call_is_caught() {
    let report = run(&Options {
        bug: Some(Bug::AnswerToWrongCall),
        ..short(1)
    });
    assert!(!report.violations.is_empty(), "nobody noticed");
}
