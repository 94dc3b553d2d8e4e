//! The one act by which an operator moves the clocks of a cluster: stamps go on from a later time, at every
//! store, in both modes, for good.

use crate::support::calls::{PATIENT, Plain, channel, refused};
use crate::support::cluster::{Cluster, DATA};
use crate::support::wait::eventually;
use rdb_proto::admin::{AdvanceClockRequest, admin_client::AdminClient};
use rdb_proto::kv;
use rdb_proto::raft::CreateNamespaceRequest;
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_types::Stamp;
use tonic::{Code, Status};

/// Far more than clocks may differ by, and less than request ids may be old: those are of real time.
const FAR_MS: u64 = 600_000;

async fn advance(cluster: &Cluster, store: usize, to_unix_ms: u64) -> Result<(), Status> {
    let mut admin = AdminClient::new(channel(cluster.addr(store)).await);
    let advanced = admin
        .advance_clock(AdvanceClockRequest { to_unix_ms })
        .await;
    advanced.map(drop)
}

/// The time that the version of a write bears.
async fn written_at(store: &Plain) -> Result<u64, String> {
    let put = store.put("k", "v").await;
    let put = put.map_err(|status| status.to_string())?;
    Ok(Stamp(put.version).unix_ms())
}

/// Waits until writes of both modes at that store bear that time or a later one, and gives the latest.
async fn stamps_from(cluster: &Cluster, store: usize, from_ms: u64) -> u64 {
    let strong = Plain::on(cluster, store).await;
    let eventual = strong.namespace("cart");
    eventually(PATIENT, "writes bear the later time", async || {
        let times = [written_at(&strong).await?, written_at(&eventual).await?];
        match times.iter().all(|at| *at >= from_ms) {
            true => Ok(times[0].max(times[1])),
            false => Err(format!("{times:?} instead of {from_ms}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advanced_clocks_go_on_from_there_at_every_store_and_after_a_restart() {
    let mut cluster = Cluster::start_meshed(3, &[]).await;
    let mut modes = RaftServiceClient::new(channel(cluster.addr(0)).await);
    let create = CreateNamespaceRequest {
        name: "cart".to_owned(),
        mode: kv::Mode::Eventual as i32,
        ..CreateNamespaceRequest::default()
    };
    modes.create_namespace(create).await.unwrap();

    let before = stamps_from(&cluster, 0, 1).await;
    let later = before + FAR_MS;
    // Through a store that does not lead, while another one is away.
    let leader = cluster.leader_of(1).await;
    let [asked, away] = [(leader + 1) % 3, (leader + 2) % 3];
    cluster.mesh().isolate(away);
    advance(&cluster, asked, later).await.unwrap();
    // What is past moves nothing back.
    advance(&cluster, asked, before).await.unwrap();
    for store in [leader, asked] {
        stamps_from(&cluster, store, later).await;
    }
    let status = cluster.status(asked).await.unwrap();
    assert!(status.clock.unwrap().hybrid_unix_ms >= later);
    cluster.mesh().heal();
    let last = stamps_from(&cluster, away, later).await;

    cluster.kill_all(&[0, 1, 2]);
    for store in 0..3 {
        cluster.launch(store);
    }
    cluster.wait_all_ready().await;
    cluster.leader_of(DATA).await;
    for store in 0..3 {
        stamps_from(&cluster, store, last).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_clock_is_advanced_beyond_what_a_stamp_holds() {
    let cluster = Cluster::start(1, &[]).await;
    let before = written_at(&Plain::on(&cluster, 0).await).await.unwrap();
    for wild in [u64::MAX, 4_102_444_800_001] {
        let refusal = refused(advance(&cluster, 0, wild).await);
        refusal.is(Code::InvalidArgument, "INVALID_ARGUMENT");
        refusal.field("to_unix_ms");
    }
    let after = written_at(&Plain::on(&cluster, 0).await).await.unwrap();
    assert!(after - before < FAR_MS, "{before} and {after}");
}
