//! The `Admin` service: what an operator asks of the cluster beyond namespaces.

use crate::config::KeyChange;
use crate::error::Error;
use crate::grpc_edge::deadline_of;
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::store::clocks;
use crate::store::reload::Reloader;
use crate::stores::Stores;
use rdb_proto::admin::{self, admin_server::Admin};
use rdb_types::{Reason, RegionId, StoreId};
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// The service.
pub struct AdminService {
    me: StoreId,
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    stores: Stores,
    reloader: Arc<Reloader>,
}

impl AdminService {
    /// Over the peers of this store.
    pub fn new(
        me: StoreId,
        manager: Arc<PeerManager>,
        namespaces: Namespaces,
        stores: Stores,
        reloader: Arc<Reloader>,
    ) -> AdminService {
        AdminService {
            me,
            manager,
            namespaces,
            stores,
            reloader,
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    /// Answers from this store's own copy of the tables: the one call that must work when nothing else
    /// does.
    async fn cluster_status(
        &self,
        request: Request<admin::ClusterStatusRequest>,
    ) -> Result<Response<admin::ClusterStatusResponse>, Status> {
        deadline_of(&request);
        let tables = self.namespaces.tables();
        let statuses = self.stores.statuses(&tables).await;
        let stores = statuses
            .into_iter()
            .map(|(store, status)| {
                let row = tables.stores.get(&store).and_then(|row| row.member.clone());
                let (status, error) = match status {
                    Ok(status) => (Some(status), String::new()),
                    Err(error) => (None, error),
                };
                admin::StoreSummary {
                    member: row,
                    reachable: status.is_some(),
                    error,
                    status,
                }
            })
            .collect();
        let cluster = tables.cluster.clone().unwrap_or_default();
        Ok(Response::new(admin::ClusterStatusResponse {
            cluster_id: cluster.cluster_id,
            stores,
            regions: cluster.regions,
            namespaces: tables.namespaces.values().cloned().collect(),
            answered_by: u32::from(self.me.get()),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<admin::TransferLeaderRequest>,
    ) -> Result<Response<admin::TransferLeaderResponse>, Status> {
        deadline_of(&request);
        let request = request.into_inner();
        let to = match request.to_store {
            0 => None,
            id => Some(StoreId::new(u64::from(id)).ok_or_else(|| {
                Error::invalid("to_store", format!("{id} is not a store id")).to_status(true)
            })?),
        };
        let peers = match request.region_id {
            0 => self.manager.peers(),
            id => vec![self.manager.peer(RegionId(id)).ok_or_else(|| {
                Error::invalid("region_id", format!("there is no region {id} here")).to_status(true)
            })?],
        };
        let mut regions = Vec::new();
        for peer in peers {
            if peer
                .transfer_leader(to)
                .await
                .map_err(|error| error.to_status(true))?
            {
                regions.push(peer.id().0);
            }
        }
        if regions.is_empty() {
            return Err(Error::new(Reason::NotLeader, format!("store {} leads none of these regions; ask the store that does (`flaredb status`)", self.me)).to_status(false));
        }
        Ok(Response::new(admin::TransferLeaderResponse { regions }))
    }

    async fn reload(
        &self,
        request: Request<admin::ReloadRequest>,
    ) -> Result<Response<admin::ReloadResponse>, Status> {
        deadline_of(&request);
        let reloaded = self
            .reloader
            .reload()
            .map_err(|error| error.to_status(true))?;
        let lines = |changes: &[KeyChange]| changes.iter().map(KeyChange::to_string).collect();
        Ok(Response::new(admin::ReloadResponse {
            store_id: u32::from(self.me.get()),
            changed: lines(&reloaded.changed),
            waiting: lines(&reloaded.waiting),
            warnings: reloaded.warnings,
        }))
    }

    async fn set_log_level(
        &self,
        request: Request<admin::SetLogLevelRequest>,
    ) -> Result<Response<admin::SetLogLevelResponse>, Status> {
        deadline_of(&request);
        let (before, level) = self
            .reloader
            .set_log_level(&request.into_inner().level)
            .map_err(|error| error.to_status(true))?;
        Ok(Response::new(admin::SetLogLevelResponse {
            store_id: u32::from(self.me.get()),
            before,
            level,
        }))
    }

    async fn advance_clock(
        &self,
        request: Request<admin::AdvanceClockRequest>,
    ) -> Result<Response<admin::AdvanceClockResponse>, Status> {
        let deadline = deadline_of(&request).unwrap_or_else(|| {
            let config = self.manager.context().config.load();
            Instant::now() + config.consistency.request_timeout
        });
        clocks::advance(&self.manager, request.into_inner().to_unix_ms, deadline)
            .await
            .map_err(|error| error.to_status(true))?;
        Ok(Response::new(admin::AdvanceClockResponse {}))
    }
}
