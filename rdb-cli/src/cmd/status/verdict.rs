//! The first lines of the status: "healthy", or what is wrong and what to do about it.
//!
//! Pure. What is found is of three kinds: regions where nothing can be written, what works with less to spare, and
//! notes, which are nothing to worry about.
//!
//! Invariant: the verdict is "healthy" only when every store answers, every region has a quorum, no data is
//! damaged, no replica is behind its leader, no store's clock is off and none's disk is filling, every store follows the modes of the cluster, no
//! switch takes long, and every eventual namespace is within its objective for lag, holds nobody's writes back, and
//! has no two replicas that differ where they should not. Each finding says what to do next. However many namespaces
//! there are, findings of one kind are a few, and the number of the others.

mod namespaces;

use super::bytes;
use super::lag;
use super::view::{Region, name, reports, switches};
use crate::exit;
use namespaces::{Found, Kind, of_conflicts, of_modes, of_replica, of_switch};
use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::convert;
use rdb_proto::raft::{DiskStatus, NamespaceRow, StoreStatus};
use rdb_types::Mode;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// A disk with less than this part of it left is filling, as the alert `FlareDBDiskFilling` says.
const FILLING: f64 = 0.10;
/// With less than this it is nearly full, as `FlareDBDiskNearlyFull` says.
const NEARLY_FULL: f64 = 0.03;
/// A switch that takes longer is stuck, as `FlareDBSwitchStuck` says: it is given up after `switch_timeout`, 10 s.
const STUCK_MS: u64 = 60_000;

/// Of one kind of finding so many are told; the others are a number.
const OF_A_KIND: usize = 3;

/// What is wrong, the worst first, and what to do about each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Regions where nothing can be written: the cluster is down for their keys.
    pub(crate) lost: Vec<String>,
    /// Works, with less to spare.
    pub(crate) degraded: Vec<String>,
    /// Good to know.
    pub(crate) notes: Vec<String>,
}

impl Verdict {
    pub(crate) fn of(answer: &ClusterStatusResponse) -> Verdict {
        let mut verdict = Verdict::default();
        verdict.of_quorums(answer);
        for store in &answer.stores {
            match store.status.as_ref().filter(|_| store.reachable) {
                None => verdict.of_silent(store),
                Some(status) => verdict.of_store(store, status),
            }
        }
        let rows = answer.namespaces.iter().filter(|row| !row.deleted);
        let modes: Vec<Found> = rows.map(|row| of_modes(answer, row)).collect();
        let switches: Vec<Found> = switches(answer).iter().map(of_switch).collect();
        let lags = lag::of(answer);
        let replicas = lags.iter().flat_map(|(row, replicas)| {
            let replicas = replicas.iter();
            replicas.map(|replica| of_replica(row, replica))
        });
        for found in [
            modes,
            switches,
            replicas.collect(),
            vec![of_conflicts(answer)],
        ] {
            verdict.add(found);
        }
        verdict
    }

    /// What was found of namespaces: a few of each kind by name, the others by their number.
    fn add(&mut self, found: Vec<Found>) {
        let mut kinds: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        for (kind, text) in found.into_iter().flatten() {
            kinds.entry(kind).or_default().push(text);
        }
        for (kind, mut texts) in kinds {
            let further = texts.len().saturating_sub(OF_A_KIND);
            texts.truncate(OF_A_KIND);
            if further > 0 {
                texts.push(format!("and {further} more {}", kind.others()));
            }
            match kind.is_note() {
                true => self.notes.extend(texts),
                false => self.degraded.extend(texts),
            }
        }
    }

    fn of_quorums(&mut self, answer: &ClusterStatusResponse) {
        for region in &answer.regions {
            let view = Region::of(answer, region.id);
            if view.quorum {
                continue;
            }
            let do_next = match answer.stores.iter().all(|store| store.reachable) {
                true => {
                    "all stores are there, but they do not reach each other, or are too slow to: look at the network \
                     between them, and at their load"
                }
                false => "start the missing stores again, or mend the network between them",
            };
            let sealing = match &sealing(answer, region.id)[..] {
                [] => String::new(),
                names => format!(
                    ", nor to {}, whose writes wait for the end of a switch",
                    a_few(names)
                ),
            };
            self.lost.push(format!(
                "region {} has no quorum ({} of {} stores report it): nothing can be written to strong namespaces \
                 there{sealing}; {do_next}",
                region.id,
                view.replicas,
                answer.stores.len()
            ));
        }
        if answer.regions.is_empty() {
            self.lost.push(
                "the cluster has not formed yet: no region is known; start all first members, with the same --peer \
                 list: it begins once every one of them answers (a store's log says whom it waits for)"
                    .to_owned(),
            );
        }
    }

    fn of_silent(&mut self, store: &StoreSummary) {
        let (id, address) = name(store);
        let why = if store.error.is_empty() {
            "no answer"
        } else {
            &store.error
        };
        self.degraded.push(format!("store {id} at {address} is unreachable ({why}): start it again, or check the network to it"));
    }

    fn of_store(&mut self, store: &StoreSummary, status: &StoreStatus) {
        let (id, address) = name(store);
        for region in status.regions.iter().filter(|it| !it.damage.is_empty()) {
            self.degraded.push(format!(
                "the data of region {} on store {id} at {address} is damaged ({}): stop that store and do not use its \
                 directory any more; the other stores serve on",
                region.region_id, region.damage
            ));
        }
        for region in &status.regions {
            if region.namespaces.iter().any(|it| it.fresh_copy_needed) {
                self.degraded.push(format!(
                    "store {id} at {address} waits for a fresh copy of region {}, and serves nothing of it until then: it \
                     comes by itself once another store that has it is reached",
                    region.region_id
                ));
            }
        }
        for region in status.regions.iter().filter(|it| !it.behind.is_empty()) {
            self.degraded.push(format!(
                "store {id} at {address} is behind in region {} ({}): linearizable reads there are answered by the \
                 other stores until it has caught up",
                region.region_id, region.behind
            ));
        }
        if let Some(disk) = status.disk.filter(|disk| disk.total_bytes > 0) {
            self.of_disk(id, address, disk);
        }
        if let Some(clock) = status.clock.filter(|clock| clock.off) {
            let skew_ms = clock.skew_ms.unwrap_or_default();
            let side = if skew_ms < 0 { "behind" } else { "ahead of" };
            let seconds = skew_ms.unsigned_abs() as f64 / 1e3;
            self.degraded.push(format!(
                "the clock of store {id} at {address} is {seconds:.1} s {side} the others: it refuses eventual \
                 writes; set that machine's clock right (NTP)"
            ));
        }
    }

    fn of_disk(&mut self, id: u32, address: &str, disk: DiskStatus) {
        if disk.room > 0 || disk.stalled {
            return self.of_full_disk(id, address, disk);
        }
        let left = disk.free_bytes as f64 / disk.total_bytes as f64;
        if left >= FILLING {
            return;
        }
        let (state, what) = if left < NEARLY_FULL {
            (
                "nearly full",
                "make room at once: the store takes no data on a full disk",
            )
        } else {
            (
                "filling",
                "make room, add a larger disk, or delete what is not needed (`flaredb ns list` shows sizes)",
            )
        };
        self.degraded.push(format!(
            "the disk of store {id} at {address} is {state} ({} of {} free, {} are the database's): {what}",
            bytes(disk.free_bytes),
            bytes(disk.total_bytes),
            bytes(disk.used_bytes)
        ));
    }

    fn of_full_disk(&mut self, id: u32, address: &str, disk: DiskStatus) {
        let goes_on = match disk.room {
            _ if disk.stalled => "it can write nothing at all, not even deletes",
            1 => "it takes no more data (NO_SPACE), deletes and reads go on",
            _ => {
                "it takes no more data (NO_SPACE) and falls behind the other stores, deletes and reads go on"
            }
        };
        let do_next = match disk.stalled {
            true => "remove what is not FlareDB's from that disk, or enlarge it",
            false => {
                "delete what is not needed (`flaredb ns list` shows sizes) or make room on that disk"
            }
        };
        self.degraded.push(format!(
            "the disk of store {id} at {address} is full ({} of {} free, {} are kept, {} are the database's): {goes_on}; \
             {do_next}, and it goes on by itself",
            bytes(disk.free_bytes),
            bytes(disk.total_bytes),
            bytes(disk.reserve_bytes),
            bytes(disk.used_bytes)
        ));
    }

    pub(crate) fn word(&self) -> &'static str {
        match (self.lost.is_empty(), self.degraded.is_empty()) {
            (false, _) => "no quorum",
            (true, false) => "degraded",
            (true, true) => "healthy",
        }
    }

    pub(crate) fn findings(&self) -> impl Iterator<Item = &String> {
        self.lost.iter().chain(&self.degraded)
    }

    /// Degraded is still serving: 0.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.lost.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

/// The first names, and how many more there are.
fn a_few(names: &[&str]) -> String {
    let told = names.iter().take(OF_A_KIND).copied();
    let told = told.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(OF_A_KIND) {
        0 => told,
        further => format!("{told} and {further} more"),
    }
}

/// Eventual namespaces that are sealed in a region: they take no writes until the region has a quorum.
fn sealing(answer: &ClusterStatusResponse, region: u64) -> Vec<&str> {
    let is_sealed = |row: &&NamespaceRow| {
        let mut of_row = reports(answer, region)
            .flat_map(|(_, report)| &report.namespaces)
            .filter(|report| report.namespace_id == row.id);
        convert::mode(row.mode) == Some(Mode::Eventual) && of_row.any(|report| report.sealing)
    };
    let rows = answer.namespaces.iter().filter(|row| !row.deleted);
    rows.filter(is_sealed).map(|row| &*row.name).collect()
}
