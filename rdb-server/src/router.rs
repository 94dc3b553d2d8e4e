//! From a request about keys to the regions that hold them, and back to one answer.
//!
//! Owns: which region a key lies in, one barrier for all reads of a request, one queue entry for all
//! its writes in a region, receipts; scans are in [`scan`]. Knows nothing of gRPC or HTTP; the edges
//! decode and validate.

mod scan;

use crate::error::{Error, Outcome};
use crate::namespace::{Namespaces, require_strong};
use crate::peer::Peer;
use crate::peer::strong::result_of;
use crate::peer_manager::PeerManager;
use crate::session::SessionToken;
use bytes::Bytes;
use rdb_proto::kv::{self, Consistency, Mode, Receipt};
use rdb_proto::raft::{NamespaceRow, WriteOp, write_result::Applied};
use rdb_types::{GlobalKey, NamespaceId, Reason, Record, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A staleness bound that is not known: nothing was heard of a leader since the start.
pub const STALENESS_UNKNOWN_MS: u64 = u64::MAX;

/// One read.
#[derive(Clone, Debug)]
pub struct Read {
    /// The user's key.
    pub key: Bytes,
    /// How.
    pub options: kv::ReadOptions,
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record, unless absent or expired.
    pub record: Option<Record>,
    /// How it was served.
    pub receipt: Receipt,
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// As apply answered.
    pub applied: Applied,
    /// How it was served.
    pub receipt: Receipt,
}

/// What a scan asks for; bounds are user keys.
#[derive(Clone, Debug, Default)]
pub struct ScanSpec {
    /// Inclusive.
    pub start: Bytes,
    /// Exclusive; `None`: the end of the namespace.
    pub end: Option<Bytes>,
    /// 0: all.
    pub limit: usize,
    /// From the end.
    pub reverse: bool,
    /// Values stay empty.
    pub keys_only: bool,
    /// How.
    pub options: kv::ReadOptions,
}

/// Takes requests to regions.
#[derive(Clone)]
pub struct Router {
    me: StoreId,
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    scans: Arc<Semaphore>,
}

struct Place {
    peer: Arc<Peer>,
    epoch: u64,
}

/// The operations of a request that lie in one region, and where their answers belong.
struct RegionWrites {
    peer: Arc<Peer>,
    epoch: u64,
    places: Vec<usize>,
    ops: Vec<WriteOp>,
}

impl Router {
    /// Over the peers of this store.
    pub fn new(me: StoreId, manager: Arc<PeerManager>, namespaces: Namespaces) -> Router {
        Router {
            me,
            manager,
            namespaces,
            scans: Arc::new(Semaphore::new(scan::SCANS)),
        }
    }

    /// The namespaces that requests name.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    fn place(&self, namespace: NamespaceId, key: &[u8], seen_epoch: u64) -> Result<Place, Error> {
        let global = GlobalKey::new(namespace, key);
        let peer = self.manager.peer_of_key(global.as_bytes()).ok_or_else(|| {
            Error::new(
                Reason::NotReady,
                "this store is still joining its cluster; try again",
            )
            .outcome(Outcome::NotApplied)
        })?;
        // A region that was not told of the namespace yet is told by the first write.
        let epoch = peer
            .namespace(namespace)
            .map_or(rdb_types::Epoch::FIRST.0, |(_, epoch)| epoch.0);
        if seen_epoch > epoch {
            return Err(Error::new(
                Reason::StaleReplica,
                format!(
                    "you have seen epoch {seen_epoch}, this store has {epoch}; ask another one"
                ),
            )
            .with("epoch", epoch)
            .outcome(Outcome::NotApplied));
        }
        Ok(Place { peer, epoch })
    }

    fn receipt(&self, peer: &Peer, epoch: u64, revision: u64, staleness_bound_ms: u64) -> Receipt {
        Receipt {
            mode: Mode::Strong as i32,
            epoch,
            store_id: u32::from(self.me.get()),
            region_id: peer.id().0,
            revision,
            staleness_bound_ms,
            session: SessionToken {
                region: peer.id(),
                revision,
            }
            .encode(),
        }
    }

    /// Reads keys of one namespace, with one barrier for each region. Answers in the order asked.
    pub async fn read(
        &self,
        namespace: &str,
        reads: Vec<Read>,
        deadline: Instant,
    ) -> Vec<Result<Found, Error>> {
        let local_only = reads.iter().all(|read| is_stale(&read.options));
        let row = if local_only {
            self.namespaces.find_local(namespace)
        } else {
            self.namespaces.find(namespace, deadline).await
        };
        let namespace = match row.and_then(|row| require_strong(&row)) {
            Ok(namespace) => namespace,
            Err(error) => {
                let error = without_outcome(error);
                return reads.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let mut barriers: BTreeMap<u64, Result<u64, Error>> = BTreeMap::new();
        let mut answers = Vec::with_capacity(reads.len());
        for read in reads {
            answers.push(
                self.read_one(namespace, read, &mut barriers, deadline)
                    .await,
            );
        }
        answers
    }

    async fn read_one(
        &self,
        namespace: NamespaceId,
        read: Read,
        barriers: &mut BTreeMap<u64, Result<u64, Error>>,
        deadline: Instant,
    ) -> Result<Found, Error> {
        let Place { peer, epoch } = self
            .place(namespace, &read.key, read.options.seen_epoch)
            .map_err(without_outcome)?;
        let staleness_ms = self
            .settle(&peer, &read.options, barriers, deadline)
            .await?;
        let global = GlobalKey::new(namespace, &read.key);
        let stored = peer.stored(global.as_bytes())?;
        let (now, revision) = peer
            .cell()
            .with(|summary| (summary.last_stamp, summary.revision));
        let record = stored.filter(|record| !record.tombstone && !record.is_expired(now));
        // The summary follows the data: what was read may be newer than it.
        let revision = revision.max(record.as_ref().map_or(0, |record| record.revision));
        Ok(Found {
            record,
            receipt: self.receipt(&peer, epoch, revision, staleness_ms),
        })
    }

    /// Waits until the region may be read here as asked; the staleness bound in milliseconds.
    async fn settle(
        &self,
        peer: &Arc<Peer>,
        options: &kv::ReadOptions,
        barriers: &mut BTreeMap<u64, Result<u64, Error>>,
        deadline: Instant,
    ) -> Result<u64, Error> {
        if !is_stale(options) {
            let region = peer.id().0;
            if let std::collections::btree_map::Entry::Vacant(entry) = barriers.entry(region) {
                entry.insert(peer.barrier(deadline).await);
            }
            return match &barriers[&region] {
                Ok(_) => Ok(0),
                Err(error) => Err(error.clone()),
            };
        }
        if !options.session.is_empty() {
            let token = SessionToken::decode(&options.session)?;
            if token.region == peer.id() {
                self.catch_up(peer, token.revision, deadline).await?;
            }
        }
        // Read before the data is: a bound may be too large, never too small.
        Ok(peer
            .staleness()
            .map_or(STALENESS_UNKNOWN_MS, |age| age.as_millis() as u64 + 1))
    }

    async fn catch_up(
        &self,
        peer: &Arc<Peer>,
        revision: u64,
        deadline: Instant,
    ) -> Result<(), Error> {
        let caught_up = async {
            loop {
                let (seen, index) = peer
                    .cell()
                    .with(|summary| (summary.revision, summary.applied_index));
                if seen >= revision {
                    return;
                }
                peer.cell().wait_applied(index + 1).await;
            }
        };
        tokio::time::timeout_at(deadline, caught_up)
            .await
            .map_err(|_| {
                Error::new(
                    Reason::StaleReplica,
                    format!(
                        "store {} has not seen yet what this session has; ask another one",
                        self.me
                    ),
                )
                .with("region", peer.id())
                .with("revision", revision)
            })
    }

    /// Writes to one namespace, all operations of a region in one piece. Answers in the order given.
    ///
    /// `ops` come without namespace id and epoch: both are filled in here.
    pub async fn write(
        &self,
        namespace: &str,
        ops: Vec<(WriteOp, u64)>,
        deadline: Instant,
    ) -> Vec<Result<Written, Error>> {
        let count = ops.len();
        let all = |error: Error| (0..count).map(|_| Err(error.clone())).collect();
        let row = match self.namespaces.find_or_create(namespace, deadline).await {
            Ok(row) => row,
            // What was not known to be there cannot have been written to.
            Err(error) => return all(error.outcome(Outcome::NotApplied)),
        };
        let id = match require_strong(&row) {
            Ok(id) => id,
            Err(error) => return all(error),
        };
        let default_ttl_ms = row.policies.as_ref().map_or(0, |policies| policies.ttl_ms);
        let mut answers: Vec<Option<Result<Written, Error>>> = (0..count).map(|_| None).collect();
        let mut by_region: BTreeMap<u64, RegionWrites> = BTreeMap::new();
        for (at, (mut op, seen_epoch)) in ops.into_iter().enumerate() {
            match self.place(id, &op.key, seen_epoch) {
                Err(error) => answers[at] = Some(Err(error)),
                Ok(Place { peer, epoch }) => {
                    op.namespace_id = id.0;
                    op.epoch = epoch;
                    if op.ttl_ms == 0 {
                        op.ttl_ms = default_ttl_ms;
                    }
                    let group = by_region
                        .entry(peer.id().0)
                        .or_insert_with(|| RegionWrites {
                            peer,
                            epoch,
                            places: Vec::new(),
                            ops: Vec::new(),
                        });
                    group.places.push(at);
                    group.ops.push(op);
                }
            }
        }
        let groups = by_region.into_values().map(
            |RegionWrites {
                 peer,
                 epoch,
                 places,
                 ops,
             }| {
                let row = &row;
                async move {
                    let results = self.write_region(&peer, row, ops, deadline).await;
                    (peer, epoch, places, results)
                }
            },
        );
        for (peer, epoch, places, results) in futures::future::join_all(groups).await {
            for (at, result) in places.into_iter().zip(results) {
                answers[at] = Some(result.map(|applied| Written {
                    receipt: self.receipt(&peer, epoch, applied.revision, 0),
                    applied,
                }));
            }
        }
        let forgotten = || {
            Error::new(
                Reason::OutcomeUnknown,
                "the region did not answer this write",
            )
            .outcome(Outcome::Unknown)
        };
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(forgotten())))
            .collect()
    }

    async fn write_region(
        &self,
        peer: &Arc<Peer>,
        row: &NamespaceRow,
        ops: Vec<WriteOp>,
        deadline: Instant,
    ) -> Vec<Result<Applied, Error>> {
        let count = ops.len();
        if peer.namespace(NamespaceId(row.id)).is_none()
            && let Err(error) = self.namespaces.install(peer, row, deadline).await
        {
            let error = error.outcome(Outcome::NotApplied);
            return (0..count).map(|_| Err(error.clone())).collect();
        }
        // The entry that installs the namespace stands before these in the log, whoever applies them.
        match peer.write(ops, deadline).await {
            Ok(results) => results.into_iter().map(result_of).collect(),
            Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
        }
    }
}

fn is_stale(options: &kv::ReadOptions) -> bool {
    options.consistency == Consistency::Stale as i32
}

fn without_outcome(mut error: Error) -> Error {
    error.metadata.remove("outcome");
    error
}
