//! A cluster lives through everything that an operator is told of: each metric moves, each decision is an event, and
//! neither shows a key or a value.

use crate::scrape::{Sample, Seen, samples};
use crate::support::calls::{PATIENT, Plain, channel, refused, stale};
use crate::support::cluster::{Cluster, DATA, META};
use crate::support::http;
use crate::support::wait::eventually;
use rdb_proto::kv::ScanRequest;
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_proto::raft::{
    CreateNamespaceRequest, Policies, UpdateNamespaceModeRequest, UpdateNamespaceRequest,
};
use rdb_server::metrics::catalog::CATALOG;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tonic::Status;

const STRONG: i32 = 1;
const EVENTUAL: i32 = 2;

/// Parts of every key and of every value that the story writes: nothing else says either.
const KEY: &str = "kQ7zpassport";
const VALUE: &str = "vX9wsalary";

/// The metrics of the contract (`surface.md`): a name here is never renamed.
pub(crate) const CONTRACT: &[(&str, &[&str])] = &[
    ("flaredb_namespace_mode", &["namespace", "mode"]),
    ("flaredb_namespace_epoch", &["namespace"]),
    ("flaredb_namespace_mode_mismatch", &["namespace"]),
    ("flaredb_replication_lag_seconds", &["namespace", "store"]),
    ("flaredb_replication_lag_writes", &["namespace", "store"]),
    ("flaredb_convergence_seconds", &["namespace"]),
    ("flaredb_quorum_available", &["region"]),
    ("flaredb_raft_is_leader", &["region"]),
    ("flaredb_raft_term", &["region"]),
    ("flaredb_raft_commit_index", &["region"]),
    ("flaredb_raft_applied_index", &["region"]),
    ("flaredb_requests_total", &["method", "namespace", "code"]),
    ("flaredb_request_seconds", &["method", "mode"]),
    ("flaredb_quorum_rejections_total", &["namespace"]),
    ("flaredb_conflicts_total", &["namespace"]),
    ("flaredb_clock_skew_rejections_total", &["namespace"]),
    (
        "flaredb_mode_switches_total",
        &["namespace", "from", "to", "outcome"],
    ),
    (
        "flaredb_mode_switch_write_pause_seconds",
        &["namespace", "from", "to", "outcome"],
    ),
    ("flaredb_storage_disk_bytes", &[]),
    ("flaredb_storage_free_bytes", &[]),
    ("flaredb_storage_total_bytes", &[]),
    ("flaredb_namespace_keys", &["namespace"]),
    ("flaredb_namespace_bytes", &["namespace"]),
];

/// What need not move in this story, and the values that it may have.
const STILL: &[(&str, &[&str])] = &[
    ("flaredb_build_info", &["1"]),
    ("flaredb_clock_max_skew_ms", &["500"]),
    // Nobody damages a disk here: test_consistency/damage.rs does.
    ("flaredb_storage_damaged_reads_total", &["0"]),
    ("flaredb_storage_background_errors_total", &["0"]),
    ("flaredb_storage_pending_compaction_bytes", &["0"]),
    ("flaredb_replica_repairs_total", &["0"]),
    ("flaredb_connections_refused_total", &["0"]),
    // Its log is a file: log_reader.rs has a pipe that nobody reads.
    ("flaredb_log_dropped_lines_total", &["0"]),
    ("flaredb_conflicts_dropped_total", &["0"]),
    // No disk is full here: test_full_disk.rs fills some.
    ("flaredb_no_space_rejections_total", &["0"]),
    ("flaredb_storage_room_level", &["0"]),
    ("flaredb_storage_reserve_bytes", &[]),
    ("flaredb_storage_reserve_held_bytes", &[]),
    // Nobody watches here: test_consistency/watch.rs does.
    ("flaredb_watch_streams", &["0"]),
    ("flaredb_watch_events_total", &["0"]),
    ("flaredb_watch_cuts_total", &["0"]),
    // Too short to be met at a scrape.
    ("flaredb_waiting_writes", &["0"]),
    ("flaredb_storage_queued_bytes", &["0"]),
    // There while there is something to tell: that it came is enough.
    ("flaredb_replication_lag_objective_seconds", &["0.3"]),
    // As the machine is.
    ("flaredb_storage_total_bytes", &[]),
    ("flaredb_process_max_files", &[]),
    ("flaredb_storage_table_reader_bytes", &[]),
    ("flaredb_storage_cache_bytes", &[]),
    ("flaredb_storage_free_bytes", &[]),
    ("flaredb_process_threads", &[]),
];

/// What moves by coming: the labels under which it has to.
type Came = (
    &'static str,
    &'static [&'static [(&'static str, &'static str)]],
);
const COMES: &[Came] = &[
    (
        "flaredb_namespace_mode",
        &[
            &[("namespace", "cart"), ("mode", "eventual")],
            &[("namespace", "cart"), ("mode", "strong")],
            &[("namespace", "bank"), ("mode", "strong")],
            &[("namespace", "orders"), ("mode", "strong")],
        ],
    ),
    (
        "flaredb_replication_lag_breaches_total",
        &[&[("namespace", "cart"), ("store", "3")]],
    ),
    (
        "flaredb_mode_switches_total",
        &[
            &[("from", "eventual"), ("to", "strong"), ("outcome", "done")],
            &[("from", "strong"), ("to", "eventual"), ("outcome", "done")],
            &[
                ("from", "eventual"),
                ("to", "strong"),
                ("outcome", "aborted"),
            ],
        ],
    ),
    (
        "flaredb_mode_switch_write_pause_seconds",
        &[&[
            ("namespace", "cart"),
            ("from", "eventual"),
            ("outcome", "done"),
        ]],
    ),
    // What they count is moved by requests; what is refused is told apart.
    (
        "flaredb_requests_total",
        &[
            &[("method", "Put"), ("namespace", "bank"), ("code", "OK")],
            &[("method", "CompareAndSwap"), ("namespace", "bank")],
            &[("method", "Scan"), ("namespace", "bank")],
            &[("method", "Delete"), ("namespace", "bank")],
            &[("namespace", "bank"), ("code", "UNAVAILABLE")],
            &[("namespace", "unknown"), ("code", "NOT_FOUND")],
        ],
    ),
];

/// The event that comes only where a replica is seen between two leaders, which may be too short to be met: if it
/// is said, then with these fields.
const BY_CHANCE: (&str, &[&str]) = ("the leader is lost", &["region", "term", "lost"]);

/// The events of the story, at least: the message, and the fields that it has to bring.
const EVENTS: &[(&str, &[&str])] = &[
    ("listening", &["store", "addr", "http_addr"]),
    ("member of the cluster", &["cluster", "members", "regions"]),
    ("a store is a member", &["store", "address", "version"]),
    ("a leader is elected", &["region", "term", "leader", "here"]),
    (
        "no leader with a quorum: writes and linearizable reads are refused",
        &["region", "term", "reached", "needed"],
    ),
    (
        "the quorum is back",
        &["region", "term", "reached", "needed"],
    ),
    (
        "nothing is heard of a store",
        &["store", "address", "silent_ms"],
    ),
    ("the store is heard of again", &["store", "address"]),
    ("namespace is there", &["namespace", "id", "mode"]),
    ("policies are changed", &["namespace", "id"]),
    (
        "a mode was asked for",
        &["namespace", "asked", "mode", "target", "attempt"],
    ),
    (
        "a namespace switches its mode",
        &["namespace", "from", "to", "attempt"],
    ),
    (
        "the namespace becomes strong",
        &["region", "term", "namespace_id", "epoch", "attempt"],
    ),
    (
        "a switch of modes is done",
        &["namespace", "from", "to", "attempt", "took", "write_pause"],
    ),
    (
        "a switch of modes is given up, and what was done of it is undone",
        &["namespace", "to", "attempt", "why"],
    ),
    (
        "a switch of modes is undone",
        &["namespace", "from", "to", "attempt", "why"],
    ),
    (
        "a replica is further behind than the namespace's max_lag",
        &[
            "region",
            "namespace_id",
            "epoch",
            "store",
            "writes",
            "lag_ms",
            "objective_ms",
        ],
    ),
    (
        "the replica is within the objective for lag again",
        &["region", "namespace_id", "epoch", "store"],
    ),
    (
        "a store disagrees with the cluster about a namespace's mode",
        &["namespace", "store", "declared", "applied", "epoch"],
    ),
    (
        "the store agrees with the cluster about the namespace's mode again",
        &["namespace", "store", "declared", "applied", "epoch"],
    ),
    ("sending a snapshot", &["region", "term", "to", "snapshot"]),
    (
        "the snapshot was sent, and is installed there",
        &["region", "term", "to", "snapshot", "bytes"],
    ),
    ("installed a snapshot", &["region", "index"]),
    ("configuration changed", &["change"]),
    ("leaving", &["signal"]),
    ("stopped", &[]),
];

/// A cluster that is watched.
struct Story {
    cluster: Cluster,
    config: PathBuf,
    seen: Seen,
    /// Where the configuration is.
    _dir: TempDir,
}

fn key(name: &str) -> String {
    format!("{KEY}-{name}")
}

fn value(name: &str) -> String {
    format!("{VALUE}-{name}")
}

impl Story {
    async fn begin() -> Story {
        let dir = tempfile::Builder::new()
            .prefix("flaredb-story-")
            .tempdir()
            .unwrap();
        let config = dir.path().join("flaredb.toml");
        declare(&config, "strong");
        let path = config.display().to_string();
        let args = [
            "--namespace-mode",
            "cart=eventual",
            "--config",
            &path,
            "--log-format",
            "json",
            "--log-level",
            "debug",
            "--quorum-timeout",
            "1s",
            "--switch-timeout",
            "3s",
            "--snapshot-after",
            "40",
        ];
        let cluster = Cluster::start_meshed(3, &args).await;
        let mut story = Story {
            cluster,
            config,
            seen: Seen::default(),
            _dir: dir,
        };
        story.scrape().await;
        story
    }

    /// Every store that runs, as it is now.
    async fn scrape(&mut self) {
        for store in 0..self.cluster.len() {
            if self.cluster.is_running(store) {
                let page = page(&self.cluster, store).await.unwrap();
                self.seen.add(store, &page);
            }
        }
    }

    /// Scrapes a store until a sample is as it should be.
    async fn until(&mut self, store: usize, what: &str, is: impl Fn(&Sample) -> bool) {
        let (cluster, seen) = (&self.cluster, &mut self.seen);
        eventually(PATIENT, what, async || {
            let page = page(cluster, store).await?;
            seen.add(store, &page);
            if samples(&page).iter().any(&is) {
                Ok(())
            } else {
                let name = what.split(' ').next().unwrap();
                let lines = page.lines().filter(|line| line.contains(name));
                Err(lines.collect::<Vec<_>>().join("\n"))
            }
        })
        .await;
    }

    async fn on(&self, store: usize, namespace: &str) -> Plain {
        Plain::on(&self.cluster, store).await.namespace(namespace)
    }

    async fn modes(&self, store: usize) -> RaftServiceClient<tonic::transport::Channel> {
        RaftServiceClient::new(channel(self.cluster.addr(store)).await)
    }

    async fn switch(&self, namespace: &str, mode: i32) -> Result<(), Status> {
        let request = UpdateNamespaceModeRequest {
            namespace: namespace.to_owned(),
            mode,
            wait: true,
            ..Default::default()
        };
        let mut stream = self
            .modes(0)
            .await
            .update_namespace_mode(request)
            .await?
            .into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    }

    /// Writes, reads and compare-and-swap, with no fault at all.
    async fn requests(&mut self) {
        let bank = self.on(0, "bank").await;
        for name in ["a", "b", "c"] {
            bank.put(&key(name), &value(name)).await.unwrap();
        }
        let version = bank.get(&key("a")).await.unwrap().version;
        let swapped = bank
            .cas(&key("a"), version, &value("a2"), "")
            .await
            .unwrap();
        assert!(swapped.success);
        assert!(
            !bank
                .cas(&key("a"), version, &value("a3"), "")
                .await
                .unwrap()
                .success
        );
        bank.delete(&key("b"), "").await.unwrap();
        let scan = ScanRequest {
            prefix: KEY.into(),
            ..Default::default()
        };
        assert_eq!(bank.scan(scan).await.unwrap().0.len(), 2);
        for store in 0..3 {
            let cart = self.on(store, "cart").await;
            for turn in 0..20 {
                let name = format!("{store}-{turn}");
                cart.put(&key(&name), &value(&name)).await.unwrap();
            }
            cart.get_as(&key("0-0"), stale()).await.unwrap();
        }
        // Names that do not exist are no labels.
        let nobody = self.on(1, "nobody").await;
        refused(nobody.get(&key("a")).await);
        self.until(
            1,
            "flaredb_convergence_seconds of writes of other stores",
            |it| it.name == "flaredb_convergence_seconds_count" && it.number() > 0.0,
        )
        .await;
        let create = CreateNamespaceRequest {
            name: "orders".into(),
            mode: STRONG,
            ..Default::default()
        };
        self.modes(1).await.create_namespace(create).await.unwrap();
        let update = UpdateNamespaceRequest {
            name: "cart".into(),
            policies: Some(Policies {
                max_lag_ms: 300,
                ..Default::default()
            }),
        };
        self.modes(2).await.update_namespace(update).await.unwrap();
        self.scrape().await;
    }

    /// A store is cut off and both sides go on; then it is healed.
    async fn a_cut(&mut self) {
        self.cluster.move_leader(DATA, 0).await;
        let (here, there) = (self.on(0, "cart").await, self.on(2, "cart").await);
        // A store that has never said what it has is behind by nobody knows how much.
        let of_third = |it: &Sample| it.label("store") == Some("3");
        self.until(0, "flaredb_replication_lag_writes before the cut", |it| {
            it.name == "flaredb_replication_lag_writes" && of_third(it)
        })
        .await;
        self.cluster.mesh().isolate(2);
        for turn in 0..5 {
            let name = format!("both-{turn}");
            here.put(&key(&name), &value("here")).await.unwrap();
            there.put(&key(&name), &value("there")).await.unwrap();
        }
        self.until(
            0,
            "flaredb_replication_lag_writes of the store that is cut off",
            |it| it.name == "flaredb_replication_lag_writes" && of_third(it) && it.number() >= 5.0,
        )
        .await;
        self.until(0, "flaredb_replication_lag_breaches_total of it", |it| {
            it.name == "flaredb_replication_lag_breaches_total" && of_third(it)
        })
        .await;
        self.until(0, "flaredb_replication_lag_seconds of it", |it| {
            it.name == "flaredb_replication_lag_seconds" && of_third(it) && it.number() > 0.3
        })
        .await;
        self.until(0, "flaredb_store_contact_age_seconds of it", |it| {
            it.name == "flaredb_store_contact_age_seconds" && of_third(it) && it.number() > 3.0
        })
        .await;
        // A strong write at the store without a quorum.
        let alone = self.on(2, "bank").await;
        refused(alone.put(&key("lost"), &value("lost")).await);
        for name in [
            "flaredb_quorum_available",
            "flaredb_quorum_rejections_total",
        ] {
            let wanted = f64::from(u8::from(name.ends_with("_total")));
            self.until(2, name, |it| {
                let of_bank = it.label("namespace").is_none_or(|name| name == "bank");
                it.name == name && of_bank && (it.number() - wanted).abs() < 0.5
            })
            .await;
        }
        // Enough for the log to be behind by more than it keeps, and more than the connection holds: a
        // snapshot comes.
        let bank = self.on(0, "bank").await;
        for turn in 0..900 {
            let name = format!("many-{turn}");
            let large = value(&name).repeat(300);
            bank.put(&key(&name), &large).await.unwrap();
        }
        self.until(0, "flaredb_raft_follower_lag_entries of it", |it| {
            it.name == "flaredb_raft_follower_lag_entries" && of_third(it) && it.number() > 0.0
        })
        .await;
        self.cluster.mesh().heal();
        self.until(0, "flaredb_conflicts_total after the cut", |it| {
            it.name == "flaredb_conflicts_total" && it.number() > 0.0
        })
        .await;
        self.until(0, "flaredb_replication_lag_writes after the cut", |it| {
            it.name == "flaredb_replication_lag_writes" && of_third(it) && it.number() < 0.5
        })
        .await;
        self.until(2, "flaredb_quorum_available after the cut", |it| {
            it.name == "flaredb_quorum_available" && it.number() > 0.5
        })
        .await;
        let third = self.on(2, "bank").await;
        eventually(
            PATIENT,
            "the third store serves what it missed",
            async || {
                let read = third.get(&key("many-149")).await;
                read.map(drop).map_err(|status| status.to_string())
            },
        )
        .await;
        self.scrape().await;
    }

    /// There and back; and one that cannot end.
    async fn switches(&mut self) {
        self.switch("cart", STRONG).await.unwrap();
        self.scrape().await;
        let cart = self.on(0, "cart").await;
        cart.put(&key("strong"), &value("strong")).await.unwrap();
        self.switch("cart", EVENTUAL).await.unwrap();
        self.scrape().await;
        self.cluster.move_leader(META, 0).await;
        self.cluster.mesh().isolate(2);
        let asked = UpdateNamespaceModeRequest {
            namespace: "cart".into(),
            mode: STRONG,
            ..Default::default()
        };
        let begun = self.modes(0).await.update_namespace_mode(asked).await;
        let mut begun = begun.unwrap().into_inner();
        while begun.message().await.unwrap().is_some() {}
        self.until(1, "flaredb_mode_switch_under_way_seconds of cart", |it| {
            let way = [it.label("from"), it.label("to")];
            it.name == "flaredb_mode_switch_under_way_seconds"
                && way == [Some("eventual"), Some("strong")]
                && it.number() > 1.0
        })
        .await;
        self.until(
            0,
            "flaredb_mode_switches_total of one that was given up",
            |it| it.name == "flaredb_mode_switches_total" && it.label("outcome") == Some("aborted"),
        )
        .await;
        self.cluster.mesh().heal();
        let (cluster, seen) = (&self.cluster, &mut self.seen);
        eventually(PATIENT, "no switch is under way", async || {
            let page = page(cluster, 1).await?;
            seen.add(1, &page);
            let found = samples(&page);
            let name = "flaredb_mode_switch_under_way_seconds";
            match found.iter().find(|it| it.name == name) {
                None => Ok(()),
                Some(sample) => Err(format!("{sample:?}")),
            }
        })
        .await;
    }

    /// A store's configuration says something else for a while.
    async fn a_mismatch(&mut self) {
        for (mode, wanted) in [("eventual", 1.0), ("strong", 0.0)] {
            declare(&self.config, mode);
            self.cluster.node(1).signal("HUP").unwrap();
            self.until(1, "flaredb_namespace_mode_mismatch of logs", |it| {
                it.name == "flaredb_namespace_mode_mismatch"
                    && it.label("namespace") == Some("logs")
                    && (it.number() - wanted).abs() < 0.5
            })
            .await;
        }
    }

    /// The leader is killed, then the quorum, and all come back.
    async fn crashes(&mut self) {
        let leader = self.cluster.leader_of(DATA).await;
        self.cluster.kill(leader);
        let others: Vec<usize> = (0..3).filter(|store| *store != leader).collect();
        let next = self.cluster.leader_among(DATA, &others).await;
        self.until(next, "flaredb_raft_is_leader of the next one", |it| {
            it.name == "flaredb_raft_is_leader"
                && it.label("region") == Some("2")
                && it.number() > 0.5
        })
        .await;
        self.scrape().await;
        self.cluster.kill(next);
        let last = self.cluster.other_than(&[leader, next]);
        self.until(last, "flaredb_quorum_available of the last one", |it| {
            it.name == "flaredb_quorum_available" && it.number() < 0.5
        })
        .await;
        for store in [leader, next] {
            self.cluster.restart(store).await;
        }
        self.scrape().await;
    }

    /// One store's clock is an hour ahead. Needs libfaketime, as the harness of faults does.
    async fn a_wrong_clock(&mut self) -> bool {
        let Some(library) = rdb_chaos::cluster::faketime() else {
            return false;
        };
        self.cluster.kill(2);
        let env = [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME", "+3600s".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value));
        self.cluster.node_mut(2).set_env(env.to_vec());
        self.cluster.restart(2).await;
        self.until(2, "flaredb_clock_off of it", |it| {
            it.name == "flaredb_clock_off" && it.number() > 0.5
        })
        .await;
        refused(
            self.on(2, "cart")
                .await
                .put(&key("late"), &value("late"))
                .await,
        );
        self.until(2, "flaredb_clock_skew_rejections_total of it", |it| {
            it.name == "flaredb_clock_skew_rejections_total" && it.number() > 0.5
        })
        .await;
        self.until(2, "flaredb_clock_skew_ms of it", |it| {
            it.name == "flaredb_clock_skew_ms" && it.number() > 3_000_000.0
        })
        .await;
        self.cluster.stop(2).await;
        self.cluster.node_mut(2).set_env(Vec::new());
        self.cluster.restart(2).await;
        self.until(2, "flaredb_clock_off of a clock set right", |it| {
            it.name == "flaredb_clock_off" && it.number() < 0.5
        })
        .await;
        true
    }
}

async fn page(cluster: &Cluster, store: usize) -> Result<String, String> {
    let answer = http::get(cluster.http_addr(store), "/metrics").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    for secret in [KEY, VALUE] {
        assert!(
            !answer.body.contains(secret),
            "{secret} in\n{}",
            answer.body
        );
    }
    Ok(answer.body)
}

fn declare(config: &Path, mode: &str) {
    fs::write(config, format!("[namespaces.logs]\nmode = \"{mode}\"\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_moves_every_decision_is_logged_and_no_key_or_value_is_shown() {
    let mut story = Story::begin().await;
    story.requests().await;
    story.a_cut().await;
    story.switches().await;
    story.a_mismatch().await;
    story.crashes().await;
    let clocks = story.a_wrong_clock().await;
    if !clocks {
        // Shown although the test passes: .config/nextest.toml.
        println!(
            "\nSKIPPED: no store had a wrong clock, because libfaketime is not installed (scripts/test-setup.sh): \
             what is counted and logged of clocks was not seen to move\n"
        );
    }
    let needs_clocks = |name: &str| !clocks && name.contains("_clock_");
    let mut wrong = Vec::new();
    for it in CATALOG {
        let labels = story.seen.labels(it.name);
        let expected: Vec<String> = it.labels.iter().map(|label| (*label).to_owned()).collect();
        // A stream is held only where a clock jumps while it runs: test_consistency and the harness of faults.
        if it.name == "flaredb_held_streams" {
            continue;
        }
        if labels.len() != 1 || !labels.contains(&expected) {
            wrong.push(format!("{}: labels {labels:?}, not {expected:?}", it.name));
        }
        let still = STILL.iter().find(|(name, _)| *name == it.name);
        let comes = COMES.iter().find(|(name, _)| *name == it.name);
        for labels in comes.iter().flat_map(|(_, labels)| *labels) {
            if !story.seen.came(it.name, labels) {
                wrong.push(format!("{} did not come with {labels:?}", it.name));
            }
        }
        match still {
            _ if comes.is_some() => {}
            _ if needs_clocks(it.name) => {}
            None if !story.seen.moved(it.name) => wrong.push(format!("{} did not move", it.name)),
            Some((_, may)) if !may.is_empty() => {
                let odd: Vec<_> = story.seen.values(it.name).into_iter().collect();
                // Some of them may move: only what has another value in the end is told.
                if !story.seen.moved(it.name) && odd.iter().any(|value| !may.contains(value)) {
                    wrong.push(format!("{}: {odd:?}, not {may:?}", it.name));
                }
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (name, labels) in CONTRACT {
        let listed = CATALOG.iter().find(|it| it.name == *name);
        assert_eq!(listed.map(|it| it.labels), Some(*labels), "{name}");
    }
    for store in 0..3 {
        story.cluster.stop(store).await;
    }
    judge_logs(&story.cluster);
}

/// Every line is JSON, nothing of a key or a value is in any, and each decision is there with its fields.
fn judge_logs(cluster: &Cluster) {
    let mut events: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for store in 0..cluster.len() {
        let log = cluster.log(store);
        assert!(
            log.contains("\"level\":\"DEBUG\""),
            "nothing of the level debug"
        );
        for line in log.lines() {
            for secret in [KEY, VALUE] {
                assert!(!line.contains(secret), "{secret} in {line}");
            }
            let event: Value = serde_json::from_str(line).unwrap_or_else(|error| {
                panic!("not JSON ({error}): {line}");
            });
            let message = event["message"].as_str().unwrap_or_default().to_owned();
            events.entry(message).or_default().push(event);
        }
    }
    let mut missing = Vec::new();
    for (message, fields) in EVENTS.iter().chain([&BY_CHANCE]) {
        let found = events
            .iter()
            .filter(|(told, _)| told.starts_with(message))
            .flat_map(|(_, events)| events);
        let found: Vec<&Value> = found.collect();
        let whole = |event: &&Value| fields.iter().all(|field| event.get(field).is_some());
        match found.iter().find(|event| whole(event)) {
            Some(_) => {}
            None if found.is_empty() && *message == BY_CHANCE.0 => {}
            None if found.is_empty() => missing.push(format!("{message:?} was not said")),
            None => missing.push(format!("{fields:?} not in {}", found[0])),
        }
    }
    let said: Vec<&String> = events.keys().collect();
    assert!(missing.is_empty(), "{missing:#?}; said: {said:#?}");
}
