//! Linearizable reads without a log entry: one read index for all reads that wait.
//!
//! A read may be served once this replica has applied everything that was committed when the read
//! came (Ongaro, "Consensus: Bridging Theory and Practice", 6.4). A round asks the leader once for all
//! reads that came before the round began; reads that come later wait for the next. Leases are not
//! used: they need clocks that drift within bounds.
//!
//! Invariant: a read is answered only by a round that began after the read came.

use super::quorum::{QuorumWatch, Route};
use crate::error::Error;
use crate::raft::RaftOf;
use crate::region::RegionMachine;
use crate::region::machine::SummaryCell;
use crate::transport::{Lane, SharedTransport, TransportError};
use openraft::ReadPolicy;
use parking_lot::Mutex;
use rdb_proto::raft::{ReadIndexRequest, peer_request, peer_response};
use rdb_types::{Reason, RegionId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Reads that one round serves at most; more wait for the next.
const READS_PER_ROUND: usize = 4096;
/// One attempt at a round. Longer than any healthy round trip.
const ATTEMPT: Duration = Duration::from_millis(500);
/// How soon a round under way notices that the quorum was lost.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

struct Waiter {
    forwarded: bool,
    reply: oneshot::Sender<Result<u64, Error>>,
}

/// The handle to a region's rounds.
#[derive(Clone)]
pub struct Reads {
    sender: mpsc::Sender<Waiter>,
    fresh_as_of: Arc<Mutex<Option<Instant>>>,
}

/// What the rounds work with.
pub struct ReadCore {
    /// Which region.
    pub region: RegionId,
    /// The consensus.
    pub raft: RaftOf<RegionMachine>,
    /// Who leads, and whether it can.
    pub quorum: Arc<QuorumWatch>,
    /// What was applied.
    pub cell: Arc<SummaryCell>,
    /// The way to the leader.
    pub transport: SharedTransport,
}

impl Reads {
    /// Starts the region's loop. It ends when the last handle is dropped.
    pub fn start(core: ReadCore) -> Reads {
        let (sender, receiver) = mpsc::channel(READS_PER_ROUND);
        let fresh_as_of = Arc::new(Mutex::new(None));
        crate::tasks::spawn(core.run(receiver, fresh_as_of.clone()));
        Reads {
            sender,
            fresh_as_of,
        }
    }

    /// Resolves when this replica has applied all that was committed when this was called. Answers the
    /// index up to which that was.
    pub async fn barrier(&self, forwarded: bool, deadline: Instant) -> Result<u64, Error> {
        let leaving = || Error::new(Reason::NotReady, "this store is shutting down");
        let too_late = || {
            Error::new(
                Reason::DeadlineExceeded,
                "the deadline passed before the read could be served",
            )
        };
        let (reply, answer) = oneshot::channel();
        let wait = async {
            self.sender
                .send(Waiter { forwarded, reply })
                .await
                .map_err(|_| leaving())?;
            answer.await.unwrap_or_else(|_| Err(leaving()))
        };
        tokio::time::timeout_at(deadline, wait)
            .await
            .unwrap_or_else(|_| Err(too_late()))
    }

    /// How old the data here may be at most: all that was committed that long ago is in it. `None`:
    /// not known since the start. Starts a round, so that the next answer is better.
    pub fn staleness(&self) -> Option<Duration> {
        let fresh = *self.fresh_as_of.lock();
        if fresh.is_none_or(|at| at.elapsed() > Duration::from_millis(100)) {
            let (reply, _) = oneshot::channel();
            // A full queue has rounds to come anyway.
            let _ = self.sender.try_send(Waiter {
                forwarded: false,
                reply,
            });
        }
        fresh.map(|at| at.elapsed())
    }
}

impl ReadCore {
    async fn run(
        self,
        mut receiver: mpsc::Receiver<Waiter>,
        fresh_as_of: Arc<Mutex<Option<Instant>>>,
    ) {
        let mut waiters = Vec::new();
        loop {
            if waiters.is_empty() {
                if receiver.recv_many(&mut waiters, READS_PER_ROUND).await == 0 {
                    return;
                }
            } else {
                while waiters.len() < READS_PER_ROUND
                    && let Ok(waiter) = receiver.try_recv()
                {
                    waiters.push(waiter);
                }
            }
            let began = Instant::now();
            match self.until_lost(self.round(&mut waiters)).await {
                Ok(index) => {
                    *fresh_as_of.lock() = Some(began);
                    for waiter in waiters.drain(..) {
                        let _ = waiter.reply.send(Ok(index));
                    }
                }
                Err(Some(error)) => {
                    for waiter in waiters.drain(..) {
                        let _ = waiter.reply.send(Err(error.clone()));
                    }
                }
                // Not this time: those who came meanwhile join, those who gave up leave.
                Err(None) => {
                    waiters.retain(|waiter| !waiter.reply.is_closed());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    /// A round, or the refusal as soon as the quorum is lost in it.
    async fn until_lost(
        &self,
        round: impl Future<Output = Result<u64, Option<Error>>>,
    ) -> Result<u64, Option<Error>> {
        tokio::pin!(round);
        loop {
            tokio::select! {
                biased;
                done = &mut round => return done,
                () = tokio::time::sleep(LOOK_AGAIN) => {
                    if !self.quorum.available() {
                        return Err(Some(self.quorum.lost(None)));
                    }
                }
            }
        }
    }

    /// One attempt. `Err(None)`: try again.
    async fn round(&self, waiters: &mut Vec<Waiter>) -> Result<u64, Option<Error>> {
        let index = match self.quorum.route() {
            Route::Lost => return Err(Some(self.quorum.lost(None))),
            Route::Lead => {
                let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
                match tokio::time::timeout(ATTEMPT, linearizer).await {
                    Ok(Ok(linearizer)) => linearizer.read_log_id().index(),
                    Ok(Err(_)) | Err(_) => return Err(None),
                }
            }
            route @ (Route::Follow(_) | Route::Wait) => {
                for waiter in waiters.extract_if(.., |waiter| waiter.forwarded) {
                    let _ = waiter.reply.send(Err(self.quorum.not_leader()));
                }
                let Route::Follow(leader) = route else {
                    return Err(None);
                };
                if waiters.is_empty() {
                    return Err(None);
                }
                let request = peer_request::Body::ReadIndex(ReadIndexRequest {});
                match self
                    .transport
                    .call(leader, Lane::Control, self.region, request, ATTEMPT)
                    .await
                {
                    Ok(peer_response::Body::ReadIndex(reply)) => reply.index,
                    Err(TransportError::Refused(error)) if error.reason == Reason::NoQuorum => {
                        return Err(Some(error));
                    }
                    Ok(_) | Err(_) => return Err(None),
                }
            }
        };
        // Applying is local and goes on without a quorum; what is committed will be applied.
        match tokio::time::timeout(Duration::from_secs(5), self.cell.wait_applied(index)).await {
            Ok(()) => Ok(index),
            Err(_) => Err(None),
        }
    }
}
