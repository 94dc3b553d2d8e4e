//! Tokens of watches: up to where a client was told of changes, in each region that its watch spans.
//!
//! ```text
//! byte 0       format (87)
//! bytes 1..3   count of places u16; for each:
//!              length u16, a session token of that length, index u64, nth u32, expired_through_ms u64
//! ```
//! A place is what a session that was told of these changes has seen ([`crate::session`]), and what that does not
//! say: where in the region's log the next change is looked for, and up to which expiry the client was told.
//! Numbers are big endian. To clients a token is opaque.

use crate::{RegionId, SessionToken};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const FORMAT: u8 = 87;
const PLACE: usize = 22;

/// Up to where a client was told, in one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchPlace {
    /// What it has seen.
    pub seen: SessionToken,
    /// While the namespace is strong: the first entry of the log of which it was not told all.
    pub index: u64,
    /// How many changes of that entry it was told.
    pub nth: u32,
    /// While it is eventual: it was told of what the store counts as expired up to this time (Unix).
    pub expired_through_ms: u64,
}

/// Up to where a client was told, in each region of a watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchToken(pub Vec<WatchPlace>);

impl WatchToken {
    /// The place in a region.
    pub fn place(&self, region: RegionId) -> Option<&WatchPlace> {
        self.0.iter().find(|place| place.seen.region() == region)
    }

    /// As it goes out.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        // A watch of more regions than that would be no stream any more, nor a session so large.
        out.put_u16(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        for place in self.0.iter().take(usize::from(u16::MAX)) {
            let seen = place.seen.encode();
            out.put_u16(u16::try_from(seen.len()).unwrap_or(u16::MAX));
            out.put_slice(&seen);
            out.put_u64(place.index);
            out.put_u32(place.nth);
            out.put_u64(place.expired_through_ms);
        }
        out.freeze()
    }

    /// Reads a token that came back; `None`: it is none.
    pub fn decode(bytes: &[u8]) -> Option<WatchToken> {
        let mut rest = bytes;
        if rest.len() < 3 || rest.get_u8() != FORMAT {
            return None;
        }
        let count = rest.get_u16();
        let mut places = Vec::new();
        for _ in 0..count {
            if rest.len() < 2 {
                return None;
            }
            let length = usize::from(rest.get_u16());
            let seen = SessionToken::decode(rest.get(..length)?)?;
            rest.advance(length);
            if rest.len() < PLACE - 2 {
                return None;
            }
            places.push(WatchPlace {
                seen,
                index: rest.get_u64(),
                nth: rest.get_u32(),
                expired_through_ms: rest.get_u64(),
            });
        }
        rest.is_empty().then_some(WatchToken(places))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, NamespaceId, StoreId};
    use proptest::prelude::*;

    fn place(region: u64, revision: u64) -> WatchPlace {
        let store = StoreId::new(3).unwrap();
        let seen = SessionToken::new(RegionId(region), NamespaceId(5), Epoch(2));
        WatchPlace {
            seen: seen
                .at_revision(revision)
                .with_writes(Epoch(0), &[(store, 9)].into_iter().collect()),
            index: 77,
            nth: 3,
            expired_through_ms: 1_000,
        }
    }

    #[test]
    fn a_token_comes_back_and_anything_else_is_refused() {
        for token in [
            WatchToken::default(),
            WatchToken(vec![place(2, 4)]),
            WatchToken(vec![place(2, 4), place(3, 0)]),
        ] {
            let bytes = token.encode();
            assert_eq!(WatchToken::decode(&bytes), Some(token.clone()));
            assert_eq!(SessionToken::decode(&bytes), None);
            for cut in 0..bytes.len() {
                assert_eq!(
                    WatchToken::decode(&bytes[..cut]),
                    None,
                    "{cut} of {token:?}"
                );
            }
            assert_eq!(WatchToken::decode(&[&bytes[..], &[0]].concat()), None);
        }
        let session = place(2, 1).seen.encode();
        assert_eq!(WatchToken::decode(&session), None);
    }

    proptest! {
        #[test]
        fn nonsense_is_read_as_none_or_as_a_token(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let bytes = [&[FORMAT][..], &bytes].concat();
            if let Some(token) = WatchToken::decode(&bytes) {
                prop_assert_eq!(WatchToken::decode(&token.encode()), Some(token));
            }
        }
    }
}
