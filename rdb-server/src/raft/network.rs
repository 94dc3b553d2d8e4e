//! What one region's replica sends to the others.
//!
//! Owns which lane and which deadline each kind of message has, and what openraft hears of a failed
//! one. The pipelining of appends is in [`super::append_stream`], the sending of snapshots in
//! [`super::snapshot_sender`]. Knows nothing of connections: the [`Transport`](crate::transport)
//! has them.
//!
//! # Invariants
//!
//! - Heartbeats and votes never queue behind entries, and neither behind snapshots: each has a lane.
//! - openraft offers deadlines of a heartbeat's length. Heartbeats and votes keep them. Appends and
//!   snapshots do not: at 40 ms of latency nothing would ever be committed.

use super::append_stream::AppendStream;
use super::{Snapshot, SnapshotData, TypeConfig, Vote, WireError, snapshot_sender, wire};
use crate::transport::{Lane, SharedTransport, TransportError};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use rdb_proto::raft::{peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub(super) type RpcError = RPCError<TypeConfig>;

/// How well a leader is connected, and whether a quorum has room, as it tells its followers with each append. Whoever
/// watches the quorum sets it, appends read it.
#[derive(Debug, Default)]
pub struct QuorumView {
    quorum_age_ms: AtomicU64,
    full: AtomicBool,
}

impl QuorumView {
    /// Nothing known: age 0.
    pub fn new() -> QuorumView {
        QuorumView::default()
    }

    /// Sets the age of the last acknowledgement by a quorum.
    pub fn set(&self, quorum_age_ms: u64) {
        self.quorum_age_ms.store(quorum_age_ms, Ordering::Relaxed);
    }

    /// Says whether a quorum has room on its disks for more data.
    pub fn set_growing(&self, growing: bool) {
        self.full.store(!growing, Ordering::Relaxed);
    }

    /// Whether a quorum has room on its disks for more data.
    pub fn growing(&self) -> bool {
        !self.full.load(Ordering::Relaxed)
    }

    /// Age of the last acknowledgement by a quorum.
    pub fn quorum_age_ms(&self) -> u64 {
        self.quorum_age_ms.load(Ordering::Relaxed)
    }
}

/// Deadlines and bounds of what is sent.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// How long an append may take, its sync on the follower's disk included, before the stream of
    /// appends is given up and begun anew.
    pub append_timeout: Duration,
    /// Appends under way to one follower.
    pub append_window: usize,
    /// Bytes of one piece of a snapshot; its last record may go beyond.
    pub snapshot_chunk_bytes: usize,
    /// How long one piece may take.
    pub snapshot_chunk_timeout: Duration,
    /// A transfer that got no piece across for this long is handed back to openraft, which takes the
    /// newest snapshot for its next try: an old view should not be held for a store that is gone.
    pub snapshot_stall: Duration,
    /// The first pause before an unreachable store is tried again.
    pub backoff_min: Duration,
    /// The longest one.
    pub backoff_max: Duration,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        NetworkSettings {
            append_timeout: Duration::from_secs(2),
            append_window: 16,
            snapshot_chunk_bytes: 1 << 20,
            snapshot_chunk_timeout: Duration::from_secs(5),
            snapshot_stall: Duration::from_secs(30),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_millis(500),
        }
    }
}

impl NetworkSettings {
    /// Pauses between tries: doubling, up to the longest.
    pub(super) fn backoff(&self) -> impl Iterator<Item = Duration> + Send + 'static {
        let max = self.backoff_max;
        std::iter::successors(Some(self.backoff_min.min(max)), move |pause| {
            Some((*pause * 2).min(max))
        })
    }
}

/// The network of one region, as one of its replicas sees it.
#[derive(Clone)]
pub struct RegionNetwork {
    outbound: Arc<Outbound>,
}

/// What all senders of a replica share.
pub(super) struct Outbound {
    pub(super) region: RegionId,
    pub(super) transport: SharedTransport,
    pub(super) quorum: Arc<QuorumView>,
    pub(super) settings: NetworkSettings,
}

impl RegionNetwork {
    /// The network of `region` over `transport`.
    pub fn new(
        region: RegionId,
        transport: SharedTransport,
        quorum: Arc<QuorumView>,
        settings: NetworkSettings,
    ) -> RegionNetwork {
        RegionNetwork {
            outbound: Arc::new(Outbound {
                region,
                transport,
                quorum,
                settings,
            }),
        }
    }

    fn client(&self, target: u64, heartbeats: bool) -> PeerClient {
        PeerClient {
            outbound: self.outbound.clone(),
            target,
            heartbeats,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for RegionNetwork {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, _node: &super::StoreNode) -> PeerClient {
        self.client(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &super::StoreNode) -> PeerClient {
        self.client(target, true)
    }
}

/// Sends to one other replica.
pub struct PeerClient {
    outbound: Arc<Outbound>,
    target: u64,
    /// What it appends are heartbeats only.
    heartbeats: bool,
}

impl PeerClient {
    /// The transport addresses stores by id and finds where they are; a number that is no store's id
    /// can only come from a damaged membership.
    fn store(&self) -> Result<StoreId, RpcError> {
        StoreId::new(self.target).ok_or_else(|| {
            let region = self.outbound.region;
            unreachable_error(format!(
                "region {region} has a member {}, which is no store's id",
                self.target
            ))
        })
    }

    /// One request on the lane for small messages, within openraft's deadline.
    async fn ask(
        &self,
        request: peer_request::Body,
        option: &RPCOption,
    ) -> Result<peer_response::Body, RpcError> {
        let to = self.store()?;
        self.outbound
            .call(to, Lane::Control, request, option.hard_ttl())
            .await
            .map_err(rpc_error)
    }
}

impl Outbound {
    pub(super) fn call(
        &self,
        to: StoreId,
        lane: Lane,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, TransportError>> {
        self.transport.call(to, lane, self.region, request, timeout)
    }

    /// Hands a request to append over before it returns; the future brings the answer.
    pub(super) fn append(
        &self,
        to: StoreId,
        lane: Lane,
        request: &AppendEntriesRequest<TypeConfig>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<StreamAppendResult<TypeConfig>, RpcError>> {
        let (prev, last) = (request.prev_log_id, wire::last_of(request));
        let message = wire::append_to_wire(request, &self.quorum);
        let answer = self.call(to, lane, peer_request::Body::Append(message), timeout);
        let read = move |answer| match answer {
            Ok(peer_response::Body::Append(reply)) => {
                wire::append_reply(&reply, prev, last).map_err(wire_error)
            }
            Ok(other) => Err(unexpected("append", &other)),
            Err(error) => Err(rpc_error(error)),
        };
        answer.map(read).boxed()
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    /// One by one. openraft appends through [`RaftNetworkV2::stream_append`] instead.
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let to = self.store()?;
        let last = wire::last_of(&request);
        let timeout = self.outbound.settings.append_timeout;
        Ok(
            match self
                .outbound
                .append(to, Lane::Append, &request, timeout)
                .await?
            {
                Ok(matching) if matching == last => AppendEntriesResponse::Success,
                Ok(matching) => AppendEntriesResponse::PartialSuccess(matching),
                Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
                Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
            },
        )
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let opened = self.store().map(|to| {
            let (lane, timeout) = match self.heartbeats {
                true => (Lane::Control, option.hard_ttl()),
                false => (Lane::Append, self.outbound.settings.append_timeout),
            };
            let window = self.outbound.settings.append_window;
            let send = move |request| self.outbound.append(to, lane, &request, timeout);
            AppendStream::new(input, window, send).boxed()
        });
        futures::future::ready(opened).boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let message = peer_request::Body::Vote(wire::vote_request_to_wire(&request));
        match self.ask(message, &option).await? {
            peer_response::Body::Vote(reply) => wire::vote_reply(&reply).map_err(wire_error),
            other => Err(unexpected("vote", &other)),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let message = peer_request::Body::PreVote(wire::vote_request_to_wire(&request));
        match self.ask(message, &option).await? {
            peer_response::Body::Vote(reply) => wire::vote_reply(&reply).map_err(wire_error),
            other => Err(unexpected("pre-vote", &other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let to = self
            .store()
            .map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        snapshot_sender::send(
            &self.outbound,
            to,
            vote,
            snapshot,
            cancel,
            option.hard_ttl(),
        )
        .await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let message = peer_request::Body::TransferLeader(wire::transfer_to_wire(&request));
        match self.ask(message, &option).await? {
            peer_response::Body::TransferLeader(reply) if reply.accepted => Ok(Ok(())),
            peer_response::Body::TransferLeader(_) => {
                // Why it was not accepted does not travel: the leader goes on either way.
                let expected = request.last_log_id().copied();
                Ok(Err(TransferLeaderError::LogNotFlushed {
                    expected,
                    actual: None,
                }))
            }
            other => Err(unexpected("transfer of leadership", &other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(self.outbound.settings.backoff()))
    }
}

fn unreachable_error(why: impl ToString) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(why))
}

/// What openraft hears. It pauses before it tries an unreachable store again, and tries at once when
/// an answer was lost. A store that answers but cannot serve the region yet is left alone for a while
/// as well.
pub(super) fn rpc_error(error: TransportError) -> RpcError {
    match error {
        TransportError::Unreachable { .. } | TransportError::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
        TransportError::NoAnswer { .. } => RPCError::Network(NetworkError::new(&error)),
    }
}

fn wire_error(error: WireError) -> RpcError {
    unreachable_error(error)
}

/// An answer of another kind than the request: another build's, and no reason to ask again at once.
fn unexpected(request: &str, answer: &peer_response::Body) -> RpcError {
    // Without its content, which may be users' data.
    let kind = match answer {
        peer_response::Body::Error(_) => "an error",
        peer_response::Body::Append(_) => "an answer to an append",
        peer_response::Body::Vote(_) => "an answer to a vote",
        peer_response::Body::SnapshotChunk(_) => "an answer to a piece of a snapshot",
        _ => "an answer of another kind",
    };
    unreachable_error(format!("the answer to {request} was {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let settings = NetworkSettings::default();
        let pauses: Vec<u128> = settings
            .backoff()
            .take(6)
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(pauses, [50, 100, 200, 400, 500, 500]);
        let settings = NetworkSettings {
            backoff_min: Duration::from_secs(9),
            ..settings
        };
        assert_eq!(settings.backoff().next(), Some(settings.backoff_max));
    }
}
