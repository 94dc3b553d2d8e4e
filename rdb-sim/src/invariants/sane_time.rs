//! A region's time (the largest stamp applied) is never beyond what a majority of the stores had for the
//! present: one wild clock moves nothing. Two of three that are wild together are the majority.

use rdb_types::{RegionId, Stamp, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "sane time";

/// What clocks that run too fast gain on each other while their stores are cut off, and what they may be
/// apart anyway; in milliseconds. Clocks that jump do so by far more, or by far less.
const SLACK_MS: u64 = 10_000;

/// What the stores took for the present.
#[derive(Default)]
pub struct Present {
    /// For each store, what its clock showed, and when, in simulated milliseconds.
    shown: BTreeMap<StoreId, (u64, u64)>,
    /// The latest time that was ever in the middle of all, in Unix milliseconds.
    latest_middle_ms: u64,
}

impl Present {
    /// The clock of `store` shows `unix_ms` at `now_ms` of the simulation.
    pub fn shows(&mut self, store: StoreId, unix_ms: u64, now_ms: u64) {
        self.shown.insert(store, (unix_ms, now_ms));
        // A store that is down had the clock that it had.
        let shown = self.shown.values();
        let mut clocks: Vec<u64> = shown
            .map(|(unix_ms, at_ms)| unix_ms + now_ms.saturating_sub(*at_ms))
            .collect();
        clocks.sort_unstable();
        if let Some(middle_ms) = clocks.get(clocks.len() / 2) {
            self.latest_middle_ms = self.latest_middle_ms.max(*middle_ms);
        }
    }

    /// `store` has applied this stamp in `region`. Asked after all clocks were shown.
    ///
    /// # Errors
    /// It is beyond the present.
    pub fn applied(&self, store: StoreId, region: RegionId, last: Stamp) -> Result<(), String> {
        let ahead_ms = last.unix_ms().saturating_sub(self.latest_middle_ms);
        if ahead_ms <= SLACK_MS {
            return Ok(());
        }
        Err(format!(
            "region {region} at store {store} has a stamp of store {} that is {ahead_ms} ms beyond the middle of all clocks",
            last.store_bits()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wild_clock_is_seen_and_two_are_the_majority() {
        let store = |id| StoreId::new(id).unwrap();
        let (now, hour) = (2_000_000_000_000, 3_600_000);
        let mut present = Present::default();
        for (id, clock) in [(1, now), (2, now + 300), (3, now + hour)] {
            present.shows(store(id), clock, 0);
        }
        let applied = |present: &Present, at| {
            present.applied(store(1), RegionId(2), Stamp::pack(at, 0, store(3)))
        };
        assert!(applied(&present, now + 300).is_ok());
        assert!(applied(&present, now + hour).is_err());
        present.shows(store(2), now + hour, 10);
        assert!(applied(&present, now + hour).is_ok());
        // Time that was right once is never wrong again.
        present.shows(store(2), now, 20);
        present.shows(store(3), now, 20);
        assert!(applied(&present, now + hour).is_ok());
    }
}
