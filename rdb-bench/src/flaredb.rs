//! Three `rdb-server` processes on loopback, reached through `rdb-client` as a program would.
//!
//! Owns how they are started and when they are ready.

use crate::BenchError;
use crate::process::{Cluster, NODES, Port};
use crate::target::{Caller, Kind, Target};
use bytes::Bytes;
use rdb_client::{Client, ClientOptions, PutOptions, ReadOptions};
use rdb_types::{Durability, Mode, Policies};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

/// The namespace of everything; it is strong, and exists from the start.
pub(crate) const NAMESPACE: &str = "default";

/// How long the stores may take to be ready.
const START: Duration = Duration::from_secs(30);

/// The cluster.
pub struct FlareDb {
    cluster: Cluster,
    client: Client,
    http: Vec<String>,
    version: String,
}

/// A namespace of it.
pub struct FlareNamespace<'a> {
    whole: &'a FlareDb,
    kind: Kind,
}

/// A caller.
#[derive(Clone)]
pub struct FlareCaller {
    client: Client,
    namespace: &'static str,
    read: fn() -> ReadOptions,
}

/// What a kind of target is called in the cluster.
fn namespace_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Eventual => "eventual",
        Kind::Relaxed => "relaxed",
        Kind::FlareDb | Kind::Etcd | Kind::Redis => NAMESPACE,
    }
}

impl FlareDb {
    /// Creates the namespace of a kind, and waits until it takes writes.
    ///
    /// # Errors
    /// It does not.
    pub async fn namespace(&self, kind: Kind) -> Result<FlareNamespace<'_>, BenchError> {
        let namespace = namespace_of(kind);
        if namespace != NAMESPACE {
            let policies = Policies {
                durability: if kind == Kind::Relaxed {
                    Durability::Relaxed
                } else {
                    Durability::Sync
                },
                ..Policies::default()
            };
            self.client
                .create_namespace(namespace, Some(Mode::Eventual), Some(policies))
                .await
                .map_err(|error| BenchError::because("no eventual namespace", error))?;
        }
        let put = self
            .client
            .put(namespace, "ready", "yes", PutOptions::default());
        put.await
            .map_err(|error| BenchError::because(format!("{kind} takes no writes"), error))?;
        Ok(FlareNamespace { whole: self, kind })
    }

    /// What a store's HTTP port says at `/metrics`, of each store.
    ///
    /// # Errors
    /// One does not answer.
    pub async fn metrics(&self) -> Result<Vec<String>, BenchError> {
        let mut texts = Vec::new();
        for addr in &self.http {
            texts.push(
                metrics_of(addr).await.map_err(|error| {
                    BenchError::because(format!("no metrics from {addr}"), error)
                })?,
            );
        }
        Ok(texts)
    }

    /// The client that its callers share.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Its processes; store `n` is number `n - 1`.
    pub(crate) fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Starts it, and waits until it takes writes. `batch`: callers share the batch stream (the
    /// client's default), or each call is a plain gRPC call.
    pub async fn start(program: &Path, batch: bool) -> Result<FlareDb, BenchError> {
        let ports = (0..2 * NODES)
            .map(|_| Port::reserve())
            .collect::<Result<Vec<_>, _>>()?;
        let addrs: Vec<String> = ports.iter().map(|port| port.addr().to_string()).collect();
        let (grpc, http) = addrs.split_at(NODES);
        let mut cluster = Cluster::new("FlareDB", ports)?;
        for node in 0..NODES {
            let mut args = vec![
                "--store-id".to_owned(),
                (node + 1).to_string(),
                "--addr".to_owned(),
                grpc[node].clone(),
                "--http-addr".to_owned(),
                http[node].clone(),
                "--data-dir".to_owned(),
                cluster.next_dir().display().to_string(),
                "--log-level".to_owned(),
                "warn".to_owned(),
            ];
            for (peer, addr) in grpc.iter().enumerate() {
                args.extend(["--peer".to_owned(), format!("{}={addr}", peer + 1)]);
            }
            cluster.start(program, &args)?;
        }
        let client = Client::new(ClientOptions {
            batch,
            ..ClientOptions::new(grpc.to_vec())
        });
        let client = client.map_err(|error| BenchError::because("no client for FlareDB", error))?;
        let mut started = FlareDb {
            cluster,
            client,
            http: http.to_vec(),
            version: String::new(),
        };
        started.wait().await?;
        Ok(started)
    }

    async fn wait(&mut self) -> Result<(), BenchError> {
        let give_up = Instant::now() + START;
        loop {
            self.cluster.check()?;
            let options = PutOptions {
                timeout: Some(Duration::from_secs(1)),
                ..PutOptions::default()
            };
            let error = match self.client.put(NAMESPACE, "ready", "yes", options).await {
                Ok(_) => break,
                Err(error) => error,
            };
            if Instant::now() > give_up {
                let what = format!(
                    "FlareDB takes no writes within {} s ({})",
                    START.as_secs(),
                    self.cluster.last_words(0)
                );
                return Err(BenchError::because(what, error));
            }
            sleep(Duration::from_millis(50)).await;
        }
        let status = self
            .client
            .cluster_status()
            .await
            .map_err(|error| BenchError::because("FlareDB's status", error))?;
        let versions = status
            .stores
            .into_iter()
            .filter_map(|store| store.status)
            .map(|status| status.version);
        self.version = versions.into_iter().next().unwrap_or_default();
        Ok(())
    }
}

/// Where `rdb-server` is: as given, else beside this program.
pub fn find_server(given: Option<&Path>) -> Result<PathBuf, BenchError> {
    let program = match given {
        Some(given) => given.to_owned(),
        None => {
            let own = std::env::current_exe()
                .map_err(|error| BenchError::because("where this program is", error))?;
            own.with_file_name("rdb-server")
        }
    };
    if program.is_file() {
        return Ok(program);
    }
    let what = format!("there is no rdb-server at {}", program.display());
    Err(BenchError::because(
        what,
        "build it with `cargo build -p rdb-server`, or name it with --rdb-server",
    ))
}

/// One GET; the store closes the connection after its answer.
async fn metrics_of(addr: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

impl Target for FlareDb {
    type Caller = FlareCaller;

    fn kind(&self) -> Kind {
        Kind::FlareDb
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    async fn callers(&self, count: usize) -> Result<Vec<FlareCaller>, BenchError> {
        Ok(self.callers_of(Kind::FlareDb, count))
    }

    fn resident_bytes(&self) -> Vec<u64> {
        self.cluster.resident_bytes()
    }
}

impl FlareDb {
    fn callers_of(&self, kind: Kind, count: usize) -> Vec<FlareCaller> {
        let caller = FlareCaller {
            client: self.client.clone(),
            namespace: namespace_of(kind),
            read: if kind == Kind::FlareDb {
                ReadOptions::linearizable
            } else {
                ReadOptions::default
            },
        };
        vec![caller; count]
    }
}

impl Target for FlareNamespace<'_> {
    type Caller = FlareCaller;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn version(&self) -> String {
        self.whole.version.clone()
    }

    async fn callers(&self, count: usize) -> Result<Vec<FlareCaller>, BenchError> {
        Ok(self.whole.callers_of(self.kind, count))
    }

    fn resident_bytes(&self) -> Vec<u64> {
        self.whole.cluster.resident_bytes()
    }
}

impl Caller for FlareCaller {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String> {
        let put = self
            .client
            .put(self.namespace, key, value, PutOptions::default());
        put.await.map(drop).map_err(|error| error.to_string())
    }

    async fn get(&self, key: Bytes) -> Result<usize, String> {
        let answer = self
            .client
            .get(self.namespace, key, (self.read)())
            .await
            .map_err(|error| error.to_string())?;
        if answer.found {
            Ok(answer.value.len())
        } else {
            Err("a loaded key is not there".to_owned())
        }
    }
}
