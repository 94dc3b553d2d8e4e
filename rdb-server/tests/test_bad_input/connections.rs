//! More connections than a store has places for.

use crate::support::calls::{PATIENT, Plain, refused, text};
use crate::support::cluster::Cluster;
use crate::support::http;
use crate::support::wait::eventually;
use bytes::Bytes;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::Code;

const PLACES: usize = 8;
const MAX_CONNECTIONS: [&str; 2] = ["--max-connections", "8"];

/// A number of a store's `/metrics`.
async fn number(cluster: &Cluster, store: usize, name: &str) -> Result<u64, String> {
    let page = http::get(cluster.http_addr(store), "/metrics").await?.body;
    page.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .ok_or_else(|| format!("no {name} in {page}"))
}

/// Opens idle connections of clients until the store has no more places. They live as long as what is
/// returned.
async fn take_all_places(
    cluster: &Cluster,
    store: usize,
) -> (
    Vec<h2::client::SendRequest<Bytes>>,
    tokio::task::JoinSet<()>,
) {
    let (mut held, mut driven) = (Vec::new(), tokio::task::JoinSet::new());
    let full = eventually(PATIENT, "all places are taken", async || {
        let open = number(cluster, store, "flaredb_connections{kind=\"client\"}").await?;
        if open as usize == PLACES {
            return Ok(());
        }
        let stream = TcpStream::connect(cluster.addr(store)).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        driven.spawn(async move { drop(connection.await) });
        held.push(send);
        Err(format!("{open} are"))
    });
    full.await;
    (held, driven)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_comes_back_while_clients_hold_every_place() {
    let mut cluster = Cluster::start(3, &MAX_CONNECTIONS).await;
    let first = Plain::on(&cluster, 0).await;
    first.put("before", "1").await.unwrap();
    let _held = [
        take_all_places(&cluster, 0).await,
        take_all_places(&cluster, 1).await,
    ];
    cluster.kill(2);
    first.put("while away", "2").await.unwrap();

    // A client without a place hears why; one that has a place is served on.
    let refusal = refused(Plain::on(&cluster, 0).await.put("late", "x").await);
    refusal
        .is(Code::ResourceExhausted, "OVERLOADED")
        .outcome("not_applied");
    assert!(refusal.message.contains("max_connections"), "{refusal:?}");

    // The store that comes back dials the others, or this would not be answered.
    cluster.restart(2).await;
    let back = Plain::on(&cluster, 2).await;
    back.put("after", "3").await.unwrap();
    for (key, value) in [("before", "1"), ("while away", "2"), ("after", "3")] {
        assert_eq!(text(&back.get(key).await.unwrap()).as_deref(), Some(value));
        assert_eq!(text(&first.get(key).await.unwrap()).as_deref(), Some(value));
    }
    for store in [0, 1] {
        let stores = number(&cluster, store, "flaredb_connections{kind=\"store\"}").await;
        assert!(
            stores.as_ref().is_ok_and(|stores| *stores >= 1),
            "{stores:?}"
        );
    }
    let said = cluster.log(0).matches("only stores are let in").count();
    assert_eq!(said, 1, "once for all that came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_store_leaves_probation_and_is_counted() {
    let cluster = Cluster::start(1, &MAX_CONNECTIONS).await;
    let _held = take_all_places(&cluster, 0).await;
    let refused = "flaredb_connections_refused_total";
    assert_eq!(number(&cluster, 0, refused).await, Ok(0));
    let mut one_more = TcpStream::connect(cluster.addr(0)).await.unwrap();
    let end = tokio::time::timeout(PATIENT, one_more.read_to_end(&mut Vec::new())).await;
    assert!(end.is_ok(), "it is let go");
    eventually(
        Duration::from_secs(5),
        "it is counted",
        async || match number(&cluster, 0, refused).await? {
            1 => Ok(()),
            other => Err(other.to_string()),
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_http_port_has_a_bound_and_lets_go_of_silent_connections() {
    let cluster = Cluster::start(1, &[]).await;
    let port = cluster.http_addr(0);
    let mut silent = Vec::new();
    for _ in 0..rdb_server::http::CONNECTIONS {
        silent.push(TcpStream::connect(port).await.unwrap());
    }
    // Nobody leaves, and every probe gets in all the same, long before the silent ones are too old: each
    // takes the place of the one that was silent for the longest time.
    let began = Instant::now();
    for _ in 0..3 {
        let answer = http::get(port, "/livez").await.unwrap();
        assert_eq!(answer.status, 200);
    }
    assert!(began.elapsed() < rdb_server::http::IDLE / 2);
    let mut answer = Vec::new();
    let end = silent[0].read_to_end(&mut answer);
    let end = tokio::time::timeout(rdb_server::http::IDLE / 2, end).await;
    assert!(end.is_ok(), "the idlest is held open");
    Plain::on(&cluster, 0).await.put("k", "v").await.unwrap();
    drop(silent);
}
