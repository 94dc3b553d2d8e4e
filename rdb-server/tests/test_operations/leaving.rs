//! A store that ends: what whoever balances load sees of it, from the signal on until the process is gone.

use crate::support::calls::{PATIENT, Plain};
use crate::support::cluster::Cluster;
use crate::support::http;
use crate::support::wait::eventually;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LEAVING: &str = "[-] leaving: this store is shutting down";

/// Until `/readyz` says that the store leaves.
async fn told(addr: SocketAddr) {
    eventually(PATIENT, "/readyz says that it leaves", async || {
        let page = http::get(addr, "/readyz").await?;
        if page.status == 503 && page.body.contains(LEAVING) {
            Ok(())
        } else {
            Err(format!("{page:?}"))
        }
    })
    .await;
}

/// A request that was begun makes the drain last: the port's usual server is over and waits for it, and whoever comes new is
/// answered all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_while_a_store_drains_and_what_was_begun_is_finished() {
    let mut cluster = Cluster::start(1, &[]).await;
    let addr = cluster.http_addr(0);
    let mut begun = TcpStream::connect(addr).await.unwrap();
    let head = "PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    begun.write_all(head.as_bytes()).await.unwrap();
    // Its answer means that the request was taken up.
    let mut go_on = [0; 25];
    begun.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");

    cluster.node(0).signal("TERM").unwrap();
    // Said by who answers last alone, so the port's usual server is over.
    eventually(PATIENT, "requests are refused", async || {
        let page = http::get(addr, "/v1/kv/default/k").await?;
        if page.status == 503 && page.body.contains("NOT_READY") {
            Ok(())
        } else {
            Err(format!("{page:?}"))
        }
    })
    .await;
    let ready = http::get(addr, "/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(LEAVING), "{ready:?}");
    let alive = http::get(addr, "/livez").await.unwrap();
    assert_eq!(alive.status, 200);
    let metrics = http::get(addr, "/metrics").await.unwrap();
    assert!(metrics.body.ends_with("# EOF\n"), "{metrics:?}");

    begun.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    begun.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let ended = cluster.node_mut(0).wait_exit(PATIENT).await.unwrap();
    assert_eq!(ended.code(), Some(0));
    assert!(cluster.log(0).contains("stopped"), "{}", cluster.log(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_serves_on_for_its_shutdown_delay_and_a_second_signal_cuts_it_short() {
    // Longer than anybody here is patient.
    let mut cluster = Cluster::start(3, &["--shutdown-delay", "1m"]).await;
    let leader = cluster.leader_of(crate::support::cluster::DATA).await;
    let addr = cluster.http_addr(leader);
    cluster.node(leader).signal("TERM").unwrap();
    told(addr).await;
    // It has given its lead away, and serves: a load balancer has not looked yet.
    let plain = Plain::on(&cluster, leader).await;
    eventually(PATIENT, "it serves on", async || {
        let put = plain.put("k", "v").await;
        put.map(drop).map_err(|status| status.to_string())
    })
    .await;
    told(addr).await;
    cluster.node(leader).signal("TERM").unwrap();
    let ended = cluster.node_mut(leader).wait_exit(PATIENT).await.unwrap();
    assert_eq!(ended.code(), Some(0));
}
