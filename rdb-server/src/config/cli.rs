//! The command line of `rdb-server`.
//!
//! Owns: the flags, their help, and which key each is for. Does not know: types and ranges of
//! keys: every flag is text here, so that all its errors read like those of a file and are
//! reported together with them.
//!
//! Invariant: every key has a flag or is named in `--help` (a test sees to it).

use std::path::PathBuf;

use clap::Parser;

use super::domain::is_namespace_name;
use super::env::peer;
use super::error::Origin;
use super::keys::{self, NAMESPACES};
use super::layer::{Layer, Target, illegal_name};
use super::value::{Value, bad};

/// A FlareDB store: one server process with one data directory.
///
/// Without --peer the store is a cluster of one. Every value comes from a flag, else from the
/// environment, else from the file of --config, else it is the default shown here.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "rdb-server", version, max_term_width = 100, after_long_help = AFTER_HELP)]
pub struct Cli {
    /// Read the configuration from this TOML file (environment: FLAREDB_CONFIG)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration, print what is wrong with it, and exit
    #[arg(long)]
    pub check_config: bool,

    /// Id of this store, 1 to 1023, fixed for the life of its data directory [default: 1]
    #[arg(long, value_name = "ID", help_heading = "Store")]
    pub store_id: Option<String>,
    /// Where to serve gRPC [default: 127.0.0.1:50051]
    #[arg(long, value_name = "IP:PORT", help_heading = "Store")]
    pub addr: Option<String>,
    /// Where to serve HTTP: metrics and probes [default: 127.0.0.1:50061]
    #[arg(long, value_name = "IP:PORT", help_heading = "Store")]
    pub http_addr: Option<String>,
    /// Address under which others reach this store [default: --addr]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Store")]
    pub advertise_addr: Option<String>,
    /// Where to keep the data; made if it does not exist [default: ./data]
    #[arg(long, value_name = "DIR", help_heading = "Store")]
    pub data_dir: Option<String>,
    /// What keeps the data: rocksdb, or memory (for tests: gone at exit) [default: rocksdb]
    #[arg(long, value_name = "ENGINE", help_heading = "Store")]
    pub engine: Option<String>,
    /// After SIGTERM, go on serving for this long while /readyz answers 503: longer than a load balancer takes
    /// to see that; a minute at most [default: 0ms]
    #[arg(long, value_name = "DURATION", help_heading = "Store")]
    pub shutdown_delay: Option<String>,

    /// Name of the cluster, for logs and status pages [default: flaredb]
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub cluster_name: Option<String>,
    /// A first member of the cluster, this store included or not; give it once for each member.
    /// Replaces all peers of the environment and the file
    #[arg(long = "peer", value_name = "ID=HOST:PORT", help_heading = "Cluster")]
    pub peers: Vec<String>,
    /// For tests: split the keyspace here when the cluster is formed; may be given again
    #[arg(long, value_name = "NAMESPACE_ID/KEY", hide = true)]
    pub bootstrap_split: Vec<String>,

    /// Mode that this store declares for a namespace, strong or eventual; may be given again
    #[arg(long, value_name = "NAME=MODE", help_heading = "Consistency")]
    pub namespace_mode: Vec<String>,
    /// Mode of namespaces that nobody declared: strong or eventual [default: strong]
    #[arg(long, value_name = "MODE", help_heading = "Consistency")]
    pub default_mode: Option<String>,
    /// Refuse with NO_QUORUM after this long without a leader that has a quorum [default: 2s]
    #[arg(long, value_name = "DURATION", help_heading = "Consistency")]
    pub quorum_timeout: Option<String>,
    /// Deadline of a call that brings none [default: 10s]
    #[arg(long, value_name = "DURATION", help_heading = "Consistency")]
    pub request_timeout: Option<String>,
    /// How long a switch of modes may take before it is given up and undone [default: 10s]
    #[arg(long, value_name = "DURATION", help_heading = "Consistency")]
    pub switch_timeout: Option<String>,
    /// How long a switch waits for a silent store once writes are refused [default: 1s]
    #[arg(long, value_name = "DURATION", help_heading = "Consistency")]
    pub seal_timeout: Option<String>,
    /// Report a store that has not applied the cluster's mode after this long [default: 10s]
    #[arg(long, value_name = "DURATION", help_heading = "Consistency")]
    pub mismatch_after: Option<String>,
    /// How far the clocks of stores may be apart [default: 500ms]
    #[arg(long, value_name = "DURATION", help_heading = "Consistency")]
    pub max_clock_skew: Option<String>,
    /// How long the id of a write is remembered, so that a repeat is safe [default: 15m]
    #[arg(long, value_name = "DURATION", help_heading = "Consistency")]
    pub request_id_retention: Option<String>,
    /// Whether the first write to an unknown namespace creates it: true or false [default: true]
    #[arg(long, value_name = "BOOL", help_heading = "Consistency")]
    pub auto_create: Option<String>,

    /// How often a leader shows that it is alive [default: 50ms]
    #[arg(long, value_name = "DURATION", help_heading = "Raft")]
    pub heartbeat: Option<String>,
    /// Shortest wait of a follower before it campaigns [default: 150ms]
    #[arg(long, value_name = "DURATION", help_heading = "Raft")]
    pub election_min: Option<String>,
    /// Longest wait of a follower before it campaigns [default: 300ms]
    #[arg(long, value_name = "DURATION", help_heading = "Raft")]
    pub election_max: Option<String>,
    /// Log entries between two snapshots [default: 20000]
    #[arg(long, value_name = "ENTRIES", help_heading = "Raft")]
    pub snapshot_after: Option<String>,
    /// Writes that share one log entry at most [default: 512]
    #[arg(long, value_name = "WRITES", help_heading = "Raft")]
    pub max_batch: Option<String>,

    /// Room that is kept on the disk for deletes and compactions when it is full: with less left, no more data
    /// is taken; at most a tenth of the file system, 0 for none [default: 256MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Storage")]
    pub reserve: Option<String>,

    /// Longest key [default: 4KiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub max_key: Option<String>,
    /// Largest value [default: 1MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub max_value: Option<String>,
    /// Largest message, a batch included [default: 4MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub max_request: Option<String>,
    /// Requests that the store works on at a time [default: 4096]
    #[arg(long, value_name = "REQUESTS", help_heading = "Limits")]
    pub max_inflight: Option<String>,
    /// Open connections of clients; stores always find a place [default: 1024]
    #[arg(long, value_name = "CONNECTIONS", help_heading = "Limits")]
    pub max_connections: Option<String>,
    /// Writes that an eventual namespace keeps, in each region, for a replica that is away; one that is away
    /// longer takes a copy [default: 1GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub origin_log: Option<String>,
    /// Past changes that a namespace keeps in memory, in each region, for watches; 64 MiB of a region at most
    /// [default: 10000]
    #[arg(long, value_name = "CHANGES", help_heading = "Limits")]
    pub watch_history: Option<String>,

    /// off, error, warn, info, debug or trace; and target=level after commas [default: info]
    #[arg(long, value_name = "LEVEL", help_heading = "Log")]
    pub log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Log")]
    pub log_format: Option<String>,
}

const AFTER_HELP: &str = "\
File:
  Sections [store] [cluster] [consistency] [raft] [namespaces.NAME] [storage] [limits] [log]; a key
  has the name of its flag with underscores: --quorum-timeout is quorum_timeout in [consistency]. These
  differ: --store-id is store.id, --cluster-name is cluster.name, --log-level is log.level,
  --log-format is log.format, and --peer is an entry of cluster.peers = { 1 = \"host:port\" }.

  Keys of a namespace that have no flag:
    namespaces.NAME.ttl           lifetime of records whose writer gave none
  These too, for eventual namespaces:
    namespaces.NAME.durability    sync: acknowledge after the disk has it; relaxed: before
    namespaces.NAME.max_lag       a replica further behind is logged and counted
    namespaces.NAME.conflict_log  room for writes that lost to a concurrent one
  A declaration counts when the cluster begins; `flaredb ns update` changes it later.

Environment:
  FLAREDB_SECTION__KEY, with two underscores: FLAREDB_CONSISTENCY__QUORUM_TIMEOUT=2s,
  FLAREDB_NAMESPACES__LOGS__MODE=eventual, FLAREDB_CLUSTER__PEERS=1=host:port,2=host:port

Values:
  Durations are a number and ms, s, m, h or d: 500ms. Sizes are bytes, or KiB, MiB, GiB: 4MiB.

Signals:
  SIGHUP reads the configuration again, SIGTERM drains and leaves.

Example:
  rdb-server --store-id 1 --addr 127.0.0.1:50051 --data-dir ./data/1 \\
    --peer 1=127.0.0.1:50051 --peer 2=127.0.0.1:50052 --peer 3=127.0.0.1:50053 \\
    --namespace-mode logs=eventual";

impl Cli {
    /// Each flag that stands for one key: flag, section, key, and what was given.
    #[rustfmt::skip]
    pub(crate) fn single_flags(&self) -> [(&'static str, &'static str, &'static str, Option<&str>); 32] {
        [
            ("--store-id", "store", "id", self.store_id.as_deref()),
            ("--addr", "store", "addr", self.addr.as_deref()),
            ("--http-addr", "store", "http_addr", self.http_addr.as_deref()),
            ("--advertise-addr", "store", "advertise_addr", self.advertise_addr.as_deref()),
            ("--data-dir", "store", "data_dir", self.data_dir.as_deref()),
            ("--engine", "store", "engine", self.engine.as_deref()),
            ("--shutdown-delay", "store", "shutdown_delay", self.shutdown_delay.as_deref()),
            ("--cluster-name", "cluster", "name", self.cluster_name.as_deref()),
            ("--default-mode", "consistency", "default_mode", self.default_mode.as_deref()),
            ("--quorum-timeout", "consistency", "quorum_timeout", self.quorum_timeout.as_deref()),
            ("--request-timeout", "consistency", "request_timeout", self.request_timeout.as_deref()),
            ("--switch-timeout", "consistency", "switch_timeout", self.switch_timeout.as_deref()),
            ("--seal-timeout", "consistency", "seal_timeout", self.seal_timeout.as_deref()),
            ("--mismatch-after", "consistency", "mismatch_after", self.mismatch_after.as_deref()),
            ("--max-clock-skew", "consistency", "max_clock_skew", self.max_clock_skew.as_deref()),
            ("--request-id-retention", "consistency", "request_id_retention", self.request_id_retention.as_deref()),
            ("--auto-create", "consistency", "auto_create", self.auto_create.as_deref()),
            ("--heartbeat", "raft", "heartbeat", self.heartbeat.as_deref()),
            ("--election-min", "raft", "election_min", self.election_min.as_deref()),
            ("--election-max", "raft", "election_max", self.election_max.as_deref()),
            ("--snapshot-after", "raft", "snapshot_after", self.snapshot_after.as_deref()),
            ("--max-batch", "raft", "max_batch", self.max_batch.as_deref()),
            ("--reserve", "storage", "reserve", self.reserve.as_deref()),
            ("--max-key", "limits", "max_key", self.max_key.as_deref()),
            ("--max-value", "limits", "max_value", self.max_value.as_deref()),
            ("--max-request", "limits", "max_request", self.max_request.as_deref()),
            ("--max-inflight", "limits", "max_inflight", self.max_inflight.as_deref()),
            ("--max-connections", "limits", "max_connections", self.max_connections.as_deref()),
            ("--origin-log", "limits", "origin_log", self.origin_log.as_deref()),
            ("--watch-history", "limits", "watch_history", self.watch_history.as_deref()),
            ("--log-level", "log", "level", self.log_level.as_deref()),
            ("--log-format", "log", "format", self.log_format.as_deref()),
        ]
    }

    /// All that the flags say.
    pub(crate) fn layer(&self) -> Layer {
        let mut layer = Layer::default();
        for (flag, section, key, value) in self.single_flags() {
            if let (Some(value), Some(row)) = (value, keys::find(section, key)) {
                layer.set(
                    Target::Key(row),
                    Value::Bare(value.to_owned()),
                    Origin::Flag(flag.to_owned()),
                );
            }
        }
        for entry in &self.peers {
            peer(&mut layer, typed("--peer", entry), entry);
        }
        if let (false, Some(row)) = (
            self.bootstrap_split.is_empty(),
            keys::find("cluster", "bootstrap_split"),
        ) {
            let splits = self
                .bootstrap_split
                .iter()
                .cloned()
                .map(Value::Bare)
                .collect();
            layer.set(
                Target::Key(row),
                Value::List(splits),
                Origin::Flag("--bootstrap-split".to_owned()),
            );
        }
        for entry in &self.namespace_mode {
            namespace_mode(&mut layer, typed("--namespace-mode", entry), entry);
        }
        layer
    }
}

/// The origin of a flag that may be repeated: with its value, so that one knows which it is.
fn typed(flag: &str, value: &str) -> Origin {
    const SHOWN_CHARS: usize = 100;
    let shown: String = value
        .chars()
        .filter(|c| !c.is_control())
        .take(SHOWN_CHARS)
        .collect();
    Origin::Flag(format!("{flag} {shown}"))
}

/// One `NAME=MODE`.
fn namespace_mode(layer: &mut Layer, origin: Origin, entry: &str) {
    match (entry.split_once('='), keys::find_namespace_key("mode")) {
        (Some((name, _)), _) if !is_namespace_name(name) => {
            layer.error(origin, keys::namespace_path(name, ""), illegal_name(name));
        }
        (Some((name, mode)), Some(row)) => {
            layer.set(
                Target::NamespaceKey(name.to_owned(), row),
                Value::Bare(mode.to_owned()),
                origin,
            );
        }
        (None, _) | (_, None) => {
            let problem = bad(
                entry,
                "a namespace and its mode (NAME=MODE, such as logs=eventual)",
            );
            layer.error(origin, NAMESPACES, problem);
        }
    }
}
