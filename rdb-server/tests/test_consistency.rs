//! What `specs/003-kvs-consistency/spec.md` promises, held against real `rdb-server` processes: killed,
//! stopped, frozen, cut off, and started again.
//!
//! The way in, for strong namespaces: `basic.rs` (no fault at all), `crashes.rs`, `copies.rs` (an older data directory), `partitions.rs`,
//! `replicas.rs` (regions, snapshots, digests), `writes.rs` (request ids, expiry, namespaces); for
//! eventual ones: `eventual.rs`, `conflicts.rs`; for what goes from one to the other: `modes.rs`, `switches.rs`, `sessions.rs`; for both: `watch.rs`, `deletion.rs`, `clocks.rs`. The names of
//! the tests are the promises.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

#[path = "test_consistency/basic.rs"]
mod basic;
#[path = "test_consistency/clocks.rs"]
mod clocks;
#[path = "test_consistency/conflicts.rs"]
mod conflicts;
#[path = "test_consistency/copies.rs"]
mod copies;
#[path = "test_consistency/crashes.rs"]
mod crashes;
#[path = "test_consistency/damage.rs"]
mod damage;
#[path = "test_consistency/deletion.rs"]
mod deletion;
#[path = "test_consistency/eventual.rs"]
mod eventual;
#[path = "test_consistency/modes.rs"]
mod modes;
#[path = "test_consistency/partitions.rs"]
mod partitions;
#[path = "test_consistency/replicas.rs"]
mod replicas;
#[path = "test_consistency/sessions.rs"]
mod sessions;
mod support;
#[path = "test_consistency/switches.rs"]
mod switches;
#[path = "test_consistency/watch.rs"]
mod watch;
#[path = "test_consistency/writes.rs"]
mod writes;
