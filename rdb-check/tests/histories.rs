//! Recorded histories of an etcd cluster under faults, with known verdicts: all of them must come
//! out right, each in under a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rdb_check::{Verdict, check_linearizable, jepsen};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/histories")
}

#[test]
fn every_history_gets_its_verdict_in_time() {
    let verdicts = fs::read_to_string(directory().join("verdicts.txt")).expect("verdicts.txt");
    let mut slowest = (Duration::ZERO, "");
    let mut wrong = Vec::new();
    let mut judged = 0;
    for line in verdicts.lines() {
        let (name, expected) = line.split_once(' ').expect("lines are NAME VERDICT");
        let start = Instant::now();
        let calls = jepsen::read_file(&directory().join(name)).expect("a good log");
        let verdict = check_linearizable(&calls);
        slowest = slowest.max((start.elapsed(), name));
        let found = match &verdict {
            Verdict::Linearizable => "linearizable",
            Verdict::NotLinearizable(_) => "not_linearizable",
            Verdict::Undecided { why } => why,
        };
        if found != expected {
            wrong.push(format!("{name}: expected {expected}, found {verdict}"));
        }
        judged += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        slowest.0 < Duration::from_secs(1),
        "the slowest: {slowest:?}"
    );
    println!("the slowest of {judged}: {slowest:?}");

    let logs = fs::read_dir(directory())
        .expect("the directory")
        .filter(|entry| {
            entry
                .as_ref()
                .is_ok_and(|entry| entry.path().extension().is_some_and(|ext| ext == "log"))
        });
    assert_eq!(
        (judged, logs.count()),
        (52, 52),
        "no history without a verdict"
    );
}

/// The explanation blames the first call that cannot be: cut before the line at which it returned, the
/// log is good, and cut behind it, it is bad already.
#[test]
fn every_bad_history_is_good_up_to_the_call_that_is_blamed() {
    let mut blamed = 0;
    for entry in fs::read_dir(directory()).expect("the directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let name = path.display().to_string();
        let text = fs::read_to_string(&path).expect("a log");
        let calls = jepsen::parse(&name, &text).expect("a good log");
        let Verdict::NotLinearizable(explanation) = check_linearizable(&calls) else {
            continue;
        };
        blamed += 1;
        let line = explanation
            .stuck
            .returned_ns
            .expect("only certain calls are blamed");
        let good_until = |lines: u64| {
            let cut: Vec<&str> = text.lines().take(lines as usize).collect();
            let calls = jepsen::parse(&name, &cut.join("\n")).expect("a good log");
            check_linearizable(&calls).is_linearizable()
        };
        assert!(
            good_until(line - 1),
            "{name} is bad before line {line}: {explanation}"
        );
        assert!(
            !good_until(line),
            "{name} is good up to line {line}: {explanation}"
        );
    }
    assert_eq!(blamed, 41);
}
