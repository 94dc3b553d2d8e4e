//! The story of the demo, step by step, with a measured number for each.
//!
//! Owns the order of events and what is said of them. What clients do is `load`, what a store that is
//! cut off is asked is `cut`, whether the promises held is `judge`.

use super::cart::{self, Cart};
use super::cluster::Cluster;
use super::cut::{self, CutOff};
use super::failed;
use super::judge::{Digests, Evidence};
use super::load::transfers::{self, balance};
use super::load::{CLIENTS, Load, NAMESPACE, Shared, orders};
use super::screen::{Screen, grouped, spent};
use super::switching::{self, Switched};
use super::view::View;
use crate::exit::Error;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use rdb_check::convergence::Replica;
use rdb_client::{Client, ClientError, KeyValue, PutOptions, ReadOptions, ScanOptions};
use rdb_server::config::Config;
use rdb_types::{Mode, StoreId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Records that are loaded before anything breaks.
const RECORDS: u64 = 20_000;
const RECORD_BYTES: usize = 256;
const RECORD_PREFIX: &str = "record/";
/// Writers at the same time while they are loaded.
const LOADERS: usize = 256;

/// How long anything may take that the cluster does by itself, before the story gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Tells it all, with `phase` of load between the events. What it gives back is to be judged.
pub(super) async fn tell(
    screen: &Screen,
    cluster: &mut Cluster,
    phase: Duration,
) -> Result<Evidence, Error> {
    let shared = begin(screen, cluster).await?;
    let records = fill(screen, &shared.client).await?;
    let load = Load::start(&shared);
    under_load(screen, &shared, phase).await?;
    let leader_lost = kill_the_leader(screen, cluster, &shared, phase).await?;
    let (cut, cart) = cut_the_leader_off(screen, cluster, &shared, phase).await?;
    let switched = switching::there_and_back(screen, cluster, phase).await?;
    switching::tell(screen, &switched)?;
    screen.doing("letting the clients finish");
    load.finish().await.map_err(failed)?;
    let broke = Broke {
        leader_lost,
        cut,
        cart,
        switched,
    };
    gather(screen, cluster, &shared, records, broke).await
}

/// What was seen while things broke and changed.
struct Broke {
    leader_lost: Option<Duration>,
    cut: CutOff,
    cart: Cart,
    switched: Switched,
}

async fn begin(screen: &Screen, cluster: &mut Cluster) -> Result<Arc<Shared>, Error> {
    let stores = cluster
        .ids()
        .into_iter()
        .map(|store| format!("{store} at {}", cluster.addr(store)));
    screen.say(format!(
        "starting stores {}",
        stores.collect::<Vec<_>>().join(", ")
    ))?;
    screen.doing("waiting for the stores to form a cluster");
    let began = Instant::now();
    cluster.start().await?;
    let client = cluster.client()?;
    let leader = leader(&client).await?;
    screen.say(format!(
        "ready after {}: one cluster of 3, store {leader} leads",
        spent(began.elapsed())
    ))?;

    client
        .create_namespace(NAMESPACE, Some(Mode::Strong), None)
        .await?;
    transfers::open_accounts(&client).await?;
    cart::open(cluster, &client).await?;
    screen.say(format!(
        "created namespace {NAMESPACE}, mode strong, and namespace {}, mode eventual",
        cart::NAMESPACE
    ))?;
    let probes = cluster
        .ids()
        .into_iter()
        .map(|store| Ok((store, cluster.probe(store)?)));
    Ok(Shared::new(
        client,
        probes.collect::<Result<_, ClientError>>()?,
    ))
}

/// Loads the records; how many were acknowledged.
async fn fill(screen: &Screen, client: &Client) -> Result<u64, Error> {
    let bar = screen.counting("loading records", RECORDS);
    let began = Instant::now();
    let writes = stream::iter(0..RECORDS).map(|number| {
        let client = client.clone();
        async move {
            let key = format!("{RECORD_PREFIX}{number:08}");
            client
                .put(NAMESPACE, key, record(number), PutOptions::default())
                .await
        }
    });
    let mut writes = writes.buffer_unordered(LOADERS);
    while writes.try_next().await?.is_some() {
        bar.inc(1);
    }
    let took = began.elapsed();
    let per_second = (RECORDS as f64 / took.as_secs_f64()) as u64;
    screen.say(format!(
        "loaded {} records of {RECORD_BYTES} bytes in {}: {} writes/s from {LOADERS} callers, each synced on a quorum before it was acknowledged",
        grouped(RECORDS),
        spent(took),
        grouped(per_second)
    ))?;
    Ok(RECORDS)
}

/// Some bytes that tell the record's number.
fn record(number: u64) -> Bytes {
    let mut text = format!("record {number} ");
    while text.len() < RECORD_BYTES {
        text.push((b'a' + ((number as usize + text.len()) % 26) as u8) as char);
    }
    text.into()
}

async fn under_load(screen: &Screen, shared: &Shared, phase: Duration) -> Result<(), Error> {
    screen.doing(format!("{CLIENTS} clients at work"));
    let began = Instant::now();
    sleep(phase).await;
    let seen = shared.acks.between(began, Instant::now());
    screen.say(format!(
        "{CLIENTS} clients at an easy pace, with every call recorded: {} writes/s, median {}, p99 {}",
        grouped(seen.per_second),
        spent(seen.median),
        spent(seen.p99)
    ))
}

/// Kills it, lets the others go on, brings it back. Answers for how long no write was acknowledged.
async fn kill_the_leader(
    screen: &Screen,
    cluster: &mut Cluster,
    shared: &Shared,
    phase: Duration,
) -> Result<Option<Duration>, Error> {
    let victim = leader(&shared.client).await?;
    let errors = errors(shared);
    screen.doing(format!("store {victim} is dead, clients go on"));
    let killed = Instant::now();
    cluster.kill(victim);
    screen.say(format!(
        "killed store {victim}, the leader, in the middle of its work"
    ))?;
    while !shared.acks.any_begun_after(killed) {
        if killed.elapsed() > PATIENCE {
            return Ok(None);
        }
        sleep(Duration::from_millis(1)).await;
    }
    sleep(phase).await;
    let seen = shared.acks.between(killed, Instant::now());
    let now = leader(&shared.client).await?;
    let (refused, unknown) = errors_since(shared, errors);
    screen.say(format!(
        "store {now} leads now; no write was acknowledged for {}, {} were since; clients met {refused} refusals and {unknown} unknown outcomes",
        spent(seen.longest_pause),
        grouped(seen.count)
    ))?;

    screen.doing(format!("store {victim} comes back"));
    let began = Instant::now();
    let goal = View::ask(&shared.client)
        .await
        .map(|view| view.committed())
        .unwrap_or_default();
    cluster.start().await?;
    let caught_up = View::wait(&shared.client, PATIENCE, |view| {
        view.has_applied(victim, &goal).then_some(())
    })
    .await;
    caught_up.ok_or_else(|| {
        failed(format!(
            "store {victim} did not catch up within {} s of its return",
            PATIENCE.as_secs()
        ))
    })?;
    screen.say(format!(
        "started store {victim} again on its data: back and caught up after {}",
        spent(began.elapsed())
    ))?;
    Ok(Some(seen.longest_pause))
}

async fn cut_the_leader_off(
    screen: &Screen,
    cluster: &Cluster,
    shared: &Shared,
    phase: Duration,
) -> Result<(CutOff, Cart), Error> {
    let victim = leader(&shared.client).await?;
    let others: Vec<StoreId> = cluster
        .ids()
        .into_iter()
        .filter(|&store| store != victim)
        .collect();
    let errors = errors(shared);
    screen.say(format!(
        "cutting store {victim}, which leads, off from the others; clients still reach all three"
    ))?;
    screen.doing(format!("store {victim} is cut off, clients go on"));
    let how_long = Config::default().consistency.quorum_timeout + phase;
    let (seen, sides) = tokio::join!(
        cut::watch(cluster, shared, victim, how_long),
        cart::write_on_both_sides(cluster, victim, phase)
    );
    let (seen, sides) = (seen?, sides?);
    match &seen.others_wrote_after {
        Ok(after) => screen.say(format!(
            "the other two have a leader of their own, and write again {} after the cut",
            spent(*after)
        ))?,
        Err(error) => screen.say(format!("the other two take no writes: {error}"))?,
    }
    match &seen.refusal {
        Some(refusal) => screen.say(format!(
            "store {victim} answers writes with NO_QUORUM {} after the cut (reached {} of {} needed), and linearizable reads too ({} refused)",
            spent(refusal.after),
            refusal.reached,
            refusal.needed,
            seen.reads_refused
        ))?,
        None => screen.say(format!("store {victim} never said NO_QUORUM"))?,
    }
    if let Some(last) = seen.stale_reads.last() {
        screen.say(format!(
            "its stale reads go on: the last returned what had been overwritten {} before, and said \"at most {} old\"",
            spent(last.age),
            spent(last.bound)
        ))?;
    }

    cart::tell(screen, &sides)?;

    let elsewhere = cluster.client_of(&others)?;
    let goal = View::ask(&elsewhere)
        .await
        .map(|view| view.committed())
        .unwrap_or_default();
    screen.doing("the cut is healed");
    let began = Instant::now();
    cluster.heal();
    let ((caught_up, took), converged) = tokio::join!(
        async {
            let caught_up = View::wait(&elsewhere, PATIENCE, |view| {
                view.has_applied(victim, &goal).then_some(())
            });
            (caught_up.await, began.elapsed())
        },
        cart::converge(&elsewhere, began)
    );
    caught_up.ok_or_else(|| {
        failed(format!(
            "store {victim} did not catch up within {} s of the healing",
            PATIENCE.as_secs()
        ))
    })?;
    let (refused, unknown) = errors_since(shared, errors);
    screen.say(format!(
        "healed: store {victim} caught up after {}; meanwhile clients met {refused} refusals and {unknown} unknown outcomes",
        spent(took)
    ))?;
    cart::tell_converged(screen, &converged)?;
    let cart = cart::gather(screen, cluster, shared, sides, converged).await?;
    Ok((seen, cart))
}

/// Reads everything once more: through the cluster what clients can know, and each store's own copy.
async fn gather(
    screen: &Screen,
    cluster: &Cluster,
    shared: &Shared,
    records: u64,
    broke: Broke,
) -> Result<Evidence, Error> {
    screen.doing("comparing the stores");
    let digests = View::wait(&shared.client, PATIENCE, |view| {
        view.is_settled(cluster).then(|| {
            cluster
                .ids()
                .into_iter()
                .map(|store| (store, view.digests(store, NAMESPACE)))
                .collect::<Vec<_>>()
        })
    });
    let digests: Vec<(StoreId, Result<Digests, String>)> = digests.await.unwrap_or_else(|| {
        let why = format!(
            "the stores had not applied the same within {} s of the last write",
            PATIENCE.as_secs()
        );
        cluster
            .ids()
            .into_iter()
            .map(|store| (store, Err(why.clone())))
            .collect()
    });
    let mut replicas = Vec::new();
    for (store, digest) in digests {
        let scan = scan(&cluster.probe(store)?, "", ReadOptions::stale(), false).await;
        let scan = scan.map(|entries| {
            entries
                .into_iter()
                .map(|entry| (entry.key, entry.value))
                .collect()
        });
        replicas.push(Replica {
            name: format!("store {store}"),
            digest,
            scan: scan.map_err(|error| error.to_string()),
        });
    }
    let fresh = |prefix, keys_only| {
        scan(
            &shared.client,
            prefix,
            ReadOptions::linearizable(),
            keys_only,
        )
    };
    let orders_found: BTreeSet<String> = fresh(orders::PREFIX, true)
        .await?
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.key).into_owned())
        .collect();
    let found = fresh(RECORD_PREFIX, false).await?;
    let records_found = found
        .iter()
        .zip(0..)
        .filter(|(entry, number)| entry.value == record(*number))
        .count() as u64;
    let balances = fresh(transfers::PREFIX, false)
        .await?
        .iter()
        .map(|entry| balance(&entry.value))
        .collect();
    screen.say(format!(
        "stopped the clients after {} writes; read everything back, on each store",
        grouped(shared.acks.count())
    ))?;
    screen.doing("checking the histories");
    Ok(Evidence {
        calls: shared.recorder.calls(),
        orders: std::mem::take(&mut *shared.orders.lock()),
        orders_found,
        records,
        records_found,
        bank: std::mem::take(&mut *shared.bank.lock()),
        balances,
        cut: broke.cut,
        cart: broke.cart,
        switched: broke.switched,
        quorum_timeout: Config::default().consistency.quorum_timeout,
        leader_lost: broke.leader_lost,
        replicas,
    })
}

async fn scan(
    client: &Client,
    prefix: &'static str,
    read: ReadOptions,
    keys_only: bool,
) -> Result<Vec<KeyValue>, ClientError> {
    let options = ScanOptions {
        prefix: Bytes::from_static(prefix.as_bytes()),
        keys_only,
        read,
        ..ScanOptions::default()
    };
    client.scan(NAMESPACE, options).try_collect().await
}

async fn leader(client: &Client) -> Result<StoreId, Error> {
    let leader = View::wait(client, PATIENCE, View::leader).await;
    leader.ok_or_else(|| failed(format!("no store led within {} s", PATIENCE.as_secs())))
}

/// Refusals and unknown outcomes so far.
fn errors(shared: &Shared) -> (u64, u64) {
    (
        shared.refused.load(Ordering::Relaxed),
        shared.unknown.load(Ordering::Relaxed),
    )
}

fn errors_since(shared: &Shared, before: (u64, u64)) -> (u64, u64) {
    let now = errors(shared);
    (now.0 - before.0, now.1 - before.1)
}
