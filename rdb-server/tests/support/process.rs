//! One `rdb-server` process, and one that ends by itself.
//!
//! Owns which program it is; a process's life is [`Node`]'s, which the harness of faults has, too.

pub(crate) use rdb_chaos::node::Node;
use rdb_chaos::node::clean;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// The program under test.
pub(crate) fn server() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rdb-server"))
}

/// A process that ended by itself.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    /// What it wrote to its two outputs.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Exit {
    /// Exit 1, with one clear line: the last one on stderr, returned.
    #[track_caller]
    pub(crate) fn refused(&self) -> &str {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self.stderr.lines().last().unwrap_or_default()
    }
}

/// Runs the program with these arguments until it ends by itself.
pub(crate) async fn run_to_exit(args: &[String], limit: Duration) -> Exit {
    let mut process = clean(server())
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while process.try_wait().unwrap().is_none() {
        if started.elapsed() > limit {
            process.kill().unwrap();
            let output = process.wait_with_output().unwrap();
            panic!(
                "this did not end within {limit:?}: {args:?}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), None, "{output:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Exit {
        status: output.status,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}
