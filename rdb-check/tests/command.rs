//! The command: what it prints, and its exit codes.

#![allow(
    clippy::expect_used,
    reason = "a helper of tests stops at what it did not expect, as a test may"
)]

use std::path::Path;
use std::process::{Command, Output};

const GOOD: &str = "tests/data/histories/etcd_002.log";
const BAD: &str = "tests/data/histories/etcd_000.log";

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_rdb-check"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .expect("the command starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn one_line_for_each_file_and_a_violation_is_a_result() {
    let (code, out, err) = run(&["jepsen", GOOD, BAD, GOOD]);
    let expected = format!("{GOOD} linearizable\n{BAD} not_linearizable\n{GOOD} linearizable\n");
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(0), expected.as_str(), "")
    );
}

#[test]
fn a_file_that_cannot_be_read_fails_the_run_but_not_the_other_files() {
    let (code, out, err) = run(&["jepsen", "no/such.log", GOOD, "Cargo.toml"]);
    assert_eq!((code, out), (Some(1), format!("{GOOD} linearizable\n")));
    assert!(
        err.contains("rdb-check: no/such.log: cannot be read"),
        "{err}"
    );
    assert!(err.contains("rdb-check: Cargo.toml:1: "), "{err}");
}

#[test]
fn an_expectation_that_is_not_met_fails_the_run() {
    let expect =
        |verdict, files: &[&str]| run(&[&["jepsen", "--expect", verdict], files].concat()).0;
    assert_eq!(expect("linearizable", &[GOOD]), Some(0));
    assert_eq!(expect("linearizable", &[GOOD, BAD]), Some(1));
    assert_eq!(expect("not_linearizable", &[BAD]), Some(0));
    assert_eq!(expect("not_linearizable", &[BAD, GOOD]), Some(1));
    assert_eq!(expect("perhaps", &[GOOD]), Some(2));
}

#[test]
fn an_explanation_goes_to_standard_error() {
    let (code, out, err) = run(&["jepsen", "--explain", BAD]);
    assert_eq!((code, out), (Some(0), format!("{BAD} not_linearizable\n")));
    assert!(err.contains("No order explains this call"), "{err}");
}

#[test]
fn wrong_usage_is_told_apart() {
    for arguments in [
        &[][..],
        &["jepsen"],
        &["jepsen", "--no-such-flag", GOOD],
        &["etcd", GOOD],
    ] {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(err.contains("Usage"), "{arguments:?}: {err}");
    }
}
