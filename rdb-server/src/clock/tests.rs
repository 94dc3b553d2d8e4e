//! A clock among others, with readings brought by hand.

use super::*;
use rdb_storage::{MemoryEngine, View};
use rdb_types::stamp::EPOCH_UNIX_MS;
use std::sync::atomic::{AtomicI64, AtomicU64};
use tokio::time::advance;

const NOW: u64 = EPOCH_UNIX_MS + 100_000_000_000;
const HOUR: i64 = 3_600_000;

/// A clock whose hands are moved by the test, beside monotonic time that stands unless it is moved.
#[derive(Default)]
struct Hands {
    monotonic_ms: AtomicU64,
    wall_ahead_ms: AtomicI64,
}

impl PhysicalClock for Hands {
    fn unix_ms(&self) -> u64 {
        self.monotonic_ms.load(Ordering::Relaxed)
    }

    fn wall_unix_ms(&self) -> u64 {
        let ahead_ms = self.wall_ahead_ms.load(Ordering::Relaxed);
        self.unix_ms().saturating_add_signed(ahead_ms)
    }
}

struct Place {
    hands: Arc<Hands>,
    engine: Arc<MemoryEngine>,
    clock: Arc<StoreClock>,
}

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

/// The clock of store 1, which began at this time, on this disk.
fn clock_on(engine: Arc<MemoryEngine>, began_ms: u64) -> Place {
    let hands = Arc::new(Hands::default());
    hands.monotonic_ms.store(began_ms, Ordering::Relaxed);
    let committer = Committer::start(engine.clone(), Box::new(|error| panic!("{error}")));
    let skew = Duration::from_millis(500);
    let clock = StoreClock::open(store(1), hands.clone(), engine.as_ref(), committer, skew);
    Place {
        hands,
        engine,
        clock: clock.unwrap(),
    }
}

fn clock_at(began_ms: u64) -> Place {
    clock_on(Arc::new(MemoryEngine::new()), began_ms)
}

impl Place {
    /// Stores 2, 3, ... say that they are at these times.
    fn hear(&self, times_ms: &[u64]) {
        for (id, at_ms) in (2..).zip(times_ms) {
            self.clock
                .heard(store(id), self.clock.monotonic_ms(), *at_ms);
        }
        self.clock.compare();
    }

    fn step_wall(&self, by_ms: i64) {
        self.hands.wall_ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    fn bound_ms(&self) -> u64 {
        let row = self.engine.get(Family::Region, &layout::row("clock"));
        let row = row.unwrap().unwrap();
        u64::from_be_bytes(row.as_ref().try_into().unwrap())
    }
}

fn ahead(by_ms: i64) -> u64 {
    NOW.saturating_add_signed(by_ms)
}

#[tokio::test]
async fn a_store_alone_believes_itself() {
    let place = clock_at(NOW);
    place.clock.joined(1);
    assert_eq!(place.clock.standing(), Standing::Fine);
    assert_eq!(place.clock.reserve(1).await.unwrap().unix_ms(), NOW);
    // One of two, too: nobody could tell which of them is wrong.
    place.clock.joined(2);
    place.hear(&[ahead(HOUR)]);
    assert_eq!(place.clock.stamp_writes(1).await.unwrap().unix_ms(), NOW);
}

#[tokio::test]
async fn a_clock_that_is_off_refuses_eventual_writes_and_gets_into_no_strong_stamp() {
    let place = clock_at(ahead(HOUR));
    place.clock.joined(3);
    place.hear(&[NOW, NOW]);
    assert_eq!(place.clock.off(), Some(Skew(HOUR)));

    let refusal = place.clock.stamp_writes(1).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::ClockSkew);
    let said = |key: &str| refusal.metadata.get(key).map(String::as_str);
    assert_eq!(said("store"), Some("1"));
    assert_eq!(said("skew_ms"), Some("3600000"));
    assert_eq!(said("outcome"), Some("not_applied"));
    assert!(refusal.message.contains("NTP"), "{}", refusal.message);

    // A region's last stamp, made by a store whose clock is right.
    place.clock.observe(Stamp::pack(NOW - 70, 5, store(2)));
    let given = place.clock.reserve(3).await.unwrap();
    assert_eq!((given.unix_ms(), given.counter()), (NOW - 70, 6));
    assert_eq!(place.clock.stamping_ms(), NOW - 70);
    let next = place.clock.reserve(1).await.unwrap();
    assert_eq!((next.unix_ms(), next.counter()), (NOW - 70, 9));
    // Nor into the bound, above which the next start goes on.
    assert!(place.bound_ms() < NOW + 1_000, "{}", place.bound_ms());
}

#[tokio::test(start_paused = true)]
async fn nothing_of_its_own_time_is_stamped_before_a_majority_had_its_say() {
    let place = clock_at(ahead(HOUR));
    place.clock.joined(3);
    let clock = place.clock.clone();
    let waits = tokio::spawn(async move { clock.reserve(1).await.unwrap() });
    advance(Duration::from_millis(500)).await;
    assert!(!waits.is_finished());
    place.hear(&[NOW]);
    assert!(matches!(place.clock.standing(), Standing::Unconfirmed(_)));
    place.hear(&[NOW, NOW]);
    assert!(waits.await.unwrap().unix_ms() < NOW);
    assert!(place.clock.off().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_majority_is_bounded() {
    let place = clock_at(NOW);
    place.clock.joined(3);
    let began = Instant::now();
    // Alone it takes eventual writes, and its own time into no stamp: the next one of a strong region would
    // go on from there, and its followers would take it for the present.
    place.clock.observe(Stamp::pack(NOW - 70, 5, store(2)));
    let eventual = place.clock.stamp_writes(1).await.unwrap();
    let waited = began.elapsed();
    assert!(waited >= CONFIRM_WRITES && waited < 2 * CONFIRM_WRITES);
    assert_eq!((eventual.unix_ms(), eventual.counter()), (NOW - 70, 6));
    assert_eq!(place.clock.reserve(1).await.unwrap(), eventual.next());
    assert!(began.elapsed() >= CONFIRM && began.elapsed() < 2 * CONFIRM);
    place
        .hands
        .monotonic_ms
        .fetch_add(60_000, Ordering::Relaxed);
    assert_eq!(
        place.clock.reserve(1).await.unwrap(),
        eventual.next().next()
    );
    // One more that agrees makes two of three.
    place.hear(&[ahead(60_000)]);
    let confirmed = place.clock.reserve(1).await.unwrap();
    assert_eq!(confirmed.unix_ms(), ahead(60_000));
}

#[tokio::test]
async fn a_store_that_is_off_stays_off_while_it_hears_nobody() {
    let place = clock_at(ahead(HOUR));
    place.clock.joined(3);
    place.hear(&[NOW, NOW]);
    let later = skew::FRESH_MS + 1;
    place.hands.monotonic_ms.fetch_add(later, Ordering::Relaxed);
    place.clock.compare();
    assert_eq!(place.clock.skew(), None);
    assert!(place.clock.off().is_some());
    assert!(place.clock.stamp_writes(1).await.is_err());
}

#[tokio::test]
async fn a_step_of_the_wall_clock_is_followed_only_to_where_a_majority_is() {
    let place = clock_at(NOW);
    place.clock.joined(3);
    place.hear(&[NOW, NOW]);
    place.step_wall(-HOUR);
    place.clock.compare();
    assert_eq!(place.clock.unix_ms(), NOW);
    assert_eq!(place.clock.standing(), Standing::Fine);

    let place = clock_at(ahead(HOUR));
    place.clock.joined(3);
    place.hear(&[NOW, NOW]);
    assert!(place.clock.off().is_some());
    place.step_wall(-HOUR);
    place.clock.compare();
    assert_eq!(place.clock.unix_ms(), NOW);
    assert_eq!(place.clock.standing(), Standing::Fine);
    assert_eq!(place.clock.stamp_writes(1).await.unwrap().unix_ms(), NOW);
}

#[tokio::test]
async fn a_clock_that_is_set_back_goes_on_beyond_its_stamps_without_waiting() {
    let place = clock_at(ahead(HOUR));
    place.clock.joined(2);
    let wild = place.clock.stamp_writes(1).await.unwrap();
    assert_eq!(wild.unix_ms(), ahead(HOUR));
    place.hear(&[NOW]);
    place.step_wall(-HOUR);
    place.clock.compare();
    assert_eq!(place.clock.unix_ms(), NOW);
    assert_eq!(place.clock.reserve(1).await.unwrap(), wild.next());
}

#[tokio::test]
async fn a_wild_stamp_is_told_by_the_time_of_the_others() {
    let of = |at_ms| Stamp::pack(at_ms, 0, store(2));
    let place = clock_at(NOW);
    place.clock.joined(3);
    place.hear(&[NOW, NOW]);
    assert_eq!(place.clock.is_wild(of(NOW + 1000)), None);
    assert_eq!(place.clock.is_wild(of(NOW + 1001)), Some(1001));
    // What was seen is part of the clock.
    place.clock.observe(of(NOW + 900));
    assert_eq!(place.clock.hybrid_ms(), NOW + 900);
    assert_eq!(place.clock.is_wild(of(NOW + 1900)), None);

    // A store that is behind does not take everybody's stamps for wild, nor one that is ahead a wild
    // one for right.
    for wrong in [-HOUR, HOUR] {
        let place = clock_at(ahead(wrong));
        place.clock.joined(3);
        place.hear(&[NOW, NOW]);
        assert_eq!(place.clock.is_wild(of(NOW + 900)), None);
        assert_eq!(place.clock.is_wild(of(ahead(HOUR))), Some(HOUR as u64));
    }
}

#[tokio::test]
async fn a_restart_goes_on_above_the_bound() {
    let place = clock_at(NOW);
    let given = place.clock.reserve(10).await.unwrap();
    let again = clock_on(place.engine.clone(), ahead(-HOUR));
    assert!(again.clock.reserve(1).await.unwrap() > given);
}
