//! Sends a snapshot to a replica that is too far behind for the log.
//!
//! Owns the conversation: one piece at a time, each answered with the offset that is wanted next.
//! What the pieces are is [`super::snapshot`]'s business.
//!
//! # Invariants
//!
//! - A piece that was acknowledged is not sent again while the receiver keeps it: after a broken
//!   connection the transfer goes on where the receiver says.
//! - A piece that was lost is sent again after `snapshot_chunk_timeout`, the last one too: its answer comes
//!   when the snapshot is in place, and one that is sent again waits for that, too, and begins nothing anew.
//! - It ends when the snapshot is in place, when the receiver knows a higher vote, when openraft
//!   cancels it, and when nothing got across for `snapshot_stall`. The last is no loss: the next try
//!   has the same id if openraft has no newer snapshot, and so goes on where this one ended.

use super::network::{Outbound, rpc_error};
use super::snapshot::Piece;
use super::{Snapshot, SnapshotData, SnapshotMeta, TypeConfig, Vote, wire};
use crate::transport::{Lane, TransportError};
use futures::future::{Either, select};
use openraft::alias::InstantOf;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError};
use openraft::raft::SnapshotResponse;
use openraft::type_config::TypeConfigExt;
use openraft::{Instant, StorageError};
use rdb_proto::raft;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_types::StoreId;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

type Failure = StreamingError<TypeConfig>;

/// Sends `snapshot` to `to`. `install_timeout`: how long the receiver may take to put it in place
/// once it was sent the last piece.
pub(super) async fn send(
    outbound: &Outbound,
    to: StoreId,
    vote: Vote,
    snapshot: Snapshot,
    cancel: impl Future<Output = ReplicationClosed>,
    install_timeout: Duration,
) -> Result<SnapshotResponse<TypeConfig>, Failure> {
    let transfer = Transfer {
        outbound,
        to,
        vote,
        meta: snapshot.meta,
        install_timeout,
    };
    // In this order: a leader that is none any more should not send another piece.
    match select(pin!(cancel), pin!(transfer.run(snapshot.snapshot))).await {
        Either::Left((closed, _)) => Err(StreamingError::Closed(closed)),
        Either::Right((result, _)) => result,
    }
}

struct Transfer<'a> {
    outbound: &'a Outbound,
    to: StoreId,
    vote: Vote,
    meta: SnapshotMeta,
    install_timeout: Duration,
}

impl Transfer<'_> {
    async fn run(&self, data: SnapshotData) -> Result<SnapshotResponse<TypeConfig>, Failure> {
        let SnapshotData::Frozen(frozen) = data else {
            return Err(unreadable(
                "the state machine offered one that it received, not one of its own",
            ));
        };
        let settings = &self.outbound.settings;
        let mut reader = frozen.reader();
        let mut id = frozen.id().to_owned();
        let mut offset = 0;
        let mut restarts = 0;
        let mut pauses = settings.backoff();
        let mut last_progress = now();
        let (region, term) = (self.outbound.region.0, self.meta_term());
        tracing::info!(region, term, to = %self.to, snapshot = %id, "sending a snapshot: the store is further behind than the log goes back");
        loop {
            let (back, piece) = reader
                .read_async(offset, settings.snapshot_chunk_bytes)
                .await;
            let piece = piece.map_err(unreadable)?;
            reader = back.unwrap_or_else(|| frozen.reader());
            let Some(piece) = piece else {
                // It has pieces that cannot be of this snapshot: from the beginning, as another one.
                restarts += 1;
                id = format!("{}+{restarts}", frozen.id());
                offset = 0;
                continue;
            };
            let end = piece.offset + piece.data.len() as u64;
            let patience = if piece.done {
                settings.snapshot_stall.max(self.install_timeout)
            } else {
                settings.snapshot_stall
            };
            let failure = match self.send_piece(&id, piece).await {
                Ok(reply) => {
                    if let Some(vote) = reply.vote.as_ref().map(wire::vote)
                        && vote > self.vote
                    {
                        return Ok(SnapshotResponse::new(vote));
                    }
                    if reply.installed {
                        tracing::info!(region, term, to = %self.to, snapshot = %id, bytes = end, "the snapshot was sent, and is installed there");
                        return Ok(SnapshotResponse::new(self.vote));
                    }
                    offset = reply.received;
                    if offset >= end && end > 0 {
                        last_progress = now();
                        pauses = settings.backoff();
                        continue;
                    }
                    // It began anew, or did not take the piece.
                    let why = format!(
                        "store {} wants offset {offset} after it was sent {end}",
                        self.to
                    );
                    StreamingError::Network(NetworkError::from_string(why))
                }
                Err(error) => streaming_error(rpc_error(error)),
            };
            let stalled = now() - last_progress;
            if stalled >= patience {
                return Err(failure);
            }
            tracing::debug!(region = self.outbound.region.0, to = %self.to, offset, %failure, "a piece of a snapshot did not get across");
            TypeConfig::sleep(pauses.next().unwrap_or(settings.backoff_max)).await;
        }
    }

    /// Of the last entry in the snapshot.
    fn meta_term(&self) -> Option<u64> {
        let last = self.meta.last_log_id.as_ref()?;
        Some(last.leader_id.term)
    }

    async fn send_piece(
        &self,
        id: &str,
        piece: Piece,
    ) -> Result<raft::SnapshotChunkReply, TransportError> {
        let timeout = self.outbound.settings.snapshot_chunk_timeout;
        let chunk = raft::SnapshotChunk {
            vote: Some(wire::vote_to_wire(&self.vote)),
            meta: Some(wire::snapshot_meta_to_wire(&self.meta, id)),
            offset: piece.offset,
            data: piece.data,
            done: piece.done,
        };
        match self
            .outbound
            .call(
                self.to,
                Lane::Bulk,
                peer_request::Body::SnapshotChunk(chunk),
                timeout,
            )
            .await?
        {
            peer_response::Body::SnapshotChunk(reply) => Ok(reply),
            _ => Err(TransportError::NoAnswer {
                to: self.to,
                why: "it answered something else".to_owned(),
            }),
        }
    }
}

fn now() -> InstantOf<TypeConfig> {
    InstantOf::<TypeConfig>::now()
}

/// Our own snapshot cannot be read: openraft stops this replica, whose data cannot be trusted.
fn unreadable(why: impl ToString) -> Failure {
    StreamingError::StorageError(StorageError::read_snapshot(
        None,
        TypeConfig::err_from_string(why),
    ))
}

fn streaming_error(error: RPCError<TypeConfig>) -> Failure {
    match error {
        RPCError::Timeout(error) => StreamingError::Timeout(error),
        RPCError::Unreachable(error) => StreamingError::Unreachable(error),
        RPCError::Network(error) => StreamingError::Network(error),
        RPCError::RemoteError(error) => StreamingError::Network(NetworkError::new(&error)),
    }
}
