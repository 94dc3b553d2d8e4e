//! The network between simulated stores: delay, loss, repetition, overtaking, cuts in one direction.
//!
//! Owns every message that is on its way, and who is connected. Stands where the gRPC transport stands in
//! a real store, handshake included. Knows nothing of what a message means; who wants to look at the
//! messages, or to change them, is a [`Tap`].
//!
//! Invariants:
//! - messages of one lane between two stores arrive in order, unless the weather lets them overtake;
//! - a message that is on its way when its link is cut is lost; nobody is told;
//! - a forwarded write never arrives twice: a transport may lose a request, but it is sent once, and
//!   a write without a request id counts on that. Raft's own messages may;
//! - what a handler does runs in the tasks of the store that it belongs to, and ends with them.

use crate::trace::Trace;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rdb_proto::raft::{peer_request, peer_response};
use rdb_server::cluster::Cluster;
use rdb_server::error::Error;
use rdb_server::tasks::Tasks;
use rdb_server::transport::{Handshake, Lane, PeerHandler, Transport, TransportError};
use rdb_types::{RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

/// What a store answers, or why nothing came.
pub type Answer = Result<peer_response::Body, TransportError>;

/// How the network behaves where it is not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// Shortest time that a message takes, in microseconds.
    pub fastest_us: u64,
    /// Longest time that a message takes, in microseconds.
    pub slowest_us: u64,
    /// Of a thousand messages, how many vanish.
    pub lost_permille: u32,
    /// Of a thousand requests, how many arrive twice.
    pub repeated_permille: u32,
    /// Of a thousand messages, how many may overtake others of their lane.
    pub overtaking_permille: u32,
}

impl Weather {
    /// A quiet local network.
    pub const FAIR: Weather = Weather {
        fastest_us: 200,
        slowest_us: 1_500,
        lost_permille: 0,
        repeated_permille: 0,
        overtaking_permille: 0,
    };
}

/// A request on its way.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Who sent it.
    pub from: StoreId,
    /// Whom it is for.
    pub to: StoreId,
    /// On which stream.
    pub lane: Lane,
    /// Of which region.
    pub region: RegionId,
    /// What it says.
    pub body: peer_request::Body,
}

/// Looks at what passes, and may change it.
pub trait Tap: Send + Sync {
    /// A request arrives. `Some`: it is answered with this instead of being delivered.
    fn request(&self, letter: &mut Letter) -> Option<Answer>;
    /// An answer leaves the store that was asked. `letter` is the request.
    fn answer(&self, letter: &Letter, answer: &mut Answer);
}

/// The network of one cluster; clones are the same.
#[derive(Clone)]
pub struct Network(Arc<Shared>);

struct Shared {
    trace: Trace,
    taps: Vec<Arc<dyn Tap>>,
    woken: Notify,
    state: Mutex<State>,
}

struct State {
    chance: Xoshiro256PlusPlus,
    weather: Weather,
    cut: BTreeSet<(StoreId, StoreId)>,
    /// How much longer what a store sends on a lane is on its way.
    clogged: BTreeMap<(StoreId, Lane), Duration>,
    stores: BTreeMap<StoreId, Endpoint>,
    /// Pairs (caller, called) that shook hands, by the incarnations that did.
    met: BTreeMap<(StoreId, StoreId), (u64, u64)>,
    /// When the last message of a lane arrives: the next must not be earlier.
    last: BTreeMap<(StoreId, StoreId, Lane, bool), Instant>,
    under_way: BTreeMap<(Instant, u64), Event>,
    numbered: u64,
}

/// A running store, as the network sees it.
#[derive(Clone)]
pub struct Endpoint {
    /// Goes up with each start of the store.
    pub incarnation: u64,
    /// Takes requests.
    pub handler: Arc<dyn PeerHandler>,
    /// Judges strangers.
    pub cluster: Arc<Cluster>,
    /// Where its work runs.
    pub tasks: Tasks,
}

enum Event {
    Request {
        letter: Letter,
        deadline: Instant,
        reply: Option<oneshot::Sender<Answer>>,
    },
    Answer {
        letter: Letter,
        answer: Box<Answer>,
        reply: Option<oneshot::Sender<Answer>>,
    },
}

impl Network {
    /// No stores yet. `taps` look at each message in their order.
    pub fn new(seed: u64, trace: Trace, taps: Vec<Arc<dyn Tap>>) -> Network {
        Network(Arc::new(Shared {
            trace,
            taps,
            woken: Notify::new(),
            state: Mutex::new(State {
                chance: Xoshiro256PlusPlus::seed_from_u64(seed),
                weather: Weather::FAIR,
                cut: BTreeSet::new(),
                clogged: BTreeMap::new(),
                stores: BTreeMap::new(),
                met: BTreeMap::new(),
                last: BTreeMap::new(),
                under_way: BTreeMap::new(),
                numbered: 0,
            }),
        }))
    }

    /// A store listens.
    pub fn plug(&self, store: StoreId, endpoint: Endpoint) {
        self.0.state.lock().stores.insert(store, endpoint);
    }

    /// A store listens no more.
    pub fn unplug(&self, store: StoreId) {
        self.0.state.lock().stores.remove(&store);
    }

    /// Cuts these links, in the given direction only, and mends all others.
    pub fn set_cuts(&self, cut: BTreeSet<(StoreId, StoreId)>) {
        self.0.state.lock().cut = cut;
    }

    /// What `store` sends on `lane` takes so much longer from now on. Lanes are streams of their own: one can
    /// be clogged while all others are quick.
    pub fn clog(&self, store: StoreId, lane: Lane, by: Duration) {
        self.0.state.lock().clogged.insert((store, lane), by);
    }

    /// No lane is clogged any more.
    pub fn unclog(&self) {
        self.0.state.lock().clogged.clear();
    }

    /// The network behaves like this from now on.
    pub fn set_weather(&self, weather: Weather) {
        self.0.state.lock().weather = weather;
    }

    /// The way out of one store.
    pub fn transport(&self, me: StoreId) -> Arc<SimTransport> {
        Arc::new(SimTransport {
            me,
            network: self.clone(),
        })
    }

    /// Moves messages. Never ends.
    pub async fn run(self) {
        loop {
            let next = {
                let state = self.0.state.lock();
                state.under_way.keys().next().copied()
            };
            match next {
                None => self.0.woken.notified().await,
                Some((at, _)) if at > Instant::now() => {
                    tokio::select! {
                        biased;
                        () = self.0.woken.notified() => {}
                        () = sleep_until(at) => {}
                    }
                }
                Some(key) => {
                    let event = self.0.state.lock().under_way.remove(&key);
                    if let Some(event) = event {
                        self.arrive(event);
                    }
                }
            }
        }
    }

    /// Puts an event on its way, or loses it.
    fn post(&self, event: Event, from: StoreId, to: StoreId, lane: Lane, is_answer: bool) {
        let mut state = self.0.state.lock();
        let state = &mut *state;
        let weather = state.weather;
        // The same draws for every message, so that one message's fate does not shift the next one's.
        let (loss, overtakes, repeats) = (
            state.chance.random_range(0..1000),
            state.chance.random_range(0..1000),
            state.chance.random_range(0..1000),
        );
        let span = weather.fastest_us..=weather.slowest_us.max(weather.fastest_us);
        let (delay, second_delay) = (
            state.chance.random_range(span.clone()),
            state.chance.random_range(span),
        );
        if loss < weather.lost_permille || state.cut.contains(&(from, to)) {
            return;
        }
        let now = Instant::now();
        let clogged = state.clogged.get(&(from, lane)).copied();
        let mut arrives = now + Duration::from_micros(delay) + clogged.unwrap_or_default();
        if overtakes >= weather.overtaking_permille {
            let last = state
                .last
                .entry((from, to, lane, is_answer))
                .or_insert(arrives);
            arrives = arrives.max(*last);
            *last = arrives;
        }
        let repeated = match &event {
            Event::Request {
                letter, deadline, ..
            } if repeats < weather.repeated_permille && letter.lane != Lane::Forward => {
                Some(Event::Request {
                    letter: letter.clone(),
                    deadline: *deadline,
                    reply: None,
                })
            }
            _ => None,
        };
        let mut put = |at: Instant, event: Event| {
            state.numbered += 1;
            state.under_way.insert((at, state.numbered), event);
        };
        put(arrives, event);
        if let Some(event) = repeated {
            put(arrives + Duration::from_micros(second_delay), event);
        }
        self.0.woken.notify_one();
    }

    fn arrive(&self, event: Event) {
        match event {
            Event::Request {
                letter,
                deadline,
                reply,
            } => self.arrive_request(letter, deadline, reply),
            Event::Answer {
                letter,
                answer,
                reply,
            } => {
                if self.0.state.lock().cut.contains(&(letter.to, letter.from)) {
                    return;
                }
                self.note("answer", &letter, answer_size(&answer));
                if let Some(reply) = reply {
                    // The caller may have given up.
                    let _ = reply.send(*answer);
                }
            }
        }
    }

    fn arrive_request(
        &self,
        mut letter: Letter,
        deadline: Instant,
        reply: Option<oneshot::Sender<Answer>>,
    ) {
        let endpoint = {
            let state = self.0.state.lock();
            if state.cut.contains(&(letter.from, letter.to)) {
                return;
            }
            state.stores.get(&letter.to).cloned()
        };
        self.note("request", &letter, request_size(&letter.body));
        let Some(endpoint) = endpoint else {
            let why = "nobody listens there".to_owned();
            let to = letter.to;
            return self.send_answer(letter, Err(TransportError::Unreachable { to, why }), reply);
        };
        if let Err(error) = self.shake_hands(&letter, &endpoint) {
            return self.send_answer(letter, Err(error), reply);
        }
        for tap in &self.0.taps {
            if let Some(answer) = tap.request(&mut letter) {
                return self.send_answer(letter, answer, reply);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let handled =
            endpoint
                .handler
                .handle(letter.from, letter.region, letter.body.clone(), left);
        let network = self.clone();
        endpoint.tasks.spawn(async move {
            // A late answer helps nobody: the real transport drops the handler's future, too.
            let Ok(answer) = timeout_at(deadline, handled).await else {
                return;
            };
            let mut answer = answer.map_err(TransportError::Refused);
            for tap in &network.0.taps {
                tap.answer(&letter, &mut answer);
            }
            network.send_answer(letter, answer, reply);
        });
    }

    fn send_answer(&self, letter: Letter, answer: Answer, reply: Option<oneshot::Sender<Answer>>) {
        let (from, to, lane) = (letter.to, letter.from, letter.lane);
        let event = Event::Answer {
            letter,
            answer: Box::new(answer),
            reply,
        };
        self.post(event, from, to, lane, true);
    }

    /// What the two ends of a new stream say to each other before anything else.
    fn shake_hands(&self, letter: &Letter, called: &Endpoint) -> Result<(), TransportError> {
        let (from, to) = (letter.from, letter.to);
        let caller = {
            let state = self.0.state.lock();
            let Some(caller) = state.stores.get(&from).cloned() else {
                // It went meanwhile; what it sent before is delivered if they had met.
                return state
                    .met
                    .contains_key(&(from, to))
                    .then_some(())
                    .ok_or_else(|| unreachable_store(to, "the caller is gone"));
            };
            let now = (caller.incarnation, called.incarnation);
            if state.met.get(&(from, to)) == Some(&now) {
                return Ok(());
            }
            caller
        };
        let refused = |error: Error| TransportError::Unreachable {
            to,
            why: error.to_string(),
        };
        let greeting = called
            .cluster
            .accept(&caller.cluster.hello(to))
            .map_err(refused)?;
        caller
            .cluster
            .check_reply(to, &greeting.reply)
            .map_err(refused)?;
        if !greeting.served {
            return Err(unreachable_store(to, "it closed the stream"));
        }
        self.0
            .state
            .lock()
            .met
            .insert((from, to), (caller.incarnation, called.incarnation));
        Ok(())
    }

    fn note(&self, what: &str, letter: &Letter, bytes: usize) {
        let Letter {
            from, to, region, ..
        } = letter;
        let kind = kind(&letter.body);
        self.0.trace.note(format_args!(
            "{what} {from}>{to} region {region} {kind} {bytes} B"
        ));
    }
}

fn unreachable_store(to: StoreId, why: &str) -> TransportError {
    TransportError::Unreachable {
        to,
        why: why.to_owned(),
    }
}

fn request_size(body: &peer_request::Body) -> usize {
    body.encoded_len()
}

fn answer_size(answer: &Answer) -> usize {
    answer.as_ref().map_or(0, peer_response::Body::encoded_len)
}

/// The name of a request's kind.
pub fn kind(body: &peer_request::Body) -> &'static str {
    use peer_request::Body;
    match body {
        Body::Hello(_) => "hello",
        Body::Append(append) if append.entries.is_empty() => "heartbeat",
        Body::Append(_) => "append",
        Body::Vote(_) => "vote",
        Body::PreVote(_) => "pre-vote",
        Body::TransferLeader(_) => "transfer-leader",
        Body::SnapshotChunk(_) => "snapshot-chunk",
        Body::ReadIndex(_) => "read-index",
        Body::Write(_) => "write",
        Body::Propose(_) => "propose",
        Body::Status(_) => "status",
        Body::PushOrigins(_) => "push-origins",
        Body::Reports(_) => "reports",
        Body::CompareRange(_) => "compare-range",
        Body::ReadConflicts(_) => "read-conflicts",
        Body::ClockReading(_) => "clock-reading",
        Body::RemoveConflicts(_) => "remove-conflicts",
        Body::AskSealing(ask) if ask.promise => "promise",
        Body::AskSealing(_) => "ask-sealing",
        Body::FetchOrigins(_) => "fetch-origins",
        Body::ReadRegion(_) => "read-region",
    }
}

/// One store's way to the others.
pub struct SimTransport {
    me: StoreId,
    network: Network,
}

impl Transport for SimTransport {
    fn call(
        &self,
        to: StoreId,
        lane: Lane,
        region: RegionId,
        body: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Answer> {
        let deadline = Instant::now() + timeout.min(Duration::from_secs(3600));
        let (reply, answer) = oneshot::channel();
        let letter = Letter {
            from: self.me,
            to,
            lane,
            region,
            body,
        };
        let event = Event::Request {
            letter,
            deadline,
            reply: Some(reply),
        };
        self.network.post(event, self.me, to, lane, false);
        Box::pin(async move {
            if let Ok(Ok(answer)) = timeout_at(deadline, answer).await {
                return answer;
            }
            // Lost on the way: silence until the end.
            sleep_until(deadline).await;
            let why = format!("none within {} ms", timeout.as_millis());
            Err(TransportError::NoAnswer { to, why })
        })
    }
}
