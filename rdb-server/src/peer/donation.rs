//! Giving the region to a replica that may not go on with what it holds.
//!
//! Owns one copy at a time, frozen, from which the other reads piece by piece. Who reads, and why, is
//! [`crate::region::fresh_copy`]'s.
//!
//! Invariant: what is given was applied up to the entry that the other names, and is synced; a replica that waits for a
//! fresh copy itself gives none.

use super::Peer;
use crate::error::Error;
use crate::raft::{Snapshot, SnapshotData, SnapshotReader, wire};
use crate::tasks;
use parking_lot::Mutex;
use rdb_proto::raft;
use rdb_types::Reason;
use std::sync::Arc;

/// A copy of the region that another replica takes, piece by piece.
pub(super) struct Donation {
    id: String,
    meta: raft::SnapshotMeta,
    reader: Arc<Mutex<SnapshotReader>>,
}

/// Bytes of one piece, at most one record more.
const PIECE_BYTES: usize = 1 << 20;

impl Donation {
    fn of(snapshot: Snapshot) -> Option<Donation> {
        let SnapshotData::Frozen(frozen) = snapshot.snapshot else {
            return None;
        };
        let id = frozen.id().to_owned();
        Some(Donation {
            meta: wire::snapshot_meta_to_wire(&snapshot.meta, &id),
            reader: Arc::new(Mutex::new(frozen.reader())),
            id,
        })
    }

    async fn read(&self, offset: u64) -> Result<Option<raft::SnapshotPiece>, Error> {
        let (reader, meta) = (self.reader.clone(), self.meta.clone());
        let piece = tasks::blocking(move || reader.lock().read(offset, PIECE_BYTES))
            .await
            .map_err(|error| Error::new(Reason::NotReady, error.to_string()))??;
        Ok(piece.map(|piece| raft::SnapshotPiece {
            meta: Some(meta),
            offset: piece.offset,
            data: piece.data,
            done: piece.done,
        }))
    }
}

impl Peer {
    /// A piece of this replica's copy of the region, for one that may not go on with its own.
    pub(super) async fn donate(
        &self,
        read: raft::ReadRegion,
    ) -> Result<raft::SnapshotPiece, Error> {
        let refuse = |why: &str| {
            let text = format!("region {} is not given from here: {why}", self.id());
            Error::new(Reason::NotReady, text).with("region", self.id())
        };
        let (applied, waits) = self
            .cell
            .with(|summary| (summary.applied_index, summary.fresh_copy.is_some()));
        if waits || applied < read.min_index {
            return Err(refuse("this replica is not that far itself"));
        }
        let mut donation = self.donation.lock().await;
        if read.snapshot_id.is_empty() {
            let snapshot = self
                .raft
                .get_snapshot()
                .await
                .map_err(|error| refuse(&error.to_string()))?;
            *donation = snapshot.and_then(Donation::of);
        }
        let Some(given) = donation
            .as_mut()
            .filter(|given| read.snapshot_id.is_empty() || given.id == read.snapshot_id)
        else {
            return Err(refuse("another copy was begun"));
        };
        let piece = given.read(read.offset).await?;
        let piece = piece.ok_or_else(|| refuse("no piece begins there"))?;
        if piece.done {
            *donation = None;
        }
        Ok(piece)
    }
}
