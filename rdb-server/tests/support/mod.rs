//! Real `rdb-server` processes under the tests, and what looks at them from outside.
//!
//! Owns: clusters of processes ([`cluster`]), plain calls and what a refusal says ([`calls`]), waiting
//! ([`wait`]), file systems that can be filled ([`small_disk`]). A process ([`process`]), the links that can be cut, the recorded load ([`load`]) and a raw
//! HTTP/1.1 client ([`http`]) are those of `rdb-chaos`. Knows nothing of what a test promises.
//!
//! Invariant: whatever a test started is gone when it ends, however it ends.

#![allow(dead_code, reason = "every test binary uses its own part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test and its helpers may stop at what they did not expect"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what it measured, and one that fails shows the logs of its stores"
)]

pub(crate) mod calls;
pub(crate) mod cluster;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod small_disk;
pub(crate) mod wait;

pub(crate) use rdb_chaos::http;
