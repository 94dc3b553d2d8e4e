//! Load by several clients at once, with everything that they saw recorded.
//!
//! Owns: clients that read, write, delete and compare-and-swap a few shared keys (a history for the
//! linearizability checker) and put keys of their own (a set: nothing acknowledged may be missing), and
//! the times at which writes were acknowledged. Knows nothing of faults: the test makes them meanwhile.
//!
//! Every value is a number that is written once. So a version stands for one value, and "the version
//! was another one" is "the register held another value".

use super::cluster::Cluster;
use super::wait::eventually;
use rdb_check::{Call, Op, Outcome, Recorder, Token, check_linearizable, set};
use rdb_client::{
    Change, Client, ClientError, ClientOptions, PutOptions, ReadOptions, ScanOptions, WriteOptions,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a load may take to make progress; on an idle machine it is a fraction of a second.
const MORE: Duration = Duration::from_secs(40);

/// What the load is.
#[derive(Clone, Debug)]
pub(crate) struct LoadOptions {
    /// Callers at the same time. Each prefers another store, and goes to the next when that is gone.
    pub(crate) clients: usize,
    /// Shared keys.
    pub(crate) keys: u64,
    /// Between two calls of one client: histories stay short enough to be judged.
    pub(crate) pace: Duration,
    /// How long one call may take, its repeats included.
    pub(crate) timeout: Duration,
    pub(crate) namespace: String,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            clients: 6,
            keys: 5,
            pace: Duration::from_millis(3),
            timeout: Duration::from_secs(5),
            namespace: "default".into(),
        }
    }
}

/// Load under way.
pub(crate) struct Load {
    options: LoadOptions,
    recorder: Recorder,
    stop: CancellationToken,
    clients: JoinSet<Seen>,
    /// Writes acknowledged so far.
    acknowledged: Arc<AtomicUsize>,
}

/// What one client saw, beside the history.
#[derive(Default)]
struct Seen {
    acknowledged: BTreeSet<String>,
    unknown: BTreeSet<String>,
    refused: BTreeSet<String>,
    acks: Vec<Ack>,
    errors: BTreeMap<String, u64>,
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ack {
    pub(crate) invoked: Instant,
    pub(crate) answered: Instant,
}

/// What all clients saw.
pub(crate) struct Loaded {
    pub(crate) calls: Vec<Call>,
    pub(crate) acks: Vec<Ack>,
    /// Own keys that are certainly there, may be there, are certainly not.
    pub(crate) acknowledged: BTreeSet<String>,
    pub(crate) unknown: BTreeSet<String>,
    pub(crate) refused: BTreeSet<String>,
    /// Failed calls, by reason.
    pub(crate) errors: BTreeMap<String, u64>,
    options: LoadOptions,
    recorder: Recorder,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster, options: LoadOptions) -> Load {
        let recorder = Recorder::new();
        let stop = CancellationToken::new();
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for number in 0..options.clients {
            let endpoints = cluster.endpoints_from(number % cluster.len());
            let worker = Worker {
                number: number as u64,
                client: Client::new(ClientOptions {
                    request_timeout: options.timeout,
                    // Half of them stay with the store that they know, so that forwarding is under load, too.
                    discover: number.is_multiple_of(2),
                    ..ClientOptions::new(endpoints)
                })
                .unwrap(),
                recorder: recorder.clone(),
                options: options.clone(),
                chance: Chance(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(number as u64 + 1)),
                seen: Seen::default(),
                acknowledged: acknowledged.clone(),
                written: 0,
            };
            clients.spawn(worker.run(stop.clone()));
        }
        Load {
            options,
            recorder,
            stop,
            clients,
            acknowledged,
        }
    }

    /// Waits until so many more writes were acknowledged: what follows happens under load, on a slow
    /// machine, too.
    pub(crate) async fn more(&self, count: usize) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + count;
        eventually(
            MORE,
            &format!("{count} more writes are acknowledged"),
            async || {
                let now = self.acknowledged.load(Ordering::Relaxed);
                if now >= goal {
                    Ok(())
                } else {
                    Err(format!("{} are missing", goal - now))
                }
            },
        )
        .await;
    }

    /// Lets calls that are under way end.
    pub(crate) async fn stop(self) -> Loaded {
        self.stop.cancel();
        let seen = self.clients.join_all().await;
        let mut loaded = Loaded {
            calls: Vec::new(),
            acks: Vec::new(),
            acknowledged: BTreeSet::new(),
            unknown: BTreeSet::new(),
            refused: BTreeSet::new(),
            errors: BTreeMap::new(),
            options: self.options,
            recorder: self.recorder,
        };
        for seen in seen {
            loaded.acks.extend(seen.acks);
            loaded.acknowledged.extend(seen.acknowledged);
            loaded.unknown.extend(seen.unknown);
            loaded.refused.extend(seen.refused);
            for (reason, count) in seen.errors {
                *loaded.errors.entry(reason).or_default() += count;
            }
        }
        loaded.acks.sort_by_key(|ack| ack.answered);
        loaded.calls = loaded.recorder.calls();
        loaded
    }
}

impl Loaded {
    /// Reads every shared key once more at each store, and judges everything. Prints what there was.
    pub(crate) async fn judge(mut self, cluster: &Cluster) {
        for store in 0..cluster.len() {
            let client =
                Client::new(ClientOptions::new([cluster.addr(store).to_string()])).unwrap();
            for key in 0..self.options.keys {
                let token = self.recorder.invoke(1000 + store as u64, key, Op::Read);
                let answer = client
                    .get(
                        &self.options.namespace,
                        shared_key(key),
                        ReadOptions::linearizable(),
                    )
                    .await
                    .unwrap();
                self.recorder
                    .complete(token, Outcome::Read(number(&answer)));
            }
        }
        self.calls = self.recorder.calls();
        let unknown = self
            .calls
            .iter()
            .filter(|call| call.outcome == Outcome::Unknown && call.op != Op::Read)
            .count();
        println!(
            "{} calls on shared keys ({unknown} of unknown outcome), {} writes acknowledged, errors {:?}",
            self.calls.len(),
            self.acks.len(),
            self.errors
        );
        assert!(
            self.acks.len() >= 100,
            "a load that does next to nothing proves nothing"
        );
        let calls = self.calls.clone();
        let verdict = tokio::task::spawn_blocking(move || check_linearizable(&calls))
            .await
            .unwrap();
        assert!(verdict.is_linearizable(), "{verdict}");

        let found = self.own_keys(&cluster.client()).await;
        let report = set::check(&self.acknowledged, &self.unknown, &found);
        println!("{report}");
        assert!(report.is_ok(), "{report}");
        let sneaked: Vec<&String> = self.refused.intersection(&found).collect();
        assert!(
            sneaked.is_empty(),
            "these were refused as not applied, and are there: {sneaked:?}"
        );
    }

    async fn own_keys(&self, client: &Client) -> BTreeSet<String> {
        use futures::StreamExt;
        let options = ScanOptions {
            prefix: OWN.into(),
            keys_only: true,
            ..Default::default()
        };
        let entries: Vec<_> = client
            .scan(&self.options.namespace, options)
            .collect()
            .await;
        entries
            .into_iter()
            .map(|entry| String::from_utf8(entry.unwrap().key.to_vec()).unwrap())
            .collect()
    }

    /// From `fault` to the answer of the first write that was begun after it.
    pub(crate) fn outage(&self, fault: Instant) -> Duration {
        let first = self
            .acks
            .iter()
            .filter(|ack| ack.invoked >= fault)
            .map(|ack| ack.answered)
            .min();
        first
            .expect("no write was acknowledged any more")
            .duration_since(fault)
    }

    /// The longest time between two acknowledged writes.
    pub(crate) fn longest_silence(&self) -> Duration {
        self.acks
            .windows(2)
            .map(|pair| pair[1].answered - pair[0].answered)
            .max()
            .unwrap_or_default()
    }
}

const OWN: &str = "own/";

fn shared_key(key: u64) -> String {
    format!("shared/{key}")
}

fn number(answer: &rdb_client::GetResponse) -> Option<u64> {
    answer
        .found
        .then(|| std::str::from_utf8(&answer.value).unwrap().parse().unwrap())
}

/// Small deterministic chance: the same client makes the same choices in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

struct Worker {
    number: u64,
    client: Client,
    recorder: Recorder,
    options: LoadOptions,
    chance: Chance,
    seen: Seen,
    acknowledged: Arc<AtomicUsize>,
    written: u64,
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) -> Seen {
        while !stop.is_cancelled() {
            let key = self.chance.below(self.options.keys);
            match self.chance.below(10) {
                0..=2 => drop(self.read(key).await),
                3..=5 => self.write(key).await,
                6..=7 => self.compare_and_swap(key).await,
                8 if self.chance.below(4) == 0 => self.delete(key).await,
                _ => self.put_own().await,
            }
            tokio::time::sleep(self.options.pace).await;
        }
        self.seen
    }

    /// Every third client names no write. Its writes are repeated only while they are certainly not
    /// applied: a store that says so wrongly applies one twice, or one that was given up.
    fn anonymous(&self) -> bool {
        self.number % 3 == 2
    }

    fn put_options(&self) -> PutOptions {
        PutOptions {
            no_request_id: self.anonymous(),
            ..PutOptions::default()
        }
    }

    fn delete_options(&self) -> WriteOptions {
        WriteOptions {
            no_request_id: self.anonymous(),
            ..WriteOptions::default()
        }
    }

    fn fresh_value(&mut self) -> u64 {
        self.written += 1;
        self.number << 32 | self.written
    }

    /// Version and value; `None`: the read failed.
    async fn read(&mut self, key: u64) -> Option<(u64, Option<u64>)> {
        let token = self.recorder.invoke(self.number, key, Op::Read);
        match self
            .client
            .get(
                &self.options.namespace,
                shared_key(key),
                ReadOptions::default(),
            )
            .await
        {
            Ok(answer) => {
                let value = number(&answer);
                self.recorder.complete(token, Outcome::Read(value));
                Some((answer.version, value))
            }
            Err(error) => {
                self.count(&error);
                self.recorder.complete(token, Outcome::NotApplied);
                None
            }
        }
    }

    async fn write(&mut self, key: u64) {
        let value = self.fresh_value();
        let token = self.recorder.invoke(self.number, key, Op::Write(value));
        let invoked = Instant::now();
        let answer = self
            .client
            .put(
                &self.options.namespace,
                shared_key(key),
                value.to_string(),
                self.put_options(),
            )
            .await;
        self.ended(token, invoked, answer.map(|_| Outcome::Done));
    }

    async fn delete(&mut self, key: u64) {
        let token = self.recorder.invoke(self.number, key, Op::Delete);
        let invoked = Instant::now();
        let answer = self
            .client
            .delete(
                &self.options.namespace,
                shared_key(key),
                self.delete_options(),
            )
            .await;
        self.ended(token, invoked, answer.map(|_| Outcome::Done));
    }

    async fn compare_and_swap(&mut self, key: u64) {
        let Some((version, from)) = self.read(key).await else {
            return;
        };
        let to = self.fresh_value();
        let token = self.recorder.invoke(self.number, key, Op::Cas { from, to });
        let invoked = Instant::now();
        let change = Change::Put(to.to_string().into());
        let answer = self
            .client
            .compare_and_swap(
                &self.options.namespace,
                shared_key(key),
                version,
                change,
                self.put_options(),
            )
            .await;
        self.ended(
            token,
            invoked,
            answer.map(|swapped| {
                if swapped.success {
                    Outcome::Done
                } else {
                    Outcome::CasLost
                }
            }),
        );
    }

    fn ended(&mut self, token: Token, invoked: Instant, answer: Result<Outcome, ClientError>) {
        match answer {
            Ok(outcome) => {
                self.recorder.complete(token, outcome);
                self.acknowledge(invoked);
            }
            Err(error) => {
                self.count(&error);
                if error.outcome == rdb_client::Outcome::NotApplied {
                    self.recorder.complete(token, Outcome::NotApplied);
                }
            }
        }
    }

    /// A key that nobody else writes, and this client only once.
    async fn put_own(&mut self) {
        let turn = self.fresh_value() & 0xFFFF_FFFF;
        let key = format!("{OWN}{:03}/{turn:08}", self.number);
        let invoked = Instant::now();
        match self
            .client
            .put(
                &self.options.namespace,
                key.clone(),
                "x",
                self.put_options(),
            )
            .await
        {
            Ok(_) => {
                self.acknowledge(invoked);
                self.seen.acknowledged.insert(key);
            }
            Err(error) => {
                self.count(&error);
                let certain = error.outcome == rdb_client::Outcome::NotApplied;
                if certain {
                    self.seen.refused.insert(key)
                } else {
                    self.seen.unknown.insert(key)
                };
            }
        }
    }

    fn acknowledge(&mut self, invoked: Instant) {
        let answered = Instant::now();
        self.seen.acks.push(Ack { invoked, answered });
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&mut self, error: &ClientError) {
        let reason = error
            .reason
            .map_or_else(|| format!("{:?}", error.kind), |reason| reason.to_string());
        *self.seen.errors.entry(reason).or_default() += 1;
    }
}
