//! One `rdb-server` process: its arguments, data directory and log, its life and its end.
//!
//! Owns everything about a single store that needs no other one. Knows nothing of clusters.
//!
//! Invariant: the process never outlives its [`Node`].

use crate::ChaosError;
use crate::ports::Port;
use crate::wait::eventually;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A store.
pub struct Node {
    program: PathBuf,
    addr: SocketAddr,
    http_addr: SocketAddr,
    /// Held for the node's whole life; none where it has a network of its own.
    _ports: Vec<Port>,
    data_dir: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    /// A command that becomes the program: `nsenter --net=...`.
    wrapper: Vec<String>,
    env: Vec<(String, String)>,
    process: Option<Child>,
    /// How long the log was when the process was started last.
    log_start: usize,
}

impl Node {
    /// Store `store` (counted from 0) of this program, on ports of 127.0.0.1, not started. Its files are
    /// in `dir`.
    ///
    /// # Errors
    ///
    /// When no port is free.
    pub fn new(
        program: &Path,
        dir: &Path,
        store: usize,
        args: &[&str],
    ) -> Result<Node, ChaosError> {
        let ports = vec![Port::take()?, Port::take()?];
        let (addr, http_addr) = (ports[0].addr(), ports[1].addr());
        let mut node = Node::at(program, dir, store, addr, http_addr, args);
        node._ports = ports;
        Ok(node)
    }

    /// As [`Node::new`], on these addresses, which are nobody else's.
    pub fn at(
        program: &Path,
        dir: &Path,
        store: usize,
        addr: SocketAddr,
        http_addr: SocketAddr,
        args: &[&str],
    ) -> Node {
        let data_dir = dir.join(format!("store-{}", store + 1));
        let own = [
            "--store-id".to_owned(),
            (store + 1).to_string(),
            "--addr".to_owned(),
            addr.to_string(),
            "--http-addr".to_owned(),
            http_addr.to_string(),
            "--data-dir".to_owned(),
            data_dir.display().to_string(),
        ];
        let given = args.iter().map(|arg| (*arg).to_owned());
        Node {
            program: program.to_owned(),
            addr,
            http_addr,
            _ports: Vec::new(),
            data_dir,
            log: dir.join(format!("store-{}.log", store + 1)),
            args: own.into_iter().chain(given).collect(),
            wrapper: Vec::new(),
            env: Vec::new(),
            process: None,
            log_start: 0,
        }
    }

    /// Where clients and stores dial.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where probes dial.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Whether it was started and not yet seen to end.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The first members, in the order of their ids.
    pub fn set_peers(&mut self, peers: &[SocketAddr]) {
        self.remove_flag("--peer");
        for (store, addr) in peers.iter().enumerate() {
            self.args
                .extend(["--peer".to_owned(), format!("{}={addr}", store + 1)]);
        }
    }

    /// Takes out every use of a flag that has a value.
    pub fn remove_flag(&mut self, flag: &str) {
        while let Some(at) = self.args.iter().position(|arg| arg == flag) {
            self.args.drain(at..(at + 2).min(self.args.len()));
        }
    }

    /// Gives a flag another value.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        self.remove_flag(flag);
        self.args.extend([flag.to_owned(), value.to_owned()]);
    }

    /// Adds arguments behind the others.
    pub fn add_args(&mut self, args: &[String]) {
        self.args.extend_from_slice(args);
    }

    /// All arguments.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// From the next start on, this command (which becomes the program) is in front.
    pub fn set_wrapper(&mut self, wrapper: Vec<String>) {
        self.wrapper = wrapper;
    }

    /// From the next start on, these variables are set.
    pub fn set_env(&mut self, env: Vec<(String, String)>) {
        self.env = env;
    }

    /// From the next start on, its data are here.
    pub fn set_data_dir(&mut self, data_dir: PathBuf) {
        self.set_flag("--data-dir", &data_dir.display().to_string());
        self.data_dir = data_dir;
    }

    /// Where its data are.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where its log is.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it wrote since its first start.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// What it wrote since it was started last.
    pub fn log_since_start(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// Starts it. Does not wait.
    ///
    /// # Errors
    ///
    /// When it runs already, or cannot be started.
    pub fn launch(&mut self) -> Result<(), ChaosError> {
        if self.process.is_some() {
            let what = format!("the store runs already: {:?}", self.args);
            return Err(ChaosError::Harness(what));
        }
        let spawn = || {
            let log = File::options().create(true).append(true).open(&self.log)?;
            let before = log.metadata()?.len() as usize;
            let process = self
                .command()
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            Ok((before, process))
        };
        let (before, process) = spawn().map_err(|error: std::io::Error| {
            ChaosError::because(format!("cannot start {}", self.program.display()), error)
        })?;
        self.log_start = before;
        self.process = Some(process);
        Ok(())
    }

    fn command(&self) -> Command {
        let mut words = self.wrapper.iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = clean(Path::new(first));
                command.args(words).arg(&self.program);
                command
            }
            None => clean(&self.program),
        };
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// kill -9, without waiting.
    pub fn start_killing(&mut self) {
        if let Some(process) = &mut self.process {
            // Fails only for a process that is gone.
            let _ = process.kill();
        }
    }

    /// kill -9, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Both fail only for a process that is gone.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends a signal, by the end of its name.
    ///
    /// # Errors
    ///
    /// When there is no process, or the signal cannot be sent.
    pub fn signal(&self, signal: &str) -> Result<(), ChaosError> {
        let Some(process) = &self.process else {
            let what = format!("cannot send {signal}: the store does not run");
            return Err(ChaosError::Harness(what));
        };
        let command = format!("kill -{signal} {}", process.id());
        // The shell's own `kill`: there is one everywhere, and the standard library has none.
        let sent = Command::new("sh").args(["-c", &command]).status();
        match sent {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(ChaosError::because(command, status)),
            Err(error) => Err(ChaosError::because(command, error)),
        }
    }

    /// How the process ended, if it has ended by itself since it was started.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ChaosError> {
        let Some(process) = &mut self.process else {
            return Ok(None);
        };
        let ended = process
            .try_wait()
            .map_err(|error| ChaosError::because("cannot watch a store", error))?;
        if ended.is_some() {
            self.process = None;
        }
        Ok(ended)
    }

    /// An error with the end of its log unless it runs.
    ///
    /// # Errors
    ///
    /// [`ChaosError::Broken`] when it ended by itself or was not started.
    pub fn check_running(&mut self) -> Result<(), ChaosError> {
        let ended = self.ended()?;
        match ended {
            None if self.process.is_some() => Ok(()),
            None => Err(ChaosError::Broken("the store was not started".to_owned())),
            Some(status) => Err(ChaosError::Broken(format!(
                "a store ended by itself ({status}): {:?}",
                self.log().lines().last()
            ))),
        }
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus, ChaosError> {
        eventually(limit, "the process ends by itself", async || {
            let ended = self.ended().map_err(|error| error.to_string())?;
            ended.ok_or_else(|| "it runs".to_owned())
        })
        .await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program, without what this process's environment would configure, and with nothing to read.
pub fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    let configured =
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLAREDB_"));
    for (name, _) in configured {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}
