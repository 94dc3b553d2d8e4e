//! Real stores under faults: `rdb-server` processes that are killed, frozen, cut off, filled up, damaged
//! and given wrong clocks, while clients write and read; judged by what the clients saw.
//!
//! | read | for |
//! |---|---|
//! | [`faults`] | what is done to the stores and what must hold: one file each, and the trait |
//! | [`schedule`] | which fault comes when: all of it from one seed |
//! | [`run`] | a run: load, faults, healing, the times, the last judgement |
//! | [`control`] | the harness judged: a healthy etcd passes, a client that is broken on purpose is caught |
//! | [`heal`] | a long cut of an eventual namespace, healed: the lag falls, all become equal |
//! | [`load`], [`registers`], [`etcd`] | recorded load, and the stores it runs against |
//! | [`cluster`], [`node`] | the processes |
//! | [`network`], [`disks`] | what they stand on, and how that is broken |
//! | [`place`] | a run's directory, and what runs that were killed left behind |
//! | [`ports`], [`http`], [`wait`], [`dice`] | small things |
//!
//! Invariants:
//! - A seed gives the same schedule on every machine; what cannot be done there is skipped with a line
//!   and never counted as passed.
//! - Processes, mounts and network namespaces are gone when their owner is dropped: at the end, on
//!   Ctrl-C and on a panic. What a kill -9 of the harness leaves behind, the next run removes.
//! - The tests of `rdb-server` use the same load, processes and links: what they judge with is judged
//!   here by [`control`].

pub mod cluster;
pub mod control;
pub mod dice;
pub mod disks;
pub mod etcd;
pub mod faults;
pub mod heal;
pub mod http;
pub mod load;
pub mod network;
pub mod node;
pub mod place;
pub mod ports;
pub mod registers;
pub mod run;
pub mod schedule;
pub mod wait;

/// Why a run ended before its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChaosError {
    /// FlareDB does not keep a promise.
    #[error("BROKEN: {0}")]
    Broken(String),
    /// The harness could not do its part; says what to do where there is something to do.
    #[error("the harness failed: {0}")]
    Harness(String),
}

impl ChaosError {
    /// A failure of the harness, with the cause behind what failed.
    pub fn because(what: impl std::fmt::Display, why: impl std::fmt::Display) -> ChaosError {
        ChaosError::Harness(format!("{what}: {why}"))
    }

    /// The same error, said to have happened in `place`.
    #[must_use]
    pub fn within(self, place: &str) -> ChaosError {
        match self {
            ChaosError::Broken(what) => ChaosError::Broken(format!("{place}: {what}")),
            ChaosError::Harness(what) => ChaosError::Harness(format!("{place}: {what}")),
        }
    }
}
