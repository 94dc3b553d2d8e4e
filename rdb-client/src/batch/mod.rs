//! Many callers on one Batch stream.
//!
//! A caller hands its operation to a [`Session`] and waits. Nobody waits for company: what is there
//! when the connection can take bytes goes as one message, so a single caller is sent at once and a
//! crowd shares messages by itself.
//!
//! ```text
//!   callers --queue (bounded)--> Gather (polled by the connection when it can send) --> wire
//!      ^                            | enters each operation before it is sent
//!      |                            v
//!      +------ answers ------ Outstanding <--ids-- reader task <-- wire
//! ```
//!
//! Invariant: an operation is in [`outstanding::Outstanding`] from just before it is sent until it is
//! answered or forgotten. So whoever finds it there knows that it may be applied, and whoever does
//! not, and has no answer, knows that it never was sent.

mod gather;
mod outstanding;
mod session;

pub(crate) use session::{MAX_ANSWER_BYTES, Session, encoded_bytes};

use crate::failure::Failure;
use rdb_proto::kv;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What a caller gets.
pub(crate) type Answer = Result<kv::batch_response::Result, Failure>;

/// An operation on its way.
struct Submission {
    id: u64,
    op: kv::batch_request::Op,
    encoded_bytes: usize,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
}
