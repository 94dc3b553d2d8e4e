//! What a replica knows of itself, for status, metrics and other stores.
//!
//! Owns the reports. Changes nothing, and asks nobody.

use super::Peer;
use openraft::async_runtime::WatchReceiver;
use rdb_proto::{convert, raft};
use rdb_types::{Mode, NamespaceId, StoreId};

impl Peer {
    /// What this replica knows of itself.
    pub fn report(&self) -> raft::RegionReport {
        // Copied out before anything else looks at the same watch: a second look while a writer waits
        // for the first to end would wait for ever.
        let (leader, term, commit_index, last_index) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let commit_index = metrics.local_committed.map_or(0, |id| id.index);
            (
                metrics.current_leader.unwrap_or(0),
                metrics.current_term,
                commit_index,
                metrics.last_log_index.unwrap_or(0),
            )
        };
        let strong = convert::mode_to_wire(Mode::Strong);
        let mut namespaces: Vec<raft::NamespaceReport> = self.cell.with(|summary| {
            summary
                .namespaces
                .iter()
                .filter(|(_, state)| state.mode == Mode::Strong)
                .map(|(id, state)| raft::NamespaceReport {
                    namespace_id: id.0,
                    mode: convert::mode_to_wire(state.mode),
                    epoch: state.epoch.0,
                    digest: state.digest.to_bytes().to_vec().into(),
                    keys: state.keys,
                    bytes: state.bytes,
                    ..Default::default()
                })
                .collect()
        });
        namespaces.extend(self.eventual.reports());
        self.cell.with(|summary| {
            for report in &mut namespaces {
                let id = NamespaceId(report.namespace_id);
                if let Some(state) = summary.namespaces.get(&id) {
                    report.attempt = state.attempt;
                }
                let pause = summary.pauses.get(&id).copied().unwrap_or_default();
                report.write_pause_us = pause.last.as_micros() as u64;
                report.progress = self.progress.of(id);
                report.fresh_copy_needed = summary.fresh_copy.is_some();
            }
        });
        for report in namespaces.iter_mut().filter(|report| report.mode == strong) {
            let id = NamespaceId(report.namespace_id);
            if self.cell.with(|summary| {
                summary
                    .namespaces
                    .get(&id)
                    .is_some_and(|state| !state.fences.is_empty())
            }) {
                let own = self.eventual.state(id);
                report.conflicts = own.conflicts;
                report.conflicts_dropped = own.conflicts_dropped;
            }
        }
        raft::RegionReport {
            region_id: self.descriptor.id,
            leader: leader as u32,
            term,
            applied_index: self.cell.applied_index(),
            commit_index,
            last_index,
            quorum: self.quorum.available(),
            quorum_age_ms: self.quorum.age().as_millis() as u64,
            behind: match self.quorum.confirmed() {
                true => self.behind().unwrap_or_default(),
                // Nobody to be behind.
                false => String::new(),
            },
            namespaces,
            damage: self.damage.first().unwrap_or_default().to_owned(),
            waiting_writes: self.waiting() as u64,
        }
    }

    /// The term that this replica is in.
    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// The last entry of this replica's log.
    pub fn last_index(&self) -> u64 {
        let metrics = self.raft.metrics();
        let last = metrics.borrow_watched().last_log_index;
        last.unwrap_or(0)
    }

    /// While this replica leads: up to which index of the log each other one has said to be.
    pub fn followers(&self) -> Vec<(StoreId, u64)> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let replication = metrics.replication.iter().flatten();
        replication
            .filter(|(store, _)| **store != metrics.id)
            .filter_map(|(store, matching)| {
                // Of a store that this leader has not heard since it leads, nobody knows what it lacks.
                Some((StoreId::new(*store)?, matching.as_ref()?.index))
            })
            .collect()
    }

    /// What this replica knows of a namespace: mode and epoch.
    pub fn namespace(&self, namespace: NamespaceId) -> Option<(rdb_types::Mode, rdb_types::Epoch)> {
        self.cell.with(|summary| {
            summary
                .namespaces
                .get(&namespace)
                .map(|state| (state.mode, state.epoch))
        })
    }
}
