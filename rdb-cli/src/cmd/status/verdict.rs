//! The first lines of the status: "healthy", or what is wrong and what to do about it.
//!
//! Pure. What is found is of three kinds: regions where nothing can be written, what works with less to spare, and
//! notes, which are nothing to worry about.
//!
//! Invariant: the verdict is "healthy" only when every store answers, every region has a quorum, no data is
//! damaged, no replica is behind its leader, no store's clock is off and none's disk is filling, every store follows the modes of the cluster, no
//! switch takes long, and every eventual namespace is within its objective for lag, holds nobody's writes back, and
//! has no two replicas that differ where they should not. Each finding says what to do next.

use super::lag;
use super::view::{Region, Switch, name, reports, switches};
use super::{age, bytes};
use crate::cmd::ns::mode;
use crate::exit;
use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::raft::{DiskStatus, NamespaceRow, StoreStatus};
use std::process::ExitCode;

/// A disk with less than this part of it left is filling, as the alert `FlareDBDiskFilling` says.
const FILLING: f64 = 0.10;
/// With less than this it is nearly full, as `FlareDBDiskNearlyFull` says.
const NEARLY_FULL: f64 = 0.03;
/// A switch that takes longer is stuck, as `FlareDBSwitchStuck` says: it is given up after `switch_timeout`, 10 s.
const STUCK_MS: u64 = 60_000;

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
        for row in answer.namespaces.iter().filter(|row| !row.deleted) {
            verdict.of_modes(answer, row);
        }
        for switch in switches(answer) {
            verdict.of_switch(&switch);
        }
        for (row, replicas) in lag::of(answer) {
            for replica in &replicas {
                verdict.of_replica(row, replica);
            }
        }
        verdict.of_conflicts(answer);
        verdict
    }

    fn of_quorums(&mut self, answer: &ClusterStatusResponse) {
        for region in &answer.regions {
            let view = Region::of(answer, region.id);
            if !view.quorum {
                let reached = view.replicas;
                self.lost.push(format!(
                    "region {} has no quorum ({reached} of {} stores report it): nothing can be written to strong \
                     namespaces there; start the missing stores again, or mend the network between them",
                    region.id,
                    answer.stores.len()
                ));
            }
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
        self.degraded.push(format!(
            "the disk of store {id} at {address} is full ({} of {} free, {} are kept, {} are the database's): {goes_on}; \
             delete what is not needed (`flaredb ns list` shows sizes) or make room on that disk, and it goes on by itself",
            bytes(disk.free_bytes),
            bytes(disk.total_bytes),
            bytes(disk.reserve_bytes),
            bytes(disk.used_bytes)
        ));
    }

    fn of_modes(&mut self, answer: &ClusterStatusResponse, row: &NamespaceRow) {
        // While it switches, the mode that it will have.
        let wanted = if row.target == 0 {
            row.mode
        } else {
            row.target
        };
        let (mut declares, mut follows) = (Vec::new(), Vec::new());
        for store in &answer.stores {
            let id = name(store).0;
            let declared = store.status.iter().flat_map(|status| &status.declared);
            let mut of_row = declared.filter(|declared| declared.name == row.name);
            if of_row.any(|declared| declared.mode != wanted) {
                declares.push(id);
                continue;
            }
            // A store knows of itself, the one that leads the meta region of all.
            let told = answer.stores.iter().flat_map(|store| &store.status);
            let mut told = told.flat_map(|status| &status.mismatches);
            if told.any(|it| it.namespace_id == row.id && it.store_id == id) {
                follows.push(id);
            }
        }
        let list = |stores: &[u32]| {
            let ids: Vec<String> = stores.iter().map(u32::to_string).collect();
            ids.join(", ")
        };
        let (name, mode) = (&row.name, mode(row.mode));
        if !declares.is_empty() {
            self.degraded.push(format!(
                "namespace {name} is {mode}, but store {} is configured otherwise: make the configurations equal, or \
                 switch it with `flaredb ns set-mode`",
                list(&declares)
            ));
        }
        if !follows.is_empty() {
            self.degraded.push(format!(
                "store {} has not followed namespace {name}, which is {mode}: `flaredb ns modes` says what it has, since \
                 when; it follows by itself once it reaches the others, so look at its log and its network",
                list(&follows)
            ));
        }
    }

    fn of_switch(&mut self, switch: &Switch<'_>) {
        let Switch { row, for_ms, .. } = switch;
        let name = &row.name;
        let waits = match (&*switch.waiting_for, &*switch.why) {
            ([], "") => String::new(),
            ([], why) => format!(" ({why})"),
            (stores, _) => {
                let ids: Vec<String> = stores.iter().map(u32::to_string).collect();
                format!(" (it waits for store {})", ids.join(", "))
            }
        };
        let what = match switch.undone {
            true => format!("goes back to {}", mode(row.mode)),
            false => format!("switches from {} to {}", mode(row.mode), mode(row.target)),
        };
        let told = format!("namespace {name} {what}, since {}{waits}", age(*for_ms));
        if *for_ms < STUCK_MS {
            self.notes.push(told);
        } else if switch.undone {
            self.degraded.push(format!(
                "{told}: it cannot end before its regions have a quorum; start the stores that are missing"
            ));
        } else {
            self.degraded.push(format!(
                "{told}: start the stores that it waits for, go on without them (`flaredb ns set-mode {name} {} \
                 --accept-missing ID`), or take it back (`flaredb ns set-mode {name} --cancel`)",
                mode(row.target)
            ));
        }
    }

    fn of_replica(&mut self, row: &NamespaceRow, replica: &lag::Replica) {
        let (name, store) = (&row.name, replica.store);
        if replica.differs {
            self.degraded.push(format!(
                "store {store} holds other data of namespace {name} than a replica that has the same writes: a defect, \
                 or a damaged disk; it is repaired by itself, and `flaredb verify {name}` tells when it is"
            ));
        }
        for held in &replica.held {
            self.degraded.push(format!(
                "the writes of store {} to namespace {name} wait at store {store}, since {}: they are stamped {} ahead of \
                 its clock; mend the clock that is wrong (`flaredb advance-clock`, where store {}'s was right)",
                held.origin,
                age(held.held_ms),
                age(held.ahead_ms),
                held.origin
            ));
        }
        let objective_ms = lag::objective_ms(row);
        if objective_ms > 0 && replica.lag_ms > objective_ms {
            self.degraded.push(format!(
                "store {store} is {} behind in namespace {name} ({} writes), and max_lag is {}: it catches up by itself \
                 once it is reached; is it up, is its network, is its disk slow?",
                age(replica.lag_ms),
                replica.lag_writes.unwrap_or(0),
                age(objective_ms)
            ));
        }
    }

    /// Those in the logs now. What is listed at one replica is what the others list, or will.
    fn of_conflicts(&mut self, answer: &ClusterStatusResponse) {
        for row in answer.namespaces.iter().filter(|row| !row.deleted) {
            let of_region = |region: u64, field: fn(&rdb_proto::raft::NamespaceReport) -> u64| {
                let reports = reports(answer, region).flat_map(|(_, report)| &report.namespaces);
                let own = reports.filter(|report| report.namespace_id == row.id);
                own.map(field).max().unwrap_or(0)
            };
            let sum = |field| {
                let regions = answer.regions.iter();
                regions
                    .map(|region| of_region(region.id, field))
                    .sum::<u64>()
            };
            let (listed, dropped) = (sum(|it| it.conflicts), sum(|it| it.conflicts_dropped));
            if listed == 0 && dropped == 0 {
                continue;
            }
            let pushed_out = match dropped {
                0 => String::new(),
                _ => format!(
                    ", and {dropped} more were pushed out of its log and cannot be restored (raise conflict_log)"
                ),
            };
            self.notes.push(format!(
                "namespace {0} lists {listed} writes that lost to concurrent ones{pushed_out}: `flaredb conflicts {0}` \
                 shows them, and restores them",
                row.name
            ));
        }
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
