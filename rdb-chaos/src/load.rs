//! Load by several clients at once, with everything that they saw recorded.
//!
//! Owns: clients that read, write, delete and compare-and-swap a few shared keys (a history for the
//! linearizability checker) and put keys of their own (a set: nothing acknowledged may be missing), and
//! the times at which writes were acknowledged. Knows nothing of faults: they are made meanwhile. What
//! was seen is judged in [`judge`].
//!
//! Every value is a number that is written once. So a version stands for one value, and "the version
//! was another one" is "the register held another value".
//!
//! Shared keys change with each **era**, so that the history of one key stays short enough to be judged
//! however long the load runs.

pub mod judge;

use crate::ChaosError;
use crate::dice::Dice;
use crate::registers::{Failed, Registers};
use crate::wait::eventually;
use parking_lot::Mutex;
use rdb_check::{Op, Outcome, Recorder, Token};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use judge::{Judgement, Loaded};

/// How long a load may take to make progress; on an idle machine it is a fraction of a second.
const MORE: Duration = Duration::from_secs(40);

/// What the load is.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Callers at the same time. Each prefers another store, and goes to the next when that is gone.
    pub clients: usize,
    /// Further callers that know one store each.
    pub pinned: usize,
    /// Shared keys of an era.
    pub keys: u64,
    /// Between two calls of one client: histories stay short enough to be judged.
    pub pace: Duration,
    /// How long one call may take, its repeats included.
    pub timeout: Duration,
    /// Where the keys are.
    pub namespace: String,
    /// What the clients choose.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            clients: 6,
            pinned: 0,
            keys: 5,
            pace: Duration::from_millis(3),
            timeout: Duration::from_secs(5),
            namespace: "default".into(),
            seed: 0,
        }
    }
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// Before it was sent.
    pub invoked: Instant,
    /// When the answer was there.
    pub answered: Instant,
    /// Whether the write brought a request id, as a client's does unless it is told not to.
    pub named: bool,
}

/// What the clients saw, beside the history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Own keys that are certainly there, may be there, are certainly not.
    pub(crate) acknowledged: BTreeSet<String>,
    pub(crate) unknown: BTreeSet<String>,
    pub(crate) refused: BTreeSet<String>,
    pub(crate) acks: Vec<Ack>,
    /// Answered reads of each client.
    pub(crate) reads: BTreeMap<u64, usize>,
    /// Failed calls, by reason.
    pub(crate) errors: BTreeMap<String, u64>,
    /// The first answer that no store may give.
    pub(crate) nonsense: Option<String>,
}

/// What all clients and their owner share.
#[derive(Clone)]
struct Shared {
    options: LoadOptions,
    recorder: Recorder,
    seen: Arc<Mutex<Seen>>,
    acknowledged: Arc<AtomicUsize>,
    era: Arc<AtomicU64>,
}

/// Load under way. Dropping it ends it.
pub struct Load {
    shared: Shared,
    stop: CancellationToken,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts a caller for each of these clients.
    pub fn start<R: Registers>(clients: Vec<R>, options: LoadOptions) -> Load {
        let shared = Shared {
            options,
            recorder: Recorder::new(),
            seen: Arc::default(),
            acknowledged: Arc::default(),
            era: Arc::default(),
        };
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        for (number, client) in (0..).zip(clients) {
            let worker = Worker {
                number,
                client,
                dice: Dice::new(shared.options.seed.wrapping_mul(1000).wrapping_add(number)),
                shared: shared.clone(),
                written: 0,
            };
            running.spawn(worker.run(stop.clone()));
        }
        Load {
            shared,
            stop,
            clients: running,
        }
    }

    /// Waits until so many more writes were acknowledged: what follows happens under load, on a slow
    /// machine, too.
    ///
    /// # Errors
    ///
    /// When that takes longer than any machine should need.
    pub async fn more(&self, count: usize) -> Result<(), ChaosError> {
        let goal = self.shared.acknowledged.load(Ordering::Relaxed) + count;
        let what = format!("{count} more writes are acknowledged");
        eventually(MORE, &what, async || {
            match goal.saturating_sub(self.shared.acknowledged.load(Ordering::Relaxed)) {
                0 => Ok(()),
                missing => Err(format!(
                    "{missing} are missing; errors so far {:?}",
                    self.shared.seen.lock().errors
                )),
            }
        })
        .await
    }

    /// Waits until the client of this number has read so many more times.
    ///
    /// # Errors
    ///
    /// When that takes longer than any machine should need.
    pub async fn more_reads_of(&self, client: u64, count: usize) -> Result<(), ChaosError> {
        let reads = || self.shared.seen.lock().reads.get(&client).copied();
        let goal = reads().unwrap_or(0) + count;
        let what = format!("client {client} reads {count} more times");
        eventually(MORE, &what, async || match reads().unwrap_or(0) {
            enough if enough >= goal => Ok(()),
            few => Err(format!("{few} of {goal}")),
        })
        .await
    }

    /// From here on the clients use other shared keys.
    pub fn next_era(&self) {
        self.shared.era.fetch_add(1, Ordering::Relaxed);
    }

    /// From `since` to the answer of the first write with a request id that was begun after it; `None`:
    /// none was acknowledged yet. Writes without one go on where the table of ids refuses everything.
    pub fn outage(&self, since: Instant) -> Option<Duration> {
        outage(&self.shared.seen.lock().acks, since)
    }

    /// As [`Load::outage`], waiting for it.
    ///
    /// # Errors
    ///
    /// When no write was acknowledged within `limit` of `since`.
    pub async fn writes_again(
        &self,
        since: Instant,
        limit: Duration,
        after: &str,
    ) -> Result<Duration, ChaosError> {
        loop {
            match self.outage(since) {
                Some(outage) if outage <= limit => return Ok(outage),
                Some(outage) => {
                    return Err(ChaosError::Broken(format!(
                        "writes were taken again only {outage:.1?} after {after}, not within {limit:?}"
                    )));
                }
                None if since.elapsed() > limit => {
                    return Err(ChaosError::Broken(format!(
                        "no write with a request id was acknowledged within {limit:?} after {after}; failed calls so far {:?}",
                        self.shared.seen.lock().errors
                    )));
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Failed calls so far, by reason.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.shared.seen.lock().errors.clone()
    }

    /// The own keys that were acknowledged by now: every one must be found from here on.
    pub fn acknowledged(&self) -> BTreeSet<String> {
        self.shared.seen.lock().acknowledged.clone()
    }

    /// Lets calls that are under way end.
    pub async fn stop(mut self) -> Loaded {
        self.stop.cancel();
        // A client that panicked is a defect of the harness, and told as one by `judge`.
        let mut panics = Vec::new();
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                panics.push(error.to_string());
            }
        }
        let mut seen = std::mem::take(&mut *self.shared.seen.lock());
        seen.acks.sort_by_key(|ack| ack.answered);
        Loaded {
            seen,
            panics,
            options: self.shared.options.clone(),
            eras: self.shared.era.load(Ordering::Relaxed) + 1,
            recorder: self.shared.recorder.clone(),
        }
    }
}

pub(crate) fn outage(acks: &[Ack], since: Instant) -> Option<Duration> {
    let later = acks.iter().filter(|ack| ack.named && ack.invoked >= since);
    later.map(|ack| ack.answered.duration_since(since)).min()
}

/// The prefix of the keys that are put once.
pub(crate) const OWN: &str = "own/";

pub(crate) fn shared_key(key: u64) -> String {
    format!("shared/{key:06}")
}

struct Worker<R> {
    number: u64,
    client: R,
    dice: Dice,
    shared: Shared,
    written: u64,
}

impl<R: Registers> Worker<R> {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let keys = self.shared.options.keys;
            let era = self.shared.era.load(Ordering::Relaxed);
            let key = era * keys + self.dice.below(keys);
            match self.dice.below(10) {
                0..=2 => drop(self.read(key).await),
                3..=5 => self.write(key).await,
                6..=7 => self.compare_and_swap(key).await,
                8 if self.dice.below(4) == 0 => self.delete(key).await,
                _ => self.put_own().await,
            }
            tokio::time::sleep(self.shared.options.pace).await;
        }
    }

    fn fresh_value(&mut self) -> u64 {
        self.written += 1;
        self.number << 32 | self.written
    }

    /// Version and value; `None`: the read failed.
    async fn read(&self, key: u64) -> Option<(u64, Option<u64>)> {
        let token = self.shared.recorder.invoke(self.number, key, Op::Read);
        match self.client.read(shared_key(key)).await {
            Ok((version, value)) => {
                self.shared.recorder.complete(token, Outcome::Read(value));
                *self
                    .shared
                    .seen
                    .lock()
                    .reads
                    .entry(self.number)
                    .or_default() += 1;
                Some((version, value))
            }
            Err(failed) => {
                self.count(&failed);
                self.shared.recorder.complete(token, Outcome::NotApplied);
                None
            }
        }
    }

    async fn write(&mut self, key: u64) {
        let value = self.fresh_value();
        let token = self
            .shared
            .recorder
            .invoke(self.number, key, Op::Write(value));
        let invoked = Instant::now();
        let answer = self.client.write(shared_key(key), value).await;
        self.ended(token, invoked, answer.map(|()| Outcome::Done));
    }

    async fn delete(&mut self, key: u64) {
        let token = self.shared.recorder.invoke(self.number, key, Op::Delete);
        let invoked = Instant::now();
        let answer = self.client.delete(shared_key(key)).await;
        self.ended(token, invoked, answer.map(|()| Outcome::Done));
    }

    async fn compare_and_swap(&mut self, key: u64) {
        let Some((version, from)) = self.read(key).await else {
            return;
        };
        let to = self.fresh_value();
        let op = Op::Cas { from, to };
        let token = self.shared.recorder.invoke(self.number, key, op);
        let invoked = Instant::now();
        let answer = self.client.swap(shared_key(key), version, to).await;
        let outcome = answer.map(|swapped| {
            if swapped {
                Outcome::Done
            } else {
                Outcome::CasLost
            }
        });
        self.ended(token, invoked, outcome);
    }

    fn ended(&self, token: Token, invoked: Instant, answer: Result<Outcome, Failed>) {
        match answer {
            Ok(outcome) => {
                self.shared.recorder.complete(token, outcome);
                self.acknowledge(invoked, None);
            }
            Err(failed) => {
                self.count(&failed);
                if failed.not_applied {
                    self.shared.recorder.complete(token, Outcome::NotApplied);
                }
            }
        }
    }

    /// A key that nobody else writes, and this client only once.
    async fn put_own(&mut self) {
        let turn = self.fresh_value();
        let key = format!("{OWN}{:03}/{:08}", self.number, turn & 0xFFFF_FFFF);
        let invoked = Instant::now();
        match self.client.write(key.clone(), turn).await {
            Ok(()) => self.acknowledge(invoked, Some(key)),
            Err(failed) => {
                self.count(&failed);
                let mut seen = self.shared.seen.lock();
                if failed.not_applied {
                    seen.refused.insert(key)
                } else {
                    seen.unknown.insert(key)
                };
            }
        }
    }

    fn acknowledge(&self, invoked: Instant, key: Option<String>) {
        let answered = Instant::now();
        let mut seen = self.shared.seen.lock();
        seen.acks.push(Ack {
            invoked,
            answered,
            named: self.client.names_writes(),
        });
        seen.acknowledged.extend(key);
        self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, failed: &Failed) {
        let mut seen = self.shared.seen.lock();
        *seen.errors.entry(failed.reason.clone()).or_default() += 1;
        if failed.reason == crate::registers::NOT_A_NUMBER {
            seen.nonsense.get_or_insert_with(|| failed.text.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_without_a_request_id_do_not_end_an_outage() {
        let began = Instant::now();
        let ack = |ms, named| Ack {
            invoked: began + Duration::from_millis(ms),
            answered: began + Duration::from_millis(ms + 5),
            named,
        };
        let since = began + Duration::from_millis(10);
        let acks = [ack(0, true), ack(20, false)];
        assert_eq!(outage(&acks, since), None);
        let acks = [ack(0, true), ack(20, false), ack(300, true)];
        assert_eq!(outage(&acks, since), Some(Duration::from_millis(295)));
    }
}
