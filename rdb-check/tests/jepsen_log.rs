//! Jepsen's log format: what is understood, and what is refused with file, line and reason.

#![allow(
    clippy::expect_used,
    reason = "a helper of tests stops at what it did not expect, as a test may"
)]

use rdb_check::jepsen::{Error, parse, read_file};
use rdb_check::{Call, Op, Outcome};

fn good(text: &str) -> Vec<Call> {
    parse("x.log", text).expect("a good log")
}

#[test]
fn every_kind_of_event_is_understood() {
    let calls = good(
        "INFO  jepsen.util - 0\t:invoke\t:read\tnil\n\
         INFO  jepsen.util - 1\t:invoke\t:write\t4\n\
         INFO  jepsen.util - :nemesis\t:info\t:start\tnil\n\
         \n\
         INFO  jepsen.util - 0\t:ok\t:read\tnil\n\
         INFO  jepsen.util - 1\t:ok\t:write\t4\n\
         2 :invoke :cas [4 1]\r\n\
         2 :fail :cas [4 1]\n\
         3 :invoke :cas [nil 1]\n\
         3 :fail :cas :timed-out\n\
         4 :invoke :cas [1 2]\n\
         4 :ok :cas [1 2]\n\
         5 :invoke :read\n\
         5 :fail :read :timed-out\n\
         6 :invoke :delete nil\n\
         6 :info :delete :timed-out\n\
         7 :invoke :write 18446744073709551615\n",
    );
    let cas = |from, to| Op::Cas { from, to };
    let expected = [
        (0, Op::Read, 1, Some(5), Outcome::Read(None)),
        (1, Op::Write(4), 2, Some(6), Outcome::Done),
        (2, cas(Some(4), 1), 7, Some(8), Outcome::CasLost),
        (3, cas(None, 1), 9, Some(10), Outcome::NotApplied),
        (4, cas(Some(1), 2), 11, Some(12), Outcome::Done),
        (5, Op::Read, 13, Some(14), Outcome::NotApplied),
        (6, Op::Delete, 15, Some(16), Outcome::Unknown),
        (7, Op::Write(u64::MAX), 17, None, Outcome::Unknown),
    ];
    let expected = expected.map(|(process, op, invoked_ns, returned_ns, outcome)| Call {
        process,
        key: 0,
        op,
        invoked_ns,
        returned_ns,
        outcome,
    });
    assert_eq!(calls, expected);
}

#[test]
fn a_bad_line_is_refused_with_its_place_and_the_reason() {
    let table = [
        ("hello", "\"hello\" is no process number"),
        (
            "INFO  jepsen.core - Running test",
            "\"Running\" is no process number",
        ),
        ("-1 :invoke :read nil", "\"-1\" is no process number"),
        ("0", "no type"),
        ("INFO  jepsen.util - ", "no process"),
        ("0 :invoke", "no function"),
        ("0 :start :read nil", "unknown type \":start\""),
        ("0 :invoke :append 1", "unknown function \":append\""),
        ("0 :invoke :read 3", "a read is invoked with nil, not \"3\""),
        ("0 :invoke :write", "\"\" is no value"),
        ("0 :invoke :write nil", "\"nil\" is no value"),
        (
            "0 :invoke :delete 1",
            "a delete is invoked with nil, not \"1\"",
        ),
        ("0 :invoke :write x", "\"x\" is no value"),
        ("0 :invoke :write -1", "\"-1\" is no value"),
        (
            "0 :invoke :write 18446744073709551616",
            "is no value: a number from 0 to",
        ),
        ("0 :invoke :cas 1 2", "a cas takes [FROM TO], not \"1 2\""),
        ("0 :invoke :cas [1]", "a cas takes [FROM TO]"),
        ("0 :invoke :cas [1 2 3]", "a cas takes [FROM TO]"),
        ("0 :invoke :cas [1 2", "a cas takes [FROM TO]"),
        ("0 :invoke :cas [1 nil]", "\"nil\" is no value"),
        (
            "0 :ok :read 1",
            "process 0 completes a call but has none under way",
        ),
        (
            "9 :invoke :read nil",
            "invokes a call while its call of line 1 is under way",
        ),
        (
            "9 :ok :write 1",
            "completes \"read\" of line 1 as \":write 1\"",
        ),
        ("9 :ok :read :timed-out", "\":timed-out\" is no value"),
        (
            "8 :ok :write 5",
            "completes \"write 4\" of line 2 with \":write 5\"",
        ),
        (
            "8 :ok :write :timed-out",
            "completes \"write 4\" of line 2 with",
        ),
        ("8 :info :write 5", "completes \"write 4\" of line 2 with"),
        (
            "7 :fail :cas [1 3]",
            "completes \"cas 1 -> 2\" of line 3 with",
        ),
        (
            "7 :ok :cas [2 1]",
            "completes \"cas 1 -> 2\" of line 3 with",
        ),
    ];
    let before = "9 :invoke :read nil\n8 :invoke :write 4\n7 :invoke :cas [1 2]\n";
    for (line, reason) in table {
        let error = parse(
            "some/x.log",
            &format!("{before}{line}\n6 :invoke :read nil\n"),
        );
        let error = error.expect_err(line).to_string();
        assert!(error.starts_with("some/x.log:4: "), "{line}: {error}");
        assert!(error.contains(reason), "{line}: {error}");
    }
}

#[test]
fn a_log_without_events_is_no_good_history() {
    for text in ["", "\n \n", ":nemesis :info :start nil\n"] {
        let error = parse("x.log", text).expect_err("nothing in it");
        assert!(matches!(error, Error::Empty { .. }), "{error}");
        assert!(
            error.to_string().starts_with("x.log: holds no event"),
            "{error}"
        );
    }
}

#[test]
fn a_file_that_is_missing_or_no_text_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let binary = directory.path().join("binary.log");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).expect("written");
    for path in [
        directory.path().join("missing.log"),
        binary,
        directory.path().to_owned(),
    ] {
        let error = read_file(&path).expect_err("not a log");
        assert!(matches!(error, Error::Read { .. }), "{error:?}");
        assert!(
            error.to_string().starts_with(&path.display().to_string()),
            "{error}"
        );
    }
}

/// Cut anywhere, a log is read or refused, never misread as complete: what is under way at the cut is
/// unknown.
#[test]
fn a_log_that_was_cut_is_read_as_far_as_it_goes() {
    let text = "0 :invoke :write 1\n0 :ok :write 1\n1 :invoke :read nil\n1 :ok :read 1\n";
    let whole = good(text);
    for end in 1..text.len() {
        let Ok(calls) = parse("x.log", &text[..end]) else {
            continue;
        };
        assert!(calls.len() <= whole.len());
        for (cut, call) in calls.iter().zip(&whole) {
            let as_it_was = cut == call;
            let under_way = cut.outcome == Outcome::Unknown && cut.op == call.op;
            assert!(as_it_was || under_way, "cut at {end}: {cut:?}");
        }
    }
}
