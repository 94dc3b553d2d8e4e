//! JSON documents: what the messages of gRPC look like here.
//!
//! Owns names and forms. Fields have the names of the proto files and of `flaredb -o json`; numbers of 64 bits are
//! strings, since many readers of JSON keep 53 bits of a number. Knows nothing of requests.

use super::bytes::text_or_base64;
use rdb_proto::{admin, convert, kv, raft};
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use utoipa::ToSchema;

/// A number of 64 bits, as decimal text.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(value_type = String, pattern = "^-?[0-9]{1,20}$", example = "42")]
pub(super) struct Digits(String);

impl From<u64> for Digits {
    fn from(number: u64) -> Digits {
        Digits(number.to_string())
    }
}

impl From<i64> for Digits {
    fn from(number: i64) -> Digits {
        Digits(number.to_string())
    }
}

/// A mode, as users write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Linearizable.
    Strong,
    /// Every replica takes writes.
    Eventual,
}

impl From<Mode> for i32 {
    fn from(mode: Mode) -> i32 {
        match mode {
            Mode::Strong => kv::Mode::Strong as i32,
            Mode::Eventual => kv::Mode::Eventual as i32,
        }
    }
}

/// How fresh a read is.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it describes a parameter, which `Query` reads")]
pub(super) enum Consistency {
    /// What the namespace's mode offers.
    Default,
    /// `WRONG_MODE` in an eventual namespace.
    Linearizable,
    /// This replica, now.
    Stale,
}

/// Whatever is there.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes a header, which `kv` reads")]
pub(super) enum Star {
    /// Nothing may be there.
    #[schema(rename = "*")]
    Star,
}

/// `strong`, `eventual`; `unspecified` where none is meant, and so is one of a newer store.
pub(super) fn mode_name(wire: i32) -> &'static str {
    convert::mode(wire).map_or("unspecified", |mode| mode.as_str())
}

fn state_name(wire: i32) -> &'static str {
    match raft::State::try_from(wire) {
        Ok(raft::State::Stable) => "stable",
        Ok(raft::State::Switching) => "switching",
        Ok(raft::State::Sealing) => "sealing",
        Ok(raft::State::Unspecified) | Err(_) => "unspecified",
    }
}

/// How an answer was served.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Receipt {
    #[schema(example = "strong")]
    mode: &'static str,
    epoch: Digits,
    store_id: u32,
    region_id: Digits,
    revision: Digits,
    staleness_bound_ms: Digits,
    /// What the session has seen, base64: for the header FlareDB-Session.
    session: String,
}

impl From<&kv::Receipt> for Receipt {
    fn from(receipt: &kv::Receipt) -> Receipt {
        use base64::Engine;
        Receipt {
            mode: mode_name(receipt.mode),
            epoch: receipt.epoch.into(),
            store_id: receipt.store_id,
            region_id: receipt.region_id.into(),
            revision: receipt.revision.into(),
            staleness_bound_ms: receipt.staleness_bound_ms.into(),
            session: base64::prelude::BASE64_STANDARD.encode(&receipt.session),
        }
    }
}

/// A value was written.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Written)]
pub(super) struct Put {
    /// The new version: what `If-Match` takes, in quotes.
    pub(super) version: Digits,
    pub(super) receipt: Receipt,
}

/// A key was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deleted {
    /// Whether it was there.
    pub(super) existed: bool,
    /// The version of the deletion; 0 where nothing had to be deleted, and of a compare-and-swap.
    pub(super) version: Digits,
    pub(super) receipt: Receipt,
}

/// A key and its value in a listing. A key or value that is UTF-8 stands in `key` or `value`, any other in
/// `key_base64` or `value_base64`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    version: Digits,
    revision: Digits,
    create_revision: Digits,
    /// Unix time; 0: never.
    expires_at_ms: Digits,
}

impl Entry {
    /// `keys_only`: the value was not asked for.
    pub(super) fn of(entry: &kv::KeyValue, keys_only: bool) -> Entry {
        let (key, key_base64) = text_or_base64(&entry.key);
        let (value, value_base64) = if keys_only {
            (None, None)
        } else {
            text_or_base64(&entry.value)
        };
        Entry {
            key,
            key_base64,
            value,
            value_base64,
            version: entry.version.into(),
            revision: entry.revision.into(),
            create_revision: entry.create_revision.into(),
            expires_at_ms: entry.expires_at_ms.into(),
        }
    }
}

/// A listing.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "it describes what `listing` writes piece by piece"
)]
pub(super) struct Listing {
    entries: Vec<Entry>,
    /// The address of what follows; null: this was all.
    #[schema(required = true)]
    next: Option<String>,
    receipt: Receipt,
}

/// A JSON object, and nothing else: serde takes an array for a struct, too, by the order of its fields.
#[derive(Debug, Default)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                map: A,
            ) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

/// A number of 64 bits in a request: a JSON number, or decimal text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(pub(super) u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number that is not negative, or one as text")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }

            /// To JSON, 5.0 is the number 5.
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Number, E> {
                const EXACT: f64 = (1u64 << 53) as f64;
                if number.fract() == 0.0 && (0.0..=EXACT).contains(&number) {
                    return Ok(Number(number as u64));
                }
                Err(E::invalid_value(
                    serde::de::Unexpected::Float(number),
                    &self,
                ))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                digits
                    .then(|| text.parse().ok())
                    .flatten()
                    .map(Number)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// When an eventual write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Durability {
    /// Once it is synced.
    Sync,
    /// Once it is written.
    Relaxed,
}

/// Policies in a request. Each that is not given keeps its value (PATCH) or gets its default (POST, PUT).
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PoliciesChange {
    durability: Option<Durability>,
    /// Replication lag in milliseconds that is still good; 0: no objective.
    #[schema(value_type = Option<u64>, maximum = 2_592_000_000u64)]
    max_lag_ms: Option<Number>,
    /// How long a key lives that is written without `ttl_ms`; 0: for ever.
    #[schema(value_type = Option<u64>, maximum = 3_162_240_000_000u64)]
    ttl_ms: Option<Number>,
    /// Room for writes that lost a conflict; 0: the default.
    #[schema(value_type = Option<u64>, maximum = 1_099_511_627_776u64)]
    conflict_log_bytes: Option<Number>,
}

impl PoliciesChange {
    /// These policies, changed.
    pub(super) fn on(&self, old: raft::Policies) -> raft::Policies {
        let signed = |new: Option<Number>, old: i64| {
            new.map_or(old, |number| i64::try_from(number.0).unwrap_or(i64::MAX))
        };
        raft::Policies {
            durability: match self.durability {
                None => old.durability,
                Some(Durability::Sync) => "sync".to_owned(),
                Some(Durability::Relaxed) => "relaxed".to_owned(),
            },
            max_lag_ms: signed(self.max_lag_ms, old.max_lag_ms),
            ttl_ms: signed(self.ttl_ms, old.ttl_ms),
            conflict_log_bytes: self
                .conflict_log_bytes
                .map_or(old.conflict_log_bytes, |number| number.0),
        }
    }
}

/// A namespace to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewNamespace {
    /// 1 to 64 of `a-z 0-9 _ . -`, starting with a letter.
    #[schema(pattern = "^[a-z][a-z0-9_.-]{0,63}$", max_length = 64)]
    pub(super) name: String,
    /// Absent: the cluster's default mode.
    pub(super) mode: Option<Mode>,
    #[schema(value_type = Option<PoliciesChange>)]
    pub(super) policies: Option<Object<PoliciesChange>>,
}

/// What of a namespace is to be changed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NamespaceChange {
    #[schema(value_type = PoliciesChange)]
    pub(super) policies: Object<PoliciesChange>,
}

/// Policies in force.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Policies {
    /// sync or relaxed
    #[schema(example = "sync")]
    durability: String,
    max_lag_ms: Digits,
    ttl_ms: Digits,
    conflict_log_bytes: Digits,
}

/// A namespace. Counts are those of the store that answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Namespace {
    id: u32,
    name: String,
    #[schema(example = "strong")]
    mode: &'static str,
    /// stable, switching or sealing
    #[schema(example = "stable")]
    state: &'static str,
    policies: Policies,
    keys: Digits,
    bytes: Digits,
    regions: u32,
}

impl From<raft::Namespace> for Namespace {
    fn from(it: raft::Namespace) -> Namespace {
        let policies = it.policies.unwrap_or_default();
        Namespace {
            id: it.id,
            name: it.name,
            mode: mode_name(it.mode),
            state: state_name(it.state),
            policies: Policies {
                durability: policies.durability,
                max_lag_ms: policies.max_lag_ms.into(),
                ttl_ms: policies.ttl_ms.into(),
                conflict_log_bytes: policies.conflict_log_bytes.into(),
            },
            keys: it.keys.into(),
            bytes: it.bytes.into(),
            regions: it.regions,
        }
    }
}

/// All namespaces.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NamespaceList {
    pub(super) namespaces: Vec<Namespace>,
}

/// The mode of a namespace, and who disagrees.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NamespaceMode {
    namespace: String,
    #[schema(example = "strong")]
    mode: &'static str,
    /// Where a switch goes; else the mode.
    #[schema(example = "strong")]
    target: &'static str,
    epoch: Digits,
    #[schema(example = "stable")]
    state: &'static str,
    from_default: bool,
    mismatched: bool,
    /// What disagrees, in words.
    mismatch: String,
    stores: Vec<StoreMode>,
}

/// A namespace's mode at one store.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StoreMode {
    store_id: u32,
    /// `unspecified`: its configuration says nothing.
    declared: &'static str,
    applied: &'static str,
    epoch: Digits,
    reachable: bool,
    /// Unix time; 0: it is not mismatched.
    mismatched_since_ms: Digits,
}

impl From<raft::NamespaceMode> for NamespaceMode {
    fn from(it: raft::NamespaceMode) -> NamespaceMode {
        NamespaceMode {
            namespace: it.namespace,
            mode: mode_name(it.mode),
            target: mode_name(it.target),
            epoch: it.epoch.into(),
            state: state_name(it.state),
            from_default: it.from_default,
            mismatched: it.mismatched,
            mismatch: it.mismatch,
            stores: it.stores.into_iter().map(StoreMode::from).collect(),
        }
    }
}

impl From<raft::StoreMode> for StoreMode {
    fn from(it: raft::StoreMode) -> StoreMode {
        StoreMode {
            store_id: it.store_id,
            declared: mode_name(it.declared),
            applied: mode_name(it.applied),
            epoch: it.epoch.into(),
            reachable: it.reachable,
            mismatched_since_ms: it.mismatched_since_ms.into(),
        }
    }
}

/// The mode that a namespace shall have.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ModeTarget {
    pub(super) mode: Mode,
    /// Stores without which a namespace may become strong; what only they hold is set aside.
    #[serde(default)]
    #[schema(required = false, value_type = Vec<u32>)]
    pub(super) accept_missing: Vec<Number>,
}

/// How far a switch is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModeChange {
    state: &'static str,
    /// In force now.
    mode: &'static str,
    epoch: Digits,
    /// recorded, draining, sealing, installing, undoing, done
    step: String,
    remaining_writes: Digits,
    regions_done: u32,
    regions_total: u32,
    write_pause_us: Digits,
    /// Stores that it waits for now.
    waiting_for: Vec<u32>,
    why: String,
}

impl From<raft::ModeChange> for ModeChange {
    fn from(it: raft::ModeChange) -> ModeChange {
        ModeChange {
            state: state_name(it.state),
            mode: mode_name(it.mode),
            epoch: it.epoch.into(),
            step: it.step,
            remaining_writes: it.remaining_writes.into(),
            regions_done: it.regions_done,
            regions_total: it.regions_total,
            write_pause_us: it.write_pause_us.into(),
            waiting_for: it.waiting_for,
            why: it.why,
        }
    }
}

/// What a switch would do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Plan {
    would_succeed: bool,
    /// Why it would not.
    obstacles: Vec<String>,
    unreachable_stores: Vec<u32>,
    writes_to_exchange: Digits,
    estimated_write_pause_us: Digits,
    conflicts: Digits,
    clock_skew_us: Digits,
    stops_working: Vec<String>,
    starts_working: Vec<String>,
}

impl From<raft::Plan> for Plan {
    fn from(it: raft::Plan) -> Plan {
        Plan {
            would_succeed: it.would_succeed,
            obstacles: it.obstacles,
            unreachable_stores: it.unreachable_stores,
            writes_to_exchange: it.writes_to_exchange.into(),
            estimated_write_pause_us: it.estimated_write_pause_us.into(),
            conflicts: it.conflicts.into(),
            clock_skew_us: it.clock_skew_us.into(),
            stops_working: it.stops_working,
            starts_working: it.starts_working,
        }
    }
}

/// Who holds what of a namespace.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Replication {
    pub(super) regions: Vec<RegionReplication>,
}

/// One region of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RegionReplication {
    region_id: Digits,
    /// 0: none is known.
    leader: u32,
    quorum: bool,
    mode: &'static str,
    replicas: Vec<Replica>,
}

/// One replica of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Replica {
    store_id: u32,
    reachable: bool,
    /// Age; -1: never, since the stores that answer were started.
    last_contact_ms: Digits,
    lag_writes: Digits,
    lag_ms: Digits,
    /// From an origin to the last of its writes that is here.
    vector: BTreeMap<u32, Digits>,
    applied_index: Digits,
    /// Hexadecimal.
    digest: String,
    epoch: Digits,
    keys: Digits,
    expired_through_ms: Digits,
    partial: bool,
    conflicts: Digits,
    conflicts_dropped: Digits,
    held: Vec<Held>,
}

/// An origin whose writes wait: they are stamped further ahead than any clock may be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Held {
    origin: u32,
    held_ms: Digits,
    ahead_ms: Digits,
}

impl From<raft::RegionStatus> for RegionReplication {
    fn from(it: raft::RegionStatus) -> RegionReplication {
        RegionReplication {
            region_id: it.region_id.into(),
            leader: it.leader,
            quorum: it.quorum,
            mode: mode_name(it.mode),
            replicas: it.replicas.into_iter().map(Replica::from).collect(),
        }
    }
}

impl From<raft::ReplicaStatus> for Replica {
    fn from(it: raft::ReplicaStatus) -> Replica {
        let vector = it.vector.into_iter();
        let held = it.held.into_iter();
        Replica {
            store_id: it.store_id,
            reachable: it.reachable,
            last_contact_ms: it.last_contact_ms.into(),
            lag_writes: it.lag_writes.into(),
            lag_ms: it.lag_ms.into(),
            vector: vector
                .map(|(origin, sequence)| (origin, sequence.into()))
                .collect(),
            applied_index: it.applied_index.into(),
            digest: it.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            epoch: it.epoch.into(),
            keys: it.keys.into(),
            expired_through_ms: it.expired_through_ms.into(),
            partial: it.partial,
            conflicts: it.conflicts.into(),
            conflicts_dropped: it.conflicts_dropped.into(),
            held: held
                .map(|held| Held {
                    origin: held.origin,
                    held_ms: held.held_ms.into(),
                    ahead_ms: held.ahead_ms.into(),
                })
                .collect(),
        }
    }
}

/// A write that lost. Key and value as in [`Entry`].
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Conflict {
    /// For restoring it.
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    deletion: bool,
    version: Digits,
    winner_version: Digits,
    set_aside: bool,
    reason: String,
    /// The replicas in whose logs it stands.
    stores: Vec<u32>,
}

impl From<raft::Conflict> for Conflict {
    fn from(it: raft::Conflict) -> Conflict {
        let (key, key_base64) = text_or_base64(&it.key);
        let (value, value_base64) = if it.deletion {
            (None, None)
        } else {
            text_or_base64(&it.value)
        };
        Conflict {
            id: it.id,
            key,
            key_base64,
            value,
            value_base64,
            deletion: it.deletion,
            version: it.version.into(),
            winner_version: it.winner_version.into(),
            set_aside: it.set_aside,
            reason: it.reason,
            stores: it.stores,
        }
    }
}

/// Writes that lost.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "it describes what `conflicts` writes piece by piece"
)]
pub(super) struct ConflictList {
    conflicts: Vec<Conflict>,
    /// There are more than `limit`.
    more: bool,
    /// Stores whose logs are not in it: they do not answer.
    missing_stores: Vec<u32>,
}

/// Which lost writes to write again: one, or all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Restore {
    /// Of a conflict, as the listing has it.
    #[serde(default)]
    #[schema(required = false)]
    pub(super) id: String,
    #[serde(default)]
    #[schema(required = false)]
    pub(super) all: bool,
    /// Only where the key was not written since.
    #[serde(default)]
    #[schema(required = false)]
    pub(super) if_untouched: bool,
}

/// What came of restoring.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Restored {
    restored: Digits,
    skipped: Digits,
    warnings: Vec<String>,
}

impl From<raft::RestoreConflictResponse> for Restored {
    fn from(it: raft::RestoreConflictResponse) -> Restored {
        Restored {
            restored: it.restored.into(),
            skipped: it.skipped.into(),
            warnings: it.warnings,
        }
    }
}

/// The cluster as the store that answers sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cluster {
    cluster_id: String,
    answered_by: u32,
    stores: Vec<Store>,
    regions: Vec<Region>,
    namespaces: Vec<ClusterNamespace>,
}

/// A store.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Store {
    store_id: u32,
    address: String,
    reachable: bool,
    /// Why it could not be reached.
    error: String,
    /// Absent of a store that could not be reached, as all that follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_ms: Option<Digits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_off: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_skew_ms: Option<Digits>,
}

/// A region, and what its replicas say.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Region {
    region_id: Digits,
    replicas: Vec<RegionReplica>,
}

/// What a store says of its replica.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RegionReplica {
    store_id: u32,
    /// Whom it knows as the leader; 0: none.
    leader: u32,
    term: Digits,
    applied_index: Digits,
    commit_index: Digits,
    quorum: bool,
}

/// A namespace, as the cluster's tables have it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClusterNamespace {
    id: u32,
    name: String,
    mode: &'static str,
    target: &'static str,
}

impl From<admin::ClusterStatusResponse> for Cluster {
    fn from(it: admin::ClusterStatusResponse) -> Cluster {
        let regions = it.regions.iter().map(|region| Region {
            region_id: region.id.into(),
            replicas: replicas_of(region.id, &it.stores),
        });
        let rows = it.namespaces.iter().filter(|row| !row.deleted);
        Cluster {
            cluster_id: it.cluster_id.clone(),
            answered_by: it.answered_by,
            regions: regions.collect(),
            namespaces: rows
                .map(|row| ClusterNamespace {
                    id: row.id,
                    name: row.name.clone(),
                    mode: mode_name(row.mode),
                    target: mode_name(row.target),
                })
                .collect(),
            stores: it.stores.into_iter().map(Store::from).collect(),
        }
    }
}

fn replicas_of(region: u64, stores: &[admin::StoreSummary]) -> Vec<RegionReplica> {
    let statuses = stores.iter().filter_map(|store| store.status.as_ref());
    statuses
        .filter_map(|status| {
            let mut reports = status.regions.iter();
            let report = reports.find(|report| report.region_id == region)?;
            Some(RegionReplica {
                store_id: status.member.as_ref().map_or(0, |member| member.store_id),
                leader: report.leader,
                term: report.term.into(),
                applied_index: report.applied_index.into(),
                commit_index: report.commit_index.into(),
                quorum: report.quorum,
            })
        })
        .collect()
}

impl From<admin::StoreSummary> for Store {
    fn from(it: admin::StoreSummary) -> Store {
        let member = it.member.unwrap_or_default();
        let status = it.status;
        let clock = status.as_ref().and_then(|status| status.clock);
        Store {
            store_id: member.store_id,
            address: member.address,
            reachable: it.reachable,
            error: it.error,
            uptime_ms: status.as_ref().map(|status| status.uptime_ms.into()),
            http_address: status.as_ref().map(|status| status.http_address.clone()),
            version: status.map(|status| status.version),
            clock_off: clock.map(|clock| clock.off),
            clock_skew_ms: clock.and_then(|clock| clock.skew_ms).map(Digits::from),
        }
    }
}
