//! FlareDB side by side with its peers: throughput and latency as ratios taken in one run.
//!
//! | read | for |
//! |---|---|
//! | [`plan`] | what is measured: operations, callers, keys, rounds |
//! | [`target`] | what can be measured: the trait, and its implementations [`flaredb`], [`etcd`] and [`redis`] |
//! | [`convergence`] | how soon the other replicas have a write |
//! | [`process`] | processes that are started, watched and always ended; their memory |
//! | [`run`] | the closed loop, and the alternation of targets |
//! | [`failover`] | how long writes stand still when the leader is killed, as a client sees it |
//! | [`summary`] | medians, ratios and spread: pure |
//! | [`report`] | the table, and the JSON file |
//!
//! Owns the harness. Judges nothing: a slow result is a result, and only a run that could not be made
//! is a failure. Numbers of different runs do not compare, least of all on shared machines; that is
//! why everything is told as a ratio between neighbours in time.
//!
//! A closed loop: each caller sends its next request when it has the answer to the last. It finds the
//! most that a number of callers can get through. Its latencies are those at that load, and leave out
//! what an open loop would wait while the store stands still.

pub mod convergence;
pub mod etcd;
pub mod failover;
pub mod flaredb;
pub mod plan;
pub mod process;
pub mod redis;
pub mod report;
pub mod run;
pub mod summary;
pub mod switching;
pub mod target;

/// Why a run could not be made. Says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BenchError(pub String);

impl BenchError {
    /// With the cause behind what failed.
    pub fn because(what: impl std::fmt::Display, why: impl std::fmt::Display) -> BenchError {
        BenchError(format!("{what}: {why}"))
    }
}
