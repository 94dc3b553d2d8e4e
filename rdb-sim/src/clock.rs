//! A machine's wall clock, which may be anywhere, and what a process makes of it.
//!
//! Owns the difference between simulated time and what the machine believes. It is the same object across
//! restarts of the store: the machine's clock does not begin anew with the process. A process reads it at its
//! start and counts on from there, as a real one's does ([`rdb_server::clock::SystemClock`]): a step of the
//! wall clock shows beside what it counts, a clock that runs too fast or too slow in both.

use parking_lot::Mutex;
use rdb_server::clock::PhysicalClock;
use std::sync::Arc;
use tokio::time::Instant;

/// When the simulated world begins, in Unix time: more than ten years after stamps do, so that a clock can
/// be as far behind.
pub const EPOCH_MS: u64 = 2_100_000_000_000;

/// A machine's clock, which can be wrong.
pub struct MachineClock {
    state: Mutex<State>,
}

struct State {
    /// What the machine counted from its beginning until `since`, in milliseconds.
    counted_ms: u64,
    since: Instant,
    /// How much it gains in a million.
    drift_ppm: i64,
    /// How far its hand was moved, in milliseconds.
    moved_ms: i64,
}

impl MachineClock {
    /// A clock that is right.
    pub fn new(began: Instant) -> Arc<MachineClock> {
        Arc::new(MachineClock {
            state: Mutex::new(State {
                counted_ms: 0,
                since: began,
                drift_ppm: 0,
                moved_ms: 0,
            }),
        })
    }

    /// Moves the clock's hand, forward or back.
    pub fn jump(&self, by_ms: i64) {
        let mut state = self.state.lock();
        state.moved_ms = state.moved_ms.saturating_add(by_ms);
    }

    /// From now on it gains this much in a million.
    pub fn drift(&self, ppm: i64) {
        let mut state = self.state.lock();
        state.counted_ms = state.count_ms();
        state.since = Instant::now();
        state.drift_ppm = ppm;
    }

    /// What a process that starts now goes by.
    pub fn of_process(self: &Arc<Self>) -> ProcessClock {
        let state = self.state.lock();
        ProcessClock {
            began_wall_ms: state.wall_ms(),
            began_count_ms: state.count_ms(),
            machine: self.clone(),
        }
    }
}

impl State {
    /// Never goes back: no drift is that large.
    fn count_ms(&self) -> u64 {
        let passed_ms = self.since.elapsed().as_millis() as i64;
        let gained_ms = passed_ms * self.drift_ppm / 1_000_000;
        self.counted_ms.saturating_add_signed(passed_ms + gained_ms)
    }

    fn wall_ms(&self) -> u64 {
        (EPOCH_MS + self.count_ms()).saturating_add_signed(self.moved_ms)
    }
}

/// The clock of one process.
pub struct ProcessClock {
    machine: Arc<MachineClock>,
    began_wall_ms: u64,
    began_count_ms: u64,
}

impl PhysicalClock for ProcessClock {
    fn unix_ms(&self) -> u64 {
        let counted_ms = self.machine.state.lock().count_ms();
        self.began_wall_ms + counted_ms.saturating_sub(self.began_count_ms)
    }

    fn wall_unix_ms(&self) -> u64 {
        self.machine.state.lock().wall_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_step_shows_on_the_wall_and_drift_everywhere() {
        let machine = MachineClock::new(Instant::now());
        let first = machine.of_process();
        machine.jump(-3_600_000);
        advance(Duration::from_secs(10)).await;
        assert_eq!(first.unix_ms(), EPOCH_MS + 10_000);
        assert_eq!(first.wall_unix_ms(), EPOCH_MS + 10_000 - 3_600_000);
        let second = machine.of_process();
        assert_eq!(second.unix_ms(), EPOCH_MS + 10_000 - 3_600_000);
        machine.drift(50_000);
        advance(Duration::from_secs(100)).await;
        assert_eq!(first.unix_ms(), EPOCH_MS + 10_000 + 105_000);
        machine.drift(-50_000);
        advance(Duration::from_secs(100)).await;
        assert_eq!(first.unix_ms(), EPOCH_MS + 10_000 + 105_000 + 95_000);
    }
}
