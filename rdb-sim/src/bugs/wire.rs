//! A network that changes what is said.

use super::Bug;
use crate::network::{Answer, Letter, Tap};
use parking_lot::Mutex;
use rdb_proto::raft::{self, append_reply, peer_request, peer_response};
use rdb_server::transport::TransportError;
use rdb_types::{NamespaceId, RegionId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of so many messages, one is forged, where forging all of them would only stop the cluster.
const FORGED: u64 = 40;

/// Forges messages.
pub(super) struct Forger {
    bug: Bug,
    seen: AtomicU64,
    /// The newest leader's vote of each region.
    newest: Mutex<BTreeMap<RegionId, raft::Vote>>,
    told: super::eventual::LastTold,
    seals: super::switching::Told,
    promises: super::promises::Promises,
    votes: super::votes::Told,
}

impl Forger {
    pub(super) fn new(bug: Bug, disks: super::promises::Disks) -> Forger {
        Forger {
            bug,
            seen: AtomicU64::new(0),
            newest: Mutex::default(),
            told: super::eventual::LastTold::default(),
            seals: super::switching::Told::default(),
            promises: super::promises::Promises::new(disks),
            votes: super::votes::Told::default(),
        }
    }

    fn now_and_then(&self) -> bool {
        (self.seen.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(FORGED)
    }
}

impl Tap for Forger {
    fn request(&self, letter: &mut Letter) -> Option<Answer> {
        if matches!(self.bug, Bug::FenceSkipped | Bug::PromiseNotBinding) {
            return self.promises.request(self.bug, letter);
        }
        let region = letter.region;
        match (self.bug, &mut letter.body) {
            (Bug::ReadIndexSkipped, peer_request::Body::ReadIndex(_)) => {
                let reply = raft::ReadIndexReply { index: 0 };
                Some(Ok(peer_response::Body::ReadIndex(reply)))
            }
            (Bug::AcknowledgeWithoutStoring, peer_request::Body::Append(append))
                if !append.entries.is_empty() && self.now_and_then() =>
            {
                let reply = raft::AppendReply {
                    result: append_reply::Result::Success as i32,
                    ..Default::default()
                };
                Some(Ok(peer_response::Body::Append(reply)))
            }
            (Bug::OldTermAccepted, peer_request::Body::Append(append)) => {
                let mut newest = self.newest.lock();
                let vote = append.vote.unwrap_or_default();
                let known = newest.entry(region).or_insert(vote);
                if vote.term >= known.term {
                    *known = vote;
                } else {
                    append.vote = Some(*known);
                }
                None
            }
            (Bug::CommittedTooEarly, peer_request::Body::Append(append)) => {
                if let Some(last) = append.entries.last() {
                    append.committed = last.log_id;
                }
                None
            }
            (Bug::RequestIdDropped, peer_request::Body::Write(write)) => {
                for op in &mut write.ops {
                    op.request_id.clear();
                }
                None
            }
            (Bug::RestampOnRelay | Bug::GapAccepted, peer_request::Body::PushOrigins(push)) => {
                let now = self.now_and_then();
                super::eventual::forge_push(self.bug, letter.from, push, now);
                None
            }
            (Bug::EpochUnchecked, peer_request::Body::PushOrigins(push)) => {
                self.seals.forge_epoch(letter.to, region, push);
                None
            }
            (Bug::VotesCountedTwice, _) => {
                self.votes.request(letter);
                None
            }
            (Bug::DrainOneShort | Bug::PromiseCountedTwice, _) => {
                let counts = self.seals.counts_already(self.bug, letter)?;
                Some(Ok(peer_response::Body::Sealing(counts)))
            }
            _ => None,
        }
    }

    fn answer(&self, letter: &Letter, answer: &mut Answer) {
        match (self.bug, answer) {
            (Bug::NaiveTombstoneRule, Ok(peer_response::Body::Reports(reply))) => {
                for report in &mut reply.reports {
                    let namespace = NamespaceId(report.namespace_id);
                    let between = (letter.to, letter.from);
                    self.told
                        .trim(letter.region, namespace, between, &mut report.vector);
                }
            }
            (Bug::VotesCountedTwice, answer) => self.votes.answer(letter, answer),
            (Bug::FenceSkipped | Bug::PromiseNotBinding, answer) => {
                self.promises.answer(self.bug, letter, answer);
            }
            (Bug::DrainOneShort | Bug::PromiseCountedTwice, answer) => {
                self.seals.count_twice(self.bug, letter, answer);
            }
            (Bug::EpochUnchecked, Ok(peer_response::Body::Reports(reply))) => {
                for report in &mut reply.reports {
                    let (namespace, epoch) = (report.namespace_id, &mut report.epoch);
                    self.seals.tells(letter, namespace, epoch);
                }
            }
            (Bug::EpochUnchecked, Ok(peer_response::Body::PushOrigins(reply))) => {
                for part in &mut reply.vectors {
                    let (namespace, epoch) = (part.namespace_id, &mut part.epoch);
                    self.seals.tells(letter, namespace, epoch);
                }
            }
            (Bug::VoteAlwaysGranted, Ok(peer_response::Body::Vote(reply))) => {
                if let peer_request::Body::Vote(request) | peer_request::Body::PreVote(request) =
                    &letter.body
                {
                    reply.granted = true;
                    reply.vote = request.vote;
                    reply.last_log_id = request.last_log_id;
                }
            }
            (Bug::SentReportedAsUnsent, answer @ Ok(peer_response::Body::Write(_)))
                if self.now_and_then() =>
            {
                *answer = Err(TransportError::Unreachable {
                    to: letter.to,
                    why: "it was sent, and this says it was not".to_owned(),
                });
            }
            _ => {}
        }
    }
}
