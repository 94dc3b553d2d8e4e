//! The async runtime that openraft and this module run on.
//!
//! Owns the only mention of it: a simulator that needs its own (seeded election timeouts, watch
//! channels that wake in a fixed order, blocking work done in place) is put in here and nowhere else.
//! Everything else goes through `TypeConfig::spawn`, `TypeConfig::sleep` and their like, and through
//! [`blocking`].

use std::io;

/// The runtime of [`super::TypeConfig`].
#[allow(
    deprecated,
    reason = "openraft deprecates only this path to the type; the other one would need one more dependency"
)]
pub type Runtime = openraft::impls::TokioRuntime;

/// Runs work that waits for the disk where nothing else waits for it. Not openraft's
/// `spawn_blocking`, which starts a thread for every call.
///
/// # Errors
/// The work panicked, or the runtime is shutting down.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}
