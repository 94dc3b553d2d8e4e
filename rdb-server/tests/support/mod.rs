//! Real `rdb-server` processes under the tests, and what looks at them from outside.
//!
//! Owns: processes ([`process`]) and clusters of them ([`cluster`]), links that can be cut ([`mesh`]), ports ([`ports`]),
//! plain calls and what a refusal says ([`calls`]), recorded load ([`load`]), a raw HTTP/1.1 client
//! ([`http`]), waiting ([`wait`]). Knows nothing of what a test promises.
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
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod mesh;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod wait;
