//! The last lines of the status: "healthy", or what is wrong and what to do about it.
//!
//! Pure. Invariant: the verdict is "healthy" only when every store answers, every region has a quorum, no
//! store's clock is off, no namespace is declared in two modes, and every eventual one is within its objective for lag, holds
//! nobody's writes back, and has no two replicas that differ where they should not.

use super::age;
use super::lag;
use super::view::{Region, name};
use crate::cmd::ns::mode;
use crate::exit;
use rdb_proto::admin::ClusterStatusResponse;
use rdb_proto::raft::NamespaceRow;
use std::process::ExitCode;

/// What is wrong, the worst first, and what to do about each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Regions where nothing can be written: the cluster is down for their keys.
    pub(super) lost: Vec<String>,
    /// Works, with less to spare.
    pub(super) degraded: Vec<String>,
}

impl Verdict {
    pub(super) fn of(answer: &ClusterStatusResponse) -> Verdict {
        let mut verdict = Verdict::default();
        for region in &answer.regions {
            let view = Region::of(answer, region.id);
            if !view.quorum {
                let reached = view.replicas;
                verdict.lost.push(format!(
                    "region {} has no quorum ({reached} of {} stores report it): nothing can be written to strong \
                     namespaces there; start the missing stores again, or mend the network between them",
                    region.id,
                    answer.stores.len()
                ));
            }
        }
        if answer.regions.is_empty() {
            verdict.lost.push(
                "the cluster has not formed yet: no region is known; check that a majority of the first members \
                 runs with the same --peer list"
                    .to_owned(),
            );
        }
        for store in answer.stores.iter().filter(|store| !store.reachable) {
            let (id, address) = name(store);
            let why = if store.error.is_empty() {
                "no answer"
            } else {
                &store.error
            };
            verdict.degraded.push(format!("store {id} at {address} is unreachable ({why}): start it again, or check the network to it"));
        }
        for store in &answer.stores {
            let clock = store.status.as_ref().and_then(|status| status.clock);
            if let Some(clock) = clock.filter(|clock| clock.off) {
                let (id, address) = name(store);
                let skew_ms = clock.skew_ms.unwrap_or_default();
                let side = if skew_ms < 0 { "behind" } else { "ahead of" };
                let seconds = skew_ms.unsigned_abs() as f64 / 1e3;
                verdict.degraded.push(format!(
                    "the clock of store {id} at {address} is {seconds:.1} s {side} the others: it refuses eventual \
                     writes; set that machine's clock right (NTP)"
                ));
            }
        }
        for row in answer.namespaces.iter().filter(|row| !row.deleted) {
            // While it switches, the mode that it will have.
            let wanted = if row.target == 0 {
                row.mode
            } else {
                row.target
            };
            let odd: Vec<String> = answer
                .stores
                .iter()
                .filter(|store| {
                    let declared = store.status.iter().flat_map(|status| &status.declared);
                    declared
                        .into_iter()
                        .any(|declared| declared.name == row.name && declared.mode != wanted)
                })
                .map(|store| name(store).0.to_string())
                .collect();
            if !odd.is_empty() {
                verdict.degraded.push(format!(
                    "namespace {} is {}, but store {} is configured otherwise: make the configurations equal, or \
                     switch it with `flaredb ns set-mode`",
                    row.name,
                    mode(row.mode),
                    odd.join(", ")
                ));
            }
        }
        for (row, replicas) in lag::of(answer) {
            for replica in &replicas {
                verdict.of_replica(row, replica);
            }
        }
        verdict
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
                 its clock; mend the clock that is wrong",
                held.origin,
                age(held.held_ms),
                age(held.ahead_ms)
            ));
        }
        let objective_ms = lag::objective_ms(row);
        if objective_ms > 0 && replica.lag_ms > objective_ms {
            self.degraded.push(format!(
                "store {store} is {} behind in namespace {name} ({} writes), and max_lag is {}",
                age(replica.lag_ms),
                replica.lag_writes.unwrap_or(0),
                age(objective_ms)
            ));
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match (self.lost.is_empty(), self.degraded.is_empty()) {
            (false, _) => "no quorum",
            (true, false) => "degraded",
            (true, true) => "healthy",
        }
    }

    pub(super) fn findings(&self) -> impl Iterator<Item = &String> {
        self.lost.iter().chain(&self.degraded)
    }

    /// Degraded is still serving: 0.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.lost.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}
