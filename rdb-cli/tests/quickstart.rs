//! What the documents tell people to type is typed here: every block of the quickstart and of the README, in their
//! order, and the script that verifies a cluster. With the real programs, on ports and in a directory of their own.
//!
//! Invariant: a command of the README is run, or stands in [`LEFT_OUT`] with the reason.
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

/// Shell commands that belong together.
struct Block {
    /// What it stands under.
    heading: String,
    commands: String,
}

/// The blocks of shell commands. Of a session on a console, its commands without what they print.
fn blocks(text: &str) -> Vec<Block> {
    let (mut heading, mut blocks) = (String::new(), Vec::new());
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut open, line) {
            (None, "```sh" | "```bash") => open = Some((false, String::new())),
            (None, "```console") => open = Some((true, String::new())),
            (None, fence) if fence.starts_with("```") => {
                panic!("{fence:?} in {heading:?}: a block is sh, bash or console")
            }
            (Some((_, commands)), "```") => {
                blocks.push(Block {
                    heading: heading.clone(),
                    commands: std::mem::take(commands),
                });
                open = None;
            }
            (Some((console, commands)), line) => {
                let typed = match console {
                    true => line.strip_prefix("$ "),
                    false => Some(line),
                };
                for part in typed.into_iter().chain(typed.map(|_| "\n")) {
                    commands.push_str(part);
                }
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
    // Tests that run side by side have neighbouring process ids, and each takes two.
    let start = 2_000 + (std::process::id() % 290) as u16 * 4;
    let mut tens = (start..3_200).filter(|tens| free(*tens));
    (tens.next().unwrap(), tens.next().unwrap())
}

/// The commands that failed, as the script's trap tells of them.
fn refused(errors: &str) -> Vec<&str> {
    let lines = errors.lines();
    lines
        .filter_map(|line| line.strip_prefix("failed: "))
        .collect()
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
    for block in blocks(&text) {
        // How it is built is what brought this test here; `make demo` is a step of CI.
        if block.heading != "Build, and see it work" {
            script.push_str(&block.commands);
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
    let failed = refused(&errors);
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

/// Commands of the README that are not run here, each as it stands there (without a comment), and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("make demo", "a step of .ci/run"),
    ("make test", "it runs this test"),
    (
        "git clone https://github.com/flaredb/flaredb && cd flaredb",
        "this is a clone",
    ),
    (
        "make deb",
        "scripts/test-deb.sh, which installs what it makes in a chroot",
    ),
    (
        "sudo apt install ./target/debian/flaredb_0.1.0-1_amd64.deb",
        "scripts/test-deb.sh",
    ),
    ("sudoedit /etc/flaredb/flaredb.toml", "scripts/test-deb.sh"),
    ("sudo systemctl enable --now flaredb", "needs systemd"),
    ("systemctl status flaredb", "needs systemd"),
    (
        "flaredb top",
        "needs a terminal; rdb-cli has tests of its screen",
    ),
    (
        "flaredb conflicts cart restore ID",
        "ID stands for a conflict, and there is none; rdb-cli/tests/commands.rs has one",
    ),
];

/// What the README has people do between its blocks, in words: below which heading, and the command.
const IN_WORDS: &[(&str, &str)] = &[
    // Its ports are those of the cluster.
    ("The first put", "kill $(cat data/LOCK)"),
];

/// A watch never ends by itself: in front of one, this ends it once it has told something.
const WATCHED: &str = r#"
watched() {
  local watch status=0
  : >watched # the last one's
  "$@" >watched 2>&1 & watch=$!
  until grep -q -e seen-by-a-watch -e '^flaredb:' watched; do flaredb put seen-by-a-watch 1 >put 2>&1; sleep 0.1; done
  kill -INT "$watch"; wait "$watch" || status=$?
  cat watched
  return "$status"
}
"#;

fn without_comment(line: &str) -> &str {
    match line.split_once("  #") {
        Some((command, _)) => command.trim_end(),
        None => line.trim_end(),
    }
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let text = std::fs::read_to_string(repository().join("README.md")).unwrap();
    for (command, why) in LEFT_OUT {
        let mut lines = text.lines();
        assert!(
            lines.any(|line| without_comment(line) == *command),
            "{command:?} is not in the README any more ({why})"
        );
    }
    let (stores, probes) = free_ports();
    let mut script = "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n".to_owned();
    script += WATCHED;
    let blocks = blocks(&text);
    assert!(blocks.len() >= 11, "{} blocks", blocks.len());
    for (at, block) in blocks.iter().enumerate() {
        // Two of three stores are dead, it says.
        if block.commands.contains("put greeting again") {
            script += "kill -9 $(cat cluster/2/LOCK) $(cat cluster/3/LOCK)\nsleep 3\n";
        }
        let lines = block.commands.lines();
        for line in lines.filter(|line| {
            let command = without_comment(line);
            LEFT_OUT.iter().all(|(left, _)| *left != command)
        }) {
            // How it is built is what brought this test here.
            if without_comment(line) == "make up" {
                script += &format!("{}\n", repository().join("scripts/up.sh").display());
                continue;
            }
            if line.starts_with("flaredb watch") {
                script += "watched ";
            }
            script += line;
            script += "\n";
        }
        let is_last = blocks
            .get(at + 1)
            .is_none_or(|next| next.heading != block.heading);
        for (heading, command) in IN_WORDS {
            if is_last && block.heading == *heading {
                assert!(
                    text.contains(&format!("`{command}`")),
                    "{command:?} is not said"
                );
                // Its ports are free once its last one is.
                script += &format!(
                    "{command}\nwhile (exec 3<>/dev/tcp/127.0.0.1/{probes}1) 2>/dev/null; do sleep 0.1; done\n"
                );
            }
        }
    }
    // Whoever is left.
    script += "kill $(jobs -p)\nwait\ntrue\n";
    let script = script
        .replace("127.0.0.1:5005", &format!("127.0.0.1:{stores}"))
        .replace("127.0.0.1:5006", &format!("127.0.0.1:{probes}"));
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("target")).unwrap();
    std::os::unix::fs::symlink(programs(), home.path().join("target/debug")).unwrap();
    let mut bash = Command::new("timeout");
    bash.args([PATIENCE, "bash", "-c", &script]);
    // The ports that are everybody's defaults may be somebody's here.
    bash.current_dir(&home)
        .env("HOME", home.path())
        .env("FLAREDB_STORE__ADDR", format!("127.0.0.1:{stores}1"))
        .env("FLAREDB_STORE__HTTP_ADDR", format!("127.0.0.1:{probes}1"))
        .env("FLAREDB_ENDPOINTS", format!("127.0.0.1:{stores}1"));
    let (output, told) = Script::start(&mut bash).end();
    assert!(output.status.success(), "{told}");
    let errors = String::from_utf8_lossy(&output.stderr);
    let failed = refused(&errors);
    // These are there to be refused.
    let expected = ["flaredb cas greeting 0 other", "flaredb put greeting again"];
    assert_eq!(failed, expected, "{told}");
    let out = String::from_utf8_lossy(&output.stdout);
    // In this order: the value; that it is there; the watches; the exit code without a quorum.
    let mut rest = &out[..];
    for said in [
        "hello",
        "PRECONDITION_FAILED",
        "seen-by-a-watch",
        "seen-by-a-watch",
        "seen-by-a-watch",
        "\n4\n",
    ] {
        let at = rest.find(said);
        let at = at.unwrap_or_else(|| panic!("it does not say {said:?} there: {told}"));
        rest = &rest[at + said.len()..];
    }
    assert!(errors.contains("NO_QUORUM"), "{told}");
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
