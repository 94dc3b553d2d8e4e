//! The eventual half: a namespace that both sides of a cut write to.
//!
//! Owns what its clients do while the cut lasts, how long the stores take to agree after it, and the
//! reading back. Judges nothing.

use super::cluster::Cluster;
use super::load::Shared;
use super::screen::{Screen, grouped, spent};
use super::story::PATIENCE;
use crate::cmd::verify::cut::{Came, Cut};
use crate::cmd::verify::hexadecimal;
use crate::exit::Error;
use bytes::Bytes;
use futures::TryStreamExt;
use rdb_check::convergence::Replica;
use rdb_client::{Client, ClientError, KeyValue, PutOptions, ScanOptions};
use rdb_types::{Mode, StoreId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Its name.
pub(super) const NAMESPACE: &str = "cart";

/// Keys that both sides write, over and over.
const CONTESTED: u64 = 20;
/// What their names begin with.
pub(super) const CONTESTED_PREFIX: &str = "shared/";
/// Between two writes of one side.
const PACE: Duration = Duration::from_millis(2);
/// Between two looks at how far the stores are.
const POLL: Duration = Duration::from_millis(20);
/// Conflicts that are shown.
const SHOWN: usize = 3;

/// What a store holds at a cut: regions with the writes applied and the digest.
pub(super) type Digests = Vec<(u64, String, String)>;

/// What was seen.
#[derive(Debug)]
pub(super) struct Cart {
    /// The store that was cut off, and one of the others.
    pub(super) sides: Vec<Side>,
    /// From the healing until all stores had applied the same writes, or why they had not.
    pub(super) converged: Result<Duration, String>,
    /// What is listed as lost: key and value.
    pub(super) conflicts: Vec<(Bytes, Bytes)>,
    /// Each store's own copy.
    pub(super) replicas: Vec<Replica<Digests, Bytes, Bytes>>,
}

/// What one side of the cut wrote.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) store: StoreId,
    /// The last acknowledged value of each key, and its version.
    pub(super) acknowledged: BTreeMap<String, (String, u64)>,
    /// Acknowledged writes.
    pub(super) writes: u64,
    /// The first write that was not, and why.
    pub(super) refused: Option<String>,
}

/// Creates the namespace and makes sure that every store serves it.
pub(super) async fn open(cluster: &Cluster, client: &Client) -> Result<(), Error> {
    client
        .create_namespace(NAMESPACE, Some(Mode::Eventual), None)
        .await?;
    for store in cluster.ids() {
        // A store that has not heard of the namespace yet would need the others for its first write.
        let there = cluster.client_of(&[store])?;
        let key = format!("open/{store}");
        there
            .put(NAMESPACE, key, "open", PutOptions::default())
            .await?;
    }
    Ok(())
}

/// Waits for the cut, then writes on both sides of it for so long.
pub(super) async fn write_on_both_sides(
    cluster: &Cluster,
    alone: StoreId,
    how_long: Duration,
) -> Result<Vec<Side>, Error> {
    let ids = cluster.ids();
    let other = ids.into_iter().find(|&store| store != alone);
    let stores = [Some(alone), other].into_iter().flatten();
    let clients = stores
        .map(|store| Ok((store, cluster.probe(store)?)))
        .collect::<Result<Vec<_>, ClientError>>()?;
    while cluster.cut_from(alone).is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    let until = Instant::now() + how_long;
    let sides = clients
        .iter()
        .map(|(store, client)| write(*store, client, until));
    Ok(futures::future::join_all(sides).await)
}

async fn write(store: StoreId, client: &Client, until: Instant) -> Side {
    let mut side = Side {
        store,
        acknowledged: BTreeMap::new(),
        writes: 0,
        refused: None,
    };
    for number in 0u64.. {
        // Every contested key once, however short the time is.
        if number >= 2 * CONTESTED && Instant::now() > until {
            break;
        }
        let key = if number % 2 == 0 {
            format!("{CONTESTED_PREFIX}{:02}", number / 2 % CONTESTED)
        } else {
            format!("store-{store}/{number:06}")
        };
        let value = format!("{number} from store {store}");
        let put = client.put(NAMESPACE, key.clone(), value.clone(), PutOptions::default());
        match put.await {
            Ok(answer) => {
                side.writes += 1;
                side.acknowledged.insert(key, (value, answer.version));
            }
            Err(error) => {
                side.refused.get_or_insert_with(|| error.to_string());
                break;
            }
        }
        sleep(PACE).await;
    }
    side
}

/// Waits until all stores have applied the same writes; `healed` is when they could begin to.
pub(super) async fn converge(client: &Client, healed: Instant) -> Result<Duration, String> {
    loop {
        let why = match client.replication_status(NAMESPACE).await {
            Ok(regions) => {
                let cut = Cut::of(regions, None);
                if cut.came == Came::Equal {
                    return Ok(healed.elapsed());
                }
                let behind = cut.regions.iter().flat_map(|region| &region.replicas);
                let behind: u64 = behind.map(|replica| replica.lag_writes).sum();
                format!("{} writes are still missing somewhere", grouped(behind))
            }
            Err(error) => error.to_string(),
        };
        if healed.elapsed() > PATIENCE {
            return Err(why);
        }
        sleep(POLL).await;
    }
}

/// Reads it all back, on each store.
pub(super) async fn gather(
    screen: &Screen,
    cluster: &Cluster,
    shared: &Shared,
    sides: Vec<Side>,
    converged: Result<Duration, String>,
) -> Result<Cart, Error> {
    let mut conflicts = Vec::new();
    let mut listing = shared.client.list_conflicts(NAMESPACE, "", 0).await?;
    while let Some(conflict) = listing.next().await? {
        conflicts.push((conflict.key, conflict.value));
    }
    let status = shared.client.replication_status(NAMESPACE).await?;
    let cut = Cut::of(status, None);
    let mut replicas = Vec::new();
    for store in cluster.ids() {
        let digests = cut.regions.iter().filter_map(|region| {
            let mut replicas = region.replicas.iter();
            let replica = replicas.find(|it| it.store_id == u32::from(store.get()))?;
            let digest = hexadecimal(&replica.digest);
            Some((region.id, region.cut_of(replica), digest))
        });
        let scan = cluster
            .probe(store)?
            .scan(NAMESPACE, ScanOptions::default());
        let scan: Result<Vec<KeyValue>, ClientError> = scan.try_collect().await;
        let scan = scan.map(|entries| {
            let entries = entries.into_iter();
            entries.map(|entry| (entry.key, entry.value)).collect()
        });
        replicas.push(Replica {
            name: format!("store {store}"),
            digest: Ok(digests.collect()),
            scan: scan.map_err(|error| error.to_string()),
        });
    }
    let shown = conflicts.iter().take(SHOWN).map(|(key, value)| {
        let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        format!("{key} = \"{value}\"")
    });
    screen.say(format!(
        "{NAMESPACE}: {} concurrent writes lost to newer ones and are listed: {}, ...",
        conflicts.len(),
        shown.collect::<Vec<_>>().join(", ")
    ))?;
    Ok(Cart {
        sides,
        converged,
        conflicts,
        replicas,
    })
}

/// Says what the sides wrote.
pub(super) fn tell(screen: &Screen, sides: &[Side]) -> Result<(), Error> {
    let sides: Vec<String> = sides
        .iter()
        .map(|side| format!("store {} took {}", side.store, grouped(side.writes)))
        .collect();
    screen.say(format!(
        "{NAMESPACE}, eventual, is written on both sides of the cut meanwhile: {}",
        sides.join(", ")
    ))
}

/// Says how long the stores took to agree.
pub(super) fn tell_converged(
    screen: &Screen,
    converged: &Result<Duration, String>,
) -> Result<(), Error> {
    match converged {
        Ok(after) => screen.say(format!(
            "{NAMESPACE}: all stores had exchanged what both sides wrote {} after the healing",
            spent(*after)
        )),
        Err(why) => screen.say(format!("{NAMESPACE}: the stores do not agree: {why}")),
    }
}
