//! Strong writes: collect what waits, get it into the log once, answer after apply.
//!
//! Owns the queue of a region's writes and commands, and the decision what becomes of them: proposed
//! here or forwarded to the leader ([`attempt`]), kept until there is one, or refused. Reads are in
//! [`super::reads`]; what a write does is in [`crate::region::apply`].
//!
//! Invariants:
//! - a write is reported as `not_applied` only if it certainly never entered a log;
//! - a write that may be in a log is proposed again only if it carries a request id;
//! - nothing waits longer than its deadline, or than `quorum_timeout` without a leader that has a
//!   quorum;
//! - operations and bytes in the queue are bounded; one more is refused with `OVERLOADED`.

mod attempt;

pub use attempt::result_of;

use super::load::{Load, Slots};
use super::quorum::{QuorumWatch, Route};
use crate::clock::StoreClock;
use crate::error::{Error, Outcome};
use crate::raft::RaftOf;
use crate::region::RegionMachine;
use crate::region::machine::SummaryCell;
use crate::tasks;
use crate::transport::SharedTransport;
use bytes::Bytes;
use rdb_proto::raft::{WriteOp, WriteResult, command_outcome};
use rdb_types::{Reason, RegionId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Proposals under way at the same time. Two: while one is being synced and acknowledged, the next is
/// being collected; more would only make the batches smaller.
const IN_FLIGHT: usize = 2;
/// Bytes of operations in one log entry at most (one operation may be larger).
const ENTRY_BYTES: usize = 1 << 20;
/// How long the answer of a leader that was followed by another is still waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How soon a request looks again when nobody leads.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What a region's queue needs to know.
pub struct StrongSettings {
    /// Writes in one log entry at most.
    pub max_batch: usize,
    /// Operations that may wait at once.
    pub max_inflight: usize,
    /// How long the table of request ids remembers.
    pub request_id_retention: Duration,
}

/// What somebody waits for.
enum Work {
    Writes {
        ops: Vec<WriteOp>,
        reply: oneshot::Sender<Result<Vec<WriteResult>, Error>>,
    },
    Command {
        command: Bytes,
        reply: oneshot::Sender<Result<command_outcome::Outcome, Error>>,
    },
}

/// A piece of work in the queue.
struct Waiting {
    work: Work,
    deadline: Instant,
    /// It came from another store: never sent on.
    forwarded: bool,
    /// An earlier attempt may have put it into a log.
    maybe_applied: bool,
    _slots: Slots,
}

impl Work {
    /// What refusals call it when they say what became of it. What a command was for is known to whoever
    /// gave it, so that is who says it.
    fn name(&self) -> Option<&'static str> {
        match self {
            Work::Writes { .. } => Some("the write"),
            Work::Command { .. } => None,
        }
    }

    fn size(&self) -> (usize, usize) {
        match self {
            Work::Writes { ops, .. } => (
                ops.len(),
                ops.iter()
                    .map(|op| op.key.len() + op.value.len() + 64)
                    .sum(),
            ),
            Work::Command { command, .. } => (1, command.len()),
        }
    }
}

impl Waiting {
    fn abandoned(&self) -> bool {
        match &self.work {
            Work::Writes { reply, .. } => reply.is_closed(),
            Work::Command { reply, .. } => reply.is_closed(),
        }
    }

    fn outcome(&self) -> Outcome {
        if self.maybe_applied {
            Outcome::Unknown
        } else {
            Outcome::NotApplied
        }
    }

    /// The refusal of a region that lost its quorum while this waited.
    fn refuse_lost(self, quorum: &QuorumWatch, outcome: Outcome) {
        let error = quorum.lost(Some((self.work.name(), outcome)));
        self.refuse(error);
    }

    /// Whether another attempt cannot apply it twice.
    fn repeatable(&self) -> bool {
        match &self.work {
            Work::Writes { ops, .. } => ops.iter().all(|op| !op.request_id.is_empty()),
            // Commands say what shall be, not what shall change.
            Work::Command { .. } => true,
        }
    }

    fn refuse(self, error: Error) {
        match self.work {
            Work::Writes { reply, .. } => drop(reply.send(Err(error))),
            Work::Command { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// What an attempt came to for work that it did not answer.
struct Attempt {
    again: Vec<Waiting>,
    /// Look again only after a moment.
    pause: bool,
}

/// The handle to a region's queue.
#[derive(Clone)]
pub struct StrongQueue {
    sender: mpsc::Sender<Waiting>,
    load: Load,
}

impl StrongQueue {
    /// Starts the region's loop. It ends when the last handle is dropped.
    pub fn start(core: StrongCore) -> StrongQueue {
        // Every piece of work in it holds a slot, so there is always room for one that got its slots.
        let (sender, receiver) = mpsc::channel(core.settings.max_inflight + 1);
        let queue = StrongQueue {
            sender,
            load: Load::new(core.settings.max_inflight),
        };
        tasks::spawn(Arc::new(core).run(receiver));
        queue
    }

    /// Operations that wait now.
    pub fn waiting(&self) -> usize {
        self.load.waiting()
    }

    /// Writes, and answers each operation. `Err` is for all of them.
    pub async fn write(
        &self,
        ops: Vec<WriteOp>,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<Vec<WriteResult>, Error> {
        let (reply, answer) = oneshot::channel();
        self.submit(Work::Writes { ops, reply }, forwarded, deadline, answer)
            .await
    }

    /// Proposes an encoded command and brings back what apply answered.
    pub async fn command(
        &self,
        command: Bytes,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<command_outcome::Outcome, Error> {
        let (reply, answer) = oneshot::channel();
        self.submit(
            Work::Command { command, reply },
            forwarded,
            deadline,
            answer,
        )
        .await
    }

    async fn submit<T>(
        &self,
        work: Work,
        forwarded: bool,
        deadline: Instant,
        answer: oneshot::Receiver<Result<T, Error>>,
    ) -> Result<T, Error> {
        let (ops, bytes) = work.size();
        let slots = self.load.take(ops, bytes)?;
        let leaving = || Error::new(Reason::NotReady, "this store is shutting down");
        let name = work.name();
        let waiting = Waiting {
            work,
            deadline,
            forwarded,
            maybe_applied: false,
            _slots: slots,
        };
        self.sender
            .try_send(waiting)
            .map_err(|_| leaving().outcome(Outcome::NotApplied))?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err(leaving().outcome(Outcome::Unknown))),
            Err(_) => Err(Error::new(
                Reason::DeadlineExceeded,
                match name {
                    Some(name) => format!(
                        "the deadline passed while {name} was under way; {}",
                        Outcome::Unknown.clause("it")
                    ),
                    None => "the deadline passed while the cluster's tables were being changed"
                        .to_owned(),
                },
            )
            .outcome(Outcome::Unknown)),
        }
    }
}

/// What the region's loop works with.
pub struct StrongCore {
    /// Which region.
    pub region: RegionId,
    /// The consensus.
    pub raft: RaftOf<RegionMachine>,
    /// Who leads, and whether it can.
    pub quorum: Arc<QuorumWatch>,
    /// What was applied.
    pub cell: Arc<SummaryCell>,
    /// Where stamps come from.
    pub clock: Arc<StoreClock>,
    /// The way to the leader.
    pub transport: SharedTransport,
    /// Limits.
    pub settings: StrongSettings,
}

impl StrongCore {
    async fn run(self: Arc<Self>, mut receiver: mpsc::Receiver<Waiting>) {
        let mut queue: VecDeque<Waiting> = VecDeque::new();
        let mut attempts: JoinSet<Attempt> = JoinSet::new();
        let mut pause_until: Option<Instant> = None;
        let mut taken = Vec::new();
        loop {
            let idle = queue.is_empty();
            tokio::select! {
                biased;
                Some(attempt) = attempts.join_next() => {
                    // A panic of an attempt drops the replies in it: whoever waits hears that the
                    // outcome is unknown.
                    if let Ok(attempt) = attempt {
                        if attempt.pause && !attempt.again.is_empty() {
                            pause_until = Some(Instant::now() + LOOK_AGAIN);
                        }
                        for waiting in attempt.again.into_iter().rev() {
                            queue.push_front(waiting);
                        }
                    }
                }
                count = receiver.recv_many(&mut taken, self.settings.max_batch) => {
                    if count == 0 {
                        return;
                    }
                    queue.extend(taken.drain(..));
                }
                () = tokio::time::sleep(LOOK_AGAIN), if !idle => {}
            }
            queue.retain(|waiting| !waiting.abandoned());
            if pause_until.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            pause_until = None;
            while !queue.is_empty() {
                match self.quorum.route() {
                    Route::Lost => {
                        for waiting in queue.drain(..) {
                            let outcome = waiting.outcome();
                            waiting.refuse_lost(&self.quorum, outcome);
                        }
                    }
                    Route::Lead if attempts.len() < IN_FLIGHT => {
                        let batch = self.take_batch(&mut queue);
                        attempts.spawn(tasks::inherit(Arc::clone(&self).propose(batch)));
                    }
                    Route::Follow(leader) if attempts.len() < IN_FLIGHT => {
                        self.refuse_forwarded(&mut queue);
                        let batch = self.take_batch(&mut queue);
                        if !batch.is_empty() {
                            attempts
                                .spawn(tasks::inherit(Arc::clone(&self).forward(leader, batch)));
                        }
                    }
                    Route::Wait => {
                        self.refuse_forwarded(&mut queue);
                        break;
                    }
                    Route::Lead | Route::Follow(_) => break,
                }
            }
        }
    }

    /// The first pieces of work that fit one log entry. A command goes alone.
    fn take_batch(&self, queue: &mut VecDeque<Waiting>) -> Vec<Waiting> {
        let mut batch = Vec::new();
        let (mut ops, mut bytes) = (0, 0);
        while let Some(next) = queue.front() {
            let (next_ops, next_bytes) = next.work.size();
            let alone = matches!(next.work, Work::Command { .. });
            let full = ops + next_ops > self.settings.max_batch || bytes + next_bytes > ENTRY_BYTES;
            if !batch.is_empty() && (alone || full) {
                break;
            }
            ops += next_ops;
            bytes += next_bytes;
            batch.extend(queue.pop_front());
            if alone {
                break;
            }
        }
        batch
    }

    /// Work of other stores is not sent on: they find the leader themselves.
    fn refuse_forwarded(&self, queue: &mut VecDeque<Waiting>) {
        let (forwarded, own): (VecDeque<_>, _) =
            queue.drain(..).partition(|waiting| waiting.forwarded);
        *queue = own;
        for waiting in forwarded {
            let error = self.quorum.not_leader();
            let error = if waiting.maybe_applied {
                error.outcome(Outcome::Unknown)
            } else {
                error
            };
            waiting.refuse(error);
        }
    }
}
