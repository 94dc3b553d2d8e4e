//! Namespaces by name: found in this store's copy of the meta region, created by a first write,
//! installed in the regions that hold them.
//!
//! Owns the way from a name to a row of the namespace table. Knows regions only as places where a
//! namespace has to be installed; never looks at a key.
//!
//! Invariant: a name is reported as unknown only after a linearizable look into the meta region.

use crate::error::{Error, Outcome};
use crate::modes::data_regions;
use crate::peer::Peer;
use crate::peer::orders::Order;
use crate::peer_manager::PeerManager;
use crate::region::meta::{self, MetaState};
use rdb_proto::convert;
use rdb_proto::raft::{self, CreateNamespaceCommand, NamespaceRow, command, command_outcome};
use rdb_types::{Mode, NamespaceId, NamespaceName, Policies, Reason, RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Finds, creates and installs namespaces.
#[derive(Clone)]
pub struct Namespaces {
    manager: Arc<PeerManager>,
}

impl Namespaces {
    /// Over the peers of this store.
    pub fn new(manager: Arc<PeerManager>) -> Namespaces {
        Namespaces { manager }
    }

    fn meta_peer(&self) -> Result<Arc<Peer>, Error> {
        self.manager.peer(RegionId::META).ok_or_else(|| {
            Error::new(
                Reason::NotReady,
                "this store is still joining its cluster; try again",
            )
            .outcome(Outcome::NotApplied)
        })
    }

    /// The cluster's tables as far as this store has applied them.
    pub fn tables(&self) -> Arc<MetaState> {
        self.manager
            .peer(RegionId::META)
            .and_then(|peer| peer.cell().with(|summary| summary.meta.clone()))
            .unwrap_or_default()
    }

    /// The policies of all namespaces, as far as this store has applied the tables.
    pub fn policies(&self) -> BTreeMap<NamespaceId, Policies> {
        let tables = self.tables();
        let rows = tables.namespaces.iter().filter(|(_, row)| !row.deleted);
        rows.filter_map(|(id, row)| Some((*id, convert::policies(row.policies.as_ref()).ok()?)))
            .collect()
    }

    /// What all namespaces shall be, as far as this store has applied the tables.
    pub fn orders(&self) -> BTreeMap<NamespaceId, Order> {
        let tables = self.tables();
        let rows = tables.namespaces.iter().filter(|(_, row)| !row.deleted);
        rows.filter_map(|(id, row)| {
            let missing = row.accept_missing.iter();
            let order = Order {
                target: convert::mode(row.target)?,
                attempt: row.attempt,
                accept_missing: missing
                    .filter_map(|id| StoreId::new(u64::from(*id)))
                    .collect(),
            };
            Some((*id, order))
        })
        .collect()
    }

    /// Where the tables stand, for [`Namespaces::changed`].
    pub fn applied_index(&self) -> u64 {
        let peer = self.manager.peer(RegionId::META);
        peer.map_or(0, |peer| peer.cell().applied_index())
    }

    /// Waits until the tables may have changed since they stood at `seen`, and no longer than `limit`.
    pub async fn changed(&self, seen: u64, limit: Duration) {
        let Some(peer) = self.manager.peer(RegionId::META) else {
            return tokio::time::sleep(limit).await;
        };
        tokio::select! {
            biased;
            () = peer.cell().wait_applied(seen + 1) => {}
            () = tokio::time::sleep(limit) => {}
        }
    }

    /// Waits until this store's copy holds everything that was committed.
    pub async fn refresh(&self, deadline: Instant) -> Result<Arc<MetaState>, Error> {
        self.meta_peer()?.barrier(deadline).await?;
        Ok(self.tables())
    }

    /// As [`Namespaces::refresh`], or, where that cannot be, what this store has: for whoever wants to see what is wrong.
    ///
    /// # Errors
    /// It has nothing.
    pub async fn refresh_or_own(&self, deadline: Instant) -> Result<Arc<MetaState>, Error> {
        match self.refresh(deadline).await {
            Ok(tables) => Ok(tables),
            Err(error) => {
                let own = self.tables();
                let known = own.cluster.is_some();
                known.then_some(own).ok_or(error)
            }
        }
    }

    fn parse(name: &str) -> Result<NamespaceName, Error> {
        NamespaceName::of_request(name).map_err(|error| {
            Error::invalid("namespace", error.to_string())
                .with("limit", NamespaceName::MAX_BYTES)
                .outcome(Outcome::NotApplied)
        })
    }

    /// The namespace of a read, or `NAMESPACE_NOT_FOUND`.
    pub async fn find(&self, name: &str, deadline: Instant) -> Result<NamespaceRow, Error> {
        let name = Self::parse(name)?;
        if let Some(row) = self.tables().namespace(name.as_str()) {
            return Ok(row.clone());
        }
        let tables = self.refresh(deadline).await?;
        if tables.cluster.is_none() {
            return Err(meta::not_initialised());
        }
        tables
            .namespace(name.as_str())
            .cloned()
            .ok_or_else(|| meta::not_found(name.as_str()))
    }

    /// The namespace of a read that may be stale: this store's copy alone is asked, so that it works
    /// without a quorum, too.
    ///
    /// # Errors
    /// There is none, or this store cannot know yet.
    pub fn find_local(&self, name: &str) -> Result<NamespaceRow, Error> {
        let name = Self::parse(name)?;
        if let Some(row) = self.tables().namespace(name.as_str()) {
            return Ok(row.clone());
        }
        // What is not in a copy that nobody has confirmed since the start may be there all the same.
        match self.meta_peer()?.staleness() {
            Some(_) => Err(meta::not_found(name.as_str())),
            None => Err(Error::new(
                Reason::NotReady,
                format!("this store has not heard yet whether there is a namespace {name}; ask another store or try again"),
            )
            .with("namespace", &name)),
        }
    }

    /// The namespace of a write; created in the default mode if there is none.
    pub async fn find_or_create(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<NamespaceRow, Error> {
        let parsed = Self::parse(name)?;
        if let Some(row) = self.tables().namespace(parsed.as_str()) {
            return Ok(row.clone());
        }
        // `default` is there once the cluster is.
        if parsed.as_str() == NamespaceName::DEFAULT
            || !self.manager.context().config.load().consistency.auto_create
        {
            return self.find(name, deadline).await;
        }
        self.create(
            CreateNamespaceCommand {
                name: parsed.as_str().to_owned(),
                from_default: true,
                ..Default::default()
            },
            deadline,
        )
        .await
        .map_err(|error| not_created(parsed.as_str(), error))
    }

    /// Changes the table of namespaces.
    async fn change(&self, kind: command::Kind, deadline: Instant) -> Result<NamespaceRow, Error> {
        let command = raft::Command { kind: Some(kind) };
        match self.meta_peer()?.command(command, deadline).await? {
            command_outcome::Outcome::Namespace(row) => Ok(row),
            command_outcome::Outcome::Error(error) => Err(Error::from_wire(error)),
            _ => Err(
                Error::new(Reason::NotReady, "the meta region answered something else")
                    .outcome(Outcome::Unknown),
            ),
        }
    }

    /// Replaces the policies of a namespace. Every store goes by them soon after it has heard of them.
    ///
    /// # Errors
    /// There is no such namespace, or the meta region has no quorum.
    pub async fn update(
        &self,
        name: &str,
        policies: &Policies,
        deadline: Instant,
    ) -> Result<NamespaceRow, Error> {
        let name = Self::parse(name)?.as_str().to_owned();
        let update = raft::UpdateNamespaceCommand {
            name,
            policies: Some(convert::policies_to_wire(policies)),
        };
        let row = self
            .change(command::Kind::UpdateNamespace(update), deadline)
            .await?;
        tracing::info!(namespace = %row.name, id = row.id, ?policies, "policies are changed");
        Ok(row)
    }

    /// Says what a namespace shall become. Its regions follow by themselves, and what is said here stays
    /// true whatever becomes of the one who said it.
    ///
    /// # Errors
    /// There is no such namespace, it may not be asked for now, or the meta region has no quorum.
    pub async fn set_target(
        &self,
        set: raft::SetTarget,
        deadline: Instant,
    ) -> Result<NamespaceRow, Error> {
        let (mode, cancel) = (set.mode, set.cancel);
        let kind = command::Kind::SetTarget(set);
        let row = self.change(kind, deadline).await.map_err(may_switch)?;
        tracing::info!(
            namespace = %row.name,
            asked = convert::mode(mode).map_or("none", Mode::as_str),
            cancel,
            mode = convert::mode(row.mode).map_or("none", Mode::as_str),
            target = convert::mode(row.target).map_or("none", Mode::as_str),
            attempt = row.attempt,
            "a mode was asked for"
        );
        Ok(row)
    }

    /// Says that an attempt has ended.
    ///
    /// # Errors
    /// The meta region has no quorum.
    pub async fn settle(
        &self,
        settle: raft::SettleTarget,
        deadline: Instant,
    ) -> Result<NamespaceRow, Error> {
        self.change(command::Kind::SettleTarget(settle), deadline)
            .await
    }

    /// Creates a namespace and installs it in its regions.
    pub async fn create(
        &self,
        create: CreateNamespaceCommand,
        deadline: Instant,
    ) -> Result<NamespaceRow, Error> {
        let row = self
            .change(command::Kind::CreateNamespace(create), deadline)
            .await
            .map_err(may_exist)?;
        tracing::info!(namespace = %row.name, id = row.id, mode = convert::mode(row.mode).map_or("none", Mode::as_str), from_default = row.from_default, "namespace is there");
        for peer in self.manager.data_peers() {
            // The namespace exists from here on; a region that cannot be told now is told by the first
            // write to it, or by the reconciler.
            if let Err(error) = self.install(&peer, &row, deadline).await {
                tracing::warn!(namespace = %row.name, region = peer.id().0, %error, "the region is not told of the namespace yet");
            }
        }
        Ok(row)
    }

    /// Tells a region of a namespace, unless it knows.
    pub async fn install(
        &self,
        peer: &Arc<Peer>,
        row: &NamespaceRow,
        deadline: Instant,
    ) -> Result<(), Error> {
        let install = raft::InstallNamespace {
            namespace_id: row.id,
            mode: row.mode,
            first_epoch: row.first_epoch,
        };
        let command = raft::Command {
            kind: Some(command::Kind::InstallNamespace(install)),
        };
        match peer.command(command, deadline).await? {
            command_outcome::Outcome::Error(error) => Err(Error::from_wire(error)),
            _ => Ok(()),
        }
    }

    /// Deletes a namespace: its name stands for nothing once this returns, and its regions let go of what they
    /// hold of it, at once where they can.
    ///
    /// # Errors
    /// There is no such namespace, it may not be deleted (now), a store does not know yet what that is, or the
    /// meta region has no quorum.
    pub async fn delete(&self, name: &str, deadline: Instant) -> Result<(), Error> {
        let name = Self::parse(name)?.as_str().to_owned();
        let tables = self.refresh(deadline).await;
        let tables = tables.map_err(|error| error.outcome(Outcome::NotApplied))?;
        tables.all_know(rdb_proto::WIRE_MINOR_DELETES, "delete a namespace")?;
        let delete = raft::DeleteNamespaceCommand { name };
        let row = self
            .change(command::Kind::DeleteNamespace(delete), deadline)
            .await
            .map_err(may_be_deleted)?;
        tracing::info!(namespace = %row.name, id = row.id, mode = convert::mode(row.mode).map_or("none", Mode::as_str), "namespace is deleted");
        if let Err(error) = self.finish_deletion(&row, deadline).await {
            tracing::warn!(namespace = %row.name, %error, "not all regions have let go of a deleted namespace yet");
        }
        Ok(())
    }

    /// Has all regions let go of a deleted namespace, and notes that they have.
    async fn finish_deletion(&self, row: &NamespaceRow, deadline: Instant) -> Result<(), Error> {
        let namespace = NamespaceId(row.id);
        let mut last_epoch = 0;
        for region in data_regions(self.tables().cluster.as_ref()) {
            let peer = self.manager.peer(region).ok_or_else(|| {
                Error::new(Reason::NotReady, format!("region {region} is not here"))
            })?;
            let dropped = || {
                peer.cell()
                    .with(|summary| summary.dropped.get(&namespace).copied())
            };
            if dropped().is_none() {
                let drop = raft::DropNamespace {
                    namespace_id: row.id,
                };
                let command = raft::Command {
                    kind: Some(command::Kind::DropNamespace(drop)),
                };
                if let command_outcome::Outcome::Error(error) =
                    peer.command(command, deadline).await?
                {
                    return Err(Error::from_wire(error));
                }
                peer.barrier(deadline).await?;
            }
            let epoch = dropped().ok_or_else(|| {
                let text = format!("region {region} has not let go of it here");
                Error::new(Reason::NotReady, text)
            })?;
            last_epoch = epoch.0.max(last_epoch);
        }
        let settle = raft::SettleDeletion {
            namespace_id: row.id,
            last_epoch,
        };
        self.change(command::Kind::SettleDeletion(settle), deadline)
            .await
            .map(drop)
    }

    /// Tells regions of the namespaces that they do not know yet, and has them let go of those that are
    /// deleted. Repeated by the meta region's leader for ever: it looks at states, not at events.
    pub async fn reconcile(&self, deadline: Instant) -> Result<(), Error> {
        let tables = self.tables();
        for row in tables.namespaces.values() {
            if row.deleted && row.last_epoch == 0 {
                self.finish_deletion(row, deadline).await?;
            }
        }
        for peer in self.manager.data_peers() {
            for (id, row) in tables.namespaces.iter().filter(|(_, row)| !row.deleted) {
                if peer.namespace(*id).is_none() {
                    self.install(&peer, row, deadline).await?;
                }
            }
        }
        Ok(())
    }
}

/// Says what is not known of a creation in words of its own: the region that was asked knows only that it
/// was to change a table.
fn may_exist(mut error: Error) -> Error {
    if error.is_unknown() {
        error
            .message
            .push_str("; the namespace may have been created");
    }
    error
}

/// As [`may_exist`], of a deletion.
fn may_be_deleted(mut error: Error) -> Error {
    if error.is_unknown() {
        error
            .message
            .push_str("; the namespace may have been deleted: `flaredb ns list` shows it");
    }
    error
}

/// As [`may_exist`], of a switch.
fn may_switch(mut error: Error) -> Error {
    if error.is_unknown() {
        error.message.push_str(
            "; the switch may have been asked for: `flaredb ns modes` shows it, and asking again does no harm",
        );
    }
    error
}

/// What a write hears whose namespace was not there and could not be created. What is unknown of the
/// creation is not unknown of the write.
fn not_created(name: &str, mut error: Error) -> Error {
    error.message = format!(
        "namespace {name:?} had to be created first: {}; {}",
        error.message,
        Outcome::NotApplied.clause("the write")
    );
    error.outcome(Outcome::NotApplied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_creation_that_failed_says_what_its_outcome_says() {
        let refused = |outcome: Outcome| {
            let error = Error::new(Reason::NoQuorum, "region 1 has no quorum").outcome(outcome);
            not_created("n", may_exist(error))
        };
        for (error, created) in [
            (refused(Outcome::Unknown), true),
            (refused(Outcome::NotApplied), false),
        ] {
            assert_eq!(error.metadata["outcome"], "not_applied");
            let says = |part: &str| error.message.contains(part);
            assert!(says("; the write was not applied"), "{error}");
            assert!(!says("whether"), "{error}");
            assert_eq!(
                says("the namespace may have been created"),
                created,
                "{error}"
            );
        }
    }
}
