//! The switches: the eventual namespace goes strong and back while clients write it.
//!
//! Owns these clients, the two switches, and how long each kept writes waiting. Judges nothing.
//!
//! A client writes each of its keys once, in either mode. From its first strong receipt on, and until the way
//! back begins, it reads and writes registers, too, whose history begins with the seal.

use super::acks::Acks;
use super::cart::{self, NAMESPACE};
use super::cluster::Cluster;
use super::failed;
use super::load::orders::Orders;
use super::screen::{Screen, grouped, spent};
use super::story::PATIENCE;
use crate::exit::Error;
use bytes::Bytes;
use futures::TryStreamExt;
use parking_lot::Mutex;
use rdb_check::{Call, Op, Outcome, Recorder};
use rdb_client::{Client, ClientError, PutOptions, ReadOptions, ScanOptions};
use rdb_proto::convert;
use rdb_proto::kv::Receipt;
use rdb_proto::raft::UpdateNamespaceModeRequest;
use rdb_types::{Mode, StoreId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const CLIENTS: u64 = 4;
/// Few, so that clients meet.
const REGISTERS: u64 = 4;
/// What the keys begin with that are written once.
const PREFIX: &str = "item/";
/// Between two calls of one client.
const PACE: Duration = Duration::from_millis(2);
/// After an error.
const AFTER_ERROR: Duration = Duration::from_millis(20);
/// What stands in the history for bytes that nobody wrote.
const GARBAGE: u64 = u64::MAX;

/// What was seen.
pub(super) struct Switched {
    /// To strong, and back.
    pub(super) ways: [Result<Way, String>; 2],
    /// The history of the registers, all of it under a strong mode.
    pub(super) calls: Vec<Call>,
    /// Keys that were written once.
    pub(super) items: Orders,
    /// Keys that were acknowledged when everything was read in strong mode, and are not there.
    pub(super) missing_when_strong: BTreeSet<String>,
    /// What each store held at the end, or why it is not known.
    pub(super) found: Vec<(StoreId, Result<BTreeSet<String>, String>)>,
}

/// One switch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) took: Duration,
    /// How long the stores refused writes, by their own measure.
    pub(super) refused: Duration,
    /// For how long no client's write was acknowledged, from the request to the end of the load behind it.
    pub(super) longest_pause: Duration,
    /// Writes acknowledged in that time.
    pub(super) writes: u64,
}

struct Shared {
    client: Client,
    acks: Acks,
    recorder: Recorder,
    items: Mutex<Orders>,
    next_value: AtomicU64,
    /// Whether registers may be used; a call of one holds it.
    sealed: RwLock<bool>,
    stopping: AtomicBool,
}

/// Lets it go strong and back, with `phase` of load behind each.
pub(super) async fn there_and_back(
    screen: &Screen,
    cluster: &Cluster,
    phase: Duration,
) -> Result<Switched, Error> {
    let shared = Arc::new(Shared {
        client: cluster.client()?,
        acks: Acks::new(),
        recorder: Recorder::new(),
        items: Mutex::default(),
        next_value: AtomicU64::new(1),
        sealed: RwLock::new(true),
        stopping: AtomicBool::new(false),
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(work(Arc::clone(&shared), number));
    }
    sleep(phase / 3).await;
    let to_strong = go(screen, &shared, Mode::Strong, phase).await?;
    // What is acknowledged from here on may be found or not.
    let acknowledged = shared.items.lock().acknowledged.clone();
    let found = items(&shared.client, ReadOptions::linearizable()).await;
    let found = match (&to_strong, found) {
        (Ok(_), found) => found?,
        // A namespace that did not get there has no such read.
        (Err(_), _) => acknowledged.clone(),
    };
    // Who is in the middle of a call of a register ends it first.
    *shared.sealed.write().await = false;
    let back = go(screen, &shared, Mode::Eventual, phase).await?;
    shared.stopping.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.map_err(|error| failed(format!("a client of {NAMESPACE} broke: {error}")))?;
    }
    let converged = cart::converge(&shared.client, Instant::now()).await;
    let mut held = Vec::new();
    for store in cluster.ids() {
        let found = match &converged {
            Ok(_) => items(&cluster.probe(store)?, ReadOptions::stale()).await,
            Err(why) => {
                held.push((store, Err(why.clone())));
                continue;
            }
        };
        held.push((store, found.map_err(|error| error.to_string())));
    }
    Ok(Switched {
        ways: [to_strong, back],
        calls: shared.recorder.calls(),
        missing_when_strong: acknowledged.difference(&found).cloned().collect(),
        items: std::mem::take(&mut *shared.items.lock()),
        found: held,
    })
}

/// One way, and the load behind it.
async fn go(
    screen: &Screen,
    shared: &Shared,
    to: Mode,
    phase: Duration,
) -> Result<Result<Way, String>, Error> {
    screen.doing(format!("{NAMESPACE} becomes {to}, clients go on"));
    let began = Instant::now();
    let refused = match timeout(PATIENCE, switch(&shared.client, NAMESPACE, to)).await {
        Ok(Ok(refused)) => refused,
        Ok(Err(error)) => return Ok(Err(error.to_string())),
        Err(_) => return Ok(Err(format!("it took more than {} s", PATIENCE.as_secs()))),
    };
    let took = began.elapsed();
    sleep(phase).await;
    let seen = shared.acks.between(began, Instant::now());
    screen.say(format!(
        "{NAMESPACE} is {to} {} after it was asked for, under load: stores refused writes for {}, clients had no acknowledgement for {} at most",
        spent(took),
        spent(refused),
        spent(seen.longest_pause)
    ))?;
    Ok(Ok(Way {
        took,
        refused,
        longest_pause: seen.longest_pause,
        writes: seen.count,
    }))
}

/// Switches a namespace and waits for it. How long the stores refused writes.
pub(super) async fn switch(
    client: &Client,
    namespace: &str,
    to: Mode,
) -> Result<Duration, ClientError> {
    let request = UpdateNamespaceModeRequest {
        namespace: namespace.to_owned(),
        mode: convert::mode_to_wire(to),
        wait: true,
        ..UpdateNamespaceModeRequest::default()
    };
    let mut changes = client.update_mode(request).await?;
    let mut refused_us = 0;
    while let Some(change) = changes.next().await? {
        refused_us = change.write_pause_us;
    }
    Ok(Duration::from_micros(refused_us))
}

async fn work(shared: Arc<Shared>, process: u64) {
    let mut strong = false;
    for number in 0u64.. {
        if shared.stopping.load(Ordering::Relaxed) {
            break;
        }
        let done = match item(&shared, format!("{PREFIX}{process}/{number:06}")).await {
            Ok(receipt) => {
                strong |= convert::mode(receipt.mode) == Some(Mode::Strong);
                let sealed = shared.sealed.read().await;
                match strong && *sealed {
                    true => register(&shared, process, number).await,
                    false => Ok(()),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a client of the switches was refused");
            sleep(AFTER_ERROR).await;
        }
        sleep(PACE).await;
    }
}

/// Writes a key once, and notes what became of it.
async fn item(shared: &Shared, key: String) -> Result<Receipt, ClientError> {
    let began = Instant::now();
    let put = shared
        .client
        .put(NAMESPACE, key.clone(), "one item", PutOptions::default());
    match put.await {
        Ok(answer) => {
            shared.acks.add(began);
            shared.items.lock().acknowledged.insert(key);
            Ok(answer.receipt.unwrap_or_default())
        }
        Err(error) => {
            if error.outcome == rdb_client::Outcome::Unknown {
                shared.items.lock().unknown.insert(key);
            }
            Err(error)
        }
    }
}

/// A read or a write of a register. Every write has a number of its own.
async fn register(shared: &Shared, process: u64, number: u64) -> Result<(), ClientError> {
    let register = (number / 2 + process) % REGISTERS;
    let key = format!("register/{register:02}");
    if number.is_multiple_of(2) {
        let token = shared.recorder.invoke(process, register, Op::Read);
        let read = shared
            .client
            .get(NAMESPACE, key, ReadOptions::linearizable());
        let answer = read.await?;
        let value = answer.found.then(|| {
            let text = std::str::from_utf8(&answer.value).ok();
            text.and_then(|text| text.parse().ok()).unwrap_or(GARBAGE)
        });
        shared.recorder.complete(token, Outcome::Read(value));
        return Ok(());
    }
    let value = shared.next_value.fetch_add(1, Ordering::Relaxed);
    let token = shared.recorder.invoke(process, register, Op::Write(value));
    let put = shared
        .client
        .put(NAMESPACE, key, value.to_string(), PutOptions::default());
    match put.await {
        Ok(_) => shared.recorder.complete(token, Outcome::Done),
        Err(error) => {
            // Without a word from the client crate the token is dropped: an unknown outcome.
            if error.outcome == rdb_client::Outcome::NotApplied {
                shared.recorder.complete(token, Outcome::NotApplied);
            }
            return Err(error);
        }
    }
    Ok(())
}

async fn items(client: &Client, read: ReadOptions) -> Result<BTreeSet<String>, ClientError> {
    let options = ScanOptions {
        prefix: Bytes::from_static(PREFIX.as_bytes()),
        keys_only: true,
        read,
        ..ScanOptions::default()
    };
    let name = |entry: rdb_client::KeyValue| String::from_utf8_lossy(&entry.key).into_owned();
    client
        .scan(NAMESPACE, options)
        .map_ok(name)
        .try_collect()
        .await
}

/// Says what came of it all.
pub(super) fn tell(screen: &Screen, switched: &Switched) -> Result<(), Error> {
    screen.say(format!(
        "{NAMESPACE}: {} writes were acknowledged before, between and after the two switches",
        grouped(switched.items.acknowledged.len() as u64)
    ))
}
