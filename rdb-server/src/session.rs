//! Session tokens of requests; what one is, [`rdb_types::session`] says.

use crate::error::Error;
pub use rdb_types::SessionToken;

/// Reads a token that came back.
///
/// # Errors
/// It is none.
pub fn decode(bytes: &[u8]) -> Result<SessionToken, Error> {
    SessionToken::decode(bytes).ok_or_else(|| {
        Error::invalid(
            "session",
            "this is not a session token; hand back what an answer's receipt holds, or nothing",
        )
    })
}
