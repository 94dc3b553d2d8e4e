//! Broken rules of changes of mode: in what is written, in what is read, in what is sent.

use super::Bug;
use crate::network::{Answer, Letter};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::raft::{ConflictRow, PushOrigins, RegionNamespaceRow, SealingReply};
use rdb_proto::raft::{peer_request, peer_response};
use rdb_server::eventual::layout;
use rdb_server::region::layout as rows;
use rdb_storage::{Family, KeyRange, Op, WriteBatch};
use rdb_types::{Mode, NamespaceId, RegionId, StoreId};
use std::collections::BTreeMap;

/// A change of a namespace's row in a region, in a batch.
fn step(op: &Op) -> Option<(RegionId, NamespaceId, RegionNamespaceRow)> {
    let Op::Put {
        family: Family::Region,
        key,
        value,
    } = op
    else {
        return None;
    };
    let region = key.get(..8)?.try_into().ok().map(u64::from_be_bytes)?;
    if key.len() != 12 || region == 0 {
        return None;
    }
    let row = RegionNamespaceRow::decode(value.clone()).ok()?;
    Some((RegionId(region), rows::namespace_of(key)?, row))
}

/// Whether an operation reaches the disk.
pub(super) fn passes(bug: Bug, op: &Op) -> bool {
    match (bug, op) {
        (
            Bug::LateWritesDropped,
            Op::Put {
                family: Family::Conflicts,
                value,
                ..
            },
        ) => !ConflictRow::decode(value.clone()).is_ok_and(|row| row.set_aside),
        _ => true,
    }
}

/// What a batch becomes on its way to the disk; `None`: what it was.
pub(super) fn rewrite(bug: Bug, batch: &WriteBatch) -> Option<WriteBatch> {
    match bug {
        // What the copy does not hold stays.
        Bug::CopyMergedAcrossSeal => {
            let installs = batch.ops().any(|op| {
                matches!(op, Op::Put { family: Family::Region, key, .. } if key.get(..8) == Some(&[0; 8]))
            });
            installs.then(|| {
                kept(batch, |op| {
                    !matches!(
                        op,
                        Op::DeleteRange {
                            family: Family::Data,
                            ..
                        }
                    )
                })
            })
        }
        Bug::IdsForgottenAtSeal => {
            let sealed: Vec<_> = batch.ops().filter_map(step).collect();
            let sealed = sealed.into_iter().filter(|(_, _, row)| {
                row.mode == rdb_proto::convert::mode_to_wire(Mode::Strong) && !row.fences.is_empty()
            });
            let mut more = kept(batch, |_| true);
            for (region, namespace, _) in sealed {
                for generation in 0..4 {
                    let region = layout::beside(region);
                    let range =
                        KeyRange::prefix(&rows::request_id(region, generation, namespace, &[]));
                    if let Some(end) = range.end {
                        more.delete_range(Family::RequestIds, range.start, end);
                    }
                }
            }
            Some(more)
        }
        _ => None,
    }
}

fn kept(batch: &WriteBatch, keeps: impl Fn(&Op) -> bool) -> WriteBatch {
    let mut passed = WriteBatch::new();
    for op in batch.ops().filter(|op| keeps(op)) {
        match op.clone() {
            Op::Put { family, key, value } => passed.put(family, key, value),
            Op::Delete { family, key } => passed.delete(family, key),
            Op::DeleteRange { family, start, end } => passed.delete_range(family, start, end),
        }
    }
    passed
}

/// Whether a sync of these batches is left out: those that begin a seal, and nothing of Raft's.
pub(super) fn skips_sync(bug: Bug, unsynced: &[WriteBatch]) -> bool {
    let ops = || unsynced.iter().flat_map(WriteBatch::ops);
    let of_raft = |op: &Op| {
        let (Op::Put { family, .. } | Op::Delete { family, .. } | Op::DeleteRange { family, .. }) =
            op;
        matches!(family, Family::RaftLog | Family::RaftState)
    };
    bug == Bug::ReportBeforeSync
        && ops()
            .filter_map(step)
            .any(|(_, _, row)| row.sealing.is_some())
        && !ops().any(of_raft)
}

/// What a restart reads: that a seal was begun is forgotten.
pub(super) fn read(bug: Bug, family: Family, key: Bytes, value: Bytes) -> Bytes {
    if bug != Bug::BeginForgottenAtRestart || family != Family::Region {
        return value;
    }
    let op = Op::Put {
        family,
        key,
        value: value.clone(),
    };
    match step(&op) {
        Some((_, _, row)) if row.sealing.is_some() => RegionNamespaceRow {
            sealing: None,
            ..row
        }
        .encode_to_vec()
        .into(),
        _ => value,
    }
}

/// What the leader of a region asks of a namespace in an epoch: what they hold, or a promise.
type Question = (RegionId, u32, u64, bool);

/// The question in which one store is left out, if this is it.
fn short(bug: Bug, letter: &Letter) -> Option<Question> {
    let peer_request::Body::AskSealing(ask) = &letter.body else {
        return None;
    };
    let counts = match bug {
        // Without its promise the seal would be given up.
        Bug::DrainOneShort => true,
        Bug::PromiseCountedTwice => ask.promise,
        _ => false,
    };
    counts.then_some((letter.region, ask.namespace_id, ask.epoch, ask.promise))
}

/// What stores told of seals and of their epochs.
#[derive(Default)]
pub(super) struct Told {
    answers: Mutex<BTreeMap<Question, (StoreId, SealingReply)>>,
    epochs: Mutex<BTreeMap<(StoreId, RegionId, u32), u64>>,
}

impl Told {
    /// What another store answered already, which counts for the one that is asked now, too.
    pub(super) fn counts_already(&self, bug: Bug, letter: &Letter) -> Option<SealingReply> {
        let place = short(bug, letter)?;
        let answers = self.answers.lock();
        let (first, reply) = answers.get(&place)?;
        (*first != letter.to).then(|| reply.clone())
    }

    /// The first store's answer is counted as that of every other one, too.
    pub(super) fn count_twice(&self, bug: Bug, letter: &Letter, answer: &mut Answer) {
        let Some(place) = short(bug, letter) else {
            return;
        };
        let mut answers = self.answers.lock();
        match answer {
            Ok(peer_response::Body::Sealing(reply)) => {
                let first = answers
                    .entry(place)
                    .or_insert_with(|| (letter.to, reply.clone()));
                reply.clone_from(&first.1);
            }
            answer => {
                if let Some((_, reply)) = answers.get(&place) {
                    *answer = Ok(peer_response::Body::Sealing(reply.clone()));
                }
            }
        }
    }

    /// A store tells another its epoch, which hears that it is its own.
    pub(super) fn tells(&self, letter: &Letter, namespace: u32, epoch: &mut u64) {
        let mut epochs = self.epochs.lock();
        if *epoch > 0 {
            epochs.insert((letter.to, letter.region, namespace), *epoch);
        }
        if let Some(own) = epochs.get(&(letter.from, letter.region, namespace)) {
            *epoch = *own;
        }
    }

    /// Entries are taken whatever epoch they are of.
    pub(super) fn forge_epoch(&self, to: StoreId, region: RegionId, push: &mut PushOrigins) {
        let epochs = self.epochs.lock();
        for run in &mut push.runs {
            if let Some(epoch) = epochs.get(&(to, region, run.namespace_id)) {
                run.epoch = *epoch;
            }
        }
    }
}
