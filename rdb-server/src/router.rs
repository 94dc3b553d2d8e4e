//! From a request about keys to the regions that hold them, and back to one answer.
//!
//! Owns: which region a key lies in, one barrier for all reads of a request, one queue entry for all
//! its writes in a region, receipts; scans are in [`scan`]. Knows nothing of gRPC or HTTP; the edges
//! decode and validate.

mod scan;

use crate::error::{Error, Outcome};
use crate::namespace::Namespaces;
use crate::peer::Peer;
use crate::peer::strong::result_of;
use crate::peer_manager::PeerManager;
use crate::session::SessionToken;
use bytes::Bytes;
use rdb_proto::convert;
use rdb_proto::kv::{self, Consistency, Receipt};
use rdb_proto::raft::{NamespaceRow, WriteOp, write_op, write_result::Applied};
use rdb_types::{
    Epoch, GlobalKey, Mode, NamespaceId, Reason, Record, RegionId, Stamp, StoreId, VersionVector,
};
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

/// A region as it serves a namespace.
#[derive(Clone)]
struct Place {
    peer: Arc<Peer>,
    mode: Mode,
    epoch: u64,
}

/// The operations of a request that lie in one region, and where their answers belong.
struct RegionWrites {
    place: Place,
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

    /// What time it is, by this store's clock.
    pub fn unix_ms(&self) -> u64 {
        self.manager.context().clock.unix_ms()
    }

    /// This store's replica of a region.
    ///
    /// # Errors
    /// It is not open here yet.
    pub fn peer(&self, region: RegionId) -> Result<Arc<Peer>, Error> {
        self.manager.peer(region).ok_or_else(|| {
            Error::new(
                Reason::NotReady,
                format!("region {region} is not open here yet; try again"),
            )
        })
    }

    fn place(&self, row: &NamespaceRow, key: &[u8], seen_epoch: u64) -> Result<Place, Error> {
        let global = GlobalKey::new(NamespaceId(row.id), key);
        let peer = self.manager.peer_of_key(global.as_bytes()).ok_or_else(|| {
            Error::new(
                Reason::NotReady,
                "this store is still joining its cluster; try again",
            )
            .outcome(Outcome::NotApplied)
        })?;
        place_in(peer, row, seen_epoch)
    }

    fn receipt(&self, place: &Place, token: &SessionToken, staleness_bound_ms: u64) -> Receipt {
        let revision = match token {
            SessionToken::Revision { revision, .. } => *revision,
            SessionToken::Vector { .. } => 0,
        };
        Receipt {
            mode: convert::mode_to_wire(place.mode),
            epoch: place.epoch,
            store_id: u32::from(self.me.get()),
            region_id: place.peer.id().0,
            revision,
            staleness_bound_ms,
            session: token.encode(),
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
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                let error = without_outcome(error);
                return reads.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let mut barriers: BTreeMap<u64, Result<u64, Error>> = BTreeMap::new();
        let mut answers = Vec::with_capacity(reads.len());
        for read in reads {
            answers.push(self.read_one(&row, read, &mut barriers, deadline).await);
        }
        answers
    }

    async fn read_one(
        &self,
        row: &NamespaceRow,
        read: Read,
        barriers: &mut BTreeMap<u64, Result<u64, Error>>,
        deadline: Instant,
    ) -> Result<Found, Error> {
        let namespace = NamespaceId(row.id);
        let place = self
            .place(row, &read.key, read.options.seen_epoch)
            .map_err(without_outcome)?;
        let settled = self
            .settle(&place, row, &read.options, barriers, deadline)
            .await?;
        let global = GlobalKey::new(namespace, &read.key);
        let peer = &place.peer;
        let stored = match place.mode {
            Mode::Strong => peer.stored(global.as_bytes())?,
            Mode::Eventual => peer.own(global.as_bytes())?,
        };
        let mut look = look(&place, namespace, settled.seen);
        // What is known of the region follows its data: what was read may be newer.
        if let Some(record) = &stored {
            look.token.saw(record);
        }
        let record = stored.filter(|record| !record.tombstone && !record.is_expired(look.now));
        Ok(Found {
            record,
            receipt: self.receipt(&place, &look.token, settled.staleness_ms),
        })
    }

    /// Waits until the region may be read here as asked.
    async fn settle(
        &self,
        place: &Place,
        row: &NamespaceRow,
        options: &kv::ReadOptions,
        barriers: &mut BTreeMap<u64, Result<u64, Error>>,
        deadline: Instant,
    ) -> Result<Settled, Error> {
        let (peer, namespace) = (&place.peer, NamespaceId(row.id));
        let mut seen = VersionVector::new();
        if place.mode == Mode::Strong && !is_stale(options) {
            let region = peer.id().0;
            if let std::collections::btree_map::Entry::Vacant(entry) = barriers.entry(region) {
                entry.insert(peer.barrier(deadline).await);
            }
            return match &barriers[&region] {
                Ok(_) => Ok(Settled {
                    staleness_ms: 0,
                    seen,
                }),
                Err(error) => Err(error.clone()),
            };
        }
        if options.consistency == Consistency::Linearizable as i32 {
            return Err(wrong_mode(
                row,
                "a linearizable read",
                "read with the default consistency, or use a strong namespace",
            ));
        }
        let token = if options.session.is_empty() {
            None
        } else {
            Some(crate::session::decode(&options.session)?)
        };
        match token {
            Some(SessionToken::Revision { region, revision })
                if region == peer.id() && place.mode == Mode::Strong =>
            {
                self.catch_up(peer, revision, deadline).await?;
            }
            Some(SessionToken::Vector {
                region,
                namespace: of,
                vector,
            }) if region == peer.id() && of == namespace && place.mode == Mode::Eventual => {
                peer.eventual().catch_up(of, &vector, deadline).await?;
                seen = vector;
            }
            _ => {}
        }
        // Read before the data is: a bound may be too large, never too small.
        let age = match place.mode {
            Mode::Strong => peer.staleness(),
            Mode::Eventual => peer.eventual().staleness(namespace),
        };
        Ok(Settled {
            staleness_ms: age.map_or(STALENESS_UNKNOWN_MS, |age| age.as_millis() as u64 + 1),
            seen,
        })
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
        let id = NamespaceId(row.id);
        let default_ttl_ms = row.policies.as_ref().map_or(0, |policies| policies.ttl_ms);
        let mut answers: Vec<Option<Result<Written, Error>>> = (0..count).map(|_| None).collect();
        let mut by_region: BTreeMap<u64, RegionWrites> = BTreeMap::new();
        for (at, (mut op, seen_epoch)) in ops.into_iter().enumerate() {
            let placed = self.place(&row, &op.key, seen_epoch);
            match placed.and_then(|place| fits(&place, &row, &op).map(|()| place)) {
                Err(error) => answers[at] = Some(Err(error)),
                Ok(place) => {
                    op.namespace_id = id.0;
                    op.epoch = place.epoch;
                    if op.ttl_ms == 0 {
                        op.ttl_ms = default_ttl_ms;
                    }
                    let group =
                        by_region
                            .entry(place.peer.id().0)
                            .or_insert_with(|| RegionWrites {
                                place,
                                places: Vec::new(),
                                ops: Vec::new(),
                            });
                    group.places.push(at);
                    group.ops.push(op);
                }
            }
        }
        let groups = by_region.into_values().map(|region| {
            let row = &row;
            async move {
                let RegionWrites { place, places, ops } = region;
                let results = self.write_region(&place, row, ops, deadline).await;
                (place, places, results)
            }
        });
        for (place, places, results) in futures::future::join_all(groups).await {
            let look = look(&place, id, VersionVector::new());
            for (at, result) in places.into_iter().zip(results) {
                answers[at] = Some(result.map(|applied| {
                    let token = match &look.token {
                        SessionToken::Revision { region, .. } => SessionToken::Revision {
                            region: *region,
                            revision: applied.revision,
                        },
                        vector => vector.clone(),
                    };
                    Written {
                        receipt: self.receipt(&place, &token, 0),
                        applied,
                    }
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
        place: &Place,
        row: &NamespaceRow,
        ops: Vec<WriteOp>,
        deadline: Instant,
    ) -> Vec<Result<Applied, Error>> {
        let (count, peer) = (ops.len(), &place.peer);
        if let Err(error) = self.installed(peer, row, deadline).await {
            let error = error.outcome(Outcome::NotApplied);
            return (0..count).map(|_| Err(error.clone())).collect();
        }
        let written = match place.mode {
            Mode::Strong => peer.write(ops, deadline).await,
            Mode::Eventual => peer.eventual().write(ops, deadline).await,
        };
        match written {
            Ok(results) => results.into_iter().map(result_of).collect(),
            Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
        }
    }

    /// Makes sure that a region knows a namespace. In a strong one it is enough that the entry which says
    /// so stands in the log: the writes come behind it, whoever applies them. An eventual one is written
    /// by this replica, which has to have applied it.
    async fn installed(
        &self,
        peer: &Arc<Peer>,
        row: &NamespaceRow,
        deadline: Instant,
    ) -> Result<(), Error> {
        let namespace = NamespaceId(row.id);
        if peer.namespace(namespace).is_some() {
            return Ok(());
        }
        self.namespaces.install(peer, row, deadline).await?;
        if convert::mode(row.mode) == Some(Mode::Strong) {
            return Ok(());
        }
        let applied = async {
            while peer.namespace(namespace).is_none() {
                let index = peer.cell().applied_index();
                if peer.namespace(namespace).is_none() {
                    peer.cell().wait_applied(index + 1).await;
                }
            }
        };
        tokio::time::timeout_at(deadline, applied)
            .await
            .map_err(|_| not_installed(peer, row))
    }
}

/// What came of waiting for a read.
struct Settled {
    staleness_ms: u64,
    /// What the session had seen.
    seen: VersionVector,
}

/// How a region's records look at this moment.
struct Look {
    /// By which expiry is judged.
    now: Stamp,
    /// What whoever sees them has seen.
    token: SessionToken,
}

/// Taken after a record was read or written, and with what the session had seen before.
fn look(place: &Place, namespace: NamespaceId, mut seen: VersionVector) -> Look {
    let region = place.peer.id();
    match place.mode {
        Mode::Strong => place.peer.cell().with(|summary| Look {
            now: summary.last_stamp,
            token: SessionToken::Revision {
                region,
                revision: summary.revision,
            },
        }),
        Mode::Eventual => {
            let eventual = place.peer.eventual();
            let state = eventual.state(namespace);
            seen.join(&state.vector);
            Look {
                now: eventual
                    .read_stamp()
                    .at_unix_ms_or_later(state.expired_through_ms),
                token: SessionToken::Vector {
                    region,
                    namespace,
                    vector: seen,
                },
            }
        }
    }
}

/// How a region serves a namespace: as its own log says, or as the tables say where that has not heard
/// of it yet.
fn place_in(peer: Arc<Peer>, row: &NamespaceRow, seen_epoch: u64) -> Result<Place, Error> {
    let said = peer.namespace(NamespaceId(row.id));
    let (mode, epoch) = said.unwrap_or((
        convert::mode(row.mode).unwrap_or_default(),
        // A region that was not told of the namespace yet is told by the first write.
        Epoch::FIRST,
    ));
    if seen_epoch > epoch.0 {
        return Err(Error::new(
            Reason::StaleReplica,
            format!("you have seen epoch {seen_epoch}, this store has {epoch}; ask another one"),
        )
        .with("epoch", epoch)
        .outcome(Outcome::NotApplied));
    }
    Ok(Place {
        peer,
        mode,
        epoch: epoch.0,
    })
}

fn not_installed(peer: &Peer, row: &NamespaceRow) -> Error {
    Error::new(
        Reason::NotReady,
        format!(
            "region {} has not heard of namespace {:?} here yet; try again",
            peer.id(),
            row.name
        ),
    )
    .with("region", peer.id())
}

/// Whether an operation can be done in the mode that a namespace is in.
fn fits(place: &Place, row: &NamespaceRow, op: &WriteOp) -> Result<(), Error> {
    let compares = matches!(
        write_op::Kind::try_from(op.kind),
        Ok(write_op::Kind::CasPut | write_op::Kind::CasDelete)
    );
    if place.mode == Mode::Eventual && compares {
        return Err(wrong_mode(
            row,
            "compare-and-swap",
            "use a strong namespace, or switch this one",
        )
        .outcome(Outcome::NotApplied));
    }
    Ok(())
}

fn wrong_mode(row: &NamespaceRow, what: &str, hint: &str) -> Error {
    Error::new(
        Reason::WrongMode,
        format!(
            "{what} needs a strong namespace, and {:?} is eventual: {hint}",
            row.name
        ),
    )
    .with("namespace", &row.name)
    .with("mode", Mode::Eventual)
    .with("hint", hint)
}

fn is_stale(options: &kv::ReadOptions) -> bool {
    options.consistency == Consistency::Stale as i32
}

fn without_outcome(mut error: Error) -> Error {
    error.metadata.remove("outcome");
    error
}
