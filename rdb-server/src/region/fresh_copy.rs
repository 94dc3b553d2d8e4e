//! Fetching a region from another replica, for a replica that may not go on with what it holds.
//!
//! Owns the conversation: whom to ask, piece after piece, anew after a failure. Knows nothing of what a snapshot
//! means; the pieces go into a slot of the spool, and whoever asked installs them.
//!
//! Any replica will do that has applied the entry in question and is clean itself, leader or not.

use crate::raft::{SnapshotMeta, SnapshotSpool, wire};
use crate::transport::{Lane, SharedTransport};
use rdb_proto::raft::{ReadRegion, SnapshotPiece, peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a piece may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to rest when no replica could give the region.
const REST: Duration = Duration::from_millis(200);

/// Where fresh copies come from.
pub struct CopySource {
    /// This store.
    pub me: StoreId,
    /// The region.
    pub region: RegionId,
    /// The way to the others.
    pub transport: SharedTransport,
    /// Where the pieces wait.
    pub spool: Arc<dyn SnapshotSpool>,
    /// Ends the waiting with the replica.
    pub stop: CancellationToken,
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl CopySource {
    /// Fetches the region from whichever of `replicas` has applied `index`, into a slot of the spool. Asks until one
    /// of them gives it.
    ///
    /// # Errors
    /// This replica is stopped, or its disk refuses.
    pub async fn fetch(
        &self,
        replicas: &BTreeSet<StoreId>,
        index: u64,
        slot: RegionId,
    ) -> io::Result<SnapshotMeta> {
        loop {
            for donor in replicas.iter().filter(|store| **store != self.me) {
                let fetched = tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Err(io::Error::other("the store is stopped")),
                    fetched = self.fetch_from(*donor, index, slot) => fetched?,
                };
                match fetched {
                    Ok(meta) => return Ok(meta),
                    Err(why) => tracing::debug!(
                        region = self.region.0,
                        donor = donor.get(),
                        why,
                        "no fresh copy from there"
                    ),
                }
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(io::Error::other("the store is stopped")),
                () = tokio::time::sleep(REST) => {}
            }
        }
    }

    /// `Ok(Err)`: the donor cannot, or there is no room for it here.
    async fn fetch_from(
        &self,
        donor: StoreId,
        index: u64,
        slot: RegionId,
    ) -> io::Result<Result<SnapshotMeta, String>> {
        match self.fetch_whole(donor, index, slot).await {
            // What was fetched so far is gone with its file, and there may be room later.
            Err(error) if is_full(&error) => Ok(Err(format!("the disk here is full: {error}"))),
            fetched => fetched,
        }
    }

    async fn fetch_whole(
        &self,
        donor: StoreId,
        index: u64,
        slot: RegionId,
    ) -> io::Result<Result<SnapshotMeta, String>> {
        let mut spooled = self.spool.create(slot)?;
        let (mut id, mut offset) = (String::new(), 0);
        loop {
            let piece = match self.ask(donor, index, &id, offset).await {
                Ok(piece) => piece,
                Err(why) => return Ok(Err(why)),
            };
            let Some(meta) = &piece.meta else {
                return Ok(Err("it names no snapshot".to_owned()));
            };
            if piece.offset != offset || (offset > 0 && meta.snapshot_id != id) {
                return Ok(Err("it answered with another piece".to_owned()));
            }
            spooled.append(&piece.data)?;
            offset += piece.data.len() as u64;
            if piece.done {
                let meta = match wire::snapshot_meta(meta) {
                    Ok(meta) => meta,
                    Err(error) => return Ok(Err(error.to_string())),
                };
                if meta.last_log_id.is_none_or(|last| last.index < index) {
                    return Ok(Err("it ends too early".to_owned()));
                }
                spooled.finish()?;
                return Ok(Ok(meta));
            }
            id.clone_from(&meta.snapshot_id);
        }
    }

    async fn ask(
        &self,
        donor: StoreId,
        min_index: u64,
        id: &str,
        offset: u64,
    ) -> Result<SnapshotPiece, String> {
        let request = peer_request::Body::ReadRegion(ReadRegion {
            min_index,
            snapshot_id: id.to_owned(),
            offset,
        });
        let reply = self
            .transport
            .call(donor, Lane::Bulk, self.region, request, PATIENCE);
        match reply.await {
            Ok(peer_response::Body::RegionPiece(piece)) => Ok(piece),
            Ok(_) => Err("it answered something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
