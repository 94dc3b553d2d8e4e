//! What clients of eventual namespaces do during a run, and what they saw.
//!
//! Owns the clients: puts, deletions, writes that expire, reads and scans whose session moves between
//! stores, repeats of a request at the same store. They talk to every store, in a minority and alone too.
//! Each thing they see goes to the invariant that judges it. Knows nothing of faults.
//!
//! Every value is a number that is written once.

use crate::clock::EPOCH_MS;
use crate::door::{Door, Operation, Refusal};
use crate::eventual_watch::ANY_TIME_MS;
use crate::invariants::kept::{At, Ended, Write, Writes};
use crate::invariants::{Findings, accepted, answered_once, in_time, sessions};
use crate::trace::Trace;
use crate::workload::{ATTEMPT, delete, get, number, number_of, put, scan};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rdb_proto::kv;
use rdb_server::room::Level;
use rdb_server::session::SessionToken;
use rdb_types::{Stamp, StoreId};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The namespace that acknowledges before the sync.
pub const RELAXED: &str = "loose";
/// The one that acknowledges after it.
pub const SYNCED: &str = "open";
/// Keys of a namespace that are in use at the same time, and for how long.
const KEYS: u64 = 10;
const ERA_MS: u64 = 9_000;
/// How long a client tries one write.
const PATIENCE: Duration = Duration::from_secs(2);

/// What all clients of a run saw; clones are the same.
#[derive(Clone)]
pub struct EventualLedger {
    findings: Findings,
    trace: Trace,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    writes: Writes,
    absences: Vec<sessions::Absence>,
    answers: answered_once::Answers,
    /// Who took a write of which namespace under keys of which letter.
    served: BTreeSet<(StoreId, &'static str, u8)>,
    by_second: BTreeMap<(StoreId, u64), u64>,
    next_value: u64,
}

impl EventualLedger {
    /// Nothing was seen yet.
    pub fn new(findings: Findings, trace: Trace) -> EventualLedger {
        EventualLedger {
            findings,
            trace,
            shared: Arc::default(),
        }
    }

    /// A store crashed.
    pub fn crashed(&self, store: StoreId) {
        let at_ms = self.trace.now_ms();
        self.shared.lock().writes.crashed(store, at_ms);
    }

    /// Judges with all that clients did.
    pub fn with_writes<T>(&self, judge: impl FnOnce(&Writes) -> T) -> T {
        judge(&self.shared.lock().writes)
    }

    /// Judges what sessions did not find, now that all is known. `sane`: no majority of the clocks ever was
    /// wrong; else what can expire may have.
    pub fn check_absences(&self, sane: bool) {
        let shared = self.shared.lock();
        for absence in &shared.absences {
            let mut absence = absence.clone();
            if !sane {
                absence.now_ms = ANY_TIME_MS;
            }
            let verdict = sessions::explained(&absence, &shared.writes);
            self.findings.check(sessions::NAME, verdict);
        }
    }

    /// Writes that each store acknowledged in each simulated second.
    pub fn by_second(&self) -> BTreeMap<(StoreId, u64), u64> {
        self.shared.lock().by_second.clone()
    }
}

/// One client.
pub struct EventualClient {
    number: u64,
    door: Door,
    ledger: EventualLedger,
    stores: Vec<StoreId>,
    chance: Xoshiro256PlusPlus,
    session: sessions::Session,
    /// What the session has seen, by the region that told it.
    tokens: BTreeMap<(&'static str, u8), SessionToken>,
    requests: u64,
}

impl EventualClient {
    /// The client of this number.
    pub fn new(
        number: u64,
        seed: u64,
        door: Door,
        ledger: EventualLedger,
        stores: Vec<StoreId>,
    ) -> EventualClient {
        EventualClient {
            number,
            door,
            ledger,
            stores,
            chance: Xoshiro256PlusPlus::seed_from_u64(seed ^ number.wrapping_mul(0xe7e7)),
            session: sessions::Session::default(),
            tokens: BTreeMap::new(),
            requests: 0,
        }
    }

    /// One operation after the other until `until`, with pauses of `pace` on average.
    pub async fn run(mut self, until: Instant, pace: Duration) {
        while Instant::now() < until {
            let pause = self.chance.random_range(0..=2 * pace.as_micros() as u64);
            sleep(Duration::from_micros(pause)).await;
            match self.chance.random_range(0..100) {
                0..35 => self.read().await,
                35..65 => self.write(0).await,
                65..85 => self.delete().await,
                85..95 => {
                    let ttl_ms = self.chance.random_range(200..8_000);
                    self.write(ttl_ms).await;
                }
                _ => self.scan().await,
            }
        }
    }

    fn store(&mut self) -> StoreId {
        let at = self.chance.random_range(0..self.stores.len());
        self.stores[at]
    }

    /// Every other client has a session. The reads of one wait, in a partition, for what it has seen
    /// elsewhere; the others keep all stores busy meanwhile.
    fn has_session(&self) -> bool {
        self.number.is_multiple_of(2)
    }

    fn key(&mut self) -> At {
        let namespace = if self.chance.random_bool(0.5) {
            SYNCED
        } else {
            RELAXED
        };
        let era = self.ledger.trace.now_ms() / ERA_MS;
        let number = era * KEYS + self.chance.random_range(0..KEYS);
        let letter = if number.is_multiple_of(2) { 'b' } else { 'y' };
        (namespace, format!("{letter}{number}").into())
    }

    /// Whether the disk of a store was full a moment ago.
    fn is_full(&self, store: StoreId) -> bool {
        let running = self.door.running();
        let mut running = running.iter().filter(|(id, _)| *id == store);
        running.any(|(_, process)| process.core.manager().context().rooms.own() != Level::Ample)
    }

    async fn attempt<T: Send + 'static>(
        &mut self,
        store: StoreId,
        what: &str,
        operation: Operation<T>,
    ) -> Result<T, Refusal> {
        let began = Instant::now();
        let answer = self.door.call(store, ATTEMPT * 2, operation).await;
        let took_ms = began.elapsed().as_millis() as u64;
        let silent = matches!(&answer, Err(refusal) if !refusal.said && refusal.reason != "no answer in time");
        if !silent {
            let verdict = in_time::check(what, ATTEMPT.as_millis() as u64, took_ms);
            self.ledger.findings.check(in_time::NAME, verdict);
        }
        let ended = answer.as_ref().err().map(|r| r.reason.as_str());
        self.ledger.trace.note(format_args!(
            "eventual client {}: {what} at store {store}: {}",
            self.number,
            ended.unwrap_or("done")
        ));
        answer
    }

    /// Tries a write at one store until it is answered, cannot be repeated, or patience is at its end.
    /// Answers the version.
    async fn persist<T: Send + 'static>(
        &mut self,
        (at, write): (&At, Write),
        id: &Bytes,
        operation: impl Fn() -> Operation<T>,
        seen: impl Fn(T) -> (u64, Option<kv::Receipt>),
    ) {
        let (store, what) = (
            self.store(),
            if write.value.is_some() {
                "put"
            } else {
                "delete"
            },
        );
        let (again, is_deletion) = (write.clone(), write.value.is_none());
        let number = self.ledger.shared.lock().writes.began(at.clone(), write);
        let give_up = Instant::now() + PATIENCE;
        let mut maybe_applied = false;
        // What was answered may be gone with a crash that came before the answer did.
        let mut sent_ms;
        let answer = loop {
            sent_ms = self.ledger.trace.now_ms();
            match self.attempt(store, what, operation()).await {
                Ok(answer) => break Some(answer),
                Err(refusal) => {
                    maybe_applied |= refusal.maybe_applied;
                    let served = self
                        .ledger
                        .shared
                        .lock()
                        .served
                        .contains(&(store, at.0, at.1[0]));
                    let full = self.is_full(store);
                    let verdict = accepted::check(store, &refusal.reason, served, full);
                    self.ledger.findings.check(accepted::NAME, verdict);
                }
            }
            if Instant::now() >= give_up || (maybe_applied && id.is_empty()) {
                break None;
            }
            sleep(Duration::from_millis(self.chance.random_range(5..100))).await;
        };
        let at_ms = self.ledger.trace.now_ms();
        let Some(answer) = answer else {
            if !maybe_applied {
                let mut shared = self.ledger.shared.lock();
                shared.writes.ended(at, number, Ended::Refused);
            }
            return;
        };
        let (version, receipt) = seen(answer);
        let stamp = Stamp(version);
        {
            let mut shared = self.ledger.shared.lock();
            let ended = Ended::Acknowledged {
                stamp,
                at_ms: sent_ms,
            };
            shared.writes.ended(at, number, ended);
            shared.served.insert((store, at.0, at.1[0]));
            *shared.by_second.entry((store, at_ms / 1_000)).or_default() += 1;
        }
        self.session.knows(at.clone(), stamp, is_deletion, at_ms);
        self.remember(at, receipt);
        if !id.is_empty() && self.chance.random_range(0..10) == 0 {
            self.repeat((at, again), (store, sent_ms), version, id, operation, seen)
                .await;
        }
    }

    /// Repeats a write that was answered, as a client does whose answer was lost: the answer is the same.
    async fn repeat<T: Send + 'static>(
        &mut self,
        (at, write): (&At, Write),
        (store, at_ms): (StoreId, u64),
        version: u64,
        id: &Bytes,
        operation: impl Fn() -> Operation<T>,
        seen: impl Fn(T) -> (u64, Option<kv::Receipt>),
    ) {
        let pause = self.chance.random_range(1..800);
        sleep(Duration::from_millis(pause)).await;
        let again = self.attempt(store, "write again", operation()).await;
        let mut shared = self.ledger.shared.lock();
        // Acknowledged before it was synced, it may be gone with its id: then this is a write of its own.
        if write.relaxed && shared.writes.crashed_since(store, at_ms) {
            shared.writes.began(at.clone(), write);
            return;
        }
        let Ok(again) = again else { return };
        for version in [version, seen(again).0] {
            let verdict = shared.answers.seen(id, format!("version {version}"));
            self.ledger.findings.check(answered_once::NAME, verdict);
        }
    }

    async fn write(&mut self, ttl_ms: u64) {
        let (at, id) = (self.key(), self.sometimes_id());
        let value = {
            let mut shared = self.ledger.shared.lock();
            shared.next_value += 1;
            shared.next_value
        };
        let message = kv::PutRequest {
            namespace: at.0.to_owned(),
            key: at.1.clone(),
            value: number(value),
            ttl_ms: ttl_ms as i64,
            request_id: id.clone(),
            ..Default::default()
        };
        let write = Write {
            value: Some(value),
            ttl_ms,
            relaxed: at.0 == RELAXED,
            ended: Ended::Unknown,
        };
        self.persist(
            (&at, write),
            &id,
            || put(message.clone()),
            |answer| (answer.version, answer.receipt),
        )
        .await;
    }

    async fn delete(&mut self) {
        let (at, id) = (self.key(), self.sometimes_id());
        let message = kv::DeleteRequest {
            namespace: at.0.to_owned(),
            key: at.1.clone(),
            request_id: id.clone(),
            ..Default::default()
        };
        let write = Write {
            value: None,
            ttl_ms: 0,
            relaxed: at.0 == RELAXED,
            ended: Ended::Unknown,
        };
        self.persist(
            (&at, write),
            &id,
            || delete(message.clone()),
            |answer| (answer.version, answer.receipt),
        )
        .await;
    }

    fn options(&self, at: &At) -> kv::ReadOptions {
        let token = self.tokens.get(&(at.0, at.1[0]));
        let token = token.filter(|_| self.has_session());
        kv::ReadOptions {
            session: token.map(SessionToken::encode).unwrap_or_default(),
            ..Default::default()
        }
    }

    async fn read(&mut self) {
        let at = self.key();
        let store = self.store();
        let message = kv::GetRequest {
            namespace: at.0.to_owned(),
            key: at.1.clone(),
            read: Some(self.options(&at)),
        };
        if let Ok(answer) = self.attempt(store, "session read", get(message)).await {
            let found = answer.found.then_some(Stamp(answer.version));
            self.saw(&at, found, store);
            self.remember(&at, answer.receipt);
        }
    }

    async fn scan(&mut self) {
        let (at, store) = (self.key(), self.store());
        let message = kv::ScanRequest {
            namespace: at.0.to_owned(),
            start: at.1.clone(),
            end: Bytes::copy_from_slice(&[at.1[0] + 1]),
            limit: 20,
            read: Some(self.options(&at)),
            ..Default::default()
        };
        let Ok(pages) = self.attempt(store, "session scan", scan(message)).await else {
            return;
        };
        for page in pages {
            for entry in &page.entries {
                let found = (at.0, entry.key.clone());
                self.saw(&found, Some(Stamp(entry.version)), store);
            }
            let first = page.entries.first().map(|entry| entry.key.clone());
            if first.as_ref() != Some(&at.1) {
                self.saw(&at, None, store);
            }
            self.remember(&at, page.receipt);
        }
    }

    fn saw(&mut self, at: &At, found: Option<Stamp>, store: StoreId) {
        if !self.has_session() {
            return;
        }
        let at_ms = self.ledger.trace.now_ms();
        let mut shared = self.ledger.shared.lock();
        let by = format!("client {}: store {store} at {at_ms} ms", self.number);
        let times = (at_ms, EPOCH_MS + at_ms);
        match self.session.read(at, found, times, &by, &shared.writes) {
            Ok(absence) => shared.absences.extend(absence),
            Err(why) => self.ledger.findings.report(sessions::NAME, why),
        }
    }

    fn sometimes_id(&mut self) -> Bytes {
        if !self.chance.random_bool(0.7) {
            return Bytes::new();
        }
        self.requests += 1;
        format!("eventual {} request {}", self.number, self.requests).into()
    }

    /// Joins what an answer's token says with what the session had: a write's token does not know of it.
    fn remember(&mut self, at: &At, receipt: Option<kv::Receipt>) {
        let Some(receipt) = receipt else { return };
        let Some(token) = SessionToken::decode(&receipt.session) else {
            return;
        };
        match self.tokens.entry((at.0, at.1[0])) {
            Entry::Occupied(mut known) => {
                let of_one_region = known.get_mut().join(&token);
                debug_assert!(of_one_region);
            }
            Entry::Vacant(entry) => drop(entry.insert(token)),
        }
    }
}

/// Reads a value back.
pub fn value_of(bytes: &[u8]) -> u64 {
    number_of(bytes)
}
