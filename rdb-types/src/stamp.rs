//! Stamps, and the hybrid logical clock that hands them out.
//!
//! A stamp is one u64: 42 bits of milliseconds since 2024-01-01 UTC, 12 bits of counter, 10 bits of
//! store id (Kulkarni et al., "Logical Physical Clocks", packed). It is unique, totally ordered, and
//! it is a record's version.
//!
//! Invariants of [`HybridClock`]:
//! - every stamp is above every stamp given out or observed before;
//! - no stamp reaches the persisted bound, and a restart begins at it: none is ever used twice;
//! - on its own account the clock gets ahead by at most half of the permitted skew: of physical time, or, where it
//!   has seen a later one elsewhere, of that time as it passes since.

use crate::StoreId;
use std::fmt;

/// Milliseconds from the Unix epoch to 2024-01-01T00:00:00Z, where stamps begin.
pub const EPOCH_UNIX_MS: u64 = 1_704_067_200_000;

const STORE_BITS: u32 = 10;
const COUNTER_BITS: u32 = 12;
/// The largest tick (milliseconds and counter) that a stamp can hold.
const MAX_TICK: u64 = u64::MAX >> STORE_BITS;

/// A record's version: time, counter and store in one number. 0 means "none".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// No stamp: smaller than every one.
    pub const ZERO: Stamp = Stamp(0);

    /// Packs milliseconds since the Unix epoch, a counter below 4096 and a store.
    pub fn pack(unix_ms: u64, counter: u64, store: StoreId) -> Stamp {
        let ticks = (unix_ms.saturating_sub(EPOCH_UNIX_MS) << COUNTER_BITS) + counter;
        Stamp::from_tick(ticks, store)
    }

    fn from_tick(tick: u64, store: StoreId) -> Stamp {
        Stamp((tick.min(MAX_TICK) << STORE_BITS) | u64::from(store.get()))
    }

    /// Milliseconds and counter as one number: the stamp without its store.
    fn tick(self) -> u64 {
        self.0 >> STORE_BITS
    }

    /// Milliseconds since the Unix epoch.
    pub fn unix_ms(self) -> u64 {
        (self.0 >> (STORE_BITS + COUNTER_BITS)) + EPOCH_UNIX_MS
    }

    /// The counter within the millisecond.
    pub fn counter(self) -> u64 {
        self.tick() & ((1 << COUNTER_BITS) - 1)
    }

    /// The store's bits; 0 only in [`Stamp::ZERO`] and stamps that no store made.
    pub fn store_bits(self) -> u16 {
        (self.0 & ((1 << STORE_BITS) - 1)) as u16
    }

    /// The store that made it.
    pub fn store(self) -> Option<StoreId> {
        StoreId::new(u64::from(self.store_bits()))
    }

    /// This stamp, or the first of that millisecond if it is earlier.
    #[must_use]
    pub fn at_unix_ms_or_later(self, unix_ms: u64) -> Stamp {
        let ticks = unix_ms.saturating_sub(EPOCH_UNIX_MS) << COUNTER_BITS;
        Stamp(
            self.0
                .max(ticks.min(MAX_TICK) << STORE_BITS | u64::from(self.store_bits())),
        )
    }

    /// The next stamp of the same store: one counter step on, borrowing from the next millisecond
    /// when the counter is full.
    #[must_use]
    pub fn next(self) -> Stamp {
        Stamp(self.0.saturating_add(1 << STORE_BITS))
    }

    /// The smallest stamp above `last` that carries this stamp's store, or this one if it is above
    /// already. What keeps stamps in log order (`max(the entry's, the next beyond the last)`).
    #[must_use]
    pub fn at_least_after(self, last: Stamp) -> Stamp {
        if self > last {
            return self;
        }
        let same_tick = Stamp((last.tick() << STORE_BITS) | u64::from(self.store_bits()));
        if same_tick > last {
            same_tick
        } else {
            same_tick.next()
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}@{}",
            self.unix_ms(),
            self.counter(),
            self.store_bits()
        )
    }
}

/// Why no stamp can be given out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockWait {
    /// The persisted bound is used up: persist a higher one with [`HybridClock::raise_bound`] first.
    Bound,
    /// The clock is this many milliseconds further ahead of physical time than it may run.
    Ahead {
        /// Milliseconds until it may go on.
        wait_ms: u64,
    },
}

/// A store's hybrid logical clock. Pure: physical time comes in, stamps and bounds come out.
#[derive(Clone, Debug)]
pub struct HybridClock {
    store: StoreId,
    /// The highest tick given out or observed.
    last_tick: u64,
    /// The tick from which borrowing is counted: the highest one seen beyond what was given out, another
    /// clock's time.
    base_tick: u64,
    /// The physical tick at which `base_tick` was first gone on from; `None`: not yet. What was ahead stays
    /// as far ahead, however much time passes.
    base_physical: Option<u64>,
    /// Ticks below this may be given out: a bound at least this high is on disk.
    bound_tick: u64,
    /// How far the counter may borrow from the future.
    max_ahead_ms: u64,
}

impl HybridClock {
    /// A clock that goes on above `persisted_bound_ms` (Unix; 0 on a new disk), whatever physical
    /// time says, and never runs ahead of it by more than half of `max_clock_skew_ms`.
    pub fn new(store: StoreId, persisted_bound_ms: u64, max_clock_skew_ms: u64) -> HybridClock {
        let tick = persisted_bound_ms.saturating_sub(EPOCH_UNIX_MS) << COUNTER_BITS;
        HybridClock {
            store,
            last_tick: tick,
            // Going on above the bound is no borrowing of this life.
            base_tick: tick,
            base_physical: None,
            bound_tick: tick,
            max_ahead_ms: max_clock_skew_ms / 2,
        }
    }

    /// Reserves `count` consecutive stamps (at least one) and returns the first; the others follow
    /// by [`Stamp::next`].
    pub fn reserve(&mut self, physical_unix_ms: u64, count: u64) -> Result<Stamp, ClockWait> {
        let physical = physical_unix_ms.saturating_sub(EPOCH_UNIX_MS) << COUNTER_BITS;
        let first = physical.max(self.last_tick + 1);
        let last = first + count.max(1) - 1;
        // What was seen elsewhere may be ahead; only the clock's own borrowing is bounded.
        let since = *self.base_physical.get_or_insert(physical);
        let present = self.base_tick + physical.saturating_sub(since);
        let borrowed_ms = last.saturating_sub(physical.max(present)) >> COUNTER_BITS;
        if borrowed_ms > self.max_ahead_ms {
            return Err(ClockWait::Ahead {
                wait_ms: borrowed_ms - self.max_ahead_ms,
            });
        }
        if last >= self.bound_tick {
            return Err(ClockWait::Bound);
        }
        self.last_tick = last;
        Ok(Stamp::from_tick(first, self.store))
    }

    /// Reserves the `count` smallest stamps beyond the last one and returns the first: for a store whose
    /// physical time must get into no stamp. Never [`ClockWait::Ahead`].
    pub fn reserve_next(&mut self, count: u64) -> Result<Stamp, ClockWait> {
        let first = self.last_tick + 1;
        let last = first + count.max(1) - 1;
        if last >= self.bound_tick {
            return Err(ClockWait::Bound);
        }
        self.last_tick = last;
        self.forgive();
        Ok(Stamp::from_tick(first, self.store))
    }

    /// What was given out until now counts as no borrowing: physical time was set back, or played no part.
    pub fn forgive(&mut self) {
        self.base_tick = self.last_tick;
        self.base_physical = None;
    }

    /// Moves the clock past a stamp that was seen elsewhere.
    pub fn observe(&mut self, seen: Stamp) {
        // What lies beyond all that was given out here is another clock's time, whoever's bits it bears.
        if seen.tick() > self.last_tick {
            self.last_tick = seen.tick();
            self.forgive();
        }
    }

    /// The bound to persist next, in Unix milliseconds: `window_ms` beyond what is needed now.
    pub fn next_bound_ms(&self, physical_unix_ms: u64, window_ms: u64) -> u64 {
        let last_ms = (self.last_tick >> COUNTER_BITS) + EPOCH_UNIX_MS;
        last_ms.max(physical_unix_ms) + window_ms
    }

    /// Says that `bound_ms` is durable. A lower one than before changes nothing.
    pub fn raise_bound(&mut self, bound_ms: u64) {
        self.bound_tick = self
            .bound_tick
            .max(bound_ms.saturating_sub(EPOCH_UNIX_MS) << COUNTER_BITS);
    }

    /// Milliseconds of stamps that may still be given out below the bound.
    pub fn bound_left_ms(&self) -> u64 {
        self.bound_tick.saturating_sub(self.last_tick) >> COUNTER_BITS
    }

    /// The highest stamp given out or observed.
    pub fn last(&self) -> Stamp {
        Stamp::from_tick(self.last_tick, self.store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = EPOCH_UNIX_MS + 1_000_000;

    fn store(id: u64) -> StoreId {
        StoreId::new(id).unwrap()
    }

    #[test]
    fn parts_come_back() {
        let stamp = Stamp::pack(NOW, 4095, store(1023));
        assert_eq!(
            (stamp.unix_ms(), stamp.counter(), stamp.store_bits()),
            (NOW, 4095, 1023)
        );
        let next = stamp.next();
        assert_eq!(
            (next.unix_ms(), next.counter(), next.store_bits()),
            (NOW + 1, 0, 1023)
        );
    }

    #[test]
    fn a_full_counter_waits_rather_than_run_away() {
        let mut clock = HybridClock::new(store(1), 0, 500);
        clock.raise_bound(NOW + 100_000);
        let mut given = 0u64;
        let wait = loop {
            match clock.reserve(NOW, 100) {
                Ok(_) => given += 100,
                Err(wait) => break wait,
            }
        };
        assert!(
            matches!(wait, ClockWait::Ahead { wait_ms: 1.. }),
            "{wait:?}"
        );
        assert!((250 * 4096..=252 * 4096).contains(&given), "{given}");
        assert!(clock.reserve(NOW + 10, 8192).is_ok());
    }

    #[test]
    fn nothing_is_given_out_at_or_above_the_bound() {
        let mut clock = HybridClock::new(store(1), 0, 500);
        assert_eq!(clock.reserve(NOW, 1), Err(ClockWait::Bound));
        clock.raise_bound(clock.next_bound_ms(NOW, 3));
        assert!(clock.reserve(NOW, 1).is_ok());
        assert_eq!(clock.reserve(NOW + 3, 1), Err(ClockWait::Bound));
    }

    #[test]
    fn a_restart_goes_on_above_the_bound_even_if_the_wall_clock_went_back() {
        let mut before = HybridClock::new(store(1), 0, 500);
        before.raise_bound(NOW + 1000);
        let used = before.reserve(NOW + 999, 4000).unwrap();
        let mut after = HybridClock::new(store(1), NOW + 1000, 500);
        after.raise_bound(NOW + 2000);
        assert!(after.reserve(NOW - 500_000, 1).unwrap() > used);
    }

    #[test]
    fn stamps_without_physical_time_follow_the_last_one_and_are_no_borrowing() {
        let mut clock = HybridClock::new(store(1), 0, 500);
        clock.raise_bound(NOW + 100_000);
        clock.observe(Stamp::pack(NOW, 7, store(2)));
        let given = clock.reserve_next(3).unwrap();
        assert_eq!((given.unix_ms(), given.counter()), (NOW, 8));
        assert_eq!(clock.last().counter(), 10);
        // A second of ticks, four times what may be borrowed.
        clock.reserve_next(4096 * 1000).unwrap();
        assert!(clock.reserve(NOW, 1).is_ok());
        assert_eq!(clock.reserve_next(4096 * 100_000), Err(ClockWait::Bound));
    }

    #[test]
    fn a_clock_that_was_set_back_goes_on_at_once() {
        let mut clock = HybridClock::new(store(1), 0, 500);
        clock.raise_bound(NOW + 7_200_000);
        let ahead = clock.reserve(NOW + 3_600_000, 1).unwrap();
        assert!(matches!(
            clock.clone().reserve(NOW, 1),
            Err(ClockWait::Ahead { .. })
        ));
        clock.forgive();
        assert_eq!(clock.reserve(NOW, 1), Ok(ahead.next()));
    }

    #[test]
    fn a_clock_that_was_lifted_far_goes_on_for_as_long_as_it_takes_time_to_follow() {
        let mut clock = HybridClock::new(store(1), 0, 500);
        clock.raise_bound(NOW + 7_200_000);
        clock.observe(Stamp::pack(NOW + 3_600_000, 0, store(2)));
        // A second of ticks at each second: what a busy store never reaches, and an hour ahead all the time.
        clock.reserve(NOW, 1).unwrap();
        for second in 1..100 {
            let stamp = clock.reserve(NOW + second * 1000, 4096 * 1000).unwrap();
            assert!(stamp.unix_ms() >= NOW + 3_600_000 + (second - 1) * 1000);
        }
        // More than time gives is borrowed, from there on as from anywhere.
        let wait = clock.reserve(NOW + 99_000, 4096 * 1000);
        assert!(
            matches!(wait, Err(ClockWait::Ahead { wait_ms: 1.. })),
            "{wait:?}"
        );
    }

    #[test]
    fn log_order_wins_over_a_slow_clock() {
        let fast = Stamp::pack(NOW + 50, 7, store(2));
        let slow = Stamp::pack(NOW, 0, store(1));
        let given = slow.at_least_after(fast);
        assert!(given > fast);
        assert_eq!(given.store_bits(), 1);
        let other = Stamp::pack(NOW, 0, store(3)).at_least_after(fast);
        assert_eq!(
            (other.unix_ms(), other.counter(), other.store_bits()),
            (NOW + 50, 7, 3)
        );
    }

    proptest! {
        #[test]
        fn stamps_only_grow_and_carry_their_store(
            steps in prop::collection::vec((0u64..2000, 1u64..64, prop::option::of(0u64..3000)), 1..200),
        ) {
            let mut clock = HybridClock::new(store(9), 0, 500);
            let mut last = Stamp::ZERO;
            for (at, count, seen) in steps {
                if let Some(ms) = seen {
                    let seen = Stamp::pack(NOW + ms, 3, store(4));
                    clock.observe(seen);
                    last = last.max(seen);
                }
                if let Ok(first) = clock.reserve(NOW + at, count) {
                    prop_assert!(first > last, "{:?} after {:?}", first, last);
                    prop_assert_eq!(first.store_bits(), 9);
                    last = (1..count).fold(first, |stamp, _| stamp.next());
                } else {
                    clock.raise_bound(clock.next_bound_ms(NOW + at, 100));
                }
            }
        }

        #[test]
        fn at_least_after_is_the_least_such_stamp(a in any::<u64>(), b in 0u64..u64::MAX - (2 << 10)) {
            let (mine, last) = (Stamp(a), Stamp(b));
            let given = mine.at_least_after(last);
            prop_assert!(given > last);
            prop_assert_eq!(given.store_bits(), mine.store_bits());
            prop_assert!(given == mine || Stamp(given.0 - (1 << 10)) <= last);
        }
    }
}
