//! For how long each switch of modes has been under way, as far as this store knows.
//!
//! Owns the memory of when each began. Pure: rows and times come as arguments. Every store keeps its own, so that
//! a switch that nobody ends is seen by whoever is left; after a restart it begins anew.
//!
//! Invariant: a switch that is given up and undone is one that goes on, until the namespace is as the tables say.

use crate::region::meta::modes::under_way;
use rdb_proto::raft::NamespaceRow;
use rdb_types::NamespaceId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// When the switches that are under way were first seen.
#[derive(Debug, Default)]
pub struct SwitchTimes(BTreeMap<NamespaceId, Begun>);

#[derive(Debug)]
struct Begun {
    /// Grows when a switch ends: then what is under way is another one.
    settled_attempt: u64,
    at: Instant,
}

impl SwitchTimes {
    /// Looks at all rows.
    pub fn look<'a>(&mut self, rows: impl Iterator<Item = &'a NamespaceRow>, now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for row in rows.filter(|row| !row.deleted && under_way(row)) {
            let id = NamespaceId(row.id);
            let known = before
                .remove(&id)
                .filter(|begun| begun.settled_attempt == row.settled_attempt);
            let begun = known.unwrap_or(Begun {
                settled_attempt: row.settled_attempt,
                at: now,
            });
            self.0.insert(id, begun);
        }
    }

    /// What is under way, and for how long.
    pub fn under_way(&self, now: Instant) -> BTreeMap<NamespaceId, Duration> {
        let begun = self.0.iter();
        begun
            .map(|(id, begun)| (*id, now.saturating_duration_since(begun.at)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(attempt: u64, settled_attempt: u64) -> [NamespaceRow; 1] {
        [NamespaceRow {
            id: 4,
            attempt,
            settled_attempt,
            ..Default::default()
        }]
    }

    #[test]
    fn a_switch_that_is_undone_goes_on_and_the_next_one_begins_anew() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut times = SwitchTimes::default();
        let mut seen = |row: [NamespaceRow; 1], seconds| {
            times.look(row.iter(), after(seconds));
            let under_way = times.under_way(after(seconds + 1));
            under_way.get(&NamespaceId(4)).map(Duration::as_secs)
        };
        assert_eq!(seen(row(2, 2), 0), None);
        assert_eq!(seen(row(3, 2), 10), Some(1));
        assert_eq!(seen(row(3, 2), 15), Some(6));
        assert_eq!(seen(row(4, 2), 20), Some(11), "given up, and being undone");
        // It ended and another one began between two looks.
        assert_eq!(seen(row(5, 4), 30), Some(1));
        assert_eq!(seen(row(5, 5), 40), None);
    }
}
