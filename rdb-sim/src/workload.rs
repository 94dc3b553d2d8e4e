//! What clients do during a run, and what they saw.
//!
//! Owns the clients: registers that they share (read, written, swapped, deleted), keys that are put once,
//! scans, sessions, repeats. Each thing they see goes to the invariant that judges it. Knows nothing of
//! faults.
//!
//! Every value is a number that is written once, so a version stands for one value, and "the version was
//! another one" is "the register held another value".

use crate::door::{Door, Operation, Refusal};
use crate::invariants::{Findings, answered_once, freshness, in_time, nothing_lost};
use crate::trace::Trace;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rdb_check::{Call, Op, Outcome, Recorder};
use rdb_proto::kv::{self, Consistency, compare_and_swap_request::Change, kv_server::Kv};
use rdb_server::session::SessionToken;
use rdb_types::{RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Request;

/// Registers that are in use at the same time. They change over time, so that histories stay short
/// enough to be judged.
const REGISTERS: u64 = 8;
/// How long a set of registers is in use.
const ERA_MS: u64 = 8_000;
/// How long a client tries one operation.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a store has for one call: the `request_timeout` of the simulated stores.
pub const ATTEMPT: Duration = Duration::from_secs(3);
/// The namespace of registers; the other one holds the keys that are put once.
pub const REGISTER_NAMESPACE: &str = "registers";
/// The namespace of keys that are put once.
pub const PUTS_NAMESPACE: &str = "puts";

/// What all clients of a run saw; clones are the same.
#[derive(Clone)]
pub struct Ledger {
    /// Where violations go.
    pub findings: Findings,
    /// What happened, for the trace.
    pub trace: Trace,
    pub(crate) recorder: Recorder,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    puts: nothing_lost::Puts,
    freshness: freshness::Freshness,
    answers: answered_once::Answers,
    tally: Tally,
    next_value: u64,
}

/// How calls ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose outcome is not known.
    pub unknown: u64,
    /// Reads that were answered.
    pub read: u64,
    /// Refusals, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Writes that were acknowledged in each simulated second.
    pub by_second: BTreeMap<u64, u64>,
}

impl Ledger {
    /// Nothing was seen yet.
    pub fn new(findings: Findings, trace: Trace) -> Ledger {
        let time = trace.clone();
        let clock = move || time.now().as_nanos() as u64;
        Ledger {
            findings,
            trace,
            recorder: Recorder::with_clock(clock),
            shared: Arc::default(),
        }
    }

    /// The calls on registers.
    pub fn calls(&self) -> Vec<Call> {
        self.recorder.calls()
    }

    /// How calls ended.
    pub fn tally(&self) -> Tally {
        self.shared.lock().tally.clone()
    }

    /// Judges a linearizable scan of the keys that were put once.
    pub fn check_puts(&self, found: &BTreeSet<u64>) {
        let verdict = self.shared.lock().puts.check(found);
        self.findings.check(nothing_lost::NAME, verdict);
    }

    /// A value that was never used.
    pub(crate) fn value(&self) -> u64 {
        let mut shared = self.shared.lock();
        shared.next_value += 1;
        shared.next_value
    }

    /// A write was acknowledged.
    pub(crate) fn acknowledged(&self, receipt: Option<&kv::Receipt>) {
        let now_ms = self.trace.now_ms();
        let mut shared = self.shared.lock();
        shared.tally.acknowledged += 1;
        *shared.tally.by_second.entry(now_ms / 1_000).or_default() += 1;
        if let Some(receipt) = receipt {
            let region = RegionId(receipt.region_id);
            shared
                .freshness
                .acknowledged(region, receipt.revision, now_ms);
        }
    }

    /// A read that was asked at `asked_ms` with this session was answered.
    pub(crate) fn answered(&self, receipt: Option<&kv::Receipt>, asked_ms: u64, session: &Bytes) {
        let mut shared = self.shared.lock();
        shared.tally.read += 1;
        let Some(receipt) = receipt else { return };
        let region = RegionId(receipt.region_id);
        let known = SessionToken::decode(session)
            .filter(|token| token.region() == region)
            .map_or(0, |token| token.revision());
        let verdict = shared.freshness.answered(
            region,
            receipt.revision,
            asked_ms,
            receipt.staleness_bound_ms,
            known,
        );
        self.findings.check(freshness::NAME, verdict);
    }

    /// A call was refused, or had no answer.
    pub(crate) fn refused(&self, reason: &str) {
        let mut shared = self.shared.lock();
        *shared.tally.refused.entry(reason.to_owned()).or_default() += 1;
    }

    /// A write ended without anybody knowing how.
    pub(crate) fn unknown(&self) {
        self.shared.lock().tally.unknown += 1;
    }

    /// What became of a key that is put once.
    pub(crate) fn put_once(&self, key: u64, fate: &Outcome) {
        let puts = &mut self.shared.lock().puts;
        match fate {
            Outcome::NotApplied => puts.refused.insert(key),
            Outcome::Unknown => puts.unknown.insert(key),
            _ => puts.acknowledged.insert(key),
        };
    }

    /// A write with this id was answered like this.
    pub(crate) fn answered_once(&self, id: &Bytes, answer: String) {
        let verdict = self.shared.lock().answers.seen(id, answer);
        self.findings.check(answered_once::NAME, verdict);
    }
}

/// One client.
pub struct Client {
    number: u64,
    door: Door,
    ledger: Ledger,
    stores: Vec<StoreId>,
    chance: Xoshiro256PlusPlus,
    /// What it believes of registers: version and value.
    known: BTreeMap<u64, (u64, Option<u64>)>,
    session: Bytes,
    requests: u64,
}

/// How a write ended for its caller.
enum Ended<T> {
    Answered(T),
    NotApplied,
    Unknown,
}

impl<T> Ended<T> {
    fn outcome(&self, of_answer: impl FnOnce(&T) -> Outcome) -> Outcome {
        match self {
            Ended::Answered(answer) => of_answer(answer),
            Ended::NotApplied => Outcome::NotApplied,
            Ended::Unknown => Outcome::Unknown,
        }
    }
}

impl Client {
    /// The client of this number.
    pub fn new(number: u64, seed: u64, door: Door, ledger: Ledger, stores: Vec<StoreId>) -> Client {
        Client {
            number,
            door,
            ledger,
            stores,
            chance: Xoshiro256PlusPlus::seed_from_u64(seed ^ number.wrapping_mul(0xc11e)),
            known: BTreeMap::new(),
            session: Bytes::new(),
            requests: 0,
        }
    }

    /// One operation after the other until `until`, with pauses of `pace` on average.
    pub async fn run(mut self, until: Instant, pace: Duration) {
        while Instant::now() < until {
            let pause = self.chance.random_range(0..=2 * pace.as_micros() as u64);
            sleep(Duration::from_micros(pause)).await;
            match self.chance.random_range(0..100) {
                0..30 => self.read().await,
                30..50 => self.write().await,
                50..64 => self.swap().await,
                64..70 => self.delete().await,
                70..82 => self.put_once().await,
                82..97 => self.read_stale().await,
                _ => self.scan().await,
            }
        }
    }

    fn register(&mut self) -> u64 {
        let era = self.ledger.trace.now_ms() / ERA_MS;
        era * REGISTERS + self.chance.random_range(0..REGISTERS)
    }

    fn store(&mut self) -> StoreId {
        let at = self.chance.random_range(0..self.stores.len());
        self.stores[at]
    }

    fn request_id(&mut self) -> Bytes {
        self.requests += 1;
        format!("client {} request {}", self.number, self.requests).into()
    }

    /// Calls some store, and judges how long it took to answer.
    async fn attempt<T: Send + 'static>(
        &mut self,
        what: &str,
        operation: Operation<T>,
    ) -> Result<T, Refusal> {
        let store = self.store();
        let began = Instant::now();
        // Longer than the store has: whether it answers by its deadline is what is judged.
        let answer = self.door.call(store, ATTEMPT * 2, operation).await;
        let took_ms = began.elapsed().as_millis() as u64;
        let silent = matches!(&answer, Err(refusal) if !refusal.said && refusal.reason != "no answer in time");
        if !silent {
            let verdict = in_time::check(what, ATTEMPT.as_millis() as u64, took_ms);
            self.ledger.findings.check(in_time::NAME, verdict);
        }
        let (number, ended) = (
            self.number,
            answer.as_ref().err().map(|r| r.reason.as_str()),
        );
        self.ledger.trace.note(format_args!(
            "client {number}: {what} at store {store}: {}",
            ended.unwrap_or("done")
        ));
        if let Err(refusal) = &answer {
            self.ledger.refused(&refusal.reason);
        }
        answer
    }

    /// Tries a write until it is answered, cannot be repeated, or patience is at its end.
    async fn persist<T: Send + 'static>(
        &mut self,
        what: &str,
        repeatable: bool,
        operation: impl Fn() -> Operation<T>,
    ) -> Ended<T> {
        let give_up = Instant::now() + PATIENCE;
        let mut maybe_applied = false;
        loop {
            match self.attempt(what, operation()).await {
                Ok(answer) => return Ended::Answered(answer),
                Err(refusal) => maybe_applied |= refusal.maybe_applied,
            }
            if Instant::now() >= give_up || (maybe_applied && !repeatable) {
                break;
            }
            sleep(Duration::from_millis(self.chance.random_range(5..100))).await;
        }
        if maybe_applied {
            self.ledger.unknown();
            Ended::Unknown
        } else {
            Ended::NotApplied
        }
    }

    /// Repeats a write that was answered, as a client does whose answer was lost: the answer must be the
    /// same one.
    async fn answered_once<T: Send + 'static>(
        &mut self,
        what: &str,
        id: &Bytes,
        first: String,
        operation: Operation<T>,
        show: impl Fn(&T) -> String,
    ) {
        self.ledger.answered_once(id, first);
        if self.chance.random_range(0..10) == 0
            && let Ok(again) = self.attempt(what, operation).await
        {
            self.ledger.answered_once(id, show(&again));
        }
    }

    async fn read(&mut self) {
        let register = self.register();
        let (asked_ms, session) = (self.ledger.trace.now_ms(), self.session.clone());
        let read = kv::ReadOptions {
            consistency: Consistency::Linearizable as i32,
            session: session.clone(),
            seen_epoch: 0,
        };
        let message = kv::GetRequest {
            namespace: REGISTER_NAMESPACE.to_owned(),
            key: key(register),
            read: Some(read),
        };
        let token = self.ledger.recorder.invoke(self.number, register, Op::Read);
        match self.attempt("read", get(message)).await {
            Ok(answer) => {
                let value = value_of(&answer);
                self.ledger.recorder.complete(token, Outcome::Read(value));
                self.known.insert(register, (answer.version, value));
                self.ledger
                    .answered(answer.receipt.as_ref(), asked_ms, &session);
                self.remember(answer.receipt);
            }
            // A namespace that nobody has written to yet holds nothing.
            Err(refusal) if refusal.reason == "NAMESPACE_NOT_FOUND" => {
                self.ledger.recorder.complete(token, Outcome::Read(None));
            }
            Err(_) => drop(token),
        }
    }

    async fn read_stale(&mut self) {
        let register = self.register();
        let (asked_ms, session) = (self.ledger.trace.now_ms(), self.session.clone());
        let message = kv::GetRequest {
            namespace: REGISTER_NAMESPACE.to_owned(),
            key: key(register),
            read: Some(kv::ReadOptions {
                consistency: Consistency::Stale as i32,
                session: session.clone(),
                seen_epoch: 0,
            }),
        };
        if let Ok(answer) = self.attempt("stale read", get(message)).await {
            self.ledger
                .answered(answer.receipt.as_ref(), asked_ms, &session);
            self.remember(answer.receipt);
        }
    }

    async fn write(&mut self) {
        let (register, value) = (self.register(), self.ledger.value());
        let id = self.sometimes_id();
        let message = kv::PutRequest {
            namespace: REGISTER_NAMESPACE.to_owned(),
            key: key(register),
            value: number(value),
            request_id: id.clone(),
            ..Default::default()
        };
        let token = self
            .ledger
            .recorder
            .invoke(self.number, register, Op::Write(value));
        let ended = self
            .persist("write", !id.is_empty(), || put(message.clone()))
            .await;
        self.ledger
            .recorder
            .complete(token, ended.outcome(|_| Outcome::Done));
        let Ended::Answered(answer) = ended else {
            return;
        };
        self.known.insert(register, (answer.version, Some(value)));
        self.ledger.acknowledged(answer.receipt.as_ref());
        self.remember(answer.receipt);
        if !id.is_empty() {
            let show = |answer: &kv::PutResponse| format!("version {}", answer.version);
            let first = format!("version {}", answer.version);
            self.answered_once("write again", &id, first, put(message), show)
                .await;
        }
    }

    async fn swap(&mut self) {
        let (register, value) = (self.register(), self.ledger.value());
        let (expected, from) = self.known.get(&register).copied().unwrap_or((0, None));
        let id = self.sometimes_id();
        let message = kv::CompareAndSwapRequest {
            namespace: REGISTER_NAMESPACE.to_owned(),
            key: key(register),
            expected_version: expected,
            change: Some(Change::Value(number(value))),
            request_id: id.clone(),
            ..Default::default()
        };
        let op = Op::Cas { from, to: value };
        let token = self.ledger.recorder.invoke(self.number, register, op);
        let ended = self
            .persist("swap", !id.is_empty(), || swap(message.clone()))
            .await;
        let outcome = ended.outcome(|answer| {
            if answer.success {
                Outcome::Done
            } else {
                Outcome::CasLost
            }
        });
        self.ledger.recorder.complete(token, outcome);
        let Ended::Answered(answer) = ended else {
            return;
        };
        if answer.success {
            self.known
                .insert(register, (answer.new_version, Some(value)));
            self.ledger.acknowledged(answer.receipt.as_ref());
        } else {
            self.known.remove(&register);
        }
        self.remember(answer.receipt.clone());
        if !id.is_empty() {
            let show = |answer: &kv::CompareAndSwapResponse| {
                format!("{} {}", answer.success, answer.new_version)
            };
            let first = show(&answer);
            self.answered_once("swap again", &id, first, swap(message), show)
                .await;
        }
    }

    async fn delete(&mut self) {
        let register = self.register();
        let id = self.sometimes_id();
        let message = kv::DeleteRequest {
            namespace: REGISTER_NAMESPACE.to_owned(),
            key: key(register),
            request_id: id.clone(),
            ..Default::default()
        };
        let token = self
            .ledger
            .recorder
            .invoke(self.number, register, Op::Delete);
        let ended = self
            .persist("delete", !id.is_empty(), || delete(message.clone()))
            .await;
        self.ledger
            .recorder
            .complete(token, ended.outcome(|_| Outcome::Done));
        if let Ended::Answered(answer) = ended {
            self.known.insert(register, (0, None));
            self.ledger.acknowledged(answer.receipt.as_ref());
            self.remember(answer.receipt);
        }
    }

    async fn put_once(&mut self) {
        let value = self.ledger.value();
        let id = self.sometimes_id();
        let message = kv::PutRequest {
            namespace: PUTS_NAMESPACE.to_owned(),
            key: key(value),
            value: number(value),
            request_id: id.clone(),
            ..Default::default()
        };
        let ended = self
            .persist("put", !id.is_empty(), || put(message.clone()))
            .await;
        self.ledger
            .put_once(value, &ended.outcome(|_| Outcome::Done));
        if let Ended::Answered(answer) = ended {
            self.ledger.acknowledged(answer.receipt.as_ref());
            self.remember(answer.receipt);
        }
    }

    async fn scan(&mut self) {
        let asked_ms = self.ledger.trace.now_ms();
        let mut message = scan_of(PUTS_NAMESPACE);
        // A piece of it: the whole is read at the end.
        message.start = key(self.chance.random_range(0..10_000));
        message.limit = 50;
        message.reverse = self.chance.random_bool(0.3);
        if let Ok(pages) = self.attempt("scan", scan(message)).await {
            for page in pages {
                self.ledger
                    .answered(page.receipt.as_ref(), asked_ms, &Bytes::new());
            }
        }
    }

    fn sometimes_id(&mut self) -> Bytes {
        if self.chance.random_bool(0.7) {
            self.request_id()
        } else {
            Bytes::new()
        }
    }

    fn remember(&mut self, receipt: Option<kv::Receipt>) {
        if let Some(receipt) = receipt {
            self.session = receipt.session;
        }
    }
}

/// Reads every register that was ever used once more at `store`, and the keys that were put once.
///
/// # Errors
/// The store does not answer until `give_up`.
pub async fn read_all(
    door: &Door,
    ledger: &Ledger,
    store: StoreId,
    give_up: Instant,
) -> Result<(), Refusal> {
    let registers: BTreeSet<u64> = ledger.calls().iter().map(|call| call.key).collect();
    for register in registers {
        let message = kv::GetRequest {
            namespace: REGISTER_NAMESPACE.to_owned(),
            key: key(register),
            read: None,
        };
        let process = 1_000 + u64::from(store.get());
        let token = ledger.recorder.invoke(process, register, Op::Read);
        let answer = insist(door, store, give_up, || get(message.clone())).await?;
        let read = Outcome::Read(value_of(&answer));
        ledger.recorder.complete(token, read);
    }
    let pages = insist(door, store, give_up, || scan(scan_of(PUTS_NAMESPACE))).await?;
    let entries = pages.iter().flat_map(|page| &page.entries);
    let found = entries.map(|entry| number_of(&entry.value)).collect();
    ledger.check_puts(&found);
    Ok(())
}

/// Calls again until it is answered.
async fn insist<T: Send + 'static>(
    door: &Door,
    store: StoreId,
    give_up: Instant,
    operation: impl Fn() -> Operation<T>,
) -> Result<T, Refusal> {
    loop {
        match door.call(store, ATTEMPT, operation()).await {
            Err(_) if Instant::now() < give_up => sleep(Duration::from_millis(20)).await,
            answer => return answer,
        }
    }
}

/// Writes and reads at `store`, to see whether it serves.
///
/// # Errors
/// It does not.
pub async fn probe(door: &Door, ledger: &Ledger, store: StoreId) -> Result<(), Refusal> {
    for namespace in [REGISTER_NAMESPACE, PUTS_NAMESPACE] {
        // At both ends of the key space, so that every region is asked.
        for at in [0, u64::MAX / 2] {
            let value = ledger.value();
            let register = at + (1 << 40) + u64::from(store.get());
            let message = kv::PutRequest {
                namespace: namespace.to_owned(),
                key: format!("{}{register}", if at == 0 { "a" } else { "z" }).into(),
                value: number(value),
                request_id: format!("probe {value}").into(),
                ..Default::default()
            };
            door.call(store, ATTEMPT, put(message.clone())).await?;
            let message = kv::DeleteRequest {
                namespace: namespace.to_owned(),
                key: message.key,
                ..Default::default()
            };
            door.call(store, ATTEMPT, delete(message)).await?;
        }
    }
    Ok(())
}

/// The key of a register: even ones begin with another letter than odd ones, so that they lie in
/// different regions.
pub(crate) fn key(number: u64) -> Bytes {
    let letter = if number.is_multiple_of(2) { 'b' } else { 'y' };
    format!("{letter}{number}").into()
}

pub(crate) fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

pub(crate) fn number_of(value: &[u8]) -> u64 {
    value.try_into().map_or(u64::MAX, u64::from_be_bytes)
}

pub(crate) fn value_of(answer: &kv::GetResponse) -> Option<u64> {
    answer.found.then(|| number_of(&answer.value))
}

fn scan_of(namespace: &str) -> kv::ScanRequest {
    kv::ScanRequest {
        namespace: namespace.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn get(message: kv::GetRequest) -> Operation<kv::GetResponse> {
    Box::new(move |kv| async move { Ok(kv.get(Request::new(message)).await?.into_inner()) }.boxed())
}

pub(crate) fn put(message: kv::PutRequest) -> Operation<kv::PutResponse> {
    Box::new(move |kv| async move { Ok(kv.put(Request::new(message)).await?.into_inner()) }.boxed())
}

pub(crate) fn delete(message: kv::DeleteRequest) -> Operation<kv::DeleteResponse> {
    Box::new(move |kv| {
        async move { Ok(kv.delete(Request::new(message)).await?.into_inner()) }.boxed()
    })
}

pub(crate) fn swap(message: kv::CompareAndSwapRequest) -> Operation<kv::CompareAndSwapResponse> {
    Box::new(move |kv| {
        async move {
            let answer = kv.compare_and_swap(Request::new(message)).await?;
            Ok(answer.into_inner())
        }
        .boxed()
    })
}

pub(crate) fn scan(message: kv::ScanRequest) -> Operation<Vec<kv::ScanResponse>> {
    Box::new(move |kv| {
        async move {
            let mut pages = kv.scan(Request::new(message)).await?.into_inner();
            let mut read = Vec::new();
            while let Some(page) = pages.next().await {
                read.push(page?);
            }
            Ok(read)
        }
        .boxed()
    })
}
