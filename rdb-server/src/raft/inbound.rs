//! What one region's replica does with what the others send.
//!
//! Owns the queue of appends of each sender, and the conversation of an incoming snapshot. Decides
//! nothing: openraft does. Knows nothing of connections.
//!
//! # Invariants
//!
//! - Appends of one sender reach openraft in the order of the calls of [`Inbound::append`], and a
//!   slow disk does not hold up the next one: many are under way, answered in order.
//! - openraft ends a stream of appends at the first that it refuses. Those that were queued behind it
//!   are answered with `NOT_READY` and the next one opens another stream; the sender starts over from
//!   the refused place in any case.
//! - The queues are bounded. A sender that goes beyond its window is refused, not waited for.

use super::snapshot_receiver::{Received, SnapshotReceiver, SnapshotSpool};
use super::{RaftOf, SnapshotData, TypeConfig, WireError, runtime, wire};
use crate::error::Error;
use futures::future::BoxFuture;
use futures::stream::StreamExt;
use futures::{FutureExt, TryFutureExt};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use openraft::storage::RaftStateMachine;
use openraft::type_config::TypeConfigExt;
use parking_lot::Mutex;
use rdb_proto::raft;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_types::{Reason, RegionId, StoreId};
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Appends of one sender that wait for openraft. Far more than a sender has under way.
const QUEUED_APPENDS: usize = 256;
/// Appends of one sender that openraft has and has not answered.
const OPEN_APPENDS: usize = 64;

/// What a handler of requests waits for.
pub type Reply<T> = BoxFuture<'static, Result<T, Error>>;

/// The receiving end of one region's replica.
pub struct Inbound<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    region: RegionId,
    raft: RaftOf<SM>,
    /// The queue of each sender. A task at its other end goes when the queue goes.
    senders: Mutex<BTreeMap<StoreId, mpsc::Sender<Append>>>,
    /// Locked while a piece is taken or a snapshot installed: whoever asks again waits for that.
    snapshots: Arc<tokio::sync::Mutex<SnapshotReceiver>>,
}

/// Where the answer to an append goes.
type AppendAnswer = oneshot::Sender<Result<raft::AppendReply, Error>>;

struct Append {
    request: AppendEntriesRequest<TypeConfig>,
    reply: AppendAnswer,
}

impl<SM> Inbound<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    /// Serves `raft`, the replica of `region`. Holds on to it, and so keeps it running.
    pub fn new(raft: RaftOf<SM>, region: RegionId, spool: Arc<dyn SnapshotSpool>) -> Inbound<SM> {
        let snapshots = Arc::new(tokio::sync::Mutex::new(SnapshotReceiver::new(
            region, spool,
        )));
        Inbound {
            region,
            raft,
            senders: Mutex::new(BTreeMap::new()),
            snapshots,
        }
    }

    /// Serves a request that is Raft's own; any other comes back. It is queued when this returns, so
    /// that requests of one sender keep their order.
    #[allow(
        clippy::result_large_err,
        reason = "the request that comes back is the caller's own"
    )]
    pub fn handle(
        &self,
        from: StoreId,
        request: peer_request::Body,
    ) -> Result<Reply<peer_response::Body>, peer_request::Body> {
        use {peer_request::Body as Request, peer_response::Body as Response};
        Ok(match request {
            Request::Append(request) => self.append(from, request).map_ok(Response::Append).boxed(),
            Request::Vote(request) => self.vote(request).map_ok(Response::Vote).boxed(),
            Request::PreVote(request) => self.pre_vote(request).map_ok(Response::Vote).boxed(),
            Request::TransferLeader(request) => self
                .transfer_leader(request)
                .map_ok(Response::TransferLeader)
                .boxed(),
            Request::SnapshotChunk(chunk) => self
                .snapshot_chunk(chunk)
                .map_ok(Response::SnapshotChunk)
                .boxed(),
            other => return Err(other),
        })
    }

    /// Appends, and heartbeats. Queued when this returns.
    pub fn append(&self, from: StoreId, request: raft::AppendRequest) -> Reply<raft::AppendReply> {
        let region = self.region;
        let request = match wire::append(request) {
            Ok(request) => request,
            Err(error) => return ready(Err(invalid("append", &error))),
        };
        let (reply, answer) = oneshot::channel();
        let append = Append { request, reply };
        let mut senders = self.senders.lock();
        let queue = senders.entry(from).or_insert_with(|| {
            let (queue, appends) = mpsc::channel(QUEUED_APPENDS);
            TypeConfig::spawn(serve_appends(self.raft.clone(), region, appends));
            queue
        });
        match queue.try_send(append) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let message = format!(
                    "store {from} has {QUEUED_APPENDS} appends to region {region} waiting; send fewer at once"
                );
                return ready(Err(
                    Error::new(Reason::Overloaded, message).with("region", region)
                ));
            }
            // The task of a replica that stopped is gone.
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return ready(Err(stopped(region, "it was shut down")));
            }
        }
        async move {
            answer
                .await
                .unwrap_or_else(|_| Err(stopped(region, "it was shut down")))
        }
        .boxed()
    }

    /// A candidate asks for a vote.
    pub fn vote(&self, request: raft::VoteRequest) -> Reply<raft::VoteReply> {
        let (raft, region) = (self.raft.clone(), self.region);
        async move {
            let request = wire::vote_request(&request).map_err(|error| invalid("vote", &error))?;
            let reply = raft
                .vote(request)
                .await
                .map_err(|error| stopped(region, error))?;
            Ok(wire::vote_reply_to_wire(&reply))
        }
        .boxed()
    }

    /// Somebody asks whether it would get a vote.
    pub fn pre_vote(&self, request: raft::VoteRequest) -> Reply<raft::VoteReply> {
        let (raft, region) = (self.raft.clone(), self.region);
        async move {
            let request =
                wire::vote_request(&request).map_err(|error| invalid("pre_vote", &error))?;
            let reply = raft
                .pre_vote(request)
                .await
                .map_err(|error| stopped(region, error))?;
            Ok(wire::vote_reply_to_wire(&reply))
        }
        .boxed()
    }

    /// The leader hands over, to this replica or to another.
    pub fn transfer_leader(
        &self,
        request: raft::TransferLeaderRequest,
    ) -> Reply<raft::TransferLeaderReply> {
        let (raft, region) = (self.raft.clone(), self.region);
        async move {
            let request =
                wire::transfer(&request).map_err(|error| invalid("transfer_leader", &error))?;
            let answer = raft
                .handle_transfer_leader(request)
                .await
                .map_err(|error| stopped(region, error))?;
            Ok(raft::TransferLeaderReply {
                accepted: answer.is_ok(),
            })
        }
        .boxed()
    }

    /// A piece of the leader's snapshot. The answer to the last one comes when it is installed.
    pub fn snapshot_chunk(&self, chunk: raft::SnapshotChunk) -> Reply<raft::SnapshotChunkReply> {
        let (raft, region, snapshots) = (self.raft.clone(), self.region, self.snapshots.clone());
        // In a task of its own: when the connection breaks during a long installation, the caller
        // drops its future, and the installation is to be finished and remembered all the same.
        let taken = TypeConfig::spawn(take_chunk(raft, region, snapshots, chunk));
        async move {
            taken
                .await
                .unwrap_or_else(|error| Err(stopped(region, error)))
        }
        .boxed()
    }
}

/// Feeds the appends of one sender to openraft until the queue is dropped.
async fn serve_appends<SM>(raft: RaftOf<SM>, region: RegionId, mut appends: mpsc::Receiver<Append>)
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    while let Some(first) = appends.recv().await {
        if serve_stream(&raft, region, first, &mut appends)
            .await
            .is_none()
        {
            return;
        }
    }
}

/// One stream of appends, from its first request to the one that is refused. `None`: the queue was
/// dropped.
async fn serve_stream<SM>(
    raft: &RaftOf<SM>,
    region: RegionId,
    first: Append,
    appends: &mut mpsc::Receiver<Append>,
) -> Option<()>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let mut open = OpenAppends(VecDeque::new());
    // Room for all that may be open, so that sending never waits.
    let (requests, mut input) = mpsc::channel(OPEN_APPENDS);
    let input = futures::stream::poll_fn(move |context| input.poll_recv(context));
    let mut answers = pin!(raft.stream_append(input));
    open.add(first, &requests);
    loop {
        tokio::select! {
            // Answers first: they make room.
            biased;
            answer = answers.next() => match answer {
                Some(Ok(result)) => {
                    let refused = result.is_err();
                    open.answer(&result);
                    if refused {
                        open.give_up(|| {
                            let message = format!("an append to region {region} before this one was refused; start over from there");
                            Error::new(Reason::NotReady, message).with("region", region)
                        });
                        return Some(());
                    }
                }
                Some(Err(fatal)) => {
                    open.give_up(|| stopped(region, &fatal));
                    return Some(());
                }
                None => {
                    open.give_up(|| stopped(region, "it was shut down"));
                    return Some(());
                }
            },
            next = appends.recv(), if open.0.len() < OPEN_APPENDS => open.add(next?, &requests),
        }
    }
}

/// Requests that openraft has, in order.
struct OpenAppends(VecDeque<(Option<super::LogId>, AppendAnswer)>);

impl OpenAppends {
    fn add(&mut self, append: Append, requests: &mpsc::Sender<AppendEntriesRequest<TypeConfig>>) {
        let last = wire::last_of(&append.request);
        // It has room for all that are open; if its other end is gone, the answers end as well and
        // say so.
        if requests.try_send(append.request).is_ok() {
            self.0.push_back((last, append.reply));
        }
    }

    fn answer(&mut self, result: &StreamAppendResult<TypeConfig>) {
        if let Some((last, reply)) = self.0.pop_front() {
            // Nobody may be waiting any more.
            let _ = reply.send(Ok(wire::append_reply_to_wire(result, last)));
        }
    }

    fn give_up(&mut self, why: impl Fn() -> Error) {
        for (_, reply) in self.0.drain(..) {
            let _ = reply.send(Err(why()));
        }
    }
}

async fn take_chunk<SM>(
    raft: RaftOf<SM>,
    region: RegionId,
    snapshots: Arc<tokio::sync::Mutex<SnapshotReceiver>>,
    chunk: raft::SnapshotChunk,
) -> Result<raft::SnapshotChunkReply, Error>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let reply = |received, vote: super::Vote, installed| {
        Ok(raft::SnapshotChunkReply {
            received,
            vote: Some(wire::vote_to_wire(&vote)),
            installed,
        })
    };
    let sender = wire::leaders_vote(chunk.vote.as_ref(), "SnapshotChunk")
        .map_err(|error| invalid("vote", &error))?;
    let own = raft.metrics().borrow_watched().vote;
    if own > sender {
        return reply(0, own, false);
    }
    let id = chunk
        .meta
        .as_ref()
        .map(|meta| meta.snapshot_id.clone())
        .unwrap_or_default();
    let mut receiver = snapshots.lock_owned().await;
    let write = move || {
        let received = receiver.take(chunk);
        (receiver, received)
    };
    let (mut receiver, received) = runtime::blocking(write)
        .await
        .map_err(|error| stopped(region, error))?;
    match received? {
        Received::Next(offset) => reply(offset, sender, false),
        Received::Installed => reply(0, sender, true),
        Received::HigherVote(vote) => reply(0, vote, false),
        Received::Complete { vote, snapshot } => {
            tracing::info!(region = region.0, snapshot = %id, "all of a snapshot was received; installing it");
            let answer = raft
                .install_full_snapshot(vote, snapshot)
                .await
                .map_err(|error| stopped(region, error))?;
            if answer.vote > vote {
                return reply(0, answer.vote, false);
            }
            receiver.installed(id);
            reply(0, vote, true)
        }
    }
}

fn ready<T: Send + 'static>(answer: Result<T, Error>) -> Reply<T> {
    futures::future::ready(answer).boxed()
}

fn invalid(field: &str, error: &WireError) -> Error {
    Error::invalid(field, error.to_string())
}

fn stopped(region: RegionId, why: impl std::fmt::Display) -> Error {
    let message = format!("this store's replica of region {region} is not running: {why}");
    Error::new(Reason::NotReady, message).with("region", region)
}
