//! The table of request ids: what makes a repeated write safe.
//!
//! Ids are kept in two generations, the current and the one before. A generation ends when it is as
//! old as the retention, or full; then the one before the last is forgotten with one range delete. So
//! an id is remembered for one to two retentions, look-up costs at most two gets, and forgetting
//! costs nothing per id.
//!
//! Invariant: an id that is forgotten is not taken for new if its age can be told. The time-ordered
//! ids of the client crate can; ids of another make that come back after the retention are new.

use super::layout;
use crate::error::{Error, Outcome};
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft::{self, write_result::Applied};
use rdb_storage::{Family, StorageError, View, WriteBatch};
use rdb_types::{NamespaceId, Reason, RegionId, RequestId, Stamp};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// Ids in one generation at most. Some 70 bytes each on disk; two generations are kept.
pub const MAX_IDS_PER_GENERATION: u64 = 4_000_000;

/// Where the table stands. Part of the region's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdTable {
    /// Number of the current generation; the one before it is kept too.
    pub generation: u64,
    /// Unix milliseconds (of stamps) at which the current one began.
    pub started_ms: u64,
    /// Ids in the current one.
    pub count: u64,
    /// An id that was made at or before this time may have been forgotten.
    pub forgotten_through_ms: u64,
}

/// What is known about an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Not seen: the write is new.
    New,
    /// Answered before, for the same request.
    Answered(Applied),
}

/// What a write asks for, in 64 bits: tells a repeat from a second use of the same id.
pub fn fingerprint(op: &raft::WriteOp) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(op.kind as u64).to_le_bytes());
    hash.update(&op.expected_version.to_le_bytes());
    hash.update(&op.ttl_ms.to_le_bytes());
    hash.update(&(op.key.len() as u64).to_le_bytes());
    hash.update(&op.key);
    hash.update(&op.value);
    hash.digest()
}

/// A write that brought an id.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Where it is applied.
    pub region: RegionId,
    /// In which namespace.
    pub namespace: NamespaceId,
    /// Of what it asks for; see [`fingerprint`].
    pub fingerprint: u64,
    /// The id.
    pub id: &'a RequestId,
    /// The stamp that it gets if it is new.
    pub now: Stamp,
}

fn row(region: RegionId, stored: Bytes) -> Result<raft::RequestIdRow, StorageError> {
    raft::RequestIdRow::decode(stored).map_err(|error| {
        StorageError::corruption(format!("request_ids of region {region}"), error.to_string())
    })
}

impl Asked<'_> {
    fn key(&self, generation: u64) -> Bytes {
        layout::request_id(self.region, generation, self.namespace, self.id.as_bytes())
    }
}

impl IdTable {
    /// The generations that are remembered, the current one first.
    pub(super) fn remembered(&self) -> impl Iterator<Item = u64> {
        [Some(self.generation), self.generation.checked_sub(1)]
            .into_iter()
            .flatten()
    }

    /// The stamp under which a request with this id was applied, of whatever kind it was; `None`: it was not,
    /// or it is forgotten.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub fn applied_at(
        &self,
        view: &dyn View,
        region: RegionId,
        namespace: NamespaceId,
        id: &[u8],
    ) -> Result<Option<Stamp>, StorageError> {
        for generation in self.remembered() {
            let key = layout::request_id(region, generation, namespace, id);
            if let Some(stored) = view.get(Family::RequestIds, &key)? {
                return Ok(Some(Stamp(row(region, stored)?.stamp)));
            }
        }
        Ok(None)
    }

    /// Looks an id up, first among the ids of the batch under way, then on disk.
    pub fn look_up(
        &self,
        view: &dyn View,
        fresh: &BTreeMap<Bytes, Bytes>,
        asked: Asked<'_>,
        retention_ms: u64,
    ) -> Result<Result<Known, Error>, StorageError> {
        let Asked {
            region, id, now, ..
        } = asked;
        for generation in self.remembered() {
            let key = asked.key(generation);
            let stored = match fresh.get(&key) {
                Some(row) => Some(row.clone()),
                None => view.get(Family::RequestIds, &key)?,
            };
            let Some(stored) = stored else { continue };
            let row = row(region, stored)?;
            if row.fingerprint != asked.fingerprint {
                return Ok(Err(Error::invalid(
                    "request_id",
                    "this request id was used for another write before; make a fresh id for every write, and repeat one only with the same request",
                )
                .outcome(Outcome::NotApplied)));
            }
            return Ok(Ok(Known::Answered(Applied {
                replayed: true,
                ..row.applied.unwrap_or_default()
            })));
        }
        let too_old = id.made_at_ms().is_some_and(|made_ms| {
            made_ms <= self.forgotten_through_ms
                || made_ms.saturating_add(retention_ms) < now.unix_ms()
        });
        if too_old {
            return Ok(Err(Error::new(
                Reason::RequestIdExpired,
                format!("this request id is older than the {} s that ids are remembered: whether the write was applied is not known here; read the key, then write with a fresh id", retention_ms / 1000),
            )
            .with("retention", format!("{retention_ms}ms"))
            .outcome(Outcome::Unknown)));
        }
        Ok(Ok(Known::New))
    }

    /// Remembers an answer.
    pub fn remember(
        &mut self,
        batch: &mut WriteBatch,
        fresh: &mut BTreeMap<Bytes, Bytes>,
        asked: Asked<'_>,
        applied: Applied,
    ) {
        let key = asked.key(self.generation);
        let row = raft::RequestIdRow {
            fingerprint: asked.fingerprint,
            applied: Some(applied),
            stamp: asked.now.0,
        };
        let row = Bytes::from(row.encode_to_vec());
        batch.put(Family::RequestIds, key.clone(), row.clone());
        fresh.insert(key, row);
        self.count += 1;
    }

    /// Begins a new generation when the current one is old or full, and forgets the one before the
    /// last. Called once for every batch of writes, before its ids are looked up.
    pub fn turn_over(
        &mut self,
        batch: &mut WriteBatch,
        region: RegionId,
        now: Stamp,
        retention_ms: u64,
    ) {
        if self.started_ms == 0 {
            self.started_ms = now.unix_ms();
            return;
        }
        let old = now.unix_ms() >= self.started_ms.saturating_add(retention_ms);
        if !old && self.count < MAX_IDS_PER_GENERATION {
            return;
        }
        if let Some(forgotten) = self.generation.checked_sub(1) {
            batch.delete_range(
                Family::RequestIds,
                layout::request_ids(region, forgotten),
                layout::request_ids(region, forgotten + 1),
            );
            // Every id that was applied before the current generation began is gone with it.
            self.forgotten_through_ms = self.forgotten_through_ms.max(self.started_ms);
        }
        self.generation += 1;
        self.started_ms = now.unix_ms();
        self.count = 0;
    }
}
