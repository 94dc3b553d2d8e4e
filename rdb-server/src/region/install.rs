//! Filling a region from a snapshot, in bounded memory.
//!
//! Owns the steps between the old region and the new one, and the row that says that they are under way.
//! The finished snapshot lies in the spool, durable, before the first step; so a crash in the middle
//! loses nothing: the row is found at the next start, and filling begins anew from the same bytes.
//! Knows nothing of leaders or of where a snapshot came from.
//!
//! ```text
//! check all records | mark, delete the old rows | fill, some MiB at a time | last rows, unmark, sync
//!      nothing changed      half-filled: nobody may read, apply, or lead              the new region
//! ```
//!
//! Invariants:
//! - Nothing is deleted before every record was read, and found to belong to the region and to end at
//!   the index that the snapshot claims.
//! - While the mark is there the region's rows are not used; whoever opens the region fills it first.
//! - Memory is bounded by two batches of [`FILL_BYTES`] and a record.

use super::layout;
use super::state::NamespaceState;
use crate::layout_store;
use crate::raft::wire;
use crate::raft::{ReceivedSnapshot, SnapshotData, SnapshotItem, SnapshotMeta, SnapshotSpool};
use crate::tasks;
use prost::Message;
use rdb_proto::raft::{self, RegionDescriptor};
use rdb_storage::{Committer, Durability, Family, KeyRange, StorageError, View, WriteBatch};
use rdb_types::{GlobalKey, Mode, NamespaceId, RegionId};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// Bytes of rows in one batch of a filling, at most one record more.
const FILL_BYTES: usize = 4 << 20;

/// What filling works with.
pub(super) struct Installer {
    pub(super) descriptor: RegionDescriptor,
    pub(super) committer: Committer,
    pub(super) spool: Arc<dyn SnapshotSpool>,
}

impl Installer {
    fn region(&self) -> RegionId {
        RegionId(self.descriptor.id)
    }

    /// What a crash has left half-filled: the snapshot to go on with.
    pub(super) fn interrupted(
        &self,
        view: &dyn View,
    ) -> Result<Option<SnapshotMeta>, StorageError> {
        let key = layout_store::installing(self.region());
        let Some(row) = view.get(Family::Region, &key)? else {
            return Ok(None);
        };
        let at = format!("the mark of an installation in region {}", self.region());
        raft::SnapshotMeta::decode(row)
            .map_err(|error| error.to_string())
            .and_then(|meta| wire::snapshot_meta(&meta).map_err(|error| error.to_string()))
            .map(Some)
            .map_err(|why| StorageError::corruption(at, why))
    }

    /// Puts a snapshot where a crash does not reach it, unless it lies there already.
    pub(super) async fn keep(&self, snapshot: SnapshotData) -> io::Result<()> {
        let SnapshotData::Frozen(frozen) = snapshot else {
            return Ok(()); // the receiver has finished it
        };
        let (spool, region) = (self.spool.clone(), self.region());
        blocking(move || {
            let mut spooled = spool.create(region)?;
            let (mut reader, mut offset) = (frozen.reader(), 0);
            while let Some(piece) = reader.read(offset, FILL_BYTES).map_err(io::Error::other)? {
                spooled.append(&piece.data)?;
                offset += piece.data.len() as u64;
                if piece.done {
                    break;
                }
            }
            spooled.finish().map(drop)
        })
        .await
    }

    /// Replaces the region by the finished snapshot in the spool. Durable when it returns.
    pub(super) async fn fill(&self, meta: &SnapshotMeta) -> io::Result<()> {
        let (region, last) = (self.region(), meta.last_log_id);
        let (records, descriptor) = (self.records()?, self.descriptor.clone());
        let ranges =
            blocking(move || check(&descriptor, last, records).map_err(io::Error::other)).await?;

        let mark = layout_store::installing(region);
        let mut batch = WriteBatch::new();
        let meta = wire::snapshot_meta_to_wire(meta, "");
        batch.put(Family::Region, mark.clone(), meta.encode_to_vec());
        for (family, range) in &ranges {
            // Every range of `layout` has an end.
            if let Some(end) = &range.end {
                batch.delete_range(*family, range.start.clone(), end.clone());
            }
        }
        // Not synced: the batches lie one behind the other in one write-ahead log, so a crash leaves a
        // first part of them, and with any of them the mark.
        self.commit(batch, Durability::Written).await?;
        let mut records = self.records()?;
        loop {
            let (rest, batch) = blocking(move || next_batch(records)).await?;
            records = rest;
            if batch.is_empty() {
                break;
            }
            self.commit(batch, Durability::Written).await?;
        }
        let mut batch = WriteBatch::new();
        batch.delete(Family::Region, mark);
        self.commit(batch, Durability::Synced).await
    }

    async fn commit(&self, batch: WriteBatch, durability: Durability) -> io::Result<()> {
        let written = self.committer.commit(batch, durability).await;
        written.map_err(io::Error::other)
    }

    /// The records of the finished snapshot, from the first one on.
    fn records(&self) -> io::Result<Records> {
        let region = self.region();
        let stream = self.spool.finished(region)?.ok_or_else(|| {
            io::Error::other(format!(
                "region {region} was being filled from a snapshot, which is not in the directory of snapshots any more: restore this store from a copy"
            ))
        })?;
        let received = ReceivedSnapshot::new(format!("of region {region}"), stream);
        Ok(SnapshotData::Received(received).into_records())
    }
}

type Records = Box<dyn Iterator<Item = Result<SnapshotItem, StorageError>> + Send>;

/// Reads everything and changes nothing: whether this is a whole snapshot of this region that ends at
/// `last`. Answers what it replaces: not the records of namespaces that are eventual in it, since those
/// are not the log's.
fn check(
    descriptor: &RegionDescriptor,
    last: Option<crate::raft::LogId>,
    records: Records,
) -> Result<Vec<(Family, KeyRange)>, StorageError> {
    let region = RegionId(descriptor.id);
    let wrong =
        |why: String| StorageError::corruption(format!("a snapshot of region {region}"), why);
    let ranges = layout::replicated_ranges(descriptor, &[]);
    let mut applied = None;
    let (mut holding, mut eventual) = (BTreeSet::new(), BTreeSet::new());
    for item in records {
        let item = item?;
        if !ranges
            .iter()
            .any(|(family, range)| *family == item.family && range.contains(&item.key))
        {
            return Err(wrong("it holds a row that does not belong to it".into()));
        }
        match item.family {
            Family::Data => {
                holding.extend(GlobalKey::from_bytes(item.key).map(|key| key.namespace()))
            }
            Family::Region => match layout::namespace_of(&item.key) {
                None => {
                    let row = raft::RegionRow::decode(item.value)
                        .map_err(|error| wrong(error.to_string()))?;
                    applied = row.applied.as_ref().map(wire::log_id);
                }
                Some(namespace) => {
                    let row = raft::RegionNamespaceRow::decode(item.value)
                        .map_err(|error| wrong(error.to_string()))?;
                    let state = NamespaceState::from_row(&row).ok_or_else(|| {
                        wrong(format!("namespace {namespace} has no mode or digest"))
                    })?;
                    if state.mode == Mode::Eventual {
                        eventual.insert(namespace);
                    }
                }
            },
            _ => {}
        }
    }
    if let Some(namespace) = holding.intersection(&eventual).next() {
        return Err(wrong(format!(
            "it holds records of namespace {namespace}, which is eventual"
        )));
    }
    if applied != last {
        return Err(wrong(format!("it ends at {applied:?} but says {last:?}")));
    }
    let eventual: Vec<NamespaceId> = eventual.into_iter().collect();
    Ok(layout::replicated_ranges(descriptor, &eventual))
}

/// The next records, some [`FILL_BYTES`] of them; none after the last.
fn next_batch(mut records: Records) -> io::Result<(Records, WriteBatch)> {
    let (mut batch, mut bytes) = (WriteBatch::new(), 0);
    while bytes < FILL_BYTES
        && let Some(item) = records.next()
    {
        let item = item.map_err(io::Error::other)?;
        bytes += item.key.len() + item.value.len();
        batch.put(item.family, item.key, item.value);
    }
    Ok((records, batch))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tasks::blocking(work).await?
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
