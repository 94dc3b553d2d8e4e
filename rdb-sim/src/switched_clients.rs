//! What clients of a namespace do that is switched between strong and eventual during a run, and what they
//! saw.
//!
//! Owns the clients: they put, delete, swap, read and write things that expire in whatever mode the
//! namespace has, at every store, and repeat a request at the same store only. What a receipt says of mode
//! and epoch decides which invariant judges a call. Knows nothing of faults, and nothing of switches.
//!
//! Every value is a number that is written once.

use crate::door::{Door, Operation, Refusal};
use crate::invariants::kept::{At, Ended, Write, Writes};
use crate::invariants::sealed_linearizable::Served;
use crate::invariants::survives_seals::Acked;
use crate::invariants::{Findings, answered_once, in_time};
use crate::trace::Trace;
use crate::workload::{ATTEMPT, delete, get, number, put, swap, value_of};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rdb_check::{Call, Op, Outcome};
use rdb_proto::convert;
use rdb_proto::kv::{self, compare_and_swap_request::Change};
use rdb_types::{Mode, Reason, RegionId, Stamp, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The namespace. Its id is the last of those that are declared.
pub const SWITCHED: &str = "switched";
/// Keys that are in use at the same time, and for how long.
const KEYS: u64 = 6;
const ERA_MS: u64 = 6_000;
/// How long a client tries one write.
const PATIENCE: Duration = Duration::from_secs(2);

/// What all clients of a run saw; clones are the same.
#[derive(Clone)]
pub struct SwitchedLedger {
    findings: Findings,
    trace: Trace,
    shared: Arc<Mutex<Shared>>,
}

/// A receipt: region and epoch, mode, whether it is a write's, and whose.
pub type Receipt = ((RegionId, u64), Mode, bool, StoreId);

#[derive(Default)]
struct Shared {
    writes: Writes,
    acked: Vec<Acked>,
    calls: Vec<Served>,
    receipts: BTreeSet<(u64, u64, bool, bool, StoreId)>,
    answers: answered_once::Answers,
    /// Whether a switch was ever allowed to leave a store out.
    left_out: bool,
    listed: BTreeSet<(Bytes, Stamp)>,
    next_value: u64,
}

impl Shared {
    /// A write is repeated that may have been set aside meanwhile: it may be done once more.
    fn again(
        &mut self,
        (key, op): (&Bytes, Op),
        (process, invoked_ns, returned_ns): (u64, u64, Option<u64>),
    ) {
        let value = match op {
            Op::Read => return,
            Op::Delete => None,
            Op::Write(value) | Op::Cas { to: value, .. } => Some(value),
        };
        self.writes.began((SWITCHED, key.clone()), write(value, 0));
        let call = Call {
            process,
            key: 0,
            op,
            invoked_ns,
            returned_ns,
            outcome: Outcome::Unknown,
        };
        self.calls.push(Served {
            key: key.clone(),
            call,
            place: None,
        });
    }
}

impl SwitchedLedger {
    /// Nothing was seen yet.
    pub fn new(findings: Findings, trace: Trace) -> SwitchedLedger {
        SwitchedLedger {
            findings,
            trace,
            shared: Arc::default(),
        }
    }

    /// A switch is asked for that may leave a store out: what only that holds may be set aside.
    pub fn may_leave_out(&self) {
        self.shared.lock().left_out = true;
    }

    /// A store lists these writes as set aside. Answers how many are new.
    pub fn set_aside(&self, rows: Vec<(Bytes, Stamp)>) -> u64 {
        let mut shared = self.shared.lock();
        if !shared.left_out
            && let Some((key, stamp)) = rows.first()
        {
            let why = format!(
                "{stamp:?} of key {} is set aside, and no switch was allowed to leave a store out",
                key.escape_ascii()
            );
            self.findings.report(crate::invariants::kept::NAME, why);
        }
        let mut new = 0;
        for (key, stamp) in rows {
            if shared.listed.insert((key.clone(), stamp)) {
                new += 1;
                shared.writes.set_aside((SWITCHED, key), stamp);
            }
        }
        new
    }

    /// Judges with all that clients did.
    pub fn with<T>(&self, judge: impl FnOnce(&[Acked], &Writes, &[Served]) -> T) -> T {
        let shared = self.shared.lock();
        judge(&shared.acked, &shared.writes, &shared.calls)
    }

    /// What receipts said, each once.
    pub fn receipts(&self) -> Vec<Receipt> {
        let shared = self.shared.lock();
        let receipts = shared.receipts.iter();
        receipts
            .map(|(region, epoch, strong, wrote, store)| {
                let mode = if *strong {
                    Mode::Strong
                } else {
                    Mode::Eventual
                };
                ((RegionId(*region), *epoch), mode, *wrote, *store)
            })
            .collect()
    }

    /// The regions and epochs in which something was served as strong.
    pub fn strong_times(&self) -> BTreeSet<(RegionId, u64)> {
        let shared = self.shared.lock();
        shared.calls.iter().filter_map(|call| call.place).collect()
    }

    /// Acknowledged writes: as strong, as eventual.
    pub fn acknowledged(&self) -> (usize, usize) {
        let shared = self.shared.lock();
        let strong = shared.acked.iter().filter(|of| of.mode == Mode::Strong);
        let strong = strong.count();
        (strong, shared.acked.len() - strong)
    }
}

/// One client.
pub struct SwitchedClient {
    number: u64,
    door: Door,
    ledger: SwitchedLedger,
    stores: Vec<StoreId>,
    chance: Xoshiro256PlusPlus,
    /// What it believes of keys: version and value.
    known: BTreeMap<Bytes, (u64, Option<u64>)>,
    /// The highest epoch that it has seen of each half of the keys.
    seen: BTreeMap<u8, u64>,
    requests: u64,
}

/// What a write came to for its client.
struct Answered {
    version: u64,
    /// It was a swap, and lost.
    lost: bool,
    receipt: kv::Receipt,
}

impl SwitchedClient {
    /// The client of this number.
    pub fn new(
        number: u64,
        seed: u64,
        door: Door,
        ledger: SwitchedLedger,
        stores: Vec<StoreId>,
    ) -> SwitchedClient {
        SwitchedClient {
            number,
            door,
            ledger,
            stores,
            chance: Xoshiro256PlusPlus::seed_from_u64(seed ^ number.wrapping_mul(0x5e17)),
            known: BTreeMap::new(),
            seen: BTreeMap::new(),
            requests: 0,
        }
    }

    /// One operation after the other until `until`, with pauses of `pace` on average.
    pub async fn run(mut self, until: Instant, pace: Duration) {
        while Instant::now() < until {
            let pause = self.chance.random_range(0..=2 * pace.as_micros() as u64);
            sleep(Duration::from_micros(pause)).await;
            match self.chance.random_range(0..100) {
                0..38 => self.read().await,
                38..68 => self.put(0).await,
                68..80 => self.delete().await,
                80..88 => self.swap().await,
                _ => {
                    let ttl_ms = self.chance.random_range(200..6_000);
                    self.put(ttl_ms).await;
                }
            }
        }
    }

    fn store(&mut self) -> StoreId {
        let at = self.chance.random_range(0..self.stores.len());
        self.stores[at]
    }

    /// Keys that expire are others than those that do not: of these a history is judged.
    fn key(&mut self, expires: bool) -> Bytes {
        let era = self.ledger.trace.now_ms() / ERA_MS;
        let number = era * KEYS + self.chance.random_range(0..KEYS);
        let letter = if number.is_multiple_of(2) { 'b' } else { 'y' };
        let kind = if expires { "t" } else { "" };
        format!("{letter}{kind}{number}").into()
    }

    fn request_id(&mut self) -> Bytes {
        if self.chance.random_bool(0.4) {
            return Bytes::new();
        }
        self.requests += 1;
        format!("switched {} request {}", self.number, self.requests).into()
    }

    fn value(&self) -> u64 {
        let mut shared = self.ledger.shared.lock();
        shared.next_value += 1;
        shared.next_value
    }

    fn now_ns(&self) -> u64 {
        self.ledger.trace.now().as_nanos() as u64
    }

    fn seen_epoch(&self, key: &Bytes) -> u64 {
        // Every other client remembers.
        let seen = self.seen.get(&key[0]).copied().unwrap_or(0);
        if self.number.is_multiple_of(2) {
            seen
        } else {
            0
        }
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
            "switched client {}: {what} at store {store}: {}",
            self.number,
            ended.unwrap_or("done")
        ));
        answer
    }

    /// Takes up a receipt; answers the place and the mode that it names.
    fn receipt(
        &mut self,
        key: &Bytes,
        receipt: &kv::Receipt,
        wrote: bool,
    ) -> ((RegionId, u64), Mode) {
        let region = RegionId(receipt.region_id);
        let mode = convert::mode(receipt.mode).unwrap_or_default();
        let seen = self.seen.entry(key[0]).or_default();
        *seen = receipt.epoch.max(*seen);
        if let Some(store) = StoreId::new(u64::from(receipt.store_id)) {
            let strong = mode == Mode::Strong;
            let entry = (region.0, receipt.epoch, strong, wrote, store);
            self.ledger.shared.lock().receipts.insert(entry);
        }
        ((region, receipt.epoch), mode)
    }

    async fn read(&mut self) {
        let (store, key) = (self.store(), self.key(false));
        let message = kv::GetRequest {
            namespace: SWITCHED.to_owned(),
            key: key.clone(),
            read: Some(kv::ReadOptions {
                seen_epoch: self.seen_epoch(&key),
                ..Default::default()
            }),
        };
        let invoked_ns = self.now_ns();
        let Ok(answer) = self.attempt(store, "read", get(message)).await else {
            return;
        };
        let value = value_of(&answer);
        self.known.insert(key.clone(), (answer.version, value));
        let receipt = answer.receipt.unwrap_or_default();
        let (place, mode) = self.receipt(&key, &receipt, false);
        if mode == Mode::Strong {
            let call = Call {
                process: self.number,
                key: 0,
                op: Op::Read,
                invoked_ns,
                returned_ns: Some(self.now_ns()),
                outcome: Outcome::Read(value),
            };
            let place = Some(place);
            self.ledger
                .shared
                .lock()
                .calls
                .push(Served { key, call, place });
        }
    }

    async fn put(&mut self, ttl_ms: u64) {
        let (key, id, value) = (self.key(ttl_ms > 0), self.request_id(), self.value());
        let message = kv::PutRequest {
            namespace: SWITCHED.to_owned(),
            key: key.clone(),
            value: number(value),
            ttl_ms: ttl_ms as i64,
            request_id: id.clone(),
            seen_epoch: self.seen_epoch(&key),
            only_epoch: 0,
        };
        let write = write(Some(value), ttl_ms);
        let version = self
            .persist(
                (&key, write, Op::Write(value)),
                &id,
                || put(message.clone()),
                |answer| Answered {
                    version: answer.version,
                    lost: false,
                    receipt: answer.receipt.unwrap_or_default(),
                },
            )
            .await;
        if let Some(version) = version {
            self.known.insert(key, (version, Some(value)));
        }
    }

    async fn delete(&mut self) {
        let (key, id) = (self.key(false), self.request_id());
        let message = kv::DeleteRequest {
            namespace: SWITCHED.to_owned(),
            key: key.clone(),
            request_id: id.clone(),
            seen_epoch: self.seen_epoch(&key),
            only_epoch: 0,
        };
        let deleted = self
            .persist(
                (&key, write(None, 0), Op::Delete),
                &id,
                || delete(message.clone()),
                |answer| Answered {
                    version: answer.version,
                    lost: false,
                    receipt: answer.receipt.unwrap_or_default(),
                },
            )
            .await;
        if deleted.is_some() {
            self.known.insert(key, (0, None));
        }
    }

    async fn swap(&mut self) {
        let (key, id, value) = (self.key(false), self.request_id(), self.value());
        let (expected, from) = self.known.get(&key).copied().unwrap_or((0, None));
        let message = kv::CompareAndSwapRequest {
            namespace: SWITCHED.to_owned(),
            key: key.clone(),
            expected_version: expected,
            change: Some(Change::Value(number(value))),
            request_id: id.clone(),
            seen_epoch: self.seen_epoch(&key),
            ..Default::default()
        };
        let op = Op::Cas { from, to: value };
        let version = self
            .persist(
                (&key, write(Some(value), 0), op),
                &id,
                || swap(message.clone()),
                |answer| Answered {
                    version: answer.new_version,
                    lost: !answer.success,
                    receipt: answer.receipt.unwrap_or_default(),
                },
            )
            .await;
        match version {
            Some(version) => drop(self.known.insert(key, (version, Some(value)))),
            None => drop(self.known.remove(&key)),
        }
    }

    /// Tries a write at one store until it is answered, cannot be repeated, or patience is at its end.
    /// Answers the version that it got.
    async fn persist<T: Send + 'static>(
        &mut self,
        (key, write, op): (&Bytes, Write, Op),
        id: &Bytes,
        operation: impl Fn() -> Operation<T>,
        seen: impl Fn(T) -> Answered,
    ) -> Option<u64> {
        let store = self.store();
        let what = match op {
            Op::Read | Op::Write(_) => "put",
            Op::Delete => "delete",
            Op::Cas { .. } => "swap",
        };
        let (at, expires): (At, bool) = ((SWITCHED, key.clone()), write.ttl_ms > 0);
        let writes = self.ledger.shared.lock().writes.began(at.clone(), write);
        let invoked_ns = self.now_ns();
        let give_up = Instant::now() + PATIENCE;
        let mut maybe_applied = false;
        let answer = loop {
            match self.attempt(store, what, operation()).await {
                Ok(answer) => break Some(seen(answer)),
                Err(refusal) => {
                    maybe_applied |= refusal.maybe_applied;
                    // A swap in an eventual namespace would be refused again.
                    if refusal.reason == Reason::WrongMode.as_str() {
                        break None;
                    }
                }
            }
            if Instant::now() >= give_up || (maybe_applied && id.is_empty()) {
                break None;
            }
            sleep(Duration::from_millis(self.chance.random_range(5..100))).await;
        };
        let call = |outcome| Call {
            process: self.number,
            key: 0,
            op,
            invoked_ns,
            returned_ns: Some(self.now_ns()),
            outcome,
        };
        let Some(answer) = answer else {
            let mut shared = self.ledger.shared.lock();
            if !maybe_applied {
                shared.writes.ended(&at, writes, Ended::Refused);
            } else if !expires {
                let (key, call) = (key.clone(), call(Outcome::Unknown));
                shared.calls.push(Served {
                    key,
                    call,
                    place: None,
                });
            }
            return None;
        };
        let outcome = if answer.lost {
            Outcome::CasLost
        } else {
            Outcome::Done
        };
        let call = call(outcome);
        let (place, mode) = self.receipt(key, &answer.receipt, !answer.lost);
        let at_ms = self.ledger.trace.now_ms();
        {
            let mut shared = self.ledger.shared.lock();
            let stamp = Stamp(answer.version);
            let ended = if answer.lost {
                Ended::Refused
            } else {
                Ended::Acknowledged { stamp, at_ms }
            };
            shared.writes.ended(&at, writes, ended);
            if !answer.lost && !maybe_applied && answer.version > 0 {
                shared.acked.push(Acked {
                    key: key.clone(),
                    stamp,
                    store,
                    region: place.0,
                    mode,
                    epoch: place.1,
                });
            }
            // An answer that was given before the mode changed is repeated with the receipt of now.
            let served = mode == Mode::Strong && !maybe_applied;
            if !expires && (served || maybe_applied) {
                shared.calls.push(Served {
                    key: key.clone(),
                    call,
                    place: served.then_some(place),
                });
            }
        }
        if !id.is_empty() && self.chance.random_range(0..8) == 0 {
            self.repeat((&at.1, op), store, answer.version, id, operation, seen)
                .await;
        }
        (!answer.lost).then_some(answer.version)
    }

    /// Repeats a write that was answered, as a client does whose answer was lost: the answer is the same,
    /// whatever the mode is by now. A write that was set aside is forgotten with its answer: its repeat is a
    /// new write.
    async fn repeat<T: Send + 'static>(
        &mut self,
        (key, op): (&Bytes, Op),
        store: StoreId,
        version: u64,
        id: &Bytes,
        operation: impl Fn() -> Operation<T>,
        seen: impl Fn(T) -> Answered,
    ) {
        let pause = self.chance.random_range(1..1_500);
        sleep(Duration::from_millis(pause)).await;
        let invoked_ns = self.now_ns();
        let answer = self.attempt(store, "write again", operation()).await;
        let returned_ns = Some(self.now_ns());
        {
            let mut shared = self.ledger.shared.lock();
            if shared.left_out {
                shared.again((key, op), (self.number, invoked_ns, returned_ns));
                return;
            }
        }
        let Ok(again) = answer else { return };
        let again = seen(again).version;
        let mut shared = self.ledger.shared.lock();
        for version in [version, again] {
            let verdict = shared.answers.seen(id, format!("version {version}"));
            self.ledger.findings.check(answered_once::NAME, verdict);
        }
    }
}

fn write(value: Option<u64>, ttl_ms: u64) -> Write {
    Write {
        value,
        ttl_ms,
        relaxed: false,
        ended: Ended::Unknown,
    }
}
