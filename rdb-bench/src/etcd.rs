//! Three `etcd` processes on loopback, reached through their gRPC interface: at the leader for what is
//! measured, at every node for what is judged.
//!
//! Owns how they are started, who leads, how many connections share the callers, and the calls.

use crate::BenchError;
use crate::process::{Cluster, NODES, Port};
use crate::target::{Caller, Kind, Target};
use bytes::Bytes;
use proto::kv_client::KvClient;
use proto::maintenance_client::MaintenanceClient;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    dead_code,
    reason = "generated; documented in the proto file"
)]
mod proto {
    tonic::include_proto!("etcdserverpb");
}

/// How long the nodes may take to be ready.
const START: Duration = Duration::from_secs(30);

/// Callers that share a connection. One connection is served by one goroutine on etcd's side, so many
/// callers on one would measure that; etcd's own benchmark uses several, too.
const CALLERS_PER_CONNECTION: usize = 16;

/// The cluster.
pub struct Etcd {
    cluster: Cluster,
    endpoints: Vec<String>,
    leader: String,
    version: String,
}

/// A caller.
#[derive(Clone)]
pub struct EtcdCaller(KvClient<Channel>);

impl Etcd {
    /// Starts it, and waits until it takes writes.
    pub async fn start(program: &Path) -> Result<Etcd, BenchError> {
        let ports = (0..2 * NODES)
            .map(|_| Port::reserve())
            .collect::<Result<Vec<_>, _>>()?;
        let urls: Vec<String> = ports
            .iter()
            .map(|port| format!("http://{}", port.addr()))
            .collect();
        let (client_urls, peer_urls) = urls.split_at(NODES);
        let members = peer_urls
            .iter()
            .enumerate()
            .map(|(node, url)| format!("n{node}={url}"));
        let members = members.collect::<Vec<_>>().join(",");
        let mut cluster = Cluster::new("etcd", ports)?;
        for node in 0..NODES {
            let name = format!("n{node}");
            let data_dir = cluster.next_dir().display().to_string();
            let args = [
                ("--name", name.as_str()),
                ("--data-dir", &data_dir),
                ("--listen-client-urls", &client_urls[node]),
                ("--advertise-client-urls", &client_urls[node]),
                ("--listen-peer-urls", &peer_urls[node]),
                ("--initial-advertise-peer-urls", &peer_urls[node]),
                ("--initial-cluster", &members),
                ("--initial-cluster-state", "new"),
                ("--initial-cluster-token", "flaredb-bench"),
                ("--log-level", "error"),
            ];
            let args: Vec<String> = args
                .iter()
                .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()])
                .collect();
            cluster.start(program, &args)?;
        }
        let endpoints = client_urls.to_vec();
        let mut started = Etcd {
            cluster,
            endpoints,
            leader: String::new(),
            version: String::new(),
        };
        started.wait().await?;
        Ok(started)
    }

    /// A caller at each node, in the order of their numbers.
    pub async fn caller_at_each_node(&self) -> Result<Vec<EtcdCaller>, BenchError> {
        let mut callers = Vec::new();
        for endpoint in &self.endpoints {
            let channel = connect(endpoint)
                .await
                .map_err(|error| BenchError::because("cannot connect to etcd", error))?;
            callers.push(EtcdCaller(KvClient::new(channel)));
        }
        Ok(callers)
    }

    async fn wait(&mut self) -> Result<(), BenchError> {
        let give_up = Instant::now() + START;
        loop {
            self.cluster.check()?;
            let error = match self.find_leader().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() > give_up {
                let what = format!(
                    "etcd takes no writes within {} s ({})",
                    START.as_secs(),
                    self.cluster.last_words(0)
                );
                return Err(BenchError::because(what, error));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Finds who leads, and that it takes a write.
    async fn find_leader(&mut self) -> Result<(), String> {
        for endpoint in &self.endpoints {
            let channel = connect(endpoint).await?;
            let status = MaintenanceClient::new(channel.clone())
                .status(proto::StatusRequest {})
                .await;
            let status = status
                .map_err(|status| status.message().to_owned())?
                .into_inner();
            let member = status.header.map_or(0, |header| header.member_id);
            if member != 0 && member == status.leader {
                EtcdCaller(KvClient::new(channel))
                    .put(Bytes::from_static(b"ready"), Bytes::from_static(b"yes"))
                    .await?;
                self.leader.clone_from(endpoint);
                self.version = status.version;
                return Ok(());
            }
        }
        Err("no node leads yet".to_owned())
    }
}

async fn connect(endpoint: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(10));
    endpoint.connect().await.map_err(|error| error.to_string())
}

/// Where `etcd` is: the first on the PATH, if there is one.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|program| program.is_file())
}

impl Target for Etcd {
    type Caller = EtcdCaller;

    fn kind(&self) -> Kind {
        Kind::Etcd
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    async fn callers(&self, count: usize) -> Result<Vec<EtcdCaller>, BenchError> {
        let mut clients = Vec::new();
        for _ in 0..count.div_ceil(CALLERS_PER_CONNECTION) {
            let channel = connect(&self.leader)
                .await
                .map_err(|error| BenchError::because("cannot connect to etcd", error))?;
            clients.push(KvClient::new(channel));
        }
        Ok((0..count)
            .map(|caller| EtcdCaller(clients[caller % clients.len()].clone()))
            .collect())
    }

    fn resident_bytes(&self) -> Vec<u64> {
        self.cluster.resident_bytes()
    }
}

impl EtcdCaller {
    /// Reads linearizably: the revision of the last change, and the value; `None`: the key is absent.
    pub async fn read(&self, key: Bytes) -> Result<Option<(i64, Bytes)>, String> {
        let request = proto::RangeRequest {
            key,
            ..Default::default()
        };
        let answer = self.0.clone().range(request).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let first = answer.kvs.into_iter().next();
        Ok(first.map(|pair| (pair.mod_revision, pair.value)))
    }

    /// Removes a key; an absent one is no error.
    pub async fn delete(&self, key: Bytes) -> Result<(), String> {
        let request = proto::DeleteRangeRequest { key };
        let answer = self.0.clone().delete_range(request).await;
        answer.map(drop).map_err(|status| status.to_string())
    }

    /// Writes if the last change of the key is this revision (0: only while it is absent); whether it
    /// was.
    pub async fn swap(&self, key: Bytes, revision: i64, value: Bytes) -> Result<bool, String> {
        use proto::compare::{CompareResult, CompareTarget, TargetUnion};
        use proto::request_op::Request;
        let request = proto::TxnRequest {
            compare: vec![proto::Compare {
                result: CompareResult::Equal as i32,
                target: CompareTarget::Mod as i32,
                key: key.clone(),
                target_union: Some(TargetUnion::ModRevision(revision)),
            }],
            success: vec![proto::RequestOp {
                request: Some(Request::RequestPut(proto::PutRequest { key, value })),
            }],
        };
        let answer = self.0.clone().txn(request).await;
        let answer = answer.map_err(|status| status.to_string())?;
        Ok(answer.into_inner().succeeded)
    }

    /// All keys from `key` to before `range_end`, linearizably.
    pub async fn keys(&self, key: Bytes, range_end: Bytes) -> Result<Vec<Bytes>, String> {
        let request = proto::RangeRequest {
            key,
            range_end,
            keys_only: true,
        };
        let answer = self.0.clone().range(request).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        Ok(answer.kvs.into_iter().map(|pair| pair.key).collect())
    }
}

impl Caller for EtcdCaller {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String> {
        let answer = self.0.clone().put(proto::PutRequest { key, value }).await;
        answer.map(drop).map_err(|status| status.to_string())
    }

    async fn get(&self, key: Bytes) -> Result<usize, String> {
        let found = self.read(key).await?;
        found
            .map(|(_, value)| value.len())
            .ok_or_else(|| "a loaded key is not there".to_owned())
    }
}
