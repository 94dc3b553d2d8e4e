//! Linearizable reads without a log entry: one read index for all reads that wait.
//!
//! A read may be served once this replica has applied everything that was committed when the read
//! came (Ongaro, "Consensus: Bridging Theory and Practice", 6.4). A round asks the leader once for all
//! reads that came before the round began; reads that come later wait for the next. Leases are not
//! used: they need clocks that drift within bounds.
//!
//! A replica that is **behind** does not let its readers wait: where what was committed [`PATIENCE`] ago is
//! not applied here yet, reads are refused with `STALE_REPLICA`, at once while that is known, and another
//! store answers them. [`BEHIND`] is when the store says of itself that it is not ready. Both are times and
//! not numbers of entries, because what makes readers wait is how long the rest takes.
//!
//! Invariant: a read is answered only by a round that began after the read came.

use super::quorum::{QuorumWatch, Route};
use crate::error::{Error, Outcome};
use crate::raft::RaftOf;
use crate::region::RegionMachine;
use crate::region::machine::SummaryCell;
use crate::transport::{Lane, SharedTransport, TransportError};
use openraft::ReadPolicy;
use parking_lot::Mutex;
use rdb_proto::raft::{ReadIndexRequest, peer_request, peer_response};
use rdb_types::{Reason, RegionId, StoreId};
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

/// How long a read waits for the replica to apply what it needs; less, where the deadline is near.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// From when on a replica that has not applied what was committed counts as behind.
pub const BEHIND: Duration = Duration::from_secs(2);
/// How long a round waits for what it needs, before another one asks anew.
const APPLIES: Duration = Duration::from_secs(5);
/// How often a read or a round that waits looks whether it waits in vain.
const LOOK: Duration = Duration::from_millis(100);

struct Waiter {
    forwarded: bool,
    reply: oneshot::Sender<Result<u64, Error>>,
}

/// The handle to a region's rounds.
#[derive(Clone)]
pub struct Reads {
    region: RegionId,
    me: StoreId,
    sender: mpsc::Sender<Waiter>,
    known: Arc<Mutex<Known>>,
    cell: Arc<SummaryCell>,
}

/// What the rounds have found out.
#[derive(Default)]
struct Known {
    /// The start of the last round that succeeded.
    fresh_as_of: Option<Instant>,
    /// The oldest read index that was not applied when it was last looked at.
    owed: Option<Owed>,
}

#[derive(Clone, Copy)]
struct Owed {
    index: u64,
    since: Instant,
}

impl Known {
    /// A round needs this index, and `applied` is what there is.
    fn needs(&mut self, index: u64, applied: u64, now: Instant) {
        self.look(applied);
        if index > applied {
            let owed = self.owed.get_or_insert(Owed { index, since: now });
            owed.index = owed.index.min(index);
        } else {
            // A new leader needs its own first entry, which is not committed yet, and may be lost with its
            // lead, behind others of its. What a later round does not need was never committed.
            self.owed = None;
        }
    }

    /// What has been owed for at least so long.
    fn owed_for(&mut self, least: Duration, applied: u64, now: Instant) -> Option<Owed> {
        self.look(applied);
        self.owed
            .filter(|owed| now.saturating_duration_since(owed.since) >= least)
    }

    fn look(&mut self, applied: u64) {
        self.owed = self.owed.filter(|owed| owed.index > applied);
    }
}

/// What the rounds work with.
pub struct ReadCore {
    /// Which store.
    pub me: StoreId,
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
        let known = Arc::<Mutex<Known>>::default();
        let reads = Reads {
            region: core.region,
            me: core.me,
            sender,
            known: known.clone(),
            cell: core.cell.clone(),
        };
        crate::tasks::spawn(core.run(receiver, known));
        reads
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
        // Whoever asks for the index only, applies it itself.
        if let Some(owed) = self.owed_for(PATIENCE).filter(|_| !forwarded) {
            // Whether that is still so, a round finds out.
            self.staleness();
            return Err(self.stale(owed));
        }
        let (reply, answer) = oneshot::channel();
        let wait = async {
            self.sender
                .send(Waiter { forwarded, reply })
                .await
                .map_err(|_| leaving())?;
            answer.await.unwrap_or_else(|_| Err(leaving()))
        };
        tokio::pin!(wait);
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = PATIENCE.min(left / 2);
        loop {
            let look = deadline.min(Instant::now() + LOOK);
            match tokio::time::timeout_at(look, &mut wait).await {
                Ok(done) => return done,
                Err(_) if Instant::now() >= deadline => return Err(too_late()),
                Err(_) => {
                    if let Some(owed) = self.owed_for(patience) {
                        return Err(self.stale(owed));
                    }
                }
            }
        }
    }

    fn owed_for(&self, least: Duration) -> Option<Owed> {
        let applied = self.cell.applied_index();
        self.known.lock().owed_for(least, applied, Instant::now())
    }

    fn stale(&self, owed: Owed) -> Error {
        let applied = self.cell.applied_index();
        Error::new(
            Reason::StaleReplica,
            format!(
                "store {} is catching up: it has applied region {} up to entry {applied}, and the read needs entry {}; ask another store",
                self.me, self.region, owed.index
            ),
        )
        .with("region", self.region)
        .with("applied", applied)
        .with("needed", owed.index)
        .outcome(Outcome::NotApplied)
    }

    /// Starts a round while none has succeeded since the start.
    pub fn catch_up(&self) {
        if self.known.lock().fresh_as_of.is_none() {
            self.staleness();
        }
    }

    /// In words, if this replica is behind: it has not caught up since it started, or has not applied what
    /// was committed [`BEHIND`] ago.
    pub fn behind(&self) -> Option<String> {
        let owed = self.owed_for(BEHIND);
        if owed.is_some() {
            // As long as it says so nobody may come to read: it finds out by itself when that is over.
            self.staleness();
        }
        let caught_up = self.known.lock().fresh_as_of.is_some();
        let applied = self.cell.applied_index();
        match owed {
            Some(owed) => Some(format!(
                "this store is catching up: it has applied up to entry {applied}, and entry {} was committed {} ms ago or longer",
                owed.index,
                owed.since.elapsed().as_millis()
            )),
            None if !caught_up => Some(format!(
                "this store has not caught up with its leader since it started; it has applied up to entry {applied}"
            )),
            None => None,
        }
    }

    /// How old the data here may be at most: all that was committed that long ago is in it. `None`:
    /// not known since the start. Starts a round, so that the next answer is better.
    pub fn staleness(&self) -> Option<Duration> {
        let fresh = self.known.lock().fresh_as_of;
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
    async fn run(self, mut receiver: mpsc::Receiver<Waiter>, known: Arc<Mutex<Known>>) {
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
            match self.until_lost(self.round(&mut waiters, &known)).await {
                Ok(index) => {
                    known.lock().fresh_as_of = Some(began);
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
    async fn round(
        &self,
        waiters: &mut Vec<Waiter>,
        known: &Mutex<Known>,
    ) -> Result<u64, Option<Error>> {
        let route = self.quorum.route();
        let leads = matches!(route, Route::Lead);
        let index = match route {
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
        let applied = self.cell.applied_index();
        known.lock().needs(index, applied, Instant::now());
        // Applying is local and goes on without a quorum; what is committed will be applied. What a leader needs
        // may not be committed yet, and is lost with its lead.
        let give_up = Instant::now() + APPLIES;
        let mut applied = std::pin::pin!(self.cell.wait_applied(index));
        loop {
            match tokio::time::timeout(LOOK, &mut applied).await {
                Ok(()) => return Ok(index),
                Err(_) if Instant::now() >= give_up => return Err(None),
                Err(_) if leads && !matches!(self.quorum.route(), Route::Lead) => return Err(None),
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_owes_what_it_was_first_asked_for_until_it_has_applied_that() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut known = Known::default();
        let owed = |known: &mut Known, applied, now| {
            known
                .owed_for(PATIENCE, applied, now)
                .map(|owed| owed.index)
        };
        known.needs(10, 10, at(0));
        assert_eq!(owed(&mut known, 10, at(5000)), None, "all is applied");
        known.needs(20, 10, at(5000));
        known.needs(90, 15, at(5900));
        assert_eq!(owed(&mut known, 15, at(5999)), None, "not long enough");
        assert_eq!(owed(&mut known, 15, at(6000)), Some(20));
        // One that is always a little behind, and keeps up, owes nothing for long.
        assert_eq!(owed(&mut known, 20, at(6500)), None);
        known.needs(95, 21, at(6500));
        assert_eq!(owed(&mut known, 94, at(7500)), Some(95));
    }

    /// Regression: a store was elected with a long end of its log that nobody else had, and needed its own first
    /// entry for a read. It lost its lead and that end, and nobody wrote after that: it refused linearizable reads, and
    /// said that it was not ready, for good.
    #[test]
    fn what_was_lost_with_a_lead_is_not_owed() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut known = Known::default();
        known.needs(185, 178, at(0));
        assert!(known.owed_for(PATIENCE, 183, at(5000)).is_some());
        // The next leader needs less, and that is applied here; or soon will be, and counts from the beginning.
        known.needs(183, 183, at(5000));
        assert!(known.owed_for(PATIENCE, 183, at(9000)).is_none());
        known.needs(190, 183, at(9000));
        known.needs(184, 183, at(9500));
        let owed = known.owed_for(PATIENCE, 183, at(10_000)).unwrap();
        assert_eq!(owed.index, 184);
        assert!(known.owed_for(PATIENCE, 184, at(10_000)).is_none());
    }
}
