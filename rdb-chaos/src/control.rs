//! The harness judged: it must pass a store that is right, and catch a client that is wrong.
//!
//! The same load and the same judge as in a run. Once against a healthy three-node etcd; once against
//! FlareDB through clients that take `stale` reads for linearizable ones, while a follower is cut off.

use crate::ChaosError;
use crate::cluster::{Cluster, ClusterOptions, STORES};
use crate::etcd::EtcdRegisters;
use crate::load::judge::judge_history;
use crate::load::{Load, LoadOptions};
use crate::registers::FlareDb;
use crate::run::load_options;
use rdb_bench::etcd::{self, Etcd};
use rdb_check::Verdict;
use std::time::Duration;

/// Writes that a control sees, at least.
const WRITES: usize = 600;
/// Reads at the store that is cut off, at least.
const READS_BEHIND_THE_CUT: usize = 6;

fn options(seed: u64) -> LoadOptions {
    LoadOptions {
        keys: 5,
        ..load_options(seed)
    }
}

/// A healthy etcd passes. `None`: there is none on this machine.
///
/// # Errors
///
/// When it does not run, or does not pass.
pub async fn healthy_etcd(seed: u64) -> Result<Option<String>, ChaosError> {
    let Some(program) = etcd::find() else {
        return Ok(None);
    };
    let harness = |error| ChaosError::because("etcd", error);
    let started = Etcd::start(&program).await.map_err(harness)?;
    let nodes = started.caller_at_each_node().await.map_err(harness)?;
    let nodes: Vec<EtcdRegisters> = nodes.into_iter().map(EtcdRegisters).collect();
    let options = options(seed);
    let clients =
        (0..options.clients + options.pinned).map(|number| nodes[number % nodes.len()].clone());
    let load = Load::start(clients.collect(), options);
    load.more(WRITES).await?;
    let judgement = load.stop().await.judge(&nodes).await?;
    Ok(Some(judgement.to_string()))
}

/// Clients that take stale reads for linearizable ones are caught, with a follower cut off.
///
/// # Errors
///
/// When they are not: the harness proves nothing.
pub async fn stale_reads(seed: u64, cluster: &ClusterOptions) -> Result<String, ChaosError> {
    let cluster = Cluster::start(cluster).await?;
    let options = LoadOptions {
        // A write at the store that is cut off hangs as long, and a read has its turn after it.
        timeout: Duration::from_secs(2),
        ..options(seed)
    };
    let clients = FlareDb::clients(&cluster.endpoints(), &options)?;
    let broken = clients
        .into_iter()
        .map(FlareDb::taking_stale_for_linearizable);
    // The pinned ones come last, one for each store.
    let roaming = options.clients as u64;
    let load = Load::start(broken.collect(), options);
    load.more(WRITES / 4).await?;
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % STORES;
    for other in (0..STORES).filter(|other| *other != follower) {
        cluster.network().cut(follower, other)?;
        cluster.network().cut(other, follower)?;
    }
    load.more(WRITES / 2).await?;
    // Its own client may hang in its writes for as long as the others need for theirs. A read of it now is
    // mostly of a key that was written since the cut; a key that is new by then may not have been.
    let at_follower = roaming + follower as u64;
    load.more_reads_of(at_follower, READS_BEHIND_THE_CUT)
        .await?;
    cluster.network().heal()?;
    load.more(WRITES / 4).await?;
    let calls = load.stop().await.calls();
    let count = calls.len();
    match judge_history(calls).await? {
        Verdict::NotLinearizable(explanation) => {
            Ok(format!("{count} calls: not linearizable: {explanation}"))
        }
        verdict => Err(ChaosError::Broken(format!(
            "a client that takes stale reads for linearizable ones was not caught in {count} calls: \
             {verdict}; the harness proves nothing"
        ))),
    }
}
