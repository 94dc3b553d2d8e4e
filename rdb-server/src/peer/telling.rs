//! Telling all replicas of a region of the writes that were set aside here.
//!
//! Owns the way from the marks that a fresh copy left to entries of the region's log. Until the others have
//! been told, the writes are listed by this store alone.
//!
//! Invariant: a mark goes only after the log has its write; told twice changes nothing.

use super::Peer;
use super::eventual::PolicyBook;
use crate::error::Error;
use crate::eventual::{conflicts, layout};
use prost::Message;
use rdb_proto::raft::{self, command, command_outcome};
use rdb_storage::{Committer, Durability, Engine, Family, WriteBatch};
use rdb_types::{Mode, NamespaceId};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often to look.
const TURN: Duration = Duration::from_millis(500);
/// Bytes of rows in one entry, at most one row more.
const ENTRY_BYTES: usize = 512 << 10;
/// How long an entry may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the task works with.
pub(super) struct Telling {
    pub(super) peer: Weak<Peer>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) committer: Committer,
    pub(super) policies: Arc<PolicyBook>,
    pub(super) stop: CancellationToken,
}

impl Telling {
    /// The task. Ends with the region.
    pub(super) async fn run(self) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(TURN) => {}
            }
            let Some(peer) = self.peer.upgrade() else {
                return;
            };
            // The list of an eventual namespace is each replica's own: it waits until there is a log again.
            let strong: Vec<NamespaceId> = peer.cell().with(|summary| {
                if summary.fresh_copy.is_some() {
                    return Vec::new();
                }
                let states = summary.namespaces.iter();
                states
                    .filter(|(_, state)| state.mode == Mode::Strong && !state.fences.is_empty())
                    .map(|(namespace, _)| *namespace)
                    .collect()
            });
            for namespace in strong {
                match self.tell(&peer, namespace).await {
                    Ok(0) => {}
                    Ok(writes) => tracing::warn!(
                        region = peer.id().0,
                        namespace_id = namespace.0,
                        writes,
                        "writes that this store held alone are set aside: `flaredb conflicts` lists and restores them"
                    ),
                    Err(error) => tracing::debug!(
                        region = peer.id().0,
                        namespace_id = namespace.0,
                        %error,
                        "the other stores are not told of the writes set aside here yet"
                    ),
                }
            }
        }
    }

    async fn tell(&self, peer: &Arc<Peer>, namespace: NamespaceId) -> Result<u64, Error> {
        let mut told = 0;
        loop {
            let range = layout::all_untold(peer.id(), namespace);
            let (mut rows, mut marks, mut bytes) = (Vec::new(), WriteBatch::new(), 0);
            for item in self.engine.scan(Family::Conflicts, &range, false) {
                if bytes >= ENTRY_BYTES {
                    break;
                }
                let (mark, _) = item?;
                if let Some((stamp, key)) = layout::parse_untold(&mark)
                    && let Some(row) =
                        conflicts::read(self.engine.as_ref(), peer.id(), namespace, stamp, &key)?
                {
                    bytes += row.encoded_len();
                    rows.push(row);
                }
                marks.delete(Family::Conflicts, mark);
            }
            if marks.is_empty() {
                return Ok(told);
            }
            if !rows.is_empty() {
                told += rows.len() as u64;
                let set_aside = raft::SetAside {
                    namespace_id: namespace.0,
                    rows,
                    bound_bytes: self.policies.of(namespace).conflict_log_bytes,
                };
                let command = raft::Command {
                    kind: Some(command::Kind::SetAside(set_aside)),
                };
                let outcome = peer.command(command, Instant::now() + PATIENCE).await?;
                if let command_outcome::Outcome::Error(error) = outcome {
                    return Err(Error::from_wire(error));
                }
            }
            self.committer.commit(marks, Durability::Synced).await?;
        }
    }
}
