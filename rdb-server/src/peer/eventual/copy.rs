//! Comparing ranges with another replica and taking over what differs.
//!
//! One way for three needs: a replica that is so far behind that no log goes back to where it is, one
//! whose data was found to differ, and `verify`. The one that wants to know says, range by range, what it
//! has; the other answers with the records of the ranges that differ. Nobody keeps anything for the
//! other in between, and memory is bounded by a message.
//!
//! Invariants:
//! - the answer holds everything up to the vector that comes with it, and nothing beyond, and was synced
//!   before it left;
//! - what is taken over is merged, never put in the place of something newer: a replica's own writes that
//!   nobody else has yet survive;
//! - while a copy is under way the replica counts as partial; it is done when its vector says all that
//!   was merged.

use super::Shared;
use super::writer::Job;
use crate::error::Error;
use crate::eventual::EventualState;
use crate::region::layout::data_range;
use crate::tasks;
use crate::transport::Lane;
use bytes::Bytes;
use rdb_proto::convert::{vector, vector_to_wire};
use rdb_proto::raft::{
    CompareRange, CompareRangeReply, RangeDigest, StoredRecord, peer_request, peer_response,
};
use rdb_storage::{Durability, Family, KeyRange, StorageError, View, WriteBatch};
use rdb_types::{Digest, GlobalKey, NamespaceId, Reason, RegionId, StoreId, VersionVector};
use std::sync::Arc;
use std::time::Duration;

/// Records in one range that is compared.
const RANGE_RECORDS: u64 = 512;
/// Ranges in one request.
const RANGES: usize = 64;
/// Bytes of records in one answer, at most one record more.
const REPLY_BYTES: usize = 1 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What taking a copy came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    /// Records that were brought.
    pub(super) records: u64,
}

/// The part of a namespace that the region holds, as user keys.
fn held(shared: &Shared, namespace: NamespaceId) -> KeyRange {
    let region = data_range(&shared.core.descriptor);
    let start = GlobalKey::namespace_start(namespace).max(region.start);
    let end = match (GlobalKey::namespace_end(namespace), region.end) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    KeyRange { start, end }
}

/// Answers another replica's comparison.
pub(super) async fn compare(
    shared: Arc<Shared>,
    request: CompareRange,
) -> Result<CompareRangeReply, Error> {
    let namespace = NamespaceId(request.namespace_id);
    let epoch = shared.serves(namespace).map(|served| served.epoch.0);
    if epoch != Some(request.epoch) {
        return Err(Error::new(
            Reason::StaleEpoch,
            format!("namespace {namespace} is in another epoch here"),
        )
        .with("epoch", epoch.unwrap_or(0)));
    }
    let view = shared.core.engine.snapshot();
    // The vector of this very moment: a record beyond it would count on one side and not on the other.
    let vector = EventualState::load(shared.region, namespace, view.as_ref())?.vector;
    let range = held(&shared, namespace);
    let mut reply = tasks::blocking(move || differing(view.as_ref(), namespace, &range, &request))
        .await
        .map_err(|error| Error::new(Reason::NotReady, error.to_string()))??;
    // What was read may be newer than what is synced. It leaves only behind a sync that began after it.
    let barrier = shared
        .core
        .committer
        .commit(WriteBatch::new(), Durability::Synced);
    barrier.await.map_err(Error::from)?;
    reply.vector = vector_to_wire(&vector);
    reply.epoch = epoch.unwrap_or(0);
    Ok(reply)
}

/// The records here of those ranges whose digests differ.
fn differing(
    view: &dyn View,
    namespace: NamespaceId,
    held: &KeyRange,
    request: &CompareRange,
) -> Result<CompareRangeReply, StorageError> {
    let mut reply = CompareRangeReply::default();
    let mut bytes = 0;
    for theirs in &request.ranges {
        let end = if theirs.end.is_empty() {
            held.end.clone()
        } else {
            Some(GlobalKey::new(namespace, &theirs.end).as_bytes().clone())
        };
        let range = KeyRange {
            start: GlobalKey::new(namespace, &theirs.start)
                .as_bytes()
                .clone()
                .max(held.start.clone()),
            end,
        };
        let (mut digest, mut count, mut size) = (Digest::default(), 0, 0);
        let mut records = Vec::new();
        let mut resume = None;
        for item in view.scan(Family::Data, &range, false) {
            let (key, record) = item?;
            let key = key.slice(rdb_types::key::PREFIX_BYTES..);
            // More than the other has, and enough for an answer: it differs, and the rest comes later.
            if count > theirs.records && bytes + size >= REPLY_BYTES {
                resume = Some(key);
                break;
            }
            digest.add_stored(&key, &record);
            count += 1;
            size += key.len() + record.len();
            records.push(StoredRecord { key, record });
        }
        let same = resume.is_none()
            && count == theirs.records
            && Digest::from_bytes(&theirs.digest) == Some(digest);
        if !same {
            bytes += size;
            reply.records.append(&mut records);
        }
        if resume.is_none() && bytes >= REPLY_BYTES && !theirs.end.is_empty() {
            resume = Some(theirs.end.clone());
        }
        if let Some(resume) = resume {
            reply.resume = resume;
            reply.more = true;
            break;
        }
    }
    Ok(reply)
}

/// The next ranges here from `start` on, and where to go on after them.
fn ranges(
    view: &dyn View,
    held: &KeyRange,
    start: Option<Bytes>,
    namespace: NamespaceId,
) -> Result<(Vec<RangeDigest>, Option<Bytes>), StorageError> {
    let first = start.map_or_else(
        || held.start.clone(),
        |key| GlobalKey::new(namespace, &key).as_bytes().clone(),
    );
    let user = |key: &Bytes| key.slice(rdb_types::key::PREFIX_BYTES.min(key.len())..);
    let range = KeyRange {
        start: first.clone(),
        end: held.end.clone(),
    };
    let mut found = vec![RangeDigest {
        start: user(&first),
        ..RangeDigest::default()
    }];
    let mut digest = Digest::default();
    for item in view.scan(Family::Data, &range, false) {
        let (key, record) = item?;
        let key = user(&key);
        let count = found.len();
        let Some(last) = found.last_mut() else { break };
        if last.records == RANGE_RECORDS {
            last.end = key.clone();
            last.digest = Bytes::copy_from_slice(&digest.to_bytes());
            if count == RANGES {
                return Ok((found, Some(key)));
            }
            digest = Digest::default();
            found.push(RangeDigest {
                start: key.clone(),
                ..RangeDigest::default()
            });
        }
        digest.add_stored(&key, &record);
        if let Some(last) = found.last_mut() {
            last.records += 1;
        }
    }
    if let Some(last) = found.last_mut() {
        last.digest = Bytes::copy_from_slice(&digest.to_bytes());
    }
    Ok((found, None))
}

/// Takes over from another replica what differs there. When it returns, everything is merged that the
/// other had when it began.
pub(super) async fn take(
    shared: &Arc<Shared>,
    namespace: NamespaceId,
    from: StoreId,
) -> Result<Copied, Error> {
    let Some(served) = shared.serves(namespace) else {
        return Ok(Copied::default());
    };
    let range = held(shared, namespace);
    let mut came = Copied::default();
    let mut start: Option<Bytes> = None;
    let mut whole: Option<VersionVector> = None;
    loop {
        let (view, held, at) = (shared.core.engine.snapshot(), range.clone(), start.clone());
        let (ranges, next) = tasks::blocking(move || ranges(view.as_ref(), &held, at, namespace))
            .await
            .map_err(|error| Error::new(Reason::NotReady, error.to_string()))??;
        let request = peer_request::Body::CompareRange(CompareRange {
            namespace_id: namespace.0,
            epoch: served.epoch.0,
            ranges,
        });
        let reply = shared
            .core
            .transport
            .call(
                from,
                Lane::Bulk,
                RegionId(shared.region.0),
                request,
                PATIENCE,
            )
            .await;
        let reply = match reply {
            Ok(peer_response::Body::CompareRange(reply)) => reply,
            Ok(_) => return Err(Error::new(Reason::NotReady, "it answered something else")),
            Err(error) => return Err(Error::new(Reason::NotReady, error.to_string())),
        };
        let of = vector(&reply.vector)
            .ok_or_else(|| Error::invalid("vector", "it names a store that cannot be"))?;
        if shared.serves(namespace) != Some(served) || reply.epoch != served.epoch.0 {
            return Err(Error::new(Reason::StaleEpoch, "the namespace was switched"));
        }
        let whole = whole.get_or_insert_with(|| of.clone());
        came.records += reply.records.len() as u64;
        start = if reply.more { Some(reply.resume) } else { next };
        let done = start.is_none().then(|| whole.clone());
        let is_done = done.is_some();
        shared
            .do_job(|answer| Job::Copied {
                namespace,
                epoch: served.epoch,
                records: reply.records,
                of,
                whole: done,
                reply: answer,
            })
            .await?;
        if is_done {
            return Ok(came);
        }
    }
}
