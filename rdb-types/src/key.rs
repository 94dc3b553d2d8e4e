//! The global key space: namespace id (4 bytes, big endian) followed by the user's key.
//!
//! Invariant: global keys order as (namespace, user key) do, so a namespace is one contiguous
//! range and a region is a range that may begin and end anywhere.

use crate::NamespaceId;
use bytes::{BufMut, Bytes, BytesMut};

/// Bytes that a namespace id takes in front of the user's key.
pub const PREFIX_BYTES: usize = 4;

/// A key as storage sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GlobalKey(Bytes);

impl GlobalKey {
    /// The key of `user_key` in `namespace`.
    pub fn new(namespace: NamespaceId, user_key: &[u8]) -> GlobalKey {
        let mut key = BytesMut::with_capacity(PREFIX_BYTES + user_key.len());
        key.put_u32(namespace.0);
        key.put_slice(user_key);
        GlobalKey(key.freeze())
    }

    /// Reads a stored key; `None` when it is too short to hold a namespace id.
    pub fn from_bytes(bytes: Bytes) -> Option<GlobalKey> {
        (bytes.len() >= PREFIX_BYTES).then_some(GlobalKey(bytes))
    }

    /// The namespace that the key lies in.
    pub fn namespace(&self) -> NamespaceId {
        let mut prefix = [0; PREFIX_BYTES];
        prefix.copy_from_slice(&self.0[..PREFIX_BYTES]);
        NamespaceId(u32::from_be_bytes(prefix))
    }

    /// What the user called it.
    pub fn user_key(&self) -> Bytes {
        self.0.slice(PREFIX_BYTES..)
    }

    /// The stored form.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The first global key of a namespace.
    pub fn namespace_start(namespace: NamespaceId) -> Bytes {
        GlobalKey::new(namespace, &[]).0
    }

    /// The first global key after a namespace; `None` for the last namespace there can be.
    pub fn namespace_end(namespace: NamespaceId) -> Option<Bytes> {
        namespace
            .0
            .checked_add(1)
            .map(|next| GlobalKey::namespace_start(NamespaceId(next)))
    }
}

/// The first key after every key that starts with `prefix`; `None` when there is none (the prefix
/// is empty or all 0xff).
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_that_does_not_have_it() {
        let end = |prefix: &[u8]| prefix_end(prefix).map(|end| end.to_vec());
        assert_eq!(end(b"a"), Some(b"b".to_vec()));
        assert_eq!(end(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(end(b"a\xff\xffb"), Some(b"a\xff\xffc".to_vec()));
        assert_eq!(end(b"\xff\xff"), None);
        assert_eq!(end(b""), None);
    }

    proptest! {
        #[test]
        fn global_keys_order_by_namespace_then_key(
            a in any::<u32>(), b in any::<u32>(),
            x in prop::collection::vec(any::<u8>(), 0..8), y in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            let (left, right) = (GlobalKey::new(NamespaceId(a), &x), GlobalKey::new(NamespaceId(b), &y));
            prop_assert_eq!(left.cmp(&right), (a, &x).cmp(&(b, &y)));
            prop_assert_eq!(left.namespace(), NamespaceId(a));
            prop_assert_eq!(left.user_key(), Bytes::from(x));
        }

        #[test]
        fn prefix_end_is_the_least_key_beyond_the_prefix(
            prefix in prop::collection::vec(any::<u8>(), 0..4), key in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let below = prefix_end(&prefix).is_none_or(|end| key.as_slice() < &end[..]);
            prop_assert_eq!(key.starts_with(&prefix), key.as_slice() >= prefix.as_slice() && below);
        }
    }
}
