//! Waiting for something to become true, with a limit and a reason.
//!
//! Owns nothing but the end of a test that waits in vain. A test never sleeps and hopes: it says what it
//! waits for, and how long at most.

use std::time::Duration;

/// Asks until the answer is `Ok`; panics with `what` and the last reason once `limit` has passed.
pub(crate) async fn eventually<T>(
    limit: Duration,
    what: &str,
    probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    match rdb_chaos::wait::eventually(limit, what, probe).await {
        Ok(found) => found,
        Err(error) => panic!("{error}"),
    }
}
