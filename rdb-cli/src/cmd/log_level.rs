//! `flaredb log-level`: what stores log, changed while they run.
//!
//! Owns the printing, and who is asked: every store of the cluster, or one. It is each store's own level, so each is
//! asked at its own address, and none in place of another.

use super::status::name_of;
use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use clap::Args;
use rdb_client::Client;
use rdb_proto::admin::{ClusterStatusResponse, SetLogLevelResponse};
use serde_json::json;
use std::process::ExitCode;

const LEVELS: &[&str] = &["STORE", "BEFORE", "LEVEL"];

#[derive(Args, Debug)]
pub(crate) struct LogLevel {
    /// off, error, warn, info, debug, trace, or directives: info,rdb_server::raft=debug [default: only ask]
    level: Option<String>,

    /// Only this one [default: every store of the cluster]
    #[arg(long, value_name = "ID")]
    store: Option<u32>,
}

impl LogLevel {
    pub(crate) async fn run(self, shared: &Shared) -> Result<ExitCode, Error> {
        let status = shared.client()?.cluster_status().await?;
        let stores = self.stores(&status)?;
        let level = self.level.as_deref().unwrap_or_default();
        let mut out = Output::list(shared.output, LEVELS);
        let mut failed: Option<Error> = None;
        for (id, address) in stores {
            match set(shared, &address, level).await {
                Ok(answer) => out.add(item(&answer))?,
                // The others are asked all the same: a store that is away is no reason to know less of them.
                Err(error) => {
                    exit::note(&format!("store {id} at {address}: {error}"));
                    failed.get_or_insert(error);
                }
            }
        }
        out.end()?;
        match failed {
            Some(Error::Client(error)) => Ok(ExitCode::from(exit::code(&Error::Client(error)))),
            Some(error) => Err(error),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Whom to ask, and where.
    fn stores(&self, status: &ClusterStatusResponse) -> Result<Vec<(u32, String)>, Error> {
        let all = status.stores.iter().map(name_of);
        let wanted: Vec<(u32, String)> = all
            .filter(|(id, _)| self.store.is_none_or(|store| store == *id))
            .map(|(id, address)| (id, address.to_owned()))
            .collect();
        match (self.store, wanted.is_empty()) {
            (Some(store), true) => {
                let known: Vec<String> = status
                    .stores
                    .iter()
                    .map(|store| name_of(store).0.to_string())
                    .collect();
                Err(Error::Usage(format!(
                    "there is no store {store}; the cluster has {}",
                    known.join(", ")
                )))
            }
            _ => Ok(wanted),
        }
    }
}

async fn set(shared: &Shared, address: &str, level: &str) -> Result<SetLogLevelResponse, Error> {
    let client: Client = shared.client_of(vec![address.to_owned()])?;
    Ok(client.set_log_level(level).await?)
}

fn item(answer: &SetLogLevelResponse) -> Item {
    Item {
        row: vec![
            answer.store_id.to_string(),
            answer.before.clone(),
            answer.level.clone(),
        ],
        json: json!({
            "store_id": answer.store_id,
            "before": answer.before,
            "level": answer.level,
        }),
        raw: answer.level.clone().into_bytes(),
    }
}
