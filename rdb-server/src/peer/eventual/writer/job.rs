//! What the writer of a region's eventual namespaces is asked to do, and how whoever asked is answered.
//!
//! Owns the jobs, what each came to, and at which stage its answer goes out. Does nothing of it itself.
//!
//! Invariant: a relaxed write is acknowledged before its sync only under a number below the synced bound, so that a
//! crash cannot give the number to another write.

use super::super::{Shared, leaving};
use crate::error::Error;
use crate::peer::load::Slots;
use bytes::Bytes;
use rdb_proto::convert::vector_to_wire;
use rdb_proto::raft::{
    NamespaceVector, OriginRun, PushOriginsReply, StoredRecord, WriteOp, WriteResult,
};
use rdb_types::{Epoch, NamespaceId, Stamp, StoreId, VersionVector};
use std::collections::BTreeSet;
use tokio::sync::oneshot;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer is asked to do.
pub(in crate::peer::eventual) enum Job {
    /// Writes of clients.
    Writes {
        ops: Vec<WriteOp>,
        reply: Reply<Vec<WriteResult>>,
        _slots: Slots,
    },
    /// Entries that another store brought.
    Push {
        from: StoreId,
        runs: Vec<OriginRun>,
        reply: Reply<PushOriginsReply>,
    },
    /// Records of a copy. `of` is what the other had applied; `whole` ends the copy: all of that is here.
    Copied {
        namespace: NamespaceId,
        /// In which epoch it was asked for: what was under way across a switch is not merged.
        epoch: Epoch,
        records: Vec<StoredRecord>,
        of: VersionVector,
        whole: Option<VersionVector>,
        reply: Reply<()>,
    },
    /// Regular duties: bury what expired, forget what is settled, keep the logs short.
    Keep {
        namespace: NamespaceId,
        expired_through_ms: u64,
        settled: Option<VersionVector>,
        log_bytes: u64,
        /// Whether all of it was done.
        reply: Reply<bool>,
    },
    /// What the sealing of a namespace asks of this replica; done only while it is being sealed.
    Seal {
        namespace: NamespaceId,
        epoch: Epoch,
        work: SealWork,
        /// Whether all of it was done.
        reply: Reply<bool>,
    },
    /// Conflicts that were restored.
    RemoveConflicts {
        namespace: NamespaceId,
        rows: Vec<(Bytes, Stamp)>,
        reply: Reply<()>,
    },
}

/// Work for a seal.
pub(in crate::peer::eventual) enum SealWork {
    /// None: what was under way before it is done when it is answered.
    Look,
    /// Take entries of an origin up to the fence.
    Gather {
        origin: StoreId,
        entries: Vec<Bytes>,
        fence: VersionVector,
    },
    /// Bury what expires up to this time.
    Bury { cut_ms: u64 },
}

impl Job {
    /// What it weighs in a batch.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Job::Writes { ops, .. } => ops.iter().map(|op| op.key.len() + op.value.len()).sum(),
            Job::Push { runs, .. } => runs
                .iter()
                .flat_map(|run| run.entries.iter().map(Bytes::len))
                .sum(),
            Job::Copied { records, .. } => records.iter().map(|record| record.record.len()).sum(),
            Job::Seal {
                work: SealWork::Gather { entries, .. },
                ..
            } => entries.iter().map(Bytes::len).sum(),
            Job::Keep { .. } | Job::Seal { .. } | Job::RemoveConflicts { .. } => 0,
        }
    }

    /// The namespace that clients write to.
    pub(super) fn written_to(&self) -> Option<NamespaceId> {
        match self {
            Job::Writes { ops, .. } => ops.first().map(|op| NamespaceId(op.namespace_id)),
            _ => None,
        }
    }

    /// Answers whoever asked with a refusal.
    pub(super) fn refuse(self, error: &Error) {
        let error = error.clone();
        match self {
            Job::Writes { reply, .. } => drop(reply.send(Err(error))),
            Job::Push { reply, .. } => drop(reply.send(Err(error))),
            Job::Copied { reply, .. } | Job::RemoveConflicts { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Job::Keep { reply, .. } | Job::Seal { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// What a job came to.
pub(super) enum Came {
    Writes {
        results: Vec<WriteResult>,
        /// The number of the last of them, where the namespace acknowledges before the sync.
        early: Option<(NamespaceId, u64)>,
    },
    Push(BTreeSet<NamespaceId>),
    Done,
    Kept(bool),
}

/// A job whose outcome waits for its stage.
pub(super) struct Answer {
    pub(super) job: Job,
    pub(super) came: Came,
}

impl Answer {
    /// Tells whoever asked.
    pub(super) fn send(self, shared: &Shared) {
        // Whoever asked may have gone.
        match (self.job, self.came) {
            (Job::Writes { reply, .. }, Came::Writes { results, .. }) => {
                drop(reply.send(Ok(results)));
            }
            (Job::Push { reply, .. }, Came::Push(namespaces)) => {
                let vectors = namespaces
                    .into_iter()
                    .map(|namespace| NamespaceVector {
                        namespace_id: namespace.0,
                        epoch: shared.serves(namespace).map_or(0, |served| served.epoch.0),
                        vector: vector_to_wire(&shared.durable_state(namespace).vector),
                    })
                    .collect();
                drop(reply.send(Ok(PushOriginsReply { vectors })));
            }
            (Job::Copied { reply, .. } | Job::RemoveConflicts { reply, .. }, _) => {
                drop(reply.send(Ok(())));
            }
            (Job::Keep { reply, .. } | Job::Seal { reply, .. }, came) => {
                drop(reply.send(Ok(matches!(came, Came::Kept(true)))));
            }
            (job, _) => job.refuse(&leaving()),
        }
    }

    /// Whether it need not wait for the sync.
    pub(super) fn is_early(&self, shared: &Shared) -> bool {
        match &self.came {
            Came::Writes {
                early: Some((namespace, last)),
                ..
            } => *last < shared.durable_state(*namespace).sequence_bound,
            _ => false,
        }
    }
}
