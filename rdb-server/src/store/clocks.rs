//! Asking the other stores what time it is, and how they are off for room.
//!
//! Owns the asking: every second, and more often while this store's clock is not confirmed, so that a
//! majority's word is there before an election needs it. What the answers mean is [`crate::clock`]'s and
//! [`crate::room`]'s.

use super::StoreCore;
use crate::clock::{Standing, StoreClock};
use crate::cluster::Cluster;
use crate::room::{Level, Rooms};
use crate::transport::{Lane, SharedTransport};
use rdb_proto::raft::{ClockReadingRequest, peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::sync::Arc;
use std::time::Duration;

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two rounds while the clock is not confirmed.
const SOON: Duration = Duration::from_millis(100);
/// An answer that takes longer says little of a clock.
const PATIENCE: Duration = Duration::from_millis(crate::clock::skew::LONGEST_TRIP_MS);

impl StoreCore {
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
