//! From a request about keys to the regions that hold them, and back to one answer.
//!
//! Owns: which region a key lies in, one barrier for all reads of a request, one queue entry for all
//! its writes in a region, receipts. How a region serves a namespace, and what does not fit that, is in [`place`]; scans are in
//! [`scan`] and [`pages`], watches in [`watch`]. Knows nothing of gRPC or HTTP; the edges decode and validate.

mod pages;
mod place;
mod scan;
pub mod watch;

pub use pages::Patience;

use crate::error::{Error, Outcome};
use crate::namespace::Namespaces;
use crate::peer::Peer;
use crate::peer::load::Load;
use crate::peer::strong::result_of;
use crate::peer_manager::PeerManager;
use crate::region::state::Summary;
use crate::session::{self, Here, SessionToken, Verdict};
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use place::{Place, fits, look, not_installed, not_strong, place_in, reach};
use rdb_proto::convert;
use rdb_proto::kv::{self, Consistency, Receipt};
use rdb_proto::raft::{NamespaceRow, WriteOp, write_result::Applied};
use rdb_types::{
    Epoch, GlobalKey, Mode, NamespaceId, Reason, Record, RegionId, StoreId, VersionVector,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

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
    /// For how long its reader may take no page.
    pub patience: Patience,
}

/// Takes requests to regions.
#[derive(Clone)]
pub struct Router {
    me: StoreId,
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    scans: Arc<Semaphore>,
    reads: Load,
}

/// How often a read begins anew because the namespace was switched under it.
const SWITCHES_UNDER_A_READ: usize = 8;
/// How long a read waits at most until this replica has seen what its session has.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Bytes of values in the answer to one request, at most one value more: a request of a megabyte may name keys
/// with a hundred gigabytes.
const ANSWER_BYTES: usize = 32 << 20;

/// The operations of a request that lie in one region, and where their answers belong.
struct RegionWrites {
    place: Place,
    places: Vec<usize>,
    ops: Vec<WriteOp>,
}

fn too_large_together() -> Error {
    Error::new(
        Reason::Overloaded,
        format!(
            "the values that this message asks for have more than {} MiB together: ask for the rest in another one",
            ANSWER_BYTES >> 20
        ),
    )
    .with("limit", ANSWER_BYTES)
}

impl Router {
    /// Over the peers of this store.
    pub fn new(me: StoreId, manager: Arc<PeerManager>, namespaces: Namespaces) -> Router {
        Router {
            me,
            reads: Load::new(manager.context().max_inflight),
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

    fn peer_of(&self, row: &NamespaceRow, key: &[u8]) -> Result<Arc<Peer>, Error> {
        let global = GlobalKey::new(NamespaceId(row.id), key);
        self.manager.peer_of_key(global.as_bytes()).ok_or_else(|| {
            Error::new(
                Reason::NotReady,
                "this store is still joining its cluster; try again",
            )
            .outcome(Outcome::NotApplied)
        })
    }

    fn receipt(&self, place: &Place, token: &SessionToken, staleness_bound_ms: u64) -> Receipt {
        let revision = match place.mode {
            Mode::Strong => token.revision(),
            Mode::Eventual => 0,
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
        let key_bytes = reads.iter().map(|read| read.key.len()).sum();
        let _under_way = match self.reads.take_reads(reads.len(), key_bytes) {
            Ok(slots) => slots,
            Err(error) => return reads.iter().map(|_| Err(error.clone())).collect(),
        };
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
        let (mut answers, mut bytes) = (Vec::with_capacity(reads.len()), 0);
        for read in reads {
            let answer = match bytes < ANSWER_BYTES {
                true => self.read_one(&row, read, &mut barriers, deadline).await,
                false => Err(too_large_together()),
            };
            if let Ok(Found {
                record: Some(record),
                ..
            }) = &answer
            {
                bytes += record.value.len();
            }
            answers.push(answer);
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
        let peer = self.peer_of(row, &read.key).map_err(without_outcome)?;
        let (place, settled) = self
            .settled(peer, row, &read.options, barriers, deadline)
            .await?;
        let global = GlobalKey::new(namespace, &read.key);
        let peer = &place.peer;
        let stored = match place.mode {
            Mode::Strong => peer.stored(global.as_bytes())?,
            Mode::Eventual => peer.own(namespace, global.as_bytes())?,
        };
        let mut look = look(&place, namespace, settled.token.as_ref());
        // What is known of the region follows its data: what was read may be newer.
        if let Some(record) = &stored {
            look.token.saw(record, look.since);
        }
        let record = stored.filter(|record| !record.tombstone && !record.is_expired(look.now));
        Ok(Found {
            record,
            receipt: self.receipt(&place, &look.token, settled.staleness_ms),
        })
    }

    /// Waits until the region may be read here as asked, in the mode that it has by then.
    async fn settled(
        &self,
        peer: Arc<Peer>,
        row: &NamespaceRow,
        options: &kv::ReadOptions,
        barriers: &mut BTreeMap<u64, Result<u64, Error>>,
        deadline: Instant,
    ) -> Result<(Place, Settled), Error> {
        reach(&peer, NamespaceId(row.id), options.seen_epoch, deadline).await;
        let mut place = place_in(peer, row, options.seen_epoch).map_err(without_outcome)?;
        for _ in 0..SWITCHES_UNDER_A_READ {
            let settled = self.settle(&place, row, options, barriers, deadline).await;
            let now =
                place_in(place.peer.clone(), row, options.seen_epoch).map_err(without_outcome)?;
            if (now.mode, now.epoch) == (place.mode, place.epoch) {
                return Ok((now, settled?));
            }
            // While it waited the namespace was switched. What a barrier made sure of before holds in the
            // new mode, too: this store has applied everything that was committed when the read began.
            place = now;
        }
        Err(Error::new(
            Reason::ModeSwitching,
            "the namespace was switched again and again while this read waited; repeat it",
        )
        .with("namespace", &row.name)
        .with("epoch", place.epoch))
    }

    /// Waits until the region may be read here as asked, in the mode that it has now.
    async fn settle(
        &self,
        place: &Place,
        row: &NamespaceRow,
        options: &kv::ReadOptions,
        barriers: &mut BTreeMap<u64, Result<u64, Error>>,
        deadline: Instant,
    ) -> Result<Settled, Error> {
        let (peer, namespace) = (&place.peer, NamespaceId(row.id));
        let linearizable = !is_stale(options) && (place.mode == Mode::Strong || place.sealing);
        if linearizable {
            let region = peer.id().0;
            if let std::collections::btree_map::Entry::Vacant(entry) = barriers.entry(region) {
                entry.insert(peer.barrier(deadline).await);
            }
            if let Err(error) = &barriers[&region] {
                return Err(error.clone());
            }
        }
        if options.consistency == Consistency::Linearizable as i32 && place.mode == Mode::Eventual {
            return Err(not_strong(
                place,
                row,
                "a linearizable read",
                "read with the default consistency, or use a strong namespace",
            ));
        }
        let token = session::decode_for(peer.id(), &options.session)?;
        if let Some(token) = &token {
            self.caught_up(peer, row, token, deadline).await?;
        }
        // Read before the data is: a bound may be too large, never too small.
        let staleness_ms = match place.mode {
            Mode::Strong if linearizable => 0,
            Mode::Strong => bound_ms(peer.staleness()),
            Mode::Eventual => bound_ms(peer.eventual().staleness(namespace)),
        };
        Ok(Settled {
            staleness_ms,
            token,
        })
    }

    /// Waits, boundedly, until this replica has seen what a session has.
    async fn caught_up(
        &self,
        peer: &Peer,
        row: &NamespaceRow,
        token: &SessionToken,
        deadline: Instant,
    ) -> Result<(), Error> {
        let namespace = NamespaceId(row.id);
        let deadline = deadline.min(Instant::now() + CATCH_UP);
        let mut applied = peer.cell().subscribe();
        let mut batches = peer.eventual().subscribe();
        loop {
            // Before what the log says is looked at: it may be older than that, never newer.
            let vector = match peer.cell().with(|summary| {
                let state = summary.namespaces.get(&namespace);
                state.is_some_and(|state| state.mode == Mode::Eventual)
            }) {
                true => peer.eventual().vector(namespace),
                false => VersionVector::new(),
            };
            let refusal = |missing| {
                peer.cell().with(|summary| {
                    let here = here(peer, summary, namespace, &vector);
                    session::not_seen(self.me, here, missing)
                })
            };
            let verdict = peer
                .cell()
                .with(|summary| session::judge(token, here(peer, summary, namespace, &vector)));
            let missing = match verdict {
                Verdict::Ready => return Ok(()),
                Verdict::Lost { fresh, writes } => {
                    return Err(session::lost(peer.id(), &row.name, &fresh, writes));
                }
                Verdict::Wait(missing) => missing,
            };
            let changed = async {
                tokio::select! {
                    biased;
                    changed = applied.changed() => changed.is_ok(),
                    changed = batches.changed() => changed.is_ok(),
                }
            };
            if !timeout_at(deadline, changed).await.unwrap_or(false) {
                return Err(refusal(&missing));
            }
        }
    }

    /// Writes to one namespace, all operations of a region in one piece. Answers in the order given.
    ///
    /// `ops` come without namespace id, and with an epoch only where they may be written in no other: both are
    /// filled in here.
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
        // So that nobody waits for more than one of them.
        let mut waited_for = BTreeSet::new();
        for (at, (mut op, seen_epoch)) in ops.into_iter().enumerate() {
            let placed = match self.peer_of(&row, &op.key) {
                Err(error) => Err(error),
                Ok(peer) => {
                    if waited_for.insert((peer.id(), seen_epoch)) {
                        reach(&peer, id, seen_epoch, deadline).await;
                    }
                    place_in(peer, &row, seen_epoch)
                }
            };
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
            let written_in = SessionToken::new(place.peer.id(), id, Epoch(place.epoch));
            let seen = (place.mode == Mode::Eventual).then(|| look(&place, id, None).token);
            for (at, result) in places.into_iter().zip(results) {
                answers[at] = Some(result.map(|applied| {
                    let mut token = written_in.clone().at_revision(applied.revision);
                    if let Some(seen) = &seen {
                        token.join(seen);
                    }
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
            Mode::Eventual => peer.write_eventual(ops, deadline).await,
        };
        match written {
            Ok(results) => {
                let results = results.into_iter().map(result_of);
                let results: Vec<_> = results
                    .map(|result| result.map_err(|error| named(error, row)))
                    .collect();
                // Whoever hears of a change of mode finds it done here when he comes again.
                let changed_to = results
                    .iter()
                    .filter_map(|result| changed_to(result.as_ref()));
                if let Some(epoch) = changed_to.max() {
                    reach(peer, NamespaceId(row.id), epoch, deadline).await;
                }
                results
            }
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

/// The refusal of a write for a change of mode, by whom the namespace has no name.
fn named(error: Error, row: &NamespaceRow) -> Error {
    match error.reason {
        Reason::ModeChanged | Reason::ModeSwitching => error.with("namespace", &row.name),
        _ => error,
    }
}

/// The epoch that a write was refused for, where it was sent for another one.
fn changed_to<T>(result: Result<T, &Error>) -> Option<u64> {
    let refusal = result.err()?;
    let epoch = refusal.metadata.get("epoch")?;
    (refusal.reason == Reason::ModeChanged).then(|| epoch.parse().ok())?
}

/// What came of waiting for a read.
struct Settled {
    staleness_ms: u64,
    /// What the session had seen, all of which can be read here.
    token: Option<SessionToken>,
}

fn bound_ms(age: Option<Duration>) -> u64 {
    age.map_or(STALENESS_UNKNOWN_MS, |age| age.as_millis() as u64 + 1)
}

fn here<'h>(
    peer: &Peer,
    summary: &'h Summary,
    namespace: NamespaceId,
    vector: &'h VersionVector,
) -> Here<'h> {
    Here {
        region: peer.id(),
        namespace,
        state: summary.namespaces.get(&namespace),
        revision: summary.revision,
        vector,
    }
}

fn is_stale(options: &kv::ReadOptions) -> bool {
    options.consistency == Consistency::Stale as i32
}

fn without_outcome(mut error: Error) -> Error {
    error.metadata.remove("outcome");
    error
}
