//! Checks what a session was promised: for each key, the versions it meets never go back, and its
//! reads see its own writes.
//!
//! Owns the lower bound of what each session may still see of each key. Does not judge sessions
//! against one another; that is linearizability.
//!
//! A version is a number that grows with every change of a key (FlareDB's stamps do). Leave out
//! what a session cannot know: writes of unknown outcome, and reads that failed. The exception are
//! deletes, see [`Event::Deleted`]. Records that expire by themselves cannot be judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What one call told its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A write of its own was acknowledged with this version.
    Wrote(u64),
    /// A delete of its own was acknowledged with this version; `None`: its outcome is unknown, or
    /// its version. Recorded also when unknown, as it explains why a key is absent.
    Deleted(Option<u64>),
    /// A read found this version.
    Found(u64),
    /// A read found nothing.
    Absent,
}

/// An event, with where it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which session.
    pub session: u64,
    /// Which key.
    pub key: u64,
    /// What it was told.
    pub event: Event,
}

/// A session went back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Where in the list of events.
    pub index: usize,
    /// The event.
    pub seen: Seen,
    /// The session already knew that the key is at this version, or beyond.
    pub at_least: u64,
    /// Whether it knew that from a write of its own.
    pub own_write: bool,
}

/// Judges all events, those of one session in the order in which it was told; how sessions are
/// mixed does not matter. A session makes one call at a time.
///
/// # Errors
///
/// Every event at which a session went back, at least one.
pub fn check(events: &[Seen]) -> Result<(), Vec<Violation>> {
    let deletes = Deletes::among(events);
    let mut bounds: BTreeMap<(u64, u64), Bound> = BTreeMap::new();
    let mut violations = Vec::new();
    for (index, seen) in events.iter().enumerate() {
        let bound = bounds.entry((seen.session, seen.key)).or_default();
        let holds = match seen.event {
            Event::Wrote(version) => {
                bound.raise(version, true);
                true
            }
            Event::Deleted(version) => {
                bound.raise(version.unwrap_or(0), true);
                true
            }
            Event::Found(version) => {
                let holds = version >= bound.at_least;
                bound.raise(version, false);
                holds
            }
            // Nothing is there because nothing was written yet, or because of a delete that is at
            // least what the session saw last; of those that may be, the earliest binds it least.
            Event::Absent if bound.at_least == 0 => true,
            Event::Absent => match deletes.earliest_from(seen.key, bound.at_least) {
                Some(version) => {
                    bound.raise(version, false);
                    true
                }
                None => false,
            },
        };
        if !holds {
            let Bound {
                at_least,
                own_write,
            } = *bound;
            violations.push(Violation {
                index,
                seen: *seen,
                at_least,
                own_write,
            });
        }
    }
    if violations.is_empty() {
        Ok(())
    } else {
        Err(violations)
    }
}

/// The least version that a session may see from now on; 0: it has seen nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Bound {
    at_least: u64,
    own_write: bool,
}

impl Bound {
    fn raise(&mut self, version: u64, own_write: bool) {
        if version > self.at_least {
            *self = Bound {
                at_least: version,
                own_write,
            };
        }
    }
}

/// All deletes of all sessions: what may explain that a key is absent.
struct Deletes {
    known: BTreeMap<u64, BTreeSet<u64>>,
    /// Keys with a delete that may have any version.
    unknown: BTreeSet<u64>,
}

impl Deletes {
    fn among(events: &[Seen]) -> Self {
        let mut deletes = Deletes {
            known: BTreeMap::new(),
            unknown: BTreeSet::new(),
        };
        for seen in events {
            match seen.event {
                Event::Deleted(Some(version)) => {
                    deletes.known.entry(seen.key).or_default().insert(version);
                }
                Event::Deleted(None) => {
                    deletes.unknown.insert(seen.key);
                }
                Event::Wrote(_) | Event::Found(_) | Event::Absent => {}
            }
        }
        deletes
    }

    fn earliest_from(&self, key: u64, at_least: u64) -> Option<u64> {
        let known = self
            .known
            .get(&key)
            .and_then(|known| known.range(at_least..).next().copied());
        // The delete that `at_least` stands for is known, if it is one: another one came later.
        let unknown = self
            .unknown
            .contains(&key)
            .then(|| at_least.saturating_add(1));
        match (known, unknown) {
            (Some(known), Some(unknown)) => Some(known.min(unknown)),
            (known, unknown) => known.or(unknown),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation {
            index,
            seen:
                Seen {
                    session,
                    key,
                    event,
                },
            at_least,
            own_write,
        } = self;
        let found = match event {
            Event::Found(version) => format!("version {version}"),
            _ => "nothing".to_owned(),
        };
        let from = if *own_write {
            "its own change to"
        } else {
            "having seen"
        };
        write!(
            f,
            "event {index}: session {session} read {found} of key {key} after {from} version \
             {at_least}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seen(session: u64, key: u64, event: Event) -> Seen {
        Seen {
            session,
            key,
            event,
        }
    }

    /// The indexes of the events that are violations.
    fn judge(events: &[Seen]) -> Vec<usize> {
        check(events)
            .err()
            .unwrap_or_default()
            .iter()
            .map(|violation| violation.index)
            .collect()
    }

    #[test]
    fn one_session_and_key() {
        use Event::{Absent, Deleted, Found, Wrote};
        let table: [(&[Event], &[usize]); 14] = [
            (&[Absent, Found(3), Found(3), Found(5)], &[]),
            (&[Found(5), Found(3)], &[1]),
            (&[Found(5), Found(3), Found(4), Found(5)], &[1, 2]),
            (&[Wrote(5), Found(5)], &[]),
            (&[Wrote(5), Found(4)], &[1]),
            (&[Wrote(5), Found(9), Found(5)], &[2]),
            (&[Wrote(5), Absent], &[1]),
            (&[Found(5), Absent], &[1]),
            (&[Wrote(5), Deleted(Some(6)), Absent], &[]),
            (&[Wrote(5), Deleted(Some(6)), Found(5)], &[2]),
            (&[Wrote(5), Deleted(None), Absent, Found(6)], &[]),
            (&[Wrote(5), Deleted(None), Absent, Found(5)], &[3]),
            (&[Deleted(Some(6)), Wrote(8), Absent], &[2]),
            (&[Deleted(Some(6)), Absent, Found(5)], &[2]),
        ];
        for (events, expected) in table {
            let events: Vec<_> = events.iter().map(|event| seen(1, 1, *event)).collect();
            assert_eq!(judge(&events), expected, "{events:?}");
        }
    }

    #[test]
    fn sessions_and_keys_are_judged_apart() {
        let events = [
            seen(1, 1, Event::Found(9)),
            seen(2, 1, Event::Found(3)),
            seen(1, 2, Event::Found(3)),
            seen(2, 1, Event::Found(2)),
        ];
        assert_eq!(judge(&events), [3]);
    }

    #[test]
    fn a_delete_by_another_session_explains_absence_from_its_version_on() {
        let deleted = seen(2, 1, Event::Deleted(Some(7)));
        let absent = seen(1, 1, Event::Absent);
        assert_eq!(judge(&[seen(1, 1, Event::Found(5)), absent, deleted]), []);
        assert_eq!(judge(&[seen(1, 1, Event::Found(8)), absent, deleted]), [1]);
        // Having seen the delete, the session must not meet what was deleted.
        let back = seen(1, 1, Event::Found(5));
        assert_eq!(
            judge(&[seen(1, 1, Event::Found(5)), absent, back, deleted]),
            [2]
        );
    }

    #[test]
    fn a_violation_can_be_read() {
        let events = [seen(4, 2, Event::Wrote(5)), seen(4, 2, Event::Found(3))];
        let violations = check(&events).expect_err("the session does not see its own write");
        assert_eq!(
            violations[0].to_string(),
            "event 1: session 4 read version 3 of key 2 after its own change to version 5"
        );
    }
}
