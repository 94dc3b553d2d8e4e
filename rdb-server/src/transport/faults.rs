//! A transport with faults, for the demo and for tests: partitions, delay, loss.
//!
//! Owns what is wrong with the network ([`Faults`], one for all stores of a process) and a wrapper
//! ([`FaultyTransport`], one for each store) that makes it so. The server knows nothing of it: it is
//! given some transport.
//!
//! Invariants:
//! - A cut is silent: the caller hears nothing, not even that a connection broke, until its own
//!   timeout. Requests and answers that are on their way over a link when it is cut are dropped.
//! - Requests of one lane to one store arrive in order, however they are delayed, unless reordering
//!   was asked for.
//! - Each lane of each ordered pair of stores draws from a generator of its own, derived from the seed:
//!   what befalls its nth call, there and back, depends on nothing else.

use super::{Lane, SharedTransport, Transport, TransportError};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// Delays and timeouts beyond this are taken for this: it keeps points in time representable.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Delayed requests per lane; what is sent beyond them is lost.
const QUEUED: usize = 16_384;

type Answer = Result<peer_response::Body, TransportError>;

/// What is wrong between the stores of one process. Changes take effect at once.
pub struct Faults {
    seed: u64,
    state: Mutex<State>,
}

struct State {
    cut: BTreeSet<(StoreId, StoreId)>,
    delay: RangeInclusive<Duration>,
    loss_percent: u8,
    reorder: bool,
    generators: BTreeMap<(StoreId, StoreId, Lane), Generator>,
}

/// What becomes of a call, there and back. Cuts come on top: they are looked at as time goes by.
struct Fate {
    request: Passage,
    answer: Passage,
}

struct Passage {
    lost: bool,
    delay: Duration,
}

impl Faults {
    /// A network without faults; `seed` decides what delay and loss will fall on.
    pub fn new(seed: u64) -> Arc<Faults> {
        let state = State {
            cut: BTreeSet::new(),
            delay: Duration::ZERO..=Duration::ZERO,
            loss_percent: 0,
            reorder: false,
            generators: BTreeMap::new(),
        };
        Arc::new(Faults {
            seed,
            state: Mutex::new(state),
        })
    }

    /// Nothing passes between `a` and `b`.
    pub fn cut(&self, a: StoreId, b: StoreId) {
        self.state.lock().cut.extend([(a, b), (b, a)]);
    }

    /// Nothing passes from `from` to `to`, requests or answers; the other direction stays as it is.
    pub fn cut_one_way(&self, from: StoreId, to: StoreId) {
        self.state.lock().cut.insert((from, to));
    }

    /// Cuts `store` off from each of `all`.
    pub fn isolate(&self, store: StoreId, all: &[StoreId]) {
        let mut state = self.state.lock();
        for &other in all.iter().filter(|&&other| other != store) {
            state.cut.extend([(store, other), (other, store)]);
        }
    }

    /// Takes `a`'s and `b`'s cut back, in both directions.
    pub fn mend(&self, a: StoreId, b: StoreId) {
        self.state
            .lock()
            .cut
            .retain(|&link| link != (a, b) && link != (b, a));
    }

    /// Takes every cut back. Delay, loss and reordering stay.
    pub fn heal(&self) {
        self.state.lock().cut.clear();
    }

    /// Takes everything back.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.delay = Duration::ZERO..=Duration::ZERO;
        state.loss_percent = 0;
        state.reorder = false;
    }

    /// Every message, request or answer, takes this much longer.
    pub fn delay(&self, each_way: RangeInclusive<Duration>) {
        self.state.lock().delay = each_way;
    }

    /// That many of a hundred messages vanish, requests and answers alike.
    pub fn loss(&self, percent: u8) {
        self.state.lock().loss_percent = percent.min(100);
    }

    /// Whether delayed requests of one lane may overtake each other.
    pub fn reorder(&self, reorder: bool) {
        self.state.lock().reorder = reorder;
    }

    /// Whether the link from `from` to `to` is cut.
    pub fn is_cut(&self, from: StoreId, to: StoreId) -> bool {
        self.state.lock().cut.contains(&(from, to))
    }

    /// Draws what becomes of a call.
    fn fate(&self, from: StoreId, to: StoreId, lane: Lane) -> Fate {
        let mut state = self.state.lock();
        let State {
            delay,
            loss_percent,
            generators,
            ..
        } = &mut *state;
        let generator = generators
            .entry((from, to, lane))
            .or_insert_with(|| Generator::for_lane(self.seed, from, to, lane));
        // Four draws for every call, so that the nth draws belong to the nth call whatever is on.
        let mut passage = || {
            let (loss, fraction) = (generator.below(100), generator.below(1 << 20));
            let spread = delay.end().saturating_sub(*delay.start());
            let delay = delay
                .start()
                .saturating_add(spread.mul_f64(fraction as f64 / f64::from(1 << 20)));
            Passage {
                lost: loss < u64::from(*loss_percent),
                delay: delay.min(LONGEST_WAIT),
            }
        };
        Fate {
            request: passage(),
            answer: passage(),
        }
    }
}

/// One store's transport, as the faults leave it.
pub struct FaultyTransport {
    me: StoreId,
    inner: SharedTransport,
    faults: Arc<Faults>,
    queues: Mutex<BTreeMap<(StoreId, Lane), Queue>>,
}

/// The requests of one lane that are on their way: a task hands each to the inner transport when its
/// time has come.
struct Queue {
    requests: mpsc::Sender<Delayed>,
    task: AbortHandle,
    /// When the last one arrives: the next one must not be earlier.
    last: Instant,
    /// How many the task has not handed over yet. At zero a request without delay needs no task.
    under_way: Arc<AtomicUsize>,
}

struct Delayed {
    arrives: Instant,
    to: StoreId,
    lane: Lane,
    region: RegionId,
    request: peer_request::Body,
    deadline: Instant,
    sent: oneshot::Sender<BoxFuture<'static, Answer>>,
}

impl FaultyTransport {
    /// Wraps the transport of the store `me`.
    pub fn new(me: StoreId, inner: SharedTransport, faults: Arc<Faults>) -> Arc<FaultyTransport> {
        Arc::new(FaultyTransport {
            me,
            inner,
            faults,
            queues: Mutex::default(),
        })
    }

    /// Hands a request over at its time, or a little later where an earlier one of its lane is.
    fn send(&self, mut delayed: Delayed) {
        let reorder = self.faults.state.lock().reorder;
        let at_once = delayed.arrives <= Instant::now();
        let mut queues = self.queues.lock();
        let queue = queues.get(&(delayed.to, delayed.lane));
        // The count goes down after the inner transport has taken the request, so at zero nothing is
        // left that this one could overtake; the lock keeps others from overtaking this one.
        if at_once
            && (reorder || queue.is_none_or(|queue| queue.under_way.load(Ordering::Acquire) == 0))
        {
            return delayed.hand_over(&self.inner);
        }
        let (me, inner, faults) = (self.me, Arc::clone(&self.inner), Arc::clone(&self.faults));
        if reorder {
            // Not kept anywhere: it ends by itself when the delay is over.
            tokio::spawn(async move { delayed.deliver(me, &inner, &faults).await });
            return;
        }
        let queue = queues.entry((delayed.to, delayed.lane)).or_insert_with(|| {
            let (requests, mut receiver) = mpsc::channel::<Delayed>(QUEUED);
            let under_way = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&under_way);
            let task = tokio::spawn(async move {
                while let Some(delayed) = receiver.recv().await {
                    delayed.deliver(me, &inner, &faults).await;
                    count.fetch_sub(1, Ordering::Release);
                }
            });
            Queue {
                requests,
                task: task.abort_handle(),
                last: Instant::now(),
                under_way,
            }
        });
        queue.last = queue.last.max(delayed.arrives);
        delayed.arrives = queue.last;
        queue.under_way.fetch_add(1, Ordering::Relaxed);
        if queue.requests.try_send(delayed).is_err() {
            // Full: lost, as in a network, and its caller hears nothing.
            queue.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Delayed {
    /// Waits for the request's time and hands it over, unless the link was cut meanwhile.
    async fn deliver(self, me: StoreId, inner: &SharedTransport, faults: &Faults) {
        sleep_until(self.arrives).await;
        if !faults.is_cut(me, self.to) {
            self.hand_over(inner);
        }
    }

    fn hand_over(self, inner: &SharedTransport) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Its caller may have given the answer up; the request is sent all the same.
        let _ = self
            .sent
            .send(inner.call(self.to, self.lane, self.region, self.request, left));
    }
}

impl Transport for FaultyTransport {
    fn call(
        &self,
        to: StoreId,
        lane: Lane,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Answer> {
        let now = Instant::now();
        let deadline = now + timeout.min(LONGEST_WAIT);
        let fate = self.faults.fate(self.me, to, lane);
        let (sent, answer) = oneshot::channel();
        if !fate.request.lost && !self.faults.is_cut(self.me, to) {
            let arrives = now + fate.request.delay;
            self.send(Delayed {
                arrives,
                to,
                lane,
                region,
                request,
                deadline,
                sent,
            });
        }
        let (me, faults) = (self.me, Arc::clone(&self.faults));
        Box::pin(async move {
            let arrival = async {
                let answer = answer.await.ok()?.await;
                // An error of the transport below is news as well: over a cut link it would not come.
                if fate.answer.lost || faults.is_cut(to, me) {
                    return None;
                }
                if fate.answer.delay > Duration::ZERO {
                    sleep(fate.answer.delay).await;
                }
                (!faults.is_cut(to, me)).then_some(answer)
            };
            if let Ok(Some(answer)) = timeout_at(deadline, arrival).await {
                return answer;
            }
            sleep_until(deadline).await;
            Err(TransportError::NoAnswer {
                to,
                why: format!("none within {} ms", timeout.as_millis()),
            })
        })
    }
}

impl Drop for FaultyTransport {
    fn drop(&mut self) {
        for queue in self.queues.lock().values() {
            queue.task.abort();
        }
    }
}

/// SplitMix64: small, seedable from anything, good enough to roll dice.
struct Generator(u64);

impl Generator {
    fn for_lane(seed: u64, from: StoreId, to: StoreId, lane: Lane) -> Generator {
        let number = u64::from(from.get()) << 24 | u64::from(to.get()) << 8 | lane as u64;
        // One step over the number keeps neighbouring lanes from neighbouring sequences.
        Generator(seed ^ Generator(number).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound - 1`. The bias of the remainder is far below what a dice roll needs.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
