//! Waiting for something to become true, with a limit and a reason.
//!
//! Owns the polling. A test never sleeps and hopes: it says what it waits for, and how long at most.

use std::time::Duration;
use tokio::time::Instant;

/// How often is looked.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`; panics with `what` and the last reason once `limit` has passed.
pub(crate) async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(why) if started.elapsed() >= limit => {
                panic!("after {limit:?} still waiting: {what}; {why}")
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
