//! Reading a region's log from the disk.
//!
//! Owns the checks of what is found there. Knows nothing of what is still in memory or under way.
//!
//! Invariant: what is missing, unreadable or at the wrong place is an error that names the region and
//! the entry. Nothing is skipped: a log with a gap has lost what somebody was promised.

use super::log_keys as keys;
use super::log_tail::Room;
use super::{Entry, LogId, Vote, WireError, wire};
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft;
use rdb_storage::{Family, StorageError, View};
use rdb_types::RegionId;

/// What a log says of itself.
pub(super) struct Stored {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Of the last entry; as `purged` when there is none.
    pub(super) last: Option<LogId>,
}

/// Reads what a log says of itself, and whether its ends fit.
pub(super) fn load(view: &dyn View, region: RegionId) -> Result<Stored, StorageError> {
    let vote = read_state::<raft::Vote>(view, region, keys::VOTE)?;
    let purged = read_state::<raft::LogId>(view, region, keys::PURGED)?;
    let committed = read_state::<raft::LogId>(view, region, keys::COMMITTED)?;
    let purged = purged.as_ref().map(wire::log_id);

    let all = keys::all_entries(region);
    if let Some(found) = view.scan(Family::RaftLog, &all, false).next() {
        let first = index_of(region, &found?.0)?;
        let expected = next_index(purged);
        if first != expected {
            let detail = format!("its first entry is {first}, but {expected} was expected");
            return Err(damage(region, None, detail));
        }
    }
    let last = match view.scan(Family::RaftLog, &all, true).next() {
        None => purged,
        Some(found) => {
            let (key, value) = found?;
            let index = index_of(region, &key)?;
            Some(decode(region, index, value)?.log_id)
        }
    };
    Ok(Stored {
        vote: vote.as_ref().map(wire::vote),
        // Only a hint for openraft, which may apply that far again. After a full disk it can be
        // ahead of a log that lost its end.
        committed: committed
            .as_ref()
            .map(wire::log_id)
            .filter(|committed| committed.index < next_index(last)),
        purged,
        last,
    })
}

/// Entries from `start` up to `end`, all of which the log holds; no more once `room` is used up.
pub(super) fn read(
    view: &dyn View,
    region: RegionId,
    start: u64,
    end: u64,
    room: &mut Room,
) -> Result<Vec<Entry>, StorageError> {
    let mut entries = Vec::new();
    let mut expected = start;
    for found in view.scan(Family::RaftLog, &keys::entries(region, start, end), false) {
        let (key, value) = found?;
        if index_of(region, &key)? != expected {
            break;
        }
        if !room.take(value.len()) {
            return Ok(entries);
        }
        entries.push(decode(region, expected, value)?);
        expected += 1;
    }
    match expected == end {
        true => Ok(entries),
        false => Err(damage(region, Some(expected), "it is missing".to_owned())),
    }
}

/// The index behind an entry, and the first one of all behind none.
pub(super) fn next_index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn damage(region: RegionId, index: Option<u64>, detail: String) -> StorageError {
    let at = match index {
        Some(index) => format!("entry {index} in the log of region {region}"),
        None => format!("the log of region {region}"),
    };
    StorageError::Corruption {
        at: at.into(),
        detail: detail.into(),
    }
}

fn index_of(region: RegionId, key: &[u8]) -> Result<u64, StorageError> {
    keys::index_of(region, key)
        .ok_or_else(|| damage(region, None, format!("{key:?} is no key of an entry")))
}

fn decode(region: RegionId, index: u64, value: Bytes) -> Result<Entry, StorageError> {
    let decoded = raft::Entry::decode(value)
        .map_err(|error| WireError::undecodable("Entry", &error))
        .and_then(wire::entry)
        .map_err(|error| damage(region, Some(index), error.to_string()))?;
    if decoded.log_id.index != index {
        let detail = format!("it says that it is entry {}", decoded.log_id);
        return Err(damage(region, Some(index), detail));
    }
    Ok(decoded)
}

fn read_state<M: Message + Default>(
    view: &dyn View,
    region: RegionId,
    name: &'static str,
) -> Result<Option<M>, StorageError> {
    let Some(value) = view.get(Family::RaftState, &keys::state(region, name))? else {
        return Ok(None);
    };
    let decoded = M::decode(value)
        .map_err(|error| damage(region, None, format!("its {name} is unreadable: {error}")))?;
    Ok(Some(decoded))
}
