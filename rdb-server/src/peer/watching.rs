//! What a replica does by itself for as long as it lives: it watches its quorum and its lead, and moves time on.
//!
//! Owns the turns, what is said in the log of leaders and quorums, when a lead is offered to another store, and the
//! ticks by which records expire. What is known of the quorum is [`super::quorum`]'s.

use super::Peer;
use super::damage::ReadOf;
use crate::clock::{Standing, StoreClock};
use crate::region::expiring;
use openraft::async_runtime::WatchReceiver;
use rdb_proto::raft;
use rdb_types::StoreId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

impl Peer {
    fn expiry_due(&self, now_ms: u64) -> bool {
        // What is left of an eventual time is swept with the ticks, too.
        if self.cell.with(|summary| summary.unswept) {
            return true;
        }
        for first in expiring::firsts(self.engine.as_ref(), self.id()) {
            match self.damage.check(ReadOf::Expiry, first) {
                Ok((namespace, at_ms)) if at_ms <= now_ms && self.is_strong(namespace) => {
                    return true;
                }
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// A replica that waits for a fresh copy neither stands for election nor leads: whoever leads answers
    /// for everybody.
    async fn stand_back(&self, standing_back: &mut bool) {
        let waits = self.cell.with(|summary| summary.fresh_copy.is_some());
        if waits != *standing_back {
            self.raft.runtime_config().elect(!waits);
            *standing_back = waits;
        }
        if waits {
            // Tried again at the next turn.
            let _ = self.transfer_leader(None).await;
        }
    }

    /// A leader whose own time must not get into stamps leaves its regions' time standing still: it offers
    /// the lead to another store, as long as it has it, but does not do so again when it gets it back (the
    /// others may be no better, or gone). `done`: it has led no more since its clock was found wrong.
    async fn give_up_timing(&self, standing: Standing, told: &mut bool, done: &mut bool) {
        let wrong = match standing {
            Standing::Fine => None,
            Standing::Unconfirmed(until) if Instant::now() < until => None,
            Standing::Unconfirmed(_) => Some("not confirmed by a majority".to_owned()),
            Standing::Off(skew) => Some(skew.to_string()),
        };
        let Some(wrong) = wrong else {
            (*told, *done) = (false, false);
            return;
        };
        *done |= *told && !self.quorum.is_leader();
        if *done || self.quorum.voters().len() < 2 {
            return;
        }
        match self.transfer_leader(None).await {
            Ok(true) if !std::mem::replace(told, true) => tracing::warn!(
                region = self.id().0,
                "the lead is offered to another store, because the clock here is {wrong}"
            ),
            Ok(_) => {}
            Err(error) => tracing::debug!(region = self.id().0, %error, "the lead is kept for now"),
        }
    }

    /// A replica whose data is damaged does not lead while another one can: a leader answers reads for
    /// everybody and is where snapshots come from. It goes on to vote, to keep the log, and to stand for
    /// election: it may be the only one left that holds all acknowledged writes, and then it leads until
    /// another one has them.
    async fn give_up_leading(&self) {
        if self.damage.first().is_none() || self.quorum.voters().len() < 2 {
            return;
        }
        match self.transfer_leader(None).await {
            Ok(true) => tracing::warn!(
                region = self.id().0,
                "the lead is offered to another store, because the data here is damaged"
            ),
            Ok(false) => {}
            Err(error) => tracing::debug!(region = self.id().0, %error, "the lead is kept for now"),
        }
    }
}

/// Keeps what followers are told about the quorum fresh, and says in the log who leads, when the quorum
/// is lost and when it is back, and when the region's consensus has ended.
pub(super) async fn watch_over(
    peer: std::sync::Weak<Peer>,
    clock: Arc<StoreClock>,
    fatal: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    let (mut leader, mut available) = (None, true);
    let (mut told, mut done, mut standing_back) = (false, false, false);
    let (mut turn, mut told_of_room) = (0u32, false);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        let Some(peer) = peer.upgrade() else { return };
        let region = peer.id().0;
        peer.quorum.refresh_view();
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(5) {
            peer.judge_room();
            // A store that has just started is not ready before it has caught up.
            peer.reads.catch_up();
        }
        if turn.is_multiple_of(50) {
            // Once a second the data here is made sure of, so that a stale read after a cut can say how
            // stale it is.
            peer.reads.staleness();
            peer.stand_back(&mut standing_back).await;
            peer.give_up_leading().await;
            peer.lead_with_room(&mut told_of_room).await;
            peer.give_up_timing(clock.standing(), &mut told, &mut done)
                .await;
        }
        let now = peer.quorum.leader();
        let term = peer.term();
        if now != leader {
            match now {
                Some(elected) => tracing::info!(
                    region,
                    term,
                    leader = elected.get(),
                    here = peer.quorum.is_leader(),
                    "a leader is elected"
                ),
                None => tracing::info!(
                    region,
                    term,
                    lost = leader.map(StoreId::get),
                    "the leader is lost"
                ),
            }
            leader = now;
        }
        let has_quorum = peer.quorum.available();
        if has_quorum != available {
            let (reached, needed) = peer.quorum.reached_and_needed();
            if has_quorum {
                tracing::info!(region, term, reached, needed, "the quorum is back");
            } else {
                tracing::warn!(
                    region,
                    term,
                    reached,
                    needed,
                    "no leader with a quorum: writes and linearizable reads are refused"
                );
            }
            available = has_quorum;
        }
        if let Some(why) = peer.log.contradicted() {
            tracing::error!(region, "{why}");
            let _ = fatal.send(Some(why));
            return;
        }
        let ended = peer.raft.metrics().borrow_watched().running_state.clone();
        if let Err(error) = ended
            && !stop.is_cancelled()
        {
            let why = format!(
                "region {region} has stopped: {error}. Free disk space or mend the disk if that is the cause, and start the store again"
            );
            tracing::error!(region, %error, "the region has stopped");
            let _ = fatal.send(Some(why));
            return;
        }
    }
}

/// On the leader, moves the region's time on when a record is due to expire and nobody writes.
pub(super) async fn keep_time(
    peer: std::sync::Weak<Peer>,
    clock: Arc<StoreClock>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        let Some(peer) = peer.upgrade() else { return };
        // By the time that a stamp would bear: a tick with an older one would remove nothing.
        if peer.quorum.is_leader() && peer.expiry_due(clock.stamping_ms()) {
            // What fails here is tried again at the next turn.
            let Ok(stamp) = clock.reserve(1).await else {
                continue;
            };
            let tick = raft::Command {
                kind: Some(raft::command::Kind::Tick(raft::Tick { stamp: stamp.0 })),
            };
            let _ = peer
                .command(tick, Instant::now() + Duration::from_secs(1))
                .await;
        }
    }
}
