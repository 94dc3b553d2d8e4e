//! A store's wall clock, which may be anywhere and run at any speed.
//!
//! Owns the difference between simulated time and what the store believes. It is the same object across
//! restarts of the store: the machine's clock does not begin anew with the process.

use parking_lot::Mutex;
use rdb_server::clock::PhysicalClock;
use tokio::time::Instant;

/// When the simulated world begins, in Unix time.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// A clock that can be wrong.
pub struct SimClock {
    began: Instant,
    error: Mutex<ClockError>,
}

struct ClockError {
    /// What the clock showed too much at `since`.
    ahead_ms: i64,
    /// How much it gains in a million.
    drift_ppm: i64,
    since: Instant,
}

impl SimClock {
    /// A clock that is right.
    pub fn new(began: Instant) -> SimClock {
        SimClock {
            began,
            error: Mutex::new(ClockError {
                ahead_ms: 0,
                drift_ppm: 0,
                since: began,
            }),
        }
    }

    /// Moves the clock's hand, forward or back.
    pub fn jump(&self, by_ms: i64) {
        let mut error = self.error.lock();
        error.ahead_ms = error.now_ahead_ms().saturating_add(by_ms);
        error.since = Instant::now();
    }

    /// From now on it gains this much in a million.
    pub fn drift(&self, ppm: i64) {
        let mut error = self.error.lock();
        error.ahead_ms = error.now_ahead_ms();
        error.since = Instant::now();
        error.drift_ppm = ppm;
    }
}

impl ClockError {
    fn now_ahead_ms(&self) -> i64 {
        let passed_ms = self.since.elapsed().as_millis() as i64;
        self.ahead_ms
            .saturating_add(passed_ms * self.drift_ppm / 1_000_000)
    }
}

impl PhysicalClock for SimClock {
    fn unix_ms(&self) -> u64 {
        let right = EPOCH_MS + self.began.elapsed().as_millis() as u64;
        right.saturating_add_signed(self.error.lock().now_ahead_ms())
    }
}
