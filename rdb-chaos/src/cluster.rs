//! Three stores, what they stand on, and what they say of themselves.
//!
//! Owns the order in which things are made and taken down: processes end before their disks and
//! networks do. Stores are counted from 0 here; store `i` has the id `i + 1`. Knows nothing of faults.

use crate::ChaosError;
use crate::disks::Disks;
use crate::load::LoadOptions;
use crate::network::{self, Network};
use crate::node::Node;
use crate::place::{KEPT, Place};
use crate::registers::FlareDb;
use crate::wait::eventually;
use crate::{http, place};
use rdb_client::{Client, ClientOptions, RetryPolicy};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Stores of a cluster.
pub const STORES: usize = 3;
/// The region that holds the data of clients.
pub const DATA: u64 = 2;
/// Far beyond what a start needs on a busy machine.
pub const READY: Duration = Duration::from_secs(60);
/// For one question to one store.
const ASK: Duration = Duration::from_secs(3);

/// Where libfaketime is, by architecture.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The library that makes a process see another time, where this machine has it.
pub fn faketime() -> Option<PathBuf> {
    let mut places = FAKETIME.iter().map(PathBuf::from);
    places.find(|path| path.exists())
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The `rdb-server` to run.
    pub program: PathBuf,
    /// Where its directory is made.
    pub parent: PathBuf,
    /// Which network.
    pub network: network::Kind,
}

/// A cluster. Fields are dropped in this order: processes, disks, network, directory.
pub struct Cluster {
    nodes: Vec<Node>,
    disks: Result<Disks, String>,
    network: Network,
    place: Place,
    faketime: Option<PathBuf>,
    clients: Vec<Client>,
    notes: Vec<String>,
}

impl Cluster {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub async fn start(options: &ClusterOptions) -> Result<Cluster, ChaosError> {
        let place = Place::make(&options.parent)?;
        let dir = place.path();
        let args = ["--log-level", "info"];
        let (network, mut nodes, why_not) =
            Network::make(options.network, &options.program, dir, STORES, &args).await?;
        let mounts: Vec<PathBuf> = (1..=STORES)
            .map(|id| dir.join(format!("disk-{id}")))
            .collect();
        let disks = Disks::mount(&mounts);
        // A store that loses its harness ends with it, also when that is killed with -9.
        let leash = ["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned);
        let leashed = place::command("setpriv --pdeathsig KILL -- true").is_ok();
        for (store, node) in nodes.iter_mut().enumerate() {
            if disks.is_ok() {
                node.set_data_dir(mounts[store].join("data"));
            }
            let mut wrapper = network.wrapper(store);
            if leashed {
                wrapper.extend(leash.clone());
            }
            node.set_wrapper(wrapper);
        }
        let mut clients = Vec::new();
        for node in &nodes {
            let options = ClientOptions {
                request_timeout: ASK,
                // Who asks wants this answer, and asks again by themselves.
                retry: RetryPolicy {
                    max_attempts: Some(1),
                    ..RetryPolicy::default()
                },
                ..ClientOptions::new([node.addr().to_string()])
            };
            let client = Client::new(options);
            clients.push(client.map_err(|error| ChaosError::because("no client", error))?);
        }
        let mut notes = vec![format!("network: {}", network.name())];
        notes.extend(why_not.map(|why| format!("no network namespaces: {why}")));
        notes.push(match &disks {
            Ok(disks) => format!("disks: {}", disks.kind()),
            Err(why) => format!("disks: the machine's ({why})"),
        });
        let faketime = faketime();
        let mut cluster = Cluster {
            nodes,
            disks,
            network,
            place,
            faketime,
            clients,
            notes,
        };
        for store in 0..STORES {
            cluster.launch(store)?;
        }
        cluster.all_ready().await?;
        Ok(cluster)
    }

    /// What it stands on, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Its directory: logs, data, disks.
    pub fn dir(&self) -> &Path {
        self.place.path()
    }

    /// The directory stays when the cluster ends, with this reason in it.
    pub fn keep(&mut self, why: &str) {
        self.place.keep();
        // The reader of the output has it, too.
        let _ = fs::write(self.dir().join(KEPT), format!("{why}\n"));
    }

    /// A store's process.
    pub fn node(&self, store: usize) -> &Node {
        &self.nodes[store]
    }

    /// A store's process.
    pub fn node_mut(&mut self, store: usize) -> &mut Node {
        &mut self.nodes[store]
    }

    /// How the stores reach each other.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The disks that can be filled, or why there are none.
    ///
    /// # Errors
    ///
    /// Why there are none.
    pub fn disks(&self) -> Result<&Disks, &str> {
        self.disks.as_ref().map_err(String::as_str)
    }

    /// The library that shifts clocks, where it is installed.
    pub fn faketime(&self) -> Option<&Path> {
        self.faketime.as_deref()
    }

    /// Where clients dial.
    pub fn endpoints(&self) -> Vec<String> {
        let addrs = self.nodes.iter().map(|node| node.addr().to_string());
        addrs.collect()
    }

    /// A client that knows one store, never leaves it and asks once.
    pub fn client_of(&self, store: usize) -> &Client {
        &self.clients[store]
    }

    /// A client of each store alone, that reads linearizably.
    ///
    /// # Errors
    ///
    /// When the options are wrong.
    pub fn readers(&self, options: &LoadOptions) -> Result<Vec<FlareDb>, ChaosError> {
        let endpoints = self.endpoints().into_iter();
        endpoints
            .map(|endpoint| FlareDb::new(vec![endpoint], options))
            .collect()
    }

    /// Starts a store's process. Does not wait.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch(&mut self, store: usize) -> Result<(), ChaosError> {
        self.nodes[store].launch()
    }

    /// kill -9 of several at the same moment, and waits until they are gone.
    pub fn kill(&mut self, stores: &[usize]) {
        for store in stores {
            self.nodes[*store].start_killing();
        }
        for store in stores {
            self.nodes[*store].kill();
        }
    }

    /// Starts a store unless it runs, and waits until it serves.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn revive(&mut self, store: usize) -> Result<(), ChaosError> {
        if self.nodes[store].ended()?.is_some() || !self.nodes[store].is_running() {
            self.launch(store)?;
        }
        self.ready(store).await
    }

    /// Waits until a store can serve all that it should.
    ///
    /// # Errors
    ///
    /// When it does not within [`READY`], or ends.
    pub async fn ready(&mut self, store: usize) -> Result<(), ChaosError> {
        let node = &mut self.nodes[store];
        let addr = node.http_addr();
        let ended = &mut None;
        let what = format!("store {} is ready", store + 1);
        let ready = eventually(READY, &what, async || {
            match node.ended() {
                Ok(None) if node.is_running() => {}
                _ => {
                    *ended = Some(node.log_since_start().lines().last().map(str::to_owned));
                    return Ok(());
                }
            }
            let answer = http::get(addr, "/readyz?verbose").await?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(answer.body)
            }
        });
        ready.await?;
        match ended.take() {
            None => Ok(()),
            Some(said) => Err(ChaosError::Broken(format!(
                "store {} ended by itself; the last it said: {}",
                store + 1,
                said.unwrap_or_else(|| "nothing".to_owned())
            ))),
        }
    }

    /// Waits until every store can.
    ///
    /// # Errors
    ///
    /// When one does not.
    pub async fn all_ready(&mut self) -> Result<(), ChaosError> {
        for store in 0..STORES {
            self.ready(store).await?;
        }
        Ok(())
    }

    /// What a store says of its replica of the data region: term, leader's id, applied index, digests.
    async fn report(&self, store: usize) -> Result<Report, String> {
        let status = self.clients[store]
            .cluster_status()
            .await
            .map_err(|error| error.to_string())?;
        let id = store as u32 + 1;
        let own = status.stores.into_iter().filter_map(|it| it.status);
        let own = own
            .filter(|it| it.member.as_ref().is_some_and(|it| it.store_id == id))
            .flat_map(|it| it.regions)
            .find(|it| it.region_id == DATA);
        let own = own.ok_or_else(|| format!("store {id} has no replica yet"))?;
        let digests = own.namespaces.iter();
        let mut digests: Vec<_> = digests
            .map(|it| (it.namespace_id, it.digest.to_vec(), it.keys))
            .collect();
        digests.sort();
        Ok(Report {
            leads: own.leader == id && own.quorum,
            term: own.term,
            applied: own.applied_index,
            digests,
        })
    }

    /// The store that leads the data region and has a quorum; waits until there is one.
    ///
    /// # Errors
    ///
    /// When nobody leads within [`READY`].
    pub async fn leader(&self) -> Result<usize, ChaosError> {
        eventually(READY, "a store leads and has a quorum", async || {
            let asked = (0..STORES).filter(|store| self.nodes[*store].is_running());
            let asked = asked.map(async |store| (store, self.report(store).await));
            let reports = futures::future::join_all(asked).await;
            let leads = reports.iter().filter_map(|(store, report)| {
                let report = report.as_ref().ok()?;
                report.leads.then_some((report.term, *store))
            });
            leads
                .max()
                .map(|(_, store)| store)
                .ok_or_else(|| format!("{reports:?}"))
        })
        .await
    }

    /// Waits until all replicas have applied the same, and judges whether they then hold the same. Nobody
    /// writes meanwhile.
    ///
    /// # Errors
    ///
    /// When they do not catch up within [`READY`], or differ.
    pub async fn replicas_agree(&self) -> Result<String, ChaosError> {
        let reports = eventually(READY, "all replicas have applied the same", async || {
            let asked = (0..STORES).map(|store| self.report(store));
            let reports = futures::future::try_join_all(asked).await?;
            let applied: Vec<u64> = reports.iter().map(|report| report.applied).collect();
            if applied.iter().all(|index| *index == applied[0]) {
                Ok(reports)
            } else {
                Err(format!("applied {applied:?}"))
            }
        })
        .await?;
        let first = &reports[0];
        let keys: u64 = first.digests.iter().map(|(_, _, keys)| keys).sum();
        if reports.iter().any(|report| report.digests != first.digests) {
            return Err(ChaosError::Broken(format!(
                "the replicas have applied the same and hold different data: {reports:?}"
            )));
        }
        Ok(format!(
            "equal digests at index {} ({keys} keys)",
            first.applied
        ))
    }
}

/// What a store says of its replica.
#[derive(Debug)]
struct Report {
    leads: bool,
    term: u64,
    applied: u64,
    /// Of each namespace: its id, its digest, its keys.
    digests: Vec<(u32, Vec<u8>, u64)>,
}
