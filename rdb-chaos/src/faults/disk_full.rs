//! A store's disk has no room left. It refuses what it has no room for, and does not end; the others go on. Once
//! there is room again, it catches up by itself.
//!
//! A store takes room in advance, so it does not notice at once: large values are written until it has
//! used that up.

use super::{Fault, Inflicted, Site, Step, millis};
use crate::ChaosError;
use crate::cluster::{Cluster, STORES};
use crate::dice::Dice;
use rdb_client::{Client, ClientOptions, PutOptions, ReadOptions};
use std::time::Duration;
use tokio::time::Instant;

/// Of one value; it does not compress.
const LARGE: usize = 256 << 10;
/// More than a store takes in advance.
const ENOUGH: usize = 160 << 20;
/// Until that is written.
const LONGEST: Duration = Duration::from_secs(25);

/// See the module.
pub(super) struct DiskFull {
    store: usize,
    dice: Dice,
    lasts: Duration,
}

impl DiskFull {
    pub(super) fn new(dice: &mut Dice) -> DiskFull {
        DiskFull {
            store: dice.below(STORES as u64) as usize,
            dice: Dice::new(dice.draw()),
            lasts: millis(dice, 3000, 8000),
        }
    }
}

impl DiskFull {
    fn value(&mut self) -> Vec<u8> {
        let words = (0..LARGE / 8).map(|_| self.dice.draw().to_le_bytes());
        words.flatten().collect()
    }

    fn still_runs(&self, site: &mut Site<'_>) -> Result<(), ChaosError> {
        match site.cluster.node_mut(self.store).ended()? {
            None => Ok(()),
            Some(status) => Err(ChaosError::Broken(format!(
                "store {} ended with {status}, because its disk was full: {}",
                self.store + 1,
                site.cluster
                    .node(self.store)
                    .log_since_start()
                    .lines()
                    .last()
                    .unwrap_or_default()
            ))),
        }
    }
}

impl Fault for DiskFull {
    fn plan(&self) -> String {
        let (store, lasts) = (self.store + 1, self.lasts);
        format!("the disk of store {store} is full for {lasts:.1?}")
    }

    fn possible(&self, cluster: &Cluster) -> Result<(), String> {
        match cluster.disks() {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("no small disk: {why}")),
        }
    }

    fn lasts(&self) -> Duration {
        self.lasts
    }

    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted> {
        Box::pin(async move {
            let leader = site.cluster.leader().await?;
            let at = Instant::now();
            if let Ok(disks) = site.cluster.disks() {
                disks.fill(self.store)?;
            }
            Ok(Inflicted {
                at,
                story: format!("store {} led", leader + 1),
            })
        })
    }

    fn watch<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, String> {
        Box::pin(async move {
            // Through the others: this one may hang.
            let mut endpoints = site.cluster.endpoints();
            endpoints.remove(self.store);
            let writer = Client::new(ClientOptions::new(endpoints))
                .map_err(|error| ChaosError::because("no client", error))?;
            let (began, mut written) = (Instant::now(), 0);
            while began.elapsed() < self.lasts || (written < ENOUGH && began.elapsed() < LONGEST) {
                // A few keys: they take no more room in the end.
                let key = format!("large/{}", written / LARGE % 8);
                let options = PutOptions {
                    timeout: Some(Duration::from_secs(2)),
                    ..PutOptions::default()
                };
                let value = self.value();
                // That writes go on is judged by the load.
                let _ = writer.put("default", key, value, options).await;
                written += LARGE;
                self.still_runs(site)?;
            }
            let client = site.cluster.client_of(self.store);
            Ok(
                match client.get("default", "probe", ReadOptions::stale()).await {
                    Ok(_) => format!("it goes on and reads, {} MiB later", written >> 20),
                    Err(error) => format!("it goes on; a read: {error}"),
                },
            )
        })
    }

    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()> {
        Box::pin(async move {
            if let Ok(disks) = site.cluster.disks() {
                disks.empty(self.store)?;
            }
            // It may have ended in this very moment, and be found so a little later.
            tokio::time::sleep(Duration::from_millis(300)).await;
            self.still_runs(site)
        })
    }
}
