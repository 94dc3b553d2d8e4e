//! Three replicas: elections, partitions, crashes, snapshots.

use crate::cluster::{Cluster, eventually, keys};
use rdb_proto::raft::{self, peer_request::Body};
use rdb_server::raft::{FileSpool, MemorySpool, NetworkSettings, RaftSettings, Vote, wire};
use rdb_types::Reason;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A log that is compacted early.
fn short_log() -> RaftSettings {
    RaftSettings {
        snapshot_after: 200,
        keep_after_snapshot: 20,
        ..RaftSettings::default()
    }
}

async fn cluster(settings: RaftSettings) -> Cluster {
    Cluster::formed(
        settings,
        NetworkSettings::default(),
        Arc::new(MemorySpool::default()),
    )
    .await
}

fn all_present(contents: &[(bytes::Bytes, u64)], acknowledged: &[String]) {
    let present: BTreeSet<&[u8]> = contents.iter().map(|(key, _)| &key[..]).collect();
    for key in acknowledged {
        assert!(
            present.contains(key.as_bytes()),
            "{key} was acknowledged and is lost"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_writes_reach_all_three() {
    let cluster = cluster(RaftSettings::default()).await;
    cluster.write_all(&[1, 2, 3], keys("a", 1000)).await;
    assert_eq!(cluster.converged().await.len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_is_replaced_and_rejoins() {
    let cluster = cluster(RaftSettings::default()).await;
    cluster.write_all(&[1, 2, 3], keys("before", 100)).await;
    let old = cluster.leader(&[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();

    let cut = Instant::now();
    cluster.net.isolate(old);
    let refused = cluster
        .write(old, keys("lost", 10), Duration::from_secs(1))
        .await;
    assert_eq!(
        refused,
        Vec::<String>::new(),
        "a leader without a quorum acknowledged"
    );
    let new = cluster.leader(&others).await;
    assert_ne!(new, old);
    assert!(cut.elapsed() < Duration::from_secs(3));
    cluster.write_all(&others, keys("during", 100)).await;

    cluster.net.heal();
    cluster.leader(&[1, 2, 3]).await;
    cluster.write_all(&[1, 2, 3], keys("after", 100)).await;
    let contents = cluster.converged().await;
    for name in ["before", "during", "after"] {
        all_present(&contents, &keys(name, 100));
    }
}

#[tokio::test(start_paused = true)]
async fn the_others_go_on_within_a_second_at_the_median() {
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let mut cluster = cluster(RaftSettings::default()).await;
        cluster.write_all(&[1, 2, 3], keys("a", 10)).await;
        let old = cluster.leader(&[1, 2, 3]).await;
        let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
        let died = Instant::now();
        cluster.kill(old).await;
        cluster.write_all(&others, keys("b", 1)).await;
        pauses.push(died.elapsed());
    }
    pauses.sort();
    assert!(pauses[4] < Duration::from_secs(1), "{pauses:?}");
    assert!(pauses[8] < Duration::from_secs(3), "{pauses:?}");
}

/// A replica that was cut off comes back quietly: with pre-vote its elections did not raise the term.
#[tokio::test(start_paused = true)]
async fn a_follower_that_was_cut_off_does_not_depose_the_leader() {
    let cluster = cluster(RaftSettings::default()).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let term = cluster.metrics(leader).current_term;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.net.isolate(follower);
    sleep(Duration::from_secs(10)).await;
    cluster.net.heal();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.leader(&[1, 2, 3]).await, leader);
    assert_eq!(cluster.metrics(leader).current_term, term);
}

/// Half of each link is dead: the leader's heartbeats arrive, no answer comes back. Its followers
/// must not be kept from electing another one.
#[tokio::test(start_paused = true)]
async fn a_leader_that_can_speak_but_not_hear_is_replaced() {
    let cluster = cluster(RaftSettings::default()).await;
    let deaf = cluster.leader(&[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != deaf).collect();
    for other in &others {
        cluster.net.cut_one_way(*other, deaf);
    }
    let new = cluster.leader(&others).await;
    assert_ne!(new, deaf);
    cluster.write_all(&others, keys("a", 10)).await;
    cluster.net.heal();
    all_present(&cluster.converged().await, &keys("a", 10));
}

#[tokio::test(start_paused = true)]
async fn latency_of_a_wan_is_hidden_by_many_appends_at_once() {
    let settings = RaftSettings {
        heartbeat: Duration::from_millis(200),
        election_min: Duration::from_millis(800),
        election_max: Duration::from_millis(1200),
        max_batch_entries: 4,
        ..RaftSettings::default()
    };
    let cluster = cluster(settings).await;
    cluster.net.set_latency(Duration::from_millis(60));
    sleep(Duration::from_secs(5)).await;
    let begun = Instant::now();
    cluster.write_all(&[1, 2, 3], keys("a", 400)).await;
    // One by one, 100 round trips of 120 ms would take 12 s.
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    // Two followers with a window each.
    let window = NetworkSettings::default().append_window;
    let most = cluster.net.most_appends_under_way();
    assert!(
        (window / 2..=2 * window).contains(&most),
        "{most} appends were under way"
    );
    all_present(&cluster.converged().await, &keys("a", 400));
}

#[tokio::test(start_paused = true)]
async fn all_killed_at_once_come_back_with_all_that_was_acknowledged() {
    let mut cluster = cluster(short_log()).await;
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let leader = cluster.leader(&[1, 2, 3]).await;
        // Some are under way when the power goes.
        let name = format!("round-{round}");
        acknowledged.extend(
            cluster
                .write(leader, keys(&name, 150), Duration::from_secs(5))
                .await,
        );
        let _ = cluster
            .write(
                leader,
                keys(&format!("{name}-late"), 50),
                Duration::from_micros(300),
            )
            .await;
        for id in 1..=3 {
            cluster.kill(id).await;
        }
        for id in 1..=3 {
            cluster.start(id).await;
        }
    }
    assert_eq!(acknowledged.len(), 5 * 150);
    cluster.leader(&[1, 2, 3]).await;
    all_present(&cluster.converged().await, &acknowledged);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_away_beyond_the_log_is_filled_by_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let network = NetworkSettings {
        snapshot_chunk_bytes: 10_000,
        ..NetworkSettings::default()
    };
    let spool = Arc::new(FileSpool::new(dir.path()).unwrap());
    let mut cluster = Cluster::formed(short_log(), network, spool).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != away).collect();
    cluster.kill(away).await;
    for round in 0..5 {
        cluster
            .write_all(&others, keys(&format!("round-{round}"), 300))
            .await;
    }
    eventually("the log to be purged", || {
        cluster.metrics(leader).purged.filter(|id| id.index > 1000)
    })
    .await;
    assert_eq!(cluster.net.chunks(), []);
    cluster.start(away).await;
    let contents = cluster.converged().await;
    assert_eq!(contents.len(), 1500);
    let chunks = cluster.net.chunks();
    assert!(chunks.len() > 5, "{chunks:?}");
    assert!(chunks.iter().all(|(_, len)| *len < 10_200), "{chunks:?}");
    // What came through files is gone from there.
    eventually("the files to go", || {
        (std::fs::read_dir(dir.path()).unwrap().count() == 0).then_some(())
    })
    .await;

    // It is a replica like any other: it takes part in a quorum, and survives a restart.
    let other = others.iter().copied().find(|id| *id != leader).unwrap();
    cluster.kill(other).await;
    cluster.write_all(&[leader, away], keys("more", 10)).await;
    cluster.start(other).await;
    cluster.kill(away).await;
    cluster.start(away).await;
    assert_eq!(cluster.converged().await.len(), 1510);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_goes_on_after_a_broken_connection() {
    let network = NetworkSettings {
        snapshot_chunk_bytes: 10_000,
        ..NetworkSettings::default()
    };
    let mut cluster = Cluster::formed(short_log(), network, Arc::new(MemorySpool::default())).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != away).collect();
    cluster.kill(away).await;
    cluster.write_all(&others, keys("a", 1000)).await;
    eventually("the log to be purged", || {
        cluster.metrics(leader).purged.filter(|id| id.index > 500)
    })
    .await;
    // The answer to the fifth piece is lost, and a moment later all is.
    cluster.net.break_after_chunks(4);
    cluster.start(away).await;
    eventually("some pieces", || {
        (cluster.net.chunks().len() >= 6).then_some(())
    })
    .await;
    cluster.net.isolate(away);
    sleep(Duration::from_secs(7)).await;
    cluster.net.heal();
    assert_eq!(cluster.converged().await.len(), 1000);

    // Every byte came once, but for the piece whose answer was lost and what a cut swallowed.
    let chunks = cluster.net.chunks();
    let offsets: BTreeSet<u64> = chunks.iter().map(|(offset, _)| *offset).collect();
    let repeated = chunks.len() - offsets.len();
    assert!(offsets.len() > 7, "{chunks:?}");
    assert!((1..=3).contains(&repeated), "{chunks:?}");
    assert_eq!(
        chunks.iter().filter(|(offset, _)| *offset == 0).count(),
        1,
        "{chunks:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn leadership_can_be_handed_over() {
    let cluster = cluster(RaftSettings::default()).await;
    let old = cluster.leader(&[1, 2, 3]).await;
    let next = (1..=3).find(|id| *id != old).unwrap();
    cluster.write_all(&[1, 2, 3], keys("a", 10)).await;
    cluster.stores[&old]
        .raft
        .trigger()
        .transfer_leader(next)
        .await
        .unwrap();
    let asked = Instant::now();
    eventually("the next leader", || {
        (cluster.metrics(next).state.is_leader()).then_some(())
    })
    .await;
    assert!(
        asked.elapsed() < Duration::from_millis(200),
        "{:?}",
        asked.elapsed()
    );
    cluster.write_all(&[1, 2, 3], keys("b", 10)).await;
    assert_eq!(cluster.converged().await.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_and_harms_nobody() {
    let cluster = cluster(RaftSettings::default()).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let elected = wire::vote_to_wire(&Vote::new_committed(1000, 3));
    let candidate = wire::vote_to_wire(&Vote::new(1000, 3));
    let gap = raft::AppendRequest {
        vote: Some(elected),
        entries: vec![raft::Entry {
            log_id: Some(raft::LogId {
                term: 1000,
                node: 0,
                index: 77,
            }),
            payload: None,
        }],
        ..Default::default()
    };
    for request in [
        Body::Append(raft::AppendRequest::default()),
        Body::Append(raft::AppendRequest {
            vote: Some(candidate),
            ..Default::default()
        }),
        Body::Append(gap),
        Body::Vote(raft::VoteRequest::default()),
        Body::PreVote(raft::VoteRequest::default()),
        Body::TransferLeader(raft::TransferLeaderRequest::default()),
        Body::SnapshotChunk(raft::SnapshotChunk::default()),
        Body::SnapshotChunk(raft::SnapshotChunk {
            vote: Some(elected),
            ..Default::default()
        }),
    ] {
        for to in [leader, follower] {
            let refusal = cluster.net.ask(3, to, request.clone()).await.unwrap_err();
            assert_eq!(refusal.reason, Reason::InvalidArgument, "{request:?}");
        }
    }
    assert_eq!(cluster.leader(&[1, 2, 3]).await, leader);
    cluster.write_all(&[1, 2, 3], keys("a", 10)).await;
    cluster.converged().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stopped_says_that_it_is_not_ready() {
    let cluster = cluster(RaftSettings::default()).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stores[&follower].raft.shutdown().await.unwrap();
    let vote = Some(wire::vote_to_wire(&cluster.metrics(leader).vote));
    let append = raft::AppendRequest {
        vote,
        ..Default::default()
    };
    for request in [
        Body::Append(append.clone()),
        // Also when the first one has ended the stream.
        Body::Append(append),
        Body::Vote(raft::VoteRequest {
            vote,
            ..Default::default()
        }),
        Body::PreVote(raft::VoteRequest {
            vote,
            ..Default::default()
        }),
        Body::TransferLeader(raft::TransferLeaderRequest {
            from: vote,
            ..Default::default()
        }),
    ] {
        let refusal = cluster
            .net
            .ask(leader, follower, request.clone())
            .await
            .unwrap_err();
        assert_eq!(refusal.reason, Reason::NotReady, "{request:?}");
        assert!(refusal.message.contains("region 7"), "{}", refusal.message);
    }
}

/// A sender that does not keep to its window is refused, and those it sent before are answered.
#[tokio::test(start_paused = true)]
async fn the_queue_of_appends_is_bounded() {
    let cluster = cluster(RaftSettings::default()).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let vote = Some(wire::vote_to_wire(&cluster.metrics(leader).vote));
    let append = raft::AppendRequest {
        vote,
        ..Default::default()
    };
    let ask = |_| {
        cluster
            .net
            .ask(leader, follower, Body::Append(append.clone()))
    };
    let answers = futures::future::join_all((0..2000).map(ask)).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(
        (100..1000).contains(&taken.len()),
        "{} were taken",
        taken.len()
    );
    assert!(
        refused
            .iter()
            .all(|refusal| refusal.as_ref().unwrap_err().reason == Reason::Overloaded)
    );
    assert!(
        cluster
            .net
            .ask(leader, follower, Body::Append(append.clone()))
            .await
            .is_ok()
    );
}

/// Entries that never got a quorum are replaced by those of the next leader, many times over.
#[tokio::test(start_paused = true)]
async fn logs_that_diverged_are_made_equal() {
    let cluster = cluster(short_log()).await;
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let old = cluster.leader(&[1, 2, 3]).await;
        let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
        cluster.net.isolate(old);
        let name = format!("round-{round}");
        // Into the old leader's log only.
        let lost = cluster
            .write(
                old,
                keys(&format!("{name}-lost"), 60),
                Duration::from_millis(100),
            )
            .await;
        assert_eq!(lost, Vec::<String>::new());
        let new = cluster.leader(&others).await;
        acknowledged.extend(
            cluster
                .write(new, keys(&name, 60), Duration::from_secs(5))
                .await,
        );
        cluster.net.heal();
    }
    assert_eq!(acknowledged.len(), 8 * 60);
    cluster.leader(&[1, 2, 3]).await;
    let contents = cluster.converged().await;
    all_present(&contents, &acknowledged);
    assert_eq!(
        contents.len(),
        acknowledged.len(),
        "a write that was refused appeared"
    );
}
