//! The one task that changes the data of a region's eventual namespaces.
//!
//! Owns the order of changes: everything that waits goes into one batch, written as a whole and then
//! synced; the next batch begins once this one can be read. Answers go out when their stage is reached:
//! a relaxed write once it is written, everything else once it is synced. What a change does is
//! [`Fold`]'s business.
//!
//! Invariants:
//! - a write that is refused left no trace; one whose batch failed half-way is `unknown`;
//! - a relaxed write is acknowledged early only under a number below the synced bound, so that a crash
//!   cannot give the number to another write;
//! - an entry whose stamp is wild holds its origin's stream and touches neither clock nor disk.

use super::{Hold, Shared, leaving};
use crate::error::{Error, Outcome};
use crate::eventual::state::load_ids;
use crate::eventual::{Fold, Merged, conflicts};
use crate::peer::load::Slots;
use crate::region::layout::covers;
use crate::region::request_ids::IdTable;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::convert::vector_to_wire;
use rdb_proto::raft::{
    NamespaceVector, OriginEntry, OriginRun, PushOriginsReply, StoredRecord, WriteOp, WriteResult,
    write_result,
};
use rdb_storage::StorageError;
use rdb_types::{
    Durability, Epoch, GlobalKey, NamespaceId, Reason, Record, Stamp, StoreId, VersionVector,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Jobs in one batch at most.
const JOBS_PER_BATCH: usize = 1024;
/// Bytes of one batch at which no further job is taken into it.
const BATCH_BYTES: usize = 4 << 20;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer is asked to do.
pub(super) enum Job {
    /// Writes of clients.
    Writes {
        ops: Vec<WriteOp>,
        reply: Reply<Vec<WriteResult>>,
        _slots: Slots,
    },
    /// Entries that another store brought.
    Push {
        from: StoreId,
        runs: Vec<OriginRun>,
        reply: Reply<PushOriginsReply>,
    },
    /// Records of a copy. `of` is what the other had applied; `whole` ends the copy: all of that is here.
    Copied {
        namespace: NamespaceId,
        /// In which epoch it was asked for: what was under way across a switch is not merged.
        epoch: Epoch,
        records: Vec<StoredRecord>,
        of: VersionVector,
        whole: Option<VersionVector>,
        reply: Reply<()>,
    },
    /// Regular duties: bury what expired, forget what is settled, keep the logs short.
    Keep {
        namespace: NamespaceId,
        expired_through_ms: u64,
        settled: Option<VersionVector>,
        log_bytes: u64,
        /// Whether all of it was done.
        reply: Reply<bool>,
    },
    /// What the sealing of a namespace asks of this replica; done only while it is being sealed.
    Seal {
        namespace: NamespaceId,
        epoch: Epoch,
        work: SealWork,
        /// Whether all of it was done.
        reply: Reply<bool>,
    },
    /// Conflicts that were restored.
    RemoveConflicts {
        namespace: NamespaceId,
        rows: Vec<(Bytes, Stamp)>,
        reply: Reply<()>,
    },
}

/// Work for a seal.
pub(super) enum SealWork {
    /// None: what was under way before it is done when it is answered.
    Look,
    /// Take entries of an origin up to the fence.
    Gather {
        origin: StoreId,
        entries: Vec<Bytes>,
        fence: VersionVector,
    },
    /// Bury what expires up to this time.
    Bury { cut_ms: u64 },
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Writes { ops, .. } => ops.iter().map(|op| op.key.len() + op.value.len()).sum(),
            Job::Push { runs, .. } => runs
                .iter()
                .flat_map(|run| run.entries.iter().map(Bytes::len))
                .sum(),
            Job::Copied { records, .. } => records.iter().map(|record| record.record.len()).sum(),
            Job::Seal {
                work: SealWork::Gather { entries, .. },
                ..
            } => entries.iter().map(Bytes::len).sum(),
            Job::Keep { .. } | Job::Seal { .. } | Job::RemoveConflicts { .. } => 0,
        }
    }
}

/// What a job came to.
enum Came {
    Writes {
        results: Vec<WriteResult>,
        /// The number of the last of them, where the namespace acknowledges before the sync.
        early: Option<(NamespaceId, u64)>,
    },
    Push(BTreeSet<NamespaceId>),
    Done,
    Kept(bool),
}

/// A job whose outcome waits for its stage.
struct Answer {
    job: Job,
    came: Came,
}

impl Answer {
    fn send(self, shared: &Shared) {
        // Whoever asked may have gone.
        match (self.job, self.came) {
            (Job::Writes { reply, .. }, Came::Writes { results, .. }) => {
                drop(reply.send(Ok(results)));
            }
            (Job::Push { reply, .. }, Came::Push(namespaces)) => {
                let vectors = namespaces
                    .into_iter()
                    .map(|namespace| NamespaceVector {
                        namespace_id: namespace.0,
                        epoch: shared.serves(namespace).map_or(0, |served| served.epoch.0),
                        vector: vector_to_wire(&shared.durable_state(namespace).vector),
                    })
                    .collect();
                drop(reply.send(Ok(PushOriginsReply { vectors })));
            }
            (Job::Copied { reply, .. } | Job::RemoveConflicts { reply, .. }, _) => {
                drop(reply.send(Ok(())));
            }
            (Job::Keep { reply, .. } | Job::Seal { reply, .. }, came) => {
                drop(reply.send(Ok(matches!(came, Came::Kept(true)))));
            }
            (job, _) => job.refuse(&leaving()),
        }
    }

    /// Whether it need not wait for the sync.
    fn is_early(&self, shared: &Shared) -> bool {
        match &self.came {
            Came::Writes {
                early: Some((namespace, last)),
                ..
            } => *last < shared.durable_state(*namespace).sequence_bound,
            _ => false,
        }
    }
}

impl Job {
    fn refuse(self, error: &Error) {
        let error = error.clone();
        match self {
            Job::Writes { reply, .. } => drop(reply.send(Err(error))),
            Job::Push { reply, .. } => drop(reply.send(Err(error))),
            Job::Copied { reply, .. } | Job::RemoveConflicts { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Job::Keep { reply, .. } | Job::Seal { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// Answers that wait for a sync, or the sync that waits for them.
#[derive(Default)]
struct AtSync(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    answers: Vec<Answer>,
    /// What the sync came to, once it did.
    result: Option<Result<(), StorageError>>,
}

impl AtSync {
    /// The batch is synced, or will not be.
    fn synced(&self, shared: &Shared, result: Result<(), StorageError>) {
        let answers = {
            let mut state = self.0.lock();
            state.result = Some(result.clone());
            std::mem::take(&mut state.answers)
        };
        Self::answer(shared, answers, &result);
    }

    fn wait(&self, shared: &Shared, answers: Vec<Answer>) {
        let result = {
            let mut state = self.0.lock();
            match &state.result {
                Some(result) => result.clone(),
                None => {
                    state.answers = answers;
                    return;
                }
            }
        };
        Self::answer(shared, answers, &result);
    }

    fn answer(shared: &Shared, answers: Vec<Answer>, result: &Result<(), StorageError>) {
        match result {
            Ok(()) => answers.into_iter().for_each(|answer| answer.send(shared)),
            Err(error) => {
                let refusal = Error::from(error.clone()).outcome(Outcome::Unknown);
                answers
                    .into_iter()
                    .for_each(|answer| answer.job.refuse(&refusal));
            }
        }
    }
}

/// The task. Ends with the region.
pub(super) async fn run(shared: Arc<Shared>, mut inbox: mpsc::Receiver<Job>) {
    let mut ids = match load_ids(shared.region, shared.core.engine.as_ref()) {
        Ok(ids) => ids,
        Err(error) => return stop_store(&shared, &error.to_string()),
    };
    // Namespaces whose lost numbers were accounted for since the start, and in which eventual time.
    let mut filled = BTreeMap::new();
    for namespace in shared.served().into_keys() {
        if let Err(error) = do_batch(&shared, &mut ids, &mut filled, vec![look(namespace)]).await {
            return stop_store(&shared, &error);
        }
    }
    let mut taken = Vec::new();
    loop {
        let room = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            room = inbox.recv_many(&mut taken, JOBS_PER_BATCH) => room,
        };
        if room == 0 {
            return;
        }
        let mut jobs = taken.drain(..).peekable();
        while jobs.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while bytes < BATCH_BYTES
                && let Some(job) = jobs.next()
            {
                bytes += job.bytes();
                batch.push(job);
            }
            if let Err(error) = do_batch(&shared, &mut ids, &mut filled, batch).await {
                return stop_store(&shared, &error);
            }
        }
    }
}

/// A job that changes nothing but what entering a namespace does.
fn look(namespace: NamespaceId) -> Job {
    Job::Seal {
        namespace,
        epoch: Epoch(0),
        work: SealWork::Look,
        reply: oneshot::channel().0,
    }
}

/// Nothing is taken while a namespace is being sealed.
fn switching(namespace: NamespaceId) -> Error {
    Error::new(
        Reason::ModeSwitching,
        "the namespace is being switched to strong, which takes moments: repeat it",
    )
    .with("namespace", namespace)
    .with("state", "sealing")
    .outcome(Outcome::NotApplied)
}

fn stop_store(shared: &Shared, why: &str) {
    if shared.stop.is_cancelled() {
        return;
    }
    tracing::error!(region = shared.region.0, why, "the region has stopped");
    let _ = shared.core.fatal.send(Some(format!(
        "the eventual namespaces of region {} have stopped: {why}",
        shared.region
    )));
}

/// Does everything in `jobs` in one batch. `Err`: this store may not go on.
async fn do_batch(
    shared: &Arc<Shared>,
    ids: &mut IdTable,
    filled: &mut BTreeMap<NamespaceId, Epoch>,
    jobs: Vec<Job>,
) -> Result<(), String> {
    // No namespace goes to the region's log, or comes from it, before this can be read.
    let _owner = shared.core.cell.own().await;
    let count: u64 = jobs
        .iter()
        .map(|job| match job {
            Job::Writes { ops, .. } => ops.len() as u64,
            _ => 0,
        })
        .sum();
    // What others wrote comes first: a write that is accepted in the same batch says that it has seen it,
    // so its stamp has to be beyond.
    let is_write = |job: &Job| matches!(job, Job::Writes { .. });
    let (writes, others): (Vec<_>, Vec<_>) = jobs.into_iter().partition(is_write);
    let engine = shared.core.engine.clone();
    let mut fold = Fold::new(shared.core.me, shared.region, engine.as_ref(), *ids);
    fold.knowing(shared.core.cell.with(|summary| summary.ids));
    let mut round = Round {
        shared,
        fold: &mut fold,
        filled,
        stamps: Ok(Stamp::ZERO),
        converged: Vec::new(),
    };
    let mut answers = Vec::with_capacity(writes.len() + others.len());
    let mut jobs = others.into_iter().chain(writes);
    let mut stamped = false;
    while let Some(job) = jobs.next() {
        if is_write(&job) && !std::mem::replace(&mut stamped, true) {
            shared.core.clock.observe(round.fold.largest());
            round.stamps = shared.core.clock.stamp_writes(count).await;
        }
        match round.fold(&job) {
            Ok(Ok(came)) => answers.push(Answer { job, came }),
            Ok(Err(refusal)) => job.refuse(&refusal),
            Err(error) => {
                let refusal = Error::from(error.clone()).outcome(Outcome::NotApplied);
                let folded = answers.into_iter().map(|answer| answer.job);
                for job in folded.chain([job]).chain(jobs) {
                    job.refuse(&refusal);
                }
                // Damage is answered; what is sound is served on.
                return if error.is_corruption() {
                    Ok(())
                } else {
                    Err(error.to_string())
                };
            }
        }
    }
    let converged = round.converged;
    let folded = fold.finish();
    if folded.batch.is_empty() {
        for answer in answers {
            answer.send(shared);
        }
        return Ok(());
    }
    shared.core.clock.observe(folded.largest);
    let (written, was_written) = oneshot::channel();
    let at_sync = Arc::new(AtSync::default());
    let (states, committed, waiting) = (folded.states.clone(), shared.clone(), at_sync.clone());
    shared.core.committer.submit_staged(
        folded.batch,
        Box::new(move |result| drop(written.send(result))),
        Box::new(move |result| {
            if result.is_ok() {
                committed.durable.write().extend(states);
                committed.synced.send_if_modified(|batches| {
                    *batches += 1;
                    true
                });
            }
            waiting.synced(&committed, result);
        }),
    );
    match was_written.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let full = error.is_no_space();
            let outcome = if full {
                Outcome::NotApplied
            } else {
                Outcome::Unknown
            };
            let refusal = Error::from(error.clone()).outcome(outcome);
            for answer in answers {
                answer.job.refuse(&refusal);
            }
            return if full { Ok(()) } else { Err(error.to_string()) };
        }
        Err(_) => return Err("the committer has gone".to_owned()),
    }
    *ids = folded.ids;
    let counters = &shared.core.counters;
    for (namespace, state) in &folded.states {
        let before = shared.state(*namespace).conflicts;
        if folded.conflicts > 0 && state.conflicts > before {
            counters.conflicts(*namespace, state.conflicts - before);
        }
    }
    let states = folded.states.iter().map(|(of, state)| (*of, state));
    shared.core.cell.history().written(states, folded.changes);
    shared.written.write().extend(folded.states);
    shared.batches.send_if_modified(|batches| {
        *batches += 1;
        true
    });
    let now_ms = shared.core.clock.unix_ms();
    for (namespace, stamp) in converged {
        let after = Duration::from_millis(now_ms.saturating_sub(stamp.unix_ms()));
        counters.converged(namespace, after);
    }
    let (early, late): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|answer| answer.is_early(shared));
    for answer in early {
        answer.send(shared);
    }
    at_sync.wait(shared, late);
    Ok(())
}

/// A batch under way.
struct Round<'r, 'v> {
    shared: &'r Shared,
    fold: &'r mut Fold<'v>,
    filled: &'r mut BTreeMap<NamespaceId, Epoch>,
    /// The next stamp for a write of a client, or why there is none.
    stamps: Result<Stamp, Error>,
    converged: Vec<(NamespaceId, Stamp)>,
}

impl Round<'_, '_> {
    /// Brings a namespace in. `None`: it is not served here.
    fn enter(&mut self, namespace: NamespaceId) -> Option<super::Served> {
        let served = self.shared.serves(namespace)?;
        if self.fold.state(namespace).is_none() {
            let state = self.shared.state(namespace);
            // Looked up before this batch is written: what is durable is never read off a later one.
            self.shared.durable_state(namespace);
            let (last_seal, last_number) = (state.last_seal, state.sequence_bound);
            self.shared.core.clock.observe(state.last_stamp);
            self.fold.with(namespace, || state);
            // Numbers that were acknowledged before their sync may be gone with a crash, and those that were
            // set aside are gone, and somebody may know them. They are never given out again: what is
            // missing of them becomes an empty entry.
            if served.open && self.filled.insert(namespace, last_seal) != Some(last_seal) {
                self.fold.fill(namespace, last_number);
            }
        }
        Some(served)
    }

    /// As [`Round::enter`], where it takes writes.
    fn enter_open(&mut self, namespace: NamespaceId) -> Option<super::Served> {
        self.enter(namespace).filter(|served| served.open)
    }

    fn fold(&mut self, job: &Job) -> Result<Result<Came, Error>, StorageError> {
        match job {
            Job::Writes { ops, .. } => self.writes(ops),
            Job::Push { from, runs, .. } => self.push(*from, runs),
            Job::Copied {
                namespace,
                epoch,
                records,
                of,
                whole,
                ..
            } => {
                let served = self.enter_open(*namespace);
                if served.is_none_or(|served| served.epoch != *epoch) {
                    return Ok(Err(switching(*namespace)));
                }
                self.copied(*namespace, records, of, whole.as_ref())
            }
            Job::Keep {
                namespace,
                expired_through_ms,
                settled,
                log_bytes,
                ..
            } => {
                if self.enter_open(*namespace).is_none() {
                    return Ok(Ok(Came::Kept(true)));
                }
                let mut all = self.fold.expire(*namespace, *expired_through_ms)?;
                if let Some(settled) = settled {
                    all &= self.fold.forget(*namespace, settled)?;
                }
                self.fold.shorten(*namespace, *log_bytes);
                self.bound_conflicts(*namespace)?;
                Ok(Ok(Came::Kept(all)))
            }
            Job::RemoveConflicts {
                namespace, rows, ..
            } => {
                if self.enter_open(*namespace).is_none() {
                    return Ok(Err(switching(*namespace)));
                }
                for (key, stamp) in rows {
                    self.fold.remove_conflict(*namespace, key, *stamp)?;
                }
                Ok(Ok(Came::Done))
            }
            Job::Seal {
                namespace,
                epoch,
                work,
                ..
            } => self.seal(*namespace, *epoch, work),
        }
    }

    fn bound_conflicts(&mut self, namespace: NamespaceId) -> Result<(), StorageError> {
        let policies = self.shared.core.policies.of(namespace);
        let bound_bytes = match policies.conflict_log_bytes {
            0 => conflicts::DEFAULT_BYTES,
            bytes => bytes,
        };
        self.fold.bound_conflicts(namespace, bound_bytes)
    }

    fn retention_ms(&self) -> u64 {
        self.shared.core.request_id_retention.as_millis() as u64
    }

    fn writes(&mut self, ops: &[WriteOp]) -> Result<Result<Came, Error>, StorageError> {
        let mut stamp = match &self.stamps {
            Ok(stamp) => *stamp,
            Err(error) => return Ok(Err(error.clone().outcome(Outcome::NotApplied))),
        };
        let Some(first) = ops.first() else {
            return Ok(Ok(Came::Done));
        };
        let namespace = NamespaceId(first.namespace_id);
        let served = self.enter(namespace);
        self.fold.prefetch(
            ops.iter()
                .map(|op| GlobalKey::new(namespace, &op.key))
                .collect(),
        )?;
        let relaxed = self.shared.core.policies.of(namespace).durability == Durability::Relaxed;
        let retention_ms = self.retention_ms();
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            let outcome = match self.admit(op, namespace, served) {
                Err(error) => Err(error),
                Ok(served) => self
                    .fold
                    .accept(op, served.epoch, stamp, relaxed, retention_ms)?,
            };
            stamp = stamp.next();
            results.push(WriteResult {
                outcome: Some(match outcome {
                    Ok(applied) => write_result::Outcome::Applied(applied),
                    Err(error) => write_result::Outcome::Error(error.to_wire()),
                }),
            });
        }
        self.stamps = Ok(stamp);
        let last = self
            .fold
            .state(namespace)
            .map_or(0, |state| state.vector.get(self.shared.core.me));
        Ok(Ok(Came::Writes {
            results,
            early: relaxed.then_some((namespace, last)),
        }))
    }

    fn admit(
        &self,
        op: &WriteOp,
        namespace: NamespaceId,
        served: Option<super::Served>,
    ) -> Result<super::Served, Error> {
        let changed = || {
            Error::new(
                Reason::ModeChanged,
                "the namespace was switched while this write was under way; repeat it",
            )
            .with("namespace", namespace)
            .with("region", self.shared.region)
            .outcome(Outcome::NotApplied)
        };
        // It is strong by now.
        let served = served.ok_or_else(|| self.with_state(changed(), namespace))?;
        if !served.open {
            let quorum = &self.shared.core.quorum;
            if !quorum.available() {
                return Err(quorum.lost(Some((Some("the write"), Outcome::NotApplied))));
            }
            return Err(switching(namespace)
                .with("region", self.shared.region)
                .with("epoch", served.epoch));
        }
        if op.epoch != served.epoch.0 || op.namespace_id != namespace.0 {
            return Err(self.with_state(changed(), namespace));
        }
        let global = GlobalKey::new(namespace, &op.key);
        if !covers(&self.shared.core.descriptor, global.as_bytes()) {
            return Err(Error::new(
                Reason::NotReady,
                format!(
                    "region {} does not hold this key; try again",
                    self.shared.region
                ),
            )
            .outcome(Outcome::NotApplied));
        }
        Ok(served)
    }

    /// A refusal that tells what the log says of a namespace.
    fn with_state(&self, error: Error, namespace: NamespaceId) -> Error {
        let state = self.shared.core.cell.with(|summary| {
            let state = summary.namespaces.get(&namespace)?;
            Some((state.epoch, state.mode))
        });
        match state {
            Some((epoch, mode)) => error.with("epoch", epoch).with("state", mode),
            None => error,
        }
    }

    fn push(
        &mut self,
        from: StoreId,
        runs: &[OriginRun],
    ) -> Result<Result<Came, Error>, StorageError> {
        let mut namespaces = BTreeSet::new();
        for run in runs {
            let namespace = NamespaceId(run.namespace_id);
            namespaces.insert(namespace);
            // One that is not known here yet, or of another epoch, is told what this replica has, and
            // nothing of it is taken.
            if let Some(served) = self.enter_open(namespace)
                && served.epoch.0 == run.epoch
                && let Err(error) = self.run(from, namespace, run)?
            {
                return Ok(Err(error));
            }
        }
        Ok(Ok(Came::Push(namespaces)))
    }

    /// Merges a run up to the first entry that cannot be taken.
    fn run(
        &mut self,
        from: StoreId,
        namespace: NamespaceId,
        run: &OriginRun,
    ) -> Result<Result<(), Error>, StorageError> {
        let Some(origin) = StoreId::new(u64::from(run.origin)) else {
            return Ok(Err(Error::invalid("origin", "that is not a store")));
        };
        let mut entries = Vec::with_capacity(run.entries.len());
        for encoded in &run.entries {
            match OriginEntry::decode(encoded.clone()) {
                Ok(entry) => entries.push((entry, encoded.clone())),
                Err(error) => return Ok(Err(Error::invalid("entries", error.to_string()))),
            }
        }
        self.fold.prefetch(
            entries
                .iter()
                .filter(|(entry, _)| entry.filler_from == 0)
                .map(|(entry, _)| GlobalKey::new(namespace, &entry.key))
                .collect(),
        )?;
        let retention_ms = self.retention_ms();
        for (entry, encoded) in entries {
            if origin == self.shared.core.me {
                let own = self
                    .fold
                    .state(namespace)
                    .map_or(0, |state| state.vector.get(origin));
                if entry.sequence > own {
                    self.forgotten(from, namespace, entry.sequence, own);
                }
                continue;
            }
            let stamp = Stamp(entry.stamp);
            if entry.filler_from == 0 {
                let global = GlobalKey::new(namespace, &entry.key);
                let sound = stamp.store() == Some(origin)
                    && covers(&self.shared.core.descriptor, global.as_bytes());
                if !sound {
                    return Ok(Err(Error::invalid(
                        "entries",
                        "an entry was not stamped by its origin, or lies outside of the region",
                    )));
                }
                if self.is_held(namespace, origin, stamp) {
                    break;
                }
            }
            match self
                .fold
                .merge(namespace, origin, &entry, encoded, retention_ms)?
            {
                Merged::Applied if entry.filler_from == 0 => {
                    self.converged.push((namespace, stamp))
                }
                Merged::Applied | Merged::Known => {}
                Merged::Gap => break,
            }
        }
        self.bound_conflicts(namespace)?;
        Ok(Ok(()))
    }

    /// What a seal asks for: nothing else changes the namespace while it is under way.
    fn seal(
        &mut self,
        namespace: NamespaceId,
        epoch: Epoch,
        work: &SealWork,
    ) -> Result<Result<Came, Error>, StorageError> {
        let served = self.enter(namespace);
        if matches!(work, SealWork::Look) && served.is_some_and(|served| served.open) {
            return Ok(Ok(Came::Kept(true)));
        }
        if served.is_none_or(|served| served.open || served.epoch != epoch) {
            return Ok(Err(Error::new(
                Reason::StaleEpoch,
                format!("namespace {namespace} is not being sealed in epoch {epoch} here"),
            )));
        }
        match work {
            SealWork::Look => Ok(Ok(Came::Kept(true))),
            SealWork::Bury { cut_ms } => {
                let all = self.fold.expire(namespace, *cut_ms)?;
                Ok(Ok(Came::Kept(all)))
            }
            SealWork::Gather {
                origin,
                entries,
                fence,
            } => self.gather(namespace, *origin, entries, fence),
        }
    }

    fn gather(
        &mut self,
        namespace: NamespaceId,
        origin: StoreId,
        entries: &[Bytes],
        fence: &VersionVector,
    ) -> Result<Result<Came, Error>, StorageError> {
        let refuse = |why: &str| {
            Ok(Err(Error::new(
                Reason::NotReady,
                format!("writes of store {origin} cannot be taken for the seal: {why}"),
            )))
        };
        let retention_ms = self.retention_ms();
        for encoded in entries {
            let Ok(entry) = OriginEntry::decode(encoded.clone()) else {
                return refuse("one cannot be read");
            };
            if entry.sequence > fence.get(origin) {
                return refuse("one is beyond the fence");
            }
            let stamp = Stamp(entry.stamp);
            if entry.filler_from == 0 && self.is_held(namespace, origin, stamp) {
                return refuse("one is stamped further ahead than any clock may be");
            }
            let merged =
                self.fold
                    .merge(namespace, origin, &entry, encoded.clone(), retention_ms)?;
            if merged == Merged::Gap {
                return refuse("one before them is missing");
            }
        }
        self.bound_conflicts(namespace)?;
        Ok(Ok(Came::Kept(true)))
    }

    /// Somebody has writes of this store that it does not know: its disk is an old copy. It must not give
    /// the same numbers to other writes.
    fn forgotten(&self, from: StoreId, namespace: NamespaceId, theirs: u64, own: u64) {
        let why = format!(
            "store {from} holds write {theirs} of this store in namespace {namespace}, and this disk ends at {own}: it is older than what the cluster has seen. Was it restored from an older copy? Bring back the directory that was used last, or leave this store out"
        );
        tracing::error!(
            region = self.shared.region.0,
            why,
            "this store cannot go on"
        );
        let _ = self.shared.core.fatal.send(Some(why));
    }

    /// Whether an origin's stream is held for this stamp.
    fn is_held(&self, namespace: NamespaceId, origin: StoreId, stamp: Stamp) -> bool {
        let mut held = self.shared.held.lock();
        let Some(ahead_ms) = self.shared.core.clock.is_wild(stamp) else {
            if held.remove(&(namespace, origin)).is_some() {
                tracing::info!(
                    region = self.shared.region.0,
                    namespace_id = namespace.0,
                    origin = origin.get(),
                    "the stream goes on"
                );
            }
            return false;
        };
        let now = Instant::now();
        let hold = held.entry((namespace, origin)).or_insert_with(|| {
            tracing::error!(
                region = self.shared.region.0,
                namespace_id = namespace.0,
                origin = origin.get(),
                ahead_ms,
                "a write is stamped further ahead than any clock may be: this origin's writes wait. Mend the clock of the store that is wrong"
            );
            self.shared.core.counters.wild_stamp(namespace);
            Hold {
                since: now,
                ahead_ms,
            }
        });
        hold.ahead_ms = ahead_ms;
        true
    }

    fn copied(
        &mut self,
        namespace: NamespaceId,
        records: &[StoredRecord],
        of: &VersionVector,
        whole: Option<&VersionVector>,
    ) -> Result<Result<Came, Error>, StorageError> {
        let mut decoded = Vec::with_capacity(records.len());
        for stored in records {
            let global = GlobalKey::new(namespace, &stored.key);
            let record = match Record::decode(stored.record.clone()) {
                Ok(record) if covers(&self.shared.core.descriptor, global.as_bytes()) => record,
                Ok(_) => {
                    return Ok(Err(Error::invalid(
                        "records",
                        "one lies outside of the region",
                    )));
                }
                Err(error) => return Ok(Err(Error::invalid("records", error.to_string()))),
            };
            if let Some(origin) = record.stamp.store()
                && self.is_held(namespace, origin, record.stamp)
            {
                return Ok(Err(Error::new(
                    Reason::ClockSkew,
                    "a copy holds a stamp that is further ahead than any clock may be",
                )));
            }
            decoded.push((stored.key.clone(), record));
        }
        self.fold.prefetch(
            decoded
                .iter()
                .map(|(key, _)| GlobalKey::new(namespace, key))
                .collect(),
        )?;
        if !self.fold.merge_copied(namespace, decoded, of)? {
            return Ok(Err(Error::new(
                Reason::StaleReplica,
                "the copy is from before a tombstone was dropped here: a newer one is asked for",
            )));
        }
        if let Some(whole) = whole {
            let me = self.shared.core.me;
            let own = self
                .fold
                .state(namespace)
                .map_or(0, |state| state.vector.get(me));
            if whole.get(me) > own {
                self.forgotten(me, namespace, whole.get(me), own);
                return Ok(Err(leaving()));
            }
            self.fold.copied(namespace, whole);
        }
        self.bound_conflicts(namespace)?;
        Ok(Ok(Came::Done))
    }
}
