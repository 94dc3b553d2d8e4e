//! Calls on namespaces, their modes, and the cluster.
//!
//! Owns nothing but the requests. Changes here carry no request id, so one whose outcome is unknown
//! is not repeated: the caller looks first.

use crate::call::Call;
use crate::client::{Client, with_deadline};
use crate::error::ClientError;
use rdb_proto::admin::{self, admin_client::AdminClient};
use rdb_proto::raft::{self, raft_service_client::RaftServiceClient};
use rdb_proto::{convert, kv};
use rdb_types::{Mode, Policies};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

impl Client {
    /// Creates a namespace; without a mode in the cluster's default one.
    pub async fn create_namespace(
        &self,
        name: &str,
        mode: Option<Mode>,
        policies: Option<Policies>,
    ) -> Result<raft::Namespace, ClientError> {
        let request = raft::CreateNamespaceRequest {
            name: name.to_owned(),
            mode: mode.map_or(kv::Mode::Unspecified as i32, convert::mode_to_wire),
            policies: policies.as_ref().map(convert::policies_to_wire),
        };
        let call = Call::anonymous("creating a namespace", name);
        self.raft(call, request, async |mut client, request| {
            client.create_namespace(request).await
        })
        .await
    }

    /// Changes a namespace's policies.
    pub async fn update_namespace(
        &self,
        name: &str,
        policies: Policies,
    ) -> Result<raft::Namespace, ClientError> {
        let policies = Some(convert::policies_to_wire(&policies));
        let request = raft::UpdateNamespaceRequest {
            name: name.to_owned(),
            policies,
        };
        let call = Call::anonymous("updating a namespace", name);
        self.raft(call, request, async |mut client, request| {
            client.update_namespace(request).await
        })
        .await
    }

    /// Deletes a namespace and what is in it.
    pub async fn delete_namespace(&self, name: &str) -> Result<(), ClientError> {
        let request = raft::DeleteNamespaceRequest {
            name: name.to_owned(),
        };
        let call = Call::anonymous("deleting a namespace", name);
        self.raft(call, request, async |mut client, request| {
            client.delete_namespace(request).await
        })
        .await
        .map(drop)
    }

    /// One namespace: mode, policies, size.
    pub async fn describe_namespace(&self, name: &str) -> Result<raft::Namespace, ClientError> {
        let request = raft::DescribeNamespaceRequest {
            name: name.to_owned(),
        };
        let call = Call::read("describing a namespace", name, None);
        self.raft(call, request, async |mut client, request| {
            client.describe_namespace(request).await
        })
        .await
    }

    /// All namespaces.
    pub async fn list_namespaces(&self) -> Result<Vec<raft::Namespace>, ClientError> {
        let call = Call::read("listing namespaces", "", None);
        let request = raft::ListNamespacesRequest {};
        let response = self
            .raft(call, request, async |mut client, request| {
                client.list_namespaces(request).await
            })
            .await?;
        Ok(response.namespaces)
    }

    /// A namespace's mode, on every store.
    pub async fn get_mode(&self, name: &str) -> Result<raft::NamespaceMode, ClientError> {
        let request = raft::GetModeRequest {
            namespace: name.to_owned(),
        };
        let call = Call::read("reading a mode", name, None);
        self.raft(call, request, async |mut client, request| {
            client.get_mode(request).await
        })
        .await
    }

    /// The modes of all namespaces.
    pub async fn list_modes(&self) -> Result<Vec<raft::NamespaceMode>, ClientError> {
        let call = Call::read("listing modes", "", None);
        let request = raft::ListNamespaceModesRequest {};
        let response = self
            .raft(call, request, async |mut client, request| {
                client.list_namespace_modes(request).await
            })
            .await?;
        Ok(response.namespaces)
    }

    /// How far each replica of a namespace is.
    pub async fn replication_status(
        &self,
        name: &str,
    ) -> Result<Vec<raft::RegionStatus>, ClientError> {
        let request = raft::ReplicationStatusRequest {
            namespace: name.to_owned(),
        };
        let call = Call::read("reading the replication status", name, None);
        let response = self
            .raft(call, request, async |mut client, request| {
                client.replication_status(request).await
            })
            .await?;
        Ok(response.regions)
    }

    /// Stores, regions and namespaces, as the asked store sees them.
    pub async fn cluster_status(&self) -> Result<admin::ClusterStatusResponse, ClientError> {
        let call = Call::read("reading the cluster's status", "", None);
        let request = admin::ClusterStatusRequest {};
        self.admin(call, request, async |mut client, request| {
            client.cluster_status(request).await
        })
        .await
    }

    /// Hands the lead of a region over to `to_store`; gives the regions that were handed over.
    pub async fn transfer_leader(
        &self,
        region_id: u64,
        to_store: u32,
    ) -> Result<Vec<u64>, ClientError> {
        let request = admin::TransferLeaderRequest {
            region_id,
            to_store,
        };
        let call = Call::anonymous("transferring a lead", "");
        let response = self
            .admin(call, request, async |mut client, request| {
                client.transfer_leader(request).await
            })
            .await?;
        Ok(response.regions)
    }

    /// Has the store that answers read its configuration again. Give the client one endpoint to say which.
    pub async fn reload(&self) -> Result<admin::ReloadResponse, ClientError> {
        // Read twice it is the same: a read in the sense of repeats.
        let call = Call::read("reloading a configuration", "", None);
        self.admin(
            call,
            admin::ReloadRequest {},
            async |mut client, request| client.reload(request).await,
        )
        .await
    }

    /// Changes what the store that answers logs; with an empty level only asks. Give the client one endpoint to say
    /// which.
    pub async fn set_log_level(
        &self,
        level: &str,
    ) -> Result<admin::SetLogLevelResponse, ClientError> {
        // Done twice it is the same: a read in the sense of repeats.
        let call = Call::read("changing a log level", "", None);
        let request = admin::SetLogLevelRequest {
            level: level.to_owned(),
        };
        self.admin(call, request, async |mut client, request| {
            client.set_log_level(request).await
        })
        .await
    }

    /// Has the stamps of all stores go on from `to_unix_ms` (milliseconds since the Unix epoch), for when the clocks of
    /// a majority were wrong. For good: stamps never go back. A time that is past changes nothing.
    pub async fn advance_clock(&self, to_unix_ms: u64) -> Result<(), ClientError> {
        // Done twice it is the same: a read in the sense of repeats.
        let call = Call::read("advancing the clocks", "", None);
        let request = admin::AdvanceClockRequest { to_unix_ms };
        self.admin(call, request, async |mut client, request| {
            client.advance_clock(request).await
        })
        .await?;
        Ok(())
    }

    pub(crate) async fn raft<Q, R, F>(
        &self,
        call: Call<'_>,
        request: Q,
        send: F,
    ) -> Result<R, ClientError>
    where
        Q: Clone,
        F: AsyncFn(RaftServiceClient<Channel>, Request<Q>) -> Result<Response<R>, Status>,
    {
        self.run(call, |node, deadline, _| {
            let (request, send) = (request.clone(), &send);
            async move {
                node.unary(deadline, async |channel| {
                    send(
                        RaftServiceClient::new(channel),
                        with_deadline(request, deadline),
                    )
                    .await
                })
                .await
            }
        })
        .await
    }

    async fn admin<Q, R, F>(&self, call: Call<'_>, request: Q, send: F) -> Result<R, ClientError>
    where
        Q: Clone,
        F: AsyncFn(AdminClient<Channel>, Request<Q>) -> Result<Response<R>, Status>,
    {
        self.run(call, |node, deadline, _| {
            let (request, send) = (request.clone(), &send);
            async move {
                node.unary(deadline, async |channel| {
                    send(AdminClient::new(channel), with_deadline(request, deadline)).await
                })
                .await
            }
        })
        .await
    }
}
