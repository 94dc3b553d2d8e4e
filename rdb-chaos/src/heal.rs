//! A long cut, healed: both sides of it accepted writes of an eventual namespace, and have to become equal.
//!
//! Owns the load of either side, what the reader sees while the lag falls, and the judgement: all replicas
//! say the same, and one of them, read from end to end, holds what was acknowledged. Store 1 is alone on its
//! side; store 2 takes the writes of the other one, and store 3 none at all.

use crate::ChaosError;
use crate::cluster::{Cluster, ClusterOptions, DATA, STORES};
use crate::wait::eventually;
use bytes::Bytes;
use futures::StreamExt;
use rdb_bench::process::resident_bytes;
use rdb_client::{Client, ClientOptions, PutOptions, ReadOptions, ScanOptions};
use rdb_proto::raft::ReplicaStatus;
use rdb_types::Mode;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const NAMESPACE: &str = "healed";
/// Callers of each side.
const CALLERS: usize = 64;
/// One of so many keys is written on both sides; the others on one.
const SHARED: u64 = 10;
/// Until a write, or a page of the last scan, is answered; machines are busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the load.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks at the lag; and how much longer than the last, of the time since the heal, until the
/// next is told.
const LOOK_HEALED: Duration = Duration::from_millis(250);
const TELL_AGAIN: f64 = 1.05;

/// What is done.
#[derive(Clone, Debug)]
pub struct HealOptions {
    /// Records that each side writes.
    pub records: u64,
    /// Of each value.
    pub value_bytes: usize,
    /// How long after the heal all have to be equal.
    pub within: Duration,
    /// No store may hold more memory; `None`: any amount.
    pub resident_mib: Option<u64>,
    /// What it runs on.
    pub cluster: ClusterOptions,
}

/// What came of it, for the reader.
#[derive(Clone, Debug)]
pub struct Healed {
    /// From the heal until all replicas said the same.
    pub equal_after: Duration,
    /// Of each store, the most between the first write and the end, in MiB.
    pub resident_mib: [u64; STORES],
    /// Keys of the namespace.
    pub keys: u64,
    /// Writes that lost on a key that both sides wrote: listed, and pushed out of the list by its bound.
    pub conflicts: (u64, u64),
}

/// Writes on both sides of a cut, heals it, and judges. `tell` gets every line for the reader.
///
/// # Errors
/// A promise broke, or it could not be done; with the place where logs and data were kept.
pub async fn heal(
    options: &HealOptions,
    tell: &dyn Fn(String),
) -> Result<Healed, (ChaosError, Option<PathBuf>)> {
    let started = Cluster::start(&options.cluster).await;
    let mut cluster = started.map_err(|error| (error, None))?;
    tell(format!("three stores; {}", cluster.notes().join("; ")));
    let healed = on_cluster(options, &cluster, tell).await;
    healed.map_err(|error| {
        cluster.keep(&error.to_string());
        (error, Some(cluster.dir().to_owned()))
    })
}

async fn on_cluster(
    options: &HealOptions,
    cluster: &Cluster,
    tell: &dyn Fn(String),
) -> Result<Healed, ChaosError> {
    let clients = clients(cluster)?;
    serve(&clients).await?;
    let mut memory = Memory::default();

    for other in 1..STORES {
        cluster.network().cut(0, other)?;
        cluster.network().cut(other, 0)?;
    }
    tell(format!(
        "store 1 is cut off from the others; {} records of {} B are written at store 1, and as many at store 2",
        options.records, options.value_bytes
    ));
    let sides = write(options, cluster, &clients, &mut memory, tell).await?;

    // What every replica has to have: all that the others accepted while they did not hear it.
    let all = eventually(PATIENCE, "every store says what it has", async || {
        let mut all = Vector::default();
        for replica in replicas(cluster).await.into_iter() {
            all.join(&replica?);
        }
        Ok(all)
    })
    .await?;
    cluster.network().heal()?;
    let healed = Instant::now();
    tell("healed; writes missing at each store, and its resident memory:".to_owned());
    let mut told = 0.0;
    let replica = loop {
        let replicas = replicas(cluster).await;
        memory.look(cluster);
        let (same, since) = (same(&replicas, &all), healed.elapsed().as_secs_f64());
        if same.is_ok() || since >= told * TELL_AGAIN {
            told = since;
            tell(format!(
                "{since:>7.2} s  {}  {}",
                lags(&replicas, &all),
                memory.now()
            ));
        }
        match same {
            Ok(replica) => break replica,
            Err(why) if healed.elapsed() > options.within => {
                return Err(ChaosError::Broken(format!(
                    "the replicas are not equal {:?} after the heal: {why}",
                    options.within
                )));
            }
            Err(_) => sleep(LOOK_HEALED).await,
        }
    };
    let equal_after = healed.elapsed();
    tell(format!(
        "equal after {:.2} s: vectors, digests and {} keys; store 3 is read from end to end",
        equal_after.as_secs_f64(),
        replica.keys
    ));
    let read = read(&clients[2], options, &sides).await?;
    memory.look(cluster);
    if read != replica.keys {
        return Err(ChaosError::Broken(format!(
            "store 3 counts {} keys, and {read} can be read",
            replica.keys
        )));
    }
    let over = |limit| memory.most.iter().find(|most| **most > limit);
    if let Some(most) = options.resident_mib.and_then(over) {
        return Err(ChaosError::Broken(format!(
            "a store held {most} MiB of memory"
        )));
    }
    Ok(Healed {
        equal_after,
        resident_mib: memory.most,
        keys: read,
        conflicts: (replica.conflicts, replica.conflicts_dropped),
    })
}

/// A client for each store, that knows no other one.
fn clients(cluster: &Cluster) -> Result<Vec<Client>, ChaosError> {
    let endpoints = cluster.endpoints().into_iter();
    endpoints
        .map(|endpoint| {
            let options = ClientOptions {
                request_timeout: PATIENCE,
                discover: false,
                ..ClientOptions::new([endpoint])
            };
            Client::new(options).map_err(|error| ChaosError::because("no client", error))
        })
        .collect()
}

/// Makes the namespace, and waits until every store serves it.
async fn serve(clients: &[Client]) -> Result<(), ChaosError> {
    let harness = |error| ChaosError::because("no eventual namespace", error);
    clients[0]
        .create_namespace(NAMESPACE, Some(Mode::Eventual), None)
        .await
        .map_err(harness)?;
    for client in clients {
        let put = client.put(NAMESPACE, "ready", "yes", PutOptions::default());
        put.await.map_err(harness)?;
    }
    Ok(())
}

/// What a side wrote.
#[derive(Default)]
struct Side {
    next: AtomicU64,
    acknowledged: AtomicU64,
    /// Versions of its keys that the other side wrote, too, by their number.
    versions: parking_lot::Mutex<BTreeMap<u64, u64>>,
}

/// The key of a record of a side, and what it holds.
fn record(side: usize, number: u64, value_bytes: usize) -> (String, Bytes) {
    let key = if number.is_multiple_of(SHARED) {
        format!("both/{number:010}")
    } else {
        format!("side-{}/{number:010}", side + 1)
    };
    let mut value = format!("side {} {number:010} ", side + 1).into_bytes();
    value.resize(value_bytes.max(value.len()), b'.');
    (key, value.into())
}

/// Has both sides write all their records.
async fn write(
    options: &HealOptions,
    cluster: &Cluster,
    clients: &[Client],
    memory: &mut Memory,
    tell: &dyn Fn(String),
) -> Result<[Arc<Side>; 2], ChaosError> {
    let sides: [Arc<Side>; 2] = Default::default();
    let (records, value_bytes) = (options.records, options.value_bytes);
    let mut callers = JoinSet::new();
    for caller in 0..2 * CALLERS {
        let (at, client) = (caller % 2, clients[caller % 2].clone());
        let side = sides[at].clone();
        callers.spawn(async move {
            loop {
                let number = side.next.fetch_add(1, Ordering::Relaxed);
                if number >= records {
                    return Ok(());
                }
                let (key, value) = record(at, number, value_bytes);
                let put = client.put(NAMESPACE, key, value, PutOptions::default());
                let answer = put.await?;
                if number.is_multiple_of(SHARED) {
                    side.versions.lock().insert(number, answer.version);
                }
                side.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let (began, mut told) = (Instant::now(), Instant::now());
    loop {
        match tokio::time::timeout(LOOK_HEALED, callers.join_next()).await {
            Ok(None) => break,
            Ok(Some(ended)) => {
                let ended: Result<(), rdb_client::ClientError> =
                    ended.map_err(|error| ChaosError::because("a caller broke", error))?;
                ended.map_err(|error| {
                    ChaosError::Broken(format!("a write at a side of the cut was refused: {error}"))
                })?;
            }
            Err(_) => {}
        }
        memory.look(cluster);
        if told.elapsed() >= LOOK {
            told = Instant::now();
            let [one, two] = [0, 1].map(|side| sides[side].acknowledged.load(Ordering::Relaxed));
            tell(format!(
                "{:>7.2} s  written {one:>9} | {two:>9}  {}",
                began.elapsed().as_secs_f64(),
                memory.now()
            ));
        }
    }
    let took = began.elapsed().as_secs_f64();
    tell(format!(
        "written in {took:.1} s, {:.0} records/s",
        2.0 * records as f64 / took.max(0.001)
    ));
    Ok(sides)
}

/// What a store says of its own replica.
async fn replica(cluster: &Cluster, store: usize) -> Result<ReplicaStatus, String> {
    let status = cluster.client_of(store).replication_status(NAMESPACE).await;
    let regions = status.map_err(|error| error.to_string())?;
    let regions = regions.into_iter().filter(|it| it.region_id == DATA);
    regions
        .flat_map(|region| region.replicas)
        .find(|it| it.store_id == store as u32 + 1 && it.reachable)
        .ok_or_else(|| format!("store {} says nothing of its replica", store + 1))
}

async fn replicas(cluster: &Cluster) -> Vec<Result<ReplicaStatus, String>> {
    futures::future::join_all((0..STORES).map(|store| replica(cluster, store))).await
}

/// Up to which number the writes of each store are there.
#[derive(Default)]
struct Vector(BTreeMap<u32, u64>);

impl Vector {
    fn join(&mut self, replica: &ReplicaStatus) {
        for (origin, last) in &replica.vector {
            let known = self.0.entry(*origin).or_default();
            *known = (*known).max(*last);
        }
    }

    /// Writes that a replica does not have.
    fn missing(&self, replica: &ReplicaStatus) -> u64 {
        let of = |(origin, last): (&u32, &u64)| {
            last.saturating_sub(replica.vector.get(origin).copied().unwrap_or(0))
        };
        self.0.iter().map(of).sum()
    }
}

fn lags(replicas: &[Result<ReplicaStatus, String>], all: &Vector) -> String {
    let lags = replicas.iter().map(|replica| match replica {
        Ok(replica) => format!("{:>9}", all.missing(replica)),
        Err(_) => format!("{:>9}", "?"),
    });
    lags.collect::<Vec<_>>().join(" ")
}

/// One of the replicas, if all have everything and say the same.
fn same(replicas: &[Result<ReplicaStatus, String>], all: &Vector) -> Result<ReplicaStatus, String> {
    let replicas: Vec<&ReplicaStatus> = replicas
        .iter()
        .map(|replica| replica.as_ref().map_err(Clone::clone))
        .collect::<Result<_, _>>()?;
    let first = *replicas.first().ok_or("there are no replicas")?;
    for (store, replica) in replicas.iter().enumerate() {
        let id = store + 1;
        if replica.partial || all.missing(replica) > 0 {
            return Err(format!("store {id} misses {}", all.missing(replica)));
        }
        if replica.vector != first.vector || replica.expired_through_ms != first.expired_through_ms
        {
            return Err(format!("store {id} has seen more than store 1, or less"));
        }
        if (&replica.digest, replica.keys) != (&first.digest, first.keys) {
            return Err(format!("the digests of stores 1 and {id} differ"));
        }
    }
    Ok(first.clone())
}

/// Reads all keys at a store. Their number, if each holds what was acknowledged.
async fn read(
    client: &Client,
    options: &HealOptions,
    sides: &[Arc<Side>; 2],
) -> Result<u64, ChaosError> {
    let scan = ScanOptions {
        read: ReadOptions {
            timeout: Some(PATIENCE),
            ..ReadOptions::default()
        },
        ..ScanOptions::default()
    };
    let mut entries = client.scan(NAMESPACE, scan);
    let versions: Vec<_> = sides
        .iter()
        .map(|side| side.versions.lock().clone())
        .collect();
    // In the order of keys: those of both sides, "ready", those of one, those of the other.
    let shared = (0..options.records).step_by(SHARED as usize);
    let shared = shared.map(|number| {
        let winner = usize::from(versions[1].get(&number) > versions[0].get(&number));
        record(winner, number, options.value_bytes)
    });
    let own = (0..2).flat_map(|side| {
        let own = (0..options.records).filter(|number| !number.is_multiple_of(SHARED));
        own.map(move |number| record(side, number, options.value_bytes))
    });
    let ready = std::iter::once(("ready".to_owned(), Bytes::from_static(b"yes")));
    let mut count = 0;
    for (key, value) in shared.chain(ready).chain(own) {
        let entry = match entries.next().await {
            Some(Ok(entry)) => entry,
            Some(Err(error)) => return Err(ChaosError::because("cannot read store 3", error)),
            None => return Err(ChaosError::Broken(format!("{key} is gone"))),
        };
        if entry.key != key.as_bytes() || entry.value != value {
            return Err(ChaosError::Broken(format!(
                "instead of {key} = {:?} store 3 holds {:?} = {:?}",
                String::from_utf8_lossy(&value),
                String::from_utf8_lossy(&entry.key),
                String::from_utf8_lossy(&entry.value)
            )));
        }
        count += 1;
    }
    match entries.next().await {
        None => Ok(count),
        Some(Ok(entry)) => Err(ChaosError::Broken(format!(
            "nobody wrote {:?}",
            String::from_utf8_lossy(&entry.key)
        ))),
        Some(Err(error)) => Err(ChaosError::because("cannot read store 3", error)),
    }
}

/// Resident memory of the stores, in MiB.
#[derive(Default)]
struct Memory {
    last: [u64; STORES],
    most: [u64; STORES],
}

impl Memory {
    fn look(&mut self, cluster: &Cluster) {
        for store in 0..STORES {
            let bytes = cluster.node(store).pid().and_then(resident_bytes);
            self.last[store] = bytes.unwrap_or(0) >> 20;
            self.most[store] = self.most[store].max(self.last[store]);
        }
    }

    fn now(&self) -> String {
        let [one, two, three] = self.last;
        format!("resident {one} {two} {three} MiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(vector: &[(u32, u64)], digest: &'static [u8]) -> Result<ReplicaStatus, String> {
        Ok(ReplicaStatus {
            vector: vector.iter().copied().collect(),
            digest: Bytes::from_static(digest),
            keys: 7,
            ..Default::default()
        })
    }

    fn all() -> Vector {
        Vector([(1, 5), (2, 8)].into())
    }

    #[test]
    fn replicas_are_the_same_when_nothing_is_missing_and_nothing_differs() {
        let whole = || replica(&[(1, 5), (2, 8)], b"d");
        assert_eq!(same(&[whole(), whole(), whole()], &all()).unwrap().keys, 7);
        for other in [
            replica(&[(1, 5)], b"d"),
            replica(&[(1, 5), (2, 7)], b"d"),
            replica(&[(1, 5), (2, 8)], b"e"),
            replica(&[(1, 6), (2, 8)], b"d"),
            Err("it does not answer".to_owned()),
        ] {
            same(&[whole(), whole(), other], &all()).unwrap_err();
        }
        let behind = replica(&[(1, 4), (2, 8)], b"d");
        same(&[behind.clone(), behind.clone(), behind], &all()).unwrap_err();
    }

    #[test]
    fn the_lag_counts_the_writes_of_every_store() {
        assert_eq!(all().missing(&replica(&[(1, 2), (3, 9)], b"").unwrap()), 11);
        assert_eq!(all().missing(&replica(&[(1, 6), (2, 8)], b"").unwrap()), 0);
    }

    #[test]
    fn one_key_in_ten_is_written_on_both_sides_with_values_that_tell_them_apart() {
        let (one, two) = (record(0, 20, 30), record(1, 20, 30));
        assert_eq!((&one.0, one.1.len()), (&two.0, 30));
        assert_ne!(one.1, two.1);
        assert_ne!(record(0, 21, 30).0, record(1, 21, 30).0);
    }
}
