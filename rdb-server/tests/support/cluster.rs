//! A cluster of real `rdb-server` processes on this machine.
//!
//! Owns the stores as a whole: starting, stopping and killing them, and what they say of themselves.
//! One process is [`super::process`]. Stores are counted from 0 here; store `i` has the id `i + 1`.
//!
//! Invariants: every process is killed when the cluster is dropped; when the test is failing by then,
//! the end of every store's log is printed.

use super::http;
use super::process::{Node, server};
use super::wait::eventually;
use rdb_chaos::network::mesh::{self, Mesh};
use rdb_client::{Client, ClientOptions};
use rdb_proto::admin::admin_client::AdminClient;
use rdb_proto::{admin, raft};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;
use tempfile::TempDir;

/// Far beyond what a start needs on a busy machine.
pub(crate) const START: Duration = Duration::from_secs(30);
/// Lines of each log that a failing test shows.
const SHOWN_LINES: usize = 60;

/// The region that holds the cluster's tables, and the first one that holds data.
pub(crate) const META: u64 = 1;
pub(crate) const DATA: u64 = 2;

/// For tests that assert that nobody is elected: a machine that is busy elsewhere may starve a store for
/// longer than the default timeouts.
pub(crate) const SLOW_ELECTIONS: [&str; 4] =
    ["--election-min", "800ms", "--election-max", "1600ms"];

/// A cluster.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    mesh: Option<Mesh>,
    dir: TempDir,
}

impl Cluster {
    /// `count` stores with these further arguments, ready to serve.
    pub(crate) async fn start(count: usize, args: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(count, args);
        cluster.launch_all().await;
        cluster
    }

    /// As [`Cluster::start`], with links that can be cut.
    pub(crate) async fn start_meshed(count: usize, args: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(count, args);
        let mesh = mesh::between(&mut cluster.nodes).await.unwrap();
        cluster.mesh = Some(mesh);
        cluster.launch_all().await;
        cluster
    }

    /// Everything but the processes.
    pub(crate) fn prepare(count: usize, args: &[&str]) -> Cluster {
        let dir = tempfile::Builder::new()
            .prefix("flaredb-test-")
            .tempdir()
            .unwrap();
        let mut nodes: Vec<Node> = (0..count)
            .map(|store| Node::new(server(), dir.path(), store, args).unwrap())
            .collect();
        let addrs: Vec<SocketAddr> = nodes.iter().map(|node| node.addr()).collect();
        if count > 1 {
            for node in &mut nodes {
                node.set_peers(&addrs);
            }
        }
        Cluster {
            nodes,
            mesh: None,
            dir,
        }
    }

    async fn launch_all(&mut self) {
        for store in 0..self.nodes.len() {
            self.launch(store);
        }
        self.wait_all_ready().await;
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A place for a test's own files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn mesh(&self) -> &Mesh {
        self.mesh.as_ref().expect("started with start_meshed")
    }

    pub(crate) fn node(&self, store: usize) -> &Node {
        &self.nodes[store]
    }

    pub(crate) fn node_mut(&mut self, store: usize) -> &mut Node {
        &mut self.nodes[store]
    }

    pub(crate) fn addr(&self, store: usize) -> SocketAddr {
        self.nodes[store].addr()
    }

    pub(crate) fn http_addr(&self, store: usize) -> SocketAddr {
        self.nodes[store].http_addr()
    }

    /// Where clients dial, the given store first.
    pub(crate) fn endpoints_from(&self, first: usize) -> Vec<String> {
        (0..self.len())
            .map(|turn| self.addr((first + turn) % self.len()).to_string())
            .collect()
    }

    /// A client of the whole cluster.
    pub(crate) fn client(&self) -> Client {
        Client::new(ClientOptions::new(self.endpoints_from(0))).unwrap()
    }

    /// Starts a store's process. Does not wait.
    pub(crate) fn launch(&mut self, store: usize) {
        self.nodes[store].launch().unwrap();
    }

    /// kill -9, and waits until the process is gone.
    pub(crate) fn kill(&mut self, store: usize) {
        self.nodes[store].kill();
    }

    /// kill -9 of several at the same moment.
    pub(crate) fn kill_all(&mut self, stores: &[usize]) {
        for store in stores {
            self.nodes[*store].start_killing();
        }
        for store in stores {
            self.nodes[*store].kill();
        }
    }

    /// SIGTERM, and waits until the process has left by itself.
    pub(crate) async fn stop(&mut self, store: usize) -> ExitStatus {
        self.nodes[store].signal("TERM").unwrap();
        let exit = self.nodes[store].wait_exit(Duration::from_secs(15));
        exit.await.unwrap()
    }

    /// Starts a store that was killed or stopped, and waits until it serves.
    pub(crate) async fn restart(&mut self, store: usize) {
        self.launch(store);
        self.wait_ready(store).await;
    }

    /// SIGSTOP: the process stands still, its connections stay open.
    pub(crate) fn pause(&self, store: usize) {
        self.nodes[store].signal("STOP").unwrap();
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, store: usize) {
        self.nodes[store].signal("CONT").unwrap();
    }

    pub(crate) fn is_running(&self, store: usize) -> bool {
        self.nodes[store].is_running()
    }

    /// Waits until a store can serve all that it should.
    pub(crate) async fn wait_ready(&mut self, store: usize) {
        let http = self.http_addr(store);
        let node = &mut self.nodes[store];
        eventually(
            START,
            &format!("store {} is ready", store + 1),
            async || {
                node.check_running().unwrap();
                let answer = http::get(http, "/readyz?verbose").await?;
                if answer.status == 200 {
                    Ok(())
                } else {
                    Err(answer.body)
                }
            },
        )
        .await;
    }

    /// Waits until all stores are ready and know each other.
    pub(crate) async fn wait_all_ready(&mut self) {
        for store in 0..self.len() {
            self.wait_ready(store).await;
        }
        for store in 0..self.len() {
            eventually(
                START,
                &format!("store {} sees all stores", store + 1),
                async || {
                    let status = self.cluster_status(store).await?;
                    let reachable = status
                        .stores
                        .iter()
                        .filter(|summary| summary.reachable)
                        .count();
                    if reachable == self.len() {
                        Ok(())
                    } else {
                        Err(format!("it reaches {reachable}"))
                    }
                },
            )
            .await;
        }
    }

    /// What a store says of the whole cluster.
    pub(crate) async fn cluster_status(
        &self,
        store: usize,
    ) -> Result<admin::ClusterStatusResponse, String> {
        let mut client = AdminClient::new(super::calls::channel(self.addr(store)).await);
        let asked = client.cluster_status(super::calls::timed(
            admin::ClusterStatusRequest {},
            Duration::from_secs(4),
        ));
        asked
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| status.to_string())
    }

    /// What a store says of itself.
    pub(crate) async fn status(&self, store: usize) -> Result<raft::StoreStatus, String> {
        let id = store as u32 + 1;
        let whole = self.cluster_status(store).await?;
        let own = whole
            .stores
            .into_iter()
            .filter_map(|summary| summary.status);
        own.into_iter()
            .find(|status| {
                status
                    .member
                    .as_ref()
                    .is_some_and(|member| member.store_id == id)
            })
            .ok_or_else(|| format!("store {id} does not know itself yet"))
    }

    /// What a store says of its replica of a region.
    pub(crate) async fn report(
        &self,
        store: usize,
        region: u64,
    ) -> Result<raft::RegionReport, String> {
        let status = self.status(store).await?;
        status
            .regions
            .into_iter()
            .find(|report| report.region_id == region)
            .ok_or_else(|| format!("store {} has no region {region}", store + 1))
    }

    /// The leader of a region with a quorum; waits until there is one.
    pub(crate) async fn leader_of(&self, region: u64) -> usize {
        self.leader_among(region, &(0..self.len()).collect::<Vec<_>>())
            .await
    }

    /// As [`Cluster::leader_of`], asking only these stores.
    pub(crate) async fn leader_among(&self, region: u64, stores: &[usize]) -> usize {
        eventually(
            START,
            &format!("region {region} has a leader with a quorum"),
            async || {
                let asked = stores
                    .iter()
                    .filter(|store| self.is_running(**store))
                    .map(|store| async move { (*store, self.report(*store, region).await) });
                let reports = futures::future::join_all(asked).await;
                let leading = reports.iter().filter_map(|(store, report)| {
                    let report = report.as_ref().ok()?;
                    (report.leader == *store as u32 + 1 && report.quorum)
                        .then_some((report.term, *store))
                });
                leading
                    .max()
                    .map(|(_, store)| store)
                    .ok_or_else(|| format!("{reports:?}"))
            },
        )
        .await
    }

    /// Any store but these.
    pub(crate) fn other_than(&self, stores: &[usize]) -> usize {
        (0..self.len())
            .find(|store| !stores.contains(store))
            .expect("a store is left")
    }

    /// Makes a store the leader of a region.
    pub(crate) async fn move_leader(&self, region: u64, to: usize) {
        eventually(
            START,
            &format!("store {} leads region {region}", to + 1),
            async || {
                let leader = self.leader_of(region).await;
                if leader == to {
                    return Ok(());
                }
                let mut client = AdminClient::new(super::calls::channel(self.addr(leader)).await);
                let request = admin::TransferLeaderRequest {
                    region_id: region,
                    to_store: to as u32 + 1,
                };
                match client
                    .transfer_leader(super::calls::timed(request, Duration::from_secs(5)))
                    .await
                {
                    Ok(_) => Err(format!("store {} was asked to hand over", leader + 1)),
                    Err(status) => Err(status.to_string()),
                }
            },
        )
        .await;
    }

    /// All that a store logged since its first start.
    pub(crate) fn log(&self, store: usize) -> String {
        self.nodes[store].log()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            for (store, node) in self.nodes.iter().enumerate() {
                let log = node.log();
                let lines: Vec<&str> = log.lines().collect();
                let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
                eprintln!(
                    "---- the end of the log of store {} ({} lines in all)\n{}",
                    store + 1,
                    lines.len(),
                    shown.join("\n")
                );
            }
        }
    }
}
