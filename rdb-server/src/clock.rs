//! The store's clock: the only reader of wall time, and the only giver of stamps.
//!
//! Owns the hybrid clock, and the bound on disk above every stamp that it gave out. Knows nothing of
//! what is stamped.
//!
//! Invariant: no stamp is given out before a bound above it is synced, so that none is ever used
//! twice, whatever the wall clock does while the store is down.

use crate::layout_store as layout;
use parking_lot::Mutex;
use rdb_storage::{Committer, Durability, Engine, Family, StorageError, WriteBatch};
use rdb_types::stamp::ClockWait;
use rdb_types::{HybridClock, Stamp, StoreId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// How far beyond the present the persisted bound lies. A restart goes on above the bound, so this is
/// less than a restart takes: else a store that restarts again and again would run ahead of time.
const BOUND_WINDOW_MS: u64 = 500;
/// When less than this is left, the next bound is written in the background.
const BOUND_LOW_MS: u64 = 250;

/// Where physical time comes from.
pub trait PhysicalClock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch. Never goes back.
    fn unix_ms(&self) -> u64;
}

/// Monotonic time plus the offset that the wall clock had at the start: a step of the wall clock
/// while the store runs does not move it.
pub struct SystemClock {
    started: Instant,
    started_unix_ms: u64,
}

impl SystemClock {
    /// Reads the wall clock once.
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one reader of wall time"
    )]
    pub fn new() -> SystemClock {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        SystemClock {
            started: Instant::now(),
            started_unix_ms: since_epoch.as_millis() as u64,
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl PhysicalClock for SystemClock {
    fn unix_ms(&self) -> u64 {
        self.started_unix_ms + self.started.elapsed().as_millis() as u64
    }
}

/// Gives out stamps.
pub struct StoreClock {
    physical: Arc<dyn PhysicalClock>,
    hybrid: Mutex<HybridClock>,
    committer: Committer,
    raising: Arc<AtomicBool>,
    max_clock_skew_ms: u64,
}

impl StoreClock {
    /// Goes on above the bound that is on disk.
    pub fn open(
        store: StoreId,
        physical: Arc<dyn PhysicalClock>,
        engine: &dyn Engine,
        committer: Committer,
        max_clock_skew: Duration,
    ) -> Result<Arc<StoreClock>, StorageError> {
        let bound_ms = match engine.get(Family::Region, &layout::row("clock"))? {
            None => 0,
            Some(stored) => stored
                .as_ref()
                .try_into()
                .map(u64::from_be_bytes)
                .map_err(|_| {
                    StorageError::corruption(
                        "the clock's bound",
                        format!("{} bytes instead of 8", stored.len()),
                    )
                })?,
        };
        let max_clock_skew_ms = max_clock_skew.as_millis() as u64;
        let hybrid = HybridClock::new(store, bound_ms, max_clock_skew_ms);
        Ok(Arc::new(StoreClock {
            physical,
            hybrid: Mutex::new(hybrid),
            committer,
            raising: Arc::default(),
            max_clock_skew_ms,
        }))
    }

    /// Physical time, in milliseconds since the Unix epoch.
    pub fn unix_ms(&self) -> u64 {
        self.physical.unix_ms()
    }

    /// Moves the clock past a stamp that was seen.
    pub fn observe(&self, seen: Stamp) {
        self.hybrid.lock().observe(seen);
    }

    /// By how many milliseconds a stamp is further ahead of this clock than another clock may be: more
    /// than twice the permitted skew.
    pub fn is_wild(&self, stamp: Stamp) -> Option<u64> {
        let hybrid_ms = self.hybrid.lock().last().unix_ms().max(self.unix_ms());
        let ahead_ms = stamp.unix_ms().saturating_sub(hybrid_ms);
        (ahead_ms > 2 * self.max_clock_skew_ms).then_some(ahead_ms)
    }

    /// Reserves `count` consecutive stamps and returns the first. Waits for the disk when the bound
    /// is used up, and for physical time when the clock has run too far ahead of it.
    pub async fn reserve(self: &Arc<Self>, count: u64) -> Result<Stamp, StorageError> {
        loop {
            let now_ms = self.unix_ms();
            let reserved = self.hybrid.lock().reserve(now_ms, count);
            match reserved {
                Ok(stamp) => {
                    self.raise_ahead(now_ms);
                    return Ok(stamp);
                }
                Err(ClockWait::Bound) => {
                    let (bound_ms, batch) = self.next_bound(now_ms);
                    self.committer.commit(batch, Durability::Synced).await?;
                    self.hybrid.lock().raise_bound(bound_ms);
                }
                Err(ClockWait::Ahead { wait_ms }) => {
                    tokio::time::sleep(Duration::from_millis(wait_ms)).await
                }
            }
        }
    }

    fn next_bound(&self, now_ms: u64) -> (u64, WriteBatch) {
        let bound_ms = self.hybrid.lock().next_bound_ms(now_ms, BOUND_WINDOW_MS);
        let mut batch = WriteBatch::new();
        batch.put(
            Family::Region,
            layout::row("clock"),
            bound_ms.to_be_bytes().to_vec(),
        );
        (bound_ms, batch)
    }

    /// Raises the bound before anybody has to wait for it.
    fn raise_ahead(self: &Arc<Self>, now_ms: u64) {
        if self.hybrid.lock().bound_left_ms() > BOUND_LOW_MS
            || self.raising.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let (bound_ms, batch) = self.next_bound(now_ms);
        let clock = Arc::clone(self);
        let done = move |result: Result<(), StorageError>| {
            if result.is_ok() {
                clock.hybrid.lock().raise_bound(bound_ms);
            }
            clock.raising.store(false, Ordering::Release);
        };
        self.committer
            .submit(batch, Durability::Synced, Box::new(done));
    }
}
