//! `flaredb verify`: whether all replicas of a namespace hold the same data.
//!
//! Owns the asking, the printing and the exit code; what can be compared, and what it says, is
//! `verify/cut.rs`.

pub(crate) mod cut;

use super::ns::mode;
use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use cut::{Came, Cut, State};
use rdb_client::Client;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Arguments of `verify`.
#[derive(clap::Args, Debug)]
pub(crate) struct Verify {
    /// The namespace
    name: String,
}

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(100);

const REPLICA: &[&str] = &["REGION", "STORE", "MODE", "CUT", "KEYS", "DIGEST", "STATE"];

impl Verify {
    pub(crate) async fn run(self, shared: &Shared) -> Result<ExitCode, Error> {
        let client = shared.client()?;
        let came = look(&client, &self.name, shared.timeout).await?;
        let mut out = Output::list(shared.output, REPLICA);
        for region in &came.regions {
            for replica in &region.replicas {
                let store = replica.store_id;
                let digest = hexadecimal(&replica.digest);
                let cut = region.cut_of(replica);
                let state = region.state_of(replica);
                out.add(Item {
                    row: vec![
                        region.id.to_string(),
                        store.to_string(),
                        mode(region.mode).to_owned(),
                        cut.clone(),
                        replica.keys.to_string(),
                        digest.clone(),
                        state.as_str().to_owned(),
                    ],
                    json: json!({
                        "region_id": region.id.to_string(),
                        "store_id": store,
                        "mode": mode(region.mode),
                        "cut": cut,
                        "keys": replica.keys.to_string(),
                        "digest": digest,
                        "state": state.as_str(),
                    }),
                    raw: format!("{}\t{store}\t{digest}\t{}", region.id, state.as_str())
                        .into_bytes(),
                })?;
            }
        }
        out.end()?;
        Ok(tell(&self.name, &came, shared.timeout))
    }
}

/// Asks until all replicas can be compared, or the time is up.
async fn look(client: &Client, name: &str, patience: Duration) -> Result<Cut, Error> {
    let give_up = Instant::now() + patience;
    let mut before = None;
    loop {
        let cut = Cut::of(client.replication_status(name).await?, before.as_ref());
        if cut.came != Came::Apart || Instant::now() + AGAIN >= give_up {
            return Ok(cut);
        }
        before = Some(cut);
        sleep(AGAIN).await;
    }
}

fn tell(name: &str, cut: &Cut, patience: Duration) -> ExitCode {
    match cut.came {
        Came::Equal => {
            exit::note(&format!(
                "flaredb: all replicas of {name} hold the same data"
            ));
            ExitCode::SUCCESS
        }
        Came::Different => {
            exit::note(&format!(
                "flaredb: replicas of {name} that have applied the same writes hold DIFFERENT data: a defect, or a damaged disk. \
                 An eventual namespace repairs itself within seconds (see the log of the stores); of a strong one keep the data and report it"
            ));
            ExitCode::from(exit::ERROR)
        }
        Came::Apart => {
            let states = cut
                .regions
                .iter()
                .flat_map(|region| region.replicas.iter().map(|it| region.state_of(it)));
            let away = states.into_iter().any(|state| state == State::Unreachable);
            let why = if away {
                "a store does not answer: start it again, or check the network to it"
            } else {
                "replicas have not applied the same writes yet: give it more time (--timeout), or a moment without writes"
            };
            exit::note(&format!(
                "flaredb: the replicas of {name} could not be compared within {patience:?}: {why}"
            ));
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
