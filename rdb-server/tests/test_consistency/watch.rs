//! Watches: in strong namespaces every change once and in order, whoever is killed; in eventual ones all that
//! becomes visible; and what is not held any more, or not read, is said.

use super::modes::{EVENTUAL, NAME, STRONG, switch};
use super::switches::declared_meshed;
use crate::support::calls::{PATIENT, Plain, Refusal, channel, timed};
use crate::support::cluster::{Cluster, DATA};
use crate::support::http;
use crate::support::wait::eventually;
use bytes::Bytes;
use futures::StreamExt;
use rdb_client::{Client, ClientError, PutOptions, WatchOptions, WatchResponse};
use rdb_proto::kv::kv_client::KvClient;
use rdb_proto::kv::watch_response::{Event, event::Type};
use rdb_proto::kv::{PutRequest, WatchRequest};
use rdb_types::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status, Streaming};

/// A watch at one store, without the client's going on.
struct Stream(Streaming<WatchResponse>);

impl Stream {
    async fn open(
        cluster: &Cluster,
        store: usize,
        request: WatchRequest,
    ) -> Result<Stream, Status> {
        let mut kv = KvClient::new(channel(cluster.addr(store)).await);
        Ok(Stream(kv.watch(request).await?.into_inner()))
    }

    /// Begun: the first message has come, which tells where it stands.
    async fn begin(cluster: &Cluster, store: usize, namespace: &str) -> (Stream, WatchResponse) {
        let request = WatchRequest {
            namespace: namespace.to_owned(),
            ..Default::default()
        };
        let mut stream = Stream::open(cluster, store, request).await.unwrap();
        let first = stream.message().await.unwrap();
        assert!(first.events.is_empty(), "{first:?}");
        (stream, first)
    }

    async fn message(&mut self) -> Result<WatchResponse, Status> {
        let message = timeout(PATIENT, self.0.message()).await;
        message.expect("a message every 2 s").map(Option::unwrap)
    }

    /// Reads until this many events have come, and the message that brought the last.
    async fn events(&mut self, count: usize) -> (Vec<String>, WatchResponse) {
        let mut events = Vec::new();
        loop {
            let message = self.message().await.unwrap();
            events.extend(message.events.iter().map(shown));
            if events.len() >= count {
                assert_eq!(events.len(), count, "{events:?}");
                return (events, message);
            }
        }
    }

    /// What it ends with.
    async fn refusal(&mut self) -> Refusal {
        loop {
            if let Err(status) = self.message().await {
                return Refusal::of(&status);
            }
        }
    }
}

async fn refused(cluster: &Cluster, store: usize, request: WatchRequest) -> Refusal {
    match Stream::open(cluster, store, request).await {
        Ok(mut stream) => stream.refusal().await,
        Err(status) => Refusal::of(&status),
    }
}

fn shown(event: &Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let key = text(&kv.key);
    match event.r#type() {
        Type::Put => format!("{key}={}", text(&kv.value)),
        Type::Delete => format!("-{key}"),
        Type::Expire => format!("~{key}"),
    }
}

fn put_with_ttl(key: &str, ttl_ms: i64) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ttl_ms,
        ..Default::default()
    }
}

async fn metric(cluster: &Cluster, store: usize, name: &str) -> u64 {
    let page = http::get(cluster.http_addr(store), "/metrics")
        .await
        .unwrap();
    let value = page.body.lines().find_map(|line| line.strip_prefix(name));
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {}", page.body))
}

/// Writes numbers until it is told to stop; gives revision and value of each write that was acknowledged.
async fn write(client: Client, namespace: &str, stop: Arc<AtomicBool>) -> BTreeMap<u64, String> {
    let mut written = BTreeMap::new();
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (key, value) = (format!("k{}", number % 7), number.to_string());
        let put = client.put(namespace, key.clone(), value.clone(), PutOptions::default());
        let receipt = put.await.unwrap().receipt.unwrap();
        written.insert(receipt.revision, format!("{key}={value}"));
        sleep(Duration::from_millis(1)).await;
    }
    written
}

/// Reads until an event shows like this.
async fn read_until(
    mut messages: impl futures::Stream<Item = Result<WatchResponse, ClientError>> + Unpin,
    last: &str,
) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let all = async {
        while let Some(message) = messages.next().await {
            events.extend(
                message
                    .unwrap_or_else(|error| panic!("{error}: {error:?}"))
                    .events,
            );
            if events.iter().any(|event| shown(event) == last) {
                return;
            }
        }
    };
    if timeout(PATIENT * 2, all).await.is_err() {
        panic!(
            "{last} is not told; the last of {}: {:?}",
            events.len(),
            events.last().map(shown)
        );
    }
    events
}

/// One watch that is open while the leader is killed twice, and one that only begins then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_every_strong_change_once_whoever_is_killed() {
    let mut cluster = Cluster::start(3, &[]).await;
    let client = cluster.client();
    let first = client
        .put("default", "first", "", PutOptions::default())
        .await
        .unwrap();
    let from_revision = first.receipt.unwrap().revision;
    // On the store that leads, so that it is killed under the watch.
    let leader = cluster.leader_of(DATA).await;
    let watcher = Client::new(rdb_client::ClientOptions::new(
        cluster.endpoints_from(leader),
    ))
    .unwrap();
    let options = WatchOptions {
        from_revision,
        ..WatchOptions::default()
    };
    let early = tokio::spawn(read_until(
        watcher.watch("default", options.clone()),
        "end=",
    ));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (client, stop) = (cluster.client(), stop.clone());
        async move { write(client, "default", stop).await }
    });
    for _ in 0..2 {
        sleep(Duration::from_millis(400)).await;
        let leader = cluster.leader_of(DATA).await;
        cluster.kill(leader);
        sleep(Duration::from_millis(400)).await;
        cluster.restart(leader).await;
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    client
        .put("default", "end", "", PutOptions::default())
        .await
        .unwrap();
    let late = tokio::spawn(read_until(
        cluster.client().watch("default", options),
        "end=",
    ));
    for (which, watch) in [("early", early), ("late", late)] {
        let events = watch.await.unwrap();
        let revision = |event: &Event| event.kv.as_ref().unwrap().revision;
        let revisions: Vec<u64> = events.iter().map(revision).collect();
        let expected: Vec<u64> = (from_revision..from_revision + revisions.len() as u64).collect();
        assert_eq!(
            revisions, expected,
            "{which}: every revision once, in order"
        );
        let told: BTreeMap<u64, String> = events
            .iter()
            .map(|event| (revision(event), shown(event)))
            .collect();
        for (revision, write) in &written {
            assert_eq!(told.get(revision), Some(write), "{which}");
        }
        println!(
            "{which}: {} changes, {} acknowledged",
            events.len(),
            written.len()
        );
    }
}

/// Of one key and of a prefix, at a follower; deletes and compare-and-swaps; revisions, tokens, progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_store_tells_what_was_asked_for_from_where_it_was_asked_for() {
    let cluster = Cluster::start(3, &["--watch-history", "40"]).await;
    let leader = cluster.leader_of(DATA).await;
    let follower = (leader + 1) % 3;
    let store = Plain::on(&cluster, leader).await;
    let begin = store.put("a", "1").await.unwrap().receipt.unwrap();
    let whole = WatchRequest {
        session: begin.session.clone(),
        ..Default::default()
    };
    let mut whole = Stream::open(&cluster, follower, whole).await.unwrap();
    let one = WatchRequest {
        key: "b".into(),
        from_revision: begin.revision,
        ..Default::default()
    };
    let mut one = Stream::open(&cluster, follower, one).await.unwrap();
    let prefix = WatchRequest {
        prefix: "a".into(),
        session: begin.session.clone(),
        ..Default::default()
    };
    let mut prefix = Stream::open(&cluster, leader, prefix).await.unwrap();
    let version = store.put("b", "1").await.unwrap().version;
    store.cas("b", 1, "lost", "").await.unwrap();
    store.cas("b", version, "2", "").await.unwrap();
    store.delete("a", "").await.unwrap();
    store.delete("nothing", "").await.unwrap();
    store.put("ab", "1").await.unwrap();
    let (events, last) = whole.events(4).await;
    assert_eq!(events, ["b=1", "b=2", "-a", "ab=1"]);
    assert_eq!(last.revision, begin.revision + 4);
    assert_eq!(one.events(2).await.0, ["b=1", "b=2"]);
    assert_eq!(prefix.events(2).await.0, ["-a", "ab=1"]);
    // What was not for it moves it, too.
    let quiet = one.message().await.unwrap();
    assert!(
        quiet.events.is_empty() && quiet.revision == last.revision,
        "{quiet:?}"
    );
    // A read goes by a watch's token.
    let read = rdb_proto::kv::ReadOptions {
        session: last.session.clone(),
        ..crate::support::calls::stale()
    };
    let read = Plain::on(&cluster, follower)
        .await
        .get_as("ab", read)
        .await
        .unwrap();
    assert!(read.found);

    // Beyond the history.
    for number in 0..60 {
        store.put("c", &number.to_string()).await.unwrap();
    }
    for (store, session) in [(leader, Bytes::new()), (follower, last.session)] {
        let from_revision = if session.is_empty() {
            begin.revision
        } else {
            0
        };
        let again = WatchRequest {
            from_revision,
            session,
            ..Default::default()
        };
        let refusal = refused(&cluster, store, again).await;
        refusal.is(Code::OutOfRange, "COMPACTED");
        let oldest: u64 = refusal.meta("oldest_revision").parse().unwrap();
        let held = WatchRequest {
            from_revision: oldest,
            ..Default::default()
        };
        let mut held = Stream::open(&cluster, store, held).await.unwrap();
        let (events, _) = held.events(40).await;
        assert_eq!((&events[0][..], &events[39][..]), ("c=20", "c=59"));
    }
    let options = WatchOptions {
        from_revision: begin.revision,
        ..WatchOptions::default()
    };
    let error = cluster
        .client()
        .watch("default", options)
        .next()
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.reason, Some(Reason::Compacted), "{error}");

    let (a, both) = (Bytes::from_static(b"a"), begin.session);
    let key = |key: &Bytes| WatchRequest {
        key: key.clone(),
        ..Default::default()
    };
    for (request, field) in [
        (
            WatchRequest {
                prefix: a.clone(),
                ..key(&a)
            },
            "prefix",
        ),
        (
            WatchRequest {
                from_revision: 3,
                session: both,
                ..key(&a)
            },
            "from_revision",
        ),
        (
            WatchRequest {
                session: a.clone(),
                ..key(&a)
            },
            "session",
        ),
        (key(&vec![b'k'; 5000].into()), "key"),
    ] {
        let refusal = refused(&cluster, leader, request).await;
        refusal
            .is(Code::InvalidArgument, "INVALID_ARGUMENT")
            .field(field);
    }
    let nowhere = WatchRequest {
        namespace: "nowhere".into(),
        ..Default::default()
    };
    refused(&cluster, leader, nowhere)
        .await
        .is(Code::NotFound, "NAMESPACE_NOT_FOUND");
    let ahead = WatchRequest {
        from_revision: 1 << 40,
        ..Default::default()
    };
    let mut there = BTreeSet::new();
    for store in [leader, follower] {
        let refusal = refused(&cluster, store, ahead.clone()).await;
        refusal
            .is(Code::InvalidArgument, "INVALID_ARGUMENT")
            .field("from_revision");
        there.insert(refusal.metadata["revision"].parse::<u64>().unwrap());
    }
    assert_eq!(there.len(), 1, "{there:?}");
    // The next one is not ahead: it is what comes.
    let next = WatchRequest {
        from_revision: there.first().unwrap() + 1,
        ..Default::default()
    };
    let mut next = Stream::open(&cluster, follower, next).await.unwrap();
    Plain::on(&cluster, leader)
        .await
        .put("a", "next")
        .await
        .unwrap();
    assert_eq!(next.events(1).await.0, ["a=next"]);
    assert!(metric(&cluster, follower, "flaredb_watch_events_total ").await >= 6);
}

/// The regions of a watch are told side by side, and the token goes on in each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_spans_regions_and_goes_on_in_each() {
    let cluster = Cluster::start(3, &["--bootstrap-split", "1/m"]).await;
    let store = Plain::on(&cluster, 0).await;
    store.put("a", "0").await.unwrap();
    // From now on: that store has it by now.
    Plain::on(&cluster, 1).await.get("a").await.unwrap();
    let (mut stream, _) = Stream::begin(&cluster, 1, "").await;
    for key in ["b", "x", "c", "y"] {
        store.put(key, "1").await.unwrap();
    }
    let (mut events, last) = stream.events(4).await;
    let of = |keys: [&str; 2], events: &[String]| {
        let of: Vec<_> = events
            .iter()
            .filter(|event| keys.contains(&&event[..1]))
            .cloned()
            .collect();
        assert_eq!(of, keys.map(|key| format!("{key}=1")));
    };
    of(["b", "c"], &events);
    of(["x", "y"], &events);
    assert_eq!(last.revision, 0, "several regions have no one revision");
    for key in ["d", "z"] {
        store.put(key, "1").await.unwrap();
    }
    let request = WatchRequest {
        session: last.session,
        ..Default::default()
    };
    let mut on = Stream::open(&cluster, 2, request).await.unwrap();
    events = on.events(2).await.0;
    events.sort();
    assert_eq!(events, ["d=1", "z=1"]);
    let several = WatchRequest {
        from_revision: 1,
        ..Default::default()
    };
    refused(&cluster, 0, several).await.field("from_revision");
    // One key lies in one.
    let one = WatchRequest {
        from_revision: 1,
        key: "y".into(),
        ..Default::default()
    };
    let mut one = Stream::open(&cluster, 0, one).await.unwrap();
    assert_eq!(one.events(1).await.0, ["y=1"]);
}

/// Writes of this store and of others, while it is cut off and after; expiry; going on at another store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eventual_watch_tells_what_becomes_visible_here() {
    let cluster = declared_meshed("eventual", &[]).await;
    let mut stores = Vec::new();
    for store in 0..3 {
        stores.push(Plain::on(&cluster, store).await.namespace(NAME));
    }
    let (mut here, _) = Stream::begin(&cluster, 0, NAME).await;
    stores[0].put("own", "1").await.unwrap();
    assert_eq!(here.events(1).await.0, ["own=1"]);
    stores[1].put("theirs", "1").await.unwrap();
    assert_eq!(here.events(1).await.0, ["theirs=1"]);
    stores[2].delete("theirs", "").await.unwrap();
    stores[2].put_as(put_with_ttl("short", 300)).await.unwrap();
    let (events, _) = here.events(3).await;
    assert_eq!(events, ["-theirs", "short=v", "~short"]);

    cluster.mesh().isolate(2);
    stores[2].put("cut", "off").await.unwrap();
    stores[0].put("own", "2").await.unwrap();
    let (events, token) = here.events(1).await;
    assert_eq!(events, ["own=2"]);
    drop(here);
    stores[1].put("theirs", "2").await.unwrap();
    let request = WatchRequest {
        namespace: NAME.to_owned(),
        session: token.session,
        ..Default::default()
    };
    // A store that is cut off from what was seen tells what it has, and the rest when it comes.
    let mut elsewhere = Stream::open(&cluster, 2, request.clone()).await.unwrap();
    assert_eq!(elsewhere.events(1).await.0, ["cut=off"]);
    let mut on = Stream::open(&cluster, 1, request).await.unwrap();
    assert_eq!(on.events(1).await.0, ["theirs=2"]);
    cluster.mesh().heal();
    assert_eq!(on.events(1).await.0, ["cut=off"]);
    let (mut events, _) = elsewhere.events(2).await;
    events.sort();
    assert_eq!(events, ["own=2", "theirs=2"]);

    let revision = WatchRequest {
        namespace: NAME.to_owned(),
        from_revision: 1,
        ..Default::default()
    };
    refused(&cluster, 0, revision)
        .await
        .is(Code::FailedPrecondition, "WRONG_MODE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_watch_tells_what_expires() {
    let cluster = Cluster::start(1, &[]).await;
    let store = Plain::on(&cluster, 0).await;
    store.put("a", "1").await.unwrap();
    let (mut stream, _) = Stream::begin(&cluster, 0, "").await;
    let put = store.put_as(put_with_ttl("short", 200)).await.unwrap();
    let (events, last) = stream.events(2).await;
    assert_eq!(events, ["short=v", "~short"]);
    let expiry = last.events.last().unwrap().kv.clone().unwrap();
    assert_eq!(expiry.version, put.version);
    // The token knows that it was told; a revision does not.
    let on = |request: WatchRequest| Stream::open(&cluster, 0, request);
    let mut by_token = on(WatchRequest {
        session: last.session,
        ..Default::default()
    })
    .await
    .unwrap();
    let from_revision = put.receipt.unwrap().revision + 1;
    let mut by_revision = on(WatchRequest {
        from_revision,
        ..Default::default()
    })
    .await
    .unwrap();
    store.put("b", "1").await.unwrap();
    assert_eq!(by_token.events(1).await.0, ["b=1"]);
    assert_eq!(by_revision.events(2).await.0, ["~short", "b=1"]);
}

/// A watch that nobody reads costs a store nothing, and ends with a word that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_not_read_is_cut_and_harms_nobody() {
    let cluster = Cluster::start(3, &["--watch-history", "100"]).await;
    let leader = cluster.leader_of(DATA).await;
    let store = Plain::on(&cluster, leader).await;
    let term = cluster.report(leader, DATA).await.unwrap().term;
    store.put("k", "first").await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(Stream::begin(&cluster, leader, "").await.0);
    }
    let memory = async || {
        let pid = cluster.node(leader).pid().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    };
    let before_mib = memory().await;
    let (value, began) = ("x".repeat(64 << 10), Instant::now());
    for _ in 0..400 {
        store.put("k", &value).await.unwrap();
    }
    println!(
        "400 writes of 64 KiB in {:?} under 20 watches that are not read; {before_mib} MiB before, {} after",
        began.elapsed(),
        memory().await
    );
    // 20 readers at 25 MiB each would be half a GiB.
    assert!(memory().await < before_mib + 200);
    assert_eq!(
        cluster.report(leader, DATA).await.unwrap().term,
        term,
        "no election"
    );
    for stream in &mut unread {
        let refusal = stream.refusal().await;
        refusal.is(Code::ResourceExhausted, "OVERLOADED");
        assert!(refusal.retry_after.is_some());
    }
    assert_eq!(
        metric(&cluster, leader, "flaredb_watch_cuts_total ").await,
        20
    );
    drop(unread);
    eventually(PATIENT, "no watch is left", async || {
        match metric(&cluster, leader, "flaredb_watch_streams ").await {
            0 => Ok(()),
            open => Err(format!("{open} are")),
        }
    })
    .await;
}

/// A switch ends a watch, after all that came before it; the client's goes on and misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_ends_a_watch_and_the_client_goes_on() {
    let cluster = declared_meshed("strong", &[]).await;
    let client = cluster.client();
    let first = client
        .put(NAME, "first", "", PutOptions::default())
        .await
        .unwrap();
    let session = first.receipt.unwrap().session;
    let options = WatchOptions {
        session,
        ..WatchOptions::default()
    };
    let watch = tokio::spawn(read_until(client.watch(NAME, options), "end="));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (client, stop) = (cluster.client().on_endpoint(0), stop.clone());
        async move {
            let mut written = Vec::new();
            for number in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    return written;
                }
                let (key, value) = (format!("k{number}"), number.to_string());
                written.push(format!("{key}={value}"));
                client
                    .put(NAME, key, value, PutOptions::default())
                    .await
                    .unwrap();
            }
            written
        }
    });
    for (mode, state) in [
        (EVENTUAL, "eventual"),
        (STRONG, "strong"),
        (EVENTUAL, "eventual"),
    ] {
        let (mut plain, _) = Stream::begin(&cluster, 1, NAME).await;
        sleep(Duration::from_millis(150)).await;
        switch(&cluster, 0, mode).await;
        let refusal = plain.refusal().await;
        refusal.is(Code::Unavailable, "MODE_CHANGED");
        assert_eq!(
            (refusal.meta("state"), refusal.meta("namespace")),
            (state, NAME)
        );
        assert!(refusal.retry_after.is_some());
    }
    sleep(Duration::from_millis(150)).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    let end = client.on_endpoint(0);
    end.put(NAME, "end", "", PutOptions::default())
        .await
        .unwrap();
    let events: Vec<String> = watch.await.unwrap().iter().map(shown).collect();
    let told: BTreeSet<&String> = events.iter().collect();
    let missing: Vec<_> = written
        .iter()
        .filter(|write| !told.contains(write))
        .collect();
    assert!(
        missing.is_empty(),
        "{} of {}: {missing:?}",
        missing.len(),
        written.len()
    );
    println!("{} writes, {} changes told", written.len(), events.len());
}

/// What its caller said how long; and a store that leaves says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_with_its_time_and_with_its_store() {
    let mut cluster = Cluster::start(1, &[]).await;
    let mut kv = KvClient::new(channel(cluster.addr(0)).await);
    let request = timed(WatchRequest::default(), Duration::from_millis(700));
    let mut short = Stream(kv.watch(request).await.unwrap().into_inner());
    short
        .refusal()
        .await
        .is(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    let (mut open, _) = Stream::begin(&cluster, 0, "").await;
    let ended = tokio::spawn(async move { open.refusal().await });
    let began = Instant::now();
    cluster.stop(0).await;
    println!("the store left within {:?}", began.elapsed());
    ended.await.unwrap().is(Code::Unavailable, "NOT_READY");
}
