//! Listing and restoring the writes that lost.
//!
//! Every replica finds the conflicts by itself, so the logs of all replicas that can be reached are read
//! side by side, page by page, and joined by id. Owns ids, the joining and the restoring; what is a
//! conflict, and where its row is kept, is [`crate::eventual`]'s business.
//!
//! Invariants:
//! - a listing holds no more than a page of each replica in memory;
//! - a restored write is an ordinary new one; its row is removed only after that one was acknowledged.

mod id;
mod join;

use crate::error::{Error, Outcome};
use crate::router::Router;
use crate::stores::Stores;
use crate::transport::Lane;
use id::ConflictId;
use join::{Joined, Listing};
use rdb_proto::raft::{
    self, ConflictPlace, ConflictRow, NamespaceRow, RestoreConflictResponse, WriteOp, peer_request,
    peer_response, write_op,
};
use rdb_types::{Epoch, GlobalKey, NamespaceId, Reason, RegionId, Stamp, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long a replica may take for a page, or to remove rows.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rows in a page.
const PAGE_ROWS: u32 = 512;
/// Writes that are restored together.
const RESTORED_TOGETHER: usize = 256;
/// Warnings of one restore; more say the same.
const WARNINGS: usize = 20;

/// The conflict logs of one namespace, on all stores.
#[derive(Clone)]
pub(super) struct Conflicts {
    namespace: NamespaceRow,
    regions: Vec<RegionId>,
    members: Vec<StoreId>,
    stores: Stores,
}

impl Conflicts {
    pub(super) fn new(
        namespace: NamespaceRow,
        regions: Vec<RegionId>,
        members: Vec<StoreId>,
        stores: Stores,
    ) -> Conflicts {
        Conflicts {
            namespace,
            regions,
            members,
            stores,
        }
    }

    fn id(&self) -> NamespaceId {
        NamespaceId(self.namespace.id)
    }

    /// Begins to read all logs at once: the listing, and the stores whose logs are not in it.
    ///
    /// # Errors
    /// No replica answers.
    pub(super) async fn list(
        &self,
        prefix: bytes::Bytes,
    ) -> Result<(Listing, BTreeSet<StoreId>), Error> {
        let places = self.regions.iter().flat_map(|region| {
            let stores = self.members.iter();
            stores.map(move |store| (*region, *store))
        });
        Listing::open(self.stores.clone(), self.id(), prefix, places.collect()).await
    }

    /// Makes new writes of those that lost: of one, or of all.
    ///
    /// # Errors
    /// The id is none, or a write was refused.
    pub(super) async fn restore(
        &self,
        router: &Router,
        only: Option<&str>,
        if_untouched: bool,
        deadline: Instant,
    ) -> Result<RestoreConflictResponse, Error> {
        let only = only.map(ConflictId::parse).transpose()?;
        let prefix = only.as_ref().map(|id| id.key.clone()).unwrap_or_default();
        let (mut listing, missing) = self.list(prefix).await?;
        let mut restore = Restore {
            of: self,
            router,
            if_untouched,
            deadline,
            came: RestoreConflictResponse::default(),
            not_removed: BTreeMap::new(),
        };
        let mut chosen = Vec::new();
        while let Some(row) = listing.next().await? {
            match &only {
                Some(id) if !id.names(&row) => continue,
                _ => chosen.push(row),
            }
            if only.is_some() {
                break;
            }
            if chosen.len() == RESTORED_TOGETHER {
                restore.rows(std::mem::take(&mut chosen)).await?;
            }
        }
        restore.rows(chosen).await?;
        let mut came = restore.came;
        if only.is_some() && came.restored + came.skipped == 0 {
            return Err(Error::new(
                Reason::InvalidArgument,
                "no replica that answers lists this conflict: it was restored, or pushed out by the bound of the log; `flaredb conflicts` lists what is there",
            )
            .with("field", "id")
            .outcome(Outcome::NotApplied));
        }
        let silent = missing
            .into_iter()
            .map(|store| (store, "it does not answer".to_owned()));
        for (store, why) in silent.chain(restore.not_removed) {
            warn(
                &mut came.warnings,
                format!(
                    "store {store} may still list what was restored ({why}); restored again, it would be written again"
                ),
            );
        }
        Ok(came)
    }
}

fn warn(warnings: &mut Vec<String>, text: String) {
    if warnings.len() < WARNINGS {
        warnings.push(text);
    }
}

/// A row as users see it.
pub(super) fn to_wire(row: Joined) -> raft::Conflict {
    let id = ConflictId::of(&row).to_string();
    let Joined { row, stores, .. } = row;
    raft::Conflict {
        id,
        key: row.key,
        value: row.value,
        deletion: row.deletion,
        version: row.stamp,
        winner_version: row.winner_stamp,
        set_aside: row.set_aside,
        reason: row.reason,
        stores: stores
            .into_iter()
            .map(|store| u32::from(store.get()))
            .collect(),
    }
}

/// A restore under way.
struct Restore<'r> {
    of: &'r Conflicts,
    router: &'r Router,
    if_untouched: bool,
    deadline: Instant,
    came: RestoreConflictResponse,
    /// Stores that did not remove their rows, and why.
    not_removed: BTreeMap<StoreId, String>,
}

impl Restore<'_> {
    async fn rows(&mut self, rows: Vec<Joined>) -> Result<(), Error> {
        let mut chosen = Vec::with_capacity(rows.len());
        for row in rows {
            match self.op(&row)? {
                Ok(op) => {
                    if let Some(again) = self.applied_since(&row)? {
                        let id = ConflictId::of(&row);
                        warn(
                            &mut self.came.warnings,
                            format!(
                                "{id}: its request was sent again since, and applied as version {}: restored, it takes effect twice",
                                again.0
                            ),
                        );
                    }
                    chosen.push((row, op));
                }
                Err(why) => {
                    self.came.skipped += 1;
                    let id = ConflictId::of(&row);
                    warn(&mut self.came.warnings, format!("{id} is skipped: {why}"));
                }
            }
        }
        let ops = chosen.iter().map(|(_, op)| (op.clone(), 0)).collect();
        let name = &self.of.namespace.name;
        let written = self.router.write(name, ops, self.deadline).await;
        let mut done: BTreeMap<RegionId, Vec<ConflictPlace>> = BTreeMap::new();
        let mut refused = None;
        for ((row, _), written) in chosen.into_iter().zip(written) {
            match written {
                Ok(_) => {
                    self.came.restored += 1;
                    done.entry(row.region).or_default().push(ConflictPlace {
                        stamp: row.row.stamp,
                        key: row.row.key,
                    });
                }
                Err(error) => refused = Some(error),
            }
        }
        // What was restored leaves the logs, whatever became of the others.
        for (region, rows) in done {
            self.remove(region, rows).await;
        }
        match refused {
            Some(error) => Err(Error {
                message: format!(
                    "{}; {} writes were restored before that",
                    error.message, self.came.restored
                ),
                ..error
            }),
            None => Ok(()),
        }
    }

    /// The version under which the request of a write that was set aside has been applied since, as far as
    /// this store knows.
    fn applied_since(&self, row: &Joined) -> Result<Option<Stamp>, Error> {
        let id = &row.row.request_id;
        if id.is_empty() {
            return Ok(None);
        }
        let applied = self.router.peer(row.region)?.applied_at(self.of.id(), id)?;
        Ok(applied.filter(|stamp| stamp.0 != row.row.stamp))
    }

    /// The write that restores a row, or why there is none.
    fn op(&self, row: &Joined) -> Result<Result<WriteOp, String>, Error> {
        let Joined { region, row, .. } = row;
        if self.if_untouched
            && let Some(why) = self.router.touched(*region, self.of.id(), row)?
        {
            return Ok(Err(why.to_owned()));
        }
        let now_ms = self.router.unix_ms();
        let ttl_ms = match row.expires_at_ms {
            0 => 0,
            at if at > now_ms => i64::try_from(at - now_ms).unwrap_or(i64::MAX),
            _ => return Ok(Err("it has expired".to_owned())),
        };
        let kind = if row.deletion {
            write_op::Kind::Delete
        } else {
            write_op::Kind::Put
        };
        Ok(Ok(WriteOp {
            kind: kind as i32,
            key: row.key.clone(),
            value: row.value.clone(),
            ttl_ms,
            // A stamp names one write for ever: asked twice of one store, it is restored once.
            request_id: format!("restore/{:016x}", row.stamp).into(),
            ..WriteOp::default()
        }))
    }

    async fn remove(&mut self, region: RegionId, rows: Vec<ConflictPlace>) {
        let asked = self.of.members.iter().map(|store| {
            let remove = peer_request::Body::RemoveConflicts(raft::RemoveConflicts {
                namespace_id: self.of.namespace.id,
                rows: rows.clone(),
            });
            let stores = &self.of.stores;
            async move {
                let answer = stores.ask(*store, Lane::Bulk, region, remove, PATIENCE);
                (*store, answer.await)
            }
        });
        for (store, answer) in futures::future::join_all(asked).await {
            let why = match answer {
                Ok(peer_response::Body::RemoveConflicts(_)) => continue,
                Ok(_) => "it answered something else".to_owned(),
                Err(why) => why,
            };
            self.not_removed.entry(store).or_insert(why);
        }
    }
}

impl Router {
    /// What was, or may have been, written to a key, as far as this store knows, since what stood there won over this
    /// write, or since the seal that set it aside. In words; `None`: nothing.
    fn touched(
        &self,
        region: RegionId,
        namespace: NamespaceId,
        row: &ConflictRow,
    ) -> Result<Option<&'static str>, Error> {
        let peer = self.peer(region)?;
        let global = GlobalKey::new(namespace, &row.key);
        let standing = peer.standing(namespace, global.as_bytes())?;
        let why = match &standing {
            Some(_) => "the key was written since",
            None => {
                "the key is not there, and what was removed from the namespace since may have been it: to restore it all the same, name it by its id, without if_untouched"
            }
        };
        // Others may have heard of it long after the seal, with something newer in its place. A row of an earlier
        // build does not say of which epoch it is.
        if row.set_aside && row.epoch > 0 {
            let removed_through = peer.eventual().state(namespace).floor;
            let is_touched = peer.cell().with(|summary| {
                summary.namespaces.get(&namespace).is_none_or(|state| {
                    state.is_touched_since(Epoch(row.epoch), standing.as_ref(), &removed_through)
                })
            });
            return Ok(is_touched.then_some(why));
        }
        let version = standing.map_or(Stamp::ZERO, |record| record.stamp);
        Ok((version != Stamp(row.winner_stamp)).then_some(why))
    }
}
