//! Raft without the rest of a store: the log against openraft's own suite and against crashes, and
//! three replicas over a network that can be cut.
//!
//! The state machine is one of the test's own: what is judged here is everything below it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::type_complexity,
    reason = "a test may stop at what it did not expect"
)]

#[path = "raft_suite/cluster.rs"]
mod cluster;
#[path = "raft_suite/cluster_tests.rs"]
mod cluster_tests;
#[path = "raft_suite/log_tests.rs"]
mod log_tests;
#[path = "raft_suite/machine.rs"]
mod machine;
#[path = "raft_suite/rocks.rs"]
mod rocks;
