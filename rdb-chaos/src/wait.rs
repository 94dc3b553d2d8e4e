//! Waiting for something to become true, with a limit and a reason.
//!
//! Owns the polling. Nobody sleeps and hopes: who waits says for what, and how long at most.

use crate::ChaosError;
use std::time::Duration;
use tokio::time::Instant;

/// How often is looked.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`.
///
/// # Errors
///
/// [`ChaosError::Broken`] with `what` and the last reason once `limit` has passed.
pub async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, ChaosError> {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(found) => return Ok(found),
            Err(why) if started.elapsed() >= limit => {
                return Err(ChaosError::Broken(format!(
                    "after {limit:?} still waiting: {what}; {why}"
                )));
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
