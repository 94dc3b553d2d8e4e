//! Filling a region from a snapshot, in bounded memory.
//!
//! Owns the steps between the old region and the new one, and the row that says that they are under way.
//! The finished snapshot lies in the spool, durable, before the first step; so a crash in the middle
//! loses nothing: the row is found at the next start, and filling begins anew from the same bytes.
//! Knows nothing of leaders or of where a snapshot came from.
//!
//! ```text
//! check all records, plan | mark, delete the old rows | fill, some MiB at a time | last rows, unmark, sync
//!      nothing changed         half-filled: nobody may read, apply, or lead           the new region
//! ```
//!
//! A snapshot holds the data of eventual namespaces, too, as the donor had it. A replica that is in the same
//! eventual time goes on with its own; in any other case that is replaced, after what it alone may hold
//! was set aside ([`super::set_aside`]).
//!
//! Invariants:
//! - Nothing is deleted before every record was read, and found to belong to the region and to end at
//!   the index that the snapshot claims; nor before what is set aside is safe.
//! - While the mark is there the region's rows are not used; whoever opens the region fills it first.
//! - Memory is bounded by two batches of [`FILL_BYTES`] and a record.

use super::dropping;
use super::layout;
use super::set_aside::Beyond;
use super::state::{NamespaceState, RegionState};
use super::switching;
use crate::eventual::{EventualState, layout as own};
use crate::layout_store;
use crate::raft::wire;
use crate::raft::{ReceivedSnapshot, SnapshotData, SnapshotItem, SnapshotMeta, SnapshotSpool};
use crate::tasks;
use prost::Message;
use rdb_proto::raft::{self, RegionDescriptor};
use rdb_storage::{Committer, Durability, Engine, Family, StorageError, WriteBatch};
use rdb_types::{Mode, NamespaceId, RegionId, StoreId, VersionVector};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// Bytes of rows in one batch of a filling, at most one record more.
const FILL_BYTES: usize = 4 << 20;

/// What filling works with.
pub(super) struct Installer {
    pub(super) me: StoreId,
    pub(super) descriptor: RegionDescriptor,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) committer: Committer,
    pub(super) spool: Arc<dyn SnapshotSpool>,
}

/// What a snapshot will replace. Made before anything is changed.
#[derive(Debug)]
pub(super) struct Plan {
    meta: SnapshotMeta,
    /// Where the finished snapshot lies.
    slot: RegionId,
    /// Eventual namespaces whose own data the replica goes on with.
    kept: BTreeSet<NamespaceId>,
    /// Namespaces of another eventual time here, the fence that it ended with, and what is known of the data
    /// that comes.
    replaced: BTreeMap<NamespaceId, Replaced>,
    /// Namespaces that are known here and were deleted by then.
    dropped: BTreeSet<NamespaceId>,
}

#[derive(Debug)]
struct Replaced {
    /// Whether this replica may hold what the snapshot does not.
    fence: Option<VersionVector>,
    /// The donor's.
    row: EventualState,
}

impl Plan {
    /// Eventual namespaces that nobody may read or write here until the filling is done.
    pub(super) fn replacing(&self) -> BTreeSet<NamespaceId> {
        let replaced = self.replaced.keys();
        replaced.chain(&self.dropped).copied().collect()
    }
}

impl Installer {
    fn region(&self) -> RegionId {
        RegionId(self.descriptor.id)
    }

    /// Where a snapshot waits that this replica fetched by itself, beside one that a leader may be sending.
    pub(super) fn fetched_slot(&self) -> RegionId {
        RegionId(self.descriptor.id | 1 << 63)
    }

    /// Goes on with a filling that a crash has left half-done, if there is one.
    pub(super) async fn resume(&self) -> io::Result<Option<SnapshotMeta>> {
        let key = layout_store::installing(self.region());
        let stored = self.engine.get(Family::Region, &key);
        let Some(row) = stored.map_err(io::Error::other)? else {
            return Ok(None);
        };
        let at = format!("the mark of an installation in region {}", self.region());
        let wrong = |why: String| io::Error::other(StorageError::corruption(at.clone(), why));
        let mark = raft::InstallMark::decode(row).map_err(|error| wrong(error.to_string()))?;
        let meta = mark.meta.clone().unwrap_or_default();
        let meta = wire::snapshot_meta(&meta).map_err(|error| wrong(error.to_string()))?;
        tracing::info!(
            region = self.descriptor.id,
            "going on to install a snapshot that the last run did not finish"
        );
        self.replace(mark).await?;
        Ok(Some(meta))
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

    /// Reads the finished snapshot in a slot and says what it will replace. Changes nothing.
    pub(super) async fn plan(&self, meta: &SnapshotMeta, slot: RegionId) -> io::Result<Plan> {
        let (descriptor, engine, records) = (
            self.descriptor.clone(),
            self.engine.clone(),
            self.records(slot)?,
        );
        let meta = meta.clone();
        blocking(move || {
            let found = check(&descriptor, meta.last_log_id, records).map_err(io::Error::other)?;
            let here = RegionState::load(descriptor, engine.as_ref()).map_err(io::Error::other)?;
            let (mut kept, mut replaced) = (BTreeSet::new(), BTreeMap::new());
            for (namespace, state) in &found.namespaces {
                let known = here.namespaces.get(namespace);
                if known.is_some_and(|known| switching::same_time(known, state)) {
                    kept.insert(*namespace);
                    continue;
                }
                let was_eventual = known.filter(|known| known.mode == Mode::Eventual);
                let row = found.own.get(namespace).cloned();
                if was_eventual.is_none() && row.is_none() {
                    continue;
                }
                let fence = was_eventual.map(|known| {
                    // A fence that is not remembered any more: all that the snapshot does not hold is set aside.
                    let fence = switching::fence_after(known, state);
                    fence.map(|fence| fence.vector.clone()).unwrap_or_default()
                });
                let row = row.unwrap_or_default();
                replaced.insert(*namespace, Replaced { fence, row });
            }
            let known = here.namespaces.into_keys();
            let dropped = known.filter(|namespace| found.dropped.contains(namespace));
            Ok(Plan {
                meta,
                slot,
                kept,
                replaced,
                dropped: dropped.collect(),
            })
        })
        .await
    }

    /// Replaces the region by the finished snapshot. Nobody may write the namespaces of
    /// [`Plan::replacing`] meanwhile. Durable when it returns.
    pub(super) async fn fill(&self, plan: Plan) -> io::Result<()> {
        let mut mark = raft::InstallMark {
            meta: Some(wire::snapshot_meta_to_wire(&plan.meta, "")),
            slot: plan.slot.0,
            kept: plan.kept.iter().map(|namespace| namespace.0).collect(),
            dropped: plan.dropped.iter().map(|namespace| namespace.0).collect(),
            ..raft::InstallMark::default()
        };
        for (namespace, replaced) in plan.replaced {
            let engine = self.engine.clone();
            let here = EventualState::load(self.region(), namespace, engine.as_ref())
                .map_err(io::Error::other)?;
            let here = match replaced.fence {
                None => here,
                Some(fence) => {
                    let beyond = Beyond::new(&self.descriptor, namespace, fence, here);
                    self.set_aside(beyond).await?
                }
            };
            let row = here.replaced_by(self.me, replaced.row);
            mark.own.insert(namespace.0, row.to_row());
        }
        self.replace(mark).await
    }

    /// Writes what is set aside, durably, before anything goes.
    async fn set_aside(&self, mut beyond: Beyond) -> io::Result<EventualState> {
        loop {
            let engine = self.engine.clone();
            let (walked, batch) = blocking(move || {
                let batch = beyond.next_batch(engine.as_ref());
                Ok((beyond, batch.map_err(io::Error::other)?))
            })
            .await?;
            beyond = walked;
            let Some(batch) = batch else {
                return Ok(beyond.into_own());
            };
            self.commit(batch, Durability::Synced).await?;
        }
    }

    async fn replace(&self, mark: raft::InstallMark) -> io::Result<()> {
        let (region, slot) = (self.region(), RegionId(mark.slot));
        let kept = mark.kept.iter().copied().map(NamespaceId).collect();
        let ranges = layout::replicated_ranges(&self.descriptor, &kept);
        let key = layout_store::installing(region);
        let mut batch = WriteBatch::new();
        batch.put(Family::Region, key.clone(), mark.encode_to_vec());
        let (view, mut gone) = (self.engine.as_ref(), Vec::new());
        for namespace in mark.own.keys() {
            // Its logs say nothing of what is here from now on, and its answers were for what was set aside.
            let namespace = NamespaceId(*namespace);
            gone.push((Family::OriginLog, own::all_entries(region, namespace)));
            gone.extend(dropping::answers(view, region, namespace).map_err(io::Error::other)?);
        }
        for namespace in &mark.dropped {
            let own = dropping::own_ranges(view, region, NamespaceId(*namespace));
            gone.extend(own.map_err(io::Error::other)?);
        }
        for (family, range) in ranges.iter().chain(&gone) {
            // Every range of these has an end.
            if let Some(end) = &range.end {
                batch.delete_range(*family, range.start.clone(), end.clone());
            }
        }
        // Not synced: the batches lie one behind the other in one write-ahead log, so a crash leaves a
        // first part of them, and with any of them the mark.
        self.commit(batch, Durability::Written).await?;
        let mut records = self.records(slot)?;
        let ranges = Arc::new(ranges);
        loop {
            let ranges = ranges.clone();
            let (rest, batch) = blocking(move || next_batch(records, &ranges)).await?;
            records = rest;
            let Some(batch) = batch else { break };
            self.commit(batch, Durability::Written).await?;
        }
        let mut batch = WriteBatch::new();
        for (namespace, row) in &mark.own {
            let key = own::state(region, NamespaceId(*namespace));
            batch.put(Family::Region, key, row.encode_to_vec());
        }
        batch.delete(Family::Region, key);
        self.commit(batch, Durability::Synced).await?;
        if slot != region {
            self.spool.forget(slot)?;
        }
        Ok(())
    }

    async fn commit(&self, batch: WriteBatch, durability: Durability) -> io::Result<()> {
        let written = self.committer.commit(batch, durability).await;
        written.map_err(io::Error::other)
    }

    /// The records of the finished snapshot in a slot, from the first one on.
    fn records(&self, slot: RegionId) -> io::Result<Records> {
        let region = self.region();
        let stream = self.spool.finished(slot)?.ok_or_else(|| {
            io::Error::other(format!(
                "region {region} was being filled from a snapshot, which is not in the directory of snapshots any more: put the missing file back, or leave this store out. Never use an older copy of the directory; the other stores serve on while they are a majority"
            ))
        })?;
        let received = ReceivedSnapshot::new(format!("of region {region}"), stream);
        Ok(SnapshotData::Received(received).into_records())
    }
}

type Records = Box<dyn Iterator<Item = Result<SnapshotItem, StorageError>> + Send>;

/// What a snapshot says of its namespaces.
#[derive(Default)]
struct Found {
    namespaces: BTreeMap<NamespaceId, NamespaceState>,
    dropped: BTreeSet<NamespaceId>,
    own: BTreeMap<NamespaceId, EventualState>,
}

/// Reads everything and changes nothing: whether this is a whole snapshot of this region that ends at
/// `last`.
fn check(
    descriptor: &RegionDescriptor,
    last: Option<crate::raft::LogId>,
    records: Records,
) -> Result<Found, StorageError> {
    let region = RegionId(descriptor.id);
    let wrong =
        |why: String| StorageError::corruption(format!("a snapshot of region {region}"), why);
    let ranges = layout::replicated_ranges(descriptor, &BTreeSet::new());
    let states = own::states(region);
    let (mut applied, mut found) = (None, Found::default());
    for item in records {
        let item = item?;
        if !holds(&ranges, &item) {
            return Err(wrong("it holds a row that does not belong to it".into()));
        }
        if item.family != Family::Region {
            continue;
        }
        if item.key.starts_with(&states) {
            let namespace = own::namespace_of(&item.key)
                .ok_or_else(|| wrong("the key of a vector is too short".into()))?;
            let state = EventualState::decode(region, namespace, item.value)?;
            found.own.insert(namespace, state);
            continue;
        }
        match layout::namespace_of(&item.key) {
            None => {
                let row = raft::RegionRow::decode(item.value)
                    .map_err(|error| wrong(error.to_string()))?;
                applied = row.applied.as_ref().map(wire::log_id);
            }
            Some(namespace) => {
                let row = raft::RegionNamespaceRow::decode(item.value)
                    .map_err(|error| wrong(error.to_string()))?;
                if row.dropped {
                    found.dropped.insert(namespace);
                    continue;
                }
                let state = NamespaceState::from_row(&row)
                    .ok_or_else(|| wrong(format!("namespace {namespace} has no mode or digest")))?;
                found.namespaces.insert(namespace, state);
            }
        }
    }
    if applied != last {
        return Err(wrong(format!("it ends at {applied:?} but says {last:?}")));
    }
    Ok(found)
}

fn holds(ranges: &[(Family, rdb_storage::KeyRange)], item: &SnapshotItem) -> bool {
    ranges
        .iter()
        .any(|(family, range)| *family == item.family && range.contains(&item.key))
}

/// The next records that lie in the ranges, some [`FILL_BYTES`] of them; `None` after the last.
fn next_batch(
    mut records: Records,
    ranges: &[(Family, rdb_storage::KeyRange)],
) -> io::Result<(Records, Option<WriteBatch>)> {
    let (mut batch, mut bytes, mut ended) = (WriteBatch::new(), 0, true);
    for item in records.by_ref() {
        let item = item.map_err(io::Error::other)?;
        if !holds(ranges, &item) {
            continue;
        }
        bytes += item.key.len() + item.value.len();
        batch.put(item.family, item.key, item.value);
        if bytes >= FILL_BYTES {
            ended = false;
            break;
        }
    }
    let batch = (!ended || !batch.is_empty()).then_some(batch);
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
