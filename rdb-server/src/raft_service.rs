//! The mode endpoints: what people and tools ask about namespaces.
//!
//! Decodes, asks the tables and the regions, encodes. What is not built yet says so.

use crate::error::{Error, Outcome};
use crate::grpc_edge::deadline_of;
use crate::kv_service::not_built;
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::region::meta::{self, MetaState};
use crate::stores::Stores;
use futures::stream::BoxStream;
use rdb_proto::convert;
use rdb_proto::raft::{self, NamespaceRow, raft_service_server::RaftService};
use rdb_types::{NamespaceName, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// The service.
pub struct ModeService {
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    stores: Stores,
}

impl ModeService {
    /// Over the tables and the peers of this store.
    pub fn new(manager: Arc<PeerManager>, namespaces: Namespaces, stores: Stores) -> ModeService {
        ModeService {
            manager,
            namespaces,
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
            let counted = peer.cell().with(|summary| {
                summary
                    .namespaces
                    .get(&rdb_types::NamespaceId(row.id))
                    .map(|state| (state.keys, state.bytes))
            });
            if let Some((its_keys, its_bytes)) = counted {
                keys += its_keys;
                bytes += its_bytes;
                regions += 1;
            }
        }
        raft::Namespace {
            id: row.id,
            name: row.name.clone(),
            mode: row.mode,
            state: state_of(row) as i32,
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

    fn row<'t>(tables: &'t MetaState, name: &str) -> Result<&'t NamespaceRow, Error> {
        let name = NamespaceName::of_request(name)
            .map_err(|error| Error::invalid("namespace", error.to_string()))?;
        tables.namespace(name.as_str()).ok_or_else(|| {
            let mut error = meta::not_found(name.as_str());
            error.metadata.remove("outcome");
            error
        })
    }

    /// What each store declares and applies of a namespace.
    fn mode_of(
        &self,
        row: &NamespaceRow,
        statuses: &BTreeMap<StoreId, Result<raft::StoreStatus, String>>,
    ) -> raft::NamespaceMode {
        let mut stores = Vec::new();
        let mut disagree = Vec::new();
        let mut epoch = 0;
        for (store, status) in statuses {
            let mut mode = raft::StoreMode {
                store_id: u32::from(store.get()),
                reachable: status.is_ok(),
                ..Default::default()
            };
            if let Ok(status) = status {
                mode.declared = status
                    .declared
                    .iter()
                    .find(|declared| declared.name == row.name)
                    .map_or(0, |declared| declared.mode);
                for report in status
                    .regions
                    .iter()
                    .flat_map(|region| &region.namespaces)
                    .filter(|report| report.namespace_id == row.id)
                {
                    mode.applied = report.mode;
                    mode.epoch = mode.epoch.max(report.epoch);
                }
                if mode.declared != 0 && mode.declared != row.mode {
                    disagree.push(format!("store {store} declares {}", text_of(mode.declared)));
                }
            }
            epoch = epoch.max(mode.epoch);
            stores.push(mode);
        }
        let mismatch = if disagree.is_empty() {
            String::new()
        } else {
            format!(
                "{}, the cluster serves {}: the committed mode wins until the files agree",
                disagree.join(", "),
                text_of(row.mode)
            )
        };
        raft::NamespaceMode {
            namespace: row.name.clone(),
            mode: row.mode,
            target: row.target,
            epoch,
            state: state_of(row) as i32,
            from_default: row.from_default,
            mismatched: !mismatch.is_empty(),
            mismatch,
            stores,
        }
    }
}

fn text_of(mode: i32) -> &'static str {
    convert::mode(mode).map_or("nothing", rdb_types::Mode::as_str)
}

fn state_of(row: &NamespaceRow) -> raft::State {
    if row.mode == row.target {
        raft::State::Stable
    } else {
        raft::State::Switching
    }
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
        let tables = self.namespaces.refresh(deadline).await.map_err(status)?;
        let row = Self::row(&tables, &request.get_ref().namespace).map_err(status)?;
        let statuses = self.stores.statuses(&tables).await;
        Ok(Response::new(self.mode_of(row, &statuses)))
    }

    async fn list_namespace_modes(
        &self,
        request: Request<raft::ListNamespaceModesRequest>,
    ) -> Result<Response<raft::ListNamespaceModesResponse>, Status> {
        let tables = self
            .namespaces
            .refresh(self.deadline(&request))
            .await
            .map_err(status)?;
        let statuses = self.stores.statuses(&tables).await;
        let namespaces = tables
            .namespaces
            .values()
            .filter(|row| !row.deleted)
            .map(|row| self.mode_of(row, &statuses))
            .collect();
        Ok(Response::new(raft::ListNamespaceModesResponse {
            namespaces,
        }))
    }

    type UpdateNamespaceModeStream = BoxStream<'static, Result<raft::ModeChange, Status>>;

    async fn update_namespace_mode(
        &self,
        _: Request<raft::UpdateNamespaceModeRequest>,
    ) -> Result<Response<Self::UpdateNamespaceModeStream>, Status> {
        Err(not_built("UpdateNamespaceMode"))
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
        let policies = convert::policies(create.policies.as_ref())
            .map_err(|(field, why)| refused(Error::invalid(field, why)))?;
        policies.check().map_err(|error| {
            let field = format!("policies.{}", error.field);
            let text = format!("policies.{error}");
            refused(Error::invalid(&field, text).with("limit", error.limit))
        })?;
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
        Ok(Response::new(self.describe(&row)))
    }

    async fn update_namespace(
        &self,
        _: Request<raft::UpdateNamespaceRequest>,
    ) -> Result<Response<raft::Namespace>, Status> {
        Err(not_built("UpdateNamespace"))
    }

    async fn delete_namespace(
        &self,
        _: Request<raft::DeleteNamespaceRequest>,
    ) -> Result<Response<raft::DeleteNamespaceResponse>, Status> {
        Err(not_built("DeleteNamespace"))
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

    async fn replication_status(
        &self,
        _: Request<raft::ReplicationStatusRequest>,
    ) -> Result<Response<raft::ReplicationStatusResponse>, Status> {
        Err(not_built("ReplicationStatus"))
    }

    type ListConflictsStream = BoxStream<'static, Result<raft::Conflict, Status>>;

    async fn list_conflicts(
        &self,
        _: Request<raft::ListConflictsRequest>,
    ) -> Result<Response<Self::ListConflictsStream>, Status> {
        Err(not_built("ListConflicts"))
    }

    async fn restore_conflict(
        &self,
        _: Request<raft::RestoreConflictRequest>,
    ) -> Result<Response<raft::RestoreConflictResponse>, Status> {
        Err(not_built("RestoreConflict"))
    }
}
