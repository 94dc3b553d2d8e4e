//! Processes that the benchmark starts: their ports, their output, their memory, their end.
//!
//! Owns a directory for each cluster and every child in it.
//!
//! Invariants: a child never outlives its [`Cluster`], however the benchmark ends (a kill -9 of the
//! benchmark excepted); its ports are nobody else's while the cluster exists.

use crate::BenchError;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// Nodes of every cluster.
pub const NODES: usize = 3;

/// Lines of a child's output that are shown when it did not start.
const LAST_LINES: usize = 5;

/// A port of this machine that is held until this is dropped. The holder is bound and never listens;
/// a server that says SO_REUSEADDR, as both kinds do, can listen on it meanwhile.
pub struct Port {
    addr: SocketAddr,
    _holder: TcpSocket,
}

impl Port {
    /// A free one.
    pub fn reserve() -> Result<Port, BenchError> {
        let reserve = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            Ok(Port {
                addr: socket.local_addr()?,
                _holder: socket,
            })
        };
        reserve().map_err(|error: io::Error| BenchError::because("no free port", error))
    }

    /// Where it is.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// The processes of one cluster, and their directory.
pub struct Cluster {
    name: &'static str,
    dir: TempDir,
    nodes: Vec<Node>,
    _ports: Vec<Port>,
}

/// One of them, and how it is started.
struct Node {
    program: PathBuf,
    args: Vec<String>,
    child: Child,
    /// By us: that it does not run is no news.
    killed: bool,
}

impl Cluster {
    /// An empty cluster that holds these ports.
    pub fn new(name: &'static str, ports: Vec<Port>) -> Result<Cluster, BenchError> {
        let made = tempfile::Builder::new().prefix("flaredb-bench-").tempdir();
        let dir = made.map_err(|error| {
            BenchError::because(
                "cannot make a temporary directory (TMPDIR names another place)",
                error,
            )
        })?;
        Ok(Cluster {
            name,
            dir,
            nodes: Vec::new(),
            _ports: ports,
        })
    }

    /// The data directory of the next node.
    pub fn next_dir(&self) -> PathBuf {
        self.dir.path().join(format!("{}", self.nodes.len() + 1))
    }

    /// Starts the next node. What it prints goes to a file.
    pub fn start(&mut self, program: &Path, args: &[String]) -> Result<(), BenchError> {
        let child = self.spawn(self.nodes.len(), program, args)?;
        self.nodes.push(Node {
            program: program.to_owned(),
            args: args.to_vec(),
            child,
            killed: false,
        });
        Ok(())
    }

    /// Kills a node (counted from 0) as `kill -9` does, and waits until the system has buried it.
    pub fn kill(&mut self, number: usize) -> Result<(), BenchError> {
        let node = &mut self.nodes[number];
        node.killed = true;
        let killed = node.child.kill().and_then(|()| node.child.wait());
        killed
            .map(drop)
            .map_err(|error| BenchError::because("cannot kill a child", error))
    }

    /// Starts a node that was killed, as it was started before.
    pub fn restart(&mut self, number: usize) -> Result<(), BenchError> {
        let node = &self.nodes[number];
        let child = self.spawn(number, &node.program, &node.args)?;
        let node = &mut self.nodes[number];
        node.child = child;
        node.killed = false;
        Ok(())
    }

    fn spawn(&self, number: usize, program: &Path, args: &[String]) -> Result<Child, BenchError> {
        let spawn = || {
            let out = File::options()
                .append(true)
                .create(true)
                .open(self.log_path(number))?;
            Command::new(program)
                .args(args)
                .stdin(Stdio::null())
                .stdout(out.try_clone()?)
                .stderr(out)
                .spawn()
        };
        spawn().map_err(|error: io::Error| {
            BenchError::because(format!("cannot start {}", program.display()), error)
        })
    }

    /// An error if one of the processes has ended by itself, with the last it said.
    pub fn check(&mut self) -> Result<(), BenchError> {
        for number in 0..self.nodes.len() {
            if self.nodes[number].killed {
                continue;
            }
            let ended = self.nodes[number]
                .child
                .try_wait()
                .map_err(|error| BenchError::because("cannot watch a child", error))?;
            if let Some(status) = ended {
                let what = format!(
                    "node {} of {} ended by itself ({status})",
                    number + 1,
                    self.name
                );
                return Err(BenchError::because(what, self.last_words(number)));
            }
        }
        Ok(())
    }

    /// The last lines that a node wrote.
    pub fn last_words(&self, number: usize) -> String {
        let log = fs::read_to_string(self.log_path(number)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
        if last.is_empty() {
            "it said nothing".to_owned()
        } else {
            format!("it said\n  {last}")
        }
    }

    /// Resident memory of each node.
    pub fn resident_bytes(&self) -> Vec<u64> {
        self.nodes
            .iter()
            .filter_map(|node| resident_bytes(node.child.id()))
            .collect()
    }

    /// The process ids, for profilers.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.child.id()).collect()
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", number + 1))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Its data are thrown away: no need for an orderly end. It may have ended already.
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// VmRSS of a process; `None` where the system does not say.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    parse_resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_as_linux_writes_it() {
        let status = "Name:\tx\nVmPeak:\t  99999 kB\nVmRSS:\t   59336 kB\nThreads:\t9\n";
        assert_eq!(parse_resident(status), Some(59_336 * 1024));
        assert_eq!(parse_resident("Name:\tx\n"), None);
        assert_eq!(parse_resident("VmRSS:\t many kB\n"), None);
    }

    #[test]
    fn a_child_that_ends_is_noticed_and_quoted() {
        let mut cluster = Cluster::new("test", Vec::new()).unwrap();
        let args = ["-c".to_owned(), "echo out; echo why >&2; exit 3".to_owned()];
        cluster.start(Path::new("/bin/sh"), &args).unwrap();
        let error = loop {
            if let Err(error) = cluster.check() {
                break error.to_string();
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert!(
            error.contains("node 1 of test ended") && error.contains("why"),
            "{error}"
        );
        let missing = cluster
            .start(Path::new("/no/such/program"), &[])
            .unwrap_err();
        assert!(missing.to_string().contains("/no/such/program"));
    }

    #[test]
    fn a_killed_child_is_no_news_and_starts_again_as_before() {
        let mut cluster = Cluster::new("test", Vec::new()).unwrap();
        let args = ["-c".to_owned(), "echo here; exec sleep 60".to_owned()];
        cluster.start(Path::new("/bin/sh"), &args).unwrap();
        let first = cluster.pids()[0];
        cluster.kill(0).unwrap();
        assert_eq!(resident_bytes(first), None);
        cluster.check().unwrap();
        cluster.restart(0).unwrap();
        cluster.check().unwrap();
        assert_ne!(cluster.pids()[0], first);
    }

    #[test]
    fn no_child_outlives_its_cluster() {
        let mut cluster = Cluster::new("test", Vec::new()).unwrap();
        cluster
            .start(
                Path::new("/bin/sh"),
                &["-c".to_owned(), "sleep 60".to_owned()],
            )
            .unwrap();
        let pid = cluster.pids()[0];
        drop(cluster);
        assert_eq!(resident_bytes(pid), None);
    }
}
