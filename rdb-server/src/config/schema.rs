//! The configuration of a store as the rest of the server sees it, with its defaults.
//!
//! Owns: the typed sections and every default value. Does not know: files, variables, flags.
//!
//! Invariant: a `Config` that [`super::load`] returned holds only values that are legal by
//! themselves and together; one built by hand (tests, the demo) holds what its builder put there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::domain::{Durability, Mode};
use super::units::ByteSize;

/// Everything that can be configured about one store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// This store: who it is and where it lives.
    pub store: StoreConfig,
    /// The cluster that it belongs to.
    pub cluster: ClusterConfig,
    /// Modes and timeouts of the consistency promises.
    pub consistency: ConsistencyConfig,
    /// Timing and batching of consensus.
    pub raft: RaftConfig,
    /// Namespaces that this store declares, by name.
    pub namespaces: BTreeMap<String, NamespaceConfig>,
    /// The disk.
    pub storage: StorageConfig,
    /// Bounds on what clients may send and hold.
    pub limits: LimitsConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The id of this store, 1 to 1023; fixed for the life of a data directory.
    pub id: u16,
    /// Where gRPC (clients and other stores) is served.
    pub addr: SocketAddr,
    /// Where HTTP (metrics, probes) is served.
    pub http_addr: SocketAddr,
    /// `host:port` under which others reach this store, where that differs from `addr`.
    pub advertise_addr: Option<String>,
    /// Where the data live; made if it does not exist.
    pub data_dir: PathBuf,
    /// What keeps the data.
    pub engine: EngineKind,
    /// How long a store that was asked to end goes on serving while `/readyz` says that it leaves.
    pub shutdown_delay: Duration,
}

/// What keeps the data of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// On disk.
    Rocksdb,
    /// In memory, gone with the process: for tests.
    Memory,
}

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The name of the cluster, for logs and status pages.
    pub name: String,
    /// The first members: store id to `host:port`, as written; this store may be missing.
    /// [`Config::members`] completes it.
    pub peers: BTreeMap<u16, String>,
    /// For tests: where the keyspace is split into regions when the cluster is formed.
    pub bootstrap_split: Vec<SplitKey>,
}

/// A point in the global keyspace, written `NAMESPACE_ID/KEY`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SplitKey {
    /// The numeric id of the namespace.
    pub namespace_id: u32,
    /// The first user key of the right half; empty for the start of the namespace.
    pub key: Vec<u8>,
}

/// `[consistency]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsistencyConfig {
    /// The mode of namespaces that nobody declared.
    pub default_mode: Mode,
    /// How long a store may be without a leader that has a quorum before it says `NO_QUORUM`.
    pub quorum_timeout: Duration,
    /// The deadline of a call that brings none.
    pub request_timeout: Duration,
    /// How long a mode switch may wait for the stores to be ready for it.
    pub switch_timeout: Duration,
    /// How long a switch waits for a silent store once writes are refused.
    pub seal_timeout: Duration,
    /// After this long a store that has not applied the cluster's mode is reported.
    pub mismatch_after: Duration,
    /// How far clocks of stores may be apart.
    pub max_clock_skew: Duration,
    /// How long the id of a write is remembered, so that a repeat is answered and not applied.
    pub request_id_retention: Duration,
    /// Whether the first write to an unknown namespace creates it.
    pub auto_create: bool,
}

/// `[raft]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftConfig {
    /// How often a leader shows that it is alive.
    pub heartbeat: Duration,
    /// The shortest wait of a follower before it campaigns.
    pub election_min: Duration,
    /// The longest wait of a follower before it campaigns.
    pub election_max: Duration,
    /// Log entries between two snapshots.
    pub snapshot_after: u64,
    /// Writes that share one log entry at most.
    pub max_batch: u64,
}

/// `[namespaces.NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// The mode that this store declares; `None` declares none (see [`Config::mode_of`]).
    pub mode: Option<Mode>,
    /// When an eventual write is acknowledged.
    pub durability: Durability,
    /// The replication lag beyond which a replica of an eventual namespace is logged and counted; `None` for
    /// no bound.
    pub max_lag: Option<Duration>,
    /// How long a record lives whose writer gave no lifetime; `None` for ever.
    pub ttl: Option<Duration>,
    /// How much room losing concurrent writes get in the conflict log.
    pub conflict_log: ByteSize,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageConfig {
    /// Room that is kept on the disk for deletes and compactions when it is full: with less left, the store
    /// takes no more data. At most a tenth of the file system; 0: none.
    pub reserve: ByteSize,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    /// The longest key.
    pub max_key: ByteSize,
    /// The largest value.
    pub max_value: ByteSize,
    /// The largest message, a batch included.
    pub max_request: ByteSize,
    /// Requests that one store works on at a time; one more is answered `OVERLOADED`.
    pub max_inflight: u64,
    /// Open connections of clients; those of other stores do not count.
    pub max_connections: u64,
    /// Bytes of writes that an eventual namespace keeps in a region for replicas that are away.
    pub origin_log: ByteSize,
    /// Past changes that a namespace keeps in a region for watches.
    pub watch_history: u64,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`, and `target=level` after commas.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// The `host:port` under which other stores and clients reach this store.
    ///
    /// That is `advertise_addr`; else, where `addr` listens on all interfaces and so names none,
    /// this store's own entry among the peers; else `addr`.
    #[must_use]
    pub fn advertised_addr(&self) -> String {
        if let Some(addr) = &self.store.advertise_addr {
            return addr.clone();
        }
        match self.cluster.peers.get(&self.store.id) {
            Some(own) if self.store.addr.ip().is_unspecified() => own.clone(),
            _ => self.store.addr.to_string(),
        }
    }

    /// All first members, this store included: store id to `host:port`.
    #[must_use]
    pub fn members(&self) -> BTreeMap<u16, String> {
        let mut members = self.cluster.peers.clone();
        members.insert(self.store.id, self.advertised_addr());
        members
    }

    /// The mode that this store wants for a namespace: the declared one, else the default.
    ///
    /// What the cluster committed wins over it; this is a wish, not a state.
    #[must_use]
    pub fn mode_of(&self, namespace: &str) -> Mode {
        self.namespaces
            .get(namespace)
            .and_then(|declared| declared.mode)
            .unwrap_or(self.consistency.default_mode)
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            id: 1,
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 50051)),
            http_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 50061)),
            advertise_addr: None,
            data_dir: PathBuf::from("./data"),
            engine: EngineKind::Rocksdb,
            shutdown_delay: Duration::ZERO,
        }
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "flaredb".to_owned(),
            peers: BTreeMap::new(),
            bootstrap_split: Vec::new(),
        }
    }
}

impl Default for ConsistencyConfig {
    fn default() -> Self {
        Self {
            default_mode: Mode::Strong,
            quorum_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(10),
            switch_timeout: Duration::from_secs(10),
            seal_timeout: Duration::from_secs(1),
            mismatch_after: Duration::from_secs(10),
            max_clock_skew: Duration::from_millis(500),
            request_id_retention: Duration::from_secs(15 * 60),
            auto_create: true,
        }
    }
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            snapshot_after: 20_000,
            max_batch: 512,
        }
    }
}

impl Default for NamespaceConfig {
    fn default() -> Self {
        Self {
            mode: None,
            durability: Durability::Sync,
            max_lag: None,
            ttl: None,
            conflict_log: ByteSize::from_mib(64),
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            // A compaction rewrites a file of 16 MiB and the ten below it: that has to fit in.
            reserve: ByteSize::from_mib(256),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_key: ByteSize::from_kib(4),
            max_value: ByteSize::from_mib(1),
            max_request: ByteSize::from_mib(4),
            max_inflight: 4096,
            max_connections: 1024,
            origin_log: ByteSize::from_mib(1024),
            watch_history: 10_000,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

impl SplitKey {
    /// Reads `NAMESPACE_ID/KEY`; the key is what follows the first slash, byte for byte.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, key) = text.split_once('/')?;
        if !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self {
            namespace_id: id.parse().ok()?,
            key: key.as_bytes().to_vec(),
        })
    }
}

impl EngineKind {
    /// The engine that is spelled `text`, if there is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "rocksdb" => Some(Self::Rocksdb),
            "memory" => Some(Self::Memory),
            _ => None,
        }
    }
}

impl LogFormat {
    /// The format that is spelled `text`, if there is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl fmt::Display for SplitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            self.namespace_id,
            String::from_utf8_lossy(&self.key)
        )
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rocksdb => "rocksdb",
            Self::Memory => "memory",
        })
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}
