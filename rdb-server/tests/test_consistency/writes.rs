//! Single writes: repeated ones, expiring ones, first ones of a namespace.

use crate::support::calls::{PATIENT, Plain, linearizable, refused, stale, text};
use crate::support::cluster::{Cluster, DATA};
use crate::support::wait::eventually;
use rdb_proto::kv::{self, Mode};
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_proto::raft::{CreateNamespaceRequest, ListNamespacesRequest};
use tonic::Code;

fn put(key: &str, value: &str, id: &str) -> kv::PutRequest {
    kv::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        request_id: id.to_owned().into(),
        ..Default::default()
    }
}

/// Repeats a put, a delete and compare-and-swaps that were applied long ago, and expects the first
/// answers and no effect.
async fn assert_repeats_change_nothing(store: &Plain, first: &First, when: &str) {
    let put_again = store.put_as(put("k", "first", "id-put")).await.unwrap();
    assert_eq!(put_again.version, first.put, "{when}");
    assert_eq!(
        text(&store.get("k").await.unwrap()).as_deref(),
        Some("newer"),
        "{when}: a repeat was applied"
    );
    let deleted_again = store.delete("d", "id-delete").await.unwrap();
    assert!(deleted_again.existed, "{when}: the first answer");
    assert!(
        store.get("d").await.unwrap().found,
        "{when}: a repeated delete removed what was written later"
    );
    let won_again = store.cas("c", 0, "won", "id-won").await.unwrap();
    assert_eq!(
        (won_again.success, won_again.new_version),
        (true, first.won),
        "{when}: the first answer"
    );
    let lost_again = store.cas("c", 1, "never", "id-lost").await.unwrap();
    assert_eq!(
        (lost_again.success, lost_again.current_version),
        (false, first.won),
        "{when}: the first answer"
    );
    assert_eq!(
        text(&store.get("c").await.unwrap()).as_deref(),
        Some("newer"),
        "{when}"
    );
}

struct First {
    put: u64,
    won: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_request_id_is_applied_once() {
    let mut cluster = Cluster::start(3, &[]).await;
    let store = Plain::on(&cluster, 0).await;
    let first = First {
        put: store
            .put_as(put("k", "first", "id-put"))
            .await
            .unwrap()
            .version,
        won: store
            .cas("c", 0, "won", "id-won")
            .await
            .unwrap()
            .new_version,
    };
    assert!(!store.cas("c", 1, "never", "id-lost").await.unwrap().success);
    store.put("d", "to be deleted").await.unwrap();
    assert!(store.delete("d", "id-delete").await.unwrap().existed);
    store.put("d", "newer").await.unwrap();
    store.put("k", "newer").await.unwrap();
    store.put("c", "newer").await.unwrap();

    for other in 0..3 {
        assert_repeats_change_nothing(
            &Plain::on(&cluster, other).await,
            &first,
            &format!("at store {}", other + 1),
        )
        .await;
    }
    // An id names one write: another one under it is a mistake, not a repeat.
    let refusal = refused(store.put_as(put("k", "something else", "id-put")).await);
    refusal
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .field("request_id")
        .outcome("not_applied");

    let leader = cluster.leader_of(DATA).await;
    cluster.kill(leader);
    let other = cluster.other_than(&[leader]);
    cluster.leader_of(DATA).await;
    assert_repeats_change_nothing(
        &Plain::on(&cluster, other).await,
        &first,
        "after the leader's death",
    )
    .await;
    cluster.restart(leader).await;
    assert_repeats_change_nothing(
        &Plain::on(&cluster, leader).await,
        &first,
        "at the store that came back",
    )
    .await;

    cluster.kill_all(&[0, 1, 2]);
    for store in 0..3 {
        cluster.launch(store);
    }
    cluster.wait_all_ready().await;
    for other in 0..3 {
        assert_repeats_change_nothing(
            &Plain::on(&cluster, other).await,
            &first,
            "after all were killed",
        )
        .await;
    }

    // The same at the same moment, everywhere: one of them is applied, all get its answer.
    let stores = [
        Plain::on(&cluster, 0).await,
        Plain::on(&cluster, 1).await,
        Plain::on(&cluster, 2).await,
    ];
    for round in 0..20 {
        let id = format!("at-once-{round}");
        let answers = stores.iter().map(|store| store.cas("at-once", 0, "x", &id));
        let answers = futures::future::try_join_all(answers).await.unwrap();
        assert!(
            answers
                .iter()
                .all(|answer| answer.success && answer.new_version == answers[0].new_version),
            "{answers:?}"
        );
        store_delete(&stores[0]).await;
    }
}

async fn store_delete(store: &Plain) {
    assert!(store.delete("at-once", "").await.unwrap().existed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_keys_never_come_back() {
    let mut cluster = Cluster::start(3, &[]).await;
    let mut stores = Vec::new();
    for store in 0..3 {
        stores.push(Plain::on(&cluster, store).await);
    }
    let short = |key: &str, ttl_ms| kv::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ttl_ms,
        ..Default::default()
    };
    let put = stores[0].put_as(short("soon", 1500)).await.unwrap();
    for number in 0..20 {
        stores[1]
            .put_as(short(&format!("many/{number:02}"), 1500))
            .await
            .unwrap();
    }
    stores[2].put_as(short("later", 3_600_000)).await.unwrap();
    let got = stores[2].get("soon").await.unwrap();
    assert!(got.found, "it has not expired yet");
    let lifetime_ms = got.expires_at_ms - rdb_types::Stamp(put.version).unix_ms() as i64;
    assert_eq!(
        lifetime_ms, 1500,
        "the lifetime counts from the write's own stamp"
    );

    // Nobody writes: time goes on by itself. What is gone once stays gone, at every store.
    for (number, store) in stores.iter().enumerate() {
        eventually(
            PATIENT,
            &format!("the key expires at store {}", number + 1),
            async || {
                let got = store
                    .get("soon")
                    .await
                    .map_err(|status| status.to_string())?;
                if got.found {
                    Err("it is there".to_owned())
                } else {
                    Ok(())
                }
            },
        )
        .await;
    }
    assert_expired(&stores).await;
    // Absent is absent: for compare-and-swap, too.
    assert!(stores[1].cas("soon", 0, "anew", "").await.unwrap().success);
    assert!(stores[1].delete("soon", "").await.unwrap().existed);

    let leader = cluster.leader_of(DATA).await;
    cluster.kill(leader);
    let rest: Vec<Plain> = (0..3)
        .filter(|store| *store != leader)
        .map(|store| stores[store].clone())
        .collect();
    cluster.leader_of(DATA).await;
    assert_expired(&rest).await;
    cluster.kill_all(&[0, 1, 2]);
    for store in 0..3 {
        cluster.launch(store);
    }
    cluster.wait_all_ready().await;
    let mut stores = Vec::new();
    for store in 0..3 {
        stores.push(Plain::on(&cluster, store).await);
    }
    assert_expired(&stores).await;
    for store in &stores {
        assert!(
            store.get("later").await.unwrap().found,
            "what has an hour to live is there"
        );
    }
    // Expired records are removed, not only hidden.
    for store in 0..3 {
        eventually(PATIENT, "expired records leave the store", async || {
            let report = cluster.report(store, DATA).await?;
            let keys: u64 = report
                .namespaces
                .iter()
                .map(|namespace| namespace.keys)
                .sum();
            if keys == 1 {
                Ok(())
            } else {
                Err(format!("{keys} keys are left"))
            }
        })
        .await;
    }
}

async fn assert_expired(stores: &[Plain]) {
    for (number, store) in stores.iter().enumerate() {
        assert!(
            !store.get("soon").await.unwrap().found,
            "it came back at reader {number}"
        );
        for read in [linearizable(), stale()] {
            let found = eventually(PATIENT, "all have expired", async || {
                let found = store
                    .all("many/", read.clone())
                    .await
                    .map_err(|status| status.to_string())?;
                if found.is_empty() {
                    Ok(found)
                } else {
                    Err(format!("{} are left", found.len()))
                }
            })
            .await;
            assert!(found.is_empty());
        }
        assert_eq!(
            text(&store.get_stale("soon").await.unwrap()),
            None,
            "it came back in a stale read at reader {number}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespace_created_by_first_write_is_usable_at_once_everywhere() {
    let cluster = Cluster::start(3, &[]).await;
    let mut stores = Vec::new();
    for store in 0..3 {
        stores.push(Plain::on(&cluster, store).await);
    }
    for round in 0..6 {
        let name = format!("fresh-{round}");
        let (writer, reader, third) = (round % 3, (round + 1) % 3, (round + 2) % 3);
        let refusal = refused(stores[reader].namespace(&name).get("k").await);
        refusal.is(Code::NotFound, "NAMESPACE_NOT_FOUND");
        assert_eq!(refusal.meta("namespace"), name);

        stores[writer]
            .namespace(&name)
            .put("k", &name)
            .await
            .unwrap();
        let got = stores[reader].namespace(&name).get("k").await.unwrap();
        assert_eq!(
            text(&got).as_deref(),
            Some(name.as_str()),
            "read at store {} at once",
            reader + 1
        );
        assert!(
            stores[third]
                .namespace(&name)
                .cas("k", got.version, "next", "")
                .await
                .unwrap()
                .success
        );
        assert_eq!(
            text(&stores[writer].namespace(&name).get("k").await.unwrap()).as_deref(),
            Some("next")
        );
        assert_eq!(
            text(&stores[writer].get("k").await.unwrap()),
            None,
            "namespaces do not share keys"
        );
    }
    // Everybody writes first: there is one namespace, and every write is in it.
    let names: Vec<Plain> = stores
        .iter()
        .map(|store| store.namespace("contended"))
        .collect();
    let writes = names
        .iter()
        .enumerate()
        .map(|(number, store)| async move { store.put(&format!("k{number}"), "x").await });
    futures::future::try_join_all(writes).await.unwrap();
    assert_eq!(names[0].all("", linearizable()).await.unwrap().len(), 3);

    let mut listed = Vec::new();
    for store in 0..3 {
        let mut client =
            RaftServiceClient::new(crate::support::calls::channel(cluster.addr(store)).await);
        let answer = client
            .list_namespaces(ListNamespacesRequest {})
            .await
            .unwrap()
            .into_inner();
        let mut names: Vec<(String, u32)> = answer
            .namespaces
            .into_iter()
            .map(|namespace| (namespace.name, namespace.id))
            .collect();
        names.sort();
        listed.push(names);
    }
    assert_eq!(
        listed[0]
            .iter()
            .filter(|(name, _)| name == "contended")
            .count(),
        1
    );
    assert_eq!(
        listed[0].len(),
        8,
        "default, six fresh ones, one contended: {:?}",
        listed[0]
    );
    assert!(listed.iter().all(|names| *names == listed[0]), "{listed:?}");

    let mut client = RaftServiceClient::new(crate::support::calls::channel(cluster.addr(1)).await);
    let mode = client
        .get_mode(rdb_proto::raft::GetModeRequest {
            namespace: "contended".into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (mode.mode(), mode.from_default, mode.stores.len()),
        (Mode::Strong, true, 3),
        "{mode:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_auto_create_an_unknown_namespace_is_refused() {
    let cluster = Cluster::start(1, &["--auto-create", "false"]).await;
    let store = Plain::on(&cluster, 0).await.namespace("unknown");
    refused(store.put("k", "v").await)
        .is(Code::NotFound, "NAMESPACE_NOT_FOUND")
        .outcome("not_applied");
    let mut client = RaftServiceClient::new(crate::support::calls::channel(cluster.addr(0)).await);
    let request = CreateNamespaceRequest {
        name: "unknown".into(),
        ..Default::default()
    };
    let made = client
        .create_namespace(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((made.name.as_str(), made.mode()), ("unknown", Mode::Strong));
    store.put("k", "v").await.unwrap();
    let other = CreateNamespaceRequest {
        mode: Mode::Eventual as i32,
        ..request
    };
    let refusal =
        crate::support::calls::Refusal::of(&client.create_namespace(other).await.unwrap_err());
    refusal.is(Code::AlreadyExists, "ALREADY_EXISTS");
}
