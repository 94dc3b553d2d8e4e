//! The one task that changes the data of a region's eventual namespaces.
//!
//! Owns the order of changes: everything that waits goes into one batch, written as a whole and then
//! synced; the next batch begins once this one can be read. Answers go out when their stage is reached:
//! a relaxed write once it is written, everything else once it is synced. What is asked is `writer/job.rs`, what
//! may be done of it `writer/round.rs`, what a change does [`Fold`]'s business.
//!
//! Invariants:
//! - a write that is refused left no trace; one whose batch failed half-way is `unknown`;
//! - one batch at a time is in the making, and sees all that was written before it.

mod job;
mod round;

use super::Shared;
use crate::error::{Error, Outcome};
use crate::eventual::Fold;
use crate::eventual::state::load_ids;
use crate::region::request_ids::IdTable;
use job::Answer;
pub(super) use job::{Job, SealWork};
use parking_lot::Mutex;
use rdb_storage::StorageError;
use rdb_types::{Epoch, NamespaceId, Stamp};
use round::Round;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Jobs in one batch at most.
const JOBS_PER_BATCH: usize = 1024;
/// Bytes of one batch at which no further job is taken into it.
const BATCH_BYTES: usize = 4 << 20;

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
    let written_to: BTreeSet<NamespaceId> = writes.iter().filter_map(Job::written_to).collect();
    let mut jobs = others.into_iter().chain(writes);
    let mut stamped = false;
    while let Some(job) = jobs.next() {
        if is_write(&job) && !std::mem::replace(&mut stamped, true) {
            shared.core.clock.observe(round.fold.largest());
            // What a namespace has seen, also of its strong time, is behind the stamps that it gives.
            for namespace in &written_to {
                round.enter(*namespace);
            }
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
