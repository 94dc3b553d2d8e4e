//! What a region's replica does when disks are full.
//!
//! Owns asking [`crate::room`] at the right moments: before writes are taken, before another store's are, and
//! before the lead is kept; and letting go of the log early. The rules are there, and what a store knows of its disk and the
//! others'.
//!
//! Invariant: what is refused here was not queued.

use super::Peer;
use crate::error::Error;
use crate::raft::Metrics;
use crate::room::{Level, NoRoom, Sieve, Voter, judge_region};
use openraft::async_runtime::WatchReceiver;
use rdb_proto::raft::{WriteOp, WriteResult, peer_request};
use rdb_types::{Reason, StoreId};
use std::time::Duration;
use tokio::time::Instant;

/// A store that was not heard of for so long takes part in nothing: they ask each other every second.
const SILENCE: Duration = Duration::from_secs(3);
/// Entries that stay in a log that is let go of early, for who is a moment behind.
const KEPT_ENTRIES: u64 = 64;
/// How long a snapshot may take to be noted: it is a view, and there at once.
const SNAPSHOT_NOTED: Duration = Duration::from_millis(200);

impl Peer {
    /// Strong writes, of a client of this store or of another one. Of those, the leader refuses what grows when
    /// no quorum has room.
    pub(super) async fn write_new(
        &self,
        ops: Vec<WriteOp>,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<Vec<WriteResult>, Error> {
        let Some(no_room) = self.no_room_in_region() else {
            return self.write_unanswered(ops, forwarded, deadline).await;
        };
        let (sieve, taken) = Sieve::new(ops, no_room);
        let written = match taken.is_empty() {
            true => Vec::new(),
            false => self.write_unanswered(taken, forwarded, deadline).await?,
        };
        Ok(sieve.answers(written))
    }

    /// Eventual writes of clients; see [`super::eventual::Eventual::write`]. This store refuses what grows when its own
    /// disk is full.
    pub async fn write_eventual(
        &self,
        ops: Vec<WriteOp>,
        deadline: Instant,
    ) -> Result<Vec<WriteResult>, Error> {
        let no_room = match self.rooms.own() {
            _ if self.rooms.stalled() => NoRoom::stalled(self.me, self.id()),
            Level::Ample => return self.eventual.write(ops, deadline).await,
            Level::Short | Level::Out => NoRoom::here(self.me, self.id()),
        };
        let (sieve, taken) = Sieve::new(ops, no_room);
        let written = match taken.is_empty() {
            true => Vec::new(),
            false => self.eventual.write(taken, deadline).await?,
        };
        Ok(sieve.answers(written))
    }

    fn no_room_in_region(&self) -> Option<NoRoom> {
        let stalled = self.rooms.stalled();
        if (self.view.growing() && !stalled) || !self.quorum.is_leader() {
            return None;
        }
        if stalled {
            return Some(NoRoom::stalled(self.me, self.id()));
        }
        let voters = self.quorum.voters().into_iter();
        let short: Vec<StoreId> = voters
            .filter(|store| self.level_of(*store) != Level::Ample)
            .collect();
        Some(NoRoom::in_region(self.id(), &short))
    }

    fn level_of(&self, store: StoreId) -> Level {
        match store == self.me {
            true => self.rooms.own(),
            false => self.rooms.of(store),
        }
    }

    fn voter(&self, store: StoreId) -> Voter {
        let silent = |age: Duration| age > SILENCE;
        if store != self.me && self.contacts.age(store).is_none_or(silent) {
            return Voter::Silent;
        }
        match self.level_of(store) {
            Level::Ample => Voter::Ample,
            Level::Short | Level::Out => Voter::Short,
        }
    }

    /// Looks whether a quorum has room, for writes and for what followers are told.
    pub(super) fn judge_room(&self) {
        // Nobody is short, as nearly always.
        let nobody = self.rooms.own() == Level::Ample && !self.rooms.any_short();
        let takes = nobody || {
            let voters = self.quorum.voters().into_iter();
            let voters: Vec<Voter> = voters.map(|store| self.voter(store)).collect();
            // Who leads and cannot give away the lead does not write on until nothing is left.
            judge_region(&voters) && self.rooms.own() != Level::Out
        };
        if self.view.growing() != takes {
            self.view.set_growing(takes);
            if self.quorum.is_leader() {
                self.tell(takes);
            }
        }
    }

    fn tell(&self, takes: bool) {
        let region = self.id().0;
        if takes {
            tracing::info!(region, "a quorum has room again: data is taken");
            return;
        }
        let voters = self.quorum.voters().into_iter();
        let short: Vec<u16> = voters
            .filter(|store| self.level_of(*store) != Level::Ample)
            .map(StoreId::get)
            .collect();
        tracing::warn!(
            region,
            ?short,
            "no quorum has room on its disks: data is refused (NO_SPACE), deletes and reads go on"
        );
    }

    /// A leader whose disk is full offers the lead to a voter with room, if a quorum has some: what the region
    /// takes from then on need not be written here. `told`: the log says so already.
    pub(super) async fn lead_with_room(&self, told: &mut bool) {
        if self.rooms.own() == Level::Ample {
            *told = false;
            return;
        }
        let voters = self.quorum.voters();
        let ample: Vec<StoreId> = voters
            .iter()
            .copied()
            .filter(|store| self.voter(*store) == Voter::Ample)
            .collect();
        if ample.len() < voters.len() / 2 + 1 {
            return;
        }
        let furthest = self
            .followers()
            .into_iter()
            .filter(|(store, _)| ample.contains(store))
            .max_by_key(|(_, index)| *index);
        let Some((best, _)) = furthest else { return };
        let region = self.id().0;
        match self.transfer_leader(Some(best)).await {
            Ok(true) if !std::mem::replace(told, true) => tracing::warn!(
                region,
                to = best.get(),
                "the lead is offered to another store, because the disk here is full"
            ),
            Ok(_) => {}
            Err(error) => tracing::debug!(region, %error, "the lead is kept for now"),
        }
    }

    /// What of another store's is not taken, because this disk is full; it is sent again.
    pub(super) fn held_back(&self, request: &peer_request::Body) -> Option<Error> {
        let level = self.rooms.own();
        let held = match request {
            // A heartbeat is as welcome as ever.
            peer_request::Body::Append(append) => {
                level == Level::Out && append.growing && !append.entries.is_empty()
            }
            peer_request::Body::PushOrigins(push) => level == Level::Out && push.growing,
            // A snapshot takes the region's size twice.
            peer_request::Body::SnapshotChunk(_) => level != Level::Ample,
            _ => false,
        };
        held.then(|| {
            let message = format!(
                "the disk of store {} is full: it takes nothing more of region {} until there is room",
                self.me,
                self.id()
            );
            Error::new(Reason::NoSpace, message)
                .with("limit", "storage.reserve")
                .with("region", self.id())
        })
    }

    /// Lets go of what no replica that takes part still needs of the log, however little has come since the
    /// last time: for a disk that is full.
    pub async fn shorten_log(&self) {
        let needed = |metrics: &Metrics| {
            let lately = |store: StoreId| self.voter(store) != Voter::Silent;
            let behind = metrics.replication.iter().flatten().filter_map(|(id, at)| {
                let store = StoreId::new(*id)?;
                // Who is out of room has to take a snapshot in the end.
                let counts =
                    store != self.me && lately(store) && self.rooms.of(store) != Level::Out;
                counts.then(|| at.as_ref().map_or(0, |at| at.index))
            });
            behind.min()
        };
        let slowest = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            needed(&metrics)
        };
        let applied = self.cell.applied_index();
        let upto = slowest.unwrap_or(applied).min(applied);
        // An error is that of a region that has stopped, which says so itself.
        let _ = self.raft.trigger().snapshot().await;
        tokio::time::sleep(SNAPSHOT_NOTED).await;
        let upto = upto.saturating_sub(KEPT_ENTRIES);
        let _ = self.raft.trigger().purge_log(upto).await;
    }
}
