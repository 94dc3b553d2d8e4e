//! Deleting a namespace: it is gone at every store, whoever slept through it, and its name comes back by
//! creation alone, empty.

use super::modes::{EVENTUAL, NAME, STRONG, declared, switch};
use super::switches::declared_meshed;
use crate::support::calls::{PATIENT, Plain, channel, refused, text};
use crate::support::cluster::{Cluster, DATA};
use crate::support::wait::eventually;
use rdb_client::{ClientError, PutOptions};
use rdb_proto::kv::kv_client::KvClient;
use rdb_proto::kv::{ReadOptions, WatchRequest};
use rdb_types::{Mode, NamespaceId, Reason};
use std::collections::BTreeSet;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn reason<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Option<Reason> {
    answer.expect_err("it is deleted").reason
}

/// Waits until a store has `default`, this namespace, and no other.
async fn holds_only(cluster: &Cluster, store: usize, id: u32) {
    eventually(PATIENT, "the store has let go of it", async || {
        let report = cluster.report(store, DATA).await?;
        let namespaces = report.namespaces.iter();
        let ids: BTreeSet<_> = namespaces.map(|namespace| namespace.namespace_id).collect();
        match ids == BTreeSet::from([NamespaceId::DEFAULT.0, id]) {
            true => Ok(()),
            false => Err(format!("{ids:?}")),
        }
    })
    .await;
}

/// In either mode, and after the mode was changed; with a client that has learnt of the mode and the epoch before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_name_stands_for_nothing_until_it_is_created_again() {
    for (before, mode, after) in [
        (STRONG, EVENTUAL, Mode::Strong),
        (EVENTUAL, STRONG, Mode::Eventual),
    ] {
        let word = if before == STRONG {
            "strong"
        } else {
            "eventual"
        };
        let mut cluster = declared(word, &[]).await;
        let client = cluster.client();
        for number in 0..20 {
            let key = format!("old {number}");
            client
                .put(NAME, key, "old", PutOptions::default())
                .await
                .unwrap();
        }
        switch(&cluster, 0, mode).await;
        client
            .put(NAME, "k", "old", PutOptions::default())
            .await
            .unwrap();
        let mut watch = KvClient::new(channel(cluster.addr(0)).await)
            .watch(WatchRequest {
                namespace: NAME.to_owned(),
                ..Default::default()
            })
            .await
            .unwrap()
            .into_inner();
        let asleep = 2;
        cluster.kill(asleep);

        // Another client: this one may not have noticed yet whose connection broke.
        cluster.client().delete_namespace(NAME).await.unwrap();
        assert_eq!(
            reason(
                client
                    .get(NAME, "k", rdb_client::ReadOptions::default())
                    .await
            ),
            Some(Reason::NamespaceNotFound)
        );
        assert_eq!(
            reason(client.put(NAME, "k", "late", PutOptions::default()).await),
            Some(Reason::NamespaceNotFound)
        );
        assert_eq!(
            reason(client.delete_namespace(NAME).await),
            Some(Reason::NamespaceNotFound)
        );
        let listed = client.list_namespaces().await.unwrap();
        assert!(
            listed.iter().all(|namespace| namespace.name != NAME),
            "{listed:?}"
        );
        let ended = loop {
            match timeout(PATIENT, watch.message()).await.expect("it ends") {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        refused(ended).is(Code::NotFound, "NAMESPACE_NOT_FOUND");

        let made = client
            .create_namespace(NAME, Some(after), None)
            .await
            .unwrap();
        client
            .put(NAME, "k", "new", PutOptions::default())
            .await
            .unwrap();
        cluster.restart(asleep).await;
        holds_only(&cluster, asleep, made.id).await;
        for store in 0..cluster.len() {
            let plain = Plain::on(&cluster, store).await.namespace(NAME);
            eventually(PATIENT, "the store shows the new one alone", async || {
                let all = plain.all("", ReadOptions::default()).await;
                let all = all.map_err(|status: Status| status.to_string())?;
                match all.len() {
                    1 => Ok(()),
                    _ => Err(format!("{all:?}")),
                }
            })
            .await;
            assert_eq!(text(&plain.get("k").await.unwrap()).as_deref(), Some("new"));
            assert!(!plain.get("old 1").await.unwrap().found);
        }
    }
}

/// A store that was cut off took writes of its own, and learns of the deletion from a snapshot: the log that said
/// so is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_held_alone_of_a_deleted_namespace_goes_with_it() {
    let mut cluster = declared_meshed("eventual", &["--snapshot-after", "100"]).await;
    let id = cluster.client().describe_namespace(NAME).await.unwrap().id;
    let leader = cluster.leader_of(DATA).await;
    let alone = cluster.other_than(&[leader]);
    cluster.mesh().isolate(alone);
    let plain = Plain::on(&cluster, alone).await;
    plain.namespace(NAME).put("mine", "alone").await.unwrap();
    cluster.kill(alone);
    cluster.mesh().heal();

    let others = Plain::on(&cluster, leader).await;
    cluster.client().delete_namespace(NAME).await.unwrap();
    for number in 0..400 {
        others.put(&format!("k/{number}"), "x").await.unwrap();
    }
    let log_before = cluster.log(alone).len();
    cluster.restart(alone).await;
    eventually(PATIENT, "the store has let go of it", async || {
        let report = cluster.report(alone, DATA).await?;
        let mut namespaces = report.namespaces.iter();
        match namespaces.any(|namespace| namespace.namespace_id == id) {
            false => Ok(()),
            true => Err(format!("{report:?}")),
        }
    })
    .await;
    assert!(cluster.log(alone)[log_before..].contains("installed a snapshot"));
    refused(plain.namespace(NAME).get("mine").await).is(Code::NotFound, "NAMESPACE_NOT_FOUND");
    let made = cluster
        .client()
        .create_namespace(NAME, Some(Mode::Eventual), None)
        .await
        .unwrap();
    holds_only(&cluster, alone, made.id).await;
    let again = Plain::on(&cluster, alone).await.namespace(NAME);
    assert!(!again.get("mine").await.unwrap().found);
}

/// What `grpc.health.v1` says of a namespace.
async fn health(cluster: &Cluster, store: usize, namespace: &str) -> Result<ServingStatus, Code> {
    let mut health = HealthClient::new(channel(cluster.addr(store)).await);
    let service = namespace.to_owned();
    let checked = health.check(HealthCheckRequest { service }).await;
    checked
        .map(|answer| answer.into_inner().status())
        .map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_service_of_a_deleted_namespace_is_unknown() {
    let cluster = declared("strong", &[]).await;
    let becomes = async |expected: Result<ServingStatus, Code>| {
        eventually(PATIENT, "the health service follows", async || {
            let found = health(&cluster, 1, NAME).await;
            (found == expected)
                .then_some(())
                .ok_or_else(|| format!("{found:?}"))
        })
        .await;
    };
    becomes(Ok(ServingStatus::Serving)).await;
    cluster.client().delete_namespace(NAME).await.unwrap();
    becomes(Err(Code::NotFound)).await;
    let again = cluster.client().create_namespace(NAME, None, None).await;
    again.unwrap();
    becomes(Ok(ServingStatus::Serving)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_may_not_be_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(1, &[]).await;
    let client = cluster.client();
    client
        .put("default", "k", "v", PutOptions::default())
        .await
        .unwrap();
    for (name, expected) in [
        ("default", Reason::InvalidArgument),
        ("", Reason::InvalidArgument),
        ("No/Such", Reason::InvalidArgument),
        ("none", Reason::NamespaceNotFound),
    ] {
        let error = client.delete_namespace(name).await.unwrap_err();
        assert_eq!(error.reason, Some(expected), "{name:?}: {error}");
    }
    let held = client
        .get("default", "k", rdb_client::ReadOptions::default())
        .await;
    assert!(held.unwrap().found);
}
