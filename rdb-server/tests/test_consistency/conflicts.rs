//! What eventual namespaces show of themselves: lag, conflicts, policies, numbers.

use crate::support::calls::{PATIENT, Plain, Refusal, channel, linearizable, refused, stale, text};
use crate::support::cluster::Cluster;
use crate::support::http;
use crate::support::wait::eventually;
use rdb_proto::kv::Mode;
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_proto::raft::{
    Conflict, CreateNamespaceRequest, DescribeNamespaceRequest, ListConflictsRequest, Policies,
    RegionStatus, ReplicationStatusRequest, RestoreConflictRequest, UpdateNamespaceRequest,
};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const CONVERGED: Duration = Duration::from_secs(20);

async fn service(cluster: &Cluster, store: usize) -> RaftServiceClient<Channel> {
    RaftServiceClient::new(channel(cluster.addr(store)).await)
}

async fn replication(cluster: &Cluster, store: usize) -> Result<RegionStatus, String> {
    let request = ReplicationStatusRequest {
        namespace: "cart".into(),
    };
    let answer = service(cluster, store)
        .await
        .replication_status(request)
        .await
        .map_err(|status| status.to_string())?;
    let mut regions = answer.into_inner().regions;
    regions.pop().ok_or_else(|| "no region".to_owned())
}

/// Every conflict that a store lists, and the header that names the stores whose logs are not in it.
async fn conflicts(cluster: &Cluster, store: usize) -> Result<(Vec<Conflict>, String), Status> {
    let request = ListConflictsRequest {
        namespace: "cart".into(),
        ..Default::default()
    };
    let answer = service(cluster, store)
        .await
        .list_conflicts(request)
        .await?;
    let missing = answer.metadata().get("flaredb-missing-stores");
    let missing = missing.map_or(String::new(), |it| it.to_str().unwrap().to_owned());
    let mut rows = answer.into_inner();
    let mut found = Vec::new();
    while let Some(row) = rows.message().await? {
        found.push(row);
    }
    Ok((found, missing))
}

async fn converged(cluster: &Cluster, on: usize) -> RegionStatus {
    eventually(CONVERGED, "all replicas have all writes", async || {
        let region = replication(cluster, on).await?;
        let first = &region.replicas[0];
        let equal = region
            .replicas
            .iter()
            .all(|replica| replica.reachable && replica.vector == first.vector);
        if equal {
            Ok(region)
        } else {
            Err(format!("{region:?}"))
        }
    })
    .await
}

async fn carts(cluster: &Cluster) -> Vec<Plain> {
    let mut carts = Vec::new();
    for store in 0..cluster.len() {
        carts.push(Plain::on(cluster, store).await.namespace("cart"));
    }
    carts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_cut_write_and_what_lost_is_listed_and_restored() {
    let cluster = Cluster::start_meshed(3, &["--namespace-mode", "cart=eventual"]).await;
    let carts = carts(&cluster).await;
    carts[0].put("both", "before").await.unwrap();
    carts[0].put("other", "before").await.unwrap();
    converged(&cluster, 0).await;

    cluster.mesh().isolate(2);
    carts[0].put("both", "majority").await.unwrap();
    // Later, so it wins.
    eventually(PATIENT, "a later millisecond", async || {
        carts[2]
            .put("both", "alone")
            .await
            .map_err(|e| e.to_string())
    })
    .await;
    carts[2].put("other", "alone, too").await.unwrap();
    let behind = eventually(PATIENT, "the lag is seen", async || {
        let region = replication(&cluster, 0).await?;
        let replica = region.replicas[2].clone();
        if !replica.reachable && replica.lag_writes > 0 && replica.lag_ms > 0 {
            Ok(replica)
        } else {
            Err(format!("{replica:?}"))
        }
    })
    .await;
    // What it acknowledged since its last report is not counted yet.
    assert!((1..=3).contains(&behind.lag_writes), "{behind:?}");
    assert!(behind.last_contact_ms > 0, "{behind:?}");
    // The side that was cut off answers for itself, without a quorum.
    let alone = replication(&cluster, 2).await.unwrap();
    assert_eq!(
        alone
            .replicas
            .iter()
            .map(|replica| replica.reachable)
            .collect::<Vec<_>>(),
        [false, false, true]
    );
    let mut health = HealthClient::new(channel(cluster.addr(2)).await);
    for (service, expected) in [
        ("default", ServingStatus::NotServing),
        ("cart", ServingStatus::Serving),
    ] {
        eventually(PATIENT, service, async || {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            match health.check(request).await {
                Ok(answer) if answer.get_ref().status() == expected => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    let (_, missing) = conflicts(&cluster, 2).await.unwrap();
    assert_eq!(missing, "1,2");

    cluster.mesh().heal();
    let region = converged(&cluster, 1).await;
    assert_eq!(region.mode(), Mode::Eventual);
    for replica in &region.replicas {
        assert_eq!(replica.digest, region.replicas[0].digest, "{region:?}");
        assert_eq!((replica.lag_writes, replica.lag_ms), (0, 0), "{region:?}");
    }
    for cart in &carts {
        let read = cart.get("both").await.unwrap();
        assert_eq!(text(&read).as_deref(), Some("alone"));
    }
    let (listed, missing) = conflicts(&cluster, 1).await.unwrap();
    assert_eq!((listed.len(), missing.as_str()), (1, ""), "{listed:?}");
    let lost = &listed[0];
    assert_eq!(
        (
            &lost.key[..],
            &lost.value[..],
            lost.deletion,
            lost.set_aside
        ),
        (&b"both"[..], &b"majority"[..], false, false)
    );
    assert_eq!(lost.stores, [1, 2, 3], "each replica found it by itself");
    assert!(lost.winner_version > lost.version && !lost.reason.is_empty());

    let restore = |id: &str, if_untouched| RestoreConflictRequest {
        namespace: "cart".into(),
        id: id.to_owned(),
        if_untouched,
        ..Default::default()
    };
    let mut modes = service(&cluster, 1).await;
    let done = modes
        .restore_conflict(restore(&lost.id, true))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((done.restored, done.skipped), (1, 0), "{done:?}");
    assert!(done.warnings.is_empty(), "{done:?}");
    converged(&cluster, 0).await;
    for (store, cart) in carts.iter().enumerate() {
        let read = cart.get("both").await.unwrap();
        assert_eq!(text(&read).as_deref(), Some("majority"));
        assert!(conflicts(&cluster, store).await.unwrap().0.is_empty());
    }
    // Gone is gone, and nothing is written again.
    for (id, field) in [(lost.id.as_str(), "id"), ("nonsense", "id"), ("", "id")] {
        let again = modes.restore_conflict(restore(id, false)).await;
        refused(again)
            .is(Code::InvalidArgument, "INVALID_ARGUMENT")
            .field(field);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_of_all_leaves_alone_what_was_touched_since() {
    let cluster = Cluster::start_meshed(3, &["--namespace-mode", "cart=eventual"]).await;
    let carts = carts(&cluster).await;
    carts[0].put("warm", "up").await.unwrap();
    converged(&cluster, 0).await;
    cluster.mesh().isolate(2);
    for key in 0..20 {
        let key = format!("k{key:02}");
        carts[0].put(&key, "majority").await.unwrap();
        carts[2].put(&key, "alone").await.unwrap();
    }
    cluster.mesh().heal();
    converged(&cluster, 0).await;
    let (listed, _) = conflicts(&cluster, 0).await.unwrap();
    assert_eq!(listed.len(), 20);
    carts[1].put("k00", "since").await.unwrap();
    converged(&cluster, 0).await;
    let request = RestoreConflictRequest {
        namespace: "cart".into(),
        all: true,
        if_untouched: true,
        ..Default::default()
    };
    let done = service(&cluster, 0)
        .await
        .restore_conflict(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((done.restored, done.skipped), (19, 1), "{done:?}");
    assert!(
        done.warnings.iter().any(|it| it.contains("written since")),
        "{done:?}"
    );
    converged(&cluster, 0).await;
    assert_eq!(
        text(&carts[2].get("k00").await.unwrap()).as_deref(),
        Some("since")
    );
    let lost = &listed[19];
    let read = carts[2]
        .get(std::str::from_utf8(&lost.key).unwrap())
        .await
        .unwrap();
    assert_eq!(read.value, lost.value);
    assert_eq!(conflicts(&cluster, 2).await.unwrap().0.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eventual_namespace_is_described_counted_and_updated() {
    let cluster = Cluster::start(3, &["--namespace-mode", "cart=eventual"]).await;
    let carts = carts(&cluster).await;
    carts[0].put("k", "value").await.unwrap();
    converged(&cluster, 0).await;
    let mut modes = service(&cluster, 1).await;
    let described = modes
        .describe_namespace(DescribeNamespaceRequest {
            name: "cart".into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (described.mode(), described.keys, described.regions),
        (Mode::Eventual, 1, 1),
        "{described:?}"
    );
    assert!(described.bytes >= 6, "{described:?}");

    let policies = Policies {
        durability: "relaxed".into(),
        ttl_ms: 60_000,
        ..Default::default()
    };
    let update = |name: &str, policies: Policies| UpdateNamespaceRequest {
        name: name.into(),
        policies: Some(policies),
    };
    let updated = modes
        .update_namespace(update("cart", policies.clone()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(updated.policies, Some(policies.clone()));
    assert_eq!(updated.mode(), Mode::Eventual);
    carts[1].put("expires", "v").await.unwrap();
    assert!(carts[1].get("expires").await.unwrap().expires_at_ms > 0);
    let unknown = modes.update_namespace(update("nobody", policies.clone()));
    refused(unknown.await).is(Code::NotFound, "NAMESPACE_NOT_FOUND");
    let odd = Policies {
        durability: "maybe".into(),
        ..policies
    };
    refused(modes.update_namespace(update("cart", odd)).await)
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .field("policies.durability");

    // What only a strong namespace can do says so.
    refused(carts[0].cas("k", 0, "v", "").await)
        .is(Code::FailedPrecondition, "WRONG_MODE")
        .outcome("not_applied");
    refused(carts[0].get_as("k", linearizable()).await).is(Code::FailedPrecondition, "WRONG_MODE");
    assert!(carts[0].get_as("k", stale()).await.unwrap().found);

    eventually(PATIENT, "the metrics say it", async || {
        let answer = http::get(cluster.http_addr(0), "/metrics").await?;
        let wanted = [
            "flaredb_namespace_keys{namespace=\"cart\"} 2",
            "flaredb_namespace_mode{namespace=\"cart\",mode=\"eventual\"} 1",
            "flaredb_replication_lag_writes{namespace=\"cart\",store=\"2\"} 0",
            "flaredb_replication_lag_seconds{namespace=\"cart\",store=\"3\"} 0.0",
            "flaredb_conflicts_listed{namespace=\"cart\"} 0",
            "flaredb_conflicts_dropped_total{namespace=\"cart\"} 0",
            "flaredb_request_seconds_count{method=\"Put\",mode=\"eventual\"}",
        ];
        let absent: Vec<_> = wanted
            .into_iter()
            .filter(|line| !answer.body.contains(line))
            .collect();
        if absent.is_empty() {
            Ok(())
        } else {
            Err(format!("{absent:?} not in\n{}", answer.body))
        }
    })
    .await;
    let status = service(&cluster, 0)
        .await
        .replication_status(ReplicationStatusRequest {
            namespace: "nobody".into(),
        })
        .await
        .unwrap_err();
    Refusal::of(&status)
        .is(Code::NotFound, "NAMESPACE_NOT_FOUND")
        .outcome("");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_namespace_says_how_far_its_replicas_are() {
    let cluster = Cluster::start(3, &[]).await;
    let mut modes = service(&cluster, 0).await;
    let create = CreateNamespaceRequest {
        name: "cart".into(),
        mode: Mode::Strong as i32,
        ..Default::default()
    };
    modes.create_namespace(create).await.unwrap();
    Plain::on(&cluster, 0)
        .await
        .namespace("cart")
        .put("k", "v")
        .await
        .unwrap();
    let region = eventually(PATIENT, "all replicas have applied it", async || {
        let region = replication(&cluster, 1).await?;
        let settled = region
            .replicas
            .iter()
            .all(|replica| replica.lag_writes == 0 && replica.keys == 1);
        if settled {
            Ok(region)
        } else {
            Err(format!("{region:?}"))
        }
    })
    .await;
    assert!(
        region.quorum && region.leader > 0 && region.replicas.len() == 3,
        "{region:?}"
    );
    for replica in &region.replicas {
        assert_eq!(replica.digest, region.replicas[0].digest, "{region:?}");
        assert_eq!(replica.digest.len(), 16);
    }
}
