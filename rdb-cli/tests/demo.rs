//! `flaredb demo` as a process: the whole story with short phases, the end by Ctrl-C, and the prompt.
//! Real stores, real disks; nothing here looks at how fast anything was.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

fn demo(temp: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flaredb"));
    command
        .arg("demo")
        .arg("--seconds=1")
        .env("TMPDIR", temp)
        .env_remove("FLAREDB_DEMO_LOG");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn every_promise_holds_and_nothing_is_left_behind() {
    let temp = tempfile::tempdir().unwrap();
    let run = demo(temp.path()).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert_eq!(run.status.code(), Some(0), "{out}\n{err}");
    for part in [
        "killed store",
        "NO_QUORUM",
        "healed",
        "checked in",
        "is written on both sides of the cut",
        "lost to newer ones and are listed: shared/",
        "eventual: the newest write wins",
        "Every promise held.",
    ] {
        assert!(out.contains(part), "{part} is missing in\n{out}");
    }
    assert!(!out.contains("BROKEN"), "{out}");
    assert!(
        !out.contains('\x1b'),
        "no colours where there is no terminal:\n{out}"
    );
    assert_eq!(err, "");
    assert!(is_empty(temp.path()), "the data are removed");
}

#[test]
fn an_interrupt_stops_the_stores_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mut child = demo(temp.path()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("loaded") {
        line.clear();
        assert_ne!(
            out.read_line(&mut line).unwrap(),
            0,
            "it ended before the load"
        );
    }
    let interrupted = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupted.success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(
        !rest.contains("promise"),
        "no verdict on half a story:\n{rest}"
    );
    assert!(is_empty(temp.path()), "the data are removed");
}

#[test]
fn a_demo_that_nobody_reads_to_its_end_has_proved_nothing_and_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let mut child = demo(temp.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("before everything was judged"), "{told}");
    assert!(is_empty(temp.path()), "the data are gone");
}

#[test]
fn kept_clusters_obey_and_given_directories_stay() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    let mut child = demo(temp.path())
        .arg("--keep")
        .arg("--data-dir")
        .arg(&data)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let commands = "put k some words\nkill 2\nget k\nrestart 2\npartition 3\nget k 3\nheal\nswitch bank eventual\nexplode\nquit\n";
    child
        .stdin
        .take()
        .unwrap()
        .write_all(commands.as_bytes())
        .unwrap();
    let run = child.wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert_eq!(run.status.code(), Some(0), "{out}\n{err}");
    let prompt = out
        .split("The cluster stays up")
        .nth(1)
        .expect("the prompt begins");
    for part in [
        "acknowledged by a quorum",
        "store 2 is dead",
        "some words\n  linearizable",
        "store 2 runs again",
        "nothing passes between store 3 and stores 1 and 2",
        "stale, from store 3",
        "every cut is taken back",
        "bank is eventual after",
        "there is no command \"explode\"",
    ] {
        assert!(prompt.contains(part), "{part} is missing in\n{prompt}");
    }
    assert!(data.join("store-1").is_dir() && data.join("stores.log").is_file());

    let again = demo(temp.path())
        .arg("--data-dir")
        .arg(&data)
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"));
}
