//! Session tokens of requests: what a read that brings one has to wait for here.
//!
//! Owns that decision, as a pure function of the token and of what this replica knows; waiting is the router's.
//! What a token is, and how tokens are joined, [`rdb_types::session`] says.
//!
//! ```text
//! the token names                      the replica                                 the read
//! a higher epoch                       has not applied so far                      waits for its log
//! writes of an eventual time           is in that time                             waits for the writes
//!                                      has the fence of its end: it covers them    goes on: every replica has them
//!                                      it does not cover them                      SESSION_LOST: they were set aside
//!                                      does not remember its end                   SESSION_LOST: nobody can tell
//! a revision                           has not applied so far                      waits for its log
//! ```
//! Invariants:
//! - all replicas that have applied the token's epoch tell the same of a time that has ended;
//! - the fresh token of a `SESSION_LOST` asks for all else that the old one asked for, and is never answered
//!   with another `SESSION_LOST` for the same writes.

use crate::error::Error;
use crate::region::state::{FENCES_KEPT, Fence, NamespaceState};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rdb_types::{Epoch, Mode, NamespaceId, Reason, RegionId, StoreId, VersionVector, WatchToken};

pub use rdb_types::SessionToken;

/// In the metadata of a `SESSION_LOST`: the token to go on with, base64.
const FRESH: &str = "session";

/// A token that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// Of an answer.
    Session(SessionToken),
    /// Of a watch.
    Watch(WatchToken),
}

/// Reads a token that came back; `None`: none did.
///
/// # Errors
/// It is none.
pub fn decode(bytes: &[u8]) -> Result<Option<Token>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let watch = || WatchToken::decode(bytes).map(Token::Watch);
    let token = SessionToken::decode(bytes)
        .map(Token::Session)
        .or_else(watch);
    token.map(Some).ok_or_else(|| {
        Error::invalid(
            "session",
            "this is not a session token; hand back what an answer's receipt or a watch's message holds, or nothing",
        )
    })
}

/// As [`decode`], what a read in a region goes by. A watch's token may say nothing of it.
///
/// # Errors
/// It is none.
pub fn decode_for(region: RegionId, bytes: &[u8]) -> Result<Option<SessionToken>, Error> {
    Ok(match decode(bytes)? {
        Some(Token::Session(token)) => Some(token),
        Some(Token::Watch(token)) => token.place(region).map(|place| place.seen.clone()),
        None => None,
    })
}

/// What a replica knows of a namespace in a region.
#[derive(Clone, Copy, Debug)]
pub struct Here<'h> {
    /// Which region.
    pub region: RegionId,
    /// Which namespace.
    pub namespace: NamespaceId,
    /// What the log says of it; `None`: nothing yet.
    pub state: Option<&'h NamespaceState>,
    /// Of the region.
    pub revision: u64,
    /// The eventual writes that can be read here.
    pub vector: &'h VersionVector,
}

/// Whether a read may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that the session has seen is here.
    Ready,
    /// It is not, and will be.
    Wait(Missing),
    /// The session has seen writes that were set aside, or so long ago that nobody can tell.
    Lost {
        /// What to go on with.
        fresh: SessionToken,
        /// How many writes; `None`: nobody can tell.
        writes: Option<u64>,
    },
}

/// What a session has seen, and this replica not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A change of mode.
    Epoch(Epoch),
    /// Writes that came through the log.
    Revision(u64),
    /// Writes that other replicas took.
    Writes(VersionVector),
}

/// Judges a token. One of another region says nothing here, and one of another namespace only how far the
/// region was.
pub fn judge(token: &SessionToken, here: Here<'_>) -> Verdict {
    if token.region() != here.region {
        return Verdict::Ready;
    }
    if token.namespace() == here.namespace {
        let state = here.state;
        if token.epoch() > state.map_or(Epoch::FIRST, |state| state.epoch) {
            return Verdict::Wait(Missing::Epoch(token.epoch()));
        }
        let fences = state.map_or(&[][..], |state| &state.fences);
        let last_seal = state.map_or(Epoch(0), NamespaceState::last_seal);
        let (mut lost, mut writes) = (false, Some(0));
        for (since, seen) in token.times() {
            let ended = since < last_seal || state.is_some_and(|state| state.mode == Mode::Strong);
            if !ended {
                continue;
            }
            let beyond = end_of(since, fences).map(|fence| fence.vector.missing(seen));
            lost |= beyond != Some(0);
            writes = writes.zip(beyond).map(|(sum, beyond)| sum + beyond);
        }
        if lost {
            let fresh = match state.map(|state| state.mode) {
                Some(Mode::Strong) => {
                    SessionToken::new(token.region(), token.namespace(), token.epoch())
                        .at_revision(token.revision())
                }
                _ => token.clone().without_times_before(last_seal),
            };
            return Verdict::Lost { fresh, writes };
        }
        if let Some(seen) = token.writes(last_seal)
            && !here.vector.covers(seen)
            // In a strong one it was compared with the fence.
            && state.is_none_or(|state| state.mode == Mode::Eventual)
        {
            return Verdict::Wait(Missing::Writes(seen.clone()));
        }
    }
    if token.revision() > here.revision {
        return Verdict::Wait(Missing::Revision(token.revision()));
    }
    Verdict::Ready
}

/// The fence that ended the eventual time after a seal; `None`: it is not remembered.
fn end_of(since: Epoch, fences: &[Fence]) -> Option<&Fence> {
    let before = fences.iter().position(|fence| fence.epoch == since);
    match before {
        Some(at) => fences.get(at + 1),
        // The first time of all, while no fence was forgotten.
        None if since == Epoch(0) && fences.len() < FENCES_KEPT => fences.first(),
        None => None,
    }
}

/// The refusal of a read whose time is up before this replica has seen it.
pub fn not_seen(store: StoreId, here: Here<'_>, missing: &Missing) -> Error {
    let refuse = |has: String, seen: String| {
        Error::new(
            Reason::StaleReplica,
            format!(
                "store {store} has seen {has}, and this session {seen}; ask another one or try again"
            ),
        )
        .with("region", here.region)
    };
    match missing {
        Missing::Epoch(epoch) => {
            let own = here.state.map_or(Epoch::FIRST, |state| state.epoch);
            refuse(format!("epoch {own}"), format!("epoch {epoch}")).with("epoch", own)
        }
        Missing::Revision(revision) => refuse(
            format!("revision {}", here.revision),
            format!("revision {revision}"),
        )
        .with("revision", revision),
        Missing::Writes(seen) => refuse(here.vector.to_string(), seen.to_string())
            .with("missing", here.vector.missing(seen)),
    }
}

/// The refusal of a read whose session has seen what was set aside since.
pub fn lost(region: RegionId, name: &str, fresh: &SessionToken, writes: Option<u64>) -> Error {
    let error = match writes {
        Some(writes) => Error::new(
            Reason::SessionLost,
            format!(
                "{writes} of the writes that this session has seen were set aside when namespace {name:?} became strong without the store that held them: `flaredb conflicts` lists them. Go on with the session token of this answer"
            ),
        )
        .with("lost", writes),
        None => Error::new(
            Reason::SessionLost,
            format!(
                "this session has slept through so many changes of mode of namespace {name:?} that nobody can tell any more whether all that it has seen is there. Go on with the session token of this answer"
            ),
        ),
    };
    error
        .with("namespace", name)
        .with("region", region)
        .with(FRESH, BASE64_STANDARD.encode(fresh.encode()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId(2);
    const NAMESPACE: NamespaceId = NamespaceId(5);

    fn vector(parts: &[(u64, u64)]) -> VersionVector {
        let store = |id| StoreId::new(id).unwrap();
        parts.iter().map(|(id, at)| (store(*id), *at)).collect()
    }

    fn state(mode: Mode, epoch: u64, fences: &[(u64, &[(u64, u64)])]) -> NamespaceState {
        let fences = fences.iter().map(|(epoch, parts)| Fence {
            epoch: Epoch(*epoch),
            vector: vector(parts),
        });
        NamespaceState {
            epoch: Epoch(epoch),
            fences: fences.collect(),
            ..NamespaceState::new(mode)
        }
    }

    fn token(epoch: u64) -> SessionToken {
        SessionToken::new(REGION, NAMESPACE, Epoch(epoch))
    }

    fn judged(
        token: &SessionToken,
        state: &NamespaceState,
        revision: u64,
        own: &[(u64, u64)],
    ) -> Verdict {
        let here = Here {
            region: REGION,
            namespace: NAMESPACE,
            state: Some(state),
            revision,
            vector: &vector(own),
        };
        judge(token, here)
    }

    #[test]
    fn a_replica_that_is_behind_waits_for_its_log_first() {
        let seen = token(4)
            .at_revision(9)
            .with_writes(Epoch(3), &vector(&[(1, 5)]));
        let behind = state(Mode::Eventual, 2, &[]);
        assert_eq!(
            judged(&seen, &behind, 9, &[(1, 9)]),
            Verdict::Wait(Missing::Epoch(Epoch(4)))
        );
        let there = state(Mode::Eventual, 4, &[(3, &[(1, 2)])]);
        assert_eq!(
            judged(&seen, &there, 9, &[(1, 4)]),
            Verdict::Wait(Missing::Writes(vector(&[(1, 5)])))
        );
        assert_eq!(
            judged(&seen, &there, 8, &[(1, 5)]),
            Verdict::Wait(Missing::Revision(9))
        );
        assert_eq!(judged(&seen, &there, 9, &[(1, 5)]), Verdict::Ready);
    }

    #[test]
    fn an_epoch_that_is_higher_here_is_no_obstacle_and_an_abort_ends_no_time() {
        // Seen before a seal that was begun and given up.
        let seen = token(1).with_writes(Epoch(0), &vector(&[(1, 5)]));
        for epoch in [1, 2, 3] {
            let mut state = state(Mode::Eventual, epoch, &[]);
            state.sealing = (epoch == 2).then(|| crate::region::state::Sealing {
                participants: Default::default(),
            });
            assert_eq!(judged(&seen, &state, 0, &[(1, 5)]), Verdict::Ready);
            assert!(matches!(
                judged(&seen, &state, 0, &[(1, 4)]),
                Verdict::Wait(Missing::Writes(_))
            ));
        }
    }

    #[test]
    fn a_time_that_has_ended_is_compared_with_its_own_fence() {
        let seen = token(1).with_writes(Epoch(0), &vector(&[(1, 5), (3, 2)]));
        let covers: &[(u64, u64)] = &[(1, 6), (3, 2)];
        let leaves_out: &[(u64, u64)] = &[(1, 6), (3, 1)];
        // The numbers of later times go on beyond what was set aside, and prove nothing.
        let later: &[(u64, u64)] = &[(1, 9), (3, 9)];
        for (mode, epoch) in [(Mode::Strong, 3), (Mode::Eventual, 4)] {
            let kept = state(mode, epoch, &[(3, covers)]);
            assert_eq!(judged(&seen, &kept, 0, covers), Verdict::Ready);
            let left_out = state(mode, epoch, &[(3, leaves_out)]);
            assert_eq!(
                judged(&seen, &left_out, 0, later),
                Verdict::Lost {
                    fresh: token(1),
                    writes: Some(1)
                }
            );
        }
        let twice = state(Mode::Strong, 6, &[(3, leaves_out), (6, later)]);
        assert!(matches!(
            judged(&seen, &twice, 0, later),
            Verdict::Lost { .. }
        ));
        let meanwhile = token(4).with_writes(Epoch(3), &vector(&[(3, 9)]));
        assert_eq!(judged(&meanwhile, &twice, 0, later), Verdict::Ready);
    }

    #[test]
    fn what_a_session_saw_in_other_times_survives_a_loss() {
        let seen = token(4)
            .at_revision(7)
            .with_writes(Epoch(0), &vector(&[(3, 2)]))
            .with_writes(Epoch(3), &vector(&[(1, 8)]));
        let left_out = state(Mode::Eventual, 4, &[(3, &[(1, 6)])]);
        let Verdict::Lost { fresh, .. } = judged(&seen, &left_out, 7, &[(1, 7)]) else {
            panic!("not lost");
        };
        let rest = token(4)
            .at_revision(7)
            .with_writes(Epoch(3), &vector(&[(1, 8)]));
        assert_eq!(fresh, rest);
        assert!(matches!(
            judged(&fresh, &left_out, 7, &[(1, 7)]),
            Verdict::Wait(Missing::Writes(_))
        ));
        // What it saw last is judged once that time has ended, too.
        let sealed = state(Mode::Strong, 6, &[(3, &[(1, 6)]), (6, &[(1, 8)])]);
        assert_eq!(judged(&fresh, &sealed, 7, &[]), Verdict::Ready);
    }

    #[test]
    fn an_end_that_is_not_remembered_is_told_as_a_loss_once() {
        let ends: Vec<(u64, &[(u64, u64)])> = (1..=FENCES_KEPT as u64)
            .map(|seal| (3 * seal, &[(1, 9)][..]))
            .collect();
        let full = state(Mode::Strong, 3 * FENCES_KEPT as u64, &ends);
        // Of the first time that is remembered nobody can tell any more which fence ended it.
        for since in [0, 1] {
            let seen = token(1).with_writes(Epoch(since), &vector(&[(1, 1)]));
            let Verdict::Lost { fresh, writes } = judged(&seen, &full, 0, &[]) else {
                panic!("not lost");
            };
            assert_eq!(writes, None);
            assert_eq!(judged(&fresh, &full, 0, &[]), Verdict::Ready);
        }
        let seen = token(4).with_writes(Epoch(3), &vector(&[(1, 9)]));
        assert_eq!(judged(&seen, &full, 0, &[]), Verdict::Ready);
    }

    #[test]
    fn no_token_is_answered_with_the_same_loss_for_ever() {
        // None of these was ever given out.
        let made_up = [
            token(3).with_writes(Epoch(3), &vector(&[(1, 99)])),
            token(3).with_writes(Epoch(u64::MAX), &vector(&[(1, 99)])),
        ];
        let here = state(Mode::Strong, 3, &[(3, &[(1, 9)])]);
        for made_up in made_up {
            if let Verdict::Lost { fresh, .. } = judged(&made_up, &here, 0, &[(1, 9)]) {
                let again = judged(&fresh, &here, 0, &[(1, 9)]);
                assert!(!matches!(again, Verdict::Lost { .. }), "{again:?}");
            }
        }
    }

    #[test]
    fn another_regions_token_says_nothing_and_another_namespaces_how_far_the_region_was() {
        let here = state(Mode::Eventual, 1, &[]);
        let elsewhere = SessionToken::new(RegionId(3), NAMESPACE, Epoch(9)).at_revision(9);
        assert_eq!(judged(&elsewhere, &here, 0, &[]), Verdict::Ready);
        let other = SessionToken::new(REGION, NamespaceId(6), Epoch(9))
            .at_revision(9)
            .with_writes(Epoch(0), &vector(&[(1, 1)]));
        assert_eq!(
            judged(&other, &here, 8, &[]),
            Verdict::Wait(Missing::Revision(9))
        );
        assert_eq!(judged(&other, &here, 9, &[]), Verdict::Ready);
    }

    #[test]
    fn a_namespace_that_is_not_installed_yet_is_in_its_first_epoch() {
        let here = Here {
            region: REGION,
            namespace: NAMESPACE,
            state: None,
            revision: 0,
            vector: &VersionVector::new(),
        };
        assert_eq!(judge(&token(1), here), Verdict::Ready);
        assert_eq!(
            judge(&token(2), here),
            Verdict::Wait(Missing::Epoch(Epoch(2)))
        );
    }

    #[test]
    fn the_fresh_token_comes_with_the_refusal() {
        let error = lost(REGION, "cart", &token(3), Some(2));
        let fresh = BASE64_STANDARD.decode(&error.metadata[FRESH]).unwrap();
        assert_eq!(decode(&fresh).unwrap(), Some(Token::Session(token(3))));
        assert_eq!(error.metadata["lost"], "2");
        assert_eq!(
            error.retry_after(true),
            None,
            "the same token is refused again"
        );
    }
}
