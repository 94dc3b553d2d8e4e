//! How a store reaches other stores.
//!
//! Owns the trait that everything above it speaks, so that a simulated network can stand in for the
//! real one. Knows nothing of what a request means.

pub mod faults;
pub mod grpc;

use crate::error::Error;
use futures::future::BoxFuture;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::sync::Arc;
use std::time::Duration;

/// Which stream of a pair of stores a request travels on. Requests of one lane to one store arrive
/// in the order in which [`Transport::call`] was called; a large message delays only its own lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Votes, heartbeats, read indexes, status: small, and elections hang on them.
    Control,
    /// Log entries.
    Append,
    /// Writes that a follower forwards to the leader.
    Forward,
    /// Writes that eventual namespaces accepted, and reports of who has which.
    Origins,
    /// Snapshots, and copies of eventual namespaces.
    Bulk,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Lane; 5] = [
        Lane::Control,
        Lane::Append,
        Lane::Forward,
        Lane::Origins,
        Lane::Bulk,
    ];
}

/// Why a call brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request certainly never left: there is no connection.
    #[error("store {to} cannot be reached: {why}")]
    Unreachable {
        /// Whom it was for.
        to: StoreId,
        /// In words.
        why: String,
    },
    /// The request may have arrived: the connection broke, or no answer came in time.
    #[error("no answer from store {to}: {why}")]
    NoAnswer {
        /// Whom it was for.
        to: StoreId,
        /// In words.
        why: String,
    },
    /// The other store answered with a refusal; or the request was refused here, before it was sent,
    /// because it is over the limit of a message.
    #[error(transparent)]
    Refused(Error),
}

/// Sends one request to a store and brings back its answer.
pub trait Transport: Send + Sync + 'static {
    /// Hands the request over before it returns (that fixes the order within the lane); the future
    /// resolves with the answer, or with an error at the latest when `timeout` has passed. Dropping
    /// the future gives the answer up, not the request.
    fn call(
        &self,
        to: StoreId,
        lane: Lane,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, TransportError>>;
}

/// What serves the requests of other stores: the receiving end of a [`Transport`].
pub trait PeerHandler: Send + Sync + 'static {
    /// Takes the request into its region's queue before it returns (that keeps the sender's order);
    /// the future resolves with the answer. `RegionId(0)` is the store itself.
    ///
    /// The future is dropped unfinished when the caller is gone or `timeout` has passed: what must
    /// happen anyway must not depend on its being polled.
    fn handle(
        &self,
        from: StoreId,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, Error>>;
}

/// What a caller is answered.
#[derive(Clone, Debug, Default)]
pub struct Greeting {
    /// What this store says of itself.
    pub reply: rdb_proto::raft::HelloReply,
    /// Whether the caller's requests are served; else the stream ends with the reply.
    pub served: bool,
}

/// Who may talk to whom: the store's identity, asked at the start of every stream. What it allows, it
/// allows for as long as the stream lasts.
pub trait Handshake: Send + Sync + 'static {
    /// What this store says of itself when it dials `to`.
    fn hello(&self, to: StoreId) -> rdb_proto::raft::Hello;
    /// Judges a caller.
    ///
    /// # Errors
    /// It is refused; the error is all that it hears.
    fn accept(&self, hello: &rdb_proto::raft::Hello) -> Result<Greeting, Error>;
    /// Judges the store that was dialled by what it answered. `Ok`: requests may follow.
    ///
    /// # Errors
    /// It is refused; or, with a reason that passes, there is nothing to be said to it yet.
    fn check_reply(&self, to: StoreId, reply: &rdb_proto::raft::HelloReply) -> Result<(), Error>;
    /// Where a store is dialled: host:port. `None`: not a member.
    fn address_of(&self, store: StoreId) -> Option<String>;
}

/// A transport that many hold.
pub type SharedTransport = Arc<dyn Transport>;
