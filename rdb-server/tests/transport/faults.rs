//! The faults on top of a transport, over one that calls the handler in place.

use crate::harness::*;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use rdb_proto::raft::{peer_request, peer_response};
use rdb_server::transport::faults::{Faults, FaultyTransport};
use rdb_server::transport::{Lane, PeerHandler, Transport, TransportError};
use rdb_types::{RegionId, StoreId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long enough that an answer of a working link is there, short enough to wait for.
const SHORT: Duration = Duration::from_millis(150);

/// Everybody's inner transport: one handler that stands for all stores.
struct InPlace(Arc<Scripted>);

impl Transport for InPlace {
    fn call(
        &self,
        to: StoreId,
        _lane: Lane,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, TransportError>> {
        let answer = self.0.handle(to, region, request, timeout);
        async move { answer.await.map_err(TransportError::Refused) }.boxed()
    }
}

struct Net {
    faults: Arc<Faults>,
    handler: Arc<Scripted>,
    stores: Vec<Arc<FaultyTransport>>,
}

impl Net {
    fn new(seed: u64) -> Net {
        let (faults, handler) = (Faults::new(seed), Arc::new(Scripted::default()));
        let inner: Arc<dyn Transport> = Arc::new(InPlace(Arc::clone(&handler)));
        let stores = (1..=3)
            .map(|id| FaultyTransport::new(store(id), Arc::clone(&inner), Arc::clone(&faults)))
            .collect();
        Net {
            faults,
            handler,
            stores,
        }
    }

    fn call(
        &self,
        from: usize,
        to: u64,
        command: &str,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<String, TransportError>> {
        let call = self.stores[from - 1].call(
            store(to),
            Lane::Append,
            RegionId(1),
            request(command.to_owned()),
            timeout,
        );
        call.map(text).boxed()
    }

    async fn passes(&self, from: usize, to: u64) -> bool {
        match self.call(from, to, "echo", SHORT).await {
            Ok(_) => true,
            Err(TransportError::NoAnswer { .. }) => false,
            Err(other) => panic!("a partition does not announce itself: {other}"),
        }
    }

    fn seen(&self) -> usize {
        self.handler.seen.lock().len()
    }
}

#[tokio::test]
async fn a_cut_is_silent_until_the_timeout_and_ends_with_the_heal() {
    let net = Net::new(1);
    assert!(net.passes(1, 2).await);
    net.faults.cut(store(1), store(2));
    let started = Instant::now();
    assert!(!net.passes(1, 2).await);
    assert!(
        started.elapsed() >= SHORT,
        "an immediate error is not what a partition looks like"
    );
    assert!(!net.passes(2, 1).await);
    assert!(net.passes(1, 3).await && net.passes(3, 2).await);
    assert_eq!(net.seen(), 3, "requests over a cut link were delivered");
    net.faults.heal();
    assert!(net.passes(1, 2).await && net.passes(2, 1).await);
}

#[tokio::test]
async fn a_one_way_cut_drops_requests_one_way_and_answers_the_other() {
    let net = Net::new(1);
    net.faults.cut_one_way(store(1), store(2));
    assert!(!net.passes(1, 2).await);
    assert_eq!(net.seen(), 0, "the request itself is dropped");
    assert!(!net.passes(2, 1).await);
    assert_eq!(net.seen(), 1, "the request arrives, its answer does not");
    net.faults.mend(store(2), store(1));
    assert!(net.passes(1, 2).await && net.passes(2, 1).await);
}

#[tokio::test]
async fn isolation_cuts_one_store_off_from_all() {
    let net = Net::new(1);
    net.faults
        .isolate(store(2), &[store(1), store(2), store(3)]);
    assert!(
        !net.passes(1, 2).await
            && !net.passes(2, 1).await
            && !net.passes(2, 3).await
            && !net.passes(3, 2).await
    );
    assert!(net.passes(1, 3).await && net.passes(3, 1).await);
}

#[tokio::test]
async fn what_is_on_its_way_when_the_link_is_cut_is_dropped() {
    let net = Net::new(1);
    // An answer that is still being made.
    let call = tokio::spawn(net.call(1, 2, "sleep 200", Duration::from_secs(1)));
    while net.seen() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    net.faults.cut(store(1), store(2));
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::NoAnswer { .. }), "{error}");

    // A request that is delayed.
    net.faults.heal();
    net.faults
        .delay(Duration::from_millis(300)..=Duration::from_millis(300));
    let call = net.call(1, 2, "echo", Duration::from_secs(1));
    net.faults.cut(store(1), store(2));
    let error = call.await.unwrap_err();
    assert!(matches!(error, TransportError::NoAnswer { .. }), "{error}");
    assert_eq!(net.seen(), 1);
}

#[tokio::test]
async fn delay_takes_its_time_and_keeps_the_order() {
    let net = Net::new(7);
    net.faults
        .delay(Duration::from_millis(1)..=Duration::from_millis(80));
    let commands: Vec<String> = (0..200).map(|n| format!("echo {n}")).collect();
    let calls: Vec<_> = commands
        .iter()
        .map(|command| net.call(1, 2, command, PATIENT))
        .collect();
    // The delay is taken off while later requests are already sent without one: they must not overtake.
    net.faults.delay(Duration::ZERO..=Duration::ZERO);
    let last = net.call(1, 2, "echo last", PATIENT);
    for (answer, command) in join_all(calls).await.into_iter().zip(&commands) {
        assert_eq!(answer.unwrap(), *command);
    }
    assert_eq!(last.await.unwrap(), "echo last");
    let mut expected = commands;
    expected.push("echo last".to_owned());
    assert_eq!(*net.handler.seen.lock(), expected);

    net.faults
        .delay(Duration::from_millis(60)..=Duration::from_millis(60));
    let started = Instant::now();
    net.call(1, 2, "echo", PATIENT).await.unwrap();
    assert!(
        started.elapsed() >= Duration::from_millis(120),
        "there and back: {:?}",
        started.elapsed()
    );
    // Longer than the caller waits: the timeout rules.
    let started = Instant::now();
    net.faults.delay(PATIENT..=PATIENT);
    net.call(1, 2, "echo", SHORT).await.unwrap_err();
    assert!(started.elapsed() < PATIENT / 2);
}

#[tokio::test]
async fn requests_overtake_each_other_only_where_it_is_asked_for() {
    let net = Net::new(7);
    net.faults.reorder(true);
    net.faults
        .delay(Duration::from_millis(1)..=Duration::from_millis(200));
    let commands: Vec<String> = (0..50).map(|n| format!("echo {n}")).collect();
    let calls: Vec<_> = commands
        .iter()
        .map(|command| net.call(1, 2, command, PATIENT))
        .collect();
    for (answer, command) in join_all(calls).await.into_iter().zip(&commands) {
        assert_eq!(answer.unwrap(), *command);
    }
    let mut seen = net.handler.seen.lock().clone();
    assert_ne!(seen, commands);
    seen.sort();
    let mut sorted = commands;
    sorted.sort();
    assert_eq!(seen, sorted, "reordering neither loses nor repeats");
}

#[tokio::test]
async fn loss_falls_where_the_seed_says() {
    async fn survivors(seed: u64) -> Vec<usize> {
        let net = Net::new(seed);
        net.faults.loss(30);
        let calls: Vec<_> = (0..200)
            .map(|n| net.call(1, 2, &format!("echo {n}"), Duration::from_millis(500)))
            .collect();
        let answers = join_all(calls).await;
        answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| answer.is_ok())
            .map(|(n, _)| n)
            .collect()
    }
    let first = survivors(42).await;
    // Both the request and its answer have to make it: 0.7 * 0.7 of 200 is 98.
    assert!((60..=136).contains(&first.len()), "{} of 200", first.len());
    assert_eq!(first, survivors(42).await);
    assert_ne!(first, survivors(43).await);

    let net = Net::new(42);
    net.faults.loss(100);
    assert!(!net.passes(1, 2).await);
    net.faults.clear();
    assert!(net.passes(1, 2).await);
}
