//! Whether a data directory goes on where others saw it last.
//!
//! A store's id stands for what it has acknowledged and voted for, and so does its directory. An older copy
//! of the directory has the same UUID and has forgotten some of it. So each start of a directory is counted
//! and draws a number at random, the **incarnation**; both are on the disk before any other store hears of
//! them. Every store keeps the last start that it has seen of each other one, and a directory goes on from
//! there only if that start is one of its own.
//!
//! Why the count alone does not do: a copy that is started often enough has been started more often. So a
//! store tells the incarnations of its last [`REMEMBERED`] starts. Of one that was seen longer ago nothing
//! can be told, and it is believed; a copy does not get there by being started again and again, because the
//! first refusal is kept in it (`refused`).
//!
//! What this does not find out: a copy that was made in the run that the others saw last (there was no
//! start in between), and one that meets only stores which never met the starts that it lacks.
//!
//! Owns the arithmetic. Knows no disk; `store::starts` keeps the rows.

use rdb_proto::raft::{Start, Starts};

/// Starts that a directory remembers by their incarnation.
pub const REMEMBERED: usize = 64;

/// The starts of a directory that is started once more.
pub fn started(before: Starts, incarnation: u64) -> Starts {
    let earlier = before.incarnations.into_iter().take(REMEMBERED - 1);
    Starts {
        count: before.count + 1,
        incarnations: std::iter::once(incarnation).chain(earlier).collect(),
        refused: before.refused,
    }
}

/// The start that a directory is in. `None`: its store does not count them.
pub fn latest(starts: &Starts) -> Option<Start> {
    let incarnation = *starts.incarnations.first()?;
    (starts.count > 0).then_some(Start {
        count: starts.count,
        incarnation,
    })
}

/// Whether a directory with these starts may be the one that was seen in that start, or a later state of it.
pub fn goes_on(starts: &Starts, seen: Start) -> bool {
    if starts.count == 0 || seen.count == 0 {
        return true; // a build that does not count
    }
    let Some(since) = starts.count.checked_sub(seen.count) else {
        return false;
    };
    let then = usize::try_from(since).ok();
    match then.and_then(|since| starts.incarnations.get(since)) {
        Some(incarnation) => *incarnation == seen.incarnation,
        None => true, // longer ago than it remembers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that was started with these incarnations, oldest first.
    fn directory(incarnations: impl IntoIterator<Item = u64>) -> Starts {
        incarnations.into_iter().fold(Starts::default(), started)
    }

    fn seen(count: u64, incarnation: u64) -> Start {
        Start { count, incarnation }
    }

    #[test]
    fn a_directory_goes_on_only_from_a_start_of_its_own() {
        let three = directory([7, 8, 9]);
        assert_eq!(latest(&three), Some(seen(3, 9)));
        let cases = [
            (seen(3, 9), true, "the same start"),
            (seen(2, 8), true, "an earlier one of its own"),
            (seen(1, 7), true, "its first"),
            (seen(4, 10), false, "a later one: this is an older copy"),
            (seen(3, 10), false, "as many, but another one"),
            (
                seen(2, 10),
                false,
                "fewer, but of a copy that was used beside it",
            ),
            (seen(0, 0), true, "of a build that does not count"),
        ];
        for (seen, fits, what) in cases {
            assert_eq!(goes_on(&three, seen), fits, "{what}");
        }
        assert!(goes_on(&Starts::default(), seen(3, 9)), "does not count");
    }

    #[test]
    fn a_copy_does_not_become_the_original_by_being_started_more_often() {
        let original = directory([1, 2, 3]);
        for again in 0..(REMEMBERED as u64 - 3) {
            let copy = directory([1, 2].into_iter().chain(100..=100 + again));
            assert!(!goes_on(&copy, latest(&original).unwrap()), "{again}");
        }
    }

    #[test]
    fn only_so_many_starts_are_remembered() {
        let often = directory(1..=200);
        assert_eq!(often.incarnations.len(), REMEMBERED);
        assert_eq!(often.count, 200);
        let oldest = 200 - REMEMBERED as u64 + 1;
        assert!(goes_on(&often, seen(oldest, oldest)));
        assert!(!goes_on(&often, seen(oldest, 1)));
        assert!(goes_on(&often, seen(oldest - 1, 1)), "nobody can tell");
    }
}
