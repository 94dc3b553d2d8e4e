//! The mode endpoints: what people and tools ask about namespaces.
//!
//! Decodes, asks the tables and the regions, encodes. Who holds what is
//! put together in [`replication`], who is in which mode in [`listing`], the conflict logs in [`conflicts`].
//! Modes are switched in [`switching`].

mod conflicts;
mod listing;
mod replication;
mod switching;

use crate::error::{Error, Outcome};
use crate::grpc_edge::deadline_of;
use crate::modes::{self, text_of};
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::region::meta::modes::under_way;
use crate::region::meta::{self, MetaState};
use crate::router::Router;
use crate::stores::Stores;
use conflicts::Conflicts;
use futures::StreamExt;
use futures::stream::BoxStream;
use rdb_proto::convert;
use rdb_proto::raft::{self, NamespaceRow, raft_service_server::RaftService};
use rdb_types::{Mode, NamespaceId, NamespaceName, Policies, RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use switching::Switching;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

/// Header of a listing of conflicts: the stores whose logs are not in it, as `1,3`.
pub const MISSING_STORES: &str = "flaredb-missing-stores";

/// The service.
pub struct ModeService {
    manager: Arc<PeerManager>,
    router: Router,
    namespaces: Namespaces,
    stores: Stores,
}

impl ModeService {
    /// Over the tables and the peers of this store.
    pub fn new(manager: Arc<PeerManager>, router: Router, stores: Stores) -> ModeService {
        ModeService {
            manager,
            namespaces: router.namespaces().clone(),
            router,
            stores,
        }
    }

    fn deadline<T>(&self, request: &Request<T>) -> Instant {
        deadline_of(request).unwrap_or_else(|| {
            Instant::now()
                + self
                    .manager
                    .context()
                    .config
                    .load()
                    .consistency
                    .request_timeout
        })
    }

    /// A namespace as this store sees it. Counts are those of this replica.
    fn describe(&self, row: &NamespaceRow) -> raft::Namespace {
        let (mut keys, mut bytes, mut regions) = (0, 0, 0);
        for peer in self.manager.data_peers() {
            let namespace = NamespaceId(row.id);
            let counted = peer.cell().with(|summary| {
                let state = summary.namespaces.get(&namespace)?;
                Some((state.mode, state.keys, state.bytes))
            });
            let Some((mode, strong_keys, strong_bytes)) = counted else {
                continue;
            };
            let (its_keys, its_bytes) = match mode {
                Mode::Strong => (strong_keys, strong_bytes),
                Mode::Eventual => {
                    let state = peer.eventual().state(namespace);
                    (state.keys, state.bytes)
                }
            };
            keys += its_keys;
            bytes += its_bytes;
            regions += 1;
        }
        raft::Namespace {
            id: row.id,
            name: row.name.clone(),
            mode: row.mode,
            state: modes::state(under_way(row), &self.regions(row)) as i32,
            // Read and written again: an older row may leave out what is the default.
            policies: Some(
                convert::policies(row.policies.as_ref())
                    .map(|policies| convert::policies_to_wire(&policies))
                    .unwrap_or_else(|_| row.policies.clone().unwrap_or_default()),
            ),
            keys,
            bytes,
            regions,
        }
    }

    /// The regions of a namespace as this store has them.
    fn regions(&self, row: &NamespaceRow) -> BTreeMap<RegionId, modes::RegionView> {
        let peers = self.manager.data_peers();
        let ids: Vec<_> = peers.iter().map(|peer| peer.id()).collect();
        let own: Vec<_> = peers.iter().map(|peer| peer.report()).collect();
        modes::regions(NamespaceId(row.id), &ids, &own)
    }

    fn row<'t>(tables: &'t MetaState, name: &str) -> Result<&'t NamespaceRow, Error> {
        let name = NamespaceName::of_request(name)
            .map_err(|error| Error::invalid("namespace", error.to_string()))?;
        tables.namespace(name.as_str()).ok_or_else(|| {
            let mut error = meta::not_found(name.as_str());
            error.metadata.remove("outcome");
            error
        })
    }

    /// The namespace of a name, from this store's own tables where it is in them.
    async fn known(&self, name: &str, deadline: Instant) -> Result<NamespaceRow, Error> {
        let found = self.namespaces.find(name, deadline).await;
        found.map_err(|mut error| {
            error.metadata.remove("outcome");
            error
        })
    }

    async fn conflicts(&self, name: &str, deadline: Instant) -> Result<Conflicts, Error> {
        let row = self.known(name, deadline).await?;
        let tables = self.namespaces.tables();
        let regions = tables.cluster.iter().flat_map(|cluster| &cluster.regions);
        let regions = regions.map(|region| RegionId(region.id));
        Ok(Conflicts::new(
            row,
            regions.filter(|region| *region != RegionId::META).collect(),
            tables.stores.keys().copied().collect(),
            self.stores.clone(),
        ))
    }
}

/// Policies that a request brings; the defaults where it brings none.
fn policies_of(wire: Option<&raft::Policies>) -> Result<Policies, Error> {
    let policies = convert::policies(wire).map_err(|(field, why)| Error::invalid(field, why))?;
    policies.check().map_err(|error| {
        let field = format!("policies.{}", error.field);
        let text = format!("policies.{error}");
        Error::invalid(&field, text).with("limit", error.limit)
    })?;
    Ok(policies)
}

fn status(error: Error) -> Status {
    // Creating what is there already does no harm: every request here may be repeated.
    error.to_status(true)
}

/// A change that was refused before it reached any log.
fn refused(error: Error) -> Status {
    status(error.outcome(Outcome::NotApplied))
}

#[tonic::async_trait]
impl RaftService for ModeService {
    async fn get_mode(
        &self,
        request: Request<raft::GetModeRequest>,
    ) -> Result<Response<raft::NamespaceMode>, Status> {
        let deadline = self.deadline(&request);
        let tables = self.namespaces.refresh_or_own(deadline).await;
        let tables = tables.map_err(status)?;
        let row = Self::row(&tables, &request.get_ref().namespace).map_err(status)?;
        let statuses = self.stores.statuses(&tables).await;
        let now_ms = self.router.unix_ms();
        Ok(Response::new(listing::of(row, &tables, &statuses, now_ms)))
    }

    async fn list_namespace_modes(
        &self,
        request: Request<raft::ListNamespaceModesRequest>,
    ) -> Result<Response<raft::ListNamespaceModesResponse>, Status> {
        let tables = self
            .namespaces
            .refresh_or_own(self.deadline(&request))
            .await
            .map_err(status)?;
        let statuses = self.stores.statuses(&tables).await;
        let now_ms = self.router.unix_ms();
        let namespaces = tables
            .namespaces
            .values()
            .filter(|row| !row.deleted)
            .map(|row| listing::of(row, &tables, &statuses, now_ms))
            .collect();
        Ok(Response::new(raft::ListNamespaceModesResponse {
            namespaces,
        }))
    }

    type UpdateNamespaceModeStream = switching::Changes;

    /// A caller that waits is answered for as long as the switch takes: his deadline is for the asking.
    async fn update_namespace_mode(
        &self,
        request: Request<raft::UpdateNamespaceModeRequest>,
    ) -> Result<Response<Self::UpdateNamespaceModeStream>, Status> {
        let deadline = self.deadline(&request);
        let (manager, stores) = (self.manager.clone(), self.stores.clone());
        let switching = Switching::new(manager, self.namespaces.clone(), stores);
        let changes = switching.update(request.into_inner(), deadline).await;
        Ok(Response::new(changes.map_err(status)?))
    }

    async fn create_namespace(
        &self,
        request: Request<raft::CreateNamespaceRequest>,
    ) -> Result<Response<raft::Namespace>, Status> {
        let deadline = self.deadline(&request);
        let create = request.into_inner();
        // Checked here as well as in apply: an illegal request never reaches a log. An empty name would
        // mean `default`, which exists.
        let name = NamespaceName::parse(&create.name)
            .map_err(|error| refused(Error::invalid("name", error.to_string())))?;
        let policies = policies_of(create.policies.as_ref()).map_err(refused)?;
        if create.mode != 0 && convert::mode(create.mode).is_none() {
            return Err(refused(Error::invalid(
                "mode",
                format!("{} is not a mode: 1 is strong, 2 eventual", create.mode),
            )));
        }
        let command = raft::CreateNamespaceCommand {
            name: name.as_str().to_owned(),
            mode: create.mode,
            // Written out, so that what is shown of a namespace names every default.
            policies: Some(convert::policies_to_wire(&policies)),
            from_default: false,
        };
        let row = self
            .namespaces
            .create(command, deadline)
            .await
            .map_err(status)?;
        for peer in self.manager.data_peers() {
            // So that the answer tells of its regions here. It is there in any case.
            let _ = peer.barrier(deadline).await;
        }
        Ok(Response::new(self.describe(&row)))
    }

    async fn update_namespace(
        &self,
        request: Request<raft::UpdateNamespaceRequest>,
    ) -> Result<Response<raft::Namespace>, Status> {
        let deadline = self.deadline(&request);
        let update = request.into_inner();
        let policies = policies_of(update.policies.as_ref()).map_err(status)?;
        let updated = self.namespaces.update(&update.name, &policies, deadline);
        let row = updated.await.map_err(status)?;
        Ok(Response::new(self.describe(&row)))
    }

    async fn delete_namespace(
        &self,
        request: Request<raft::DeleteNamespaceRequest>,
    ) -> Result<Response<raft::DeleteNamespaceResponse>, Status> {
        let deadline = self.deadline(&request);
        let name = &request.get_ref().name;
        // Nobody deletes what he has not named.
        NamespaceName::parse(name)
            .map_err(|error| refused(Error::invalid("name", error.to_string())))?;
        let deleted = self.namespaces.delete(name, deadline).await;
        // Not to be repeated blindly: by then somebody may have created it again.
        deleted.map_err(|error| error.to_status(false))?;
        Ok(Response::new(raft::DeleteNamespaceResponse {}))
    }

    async fn describe_namespace(
        &self,
        request: Request<raft::DescribeNamespaceRequest>,
    ) -> Result<Response<raft::Namespace>, Status> {
        let tables = self
            .namespaces
            .refresh(self.deadline(&request))
            .await
            .map_err(status)?;
        let row = Self::row(&tables, &request.get_ref().name).map_err(status)?;
        Ok(Response::new(self.describe(row)))
    }

    async fn list_namespaces(
        &self,
        request: Request<raft::ListNamespacesRequest>,
    ) -> Result<Response<raft::ListNamespacesResponse>, Status> {
        let tables = self
            .namespaces
            .refresh(self.deadline(&request))
            .await
            .map_err(status)?;
        let namespaces = tables
            .namespaces
            .values()
            .filter(|row| !row.deleted)
            .map(|row| self.describe(row))
            .collect();
        Ok(Response::new(raft::ListNamespacesResponse { namespaces }))
    }

    /// Works without a quorum: it is asked when something is wrong.
    async fn replication_status(
        &self,
        request: Request<raft::ReplicationStatusRequest>,
    ) -> Result<Response<raft::ReplicationStatusResponse>, Status> {
        let deadline = self.deadline(&request);
        let name = &request.get_ref().namespace;
        let row = self.known(name, deadline).await.map_err(status)?;
        let tables = self.namespaces.tables();
        let statuses = self.stores.statuses(&tables).await;
        let cluster = tables.cluster.clone().unwrap_or_default();
        let age = |store| self.stores.contact_age(store);
        let regions = replication::of(&row, &cluster.regions, &statuses, age);
        Ok(Response::new(raft::ReplicationStatusResponse { regions }))
    }

    type ListConflictsStream = BoxStream<'static, Result<raft::Conflict, Status>>;

    async fn list_conflicts(
        &self,
        request: Request<raft::ListConflictsRequest>,
    ) -> Result<Response<Self::ListConflictsStream>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let conflicts = self
            .conflicts(&request.namespace, deadline)
            .await
            .map_err(status)?;
        let (listing, missing) = conflicts.list(request.prefix).await.map_err(status)?;
        let limit = match request.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let rows = futures::stream::try_unfold(listing, async |mut listing| {
            let row = listing.next().await.map_err(status)?;
            Ok(row.map(|row| (conflicts::to_wire(row), listing)))
        });
        let mut response = Response::new(rows.take(limit).boxed());
        let missing: Vec<String> = missing.iter().map(StoreId::to_string).collect();
        if !missing.is_empty()
            && let Ok(value) = MetadataValue::try_from(missing.join(","))
        {
            response.metadata_mut().insert(MISSING_STORES, value);
        }
        Ok(response)
    }

    async fn restore_conflict(
        &self,
        request: Request<raft::RestoreConflictRequest>,
    ) -> Result<Response<raft::RestoreConflictResponse>, Status> {
        let deadline = self.deadline(&request);
        let request = request.into_inner();
        let only = match (request.id.as_str(), request.all) {
            ("", true) => None,
            (id, false) if !id.is_empty() => Some(id),
            _ => {
                let text = "give the id of one conflict, or `all`, and not both";
                return Err(status(Error::invalid("id", text)));
            }
        };
        let conflicts = self
            .conflicts(&request.namespace, deadline)
            .await
            .map_err(status)?;
        let restored = conflicts.restore(&self.router, only, request.if_untouched, deadline);
        // Unlike the others this one writes: repeated at another store, it may write again.
        let restored = restored.await.map_err(|error| error.to_status(false))?;
        Ok(Response::new(restored))
    }
}
