//! `flaredb reload`: has stores read their configuration again.
//!
//! Owns the printing. It is a store's own configuration that is read, so each of `--endpoints` is asked, and
//! none in place of another.

use crate::args::Shared;
use crate::exit::Error;
use crate::output::{Item, Output};
use rdb_proto::admin::ReloadResponse;
use serde_json::json;
use std::process::ExitCode;

const RELOADED: &[&str] = &["STORE", "CHANGED", "WAITS FOR A RESTART", "WARNINGS"];

pub(crate) async fn run(shared: &Shared) -> Result<ExitCode, Error> {
    let mut out = Output::list(shared.output, RELOADED);
    for endpoint in &shared.endpoints {
        let client = shared.client_of(vec![endpoint.clone()])?;
        match client.reload().await {
            Ok(reloaded) => out.add(item(&reloaded))?,
            Err(error) => {
                // Those before it have done it.
                out.end()?;
                return Err(error.into());
            }
        }
    }
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

fn item(reloaded: &ReloadResponse) -> Item {
    let cell = |lines: &[String]| match lines {
        [] => "nothing".to_owned(),
        lines => lines.join("\n"),
    };
    Item {
        row: vec![
            reloaded.store_id.to_string(),
            cell(&reloaded.changed),
            cell(&reloaded.waiting),
            cell(&reloaded.warnings),
        ],
        json: json!({
            "store_id": reloaded.store_id,
            "changed": reloaded.changed,
            "waiting": reloaded.waiting,
            "warnings": reloaded.warnings,
        }),
        raw: reloaded.changed.join("\n").into_bytes(),
    }
}
