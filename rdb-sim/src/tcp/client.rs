//! What clients of this mode do: `rdb-client`, with its retries, its shared streams and its discovery.
//!
//! Owns the callers of one client and the auditor that comes after healing. What they see goes into the
//! ledger of [`crate::workload`]. Knows nothing of faults.
//!
//! Invariant: request ids and pauses come from here, because those of the client are drawn from the system.

use super::bugs::Bug;
use super::host::PORT;
use super::net::Cable;
use crate::invariants::{in_time, liveness};
use crate::workload::{
    Ledger, PUTS_NAMESPACE, REGISTER_NAMESPACE, key, number, number_of, value_of,
};
use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rdb_check::{Op, Outcome};
use rdb_client::proto::kv;
use rdb_client::{
    Change, Client, ClientError, ClientOptions, PutOptions, ReadOptions, RetryPolicy, ScanOptions,
    WriteOptions,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Registers that are in use at the same time, and how long. As in the other mode.
const REGISTERS: u64 = 8;
const ERA_MS: u64 = 8_000;
/// How long one call may take, all its attempts included.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the stores with these names, the preferred one first.
///
/// # Errors
/// The names are none.
pub fn connect(stores: &[String], batch: bool, cable: &Cable) -> Result<Client, ClientError> {
    let options = ClientOptions {
        request_timeout: TIMEOUT,
        // Jitter is drawn from the system: without it a seed is one run.
        retry: RetryPolicy {
            jitter: false,
            ..RetryPolicy::default()
        },
        batch,
        ..ClientOptions::new(stores.iter().map(|name| format!("{name}:{PORT}")))
    };
    Client::with_dial(options, Arc::new(cable.clone()))
}

/// One caller of a client that it shares with others.
pub struct Caller {
    /// Its number in the history.
    pub number: u64,
    /// What it calls with.
    pub client: Client,
    /// Where it says what it saw.
    pub ledger: Ledger,
    /// Its decisions.
    pub chance: Xoshiro256PlusPlus,
    /// A rule that is broken on purpose.
    pub bug: Option<Bug>,
    known: BTreeMap<u64, (u64, Option<u64>)>,
    session: Bytes,
    requests: u64,
}

impl Caller {
    /// The caller of this number.
    pub fn new(number: u64, seed: u64, client: Client, ledger: Ledger, bug: Option<Bug>) -> Caller {
        Caller {
            number,
            client,
            ledger,
            chance: Xoshiro256PlusPlus::seed_from_u64(seed ^ number.wrapping_mul(0xca11)),
            bug,
            known: BTreeMap::new(),
            session: Bytes::new(),
            requests: 0,
        }
    }

    /// One operation after the other until the run is `until_ms` old, with pauses of `pace` on average.
    pub async fn run(mut self, until_ms: u64, pace: Duration) {
        while self.ledger.trace.now_ms() < until_ms {
            let pause = self.chance.random_range(0..=2 * pace.as_micros() as u64);
            sleep(Duration::from_micros(pause)).await;
            match self.chance.random_range(0..100) {
                0..30 => self.read().await,
                30..50 => self.write().await,
                50..66 => self.swap().await,
                66..72 => self.delete().await,
                72..84 => self.put_once().await,
                84..97 => self.read_stale().await,
                _ => self.scan().await,
            }
        }
    }

    fn register(&mut self) -> u64 {
        let era = self.ledger.trace.now_ms() / ERA_MS;
        era * REGISTERS + self.chance.random_range(0..REGISTERS)
    }

    /// Mostly an id; none at all where the client must not repeat by itself.
    fn request_id(&mut self) -> Option<Bytes> {
        self.requests += 1;
        let id = format!("caller {} request {}", self.number, self.requests);
        let named = self.bug != Some(Bug::RepeatedWithoutId) && self.chance.random_bool(0.8);
        named.then(|| id.into())
    }

    /// Notes how a call ended, and judges whether it did in time.
    fn ended<T>(&self, what: &str, began: Instant, answer: &Result<T, ClientError>) {
        let took_ms = began.elapsed().as_millis() as u64;
        let verdict = in_time::check(what, TIMEOUT.as_millis() as u64, took_ms);
        self.ledger.findings.check(in_time::NAME, verdict);
        let reason = answer.as_ref().err().map(reason_of);
        let (number, how) = (self.number, reason.as_deref().unwrap_or("done"));
        self.ledger
            .trace
            .note(format_args!("caller {number}: {what}: {how}"));
        if let Some(reason) = reason {
            self.ledger.refused(&reason);
        }
    }

    /// A write: once, but again under its id where that is known to be safe (or, planted, where it is not).
    async fn write_with<T>(
        &mut self,
        what: &str,
        id: Option<&Bytes>,
        write: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, Outcome> {
        let mut unknown = false;
        for _ in 0..2 {
            let began = Instant::now();
            let answer = write(&self.client).await;
            self.ended(what, began, &answer);
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            unknown |= error.outcome != rdb_client::Outcome::NotApplied;
            let careless = self.bug == Some(Bug::RepeatedWithoutId);
            if !(unknown && (id.is_some() || careless)) {
                break;
            }
        }
        if unknown {
            self.ledger.unknown();
            Err(Outcome::Unknown)
        } else {
            Err(Outcome::NotApplied)
        }
    }

    /// Repeats an answered write now and then: the answer must be the same one.
    async fn once<T>(
        &mut self,
        what: &str,
        id: Option<Bytes>,
        first: String,
        again: impl AsyncFn(&Client) -> Result<T, ClientError>,
        show: impl Fn(&T) -> String,
    ) {
        let Some(id) = id else { return };
        self.ledger.answered_once(&id, first);
        if self.chance.random_range(0..10) == 0 {
            let began = Instant::now();
            let answer = again(&self.client).await;
            self.ended(what, began, &answer);
            if let Ok(answer) = answer {
                self.ledger.answered_once(&id, show(&answer));
            }
        }
    }

    async fn read(&mut self) {
        let register = self.register();
        let (asked_ms, session) = (self.ledger.trace.now_ms(), self.session.clone());
        let options = ReadOptions {
            session: session.clone(),
            ..ReadOptions::linearizable()
        };
        let token = self.ledger.recorder.invoke(self.number, register, Op::Read);
        let began = Instant::now();
        let answer = self
            .client
            .get(REGISTER_NAMESPACE, key(register), options)
            .await;
        self.ended("read", began, &answer);
        match answer {
            Ok(answer) => {
                let value = value_of(&answer);
                self.ledger.recorder.complete(token, Outcome::Read(value));
                self.known.insert(register, (answer.version, value));
                self.ledger
                    .answered(answer.receipt.as_ref(), asked_ms, &session);
                self.remember(answer.receipt);
            }
            // A namespace that nobody has written to yet holds nothing.
            Err(error) if reason_of(&error) == "NAMESPACE_NOT_FOUND" => {
                self.ledger.recorder.complete(token, Outcome::Read(None));
            }
            Err(_) => drop(token),
        }
    }

    async fn read_stale(&mut self) {
        let register = self.register();
        let (asked_ms, session) = (self.ledger.trace.now_ms(), self.session.clone());
        let options = ReadOptions {
            session: session.clone(),
            ..ReadOptions::stale()
        };
        let began = Instant::now();
        let answer = self
            .client
            .get(REGISTER_NAMESPACE, key(register), options)
            .await;
        self.ended("stale read", began, &answer);
        if let Ok(answer) = answer {
            self.ledger
                .answered(answer.receipt.as_ref(), asked_ms, &session);
            self.remember(answer.receipt);
        }
    }

    async fn write(&mut self) {
        let (register, value, id) = (self.register(), self.ledger.value(), self.request_id());
        let put = async |client: &Client| {
            let options = put_options(id.as_ref());
            client
                .put(REGISTER_NAMESPACE, key(register), number(value), options)
                .await
        };
        let op = Op::Write(value);
        let token = self.ledger.recorder.invoke(self.number, register, op);
        let ended = self.write_with("write", id.as_ref(), put).await;
        let outcome = ended.as_ref().map_or_else(Clone::clone, |_| Outcome::Done);
        self.ledger.recorder.complete(token, outcome);
        let Ok(answer) = ended else { return };
        self.known.insert(register, (answer.version, Some(value)));
        self.ledger.acknowledged(answer.receipt.as_ref());
        let show = |answer: &kv::PutResponse| format!("version {}", answer.version);
        let first = show(&answer);
        self.remember(answer.receipt);
        self.once("write again", id.clone(), first, put, show).await;
    }

    async fn swap(&mut self) {
        let (register, value, id) = (self.register(), self.ledger.value(), self.request_id());
        let (expected, from) = self.known.get(&register).copied().unwrap_or((0, None));
        let swap = async |client: &Client| {
            let (change, options) = (Change::Put(number(value)), put_options(id.as_ref()));
            client
                .compare_and_swap(REGISTER_NAMESPACE, key(register), expected, change, options)
                .await
        };
        let op = Op::Cas { from, to: value };
        let token = self.ledger.recorder.invoke(self.number, register, op);
        let ended = self.write_with("swap", id.as_ref(), swap).await;
        let outcome = ended.as_ref().map_or_else(Clone::clone, |answer| {
            if answer.success {
                Outcome::Done
            } else {
                Outcome::CasLost
            }
        });
        self.ledger.recorder.complete(token, outcome);
        let Ok(answer) = ended else { return };
        if answer.success {
            self.known
                .insert(register, (answer.new_version, Some(value)));
            self.ledger.acknowledged(answer.receipt.as_ref());
        } else {
            self.known.remove(&register);
        }
        let show = |answer: &kv::CompareAndSwapResponse| {
            format!("{} {}", answer.success, answer.new_version)
        };
        let first = show(&answer);
        self.remember(answer.receipt);
        self.once("swap again", id.clone(), first, swap, show).await;
    }

    async fn delete(&mut self) {
        let (register, id) = (self.register(), self.request_id());
        let delete = async |client: &Client| {
            let options = WriteOptions {
                no_request_id: id.is_none(),
                request_id: id.clone(),
                timeout: None,
            };
            client
                .delete(REGISTER_NAMESPACE, key(register), options)
                .await
        };
        let token = self
            .ledger
            .recorder
            .invoke(self.number, register, Op::Delete);
        let ended = self.write_with("delete", id.as_ref(), delete).await;
        let outcome = ended.as_ref().map_or_else(Clone::clone, |_| Outcome::Done);
        self.ledger.recorder.complete(token, outcome);
        if let Ok(answer) = ended {
            self.known.insert(register, (0, None));
            self.ledger.acknowledged(answer.receipt.as_ref());
            self.remember(answer.receipt);
        }
    }

    async fn put_once(&mut self) {
        let (value, id) = (self.ledger.value(), self.request_id());
        let put = async |client: &Client| {
            let options = put_options(id.as_ref());
            client
                .put(PUTS_NAMESPACE, key(value), number(value), options)
                .await
        };
        let ended = self.write_with("put", id.as_ref(), put).await;
        let fate = ended.as_ref().map_or_else(Clone::clone, |_| Outcome::Done);
        self.ledger.put_once(value, &fate);
        if let Ok(answer) = ended {
            self.ledger.acknowledged(answer.receipt.as_ref());
            self.remember(answer.receipt);
        }
    }

    async fn scan(&mut self) {
        let options = ScanOptions {
            start: key(self.chance.random_range(0..10_000)),
            limit: 50,
            reverse: self.chance.random_bool(0.3),
            ..ScanOptions::default()
        };
        let began = Instant::now();
        let answer = scan(&self.client, options).await;
        self.ended("scan", began, &answer);
    }

    fn remember(&mut self, receipt: Option<kv::Receipt>) {
        if let Some(receipt) = receipt {
            self.session = receipt.session;
        }
    }
}

/// Writes and reads at a store until it serves, and judges how long that took. `client` knows no other one.
pub async fn probe(client: &Client, ledger: &Ledger, store: &str, healed_ms: u64) {
    let limit_ms = healed_ms + liveness::WITHIN_MS;
    let mut took_ms = None;
    while took_ms.is_none() && ledger.trace.now_ms() < limit_ms {
        if serves(client, ledger, store).await.is_ok() {
            took_ms = Some(ledger.trace.now_ms() - healed_ms);
        }
        sleep(Duration::from_millis(20)).await;
    }
    let verdict = liveness::check(&format!("serving at {store}"), took_ms);
    ledger.findings.check(liveness::NAME, verdict);
}

async fn serves(client: &Client, ledger: &Ledger, store: &str) -> Result<(), ClientError> {
    for namespace in [REGISTER_NAMESPACE, PUTS_NAMESPACE] {
        // At both ends of the key space, so that every region is asked.
        for end in ["a", "z"] {
            let (key, value) = (format!("{end} {store}"), ledger.value());
            let id = Bytes::from(format!("probe {value}"));
            let options = put_options(Some(&id));
            client
                .put(namespace, key.clone(), number(value), options)
                .await?;
            let options = WriteOptions {
                request_id: Some(format!("probe {value} delete").into()),
                ..WriteOptions::default()
            };
            client.delete(namespace, key, options).await?;
        }
    }
    Ok(())
}

/// Reads every register that was ever used once more, and the keys that were put once. `client` knows one
/// store only.
///
/// # Errors
/// It does not answer.
pub async fn read_all(client: &Client, ledger: &Ledger, process: u64) -> Result<(), ClientError> {
    let registers: BTreeSet<u64> = ledger.calls().iter().map(|call| call.key).collect();
    for register in registers {
        let token = ledger.recorder.invoke(process, register, Op::Read);
        let options = ReadOptions::linearizable();
        let answer = client
            .get(REGISTER_NAMESPACE, key(register), options)
            .await?;
        let read = Outcome::Read(value_of(&answer));
        ledger.recorder.complete(token, read);
    }
    let entries = scan(client, ScanOptions::default()).await?;
    let found = entries.iter().map(|entry| number_of(&entry.value));
    ledger.check_puts(&found.collect());
    Ok(())
}

async fn scan(client: &Client, options: ScanOptions) -> Result<Vec<kv::KeyValue>, ClientError> {
    let mut pages = client.scan(PUTS_NAMESPACE, options);
    let mut found = Vec::new();
    while let Some(entry) = pages.next().await {
        found.push(entry?);
    }
    Ok(found)
}

fn put_options(id: Option<&Bytes>) -> PutOptions {
    PutOptions {
        no_request_id: id.is_none(),
        request_id: id.cloned(),
        ..PutOptions::default()
    }
}

/// In a word.
fn reason_of(error: &ClientError) -> String {
    match error.reason {
        Some(reason) => reason.to_string(),
        None => format!("{:?}", error.kind),
    }
}
