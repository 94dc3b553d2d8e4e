//! What can be measured.
//!
//! Owns the trait that a store's client hides behind while it is measured, and which stores there are.

use crate::BenchError;
use bytes::Bytes;
use serde::Serialize;
use std::fmt;

/// A store that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Three `rdb-server` processes, through `rdb-client`.
    FlareDb,
    /// The same, in an eventual namespace.
    Eventual,
    /// The same, acknowledged before the sync.
    Relaxed,
    /// Three `etcd` processes, through its gRPC interface.
    Etcd,
    /// A `redis-server` with two replicas, whose file is synced every second.
    Redis,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::FlareDb => "FlareDB",
            Kind::Eventual => "FlareDB eventual",
            Kind::Relaxed => "FlareDB relaxed",
            Kind::Etcd => "etcd",
            Kind::Redis => "Redis",
        })
    }
}

/// One caller's way to a store. Clones may share connections.
pub trait Caller: Clone + Send + Sync + 'static {
    /// Writes; returns once it is acknowledged: what that means is the target's.
    fn put(&self, key: Bytes, value: Bytes) -> impl Future<Output = Result<(), String>> + Send;
    /// Reads, linearizably where the target can; the length of the value. An absent key is an error: all were loaded.
    fn get(&self, key: Bytes) -> impl Future<Output = Result<usize, String>> + Send;
}

/// A running cluster of three.
pub trait Target: Send + Sync {
    /// How its callers reach it.
    type Caller: Caller;
    /// What it is.
    fn kind(&self) -> Kind;
    /// The version that it says it has.
    fn version(&self) -> String;
    /// Ways in for so many callers, one each.
    fn callers(
        &self,
        count: usize,
    ) -> impl Future<Output = Result<Vec<Self::Caller>, BenchError>> + Send;
    /// Resident memory of each of its processes now.
    fn resident_bytes(&self) -> Vec<u64>;
}
