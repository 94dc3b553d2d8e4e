//! openraft's types as protobuf and back.
//!
//! Owns both directions for everything that Raft sends or stores. Writing always succeeds; reading
//! answers an error that names the field. Knows nothing of connections or files.
//!
//! Invariant: reading what was written gives back the same value.
//!
//! A log id on the wire has room for a node. It stays 0: with one leader per term, the term says it.

use super::{
    Command, Entry, EntryPayload, LogId, Membership, QuorumView, StoreNode, StoredMembership,
    TypeConfig, Vote,
};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use rdb_proto::raft;
use rdb_proto::raft::append_reply::Result as AppendResult;
use rdb_proto::raft::entry::Payload;
use std::collections::{BTreeMap, BTreeSet};

/// A message of Raft that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("{message} has no {field}")]
    Missing {
        /// Of which message.
        message: &'static str,
        /// Which one.
        field: &'static str,
    },
    /// A value that makes no sense.
    #[error("{message} is not valid: {why}")]
    Invalid {
        /// Of which message.
        message: &'static str,
        /// In words.
        why: String,
    },
}

impl WireError {
    fn missing(message: &'static str, field: &'static str) -> WireError {
        WireError::Missing { message, field }
    }

    fn invalid(message: &'static str, why: impl ToString) -> WireError {
        WireError::Invalid {
            message,
            why: why.to_string(),
        }
    }

    /// The bytes are not the protobuf message that they should be.
    pub fn undecodable(message: &'static str, why: &prost::DecodeError) -> WireError {
        WireError::invalid(message, why)
    }
}

/// Writes a log id.
pub fn log_id_to_wire(id: &LogId) -> raft::LogId {
    raft::LogId {
        term: id.leader_id.term,
        node: 0,
        index: id.index,
    }
}

/// Reads a log id.
pub fn log_id(wire: &raft::LogId) -> LogId {
    super::log_id(wire.term, wire.index)
}

/// Writes a vote.
pub fn vote_to_wire(vote: &Vote) -> raft::Vote {
    raft::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// Reads a vote.
pub fn vote(wire: &raft::Vote) -> Vote {
    match wire.committed {
        true => Vote::new_committed(wire.term, wire.node),
        false => Vote::new(wire.term, wire.node),
    }
}

fn required_vote(wire: Option<&raft::Vote>, message: &'static str) -> Result<Vote, WireError> {
    wire.map(vote).ok_or(WireError::missing(message, "vote"))
}

/// Reads the vote of a message that only an elected leader sends.
///
/// # Errors
/// There is none, or its sender was not elected.
pub fn leaders_vote(wire: Option<&raft::Vote>, message: &'static str) -> Result<Vote, WireError> {
    let vote = required_vote(wire, message)?;
    match vote.committed {
        true => Ok(vote),
        false => Err(WireError::invalid(
            message,
            format!("its sender was not elected ({vote})"),
        )),
    }
}

/// Writes a membership.
pub fn membership_to_wire(membership: &Membership) -> raft::Membership {
    let voters = |config: &BTreeSet<u64>| raft::Voters {
        store_ids: config.iter().copied().collect(),
    };
    let member = |(id, node): (&u64, &StoreNode)| raft::Member {
        // Ids of stores have ten bits; what has more was never accepted anywhere.
        store_id: u32::try_from(*id).unwrap_or(u32::MAX),
        store_uuid: node.store_uuid.clone(),
        address: node.address.clone(),
    };
    raft::Membership {
        configs: membership.get_joint_config().iter().map(voters).collect(),
        members: membership.nodes().map(member).collect(),
    }
}

/// Reads a membership.
///
/// # Errors
/// A voter is no member, or a configuration has no voters.
pub fn membership(wire: &raft::Membership) -> Result<Membership, WireError> {
    let configs: Vec<BTreeSet<u64>> = wire
        .configs
        .iter()
        .map(|config| config.store_ids.iter().copied().collect())
        .collect();
    let nodes: BTreeMap<u64, StoreNode> = wire
        .members
        .iter()
        .map(|member| {
            let node = StoreNode {
                store_uuid: member.store_uuid.clone(),
                address: member.address.clone(),
            };
            (u64::from(member.store_id), node)
        })
        .collect();
    Membership::new(configs, nodes).map_err(|error| WireError::invalid("Membership", error))
}

/// Writes a membership with the entry that set it.
pub fn stored_membership_to_wire(stored: &StoredMembership) -> raft::StoredMembership {
    raft::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

/// Reads a membership with the entry that set it. No membership at all is the empty one.
///
/// # Errors
/// As [`membership`].
pub fn stored_membership(wire: &raft::StoredMembership) -> Result<StoredMembership, WireError> {
    let membership = wire
        .membership
        .as_ref()
        .map(membership)
        .transpose()?
        .unwrap_or_default();
    Ok(StoredMembership::new(
        wire.log_id.as_ref().map(log_id),
        membership,
    ))
}

/// Writes an entry. The command's bytes are shared, not copied.
pub fn entry_to_wire(entry: &Entry) -> raft::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(command) => Some(Payload::Command(command.0.clone())),
        EntryPayload::Membership(membership) => {
            Some(Payload::Membership(membership_to_wire(membership)))
        }
    };
    raft::Entry {
        log_id: Some(log_id_to_wire(&entry.log_id)),
        payload,
    }
}

/// Reads an entry.
///
/// # Errors
/// It has no log id, or its membership is not valid.
pub fn entry(wire: raft::Entry) -> Result<Entry, WireError> {
    let log_id = wire
        .log_id
        .as_ref()
        .map(log_id)
        .ok_or(WireError::missing("Entry", "log_id"))?;
    let payload = match wire.payload {
        None => EntryPayload::Blank,
        Some(Payload::Command(bytes)) => EntryPayload::Normal(Command(bytes)),
        Some(Payload::Membership(wire)) => EntryPayload::Membership(membership(&wire)?),
    };
    Ok(Entry { log_id, payload })
}

/// Writes a request to append. `view` tells the follower how its leader is off.
pub fn append_to_wire(
    request: &AppendEntriesRequest<TypeConfig>,
    view: &QuorumView,
) -> raft::AppendRequest {
    raft::AppendRequest {
        vote: Some(vote_to_wire(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request.entries.iter().map(entry_to_wire).collect(),
        committed: request.leader_commit.as_ref().map(log_id_to_wire),
        quorum_age_ms: view.quorum_age_ms(),
        growing: view.growing(),
    }
}

/// Reads a request to append.
///
/// # Errors
/// A field is missing, the sender was never elected, or the entries are not consecutive: openraft
/// relies on all three and would panic.
pub fn append(wire: raft::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    const MESSAGE: &str = "AppendRequest";
    let vote = leaders_vote(wire.vote.as_ref(), MESSAGE)?;
    let prev_log_id = wire.prev.as_ref().map(log_id);
    let entries = wire
        .entries
        .into_iter()
        .map(entry)
        .collect::<Result<Vec<_>, _>>()?;
    let mut expected = prev_log_id.map_or(Some(0), |prev| prev.index.checked_add(1));
    for entry in &entries {
        if Some(entry.log_id.index) != expected {
            let why = format!("entry {} does not follow the one before it", entry.log_id);
            return Err(WireError::invalid(MESSAGE, why));
        }
        expected = entry.log_id.index.checked_add(1);
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit: wire.committed.as_ref().map(log_id),
    })
}

/// The last log id that a request to append covers: what its success means.
pub fn last_of(request: &AppendEntriesRequest<TypeConfig>) -> Option<LogId> {
    request
        .entries
        .last()
        .map(|entry| entry.log_id)
        .or(request.prev_log_id)
}

/// Writes the answer to a request whose last log id was `last`.
pub fn append_reply_to_wire(
    result: &StreamAppendResult<TypeConfig>,
    last: Option<LogId>,
) -> raft::AppendReply {
    let reply = |result: AppendResult| raft::AppendReply {
        result: result as i32,
        matching: None,
        vote: None,
    };
    match result {
        Ok(matching) if *matching == last => reply(AppendResult::Success),
        Ok(matching) => raft::AppendReply {
            matching: matching.as_ref().map(log_id_to_wire),
            ..reply(AppendResult::Partial)
        },
        Err(StreamAppendError::Conflict(_)) => reply(AppendResult::Conflict),
        Err(StreamAppendError::HigherVote(vote)) => raft::AppendReply {
            vote: Some(vote_to_wire(vote)),
            ..reply(AppendResult::HigherVote)
        },
    }
}

/// Reads the answer to a request that began behind `prev` and ended with `last`.
///
/// # Errors
/// An unknown result; a higher vote without one; a conflict with nothing to conflict with; a partial
/// success outside of what was sent, which openraft forbids.
pub fn append_reply(
    wire: &raft::AppendReply,
    prev: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    const MESSAGE: &str = "AppendReply";
    let result =
        AppendResult::try_from(wire.result).map_err(|error| WireError::invalid(MESSAGE, error))?;
    match result {
        AppendResult::Success => Ok(Ok(last)),
        AppendResult::Partial => {
            let matching = wire.matching.as_ref().map(log_id);
            if matching < prev || matching > last {
                return Err(WireError::invalid(
                    MESSAGE,
                    "a partial success outside of what was sent",
                ));
            }
            Ok(Ok(matching))
        }
        AppendResult::Conflict => {
            let prev = prev.ok_or(WireError::invalid(
                MESSAGE,
                "a conflict with the beginning of the log",
            ))?;
            Ok(Err(StreamAppendError::Conflict(prev)))
        }
        AppendResult::HigherVote => Ok(Err(StreamAppendError::HigherVote(required_vote(
            wire.vote.as_ref(),
            MESSAGE,
        )?))),
    }
}

/// Writes a request for a vote or a pre-vote.
pub fn vote_request_to_wire(request: &VoteRequest<TypeConfig>) -> raft::VoteRequest {
    raft::VoteRequest {
        vote: Some(vote_to_wire(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_to_wire),
        leadership_transfer: request.leadership_transfer,
    }
}

/// Reads a request for a vote or a pre-vote.
///
/// # Errors
/// There is no vote.
pub fn vote_request(wire: &raft::VoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    let vote = required_vote(wire.vote.as_ref(), "VoteRequest")?;
    let last_log_id = wire.last_log_id.as_ref().map(log_id);
    Ok(VoteRequest {
        vote,
        last_log_id,
        leadership_transfer: wire.leadership_transfer,
    })
}

/// Writes the answer to a request for a vote.
pub fn vote_reply_to_wire(reply: &VoteResponse<TypeConfig>) -> raft::VoteReply {
    raft::VoteReply {
        vote: Some(vote_to_wire(&reply.vote)),
        granted: reply.vote_granted,
        last_log_id: reply.last_log_id.as_ref().map(log_id_to_wire),
    }
}

/// Reads the answer to a request for a vote.
///
/// # Errors
/// There is no vote.
pub fn vote_reply(wire: &raft::VoteReply) -> Result<VoteResponse<TypeConfig>, WireError> {
    let vote = required_vote(wire.vote.as_ref(), "VoteReply")?;
    Ok(VoteResponse {
        vote,
        vote_granted: wire.granted,
        last_log_id: wire.last_log_id.as_ref().map(log_id),
    })
}

/// Writes a leader's request to take over.
pub fn transfer_to_wire(
    request: &TransferLeaderRequest<TypeConfig>,
) -> raft::TransferLeaderRequest {
    raft::TransferLeaderRequest {
        from: Some(vote_to_wire(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id_to_wire),
    }
}

/// Reads a leader's request to take over.
///
/// # Errors
/// There is no vote.
pub fn transfer(
    wire: &raft::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    let from = required_vote(wire.from.as_ref(), "TransferLeaderRequest")?;
    Ok(TransferLeaderRequest::new(
        from,
        wire.to,
        wire.last_log_id.as_ref().map(log_id),
    ))
}

/// Writes what a snapshot covers. `snapshot_id` names the bytes: two with the same id are equal.
pub fn snapshot_meta_to_wire(meta: &super::SnapshotMeta, snapshot_id: &str) -> raft::SnapshotMeta {
    raft::SnapshotMeta {
        snapshot_id: snapshot_id.to_owned(),
        last_log_id: meta.last_log_id.as_ref().map(log_id_to_wire),
        membership: Some(stored_membership_to_wire(&meta.last_membership)),
    }
}

/// Reads what a snapshot covers.
///
/// # Errors
/// Its membership is not valid.
pub fn snapshot_meta(wire: &raft::SnapshotMeta) -> Result<super::SnapshotMeta, WireError> {
    let last_membership = wire
        .membership
        .as_ref()
        .map(stored_membership)
        .transpose()?
        .unwrap_or_default();
    Ok(super::SnapshotMeta {
        last_log_id: wire.last_log_id.as_ref().map(log_id),
        last_membership,
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
