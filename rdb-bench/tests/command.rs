//! The command as users meet it: a short real run, and what it says when it cannot run. Nothing here
//! looks at how fast anything was.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rdb-bench"))
        .args(args)
        .output()
        .expect("rdb-bench starts")
}

/// The store to run against. `cargo test` of the workspace has built it; of this crate alone has not.
fn rdb_server() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_rdb-bench")).with_file_name("rdb-server");
    if !program.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-p", "rdb-server", "--bin", "rdb-server"])
            .status();
        assert!(
            built.expect("cargo starts").success(),
            "rdb-server does not build"
        );
    }
    program
}

#[test]
fn a_short_run_measures_prints_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (server, results) = (rdb_server(), dir.path().join("results"));
    let run = bench(&[
        "--target=flaredb",
        "--rounds=1",
        "--seconds=1",
        "--keys=200",
        "--callers=1,8",
        "--rdb-server",
        server.to_str().unwrap(),
        "--results",
        results.to_str().unwrap(),
    ]);
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{out}\n{err}");
    for part in ["put, 1 caller", "get, 8 callers", "resident memory"] {
        assert!(out.contains(part), "{part} is missing in\n{out}");
    }
    let json = std::fs::read_to_string(results.join("put-get-001.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let samples = json["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 4);
    for sample in samples {
        assert!(sample["operations"].as_u64().unwrap() > 0, "{sample}");
        assert_eq!(sample["errors"], 0, "{sample}");
    }
    assert_eq!(
        json["targets"][0]["resident_end_bytes"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn what_cannot_be_run_is_said_and_ends_with_1() {
    let missing = bench(&["--target=flaredb", "--rdb-server=/no/such/rdb-server"]);
    let err = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(1), "{err}");
    assert!(
        err.contains("/no/such/rdb-server") && err.contains("cargo build -p rdb-server"),
        "{err}"
    );

    let dies = bench(&["--target=flaredb", "--rdb-server=/bin/false"]);
    let err = String::from_utf8_lossy(&dies.stderr);
    assert_eq!(dies.status.code(), Some(1), "{err}");
    assert!(err.contains("ended by itself"), "{err}");
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for args in [
        &["--seconds=0"][..],
        &["--callers=0"],
        &["--target=redis"],
        &["--value-bytes=0"],
        &["--keys=0"],
    ] {
        assert_eq!(bench(args).status.code(), Some(2), "{args:?}");
    }
}
