//! What the store of the command's tests says of an eventual namespace: one conflict, three replicas; and
//! of a switch.

use super::Store;
use futures::stream::{BoxStream, StreamExt};
use rdb_proto::raft::{self, raft_service_server::RaftService};
use tonic::{Request, Response, Status};

/// The id of the only conflict.
pub(crate) const CONFLICT: &str = "2-0000000000000007-6b";

fn none<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in these tests"))
}

fn change(step: &str) -> raft::ModeChange {
    raft::ModeChange {
        state: raft::State::Switching as i32,
        mode: 2,
        epoch: 4,
        step: step.into(),
        remaining_writes: 5,
        regions_done: 1,
        regions_total: 2,
        waiting_for: vec![3],
        ..Default::default()
    }
}

/// Without store 3, if that may be.
fn planned(request: &raft::UpdateNamespaceModeRequest) -> raft::ModeChange {
    let fine = request.accept_missing == [3];
    let plan = raft::Plan {
        unreachable_stores: vec![3],
        writes_to_exchange: 120,
        estimated_write_pause_us: 9_500,
        starts_working: vec!["compare-and-swap".into()],
        would_succeed: fine,
        obstacles: if fine {
            vec![]
        } else {
            vec!["store 3 cannot be reached".into()]
        },
        ..Default::default()
    };
    raft::ModeChange {
        plan: Some(plan),
        ..change("plan")
    }
}

impl Store {
    /// Twice: as a store that goes away while it is asked, and one that goes away after it.
    fn breaks_off(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        state.broken_off += 1;
        state.broken_off <= 2
    }
}

#[tonic::async_trait]
impl RaftService for Store {
    async fn get_mode(
        &self,
        _: Request<raft::GetModeRequest>,
    ) -> Result<Response<raft::NamespaceMode>, Status> {
        none()
    }

    async fn list_namespace_modes(
        &self,
        _: Request<raft::ListNamespaceModesRequest>,
    ) -> Result<Response<raft::ListNamespaceModesResponse>, Status> {
        let logs = raft::NamespaceMode {
            namespace: "logs".into(),
            mode: 1,
            target: 2,
            epoch: 4,
            state: raft::State::Switching as i32,
            mismatched: true,
            mismatch: "store 3 declares strong".into(),
            stores: vec![raft::StoreMode {
                store_id: 3,
                declared: 1,
                applied: 1,
                epoch: 4,
                reachable: true,
                mismatched_since_ms: 1_700_000_000_000,
            }],
            ..Default::default()
        };
        Ok(Response::new(raft::ListNamespaceModesResponse {
            namespaces: vec![logs],
        }))
    }

    type UpdateNamespaceModeStream = BoxStream<'static, Result<raft::ModeChange, Status>>;
    async fn update_namespace_mode(
        &self,
        request: Request<raft::UpdateNamespaceModeRequest>,
    ) -> Result<Response<Self::UpdateNamespaceModeStream>, Status> {
        let request = request.into_inner();
        let changes = if request.dry_run {
            vec![Ok(planned(&request))]
        } else if !request.wait {
            vec![Ok(change(if request.cancel {
                "undoing"
            } else {
                "recorded"
            }))]
        } else if request.namespace == "lost" && self.breaks_off() {
            let gone = Status::unavailable("the store is gone");
            vec![Ok(change("draining")), Err(gone)]
        } else if request.namespace == "stuck" {
            let aborted = Status::aborted("the switch of stuck was given up");
            vec![Ok(change("draining")), Err(aborted)]
        } else {
            vec![
                Ok(change("draining")),
                Ok(raft::ModeChange {
                    state: raft::State::Stable as i32,
                    mode: request.mode,
                    epoch: 6,
                    regions_done: 2,
                    remaining_writes: 0,
                    write_pause_us: 12_300,
                    waiting_for: vec![],
                    ..change("done")
                }),
            ]
        };
        Ok(Response::new(futures::stream::iter(changes).boxed()))
    }

    async fn create_namespace(
        &self,
        _: Request<raft::CreateNamespaceRequest>,
    ) -> Result<Response<raft::Namespace>, Status> {
        none()
    }

    async fn update_namespace(
        &self,
        _: Request<raft::UpdateNamespaceRequest>,
    ) -> Result<Response<raft::Namespace>, Status> {
        none()
    }

    async fn delete_namespace(
        &self,
        _: Request<raft::DeleteNamespaceRequest>,
    ) -> Result<Response<raft::DeleteNamespaceResponse>, Status> {
        none()
    }

    async fn describe_namespace(
        &self,
        _: Request<raft::DescribeNamespaceRequest>,
    ) -> Result<Response<raft::Namespace>, Status> {
        none()
    }

    async fn list_namespaces(
        &self,
        _: Request<raft::ListNamespacesRequest>,
    ) -> Result<Response<raft::ListNamespacesResponse>, Status> {
        none()
    }

    async fn replication_status(
        &self,
        request: Request<raft::ReplicationStatusRequest>,
    ) -> Result<Response<raft::ReplicationStatusResponse>, Status> {
        // The namespace's name says what is wrong with its third replica.
        let wrong = request.into_inner().namespace;
        let replicas = (1..=3).map(|store_id| {
            let third = |name: &str| store_id == 3 && wrong == name;
            raft::ReplicaStatus {
                store_id,
                reachable: !third("away"),
                vector: [(1, if third("behind") { 4 } else { 5 })].into(),
                digest: vec![if third("different") { 8 } else { 7 }; 16].into(),
                keys: 9,
                ..Default::default()
            }
        });
        let region = raft::RegionStatus {
            region_id: 2,
            replicas: replicas.collect(),
            mode: 2,
            ..Default::default()
        };
        Ok(Response::new(raft::ReplicationStatusResponse {
            regions: vec![region],
        }))
    }

    type ListConflictsStream = BoxStream<'static, Result<raft::Conflict, Status>>;
    async fn list_conflicts(
        &self,
        request: Request<raft::ListConflictsRequest>,
    ) -> Result<Response<Self::ListConflictsStream>, Status> {
        let conflict = raft::Conflict {
            id: CONFLICT.into(),
            key: "k".into(),
            value: vec![0xFF].into(),
            version: 7,
            winner_version: 9,
            reason: "a newer write had not seen it".into(),
            stores: vec![1, 2],
            ..Default::default()
        };
        let prefix = request.into_inner().prefix;
        let rows: Vec<_> = [conflict]
            .into_iter()
            .filter(|conflict| conflict.key.starts_with(&prefix))
            .map(Ok)
            .collect();
        let mut response = Response::new(futures::stream::iter(rows).boxed());
        let missing = "3".parse().map_err(|_| Status::internal("no header"))?;
        response
            .metadata_mut()
            .insert("flaredb-missing-stores", missing);
        Ok(response)
    }

    async fn restore_conflict(
        &self,
        request: Request<raft::RestoreConflictRequest>,
    ) -> Result<Response<raft::RestoreConflictResponse>, Status> {
        let request = request.into_inner();
        let known = request.all || request.id == CONFLICT;
        if !known {
            return Err(Status::invalid_argument("no such conflict"));
        }
        Ok(Response::new(raft::RestoreConflictResponse {
            restored: 1,
            skipped: u64::from(request.if_untouched),
            warnings: vec!["store 3 may still list it".into()],
        }))
    }
}
