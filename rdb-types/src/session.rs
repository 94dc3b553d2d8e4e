//! Session tokens: what a client has seen, in a form that it hands back unread.
//!
//! ```text
//! byte 0       format (3)
//! bytes 1..9   region
//!       9..13  namespace
//!      13..21  epoch
//!      21..29  revision; 0: none
//!      29..    eventual times, oldest first; for each:
//!              epoch of the last seal before it u64 (0: none was), count u16,
//!              count times origin u16, sequence u64
//! ```
//! A read that brings a token waits until this replica has seen all of it, so a session reads its own
//! writes, and never goes back, on any replica. Numbers are big endian.
//!
//! The log of a region makes strong writes, and changes of mode; no replica forgets any of it. So one epoch
//! and one revision say all that was seen of it, and joined tokens say the higher ones. Eventual writes are
//! different: a seal may leave some out, and set them aside. Numbers of origins go on beyond those, so a later
//! vector covers them and is no proof that they are there: only the fence of the seal that ended their time is.
//! So a token names its writes by the eventual time that they were seen in, from one seal to the next, and
//! writes of different times are never joined into one vector.
//!
//! The rule for what is kept: a time stays in a session's token until a read has brought it to a store which
//! answered. That store has compared it, with what it holds or with the fence ([`SessionToken::judged`]). An
//! answer that merely comes later, a write's for example, or one in a mode that has no vectors, proves nothing
//! of it, and takes nothing away.
//!
//! To everybody else a token is opaque; FlareDB's own client joins those of several stores.

use crate::{Epoch, NamespaceId, Record, RegionId, StoreId, VersionVector};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;

const FORMAT: u8 = 3;
const FIXED_BYTES: usize = 29;
/// Bytes of a time without its origins, and of one origin with its sequence.
const TIME: usize = 10;
const PART: usize = 10;

/// Times that a token names apart. Those before are named as one, which began with the oldest: more is then
/// asked of its fence than was seen before it, so that a loss is told too often, never too seldom. As many
/// as the fences that a region keeps, so of most of these it could not tell anything else.
const TIMES_APART: usize = 8;

/// What a session has seen of a namespace in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionToken {
    region: RegionId,
    namespace: NamespaceId,
    epoch: Epoch,
    revision: u64,
    /// No vector is empty.
    times: BTreeMap<Epoch, VersionVector>,
}

impl SessionToken {
    /// Of a session that has seen nothing but the epoch.
    pub fn new(region: RegionId, namespace: NamespaceId, epoch: Epoch) -> SessionToken {
        SessionToken {
            region,
            namespace,
            epoch,
            revision: 0,
            times: BTreeMap::new(),
        }
    }

    /// It has seen the region at this revision, too.
    #[must_use]
    pub fn at_revision(mut self, revision: u64) -> SessionToken {
        self.revision = self.revision.max(revision);
        self
    }

    /// It has seen these writes, too, in the eventual time after this seal.
    #[must_use]
    pub fn with_writes(mut self, since: Epoch, vector: &VersionVector) -> SessionToken {
        self.add(since, vector);
        self
    }

    /// Of which region it is.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// Of which namespace.
    pub fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    /// The highest epoch of the namespace that was seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest revision of the region that was seen; 0: none.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The eventual times in which writes were seen, oldest first: the epoch of the last seal before each, and
    /// up to which number all writes of each origin.
    pub fn times(&self) -> impl Iterator<Item = (Epoch, &VersionVector)> {
        self.times.iter().map(|(since, vector)| (*since, vector))
    }

    /// The writes that were seen in the time after this seal.
    pub fn writes(&self, since: Epoch) -> Option<&VersionVector> {
        self.times.get(&since)
    }

    /// A record was returned: it may be newer than what was known of its region. `since`: the last seal, where
    /// the namespace is eventual.
    pub fn saw(&mut self, record: &Record, since: Option<Epoch>) {
        self.epoch = self.epoch.max(record.epoch);
        self.revision = self.revision.max(record.revision);
        // A sequence of 0: it came through a log, which every replica of this epoch has applied.
        if let (Some(since), Some(origin)) = (since, record.stamp.store())
            && record.origin_sequence > 0
        {
            self.add(
                since,
                &VersionVector::from_iter([(origin, record.origin_sequence)]),
            );
        }
    }

    /// Takes in what another token of the same region and namespace has seen; `false`: it is of another.
    pub fn join(&mut self, other: &SessionToken) -> bool {
        if (self.region, self.namespace) != (other.region, other.namespace) {
            return false;
        }
        self.epoch = self.epoch.max(other.epoch);
        self.revision = self.revision.max(other.revision);
        for (since, vector) in other.times() {
            self.add(since, vector);
        }
        true
    }

    /// A store answered a read that brought `asked`, or said what of it was lost, and gave this token: writes
    /// that `asked` named need not be compared again, but for those of the time that the store is in.
    pub fn judged(&mut self, asked: &SessionToken, answer: &SessionToken) {
        let of = |token: &SessionToken| (token.region, token.namespace);
        if of(self) != of(asked) || of(self) != of(answer) {
            return;
        }
        self.times.retain(|since, vector| {
            let judged = asked.times.get(since);
            answer.times.contains_key(since) || judged.is_none_or(|judged| !judged.covers(vector))
        });
    }

    /// The same without the writes of times before this seal.
    #[must_use]
    pub fn without_times_before(mut self, since: Epoch) -> SessionToken {
        self.times = self.times.split_off(&since);
        self
    }

    fn add(&mut self, since: Epoch, vector: &VersionVector) {
        if vector.is_empty() {
            return;
        }
        self.times.entry(since).or_default().join(vector);
        while self.times.len() > TIMES_APART + 1 {
            let (Some((oldest, mut vector)), Some((_, next))) =
                (self.times.pop_first(), self.times.pop_first())
            else {
                return;
            };
            vector.join(&next);
            self.times.insert(oldest, vector);
        }
    }

    /// As it goes out.
    pub fn encode(&self) -> Bytes {
        let parts: usize = self.times.values().map(|time| time.iter().count()).sum();
        let bytes = FIXED_BYTES + self.times.len() * TIME + parts * PART;
        let mut out = BytesMut::with_capacity(bytes);
        out.put_u8(FORMAT);
        out.put_u64(self.region.0);
        out.put_u32(self.namespace.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.revision);
        for (since, vector) in &self.times {
            out.put_u64(since.0);
            // Store ids have 10 bits.
            out.put_u16(vector.iter().count() as u16);
            for (origin, sequence) in vector.iter() {
                out.put_u16(origin.get());
                out.put_u64(sequence);
            }
        }
        out.freeze()
    }

    /// Reads a token that came back; `None`: it is none.
    pub fn decode(bytes: &[u8]) -> Option<SessionToken> {
        let mut rest = bytes;
        if rest.len() < FIXED_BYTES || rest.get_u8() != FORMAT {
            return None;
        }
        let mut token = SessionToken {
            region: RegionId(rest.get_u64()),
            namespace: NamespaceId(rest.get_u32()),
            epoch: Epoch(rest.get_u64()),
            revision: rest.get_u64(),
            times: BTreeMap::new(),
        };
        while rest.has_remaining() {
            if rest.len() < TIME {
                return None;
            }
            let since = Epoch(rest.get_u64());
            let count = usize::from(rest.get_u16());
            if rest.len() < count * PART {
                return None;
            }
            let mut vector = VersionVector::new();
            for _ in 0..count {
                let origin = StoreId::new(u64::from(rest.get_u16()))?;
                vector.raise(origin, rest.get_u64());
            }
            token.add(since, &vector);
        }
        Some(token)
    }
}

/// A session's token `known`, with what the token `new` of an answer tells, and without what that answer has
/// judged of the token `asked`, which its request brought (empty: it brought none). Where `new` has nothing in
/// common with what is known (another region, or the namespace was made anew) it counts alone.
pub fn joined(known: &[u8], asked: &[u8], new: &Bytes) -> Bytes {
    let tokens = (SessionToken::decode(known), SessionToken::decode(new));
    let (Some(mut known), Some(new_token)) = tokens else {
        return new.clone();
    };
    if let Some(asked) = SessionToken::decode(asked) {
        known.judged(&asked, &new_token);
    }
    if known.join(&new_token) {
        known.encode()
    } else {
        new.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stamp;
    use proptest::prelude::*;

    fn store(id: u64) -> StoreId {
        StoreId::new(id).unwrap()
    }

    fn vector(parts: &[(u64, u64)]) -> VersionVector {
        parts.iter().map(|(id, at)| (store(*id), *at)).collect()
    }

    fn token(epoch: u64) -> SessionToken {
        SessionToken::new(RegionId(2), NamespaceId(5), Epoch(epoch))
    }

    fn joined(one: &SessionToken, other: &SessionToken) -> SessionToken {
        let mut joined = one.clone();
        assert!(joined.join(other));
        joined
    }

    #[test]
    fn a_token_comes_back_and_anything_else_is_refused() {
        let tokens = [
            token(1),
            token(7).at_revision(77),
            token(9)
                .at_revision(1)
                .with_writes(Epoch(0), &vector(&[(1, 9), (1023, u64::MAX)]))
                .with_writes(Epoch(8), &vector(&[(2, 1)])),
        ];
        for token in &tokens {
            assert_eq!(SessionToken::decode(&token.encode()).unwrap(), *token);
        }
        let [plain, with_times] = [&tokens[0], &tokens[2]].map(SessionToken::encode);
        let no_store = [&plain[..], &[0; 8], &[0, 1], &[0; PART]].concat();
        let another_format = [&[2][..], &plain[1..]].concat();
        for broken in [
            &b""[..],
            b"\x03short",
            &plain[..FIXED_BYTES - 1],
            &[&plain[..], &[0]].concat(),
            &with_times[..with_times.len() - 1],
            &no_store,
            &another_format,
        ] {
            assert!(SessionToken::decode(broken).is_none(), "{broken:?}");
        }
    }

    #[test]
    fn a_record_tells_of_its_own_write_and_of_its_epoch() {
        let mut record = Record {
            stamp: Stamp::pack(1, 0, store(3)),
            epoch: Epoch(4),
            origin_sequence: 6,
            ..Record::default()
        };
        let mut seen = token(4);
        seen.saw(&record, Some(Epoch(2)));
        assert_eq!(seen, token(4).with_writes(Epoch(2), &vector(&[(3, 6)])));
        // Found right behind a seal, which this replica's readers have not been told of yet.
        record = Record {
            epoch: Epoch(5),
            origin_sequence: 0,
            revision: 9,
            ..record
        };
        let mut seen = token(4);
        seen.saw(&record, Some(Epoch(2)));
        assert_eq!(seen, token(5).at_revision(9));
    }

    #[test]
    fn what_was_seen_in_an_eventual_time_stays_until_a_read_has_brought_it_to_a_store() {
        let wrote = token(2).with_writes(Epoch(0), &vector(&[(3, 7)]));
        // Then the namespace was switched, and the session wrote once more.
        let mut session = joined(&wrote, &token(4).at_revision(10));
        assert_eq!(session.writes(Epoch(0)), Some(&vector(&[(3, 7)])));
        assert_eq!((session.epoch(), session.revision()), (Epoch(4), 10));
        // A read brings it all, and is answered, while another write is under way.
        let asked = session.clone();
        session.join(&token(6).with_writes(Epoch(4), &vector(&[(1, 1)])));
        let answer = token(4).at_revision(12);
        session.judged(&asked, &answer);
        session.join(&answer);
        assert_eq!(session.writes(Epoch(0)), None);
        assert_eq!(session.writes(Epoch(4)), Some(&vector(&[(1, 1)])));
        // What the read did not bring, it says nothing of.
        let mut more = joined(&wrote, &token(2).with_writes(Epoch(0), &vector(&[(3, 8)])));
        more.judged(&wrote, &token(4));
        assert_eq!(more.writes(Epoch(0)), Some(&vector(&[(3, 8)])));
    }

    #[test]
    fn tokens_of_another_region_or_namespace_are_left_alone() {
        let mut one = token(1);
        let others = [
            SessionToken::new(RegionId(3), NamespaceId(5), Epoch(9)),
            SessionToken::new(RegionId(2), NamespaceId(6), Epoch(9)),
        ];
        for other in others {
            assert!(!one.join(&other));
            one.judged(&other, &other);
        }
        assert_eq!(one, token(1));
    }

    fn tokens() -> impl Strategy<Value = SessionToken> {
        let parts = prop::collection::vec((1u64..4, 0u64..5), 0..4);
        let times = prop::collection::vec((0u64..12, parts), 0..12);
        (1u64..20, 0u64..9, times).prop_map(|(epoch, revision, times)| {
            times.into_iter().fold(
                token(epoch).at_revision(revision),
                |token, (since, parts)| token.with_writes(Epoch(since), &vector(&parts)),
            )
        })
    }

    /// What a token demands, as a region with all fences would judge it: every write is to be under the
    /// fence of its time.
    fn demands(token: &SessionToken, fences: &BTreeMap<Epoch, VersionVector>) -> bool {
        token.times().all(|(since, seen)| {
            let mut later =
                fences.range((std::ops::Bound::Excluded(since), std::ops::Bound::Unbounded));
            later.next().is_none_or(|(_, fence)| fence.covers(seen))
        })
    }

    /// Fences never go back.
    fn fences() -> impl Strategy<Value = BTreeMap<Epoch, VersionVector>> {
        let steps = prop::collection::vec((1u64..4, 0u64..3), 0..4);
        prop::collection::btree_map((1u64..14).prop_map(Epoch), steps, 0..10).prop_map(|steps| {
            let mut fence = VersionVector::new();
            let fences = steps.into_iter().map(|(epoch, steps)| {
                for (origin, more) in steps {
                    fence.raise(store(origin), fence.get(store(origin)) + more);
                }
                (epoch, fence.clone())
            });
            fences.collect()
        })
    }

    proptest! {
        #[test]
        fn any_token_comes_back(token in tokens()) {
            prop_assert_eq!(SessionToken::decode(&token.encode()), Some(token));
        }

        #[test]
        fn nonsense_is_read_as_none_or_as_a_token(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let bytes = [&[FORMAT][..], &bytes].concat();
            if let Some(token) = SessionToken::decode(&bytes) {
                prop_assert_eq!(SessionToken::decode(&token.encode()), Some(token));
            }
        }

        #[test]
        fn joining_is_a_join(a in tokens(), b in tokens(), c in tokens()) {
            let both = joined(&a, &b);
            prop_assert_eq!(&both, &joined(&b, &a));
            prop_assert_eq!(joined(&a, &a), a.clone());
            prop_assert_eq!(joined(&both, &c), joined(&a, &joined(&b, &c)));
            prop_assert!(both.epoch() >= a.epoch() && both.revision() >= b.revision());
        }

        #[test]
        fn what_either_demands_is_demanded_of_both_together(
            a in tokens(), b in tokens(), fences in fences()
        ) {
            let together = demands(&joined(&a, &b), &fences);
            let each = demands(&a, &fences) && demands(&b, &fences);
            // Beyond the bound of times it is stricter, never laxer.
            prop_assert!(!together || each);
            if joined(&a, &b).times().count() <= TIMES_APART {
                prop_assert_eq!(together, each);
            }
        }

        #[test]
        fn a_read_takes_away_just_what_it_brought(
            asked in tokens(), meanwhile in tokens(), answer in tokens()
        ) {
            let mut session = joined(&asked, &meanwhile);
            let before = session.clone();
            session.judged(&asked, &answer);
            for (since, seen) in before.times() {
                let judged = asked.writes(since).is_some_and(|asked| asked.covers(seen));
                let stays = !judged || answer.writes(since).is_some();
                prop_assert_eq!(session.writes(since), stays.then_some(seen));
            }
            prop_assert_eq!(session.epoch(), before.epoch());
            prop_assert_eq!(session.revision(), before.revision());
        }
    }
}
