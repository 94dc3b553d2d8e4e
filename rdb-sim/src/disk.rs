//! A store's disk: when it writes, when it syncs, and where a crash meets it.
//!
//! Owns the work of a store's committer, done step by step in simulated time. What is lost in a crash is
//! the engine's business ([`MemoryEngine`]); this decides only when things happen.
//!
//! Invariant: what is called back as synced was synced by the engine, which is why a disk that lies is an
//! engine that lies (`bugs`), and not a change here.

use crate::trace::Trace;
use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rdb_storage::{CommitDriver, Group, MemoryEngine, Reserve, Space, WrittenGroup};
use rdb_types::StoreId;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// A moment around a sync. The whole store stops there when it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Handed over, not written.
    BeforeWrite,
    /// Written, not synced.
    BeforeSync,
    /// Synced, and nobody was told.
    BeforeAnswer,
    /// Everybody was told, and nothing else has happened yet.
    AfterAnswer,
}

impl Point {
    /// Every point, in the order in which a group of writes comes by.
    pub const ALL: [Point; 4] = [
        Point::BeforeWrite,
        Point::BeforeSync,
        Point::BeforeAnswer,
        Point::AfterAnswer,
    ];
}

/// Between two tries of a write for which there was no room.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// The room on a disk: all or none.
pub struct DiskRoom(pub Arc<MemoryEngine>);

/// How large a disk is said to be.
const DISK_BYTES: u64 = 1 << 40;

impl Reserve for DiskRoom {
    fn space(&self) -> Option<Space> {
        let free_bytes = if self.0.is_full() { 0 } else { DISK_BYTES };
        Some(Space {
            free_bytes,
            total_bytes: DISK_BYTES,
        })
    }

    fn held_bytes(&self) -> u64 {
        0
    }

    fn hold(&self, _bytes: u64) -> std::io::Result<()> {
        // A disk that is full is so to the last byte: the harder case.
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn give_up(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is ordered of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// How long a write takes, in microseconds, at most.
    pub write_us: u64,
    /// How long a sync takes, in microseconds, at most.
    pub sync_us: u64,
    /// Stop the store at this point, after so many groups that came by it.
    pub stop_at: Option<(Point, u32)>,
}

impl Orders {
    /// A good local disk.
    pub const FAIR: Orders = Orders {
        write_us: 100,
        sync_us: 900,
        stop_at: None,
    };
}

/// The disk of one store, the same across its restarts.
pub struct Disk {
    /// What it holds.
    pub engine: Arc<MemoryEngine>,
    orders: Mutex<Orders>,
    chance: Mutex<Xoshiro256PlusPlus>,
}

impl Disk {
    /// An empty disk.
    pub fn new(seed: u64) -> Arc<Disk> {
        Arc::new(Disk {
            engine: Arc::new(MemoryEngine::new()),
            orders: Mutex::new(Orders::FAIR),
            chance: Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
        })
    }

    /// Changes what is ordered.
    pub fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock());
    }

    /// A random number of the batches that a crash could lose.
    pub fn some_unsynced(&self) -> usize {
        let unsynced = self.engine.unsynced_batches();
        self.chance.lock().random_range(0..=unsynced)
    }

    async fn take(&self, most_us: u64) {
        let us = self.chance.lock().random_range(0..=most_us);
        sleep(Duration::from_micros(us)).await;
    }

    /// Whether the store stops here.
    fn stops(&self, here: Point) -> bool {
        let mut orders = self.orders.lock();
        match &mut orders.stop_at {
            Some((point, 0)) if *point == here => {
                orders.stop_at = None;
                true
            }
            Some((point, groups)) if *point == here => {
                *groups -= 1;
                false
            }
            _ => false,
        }
    }

    /// Waits for room, as a store's own committer does.
    async fn write(
        &self,
        store: StoreId,
        driver: &mut CommitDriver,
        mut group: Group,
        trace: &Trace,
    ) -> Option<WrittenGroup> {
        loop {
            match driver.try_write(group) {
                Ok(written) => return written,
                Err(back) => group = back,
            }
            trace.note(format_args!("store {store}: there is no room"));
            sleep(TRY_AGAIN).await;
        }
    }

    /// Does the committer's work. `stop` is called when the store is to stop at a point; nothing of the
    /// store goes on after it returns.
    pub async fn drive(
        self: Arc<Self>,
        store: StoreId,
        mut driver: CommitDriver,
        trace: Trace,
        stop: impl Fn(Point),
    ) {
        let meet = async |point| {
            if self.stops(point) {
                stop(point);
                pending::<()>().await;
            }
        };
        while let Some(group) = driver.next_group().await {
            let orders = *self.orders.lock();
            meet(Point::BeforeWrite).await;
            self.take(orders.write_us).await;
            let Some(written) = self.write(store, &mut driver, group, &trace).await else {
                trace.note(format_args!("store {store}: a write was refused"));
                continue;
            };
            meet(Point::BeforeSync).await;
            if written.needs_sync() {
                self.take(orders.sync_us).await;
                trace.note(format_args!("store {store}: sync"));
            }
            // Between a sync and its answer there is no await in a driver: the crash comes before the
            // callbacks by coming before the sync that is made all the same.
            if self.stops(Point::BeforeAnswer) {
                let _ = rdb_storage::Engine::sync(self.engine.as_ref());
                stop(Point::BeforeAnswer);
                pending::<()>().await;
            }
            driver.sync(written);
            meet(Point::AfterAnswer).await;
        }
    }
}
