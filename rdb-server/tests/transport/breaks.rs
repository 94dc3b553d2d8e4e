//! Connections that break, fall silent, or never come about.

use crate::harness::*;
use rdb_server::transport::grpc::GrpcOptions;
use rdb_server::transport::{Lane, Transport, TransportError};
use rdb_types::RegionId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_store_that_is_not_there_is_unreachable_at_once() {
    // Bound and let go: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let transport = dialler(&address);
    for _ in 0..20 {
        let started = Instant::now();
        match ask(&*transport, store(2), "echo", PATIENT).await {
            Err(TransportError::Unreachable { why, .. }) => {
                assert!(why.to_lowercase().contains("refused"), "{why}")
            }
            other => panic!("{other:?}"),
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "queued instead of refused"
        );
    }
}

#[tokio::test]
async fn a_store_that_comes_back_is_found_again() {
    let mut server = Server::start(2).await;
    let address = server.address.clone();
    let transport = dialler(&address);
    for round in 0..3 {
        let command = format!("echo {round}");
        assert_eq!(
            ask_until_answered(&*transport, store(2), &command).await,
            command
        );
        let outstanding = transport.call(
            store(2),
            Lane::Control,
            RegionId(1),
            request("never"),
            PATIENT,
        );
        while server.seen().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.kill();
        let error = outstanding.await.unwrap_err();
        assert!(matches!(error, TransportError::NoAnswer { .. }), "{error}");
        let error = ask(&*transport, store(2), "echo", PATIENT)
            .await
            .unwrap_err();
        assert!(
            matches!(error, TransportError::Unreachable { .. }),
            "{error}"
        );
        server = Server::start_with(2, &address, &GrpcOptions::default()).await;
    }
}

#[tokio::test]
async fn what_had_left_is_unknown_and_what_had_not_is_unreachable() {
    // One request at a time, and the first is never answered: HTTP/2's window fills, the rest queues.
    let options = GrpcOptions {
        max_in_flight: 1,
        ..GrpcOptions::default()
    };
    let server = Server::start_with(2, "127.0.0.1:0", &options).await;
    let transport = dialler(&server.address);
    let call = |command: Vec<u8>| {
        tokio::spawn(transport.call(
            store(2),
            Lane::Append,
            RegionId(1),
            request(command),
            PATIENT,
        ))
    };
    let mut calls = vec![call(b"never".to_vec())];
    calls.extend((0..24).map(|_| call(vec![b'x'; 1 << 20])));
    while server.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.kill();

    let mut left = Vec::new();
    for call in calls {
        match call.await.unwrap() {
            Err(TransportError::NoAnswer { .. }) => left.push(true),
            Err(TransportError::Unreachable { .. }) => left.push(false),
            other => panic!("{other:?}"),
        }
    }
    assert!(left[0], "the request that was served had left for certain");
    assert!(!left[24], "25 MiB do not fit a window of 4");
    assert!(
        left.is_sorted_by(|a, b| a >= b),
        "they leave in order: {left:?}"
    );
}

#[tokio::test]
async fn a_new_address_is_picked_up_when_the_connection_is_made_anew() {
    let (first, second) = (Server::start(2).await, Server::start(2).await);
    let identity = Identity::knows(store(1), store(2), &first.address);
    let transport = rdb_server::transport::grpc::GrpcTransport::new(
        store(1),
        Arc::clone(&identity) as _,
        GrpcOptions::default(),
    );
    ask(&*transport, store(2), "echo one", PATIENT)
        .await
        .unwrap();
    identity.moved(store(2), &second.address);
    first.kill();
    assert_eq!(
        ask_until_answered(&*transport, store(2), "echo two").await,
        "echo two"
    );
    assert_eq!(second.seen(), ["echo two"]);
}

/// Passes bytes on between whoever dials it and `target`, until it is told to hold them.
async fn proxy(target: String) -> (String, Arc<AtomicBool>) {
    async fn pass(
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        hold: Arc<AtomicBool>,
    ) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            while hold.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hold = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&hold);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(&target).await else {
                continue;
            };
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::spawn(pass(near_read, far_write, Arc::clone(&held)));
            tokio::spawn(pass(far_read, near_write, Arc::clone(&held)));
        }
    });
    (address, hold)
}

#[tokio::test]
async fn a_silent_partition_breaks_the_connection_and_heals() {
    let server = Server::start(2).await;
    let (address, hold) = proxy(server.address.clone()).await;
    let transport = dialler(&address);
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();

    hold.store(true, Ordering::Relaxed);
    let started = Instant::now();
    let error = ask(&*transport, store(2), "echo", PATIENT)
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::NoAnswer { .. }), "{error}");
    let waited = started.elapsed();
    assert!(
        waited < Duration::from_secs(10),
        "only the timeout ended it, after {waited:?}"
    );

    hold.store(false, Ordering::Relaxed);
    assert_eq!(
        ask_until_answered(&*transport, store(2), "echo healed").await,
        "echo healed"
    );
}

#[tokio::test]
async fn a_peer_that_accepts_and_says_nothing_fails_the_calls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dialled);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    let transport = dialler(&address);
    // Within the caller's own time where that is short ...
    let short = ask(&*transport, store(2), "echo", Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(
        matches!(short, TransportError::Unreachable { .. }),
        "nothing was sent before the handshake: {short}"
    );
    // ... and within that of the keep-alive or the handshake where it is long.
    let started = Instant::now();
    let long = ask(&*transport, store(2), "echo", PATIENT)
        .await
        .unwrap_err();
    assert!(matches!(long, TransportError::Unreachable { .. }), "{long}");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    assert!(dialled.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_store_that_hangs_up_is_not_dialled_without_rest() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dialled);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let transport = dialler(&address);
    let (started, mut calls) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_millis(1500) {
        let error = ask(&*transport, store(2), "echo", PATIENT)
            .await
            .unwrap_err();
        assert!(
            matches!(error, TransportError::Unreachable { .. }),
            "{error}"
        );
        calls += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // 20 ms doubling to 500 ms: some seven in that time, if every rest takes the lower half of its range ten.
    let dialled = dialled.load(Ordering::Relaxed);
    assert!(
        (2..=20).contains(&dialled) && calls > 2 * dialled,
        "{dialled} connections for {calls} calls"
    );
}

#[tokio::test]
async fn after_a_shutdown_no_task_is_left_and_calls_fail() {
    let server = Server::start(2).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for by_drop in [false, true] {
        let transport = dialler(&server.address);
        for lane in Lane::ALL {
            text(
                transport
                    .call(store(2), lane, RegionId(1), request("echo"), PATIENT)
                    .await,
            )
            .unwrap();
        }
        // One that dials for ever, too.
        let _ = ask(&*transport, store(3), "echo", PATIENT).await;
        let outstanding = transport.call(
            store(2),
            Lane::Control,
            RegionId(1),
            request("never"),
            PATIENT,
        );
        while !server.seen().iter().any(|command| command == "never") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.handler.seen.lock().clear();
        assert!(tasks() > before);
        if by_drop {
            drop(transport);
        } else {
            transport.shutdown();
            let later = ask(&*transport, store(2), "echo", PATIENT)
                .await
                .unwrap_err();
            assert!(
                matches!(later, TransportError::Unreachable { .. }),
                "{later}"
            );
        }
        let error = outstanding.await.unwrap_err();
        assert!(matches!(error, TransportError::NoAnswer { .. }), "{error}");
        let started = Instant::now();
        while tasks() > before {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{} tasks are left",
                tasks() - before
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
