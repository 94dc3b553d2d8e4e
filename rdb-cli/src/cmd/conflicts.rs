//! `flaredb conflicts`: writes that lost to concurrent ones, and the way back for them.
//!
//! Owns the printing. What lost to what, the stores know.

use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use crate::text;
use clap::{Args, Subcommand};
use rdb_proto::raft::{Conflict, RestoreConflictResponse};
use serde_json::{Map, json};
use std::process::ExitCode;

/// Arguments of `conflicts`.
#[derive(Args, Debug)]
pub(crate) struct Conflicts {
    /// The namespace
    name: String,
    /// Of keys that begin with this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// --prefix is base64 of the keys' bytes
    #[arg(long)]
    base64_key: bool,
    /// Most conflicts; 0: all
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    limit: u32,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Write a value that lost once more, as a new write
    ///
    /// It is then the newest, and leaves the list.
    Restore {
        /// Which; the list names them
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<String>,
        /// Every one that is listed
        #[arg(long)]
        all: bool,
        /// Only where the key was not written since
        #[arg(long)]
        if_untouched: bool,
    },
}

const CONFLICT: &[&str] = &[
    "ID",
    "KEY",
    "LOST",
    "VERSION",
    "TO VERSION",
    "STORES",
    "WHY",
];
const RESTORED: &[&str] = &["RESTORED", "SKIPPED"];

impl Conflicts {
    pub(crate) async fn run(self, shared: &Shared) -> Result<ExitCode, Error> {
        match &self.action {
            None => self.list(shared).await?,
            Some(Action::Restore {
                id, if_untouched, ..
            }) => {
                let client = shared.client()?;
                let restored = client.restore_conflict(&self.name, id.as_deref(), *if_untouched);
                let restored = restored.await?;
                let mut out = Output::one(shared.output, RESTORED);
                out.add(restored_item(&restored))?;
                let is_text = out.is_text();
                out.end()?;
                if is_text {
                    for warning in &restored.warnings {
                        exit::note(&format!("flaredb: {warning}"));
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn list(&self, shared: &Shared) -> Result<(), Error> {
        let prefix = self.prefix.as_deref().unwrap_or_default();
        let prefix = text::argument("--prefix", prefix, self.base64_key)?;
        let client = shared.client()?;
        let listing = client.list_conflicts(&self.name, prefix, self.limit);
        let mut listing = listing.await?;
        let mut out = Output::list(shared.output, CONFLICT);
        loop {
            match listing.next().await {
                Ok(Some(conflict)) => out.add(conflict_item(&conflict))?,
                Ok(None) => break,
                Err(error) => {
                    // What came before the failure is worth having, and the array its end.
                    out.end()?;
                    return Err(error.into());
                }
            }
        }
        out.end()?;
        let missing = listing.missing_stores();
        if !missing.is_empty() {
            let missing: Vec<String> = missing.iter().map(u32::to_string).collect();
            exit::note(&format!(
                "flaredb: store {} does not answer; what only it lists is not here",
                missing.join(", ")
            ));
        }
        Ok(())
    }
}

fn conflict_item(conflict: &Conflict) -> Item {
    let lost = if conflict.deletion {
        "(a deletion)".to_owned()
    } else {
        text::cell(&conflict.value)
    };
    let stores: Vec<String> = conflict.stores.iter().map(u32::to_string).collect();
    let why = if conflict.set_aside {
        format!("set aside: {}", conflict.reason)
    } else {
        conflict.reason.clone()
    };
    let mut json = Map::new();
    json.insert("id".into(), conflict.id.clone().into());
    text::insert(&mut json, "key", &conflict.key);
    if !conflict.deletion {
        text::insert(&mut json, "value", &conflict.value);
    }
    json.insert("deletion".into(), conflict.deletion.into());
    json.insert("version".into(), conflict.version.to_string().into());
    json.insert(
        "winner_version".into(),
        conflict.winner_version.to_string().into(),
    );
    json.insert("set_aside".into(), conflict.set_aside.into());
    json.insert("reason".into(), conflict.reason.clone().into());
    json.insert("stores".into(), json!(conflict.stores));
    Item {
        row: vec![
            conflict.id.clone(),
            text::cell(&conflict.key),
            lost,
            conflict.version.to_string(),
            // What a switch set aside lost to none.
            match conflict.winner_version {
                0 => "-".to_owned(),
                version => version.to_string(),
            },
            stores.join(","),
            why,
        ],
        json: json.into(),
        raw: conflict.id.clone().into_bytes(),
    }
}

fn restored_item(restored: &RestoreConflictResponse) -> Item {
    Item {
        row: vec![restored.restored.to_string(), restored.skipped.to_string()],
        json: json!({
            "restored": restored.restored.to_string(),
            "skipped": restored.skipped.to_string(),
            "warnings": restored.warnings,
        }),
        raw: restored.restored.to_string().into_bytes(),
    }
}
