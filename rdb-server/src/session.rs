//! Session tokens: what a client has seen, in a form that it hands back unread.
//!
//! ```text
//! byte 0       format (1)
//! bytes 1..9   region
//!       9..17  revision
//! ```
//! A `stale` read that brings a token waits until this replica has applied that revision, so a session
//! reads its own writes on any replica.

use crate::error::Error;
use bytes::{BufMut, Bytes, BytesMut};
use rdb_types::RegionId;

const FORMAT: u8 = 1;

/// What a session has seen of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionToken {
    /// Which region.
    pub region: RegionId,
    /// Its revision.
    pub revision: u64,
}

impl SessionToken {
    /// As it goes out.
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(17);
        out.put_u8(FORMAT);
        out.put_u64(self.region.0);
        out.put_u64(self.revision);
        out.freeze()
    }

    /// Reads a token that came back.
    pub fn decode(bytes: &[u8]) -> Result<SessionToken, Error> {
        let broken = || {
            Error::invalid(
                "session",
                "this is not a session token; hand back what an answer's receipt holds, or nothing",
            )
        };
        let [FORMAT, rest @ ..] = bytes else {
            return Err(broken());
        };
        let number = |part: Option<&[u8]>| {
            part.and_then(|part| part.try_into().ok())
                .map(u64::from_be_bytes)
                .ok_or_else(broken)
        };
        if rest.len() != 16 {
            return Err(broken());
        }
        Ok(SessionToken {
            region: RegionId(number(rest.get(..8))?),
            revision: number(rest.get(8..))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_and_anything_else_is_refused() {
        let token = SessionToken {
            region: RegionId(2),
            revision: 77,
        };
        assert_eq!(SessionToken::decode(&token.encode()).unwrap(), token);
        for broken in [&b""[..], b"\x02", b"\x01short", &[1; 18]] {
            assert!(SessionToken::decode(broken).is_err());
        }
    }
}
