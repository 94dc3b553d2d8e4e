//! One `rdb-server` process: its arguments, data directory and log, its life and its end.
//!
//! Owns everything about a single store that needs no other one. Knows nothing of clusters.

use super::ports::Port;
use super::wait::eventually;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// A store.
pub(crate) struct Node {
    port: Port,
    http_port: Port,
    data_dir: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    process: Option<Child>,
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

impl Node {
    /// Store `store` (counted from 0), not started.
    pub(crate) fn new(dir: &Path, store: usize, args: &[&str]) -> Node {
        let (port, http_port) = (Port::take(), Port::take());
        let data_dir = dir.join(format!("store-{}", store + 1));
        let own = [
            "--store-id".to_owned(),
            (store + 1).to_string(),
            "--addr".to_owned(),
            port.addr().to_string(),
            "--http-addr".to_owned(),
            http_port.addr().to_string(),
            "--data-dir".to_owned(),
            data_dir.display().to_string(),
        ];
        let args = own
            .into_iter()
            .chain(args.iter().map(|arg| (*arg).to_owned()))
            .collect();
        Node {
            port,
            http_port,
            data_dir,
            log: dir.join(format!("store-{}.log", store + 1)),
            args,
            process: None,
        }
    }

    /// Where clients and stores dial.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Where probes dial.
    pub(crate) fn http_addr(&self) -> SocketAddr {
        self.http_port.addr()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// kill -9, without waiting.
    pub(crate) fn start_killing(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill().unwrap();
        }
    }

    /// The first members, in the order of their ids.
    pub(crate) fn set_peers(&mut self, peers: &[SocketAddr]) {
        self.remove_flag("--peer");
        for (store, addr) in peers.iter().enumerate() {
            self.args
                .extend(["--peer".to_owned(), format!("{}={addr}", store + 1)]);
        }
    }

    /// Takes out every use of a flag that has a value.
    pub(crate) fn remove_flag(&mut self, flag: &str) {
        while let Some(at) = self.args.iter().position(|arg| arg == flag) {
            self.args.drain(at..at + 2);
        }
    }

    /// Gives a flag another value.
    pub(crate) fn set_flag(&mut self, flag: &str, value: &str) {
        self.remove_flag(flag);
        self.args.extend([flag.to_owned(), value.to_owned()]);
    }

    pub(crate) fn add_args(&mut self, args: &[String]) {
        self.args.extend_from_slice(args);
    }

    pub(crate) fn args(&self) -> &[String] {
        &self.args
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    pub(crate) fn launch(&mut self) {
        assert!(
            self.process.is_none(),
            "store runs already: {:?}",
            self.args
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let process = server(&self.args)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Both fail only for a process that is gone.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends a signal, by the end of its name.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.process.as_ref().expect("the store runs").id();
        // The shell's own `kill`: there is one everywhere, and the standard library has none.
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{signal} {id}")])
            .status()
            .unwrap();
        assert!(sent.success(), "kill -{signal} {id}: {sent}");
    }

    /// Panics with the end of its log when the process has ended by itself.
    #[track_caller]
    pub(crate) fn assert_running(&mut self) {
        let ended = self
            .process
            .as_mut()
            .map(|process| process.try_wait().unwrap());
        match ended {
            Some(None) => {}
            Some(Some(status)) => panic!(
                "a store ended by itself ({status}): {:?}",
                self.log().lines().last()
            ),
            None => panic!("the store was not started"),
        }
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let process = self.process.as_mut().expect("the store runs");
        let status = eventually(limit, "the process ends by itself", async || {
            process.try_wait().unwrap().ok_or_else(String::new)
        })
        .await;
        self.process = None;
        status
    }

    /// Runs the program with these arguments until it ends by itself.
    pub(crate) async fn run_to_exit(args: &[String], limit: Duration) -> Exit {
        let mut process = server(args)
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
}

/// The program, without what this process's environment would configure.
fn server(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdb-server"));
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLAREDB_"))
    {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}
