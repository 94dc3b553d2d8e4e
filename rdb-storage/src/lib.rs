//! FlareDB's storage: ordered bytes, atomic batches, frozen views.
//!
//! Owns what is on the disk of one store: the key families, the two engines that hold
//! them, the thread that makes batches durable, and the identity of the data directory.
//!
//! Does not know what the bytes mean. There is no Raft here, no consistency mode, no RPC
//! and no clock: those crates build keys and batches, and this one keeps them.
//!
//! | Read | for |
//! |---|---|
//! | [`family`] | the keyspaces of a store |
//! | [`batch`] | what is written together |
//! | [`engine`] | the contract: [`View`], [`Engine`] |
//! | [`memory`] | an engine that can lose power on purpose; tests and the simulator use it |
//! | [`rocks`] | the engine of production |
//! | [`commit_queue`], [`committer`], `commit_crew` | one write and one sync for everybody who waits |
//! | [`datadir`] | who owns a directory, and which directories are refused |
//! | [`reserve`] | how much room the disk has, and the part of it that is kept for the time when it is full |
//! | [`conformance`] | what every engine must do, as a suite |
//!
//! # Invariants
//!
//! - A batch is visible and durable as a whole or not at all.
//! - Batches take effect in the order in which they were given; a power loss keeps a prefix
//!   of that order, and at least everything before the last successful sync.
//! - A failed sync is final: nothing in this crate tries again.
//! - Damage is reported, never skipped: only an incomplete last record of the write-ahead
//!   log, which nobody was told about, is dropped on open.

#![warn(missing_docs)]

pub mod batch;
mod commit_crew;
pub mod commit_queue;
pub mod committer;
pub mod conformance;
pub mod datadir;
pub mod engine;
pub mod error;
pub mod family;
pub mod memory;
pub mod reserve;
pub mod rocks;

pub use batch::{Op, WriteBatch};
pub use commit_queue::{CommitQueue, Done, Durability, Group, Submission, WrittenGroup};
pub use committer::{CommitDriver, Committer, CommitterStats, OnFatal};
pub use datadir::{DataDir, DataDirError, StoreIdentity};
pub use engine::{Engine, EngineStats, KeyRange, Scan, View};
pub use error::StorageError;
pub use family::Family;
pub use memory::MemoryEngine;
pub use reserve::{Boundless, Reserve, ReserveFile, Space};
pub use rocks::{RocksEngine, RocksOptions};
