//! Eventual namespaces of a region, done: accept, replicate, exchange, keep house.
//!
//! Owns the queue of writes and what other stores push ([`writer`]), one sender for each other replica
//! ([`link`]), copies for who fell behind and repairs ([`copy`]), and the regular duties ([`keeper`]).
//! What a write does, and what may be sent, dropped or concluded, is decided in [`crate::eventual`].
//! Knows no namespace's name, and nothing of gRPC.
//!
//! Invariants:
//! - one task changes the data of the region's eventual namespaces: the writer; it takes them over from the
//!   region's log, and gives them back, with a change of mode ([`SummaryCell::own`]);
//! - nothing that is not synced leaves the store: senders, reports and copies read what *is durable*,
//!   readers what *is written*;
//! - mode and epoch come from the region's replicated state, and are checked for every request and for
//!   every message of another store.

mod copy;
mod keeper;
mod link;
mod sealing;
mod writer;

use super::load::Load;
use super::quorum::QuorumWatch;
use crate::clock::StoreClock;
use crate::config::LiveConfig;
use crate::error::{Error, Outcome};
use crate::eventual::state::load_ids;
use crate::eventual::{EventualState, Report, Reports, conflicts, layout};
use crate::region::machine::SummaryCell;
use crate::region::request_ids::{Asked, Known, fingerprint};
use crate::region::state::NamespaceState;
use crate::room::Rooms;
use crate::tasks;
use crate::transport::SharedTransport;
use crate::watch;
use parking_lot::{Mutex, RwLock};
use rdb_proto::convert::vector_to_wire;
use rdb_proto::raft::{self, RegionDescriptor, WriteOp, WriteResult, write_result};
use rdb_proto::raft::{peer_request, peer_response};
use rdb_storage::{Committer, Engine, Family};
use rdb_types::{
    Digest, Epoch, Mode, NamespaceId, Policies, Reason, RegionId, RequestId, Stamp, StoreId,
    VersionVector,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use writer::Job;

/// Jobs that may wait; those of clients are bounded by operations and bytes, too.
const INBOX: usize = 4096;
/// Bytes of rows in one page of the conflict log, at most one row more.
const CONFLICT_PAGE_BYTES: usize = 256 << 10;
/// Rows that are looked at for one page.
const CONFLICT_PAGE_ROWS: usize = 4096;

/// The policies of namespaces, kept up to date by the store.
#[derive(Default)]
pub struct PolicyBook(RwLock<BTreeMap<NamespaceId, Policies>>);

impl PolicyBook {
    /// Those of a namespace; the defaults where none are known.
    pub fn of(&self, namespace: NamespaceId) -> Policies {
        self.0.read().get(&namespace).cloned().unwrap_or_default()
    }

    /// Takes up what the cluster's tables say.
    pub fn set(&self, policies: BTreeMap<NamespaceId, Policies>) {
        *self.0.write() = policies;
    }
}

/// What happens to eventual writes, for whoever counts; and what was counted, for who asks.
pub trait Counters: Send + Sync + 'static {
    /// What clients asked of each namespace since the start.
    fn served(&self) -> Vec<raft::ServedRequests>;
    /// A write of another store was applied here so long after it was accepted.
    fn converged(&self, namespace: NamespaceId, after: Duration);
    /// Writes lost to concurrent ones.
    fn conflicts(&self, namespace: NamespaceId, found: u64);
    /// A stamp was further ahead than any clock may be.
    fn wild_stamp(&self, namespace: NamespaceId);
    /// Replicas that had seen the same writes held different data.
    fn repaired(&self, namespace: NamespaceId);
    /// A replica is further behind than the namespace's objective.
    fn lag_breached(&self, namespace: NamespaceId, store: StoreId);
}

/// What the eventual namespaces of a region work with.
pub struct EventualCore {
    /// This store.
    pub me: StoreId,
    /// Range and id of the region.
    pub descriptor: RegionDescriptor,
    /// The disk.
    pub engine: Arc<dyn Engine>,
    /// Who writes it.
    pub committer: Committer,
    /// Where stamps come from.
    pub clock: Arc<StoreClock>,
    /// What the region's log says: modes and epochs.
    pub cell: Arc<SummaryCell>,
    /// Who the other replicas are.
    pub quorum: Arc<QuorumWatch>,
    /// How the stores are off for room.
    pub rooms: Arc<Rooms>,
    /// The way to them.
    pub transport: SharedTransport,
    /// The configuration in force.
    pub config: LiveConfig,
    /// Policies of namespaces.
    pub policies: Arc<PolicyBook>,
    /// Who counts.
    pub counters: Arc<dyn Counters>,
    /// Told when this store may not go on.
    pub fatal: tokio::sync::watch::Sender<Option<String>>,
    /// Operations that may wait.
    pub max_inflight: usize,
    /// How long request ids are remembered.
    pub request_id_retention: Duration,
}

/// A stream that is held: an origin's stamps are further ahead than any clock may be.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// Since when.
    pub since: Instant,
    /// How far the stamp was ahead.
    pub ahead_ms: u64,
}

type States = RwLock<BTreeMap<NamespaceId, EventualState>>;

struct Shared {
    core: EventualCore,
    region: RegionId,
    /// True of what readers see.
    written: States,
    /// True of what is on disk for good.
    durable: States,
    /// Batches written, and batches synced.
    batches: watch::Sender<u64>,
    synced: watch::Sender<u64>,
    reports: Mutex<Reports>,
    held: Mutex<BTreeMap<(NamespaceId, StoreId), Hold>>,
    sender: mpsc::Sender<Job>,
    load: Load,
    stop: CancellationToken,
}

/// The eventual namespaces of a region's replica.
#[derive(Clone)]
pub struct Eventual(Arc<Shared>);

/// How a namespace is served here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Served {
    epoch: Epoch,
    /// Whether writes are taken, from clients and from other replicas: not while it is being sealed.
    open: bool,
}

impl Served {
    /// As the log says; `None`: the namespace is not eventual.
    fn of(state: &NamespaceState) -> Option<Served> {
        (state.mode == Mode::Eventual).then_some(Served {
            epoch: state.epoch,
            open: state.sealing.is_none(),
        })
    }
}

impl Eventual {
    /// Reads what is on disk and starts the tasks. They end with `stop`.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub fn start(core: EventualCore, stop: CancellationToken) -> Result<Eventual, Error> {
        let region = RegionId(core.descriptor.id);
        let mut on_disk = EventualState::load_all(region, core.engine.as_ref())?;
        // The bound of the clock on disk covers what this store gave out, not what it merged or applied.
        let applied = core.cell.with(|summary| summary.last_stamp);
        let merged = on_disk.values().map(|state| state.last_stamp).max();
        core.clock.observe(applied.max(merged.unwrap_or_default()));
        // The others are the log's, which may change them before it hands them over.
        core.cell.with(|summary| {
            let states = &summary.namespaces;
            on_disk.retain(|namespace, _| {
                let state = states.get(namespace);
                state.is_some_and(|state| state.mode == Mode::Eventual)
            });
        });
        let (sender, inbox) = mpsc::channel(INBOX);
        let load = Load::new(core.max_inflight);
        let shared = Arc::new(Shared {
            core,
            region,
            written: RwLock::new(on_disk.clone()),
            durable: RwLock::new(on_disk),
            batches: watch::channel(0).0,
            synced: watch::channel(0).0,
            reports: Mutex::default(),
            held: Mutex::default(),
            sender,
            load,
            stop,
        });
        tasks::spawn(writer::run(shared.clone(), inbox));
        tasks::spawn(keeper::run(shared.clone()));
        Ok(Eventual(shared))
    }

    /// Writes, and answers each operation, acknowledged as the namespace's durability says. `Err` is for
    /// all of them. All operations belong to one namespace.
    pub async fn write(
        &self,
        ops: Vec<WriteOp>,
        deadline: Instant,
    ) -> Result<Vec<WriteResult>, Error> {
        let bytes = ops
            .iter()
            .map(|op| op.key.len() + op.value.len() + 64)
            .sum();
        let slots = self.0.load.take(ops.len(), bytes)?;
        let (reply, answer) = oneshot::channel();
        let job = Job::Writes {
            ops,
            reply,
            _slots: slots,
        };
        let sent = self.0.sender.try_send(job);
        sent.map_err(|_| overloaded().outcome(Outcome::NotApplied))?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answered) => answered.unwrap_or_else(|_| {
                Err(
                    Error::new(Reason::OutcomeUnknown, "this store is shutting down")
                        .outcome(Outcome::Unknown),
                )
            }),
            Err(_) => Err(Error::new(
                Reason::DeadlineExceeded,
                format!(
                    "the deadline passed while the write was under way; {}",
                    Outcome::Unknown.clause("it")
                ),
            )
            .outcome(Outcome::Unknown)),
        }
    }

    /// Whether a namespace was eventual before the last seal of it here.
    pub fn was_eventual(&self, namespace: NamespaceId) -> bool {
        self.0.core.cell.with(|summary| {
            let state = summary.namespaces.get(&namespace);
            state.is_some_and(|state| !state.fences.is_empty())
        })
    }

    /// What a write that is strong by now was answered when its namespace was eventual; `None`: it is new,
    /// as far as this replica knows.
    ///
    /// # Errors
    /// Reading failed.
    pub fn answered_before(&self, op: &WriteOp) -> Result<Option<WriteResult>, Error> {
        let namespace = NamespaceId(op.namespace_id);
        let Some(id) = RequestId::new(op.request_id.clone()) else {
            return Ok(None);
        };
        let engine = self.0.core.engine.as_ref();
        let asked = Asked {
            region: layout::beside(self.0.region),
            namespace,
            fingerprint: fingerprint(op),
            id: &id,
            now: Stamp::ZERO,
        };
        let ids = load_ids(self.0.region, engine)?;
        let found = ids.look_up(engine, &BTreeMap::new(), asked, u64::MAX)?;
        let outcome = match found {
            Ok(Known::Answered(applied)) => write_result::Outcome::Applied(applied),
            Err(error) if error.reason == Reason::InvalidArgument => {
                write_result::Outcome::Error(error.to_wire())
            }
            // What is too old to be told here, the log's own table judges.
            Ok(Known::New) | Err(_) => return Ok(None),
        };
        Ok(Some(WriteResult {
            outcome: Some(outcome),
        }))
    }

    /// Operations of clients that wait now.
    pub fn waiting(&self) -> usize {
        self.0.load.waiting()
    }

    /// What readers see of a namespace.
    pub fn state(&self, namespace: NamespaceId) -> EventualState {
        self.0.state(namespace)
    }

    /// Up to which number all writes of each origin can be read here.
    pub fn vector(&self, namespace: NamespaceId) -> VersionVector {
        self.0.state(namespace).vector
    }

    /// The time by which a record counts as expired for readers here.
    pub fn read_stamp(&self) -> Stamp {
        Stamp::pack(self.0.core.clock.stamping_ms(), 0, self.0.core.me)
    }

    /// Tells of every batch that can be read from then on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.batches.subscribe()
    }

    /// How old the data here may be at most; `None`: not known, since another replica was not heard of.
    pub fn staleness(&self, namespace: NamespaceId) -> Option<Duration> {
        let others = self.0.others();
        let reports = self.0.reports.lock();
        reports.staleness(namespace, &others, Instant::now())
    }

    /// Streams of other stores that are held for their stamps.
    pub fn held(&self) -> BTreeMap<(NamespaceId, StoreId), Hold> {
        self.0.held.lock().clone()
    }

    /// What this replica says of its eventual namespaces.
    pub fn reports(&self) -> Vec<raft::NamespaceReport> {
        let now = Instant::now();
        let now_ms = self.0.core.clock.unix_ms();
        let held = self.held();
        self.0
            .served()
            .into_iter()
            .map(|(namespace, served)| {
                let state = self.0.durable_state(namespace);
                let lags = self.0.lags(namespace, &state, now, now_ms);
                raft::NamespaceReport {
                    namespace_id: namespace.0,
                    mode: rdb_proto::convert::mode_to_wire(Mode::Eventual),
                    epoch: served.epoch.0,
                    digest: state.digest.to_bytes().to_vec().into(),
                    keys: state.keys,
                    bytes: state.bytes,
                    vector: vector_to_wire(&state.vector),
                    conflicts: state.conflicts,
                    conflicts_dropped: state.conflicts_dropped,
                    lags,
                    expired_through_ms: state.expired_through_ms,
                    partial: !state.partial.is_empty(),
                    held: held_streams(&held, namespace, now),
                    sealing: !served.open,
                    ..Default::default()
                }
            })
            .collect()
    }

    /// A page of the conflict log: the next rows whose keys begin with the prefix, the oldest first. It is
    /// bounded in rows, in their bytes, and in how many rows are looked at, so it may be empty and yet
    /// have another behind it.
    ///
    /// # Errors
    /// Reading failed.
    pub fn conflicts(&self, read: &raft::ReadConflicts) -> Result<raft::ReadConflictsReply, Error> {
        let after = read.after.as_ref();
        let after = after.map(|after| (Stamp(after.stamp), &after.key[..]));
        let range = layout::conflicts_after(self.0.region, NamespaceId(read.namespace_id), after);
        let mut page = raft::ReadConflictsReply::default();
        let mut bytes = 0;
        let found = self.0.core.engine.scan(Family::Conflicts, &range, false);
        for (looked_at, item) in found.enumerate() {
            let full = page.rows.len() >= read.limit as usize || bytes >= CONFLICT_PAGE_BYTES;
            if (full || looked_at >= CONFLICT_PAGE_ROWS) && page.last.is_some() {
                page.more = true;
                break;
            }
            let stored = item?.1;
            let stored_bytes = stored.len();
            let row = conflicts::decode(self.0.region, stored)?;
            page.last = Some(raft::ConflictPlace {
                stamp: row.stamp,
                key: row.key.clone(),
            });
            if row.key.starts_with(&read.prefix) {
                bytes += stored_bytes;
                page.rows.push(row);
            }
        }
        Ok(page)
    }

    /// Removes rows of the conflict log here.
    ///
    /// # Errors
    /// They could not be removed for good.
    pub async fn remove_conflicts(
        &self,
        namespace: NamespaceId,
        rows: Vec<(bytes::Bytes, Stamp)>,
    ) -> Result<(), Error> {
        self.0
            .do_job(|reply| Job::RemoveConflicts {
                namespace,
                rows,
                reply,
            })
            .await
    }

    /// A request of another store about eventual namespaces; others come back. Queued when this returns.
    #[allow(
        clippy::result_large_err,
        reason = "the request comes back for whoever knows it, and is not an error"
    )]
    pub fn handle(
        &self,
        from: StoreId,
        request: peer_request::Body,
    ) -> Result<
        futures::future::BoxFuture<'static, Result<peer_response::Body, Error>>,
        peer_request::Body,
    > {
        let shared = self.0.clone();
        match request {
            peer_request::Body::PushOrigins(push) => {
                let (reply, answer) = oneshot::channel();
                let sent = shared.sender.try_send(Job::Push {
                    from,
                    runs: push.runs,
                    reply,
                });
                Ok(Box::pin(async move {
                    sent.map_err(|_| overloaded())?;
                    answer
                        .await
                        .unwrap_or_else(|_| Err(leaving()))
                        .map(peer_response::Body::PushOrigins)
                }))
            }
            peer_request::Body::AskSealing(ask) => Ok(Box::pin(async move {
                let reply = sealing::answer(&shared, ask).await?;
                Ok(peer_response::Body::Sealing(reply))
            })),
            peer_request::Body::FetchOrigins(fetch) => Ok(Box::pin(async move {
                let reply = sealing::fetched(&shared, &fetch)?;
                Ok(peer_response::Body::FetchOrigins(reply))
            })),
            peer_request::Body::Reports(_) => Ok(Box::pin(async move {
                Ok(peer_response::Body::Reports(shared.own_reports()))
            })),
            peer_request::Body::CompareRange(compare) => Ok(Box::pin(async move {
                let reply = copy::compare(shared, compare).await?;
                Ok(peer_response::Body::CompareRange(reply))
            })),
            peer_request::Body::ReadConflicts(read) => {
                let eventual = self.clone();
                Ok(Box::pin(async move {
                    let page = eventual.conflicts(&read)?;
                    Ok(peer_response::Body::ReadConflicts(page))
                }))
            }
            peer_request::Body::RemoveConflicts(remove) => {
                let eventual = self.clone();
                Ok(Box::pin(async move {
                    let namespace = NamespaceId(remove.namespace_id);
                    let rows = remove.rows.into_iter();
                    let rows = rows.map(|row| (row.key, Stamp(row.stamp))).collect();
                    eventual.remove_conflicts(namespace, rows).await?;
                    let reply = raft::RemoveConflictsReply {};
                    Ok(peer_response::Body::RemoveConflicts(reply))
                }))
            }
            other => Err(other),
        }
    }
}

impl Shared {
    /// The eventual namespaces of this region, as the log says.
    fn served(&self) -> BTreeMap<NamespaceId, Served> {
        self.core.cell.with(|summary| {
            if summary.fresh_copy.is_some() {
                return BTreeMap::new();
            }
            summary
                .namespaces
                .iter()
                .filter(|(namespace, _)| !summary.replacing.contains(namespace))
                .filter_map(|(namespace, state)| Some((*namespace, Served::of(state)?)))
                .collect()
        })
    }

    /// How a namespace is served here: `None` where it is not eventual, or not known yet.
    fn serves(&self, namespace: NamespaceId) -> Option<Served> {
        self.core.cell.with(|summary| {
            if summary.fresh_copy.is_some() || summary.replacing.contains(&namespace) {
                return None;
            }
            Served::of(summary.namespaces.get(&namespace)?)
        })
    }

    /// What readers see of a namespace.
    fn state(&self, namespace: NamespaceId) -> EventualState {
        self.known(&self.written, namespace)
    }

    /// What is on disk for good of a namespace.
    fn durable_state(&self, namespace: NamespaceId) -> EventualState {
        self.known(&self.durable, namespace)
    }

    /// What is known of a namespace, if that is of the eventual time that the log says. Else the log has
    /// changed its row meanwhile, which is durable as the log is.
    fn known(&self, states: &States, namespace: NamespaceId) -> EventualState {
        let last_seal = self.core.cell.with(|summary| {
            let state = summary.namespaces.get(&namespace)?;
            (state.mode == Mode::Eventual).then(|| state.last_seal())
        });
        if let (Some(known), Some(last_seal)) = (states.read().get(&namespace), last_seal)
            && known.last_seal == last_seal
        {
            return known.clone();
        }
        match EventualState::load(self.region, namespace, self.core.engine.as_ref()) {
            Ok(state) => {
                if last_seal == Some(state.last_seal) {
                    let mut states = states.write();
                    let known = states.entry(namespace).or_insert_with(|| state.clone());
                    // Unless somebody else was faster, and went on from there.
                    if known.last_seal != state.last_seal {
                        known.clone_from(&state);
                    }
                    return known.clone();
                }
                state
            }
            Err(error) => {
                let why = format!("namespace {namespace} cannot be read: {error}");
                let _ = self.core.fatal.send(Some(why));
                EventualState::default()
            }
        }
    }

    /// Lets go of what is in memory of namespaces that were deleted. Their rows went with the entry.
    fn forget_dropped(&self) {
        let mut known: BTreeSet<NamespaceId> = self.written.read().keys().copied().collect();
        known.extend(self.durable.read().keys());
        self.core.cell.with(|summary| {
            known.retain(|namespace| summary.dropped.contains_key(namespace));
        });
        for namespace in known {
            self.written.write().remove(&namespace);
            self.durable.write().remove(&namespace);
            self.reports.lock().drop_namespace(namespace);
            self.held.lock().retain(|(of, _), _| *of != namespace);
        }
    }

    /// The other replicas, learners too.
    fn others(&self) -> BTreeSet<StoreId> {
        let mut replicas = self.core.quorum.replicas();
        replicas.remove(&self.core.me);
        replicas
    }

    /// Up to where this replica has applied the log, and the other replicas as of then. `None`: it has applied
    /// no entry that names itself, and then nobody else would be no reason to forget anything.
    fn applied(&self) -> (u64, Option<BTreeSet<StoreId>>) {
        let (index, mut replicas) = self
            .core
            .cell
            .with(|summary| (summary.applied_index, summary.members().all));
        let is_named = replicas.remove(&self.core.me);
        (index, is_named.then_some(replicas))
    }

    /// This replica's report of a namespace, of what is synced.
    fn own_report(&self, epoch: Epoch, state: &EventualState) -> Report {
        Report {
            epoch,
            vector: state.vector.clone(),
            digest: state.digest,
            expired_through_ms: state.expired_through_ms,
            partial: !state.partial.is_empty(),
            truncated: state.truncated.clone(),
        }
    }

    fn own_reports(&self) -> raft::ReportsReply {
        let reports = self
            .served()
            .into_iter()
            .map(|(namespace, served)| {
                let report = self.own_report(served.epoch, &self.durable_state(namespace));
                raft::EventualReport {
                    namespace_id: namespace.0,
                    epoch: report.epoch.0,
                    vector: vector_to_wire(&report.vector),
                    digest: report.digest.to_bytes().to_vec().into(),
                    expired_through_ms: report.expired_through_ms,
                    partial: report.partial,
                    truncated: vector_to_wire(&report.truncated),
                }
            })
            .collect();
        // The index last: what a report says was there before an entry beyond the index was applied, so a store
        // that such an entry names begins with all of it.
        raft::ReportsReply {
            applied_index: self.core.cell.applied_index(),
            reports,
        }
    }

    /// How far the other replicas are behind, as this one sees them.
    fn lags(
        &self,
        namespace: NamespaceId,
        state: &EventualState,
        now: Instant,
        now_ms: u64,
    ) -> Vec<raft::ReplicaLag> {
        let reports = self.reports.lock();
        self.others()
            .into_iter()
            .filter_map(|store| {
                let lag = reports.lag(namespace, store, &state.vector)?;
                let age = reports.age(namespace, store, now).unwrap_or_default();
                let oldest_ms = lag
                    .first_missing
                    .iter()
                    .filter_map(|(origin, sequence)| {
                        self.accepted_ms(namespace, origin, sequence, state)
                    })
                    .map(|accepted_ms| now_ms.saturating_sub(accepted_ms))
                    .max();
                Some(raft::ReplicaLag {
                    store_id: u32::from(store.get()),
                    writes: lag.writes,
                    oldest_ms: oldest_ms.unwrap_or(0),
                    contact_age_ms: age.as_millis() as u64,
                })
            })
            .collect()
    }

    /// When a write was accepted, if its entry is here.
    fn accepted_ms(
        &self,
        namespace: NamespaceId,
        origin: StoreId,
        sequence: u64,
        state: &EventualState,
    ) -> Option<u64> {
        use prost::Message;
        let last = state.vector.get(origin);
        let range = layout::entries(self.region, namespace, origin, sequence, last);
        let first = self
            .core
            .engine
            .scan(Family::OriginLog, &range, false)
            .next()?;
        let entry = raft::OriginEntry::decode(first.ok()?.1).ok()?;
        (entry.stamp > 0).then(|| Stamp(entry.stamp).unix_ms())
    }

    /// Puts a job into the writer's queue and waits until it is done.
    async fn do_job<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Job,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.sender.send(job(reply)).await.map_err(|_| leaving())?;
        answer.await.unwrap_or_else(|_| Err(leaving()))
    }
}

fn held_streams(
    held: &BTreeMap<(NamespaceId, StoreId), Hold>,
    namespace: NamespaceId,
    now: Instant,
) -> Vec<raft::HeldStream> {
    let of_namespace = held.iter().filter(|((of, _), _)| *of == namespace);
    of_namespace
        .map(|((_, origin), hold)| raft::HeldStream {
            origin: u32::from(origin.get()),
            held_ms: now.saturating_duration_since(hold.since).as_millis() as u64,
            ahead_ms: hold.ahead_ms,
        })
        .collect()
}

fn leaving() -> Error {
    Error::new(Reason::NotReady, "this store is shutting down")
}

fn overloaded() -> Error {
    Error::new(
        Reason::Overloaded,
        "too much waits in this region already; slow down",
    )
    .with("limit", INBOX)
}

/// Reads a report of another store; `None` where it makes no sense.
fn report_from_wire(wire: &raft::EventualReport) -> Option<(NamespaceId, Report)> {
    use rdb_proto::convert::vector;
    let report = Report {
        epoch: Epoch(wire.epoch),
        vector: vector(&wire.vector)?,
        digest: Digest::from_bytes(&wire.digest)?,
        expired_through_ms: wire.expired_through_ms,
        partial: wire.partial,
        truncated: vector(&wire.truncated)?,
    };
    Some((NamespaceId(wire.namespace_id), report))
}
