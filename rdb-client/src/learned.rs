//! What answers have told of namespaces, and what a session has seen.
//!
//! Owns modes, epochs and session tokens as receipts and refusals bring them. Decides nothing: where a call
//! goes is `endpoints.rs`, whether it is repeated `retry.rs`.
//!
//! Invariants: of each region the epoch only grows, and the mode is that of the highest; an epoch that is sent was
//! seen in every region of the namespace that answered, so a region that is behind another is never called
//! stale for that; a session's tokens lose nothing but what a store has judged.

use crate::failure::Failure;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rdb_proto::convert;
use rdb_proto::kv::Receipt;
use rdb_types::session::joined;
use rdb_types::{Mode, Reason, SessionToken};
use std::collections::BTreeMap;

/// Namespaces that are remembered; more begin anew.
const MAX_NAMESPACES: usize = 4096;

/// Modes and epochs of namespaces.
#[derive(Default)]
pub(crate) struct Learned(RwLock<BTreeMap<String, Namespace>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Namespace {
    /// That of the answer which came last and was not overtaken.
    mode: Option<Mode>,
    regions: BTreeMap<u64, Region>,
}

/// What is known of a namespace in a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Region {
    epoch: u64,
    mode: Option<Mode>,
}

impl Learned {
    /// Takes note of how an answer was served.
    pub(crate) fn note(&self, namespace: &str, receipt: &Receipt) {
        let mode = convert::mode(receipt.mode);
        self.learn(namespace, receipt.region_id, receipt.epoch, mode);
    }

    /// Takes note of a refusal, where it tells of a change of mode.
    pub(crate) fn note_refusal(&self, namespace: &str, refusal: &Failure) {
        let number = |key| refusal.metadata.get(key)?.parse::<u64>().ok();
        let (Some(region), Some(epoch)) = (number("region"), number("epoch")) else {
            return;
        };
        match refusal.reason {
            Some(Reason::ModeChanged | Reason::ModeSwitching) => {
                let mode = match refusal.metadata.get("state").map(String::as_str) {
                    Some("sealing") => Some(Mode::Eventual),
                    Some(state) => state.parse().ok(),
                    None => None,
                };
                self.learn(namespace, region, epoch, mode);
            }
            // Of a region that was not heard of yet: what was sent was another one's epoch.
            Some(Reason::StaleReplica) if !self.knows(namespace, region) => {
                self.learn(namespace, region, epoch, None);
            }
            _ => {}
        }
    }

    fn learn(&self, namespace: &str, region: u64, epoch: u64, mode: Option<Mode>) {
        let known = |of: &Namespace| {
            let known = of.regions.get(&region);
            known.is_some_and(|known| {
                known.epoch > epoch || (*known == Region { epoch, mode } && of.mode == mode)
            })
        };
        if self.0.read().get(namespace).is_some_and(known) {
            return;
        }
        let mut namespaces = self.0.write();
        if namespaces.len() >= MAX_NAMESPACES && !namespaces.contains_key(namespace) {
            namespaces.clear();
        }
        let of = namespaces.entry(namespace.to_owned()).or_default();
        let known = of.regions.entry(region).or_default();
        // Answers overtake each other: the newer epoch's mode counts.
        if epoch < known.epoch {
            return;
        }
        known.mode = match epoch > known.epoch {
            true => mode,
            false => mode.or(known.mode),
        };
        known.epoch = epoch;
        of.mode = mode.or(of.mode);
    }

    fn knows(&self, namespace: &str, region: u64) -> bool {
        let namespaces = self.0.read();
        let of = namespaces.get(namespace);
        of.is_some_and(|of| of.regions.contains_key(&region))
    }

    /// Whether every replica of the namespace takes writes.
    pub(crate) fn is_eventual(&self, namespace: &str) -> bool {
        let namespaces = self.0.read();
        namespaces.get(namespace).and_then(|of| of.mode) == Some(Mode::Eventual)
    }

    /// Whether some replica of the namespace may take a write that no other one knows: while a namespace of
    /// several regions is switched, they differ.
    pub(crate) fn may_be_eventual(&self, namespace: &str) -> bool {
        let namespaces = self.0.read();
        let regions = namespaces.get(namespace).map(|of| of.regions.values());
        let mut regions = regions.into_iter().flatten();
        regions.any(|region| region.mode == Some(Mode::Eventual))
    }

    /// The epoch to tell a store, whichever region it will answer for; 0: none.
    pub(crate) fn seen_epoch(&self, namespace: &str) -> u64 {
        let namespaces = self.0.read();
        let regions = namespaces.get(namespace).map(|of| of.regions.values());
        let epochs = regions.into_iter().flatten().map(|region| region.epoch);
        epochs.min().unwrap_or(0)
    }

    /// The epoch that the namespace has in every region that was heard of; 0: they differ, or none was.
    pub(crate) fn common_epoch(&self, namespace: &str) -> u64 {
        let namespaces = self.0.read();
        let regions = namespaces.get(namespace).map(|of| of.regions.values());
        let mut epochs = regions.into_iter().flatten().map(|region| region.epoch);
        let first = epochs.next().unwrap_or(0);
        if epochs.all(|epoch| epoch == first) {
            first
        } else {
            0
        }
    }

    /// The namespaces that are known to be eventual.
    pub(crate) fn eventual(&self) -> Vec<String> {
        let namespaces = self.0.read();
        let eventual = namespaces
            .iter()
            .filter(|(_, of)| of.mode == Some(Mode::Eventual));
        eventual.map(|(name, _)| name.clone()).collect()
    }
}

/// What one session has seen.
#[derive(Default)]
pub(crate) struct Seen(Mutex<BTreeMap<String, Regions>>);

#[derive(Default)]
struct Regions {
    tokens: BTreeMap<u64, Bytes>,
    /// The region that answered last: most likely the next one, too.
    last: u64,
}

impl Seen {
    /// Takes note of an answer to a call that brought the token `asked`, if it brought one.
    pub(crate) fn note(&self, namespace: &str, receipt: &Receipt, asked: &[u8]) {
        if receipt.session.is_empty() {
            return;
        }
        let mut namespaces = self.0.lock();
        let of = namespaces.entry(namespace.to_owned()).or_default();
        of.last = receipt.region_id;
        let token = of.tokens.entry(receipt.region_id).or_default();
        *token = joined(token, asked, &receipt.session);
    }

    /// Of what `asked` names some was set aside: the session goes on with a fresh token.
    pub(crate) fn lost(&self, namespace: &str, asked: &[u8], fresh: &Bytes) {
        let Some(region) = SessionToken::decode(fresh).map(|token| token.region().0) else {
            return;
        };
        let mut namespaces = self.0.lock();
        let of = namespaces.entry(namespace.to_owned()).or_default();
        let token = of.tokens.entry(region).or_default();
        *token = joined(token, asked, fresh);
    }

    /// The token to read with: of the region, or of the one that answered last. Empty: none.
    pub(crate) fn token(&self, namespace: &str, region: Option<u64>) -> Bytes {
        let namespaces = self.0.lock();
        let of = namespaces.get(namespace);
        of.and_then(|of| of.tokens.get(&region.unwrap_or(of.last)).cloned())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_types::{Epoch, NamespaceId, RegionId, StoreId};
    use tonic::Code;

    fn receipt(mode: Mode, region_id: u64, epoch: u64) -> Receipt {
        Receipt {
            mode: convert::mode_to_wire(mode),
            region_id,
            epoch,
            ..Default::default()
        }
    }

    fn refusal(reason: &str, metadata: &[(&str, &str)]) -> Failure {
        let metadata = metadata.iter();
        Failure::from_wire(rdb_proto::kv::Failure {
            code: Code::Unavailable as i32,
            reason: reason.to_owned(),
            metadata: metadata
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..Default::default()
        })
    }

    #[test]
    fn the_newest_epoch_tells_the_mode_and_the_slowest_region_the_epoch() {
        let learned = Learned::default();
        assert_eq!(
            (learned.is_eventual("n"), learned.seen_epoch("n")),
            (false, 0)
        );
        learned.note("n", &receipt(Mode::Eventual, 2, 4));
        learned.note("n", &receipt(Mode::Strong, 2, 3));
        assert!(learned.is_eventual("n"), "an older answer came late");
        learned.note("n", &receipt(Mode::Eventual, 3, 2));
        assert_eq!((learned.seen_epoch("n"), learned.common_epoch("n")), (2, 0));
        learned.note("n", &receipt(Mode::Strong, 3, 5));
        assert_eq!(
            (learned.is_eventual("n"), learned.seen_epoch("n")),
            (false, 4)
        );
        assert!(learned.may_be_eventual("n"), "one region still is");
        learned.note("n", &receipt(Mode::Strong, 2, 5));
        assert!(!learned.may_be_eventual("n"));
        assert_eq!((learned.seen_epoch("n"), learned.common_epoch("n")), (5, 5));
    }

    #[test]
    fn a_mode_is_followed_in_both_directions_by_refusals_too() {
        let learned = Learned::default();
        learned.note("n", &receipt(Mode::Strong, 2, 1));
        let at = |epoch, state| [("region", "2"), ("epoch", epoch), ("state", state)];
        learned.note_refusal("n", &refusal("MODE_CHANGED", &at("2", "eventual")));
        assert!(learned.is_eventual("n") && learned.may_be_eventual("n"));
        learned.note_refusal("n", &refusal("MODE_SWITCHING", &at("3", "sealing")));
        assert!(learned.is_eventual("n"));
        assert_eq!(learned.seen_epoch("n"), 3);
        learned.note_refusal("n", &refusal("MODE_CHANGED", &at("4", "strong")));
        assert!(!learned.is_eventual("n"));
        // Late ones, and others, change nothing.
        learned.note_refusal("n", &refusal("MODE_CHANGED", &at("2", "eventual")));
        learned.note_refusal("n", &refusal("NO_QUORUM", &at("9", "eventual")));
        learned.note_refusal("n", &refusal("STALE_REPLICA", &at("1", "")));
        assert_eq!(
            (learned.is_eventual("n"), learned.seen_epoch("n")),
            (false, 4)
        );
    }

    #[test]
    fn a_region_that_was_not_heard_of_is_not_stale_for_anothers_epoch() {
        let learned = Learned::default();
        learned.note("n", &receipt(Mode::Strong, 2, 7));
        let stale = refusal("STALE_REPLICA", &[("region", "3"), ("epoch", "4")]);
        learned.note_refusal("n", &stale);
        assert_eq!(learned.seen_epoch("n"), 4);
        assert!(!learned.is_eventual("n"));
        // What is known of it stays: only who is asked is behind.
        learned.note("n", &receipt(Mode::Eventual, 3, 5));
        learned.note_refusal("n", &stale);
        let ahead = refusal("STALE_REPLICA", &[("region", "3"), ("epoch", "6")]);
        learned.note_refusal("n", &ahead);
        assert!(learned.may_be_eventual("n"));
        assert_eq!(learned.seen_epoch("n"), 5);
    }

    fn token(epoch: u64) -> SessionToken {
        SessionToken::new(RegionId(2), NamespaceId(5), Epoch(epoch))
    }

    fn after(seal: u64, parts: &[(u64, u64)]) -> SessionToken {
        let store = |id| StoreId::new(id).unwrap();
        let vector = parts.iter().map(|(id, at)| (store(*id), *at)).collect();
        token(seal + 1).with_writes(Epoch(seal), &vector)
    }

    fn answer(token: &SessionToken) -> Receipt {
        Receipt {
            session: token.encode(),
            ..receipt(Mode::Eventual, 2, 1)
        }
    }

    #[test]
    fn a_session_has_seen_what_each_of_its_answers_has() {
        let seen = Seen::default();
        assert!(seen.token("n", None).is_empty());
        // Two stores, neither of which had the other's write.
        seen.note("n", &answer(&after(0, &[(1, 9)])), b"");
        seen.note("n", &answer(&after(0, &[(1, 3), (2, 4)])), b"");
        let together = after(0, &[(1, 9), (2, 4)]).encode();
        assert_eq!(seen.token("n", None), together);
        assert_eq!(seen.token("n", Some(2)), together);
        assert!(seen.token("n", Some(3)).is_empty());
        assert!(seen.token("other", None).is_empty());
    }

    #[test]
    fn what_a_session_wrote_before_a_switch_is_asked_for_until_a_store_has_judged_it() {
        let seen = Seen::default();
        seen.note("n", &answer(&after(0, &[(3, 7)])), b"");
        // A strong write later: no store has looked for the first one yet.
        seen.note("n", &answer(&token(3).at_revision(1)), b"");
        let asked = seen.token("n", None);
        assert!(
            SessionToken::decode(&asked)
                .unwrap()
                .writes(Epoch(0))
                .is_some()
        );
        seen.note("n", &answer(&token(3).at_revision(2)), &asked);
        assert_eq!(seen.token("n", None), token(3).at_revision(2).encode());
    }

    #[test]
    fn a_session_goes_on_after_a_loss_with_all_else_that_it_has_seen() {
        let seen = Seen::default();
        seen.note("n", &answer(&after(0, &[(3, 7)])), b"");
        seen.note("n", &answer(&token(3).at_revision(4)), b"");
        let asked = seen.token("n", None);
        // Meanwhile another call of the session is answered.
        seen.note("n", &answer(&token(3).at_revision(6)), b"");
        seen.lost("n", &asked, &token(3).at_revision(4).encode());
        assert_eq!(seen.token("n", None), token(3).at_revision(6).encode());
    }
}
