//! The store's clock: the only reader of wall time, and the only giver of stamps.
//!
//! Owns the hybrid clock, the bound on disk above every stamp that it gave out, the offset between
//! monotonic time and the time of day, and the consequences of what other stores' clocks say ([`skew`]
//! judges it). Knows nothing of what is stamped, and asks nobody: readings are brought.
//!
//! Invariants:
//! - no stamp is given out before a bound above it is synced, so that none is ever used twice,
//!   whatever the wall clock does while the store is down;
//! - the offset moves only together with a majority of the stores;
//! - in a cluster of three or more no stamp of a strong region, and no bound, bears this store's own
//!   time before a majority was found to agree with it, or while one is against it.

pub mod skew;

use crate::error::{Error, Outcome};
use crate::layout_store as layout;
use parking_lot::Mutex;
use rdb_storage::{Committer, Durability, Engine, Family, StorageError, WriteBatch};
use rdb_types::stamp::ClockWait;
use rdb_types::{HybridClock, Reason, Stamp, StoreId};
use skew::{Readings, Skew, Verdict};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// How far beyond the present the persisted bound lies. A restart goes on above the bound, so this is
/// less than a restart takes: else a store that restarts again and again would run ahead of time.
const BOUND_WINDOW_MS: u64 = 500;
/// When less than this is left, the next bound is written in the background.
const BOUND_LOW_MS: u64 = 250;
/// How long a store that has just joined waits for a majority's word on its clock before it stamps.
const CONFIRM: Duration = Duration::from_secs(2);
/// How long of that an eventual write waits. Who can be asked has answered by then; it needs nobody's word,
/// and a store that is alone has to take it within the shortest deadlines that callers have.
const CONFIRM_WRITES: Duration = Duration::from_millis(500);

/// Where physical time comes from.
pub trait PhysicalClock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch: monotonic time, counted on from the wall clock at the start.
    /// Never goes back, never steps.
    fn unix_ms(&self) -> u64;
    /// What the wall clock shows now, in milliseconds since the Unix epoch. May step either way.
    fn wall_unix_ms(&self) -> u64;
}

/// Monotonic time plus the offset that the wall clock had at the start: a step of the wall clock
/// while the store runs does not move it.
pub struct SystemClock {
    started: Instant,
    started_unix_ms: u64,
}

impl SystemClock {
    /// Begins at what the wall clock shows.
    pub fn new() -> SystemClock {
        SystemClock {
            started: Instant::now(),
            started_unix_ms: wall_unix_ms(),
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "this is the one reader of wall time"
)]
fn wall_unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap_or_default().as_millis() as u64
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

    fn wall_unix_ms(&self) -> u64 {
        wall_unix_ms()
    }
}

/// How the clock stands to the others, as far as was ever found out. What is found out stays until
/// something else is: a store that is off and then cut off is still off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No majority has had its say since the store joined; until this moment that is waited for.
    Unconfirmed(Instant),
    /// Its own time may be used.
    Fine,
    /// A majority is against it.
    Off(Skew),
}

/// What the clock has heard from others, and made of it.
struct Comparison {
    readings: Readings,
    standing: Standing,
    /// What was added to monotonic time since the start, in milliseconds.
    offset_ms: i64,
    /// A step of the wall clock was told of that was not followed.
    told_step: bool,
}

/// Gives out stamps.
pub struct StoreClock {
    store: StoreId,
    physical: Arc<dyn PhysicalClock>,
    compared: Mutex<Comparison>,
    /// Woken when the standing was found out for the first time.
    confirmed: Notify,
    hybrid: Mutex<HybridClock>,
    committer: Committer,
    raising: Arc<AtomicBool>,
}

impl StoreClock {
    /// Goes on above the bound that is on disk. It takes itself for the clock of a store alone until
    /// [`StoreClock::joined`].
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
        let max_skew_ms = max_clock_skew.as_millis() as u64;
        Ok(Arc::new(StoreClock {
            store,
            physical,
            compared: Mutex::new(Comparison {
                readings: Readings::new(1, max_skew_ms),
                standing: Standing::Fine,
                offset_ms: 0,
                told_step: false,
            }),
            confirmed: Notify::new(),
            hybrid: Mutex::new(HybridClock::new(store, bound_ms, max_skew_ms)),
            committer,
            raising: Arc::default(),
        }))
    }

    /// The store belongs to a cluster of `stores`: with three or more it has to be confirmed before its
    /// own time gets into a stamp. Called before anything is stamped.
    pub fn joined(&self, stores: usize) {
        let mut compared = self.compared.lock();
        compared.readings = Readings::new(stores, compared.readings.max_skew_ms());
        compared.standing = Standing::Unconfirmed(Instant::now() + CONFIRM);
        drop(compared);
        self.compare();
    }

    /// Whose clock it is.
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// Physical time, in milliseconds since the Unix epoch. Not to be stamped with: it may be wrong.
    pub fn unix_ms(&self) -> u64 {
        self.unix_ms_at(self.compared.lock().offset_ms)
    }

    fn unix_ms_at(&self, offset_ms: i64) -> u64 {
        self.physical.unix_ms().saturating_add_signed(offset_ms)
    }

    /// Monotonic time, in milliseconds from an arbitrary beginning: for [`StoreClock::heard`].
    pub fn monotonic_ms(&self) -> u64 {
        self.physical.unix_ms()
    }

    /// Another store said that it is `its_unix_ms`, when asked at `asked_ms` of
    /// [`StoreClock::monotonic_ms`]; its answer has just come.
    pub fn heard(&self, store: StoreId, asked_ms: u64, its_unix_ms: u64) {
        let answered_ms = self.monotonic_ms();
        let readings = &mut self.compared.lock().readings;
        readings.note(store, asked_ms, answered_ms, its_unix_ms);
    }

    /// Follows a step of the wall clock if a majority went the same way, and finds out how the clock
    /// stands.
    pub fn compare(&self) {
        let mut compared = self.compared.lock();
        let now_ms = self.physical.unix_ms();
        self.look_at_wall(&mut compared, now_ms);
        let standing = match compared.readings.judge(now_ms, compared.offset_ms) {
            Verdict::Unknown => return,
            Verdict::Fine => Standing::Fine,
            Verdict::Off(skew) => Standing::Off(skew),
        };
        match (compared.standing, standing) {
            (Standing::Off(_), Standing::Off(_)) => {}
            (_, Standing::Off(skew)) => tracing::warn!(
                skew_ms = skew.0,
                "the clock of this store is {skew}, a majority of the stores: it takes no eventual writes and gives its lead away until the machine's clock is set right (NTP)"
            ),
            (Standing::Off(_), _) => {
                tracing::info!("the clock of this store agrees with the others again");
            }
            _ => {}
        }
        compared.standing = standing;
        drop(compared);
        self.confirmed.notify_waiters();
    }

    fn look_at_wall(&self, compared: &mut Comparison, now_ms: u64) {
        let wall_ms = i64::try_from(self.physical.wall_unix_ms()).unwrap_or(i64::MAX);
        let wall_offset_ms = wall_ms.saturating_sub_unsigned(now_ms);
        let step_ms = wall_offset_ms.saturating_sub(compared.offset_ms);
        let readings = &compared.readings;
        if readings.agree_to_move(now_ms, compared.offset_ms, wall_offset_ms) {
            tracing::info!(
                step_ms,
                "the machine's clock was set to what a majority of the stores has: followed"
            );
            compared.offset_ms = wall_offset_ms;
            compared.told_step = false;
            // Set back, it goes on beyond what it gave out, and does not wait to be overtaken by time.
            self.hybrid.lock().forgive();
        } else if step_ms.unsigned_abs() <= readings.max_skew_ms() {
            compared.told_step = false;
        } else if !std::mem::replace(&mut compared.told_step, true) {
            tracing::warn!(
                step_ms,
                "the machine's clock was set to what no majority of the stores has: not followed; set it right (NTP)"
            );
        }
    }

    /// How the clock stands to the others.
    pub fn standing(&self) -> Standing {
        self.compared.lock().standing
    }

    /// How far this store's clock is off, if a majority of the others is against it.
    pub fn off(&self) -> Option<Skew> {
        match self.standing() {
            Standing::Off(skew) => Some(skew),
            _ => None,
        }
    }

    /// How far it is from the middle of all clocks that were read lately; `None`: none was.
    pub fn skew(&self) -> Option<Skew> {
        let compared = self.compared.lock();
        let now_ms = self.physical.unix_ms();
        compared.readings.skew(now_ms, compared.offset_ms)
    }

    /// Moves the clock past a stamp that was seen.
    pub fn observe(&self, seen: Stamp) {
        self.hybrid.lock().observe(seen);
    }

    /// The hybrid clock's present time, in milliseconds since the Unix epoch: the largest stamp seen, or
    /// physical time. For a store that is off, physical time is what the others make of it.
    pub fn hybrid_ms(&self) -> u64 {
        let compared = self.compared.lock();
        let wrong_by_ms = match compared.standing {
            Standing::Off(Skew(ms)) => ms,
            _ => 0,
        };
        let offset_ms = compared.offset_ms.saturating_sub(wrong_by_ms);
        drop(compared);
        self.last_ms().max(self.unix_ms_at(offset_ms))
    }

    fn last_ms(&self) -> u64 {
        self.hybrid.lock().last().unix_ms()
    }

    /// How many milliseconds a stamp of another store is ahead of the hybrid clock, if that is more than
    /// twice `max_clock_skew`: it must not be observed, and its origin's stream is held.
    pub fn is_wild(&self, stamp: Stamp) -> Option<u64> {
        let ahead_ms = stamp.unix_ms().saturating_sub(self.hybrid_ms());
        let max_skew_ms = self.compared.lock().readings.max_skew_ms();
        (ahead_ms > 2 * max_skew_ms).then_some(ahead_ms)
    }

    /// The time that the next stamp of a strong region would bear, in milliseconds since the Unix epoch:
    /// what time-outs in the data are judged by, so that a clock which is off moves nothing.
    pub fn stamping_ms(&self) -> u64 {
        self.own_time_ms().unwrap_or_else(|| self.last_ms())
    }

    /// This store's own time, if it may get into the stamps of strong regions.
    fn own_time_ms(&self) -> Option<u64> {
        let compared = self.compared.lock();
        let fine = compared.standing == Standing::Fine;
        fine.then(|| self.unix_ms_at(compared.offset_ms))
    }

    /// Reserves `count` consecutive stamps for entries of a strong region's log and returns the first.
    /// Waits for the disk when the bound is used up, and for physical time when the clock has run too far
    /// ahead of it. While the clock is off, or was never confirmed, these are the smallest stamps beyond
    /// the last one: the log goes on, and no wild time gets into it.
    pub async fn reserve(self: &Arc<Self>, count: u64) -> Result<Stamp, StorageError> {
        self.wait_confirmed(CONFIRM).await;
        self.give_out(count, || Ok(self.own_time_ms())).await
    }

    /// Reserves `count` consecutive stamps for eventual writes and returns the first; waits as
    /// [`StoreClock::reserve`] does, but shorter for others. A store that was never confirmed takes writes under the smallest
    /// stamps beyond the last one, too: its hybrid clock gives stamps to logs as well, which others apply
    /// whatever they say, and then they hold no stream of it any more.
    ///
    /// # Errors
    /// `CLOCK_SKEW` while the clock is off: nothing else would bound its stamps. The disk fails.
    pub async fn stamp_writes(self: &Arc<Self>, count: u64) -> Result<Stamp, Error> {
        self.wait_confirmed(CONFIRM_WRITES).await;
        let time = || match self.off() {
            Some(skew) => Err(self.refusal(skew)),
            None => Ok(self.own_time_ms()),
        };
        self.give_out(count, time).await
    }

    fn refusal(&self, skew: Skew) -> Error {
        let store = self.store;
        Error::new(
            Reason::ClockSkew,
            format!(
                "the clock of store {store} is {skew}, so it takes no eventual writes; {}. Set that machine's clock right (NTP): the store follows by itself; meanwhile write at another store",
                Outcome::NotApplied.clause("the write")
            ),
        )
        .with("store", store)
        .with("skew_ms", skew.0)
        .outcome(Outcome::NotApplied)
    }

    /// Returns once a majority had its say on this clock, or has taken longer for it, since the store joined,
    /// than `at_most`, which is no more than [`CONFIRM`].
    async fn wait_confirmed(&self, at_most: Duration) {
        loop {
            let woken = self.confirmed.notified();
            let Standing::Unconfirmed(until) = self.standing() else {
                return;
            };
            if timeout_at(until - (CONFIRM - at_most), woken)
                .await
                .is_err()
            {
                return;
            }
        }
    }

    /// Gives out stamps at the physical time that `time` says; `None`: none, but the next ones.
    async fn give_out<E: From<StorageError>>(
        self: &Arc<Self>,
        count: u64,
        time: impl Fn() -> Result<Option<u64>, E>,
    ) -> Result<Stamp, E> {
        loop {
            let now_ms = time()?;
            let reserved = {
                let mut hybrid = self.hybrid.lock();
                match now_ms {
                    Some(now_ms) => hybrid.reserve(now_ms, count),
                    None => hybrid.reserve_next(count),
                }
            };
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

    /// `now_ms`: the physical time that stamps bear, if they do: a wrong one must not become a bound,
    /// above which the next start goes on.
    fn next_bound(&self, now_ms: Option<u64>) -> (u64, WriteBatch) {
        let now_ms = now_ms.unwrap_or_default();
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
    fn raise_ahead(self: &Arc<Self>, now_ms: Option<u64>) {
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

#[cfg(test)]
mod tests;
