//! Operations as they are worked on: decoded, and together with others of one namespace and kind.
//!
//! Owns which operations go together, and the answers' form. Knows nothing of limits, calls or streams.

use crate::error::Error;
use crate::router::{Found, Read, Written};
use rdb_proto::kv::{self, batch_request, batch_response};
use rdb_proto::raft::{WriteOp, write_op::Kind};
use std::collections::BTreeMap;

/// The answer to the operation with this id; a refusal, with whether a repeat cannot apply it twice.
pub(super) type Answer = (u64, Result<batch_response::Result, (Error, bool)>);

pub(super) enum Decoded {
    Read {
        namespace: String,
        read: Read,
    },
    Write {
        namespace: String,
        op: WriteOp,
        seen_epoch: u64,
    },
}

pub(super) enum Group {
    Reads {
        namespace: String,
        ids: Vec<u64>,
        reads: Vec<Read>,
    },
    Writes {
        namespace: String,
        ids: Vec<u64>,
        ops: Vec<(WriteOp, u64)>,
    },
}

impl Decoded {
    pub(super) fn alone(self) -> Group {
        match self {
            Decoded::Read { namespace, read } => Group::Reads {
                namespace,
                ids: vec![0],
                reads: vec![read],
            },
            Decoded::Write {
                namespace,
                op,
                seen_epoch,
            } => Group::Writes {
                namespace,
                ids: vec![0],
                ops: vec![(op, seen_epoch)],
            },
        }
    }

    pub(super) fn join(
        self,
        groups: &mut BTreeMap<(String, bool, u64), Group>,
        id: u64,
        timeout_ms: u64,
    ) {
        match self {
            Decoded::Read { namespace, read } => {
                // A stale read never waits for a barrier, so it does not go with one that does.
                let stale = read.options.consistency == kv::Consistency::Stale as i32;
                let group = groups
                    .entry((namespace.clone(), false, timeout_ms * 2 + u64::from(stale)))
                    .or_insert_with(|| Group::Reads {
                        namespace,
                        ids: Vec::new(),
                        reads: Vec::new(),
                    });
                if let Group::Reads { ids, reads, .. } = group {
                    ids.push(id);
                    reads.push(read);
                }
            }
            Decoded::Write {
                namespace,
                op,
                seen_epoch,
            } => {
                let group = groups
                    .entry((namespace.clone(), true, timeout_ms * 2))
                    .or_insert_with(|| Group::Writes {
                        namespace,
                        ids: Vec::new(),
                        ops: Vec::new(),
                    });
                if let Group::Writes { ids, ops, .. } = group {
                    ids.push(id);
                    ops.push((op, seen_epoch));
                }
            }
        }
    }
}

/// The method that an operation is counted as, alone or in a batch.
pub(super) fn method_of(op: &batch_request::Op) -> &'static str {
    match op {
        batch_request::Op::Get(_) => "Get",
        batch_request::Op::Put(_) => "Put",
        batch_request::Op::Delete(_) => "Delete",
        batch_request::Op::CompareAndSwap(_) => "CompareAndSwap",
    }
}

impl Group {
    /// As [`method_of`], of each operation, in their order.
    pub(super) fn methods(&self) -> Vec<&'static str> {
        match self {
            Group::Reads { reads, .. } => vec!["Get"; reads.len()],
            Group::Writes { ops, .. } => ops
                .iter()
                .map(|(op, _)| match Kind::try_from(op.kind) {
                    Ok(Kind::Delete) => "Delete",
                    Ok(Kind::CasPut | Kind::CasDelete) => "CompareAndSwap",
                    Ok(Kind::Put) | Err(_) => "Put",
                })
                .collect(),
        }
    }
}

pub(super) fn namespace_of(op: &batch_request::Op) -> &str {
    match op {
        batch_request::Op::Get(get) => &get.namespace,
        batch_request::Op::Put(put) => &put.namespace,
        batch_request::Op::Delete(delete) => &delete.namespace,
        batch_request::Op::CompareAndSwap(cas) => &cas.namespace,
    }
}

pub(super) fn got(found: Found) -> batch_response::Result {
    let receipt = Some(found.receipt);
    batch_response::Result::Get(match found.record {
        None => kv::GetResponse {
            receipt,
            ..Default::default()
        },
        Some(record) => kv::GetResponse {
            found: true,
            value: record.value,
            version: record.stamp.0,
            expires_at_ms: i64::try_from(record.expires_at_ms).unwrap_or(i64::MAX),
            receipt,
        },
    })
}

pub(super) fn wrote(kind: Kind, written: &Written) -> batch_response::Result {
    let (applied, receipt) = (written.applied, Some(written.receipt.clone()));
    match kind {
        Kind::Put => batch_response::Result::Put(kv::PutResponse {
            version: applied.version,
            receipt,
        }),
        Kind::Delete => batch_response::Result::Delete(kv::DeleteResponse {
            existed: applied.existed,
            version: applied.version,
            receipt,
        }),
        Kind::CasPut | Kind::CasDelete => {
            let new_version = if applied.swapped && kind == Kind::CasPut {
                applied.version
            } else {
                0
            };
            let current_version = if applied.swapped { 0 } else { applied.version };
            batch_response::Result::CompareAndSwap(kv::CompareAndSwapResponse {
                success: applied.swapped,
                current_version,
                new_version,
                receipt,
            })
        }
    }
}
