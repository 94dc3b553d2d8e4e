//! `flaredb advance-clock`: has the stamps of all stores go on from the present, where the clocks of a majority were
//! behind it.
//!
//! Owns the printing, and what the present is: what this machine's clock says. Where nothing is to be done it asks
//! for nothing, and without `--yes` it only shows where the stores are: stamps never go back.

use super::status::{age, name_of};
use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use clap::Args;
use rdb_client::Client;
use rdb_proto::admin::ClusterStatusResponse;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

const CLOCKS: &[&str] = &["STORE", "STAMPS", "SKEW"];
/// Clocks that are set right differ by less.
const TOLERATED_MS: u64 = 500;
/// Between two looks whether all stores have followed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(crate) struct AdvanceClock {
    /// Do it: stamps never go back [default: only show where the stamps of each store are]
    #[arg(long)]
    yes: bool,
}

impl AdvanceClock {
    pub(crate) async fn run(self, shared: &Shared) -> Result<ExitCode, Error> {
        let client = shared.client()?;
        let now_ms = present_unix_ms();
        let status = client.cluster_status().await?;
        let late = behind(&status, now_ms.saturating_sub(TOLERATED_MS));
        if late == 0 || !self.yes {
            show(shared, &status, now_ms)?;
            exit::note(&match late {
                0 => "flaredb: no store's stamps are behind this machine's clock, so there is nothing to advance".to_owned(),
                late => format!(
                    "flaredb: the stamps of {late} stores are behind this machine's clock. Set their clocks right (NTP), and they follow. \
                     Where that cannot be, and this machine's is right: `flaredb advance-clock --yes`; what has a TTL that ends \
                     before the present then expires"
                ),
            });
            return Ok(ExitCode::SUCCESS);
        }
        client.advance_clock(now_ms).await?;
        let status = followed(&client, now_ms, shared.timeout).await?;
        show(shared, &status, now_ms)?;
        match behind(&status, now_ms) {
            0 => Ok(ExitCode::SUCCESS),
            late => {
                exit::note(&format!(
                    "flaredb: {late} stores have not followed yet; they do as soon as they hear of it"
                ));
                Ok(ExitCode::from(exit::UNAVAILABLE))
            }
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the operator's machine says what the present is; nothing of the store runs here"
)]
fn present_unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Where each store's stamps are; `None`: not known, it is not reachable or too old to say.
fn stamps(status: &ClusterStatusResponse) -> impl Iterator<Item = (u32, Option<u64>, Option<i64>)> {
    status.stores.iter().map(|store| {
        let clock = store.status.as_ref().and_then(|status| status.clock);
        let hybrid_ms = clock.map(|clock| clock.hybrid_unix_ms);
        let skew_ms = clock.and_then(|clock| clock.skew_ms);
        (name_of(store).0, hybrid_ms.filter(|ms| *ms > 0), skew_ms)
    })
}

/// How many stores' stamps are before that time.
fn behind(status: &ClusterStatusResponse, unix_ms: u64) -> usize {
    stamps(status)
        .filter(|(_, hybrid_ms, _)| hybrid_ms.is_some_and(|ms| ms < unix_ms))
        .count()
}

/// What the stores say once all have followed, or time is up.
async fn followed(
    client: &Client,
    to_unix_ms: u64,
    timeout: Duration,
) -> Result<ClusterStatusResponse, Error> {
    let until = Instant::now() + timeout;
    loop {
        let status = client.cluster_status().await?;
        if behind(&status, to_unix_ms) == 0 || Instant::now() >= until {
            return Ok(status);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn show(shared: &Shared, status: &ClusterStatusResponse, now_ms: u64) -> Result<(), Error> {
    let mut out = Output::list(shared.output, CLOCKS);
    for (store, hybrid_ms, skew_ms) in stamps(status) {
        let place = match hybrid_ms {
            None => "not known".to_owned(),
            Some(ms) if ms < now_ms => format!("{} behind this machine", age(now_ms - ms)),
            Some(ms) => format!("{} ahead of this machine", age(ms - now_ms)),
        };
        out.add(Item {
            row: vec![
                store.to_string(),
                place.clone(),
                skew_ms.map_or_else(|| "not known".to_owned(), |ms| format!("{ms}ms")),
            ],
            json: json!({
                "store_id": store,
                "hybrid_unix_ms": hybrid_ms.map(|ms| ms.to_string()),
                "machine_unix_ms": now_ms.to_string(),
                "skew_ms": skew_ms,
            }),
            raw: place.into_bytes(),
        })?;
    }
    out.end()
}
