//! FlareDB's client: one [`Client`] for a whole cluster, cheap to clone, shared by all callers.
//!
//! Owns everything between a call and its answer: which endpoint is asked, what is repeated and for
//! how long, and that callers who wait at the same moment travel in one message. Knows nothing of
//! regions, logs or disks, and never decides what a write means: a store does.
//!
//! ```no_run
//! # async fn example() -> Result<(), rdb_client::ClientError> {
//! use rdb_client::{Client, ClientOptions, PutOptions, ReadOptions};
//! let client = Client::new(ClientOptions::new(["127.0.0.1:50051", "127.0.0.1:50052"]))?;
//! client.put("default", "greeting", "hello", PutOptions::default()).await?;
//! let answer = client.get("default", "greeting", ReadOptions::default()).await?;
//! assert!(answer.found);
//! # Ok(()) }
//! ```
//!
//! Invariants:
//! 1. A call ends by its deadline; every attempt of it fits inside, and tells the store what is left.
//! 2. A write whose outcome is unknown is repeated only under the request id of its first attempt.
//! 3. [`Outcome::NotApplied`] is said only when every attempt certainly did nothing.
//! 4. A write to an eventual namespace that may have been applied is repeated at the same store only.
//! 5. Every queue is bounded; a caller that went away leaves nothing behind.
//!
//! The way in: [`Client`], then `call.rs` (the loop around the attempts of a call), `retry.rs` (what
//! is repeated, and when: pure), `endpoints.rs` (who is asked), `batch/` (the shared stream).

mod batch;
mod call;
mod client;
mod conflicts;
mod dial;
mod discovery;
mod endpoints;
mod error;
mod failure;
mod learned;
mod namespaces;
mod node;
mod options;
mod retry;
mod scan;
mod switching;
mod watch;

pub use client::Client;
pub use conflicts::Conflicts;
pub use dial::{Dial, Io, Tcp};
pub use error::{ClientError, ErrorKind, Outcome};
pub use options::{
    Change, ClientOptions, Consistency, PutOptions, ReadOptions, RetryPolicy, ScanOptions,
    WatchOptions, WriteOptions,
};
/// The messages that calls take and give.
pub use rdb_proto as proto;
pub use rdb_proto::kv::{
    CompareAndSwapResponse, DeleteResponse, GetResponse, KeyValue, PutResponse, Receipt,
    WatchResponse, watch_response::Event as WatchEvent,
};
pub use switching::ModeChanges;
