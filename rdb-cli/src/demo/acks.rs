//! When writes were acknowledged: how many, how fast, and for how long none was.
//!
//! Owns the list of times. Knows nothing of what was written.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// The acknowledgements of all clients.
pub(super) struct Acks(Mutex<Vec<Ack>>);

#[derive(Clone, Copy)]
struct Ack {
    at: Instant,
    took: Duration,
}

/// What happened in a stretch of time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) count: u64,
    pub(super) per_second: u64,
    /// Latencies, from the call to the answer.
    pub(super) median: Duration,
    pub(super) p99: Duration,
    /// The longest time in which nothing was acknowledged. The stretch's own ends count.
    pub(super) longest_pause: Duration,
}

impl Acks {
    pub(super) fn new() -> Acks {
        Acks(Mutex::new(Vec::new()))
    }

    /// An acknowledgement, now, of a write that was begun then.
    pub(super) fn add(&self, began: Instant) {
        // Read under the lock: the list is in the order of time.
        let mut acks = self.0.lock();
        let at = Instant::now();
        acks.push(Ack {
            at,
            took: at.saturating_duration_since(began),
        });
    }

    pub(super) fn count(&self) -> u64 {
        self.0.lock().len() as u64
    }

    pub(super) fn between(&self, from: Instant, to: Instant) -> Stretch {
        stretch(&self.0.lock(), from, to)
    }

    /// Whether a write that was begun after `since` has been acknowledged.
    pub(super) fn any_begun_after(&self, since: Instant) -> bool {
        self.0
            .lock()
            .iter()
            .rev()
            .take_while(|ack| ack.at > since)
            .any(|ack| ack.at - ack.took > since)
    }
}

fn stretch(acks: &[Ack], from: Instant, to: Instant) -> Stretch {
    let inside: Vec<Ack> = acks
        .iter()
        .copied()
        .filter(|ack| ack.at >= from && ack.at <= to)
        .collect();
    let times = std::iter::once(from)
        .chain(inside.iter().map(|ack| ack.at))
        .chain([to]);
    let times: Vec<Instant> = times.collect();
    let longest_pause = times
        .windows(2)
        .map(|pair| pair[1].saturating_duration_since(pair[0]))
        .max()
        .unwrap_or_default();
    let mut took: Vec<Duration> = inside.iter().map(|ack| ack.took).collect();
    took.sort_unstable();
    let at_percent = |percent: usize| {
        took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    let seconds = to.saturating_duration_since(from).as_secs_f64();
    let count = inside.len() as u64;
    let per_second = if seconds > 0.0 {
        (count as f64 / seconds) as u64
    } else {
        0
    };
    Stretch {
        count,
        per_second,
        median: at_percent(50),
        p99: at_percent(99),
        longest_pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_pause_is_the_longest_silence_its_ends_included() {
        let start = Instant::now();
        let ack = |ms: u32| Ack {
            at: start + MS * ms,
            took: MS * (ms / 100),
        };
        let acks = [ack(100), ack(200), ack(700), ack(900)];
        let all = stretch(&acks, start, start + MS * 1000);
        assert_eq!(
            (all.count, all.per_second, all.longest_pause),
            (4, 4, MS * 500)
        );
        assert_eq!((all.median, all.p99), (MS * 7, MS * 9));
        assert_eq!(
            stretch(&acks, start, start + MS * 2000).longest_pause,
            MS * 1100,
            "it lasts until the end"
        );
        let part = stretch(&acks, start + MS * 150, start + MS * 250);
        assert_eq!((part.count, part.longest_pause), (1, MS * 50));
        let none = stretch(&acks, start + MS * 210, start + MS * 230);
        assert_eq!(
            (none.count, none.median, none.longest_pause),
            (0, Duration::ZERO, MS * 20)
        );
    }

    #[test]
    fn an_acknowledgement_of_an_older_write_is_no_sign_of_life() {
        let acks = Acks::new();
        let (before, killed) = (Instant::now() - MS, Instant::now());
        acks.add(before);
        assert!(!acks.any_begun_after(killed));
        std::thread::sleep(MS);
        let after = Instant::now();
        acks.add(after);
        assert!(acks.any_begun_after(killed));
    }
}
