//! How this store's clock stands to the clocks of the others: pure arithmetic on readings.
//!
//! Owns the latest reading of each other store, and the judgement. Reads no clock, asks nobody: times and
//! readings come in, a verdict comes out. What follows from it is [`super::StoreClock`]'s.
//!
//! Everything is counted from this store's monotonic time, whose offset to the time of day is what is
//! being judged: so a reading stays true when the offset moves, and any offset can be tried on it.
//!
//! Invariants:
//! - a store is off only when a majority of all stores, without it, is on the same side of it by more
//!   than `max_clock_skew`, each by more than the error of its reading; so the store in the middle of
//!   all is never off, and nobody is in a cluster of one or two;
//! - a verdict stands whatever the stores say that were not heard of lately.

use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::fmt;

/// Readings that are older than this do not count, in milliseconds. They are taken every second.
pub const FRESH_MS: u64 = 5_000;
/// A longer round trip tells of a pause (a frozen process), not of a clock; in milliseconds.
pub const LONGEST_TRIP_MS: u64 = 1_000;
/// Readings are whole milliseconds, cut off at both ends.
const GRAIN_MS: u64 = 1;

/// How far this store's clock is ahead of the others, in milliseconds; negative: behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skew(pub i64);

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.0 < 0 { "behind" } else { "ahead of" };
        let seconds = self.0.unsigned_abs() as f64 / 1e3;
        write!(f, "{seconds:.3} s {side} the others")
    }
}

/// What the readings say of this store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No majority without this store can be against it.
    Fine,
    /// A majority without this store is against it.
    Off(Skew),
    /// It hangs on stores that were not heard of lately.
    Unknown,
}

/// What another store's clock said.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Its time less this store's monotonic time.
    offset_ms: i64,
    /// Half of the round trip: its time may be that much earlier or later.
    error_ms: u64,
    /// When it was taken, in monotonic time.
    at_ms: u64,
}

/// The latest readings of the other stores.
#[derive(Clone, Debug)]
pub struct Readings {
    stores: usize,
    max_skew_ms: u64,
    latest: BTreeMap<StoreId, Reading>,
}

impl Readings {
    /// No readings yet, in a cluster of `stores` (this one counts).
    pub fn new(stores: usize, max_skew_ms: u64) -> Readings {
        Readings {
            stores: stores.max(1),
            max_skew_ms,
            latest: BTreeMap::new(),
        }
    }

    /// How far clocks may be apart, in milliseconds.
    pub fn max_skew_ms(&self) -> u64 {
        self.max_skew_ms
    }

    /// Takes in that `store` said `its_unix_ms`, asked and answered at these moments of this store's
    /// monotonic time. It is taken for its time in the middle between them.
    pub fn note(&mut self, store: StoreId, asked_ms: u64, answered_ms: u64, its_unix_ms: u64) {
        let trip_ms = answered_ms.saturating_sub(asked_ms);
        if trip_ms > LONGEST_TRIP_MS {
            return;
        }
        let middle_ms = asked_ms + trip_ms / 2;
        let reading = Reading {
            offset_ms: signed(its_unix_ms).saturating_sub(signed(middle_ms)),
            error_ms: trip_ms.div_ceil(2) + GRAIN_MS,
            at_ms: answered_ms,
        };
        self.latest.insert(store, reading);
    }

    /// Judges a clock that is `offset_ms` ahead of this store's monotonic time.
    pub fn judge(&self, now_ms: u64, offset_ms: i64) -> Verdict {
        let (mut earlier, mut later, mut heard) = (0, 0, 0);
        for reading in self.fresh(now_ms) {
            let its_lead_ms = reading.offset_ms.saturating_sub(offset_ms);
            let apart = its_lead_ms.unsigned_abs() > self.max_skew_ms + reading.error_ms;
            heard += 1;
            later += usize::from(apart && its_lead_ms > 0);
            earlier += usize::from(apart && its_lead_ms < 0);
        }
        let unheard = (self.stores - 1).saturating_sub(heard);
        if earlier.max(later) >= self.majority() {
            // Somebody was heard of, so there is a middle.
            return Verdict::Off(self.skew(now_ms, offset_ms).unwrap_or(Skew(0)));
        }
        if earlier.max(later) + unheard >= self.majority() {
            return Verdict::Unknown;
        }
        Verdict::Fine
    }

    /// Whether a clock at `to_ms` is one of a majority that agree within `max_clock_skew`, and one at
    /// `from_ms` is not: then a step from here to there is right.
    pub fn agree_to_move(&self, now_ms: u64, from_ms: i64, to_ms: i64) -> bool {
        let near = |offset_ms: i64, of_errors: u64| {
            let bound_ms = |reading: &Reading| self.max_skew_ms + reading.error_ms * of_errors;
            let others = self.fresh(now_ms);
            let near = others.filter(|it| it.offset_ms.abs_diff(offset_ms) <= bound_ms(it));
            1 + near.count() >= self.majority()
        };
        // In doubt, it stays.
        near(to_ms, 0) && !near(from_ms, 1)
    }

    /// How far a clock at `offset_ms` is from the middle of all that were heard of lately, itself
    /// included; `None`: nobody was. Of two in the middle, the nearer one counts.
    pub fn skew(&self, now_ms: u64, offset_ms: i64) -> Option<Skew> {
        let others = self.fresh(now_ms);
        let mut leads: Vec<i64> = others
            .map(|it| it.offset_ms.saturating_sub(offset_ms))
            .collect();
        if leads.is_empty() {
            return None;
        }
        leads.push(0);
        leads.sort_unstable();
        let middle = [leads[(leads.len() - 1) / 2], leads[leads.len() / 2]];
        let nearest = middle.into_iter().min_by_key(|lead| lead.unsigned_abs())?;
        Some(Skew(nearest.saturating_neg()))
    }

    fn fresh(&self, now_ms: u64) -> impl Iterator<Item = &Reading> {
        self.latest
            .values()
            .filter(move |reading| now_ms.saturating_sub(reading.at_ms) <= FRESH_MS)
    }

    /// Stores that make a majority of all.
    fn majority(&self) -> usize {
        self.stores / 2 + 1
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_000_000_000;
    const HOUR: i64 = 3_600_000;
    const MAX: u64 = 500;

    fn store(id: usize) -> StoreId {
        StoreId::new(id as u64).unwrap()
    }

    /// Readings of stores 2, 3, ... that are ahead of a clock at offset 0 by this much, exact but for
    /// the grain.
    fn heard(stores: usize, leads: &[i64]) -> Readings {
        let mut readings = Readings::new(stores, MAX);
        for (at, lead) in leads.iter().enumerate() {
            let its_ms = NOW.saturating_add_signed(*lead);
            readings.note(store(at + 2), NOW, NOW, its_ms);
        }
        readings
    }

    #[test]
    fn who_is_off() {
        let off = |ms| Verdict::Off(Skew(ms));
        let cases: &[(usize, &[i64], Verdict, &str)] = &[
            (1, &[], Verdict::Fine, "alone"),
            (2, &[HOUR], Verdict::Fine, "one of two cannot be told"),
            (3, &[], Verdict::Unknown, "nobody heard of"),
            (
                3,
                &[3],
                Verdict::Fine,
                "one agrees, the third cannot outvote them",
            ),
            (3, &[HOUR], Verdict::Unknown, "one disagrees: which one?"),
            (3, &[HOUR, 4], Verdict::Fine, "the other is off"),
            (3, &[HOUR, HOUR + 5], off(-HOUR), "both say it is behind"),
            (
                3,
                &[-HOUR, -HOUR + 5],
                off(HOUR - 5),
                "both say it is ahead",
            ),
            (
                3,
                &[600, 90_000],
                off(-600),
                "on one side, though far apart",
            ),
            (3, &[600, -600], Verdict::Fine, "in the middle"),
            (
                3,
                &[500, 501],
                Verdict::Fine,
                "within the bound and the error",
            ),
            (3, &[502, 502], off(-502), "just beyond"),
            (
                5,
                &[HOUR, HOUR],
                Verdict::Unknown,
                "two of five are no majority",
            ),
            (5, &[HOUR, HOUR, HOUR], off(-HOUR), "three of five are"),
            (
                5,
                &[HOUR, HOUR, 0, 0],
                Verdict::Fine,
                "three of five agree, it included",
            ),
            (5, &[HOUR, HOUR, 0], Verdict::Unknown, "the fifth decides"),
            (4, &[HOUR, HOUR, 0], Verdict::Fine, "two against two"),
            (4, &[HOUR, HOUR, HOUR], off(-HOUR), "three of four"),
        ];
        for (stores, leads, verdict, why) in cases {
            assert_eq!(heard(*stores, leads).judge(NOW, 0), *verdict, "{why}");
        }
    }

    #[test]
    fn the_error_of_a_reading_is_half_its_round_trip() {
        let mut readings = Readings::new(3, MAX);
        for id in [2, 3] {
            // In the middle of 300 ms its clock was ahead by 640 ms: or by anything from 490 ms on.
            readings.note(store(id), NOW, NOW + 300, NOW + 150 + 640);
        }
        assert_eq!(readings.judge(NOW, 0), Verdict::Fine);
        assert_eq!(readings.skew(NOW, 0), Some(Skew(-640)));
        assert_eq!(readings.judge(NOW, -12), Verdict::Off(Skew(-652)));
    }

    #[test]
    fn what_is_old_or_took_long_does_not_count() {
        let readings = heard(3, &[HOUR, HOUR]);
        assert!(matches!(readings.judge(NOW + FRESH_MS, 0), Verdict::Off(_)));
        assert_eq!(readings.judge(NOW + FRESH_MS + 1, 0), Verdict::Unknown);
        assert_eq!(readings.skew(NOW + FRESH_MS + 1, 0), None);
        let mut readings = Readings::new(3, MAX);
        readings.note(store(2), NOW, NOW + LONGEST_TRIP_MS + 1, NOW);
        assert_eq!(readings.judge(NOW, 0), Verdict::Unknown);
    }

    #[test]
    fn a_step_is_followed_only_from_outside_a_majority_into_one() {
        let cases: &[(usize, &[i64], i64, bool, &str)] = &[
            (3, &[0, 3], HOUR, false, "away from the others"),
            (3, &[HOUR, HOUR], HOUR, true, "to the others"),
            (3, &[HOUR], HOUR, true, "two of three agree with the wall"),
            (
                3,
                &[HOUR, 0],
                HOUR,
                false,
                "two of three agree with what is",
            ),
            (3, &[], HOUR, false, "nobody says anything"),
            (3, &[HOUR, HOUR], 2 * HOUR, false, "past the others"),
            (2, &[HOUR], HOUR, true, "both agree then"),
            (2, &[0], HOUR, false, "both agree now"),
            (1, &[], HOUR, false, "alone it keeps what it has"),
            (3, &[300, 300], 300, false, "near enough as it is"),
        ];
        for (stores, leads, step, follow, why) in cases {
            let readings = heard(*stores, leads);
            assert_eq!(readings.agree_to_move(NOW, 0, *step), *follow, "{why}");
        }
    }

    #[test]
    fn a_store_that_says_nonsense_breaks_nothing() {
        let mut readings = Readings::new(3, MAX);
        readings.note(store(2), NOW, NOW, u64::MAX);
        readings.note(store(3), NOW, NOW, 0);
        assert_eq!(readings.judge(NOW, 0), Verdict::Fine);
        assert!(!readings.agree_to_move(NOW, 0, i64::MAX));
        assert!(!readings.agree_to_move(NOW, 0, i64::MIN));
        assert!(readings.skew(NOW, i64::MIN).is_some());
    }

    /// What the store at `me` hears of the others when all clocks are `clocks` and `trips` are the times
    /// of the round trips and how much of each is the way there.
    fn of(clocks: &[i64], me: usize, trips: &[(u64, u64)]) -> Readings {
        let mut readings = Readings::new(clocks.len(), MAX);
        for (at, clock) in clocks.iter().enumerate().filter(|(at, _)| *at != me) {
            let (trip, there) = trips[at % trips.len()];
            let there = there.min(trip);
            let its_ms = (NOW + there).saturating_add_signed(clock - clocks[me]);
            readings.note(store(at + 1), NOW, NOW + trip, its_ms);
        }
        readings
    }

    proptest! {
        #[test]
        fn the_middle_is_fine_and_who_agrees_with_a_majority_is_never_off(
            clocks in prop::collection::vec(-5_000i64..5_000, 1..8),
            trips in prop::collection::vec((0u64..=LONGEST_TRIP_MS, 0u64..=LONGEST_TRIP_MS), 8),
        ) {
            let mut sorted = clocks.clone();
            sorted.sort_unstable();
            let middle = sorted[(clocks.len() - 1) / 2];
            for me in 0..clocks.len() {
                let verdict = of(&clocks, me, &trips).judge(NOW + LONGEST_TRIP_MS, 0);
                prop_assert_ne!(verdict, Verdict::Unknown, "all were heard of");
                let agree = clocks.iter().filter(|it| it.abs_diff(clocks[me]) <= MAX).count();
                if clocks[me] == middle || 2 * agree > clocks.len() {
                    prop_assert_eq!(verdict, Verdict::Fine);
                }
            }
        }

        #[test]
        fn a_verdict_stands_whatever_the_unheard_say(
            clocks in prop::collection::vec(-5_000i64..5_000, 1..8),
            silent in prop::collection::vec(any::<bool>(), 8),
        ) {
            let all = of(&clocks, 0, &[(0, 0)]);
            let mut some = all.clone();
            some.latest.retain(|store, _| !silent[usize::from(store.get()) - 1]);
            match some.judge(NOW, 0) {
                Verdict::Unknown => {}
                Verdict::Fine => prop_assert_eq!(all.judge(NOW, 0), Verdict::Fine),
                Verdict::Off(Skew(ms)) => {
                    prop_assert!(ms.unsigned_abs() > MAX);
                    prop_assert!(matches!(all.judge(NOW, 0), Verdict::Off(_)));
                }
            }
        }

        #[test]
        fn a_step_that_is_followed_is_never_into_the_wrong(
            clocks in prop::collection::vec(-5_000i64..5_000, 1..8),
            step in -6_000i64..6_000,
        ) {
            let readings = of(&clocks, 0, &[(0, 0)]);
            if readings.agree_to_move(NOW, 0, step) {
                prop_assert_eq!(readings.judge(NOW, step), Verdict::Fine);
                // And back again is no step to follow.
                prop_assert!(!readings.agree_to_move(NOW, step, 0));
            }
        }
    }
}
