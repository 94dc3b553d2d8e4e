//! A store's clock is off, jumps while it runs, and goes back: libfaketime between the process and the
//! system. The monotonic clock is left alone, as it is by whoever sets the time of a machine.
//!
//! What must hold beside the rest: the time in versions, which never goes back, does not run ahead of time.

use super::{Fault, Inflicted, Site, Step, millis};
use crate::ChaosError;
use crate::cluster::{Cluster, DATA, STORES};
use crate::dice::Dice;
use rdb_client::{Client, ClientOptions, PutOptions};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// Offsets, as libfaketime writes them.
const OFFSETS: [&str; 8] = ["+0.5", "-0.5", "+30", "-30", "+1h", "-1h", "+10y", "-10y"];

/// Versions may be that far ahead of where they were, and of the time that has passed since: twice
/// `max_clock_skew`, what a leader before may have been behind and one now may be ahead.
const BEYOND_MS: i64 = 1_000;

/// See the module.
pub(super) struct Clocks {
    store: usize,
    /// When it starts, and what it jumps to.
    offsets: [&'static str; 2],
    lasts: Duration,
}

impl Clocks {
    pub(super) fn new(dice: &mut Dice) -> Clocks {
        Clocks {
            store: dice.below(STORES as u64) as usize,
            offsets: [*dice.one_of(&OFFSETS), *dice.one_of(&OFFSETS)],
            lasts: millis(dice, 5000, 9000),
        }
    }

    /// Where libfaketime looks every second.
    fn file(&self, cluster: &Cluster) -> PathBuf {
        cluster.dir().join(format!("clock-{}", self.store + 1))
    }

    fn set(&self, cluster: &Cluster, offset: &str) -> Result<(), ChaosError> {
        let file = self.file(cluster);
        // Renamed over: it never reads half of it.
        let new = file.with_extension("new");
        fs::write(&new, format!("{offset}\n"))
            .and_then(|()| fs::rename(&new, &file))
            .map_err(|error| ChaosError::because(file.display(), error))
    }
}

/// The time in the version of a write, in milliseconds: above 12 bits of counter and 10 of store id.
/// `None`: it was not taken, which the load judges.
async fn stamp_ms(cluster: &Cluster) -> Option<i64> {
    let client = Client::new(ClientOptions::new(cluster.endpoints())).ok()?;
    let options = PutOptions {
        timeout: Some(Duration::from_secs(3)),
        ..PutOptions::default()
    };
    let put = client.put("default", "probe", "x", options).await.ok()?;
    i64::try_from(put.version >> 22).ok()
}

impl Fault for Clocks {
    fn plan(&self) -> String {
        format!(
            "store {} starts again with a clock off by {}, which jumps to {}, and back",
            self.store + 1,
            self.offsets[0],
            self.offsets[1]
        )
    }

    fn possible(&self, cluster: &Cluster) -> Result<(), String> {
        match cluster.faketime() {
            Some(_) => Ok(()),
            None => Err("libfaketime is not installed (Debian: libfaketime)".to_owned()),
        }
    }

    fn lasts(&self) -> Duration {
        self.lasts
    }

    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted> {
        Box::pin(async move {
            let leader = site.cluster.leader().await?;
            let library = site.cluster.faketime().map(|it| it.display().to_string());
            self.set(site.cluster, self.offsets[0])?;
            let file = self.file(site.cluster).display().to_string();
            let env = [
                ("LD_PRELOAD", library.unwrap_or_default()),
                ("FAKETIME_TIMESTAMP_FILE", file),
                ("FAKETIME_CACHE_DURATION", "1".to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ];
            let env = env.map(|(name, value)| (name.to_owned(), value));
            let at = Instant::now();
            site.cluster.kill(&[self.store]);
            site.cluster.node_mut(self.store).set_env(env.to_vec());
            site.cluster.launch(self.store)?;
            Ok(Inflicted {
                at,
                story: format!("store {} led", leader + 1),
            })
        })
    }

    fn watch<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, String> {
        Box::pin(async move {
            site.cluster.ready(self.store).await?;
            tokio::time::sleep(self.lasts / 3).await;
            // With this clock it leads, too, or is asked to.
            let (before, began) = (stamp_ms(site.cluster).await, Instant::now());
            let leader = site.cluster.leader().await?;
            let client = site.cluster.client_of(leader);
            let asked = client.transfer_leader(DATA, self.store as u32 + 1).await;
            tokio::time::sleep(self.lasts / 6).await;
            self.set(site.cluster, self.offsets[1])?;
            tokio::time::sleep(self.lasts / 2).await;
            self.set(site.cluster, "+0")?;
            tokio::time::sleep(self.lasts / 4).await;
            let now = stamp_ms(site.cluster).await;
            let led = match asked {
                Ok(_) => "it was made the leader, too".to_owned(),
                Err(error) => format!("it was not made the leader: {error}"),
            };
            let (Some(before), Some(now)) = (before, now) else {
                return Ok(led);
            };
            let passed_ms = began.elapsed().as_millis() as i64;
            let beyond_ms = now - before - passed_ms;
            if beyond_ms > BEYOND_MS {
                return Err(ChaosError::Broken(format!(
                    "{led}; the versions of writes ran {beyond_ms} ms ahead of time"
                )));
            }
            Ok(format!(
                "{led}; the versions of writes kept to the time ({beyond_ms:+} ms)"
            ))
        })
    }

    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()> {
        Box::pin(async move {
            site.cluster.kill(&[self.store]);
            site.cluster.node_mut(self.store).set_env(Vec::new());
            site.cluster.launch(self.store)
        })
    }
}
