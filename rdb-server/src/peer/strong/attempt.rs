//! One attempt to get a batch of writes into the log, and what became of it.
//!
//! Owns proposing and forwarding, and the reading of what consensus, the leader or the transport answer.
//! What waits, and when to try, is the queue's.
//!
//! Invariant: what an attempt does not answer it gives back, and says of each piece whether it may be in
//! a log.

use super::{Attempt, LAST_WORDS, StrongCore, Waiting, Work};
use crate::error::{Error, Outcome};
use crate::raft::Command;
use crate::transport::{Lane, TransportError};
use openraft::errors::{ClientWriteError, RaftError};
use prost::Message;
use rdb_proto::raft::{
    self, WriteOp, WriteResult, command, command_outcome, peer_request, peer_response, write_result,
};
use rdb_types::{Reason, StoreId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl StrongCore {
    pub(super) async fn propose(self: Arc<Self>, mut batch: Vec<Waiting>) -> Attempt {
        let command = match self.command_of(&mut batch).await {
            Ok(command) => command,
            Err(error) => {
                refuse_all(batch, &error);
                return Attempt {
                    again: Vec::new(),
                    pause: false,
                };
            }
        };
        let write = self.raft.client_write(command);
        let Some(written) = self.until_lost(&batch, write).await else {
            for waiting in batch {
                waiting.refuse_lost(&self.quorum, Outcome::Unknown);
            }
            return Attempt {
                again: Vec::new(),
                pause: false,
            };
        };
        match written {
            Ok(response) => {
                answer(batch, response.data.0.outcome);
                Attempt {
                    again: Vec::new(),
                    pause: false,
                }
            }
            // Said before the entry was appended: it is in no log.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Attempt {
                again: batch,
                pause: true,
            },
            // Appended and then overwritten here; another replica may still hold it.
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => self.after_unknown(
                batch,
                "the leader was deposed while the write was under way",
            ),
            Err(error) => {
                let error = Error::new(
                    Reason::NotReady,
                    format!("region {} cannot take writes: {error}", self.region),
                );
                refuse_all(batch, &error.outcome(Outcome::Unknown));
                Attempt {
                    again: Vec::new(),
                    pause: false,
                }
            }
        }
    }

    /// Work whose attempt may have put it into a log: once more if that is safe, else said plainly.
    fn after_unknown(&self, batch: Vec<Waiting>, why: &str) -> Attempt {
        let mut again = Vec::new();
        for mut waiting in batch {
            waiting.maybe_applied = true;
            if waiting.repeatable() && !waiting.forwarded {
                again.push(waiting);
            } else {
                let clause = Outcome::Unknown.clause("it");
                let said = why.contains(&clause);
                let clause = if said {
                    String::new()
                } else {
                    format!(": {clause}")
                };
                let error = Error::new(
                    Reason::OutcomeUnknown,
                    format!("{why}{clause}; repeat it only with its request id, or read first"),
                );
                waiting.refuse(error.with("region", self.region).outcome(Outcome::Unknown));
            }
        }
        Attempt { again, pause: true }
    }

    /// The log entry for a batch: all of its operations with stamps of their own.
    async fn command_of(&self, batch: &mut [Waiting]) -> Result<Command, Error> {
        if let [
            Waiting {
                work: Work::Command { command, .. },
                ..
            },
        ] = batch
        {
            return Ok(Command(command.clone()));
        }
        let ops: Vec<WriteOp> = batch
            .iter()
            .flat_map(|waiting| match &waiting.work {
                Work::Writes { ops, .. } => ops.as_slice(),
                Work::Command { .. } => &[],
            })
            .cloned()
            .collect();
        self.clock
            .observe(self.cell.with(|summary| summary.last_stamp));
        let stamp = self
            .clock
            .reserve(ops.len() as u64)
            .await
            .map_err(|error| Error::from(error).outcome(Outcome::NotApplied))?;
        let writes = raft::WriteBatch {
            stamp: stamp.0,
            request_id_retention_ms: self.settings.request_id_retention.as_millis() as u64,
            ops,
        };
        Ok(Command::encode(&raft::Command {
            kind: Some(command::Kind::Writes(writes)),
        }))
    }

    pub(super) async fn forward(self: Arc<Self>, leader: StoreId, batch: Vec<Waiting>) -> Attempt {
        let latest = batch
            .iter()
            .map(|waiting| waiting.deadline)
            .max()
            .unwrap_or_else(Instant::now);
        let timeout = latest.saturating_duration_since(Instant::now());
        let request = match batch.as_slice() {
            [
                Waiting {
                    work: Work::Command { command, .. },
                    ..
                },
            ] => peer_request::Body::Propose(raft::Propose {
                command: command.clone(),
            }),
            _ => {
                let ops = batch.iter().flat_map(|waiting| match &waiting.work {
                    Work::Writes { ops, .. } => ops.as_slice(),
                    Work::Command { .. } => &[],
                });
                peer_request::Body::Write(raft::WriteForward {
                    ops: ops.cloned().collect(),
                })
            }
        };
        let call = self
            .transport
            .call(leader, Lane::Forward, self.region, request, timeout);
        let call = async {
            tokio::select! {
                biased;
                answered = call => answered,
                // Cut off or standing still, the old leader keeps its callers waiting for nothing.
                () = self.deposed(leader) => Err(TransportError::NoAnswer { to: leader, why: "another store leads now".to_owned() }),
            }
        };
        let Some(answered) = self.until_lost(&batch, call).await else {
            for waiting in batch {
                waiting.refuse_lost(&self.quorum, Outcome::Unknown);
            }
            return Attempt {
                again: Vec::new(),
                pause: false,
            };
        };
        match answered {
            Ok(peer_response::Body::Write(reply)) => {
                answer(batch, Some(command_outcome::Outcome::Writes(reply)))
            }
            Ok(peer_response::Body::Propose(reply)) => {
                match raft::CommandOutcome::decode(reply.outcome) {
                    Ok(outcome) => answer(batch, outcome.outcome),
                    Err(error) => refuse_all(
                        batch,
                        &Error::new(Reason::NotReady, error.to_string()).outcome(Outcome::Unknown),
                    ),
                }
            }
            Ok(_) => refuse_all(
                batch,
                &Error::new(Reason::NotReady, "the leader answered something else")
                    .outcome(Outcome::Unknown),
            ),
            Err(TransportError::Unreachable { .. }) => {
                return Attempt {
                    again: batch,
                    pause: true,
                };
            }
            Err(TransportError::NoAnswer { why, .. }) => {
                return self.after_unknown(batch, &format!("the leader did not answer ({why})"));
            }
            // Refused before it was handed to a region, or by one that does not lead: in no log.
            Err(TransportError::Refused(error))
                if matches!(error.reason, Reason::NotLeader | Reason::NotReady)
                    && !error.is_unknown() =>
            {
                return Attempt {
                    again: batch,
                    pause: true,
                };
            }
            Err(TransportError::Refused(error))
                if error.is_unknown() && error.reason != Reason::NoQuorum =>
            {
                return self.after_unknown(batch, &error.message);
            }
            Err(TransportError::Refused(error)) if error.metadata.contains_key("outcome") => {
                refuse_all(batch, &error)
            }
            // Too large for the wire, or not understood: it was not handed on.
            Err(TransportError::Refused(error)) => {
                refuse_all(batch, &error.outcome(Outcome::NotApplied))
            }
        }
        Attempt {
            again: Vec::new(),
            pause: false,
        }
    }

    /// Resolves when another store than `leader` has led for a moment: after an orderly hand-over the
    /// answer is still on its way.
    async fn deposed(&self, leader: StoreId) {
        loop {
            tokio::time::sleep(Duration::from_millis(25)).await;
            if self.quorum.leader().is_some_and(|now| now != leader) {
                return tokio::time::sleep(LAST_WORDS).await;
            }
        }
    }

    /// Waits for an attempt as long as somebody waits for it and a quorum may still answer; `None`
    /// when it was given up.
    async fn until_lost<T>(
        &self,
        batch: &[Waiting],
        attempt: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(attempt);
        loop {
            tokio::select! {
                biased;
                done = &mut attempt => return Some(done),
                () = tokio::time::sleep(Duration::from_millis(25)) => {
                    if !self.quorum.available() || batch.iter().all(Waiting::abandoned) {
                        return None;
                    }
                }
            }
        }
    }
}

fn refuse_all(batch: Vec<Waiting>, error: &Error) {
    for waiting in batch {
        let error = if waiting.maybe_applied {
            error.clone().outcome(Outcome::Unknown)
        } else {
            error.clone()
        };
        waiting.refuse(error);
    }
}

/// Hands out what apply answered.
fn answer(batch: Vec<Waiting>, outcome: Option<command_outcome::Outcome>) {
    let unknown = || {
        Error::new(
            Reason::OutcomeUnknown,
            "the log answered something else: whether the write was applied is not known",
        )
        .outcome(Outcome::Unknown)
    };
    match outcome {
        Some(command_outcome::Outcome::Writes(reply)) => {
            let mut results = reply.results.into_iter();
            for waiting in batch {
                match waiting.work {
                    Work::Writes { ops, reply } => {
                        let mine: Vec<WriteResult> = results.by_ref().take(ops.len()).collect();
                        let whole = mine.len() == ops.len();
                        drop(reply.send(if whole { Ok(mine) } else { Err(unknown()) }));
                    }
                    Work::Command { reply, .. } => drop(reply.send(Err(unknown()))),
                }
            }
        }
        Some(command_outcome::Outcome::Error(error)) => {
            let error = Error::from_wire(error);
            for waiting in batch {
                waiting.refuse(error.clone());
            }
        }
        Some(outcome) => {
            for waiting in batch {
                match waiting.work {
                    Work::Command { reply, .. } => drop(reply.send(Ok(outcome.clone()))),
                    Work::Writes { reply, .. } => drop(reply.send(Err(unknown()))),
                }
            }
        }
        None => refuse_all(batch, &unknown()),
    }
}

/// The result of one operation as domain code wants it.
pub fn result_of(result: WriteResult) -> Result<write_result::Applied, Error> {
    match result.outcome {
        Some(write_result::Outcome::Applied(applied)) => Ok(applied),
        Some(write_result::Outcome::Error(error)) => Err(Error::from_wire(error)),
        None => Err(
            Error::new(Reason::OutcomeUnknown, "the leader answered nothing")
                .outcome(Outcome::Unknown),
        ),
    }
}
