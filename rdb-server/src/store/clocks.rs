//! What the clocks of a cluster have to do with each other.
//!
//! Owns the asking what time it is at the other stores, and how they are off for room: every second, and more often
//! while this store's clock is not confirmed, so that a majority's word is there before an election needs it. What the
//! answers mean is [`crate::clock`]'s and [`crate::room`]'s. And the one act by which an operator moves all clocks: a
//! tick of the meta region, which every store's clock follows.

use super::StoreCore;
use crate::clock::{Standing, StoreClock};
use crate::cluster::Cluster;
use crate::error::{Error, Outcome};
use crate::peer_manager::PeerManager;
use crate::room::{Level, Rooms};
use crate::transport::{Lane, SharedTransport};
use rdb_proto::raft::{
    self, ClockReadingRequest, command, command_outcome, peer_request, peer_response,
};
use rdb_types::{Reason, RegionId, Stamp, StoreId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two rounds while the clock is not confirmed.
const SOON: Duration = Duration::from_millis(100);
/// An answer that takes longer says little of a clock.
const PATIENCE: Duration = Duration::from_millis(crate::clock::skew::LONGEST_TRIP_MS);

/// The latest time that stamps may be advanced to: 2100-01-01. They hold times until 2163, and never go back.
const LATEST_UNIX_MS: u64 = 4_102_444_800_000;
/// How often the meta region's time is looked at when it does not change.
const FOLLOW: Duration = Duration::from_secs(1);

/// Has the stamps of all stores go on from `to_unix_ms`, for when the clocks of a majority were wrong. Done once the
/// meta region has it; each store's clock follows as it applies that. A time that is past changes nothing.
///
/// # Errors
/// No clock may go so far, the store is still joining, or the meta region has no quorum.
pub(crate) async fn advance(
    manager: &PeerManager,
    to_unix_ms: u64,
    deadline: Instant,
) -> Result<(), Error> {
    if to_unix_ms > LATEST_UNIX_MS {
        let why =
            format!("{to_unix_ms} is beyond the year 2100; milliseconds since 1970 are meant");
        return Err(Error::invalid("to_unix_ms", why).outcome(Outcome::NotApplied));
    }
    let meta = manager.peer(RegionId::META).ok_or_else(|| {
        let why = "this store is still joining its cluster; try again";
        Error::new(Reason::NotReady, why).outcome(Outcome::NotApplied)
    })?;
    let clock = &manager.context().clock;
    let stamp = Stamp::pack(to_unix_ms, 0, clock.store());
    let tick = raft::Command {
        kind: Some(command::Kind::Tick(raft::Tick { stamp: stamp.0 })),
    };
    if let command_outcome::Outcome::Error(error) = meta.command(tick, deadline).await? {
        return Err(Error::from_wire(error));
    }
    meta.barrier(deadline).await?;
    clock.observe(stamp);
    tracing::warn!(
        to_unix_ms,
        "the stamps of all stores go on from a later time, as an operator asked"
    );
    Ok(())
}

impl StoreCore {
    /// Keeps this store's clock beyond the meta region's time, for as long as the store lives.
    pub(super) fn follow_meta(&self) {
        let (manager, namespaces) = (self.manager.clone(), self.namespaces.clone());
        self.tasks.spawn(async move {
            loop {
                let seen = namespaces.applied_index();
                if let Some(meta) = manager.peer(RegionId::META) {
                    let stamp = meta.cell().with(|summary| summary.last_stamp);
                    let clock = &manager.context().clock;
                    if let Some(ahead_ms) = clock.is_wild(stamp) {
                        tracing::warn!(
                            ahead_ms,
                            "the stamps of this store go on from a later time: the clocks of the cluster were advanced"
                        );
                    }
                    clock.observe(stamp);
                }
                namespaces.changed(seen, FOLLOW).await;
            }
        });
    }

    /// Compares this store's clock with those of the other members for as long as the store lives. A
    /// store alone has nobody to ask.
    pub(super) fn compare_clocks(&self) {
        let clock = self.manager.context().clock.clone();
        let others = self.cluster.others().len();
        clock.joined(others + 1);
        if others > 0 {
            let (cluster, transport) = (self.cluster.clone(), self.transport.clone());
            let rooms = self.manager.context().rooms.clone();
            self.tasks.spawn(compare(clock, rooms, cluster, transport));
        }
    }
}

async fn compare(
    clock: Arc<StoreClock>,
    rooms: Arc<Rooms>,
    cluster: Arc<Cluster>,
    transport: SharedTransport,
) {
    loop {
        let others = cluster.others().into_iter();
        let asked = others.map(|store| ask(&clock, &rooms, &transport, store));
        futures::future::join_all(asked).await;
        // Also when nobody answered: the wall clock may have been set.
        clock.compare();
        let pause = match clock.standing() {
            Standing::Unconfirmed(_) => SOON,
            Standing::Fine | Standing::Off(_) => PERIOD,
        };
        tokio::time::sleep(pause).await;
    }
}

/// Each answer counts as it comes: one store that is gone holds up nothing.
async fn ask(clock: &StoreClock, rooms: &Rooms, transport: &SharedTransport, store: StoreId) {
    let request = peer_request::Body::ClockReading(ClockReadingRequest {});
    let asked_ms = clock.monotonic_ms();
    let answer = transport.call(store, Lane::Control, RegionId(0), request, PATIENCE);
    match answer.await {
        Ok(peer_response::Body::ClockReading(reading)) => {
            rooms.heard(store, Level::from_wire(reading.room));
            clock.heard(store, asked_ms, reading.unix_ms);
            clock.compare();
        }
        Ok(_) => tracing::debug!(store = store.get(), "its clock: it answered something else"),
        Err(error) => tracing::debug!(store = store.get(), %error, "its clock is not known"),
    }
}
