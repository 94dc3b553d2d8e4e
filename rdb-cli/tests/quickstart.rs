//! What the documents tell people to type is typed here: every block of the quickstart, in its order, and
//! the script that verifies a cluster. With the real programs, on ports and in a directory of their own.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Seconds after which a script hangs: on a machine that does much else, too.
const PATIENCE: &str = "300";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .into()
}

/// Where `flaredb` and `rdb-server` are.
fn programs() -> PathBuf {
    let directory = Path::new(env!("CARGO_BIN_EXE_flaredb")).parent().unwrap();
    assert!(
        directory.join("rdb-server").exists(),
        "there is no rdb-server beside flaredb: run the tests of the whole workspace, or build it with `cargo build -p rdb-server`"
    );
    directory.to_owned()
}

/// A script and all that it started, which end with it.
struct Script(Option<Child>);

impl Script {
    fn start(command: &mut Command) -> Script {
        let command = command.stdin(Stdio::null()).process_group(0);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Script(Some(command.spawn().unwrap()))
    }

    fn end(mut self) -> (Output, String) {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let told = format!(
            "{}\n--- on standard error:\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output, told)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-9", "--", &group]).status();
        }
    }
}

/// The blocks of shell commands, and the heading that each stands under.
fn blocks(text: &str) -> Vec<(String, String)> {
    let (mut heading, mut blocks, mut open) = (String::new(), Vec::new(), None::<String>);
    for line in text.lines() {
        match (&mut open, line) {
            (None, "```sh") => open = Some(String::new()),
            (Some(block), "```") => {
                blocks.push((heading.clone(), std::mem::take(block)));
                open = None;
            }
            (Some(block), line) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, line) => {
                if let Some(title) = line.strip_prefix("## ") {
                    title.clone_into(&mut heading);
                }
            }
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// The first digits of ten ports that nobody listens on, and of ten more.
fn free_ports() -> (u16, u16) {
    let free =
        |tens: u16| (1..=3).all(|last| TcpListener::bind(("127.0.0.1", tens * 10 + last)).is_ok());
    let start = 2_000 + (std::process::id() % 1_000) as u16;
    let mut tens = (start..3_200).filter(|tens| free(*tens));
    (tens.next().unwrap(), tens.next().unwrap())
}

#[test]
fn every_command_of_the_quickstart_does_what_it_says() {
    let text = repository().join("specs/003-kvs-consistency/quickstart.md");
    let text = std::fs::read_to_string(text).unwrap();
    let (stores, probes) = free_ports();
    let text = text
        .replace("127.0.0.1:5005", &format!("127.0.0.1:{stores}"))
        .replace("127.0.0.1:5006", &format!("127.0.0.1:{probes}"));
    let mut script = "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n".to_owned();
    let mut run = 0;
    for (heading, block) in blocks(&text) {
        // How it is built is what brought this test here; `make demo` is a step of CI.
        if heading != "Build, and see it work" {
            script.push_str(&block);
            run += 1;
        }
    }
    assert!(run >= 7, "{run} blocks");
    let home = tempfile::tempdir().unwrap();
    let path = format!(
        "{}:{}",
        programs().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut bash = Command::new("timeout");
    bash.args([PATIENCE, "bash", "-c", &script]);
    bash.current_dir(&home)
        .env("PATH", path)
        .env("HOME", home.path());
    let (output, told) = Script::start(&mut bash).end();
    assert!(output.status.success(), "{told}");
    let errors = String::from_utf8_lossy(&output.stderr);
    let failed: Vec<&str> = errors
        .lines()
        .filter_map(|line| line.strip_prefix("failed: "))
        .collect();
    // These are there to be refused.
    let expected = [
        "flaredb -n bank cas alice \"$version\" 80",
        "flaredb -n bank put carol 2",
        "flaredb -n cart put item 3",
    ];
    assert_eq!(failed, expected, "{told}");
    let out = String::from_utf8_lossy(&output.stdout);
    for said in ["exit code 5", "exit code 4", "degraded"] {
        assert!(out.contains(said), "it does not say {said}: {told}");
    }
    // On a machine whose disk fills no cluster is.
    let healthy = out.contains("healthy") || out.contains(" is filling ");
    assert!(healthy, "it does not say healthy: {told}");
}

#[test]
fn verify_raft_passes_on_this_build() {
    let mut verify = Command::new("timeout");
    verify.arg(PATIENCE);
    verify.arg(repository().join("scripts/verify-raft.sh"));
    verify.env("FLAREDB_BIN", programs());
    let (output, told) = Script::start(&mut verify).end();
    assert!(output.status.success(), "{told}");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        out.lines().filter(|line| line.starts_with("ok ")).count() >= 20,
        "{told}"
    );
}
