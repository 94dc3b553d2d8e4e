//! The configuration of a store, from the outside: what is accepted, which source wins, and the
//! exact text of every complaint.
//!
//! Owns: the contract of `rdb_server::config` with an operator. Does not know: its parts (they
//! have unit tests beside them).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]

#[path = "config/documents.rs"]
mod documents;
#[path = "config/errors.rs"]
mod errors;
#[path = "config/garbage.rs"]
mod garbage;
#[path = "config/reload.rs"]
mod reload;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use rdb_server::config::{
    ByteSize, Cli, Config, ConfigErrors, Durability, EngineKind, Loaded, LogFormat, Mode,
    NamespaceConfig, SplitKey, load,
};

/// Loads `file` (none if empty) as `flaredb.toml`, with the given variables and flags.
fn try_load(file: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, ConfigErrors> {
    let mut cli =
        Cli::try_parse_from(["rdb-server"].iter().chain(flags)).expect("flags that clap takes");
    if !file.is_empty() {
        cli.config = Some("flaredb.toml".into());
    }
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(&cli, env, |path| {
        assert_eq!(path, Path::new("flaredb.toml"));
        Ok(file.to_owned())
    })
}

fn config(file: &str, env: &[(&str, &str)], flags: &[&str]) -> Config {
    match try_load(file, env, flags) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("refused:\n{errors}\n---\n{file}"),
    }
}

fn errors(file: &str, env: &[(&str, &str)], flags: &[&str]) -> Vec<String> {
    match try_load(file, env, flags) {
        Ok(loaded) => panic!("accepted: {:?}\n---\n{file}", loaded.config),
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

fn warnings(file: &str, env: &[(&str, &str)], flags: &[&str]) -> Vec<String> {
    try_load(file, env, flags)
        .expect("a legal configuration")
        .warnings
}

/// Every key of the schema, as a file names it.
const ALL_KEYS: &[&str] = &[
    "store.id",
    "store.addr",
    "store.http_addr",
    "store.advertise_addr",
    "store.data_dir",
    "store.engine",
    "store.shutdown_delay",
    "cluster.name",
    "cluster.peers",
    "consistency.default_mode",
    "consistency.quorum_timeout",
    "consistency.request_timeout",
    "consistency.switch_timeout",
    "consistency.seal_timeout",
    "consistency.mismatch_after",
    "consistency.max_clock_skew",
    "consistency.request_id_retention",
    "consistency.auto_create",
    "raft.heartbeat",
    "raft.election_min",
    "raft.election_max",
    "raft.snapshot_after",
    "raft.max_batch",
    "namespaces.logs.mode",
    "namespaces.logs.durability",
    "namespaces.logs.max_lag",
    "namespaces.logs.ttl",
    "namespaces.logs.conflict_log",
    "storage.reserve",
    "limits.max_key",
    "limits.max_value",
    "limits.max_request",
    "limits.max_inflight",
    "limits.max_connections",
    "limits.origin_log",
    "limits.watch_history",
    "log.level",
    "log.format",
];

// ---------------------------------------------------------------- what is accepted

#[test]
fn nothing_at_all_is_a_cluster_of_one_with_the_documented_defaults() {
    let Loaded {
        config,
        warnings,
        file,
    } = try_load("", &[], &[]).expect("defaults are legal");
    assert_eq!(config, Config::default());
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(file, None);

    assert_eq!(config.store.id, 1);
    assert_eq!(config.store.addr.to_string(), "127.0.0.1:50051");
    assert_eq!(config.store.http_addr.to_string(), "127.0.0.1:50061");
    assert_eq!(config.store.data_dir, Path::new("./data"));
    assert_eq!(config.store.engine, EngineKind::Rocksdb);
    assert_eq!(config.store.shutdown_delay, Duration::ZERO);
    assert_eq!(config.consistency.default_mode, Mode::Strong);
    assert_eq!(config.consistency.quorum_timeout, Duration::from_secs(2));
    assert_eq!(config.consistency.request_timeout, Duration::from_secs(10));
    assert_eq!(config.consistency.switch_timeout, Duration::from_secs(10));
    assert_eq!(config.consistency.seal_timeout, Duration::from_secs(1));
    assert_eq!(config.consistency.mismatch_after, Duration::from_secs(10));
    assert_eq!(
        config.consistency.max_clock_skew,
        Duration::from_millis(500)
    );
    assert_eq!(
        config.consistency.request_id_retention,
        Duration::from_secs(900)
    );
    assert!(config.consistency.auto_create);
    assert_eq!(config.raft.heartbeat, Duration::from_millis(50));
    assert_eq!(config.raft.election_min, Duration::from_millis(150));
    assert_eq!(config.raft.election_max, Duration::from_millis(300));
    assert_eq!(config.raft.snapshot_after, 20_000);
    assert_eq!(config.raft.max_batch, 512);
    assert_eq!(config.storage.reserve.as_bytes(), 256 << 20);
    assert_eq!(config.limits.max_key.as_bytes(), 4 << 10);
    assert_eq!(config.limits.max_value.as_bytes(), 1 << 20);
    assert_eq!(config.limits.max_request.as_bytes(), 4 << 20);
    assert_eq!(config.limits.max_inflight, 4096);
    assert_eq!(config.limits.max_connections, 1024);
    assert_eq!(config.limits.origin_log.as_bytes(), 1 << 30);
    assert_eq!(config.limits.watch_history, 10_000);
    assert_eq!(config.log.level, "info");
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(
        config.members(),
        BTreeMap::from([(1, "127.0.0.1:50051".to_owned())])
    );
}

const FULL: &str = r#"
[store]
id = 2
addr = "0.0.0.0:6000"
http_addr = "[::1]:6001"
advertise_addr = "db2.example:6000"
data_dir = "/var/lib/flaredb"
engine = "memory"
shutdown_delay = "20s"

[cluster]
name = "prod"
bootstrap_split = ["2/m", "3/"]
peers = { 1 = "db1.example:6000", 2 = "db2.example:6000", 3 = "[::1]:6000" }

[consistency]
default_mode = "eventual"
quorum_timeout = "1s"
request_timeout = "5s"
switch_timeout = "20s"
seal_timeout = "2s"
mismatch_after = "1m"
max_clock_skew = "250ms"
request_id_retention = "1h"
auto_create = false

[raft]
heartbeat = "100ms"
election_min = "300ms"
election_max = "600ms"
snapshot_after = 100
max_batch = 64

[namespaces.logs]
mode = "eventual"
durability = "relaxed"
max_lag = "5s"
ttl = "7d"
conflict_log = "1MiB"

[namespaces."bank.eu-1"]
mode = "strong"

[namespaces.plain]

[storage]
reserve = "1GiB"

[limits]
max_key = 1024
max_value = "64KiB"
max_request = "1MiB"
max_inflight = 10
max_connections = 20
origin_log = "2MiB"
watch_history = 30

[log]
level = "warn,rdb_server::raft=debug"
format = "json"
"#;

#[test]
fn every_key_can_be_set_in_a_file() {
    let config = config(FULL, &[], &[]);
    assert_eq!(config.store.id, 2);
    assert_eq!(config.store.addr.to_string(), "0.0.0.0:6000");
    assert_eq!(config.store.http_addr.to_string(), "[::1]:6001");
    assert_eq!(
        config.store.advertise_addr.as_deref(),
        Some("db2.example:6000")
    );
    assert_eq!(config.store.data_dir, Path::new("/var/lib/flaredb"));
    assert_eq!(config.store.engine, EngineKind::Memory);
    assert_eq!(config.store.shutdown_delay, Duration::from_secs(20));
    assert_eq!(config.cluster.name, "prod");
    let split = |namespace_id, key: &[u8]| SplitKey {
        namespace_id,
        key: key.to_vec(),
    };
    assert_eq!(
        config.cluster.bootstrap_split,
        [split(2, b"m"), split(3, b"")]
    );
    assert_eq!(config.cluster.peers.len(), 3);
    assert_eq!(config.cluster.peers[&3], "[::1]:6000");
    assert_eq!(config.consistency.default_mode, Mode::Eventual);
    assert_eq!(config.consistency.quorum_timeout, Duration::from_secs(1));
    assert_eq!(config.consistency.request_timeout, Duration::from_secs(5));
    assert_eq!(config.consistency.switch_timeout, Duration::from_secs(20));
    assert_eq!(config.consistency.seal_timeout, Duration::from_secs(2));
    assert_eq!(config.consistency.mismatch_after, Duration::from_secs(60));
    assert_eq!(
        config.consistency.max_clock_skew,
        Duration::from_millis(250)
    );
    assert_eq!(
        config.consistency.request_id_retention,
        Duration::from_secs(3600)
    );
    assert!(!config.consistency.auto_create);
    assert_eq!(config.raft.heartbeat, Duration::from_millis(100));
    assert_eq!(config.raft.election_min, Duration::from_millis(300));
    assert_eq!(config.raft.election_max, Duration::from_millis(600));
    assert_eq!(
        (config.raft.snapshot_after, config.raft.max_batch),
        (100, 64)
    );
    assert_eq!(
        config.namespaces["logs"],
        NamespaceConfig {
            mode: Some(Mode::Eventual),
            durability: Durability::Relaxed,
            max_lag: Some(Duration::from_secs(5)),
            ttl: Some(Duration::from_secs(7 * 86_400)),
            conflict_log: ByteSize::from_mib(1),
        }
    );
    assert_eq!(config.namespaces["plain"], NamespaceConfig::default());
    assert_eq!(config.mode_of("logs"), Mode::Eventual);
    assert_eq!(config.mode_of("bank.eu-1"), Mode::Strong);
    assert_eq!(
        config.mode_of("plain"),
        Mode::Eventual,
        "the default mode of this file"
    );
    assert_eq!(config.storage.reserve, ByteSize::from_mib(1024));
    assert_eq!(config.limits.max_key, ByteSize::from_kib(1));
    assert_eq!(config.limits.max_value, ByteSize::from_kib(64));
    assert_eq!(config.limits.max_request, ByteSize::from_mib(1));
    assert_eq!(config.limits.origin_log.as_bytes(), 2 << 20);
    let limits = &config.limits;
    assert_eq!(
        (
            limits.max_inflight,
            limits.max_connections,
            limits.watch_history
        ),
        (10, 20, 30)
    );
    assert_eq!(config.log.level, "warn,rdb_server::raft=debug");
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn a_written_configuration_reads_back_as_itself() {
    for file in ["", FULL] {
        let written = config(file, &[], &[]);
        assert_eq!(
            config(&written.to_toml(), &[], &[]),
            written,
            "{}",
            written.to_toml()
        );
    }
    let odd = config(
        "[store]\ndata_dir = 'C:\\a \"b\"'\n[cluster]\nname = \"caf\u{e9} \\\\ #1\"\n",
        &[],
        &[],
    );
    assert_eq!(config(&odd.to_toml(), &[], &[]), odd, "{}", odd.to_toml());
}

#[test]
fn the_example_of_the_documentation_works() {
    let flags = "--store-id 1 --addr 127.0.0.1:50051 --http-addr 127.0.0.1:50061 --data-dir ./data/1 \
                 --peer 1=127.0.0.1:50051 --peer 2=127.0.0.1:50052 --peer 3=127.0.0.1:50053 \
                 --namespace-mode logs=eventual";
    let config = config("", &[], &flags.split_whitespace().collect::<Vec<_>>());
    assert_eq!(config.members().len(), 3);
    assert_eq!(config.mode_of("logs"), Mode::Eventual);
    assert_eq!(config.mode_of("other"), Mode::Strong);
}

#[test]
fn peers_may_leave_this_store_out() {
    let config = config(
        "",
        &[],
        &[
            "--store-id",
            "3",
            "--addr",
            "127.0.0.1:7003",
            "--peer",
            "1=a:1",
            "--peer",
            "2=b:1",
        ],
    );
    let members =
        [(1, "a:1"), (2, "b:1"), (3, "127.0.0.1:7003")].map(|(id, addr)| (id, addr.to_owned()));
    assert_eq!(config.members(), BTreeMap::from(members));
}

#[test]
fn a_store_that_listens_everywhere_is_reached_as_its_peers_call_it() {
    let config = config(
        "",
        &[],
        &[
            "--store-id",
            "1",
            "--addr",
            "0.0.0.0:7001",
            "--peer",
            "1=db1:7001",
            "--peer",
            "2=db2:7001",
        ],
    );
    assert_eq!(config.advertised_addr(), "db1:7001");
    assert_eq!(config.members()[&1], "db1:7001");
}

// ---------------------------------------------------------------- precedence

#[test]
fn flags_win_over_environment_over_file() {
    let file = "[consistency]\nquorum_timeout = \"1s\"\nrequest_timeout = \"11s\"\nswitch_timeout = \"21s\"\n";
    let env = [
        ("FLAREDB_CONSISTENCY__REQUEST_TIMEOUT", "12s"),
        ("FLAREDB_CONSISTENCY__SWITCH_TIMEOUT", "22s"),
    ];
    let config = config(file, &env, &["--switch-timeout", "23s"]);
    assert_eq!(config.consistency.quorum_timeout, Duration::from_secs(1));
    assert_eq!(config.consistency.request_timeout, Duration::from_secs(12));
    assert_eq!(config.consistency.switch_timeout, Duration::from_secs(23));
    assert_eq!(
        config.consistency.seal_timeout,
        Duration::from_secs(1),
        "the default"
    );
}

#[test]
fn peers_are_one_list() {
    let file = "[store]\nid = 9\n[cluster]\npeers = { 1 = \"file:1\", 2 = \"file:2\" }\n";
    let env = [("FLAREDB_CLUSTER__PEERS", "2=env:2, 3=env:3")];
    let peers = |config: Config| config.cluster.peers.into_iter().collect::<Vec<_>>();
    let list = |entries: &[(u16, &str)]| {
        entries
            .iter()
            .map(|(id, addr)| (*id, (*addr).to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        peers(config(file, &[], &[])),
        list(&[(1, "file:1"), (2, "file:2")])
    );
    assert_eq!(
        peers(config(file, &env, &[])),
        list(&[(2, "env:2"), (3, "env:3")])
    );
    assert_eq!(
        peers(config(file, &env, &["--peer", "4=flag:4"])),
        list(&[(4, "flag:4")])
    );
    let one_by_one = [
        ("FLAREDB_CLUSTER__PEERS__5", "env:5"),
        ("FLAREDB_CLUSTER__PEERS__6", "env:6"),
    ];
    assert_eq!(
        peers(config(file, &one_by_one, &[])),
        list(&[(5, "env:5"), (6, "env:6")])
    );
}

#[test]
fn namespaces_are_laid_over_each_other_key_by_key() {
    let file = "[namespaces.logs]\nmode = \"strong\"\nttl = \"1h\"\n";
    let env = [
        ("FLAREDB_NAMESPACES__LOGS__DURABILITY", "relaxed"),
        ("FLAREDB_NAMESPACES__A__B__MODE", "eventual"),
    ];
    let config = config(
        file,
        &env,
        &[
            "--namespace-mode",
            "logs=eventual",
            "--namespace-mode",
            "x.y=strong",
        ],
    );
    let logs = &config.namespaces["logs"];
    assert_eq!(
        (logs.mode, logs.durability),
        (Some(Mode::Eventual), Durability::Relaxed)
    );
    assert_eq!(logs.ttl, Some(Duration::from_secs(3600)));
    assert_eq!(config.namespaces["a__b"].mode, Some(Mode::Eventual));
    assert_eq!(config.namespaces["x.y"].mode, Some(Mode::Strong));
}

#[test]
fn the_environment_can_set_every_key() {
    let env = [
        ("FLAREDB_STORE__ID", "7"),
        ("FLAREDB_STORE__ENGINE", "memory"),
        ("FLAREDB_CONSISTENCY__AUTO_CREATE", "false"),
        ("FLAREDB_RAFT__MAX_BATCH", "64"),
        ("FLAREDB_LIMITS__MAX_KEY", "2048"),
        ("FLAREDB_LIMITS__MAX_VALUE", "2MiB"),
        ("FLAREDB_LOG__FORMAT", "json"),
        ("FLAREDB_CLUSTER__BOOTSTRAP_SPLIT", "2/m,3/x"),
        ("HOME", "/root"),
    ];
    let Loaded {
        config, warnings, ..
    } = try_load("", &env, &[]).expect("legal variables");
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.store.id, 7);
    assert_eq!(config.store.engine, EngineKind::Memory);
    assert!(!config.consistency.auto_create);
    assert_eq!(config.raft.max_batch, 64);
    assert_eq!(config.limits.max_key, ByteSize::from_kib(2));
    assert_eq!(config.limits.max_value, ByteSize::from_mib(2));
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.cluster.bootstrap_split.len(), 2);

    // No key is forgotten: a value that fits none is refused for each by the name of its variable.
    for key in ALL_KEYS {
        let variable = format!("FLAREDB_{}", key.replace('.', "__").to_uppercase());
        let expected_prefix = format!("{variable}: ");
        let errors = errors("", &[(&variable, "\0")], &[]).join("\n");
        assert!(errors.starts_with(&expected_prefix), "{variable}: {errors}");
    }
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let read = |path: &Path| match path.to_str() {
        Some("from-env.toml") => Ok("[store]\nid = 5\n".to_owned()),
        Some("from-flag.toml") => Ok("[store]\nid = 6\n".to_owned()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let env = || [("FLAREDB_CONFIG".to_owned(), "from-env.toml".to_owned())].into_iter();
    let loaded = load(&Cli::default(), env(), read).expect("legal");
    assert_eq!(
        (loaded.config.store.id, loaded.file.as_deref()),
        (5, Some(Path::new("from-env.toml")))
    );
    let cli = Cli {
        config: Some("from-flag.toml".into()),
        ..Cli::default()
    };
    assert_eq!(load(&cli, env(), read).expect("legal").config.store.id, 6);
}
