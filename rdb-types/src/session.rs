//! Session tokens: what a client has seen, in a form that it hands back unread.
//!
//! ```text
//! byte 0       format
//! bytes 1..9   region
//! format 1, a strong namespace:
//!       9..17  revision
//! format 2, an eventual one:
//!       9..13  namespace
//!      13..    origin u16, sequence u64; as many as there are
//! ```
//! A read that brings a token waits until this replica has seen all of it, so a session reads its own
//! writes, and never goes back, on any replica. Numbers are big endian.
//!
//! To everybody else a token is opaque; FlareDB's own client joins those of several stores.

use crate::{NamespaceId, Record, RegionId, StoreId, VersionVector};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const REVISION: u8 = 1;
const VECTOR: u8 = 2;
/// Bytes of one origin with its sequence.
const PART: usize = 10;

/// What a session has seen of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionToken {
    /// Of strong namespaces.
    Revision {
        /// Which region.
        region: RegionId,
        /// Its revision.
        revision: u64,
    },
    /// Of an eventual namespace.
    Vector {
        /// Which region.
        region: RegionId,
        /// Which namespace.
        namespace: NamespaceId,
        /// Up to which number all writes of each origin.
        vector: VersionVector,
    },
}

impl SessionToken {
    /// Of which region it is.
    pub fn region(&self) -> RegionId {
        match self {
            SessionToken::Revision { region, .. } | SessionToken::Vector { region, .. } => *region,
        }
    }

    /// A record was returned: it may be newer than what was known of its region.
    pub fn saw(&mut self, record: &Record) {
        match self {
            SessionToken::Revision { revision, .. } => {
                *revision = (*revision).max(record.revision);
            }
            SessionToken::Vector { vector, .. } => {
                // 0: it came through a log, which every replica of this epoch has applied.
                if let Some(origin) = record.stamp.store()
                    && record.origin_sequence > 0
                {
                    vector.raise(origin, record.origin_sequence);
                }
            }
        }
    }

    /// Takes in what another token of the same region and mode has seen; `false`: it is of another.
    pub fn join(&mut self, other: &SessionToken) -> bool {
        match (self, other) {
            (
                SessionToken::Revision { region, revision },
                SessionToken::Revision {
                    region: of,
                    revision: other,
                },
            ) if region == of => *revision = (*revision).max(*other),
            (
                SessionToken::Vector {
                    region,
                    namespace,
                    vector,
                },
                SessionToken::Vector {
                    region: of,
                    namespace: of_namespace,
                    vector: other,
                },
            ) if region == of && namespace == of_namespace => vector.join(other),
            _ => return false,
        }
        true
    }

    /// As it goes out.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(17);
        match self {
            SessionToken::Revision { region, revision } => {
                out.put_u8(REVISION);
                out.put_u64(region.0);
                out.put_u64(*revision);
            }
            SessionToken::Vector {
                region,
                namespace,
                vector,
            } => {
                out.put_u8(VECTOR);
                out.put_u64(region.0);
                out.put_u32(namespace.0);
                for (origin, sequence) in vector.iter() {
                    out.put_u16(origin.get());
                    out.put_u64(sequence);
                }
            }
        }
        out.freeze()
    }

    /// Reads a token that came back; `None`: it is none.
    pub fn decode(bytes: &[u8]) -> Option<SessionToken> {
        let mut rest = bytes;
        if rest.len() < 9 {
            return None;
        }
        let format = rest.get_u8();
        let region = RegionId(rest.get_u64());
        match format {
            REVISION if rest.len() == 8 => Some(SessionToken::Revision {
                region,
                revision: rest.get_u64(),
            }),
            VECTOR if rest.len() >= 4 && (rest.len() - 4).is_multiple_of(PART) => {
                let namespace = NamespaceId(rest.get_u32());
                let mut vector = VersionVector::new();
                while rest.has_remaining() {
                    let origin = StoreId::new(u64::from(rest.get_u16()))?;
                    vector.raise(origin, rest.get_u64());
                }
                Some(SessionToken::Vector {
                    region,
                    namespace,
                    vector,
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_and_anything_else_is_refused() {
        let store = |id| StoreId::new(id).unwrap();
        let tokens = [
            SessionToken::Revision {
                region: RegionId(2),
                revision: 77,
            },
            SessionToken::Vector {
                region: RegionId(2),
                namespace: NamespaceId(5),
                vector: [(store(1), 9), (store(1023), u64::MAX)]
                    .into_iter()
                    .collect(),
            },
            SessionToken::Vector {
                region: RegionId(2),
                namespace: NamespaceId(5),
                vector: VersionVector::new(),
            },
        ];
        for token in tokens {
            assert_eq!(SessionToken::decode(&token.encode()).unwrap(), token);
        }
        let no_store = [&[VECTOR][..], &[0; 12], &[0; PART]].concat();
        let cut = [&[VECTOR][..], &[0; 12], &[1; PART - 1]].concat();
        for broken in [
            &b""[..],
            b"\x03",
            b"\x01short",
            &[1; 18],
            &[2; 12],
            &no_store,
            &cut,
        ] {
            assert!(SessionToken::decode(broken).is_none(), "{broken:?}");
        }
    }
}
