//! A session reads its own writes and never goes back, on any replica, or is told `STALE_REPLICA`.
//!
//! Owns what each session knows of each key. An absence is judged in the end, when every deletion's stamp
//! is known.

use super::kept::{At, Writes};
use rdb_types::Stamp;
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "sessions never go back";

/// What one session knows.
#[derive(Default)]
pub struct Session(BTreeMap<At, Known>);

#[derive(Clone, Copy)]
struct Known {
    stamp: Stamp,
    /// It was seen to be gone after that.
    gone: bool,
    at_ms: u64,
}

/// A session found nothing where it knew of something.
#[derive(Clone, Debug)]
pub struct Absence {
    /// Which key.
    pub at: At,
    /// What it knew of.
    pub known: Stamp,
    /// When it had seen that.
    pub known_ms: u64,
    /// When it found nothing, in Unix milliseconds of the simulated world.
    pub now_ms: u64,
    /// Who answered.
    pub by: String,
}

impl Session {
    /// The session wrote this, or read it.
    pub fn knows(&mut self, at: At, stamp: Stamp, is_deletion: bool, at_ms: u64) {
        let known = Known {
            stamp,
            gone: is_deletion,
            at_ms,
        };
        let old = self.0.entry(at).or_insert(known);
        if stamp > old.stamp {
            *old = known;
        }
    }

    /// A read with the session's token found this stamp (`None`: nothing). An absence that needs an
    /// explanation comes back.
    ///
    /// # Errors
    /// The session went back.
    pub fn read(
        &mut self,
        at: &At,
        found: Option<Stamp>,
        times: (u64, u64),
        by: &str,
        writes: &Writes,
    ) -> Result<Option<Absence>, String> {
        let (at_ms, now_ms) = times;
        let Some(known) = self.0.get_mut(at) else {
            if let Some(stamp) = found {
                self.knows(at.clone(), stamp, false, at_ms);
            }
            return Ok(None);
        };
        let excused = writes.may_have_gone(at, known.stamp, known.at_ms);
        match found {
            Some(stamp) if stamp < known.stamp && !excused => Err(format!(
                "{by} answers {stamp:?} under {} of {}, and the session has seen {:?}",
                at.1.escape_ascii(),
                at.0,
                known.stamp
            )),
            Some(stamp) if stamp == known.stamp && known.gone && !excused => Err(format!(
                "{by} answers {stamp:?} under {} of {}, and the session has seen it gone",
                at.1.escape_ascii(),
                at.0,
            )),
            Some(stamp) => {
                *known = Known {
                    stamp,
                    gone: false,
                    at_ms,
                };
                Ok(None)
            }
            None if known.gone || excused => {
                known.gone = true;
                Ok(None)
            }
            None => {
                known.gone = true;
                Ok(Some(Absence {
                    at: at.clone(),
                    known: known.stamp,
                    known_ms: known.at_ms,
                    now_ms,
                    by: by.to_owned(),
                }))
            }
        }
    }
}

/// Judges an absence, once all is known.
///
/// # Errors
/// Nothing made the key absent.
pub fn explained(absence: &Absence, writes: &Writes) -> Result<(), String> {
    let Absence {
        at, known, now_ms, ..
    } = absence;
    if writes.hidden_after(at, *known, *now_ms)
        || writes.may_have_gone(at, *known, absence.known_ms)
    {
        return Ok(());
    }
    Err(format!(
        "{} found nothing under {} of {}, and the session had seen {known:?}",
        absence.by,
        at.1.escape_ascii(),
        at.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn going_back_is_seen() {
        let at: At = ("open", Bytes::from_static(b"k"));
        let (mut session, writes) = (Session::default(), Writes::default());
        session.knows(at.clone(), Stamp(20), false, 0);
        let mut read = |found| session.read(&at, found, (1, 1), "store 1", &writes);
        assert!(read(Some(Stamp(20))).unwrap().is_none());
        assert!(read(Some(Stamp(10))).is_err());
        let absence = read(None).unwrap().unwrap();
        assert!(explained(&absence, &writes).is_err());
        assert!(read(Some(Stamp(20))).is_err(), "it was seen gone");
        assert!(read(Some(Stamp(30))).unwrap().is_none());
    }
}
