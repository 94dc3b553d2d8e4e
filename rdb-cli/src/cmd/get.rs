//! `flaredb get KEY`

use super::receipt;
use crate::args::{Consistency, Format, Shared};
use crate::exit::{self, Error};
use crate::output::{self, Item, Output};
use crate::text::{self, Key};
use clap::Args;
use serde_json::Map;
use std::process::ExitCode;

/// Arguments of `get`.
#[derive(Args, Debug)]
pub(crate) struct Get {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    consistency: Consistency,
}

impl Get {
    pub(crate) async fn run(&self, shared: &Shared) -> Result<ExitCode, Error> {
        let key = self.key.bytes()?;
        let answer = shared
            .client()?
            .get(&shared.namespace, key.clone(), self.consistency.options())
            .await?;
        let is_text = !matches!(shared.output, Some(Format::Json | Format::Jsonl));
        if let Some(receipt) = answer.receipt.as_ref()
            && self.consistency.is_stale()
            && (is_text || !answer.found)
        {
            let staleness = receipt::staleness(receipt.store_id, receipt.staleness_bound_ms);
            exit::note(&format!("flaredb: {staleness}"));
        }
        if !answer.found {
            exit::note(&format!(
                "flaredb: {} does not exist in namespace {}",
                text::cell(&key),
                shared.namespace
            ));
            return Ok(ExitCode::from(exit::NOT_FOUND));
        }
        if matches!(shared.output, None | Some(Format::Raw)) {
            output::raw(&answer.value)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut json = Map::new();
        json.insert("namespace".into(), shared.namespace.as_str().into());
        text::insert(&mut json, "key", &key);
        text::insert(&mut json, "value", &answer.value);
        json.insert("version".into(), answer.version.to_string().into());
        json.insert(
            "expires_at_ms".into(),
            answer.expires_at_ms.to_string().into(),
        );
        json.insert("receipt".into(), receipt::json(answer.receipt.as_ref()));
        let mut out = Output::one(shared.output, &["KEY", "VALUE", "VERSION"]);
        out.add(Item {
            row: vec![
                text::cell(&key),
                text::cell(&answer.value),
                answer.version.to_string(),
            ],
            json: json.into(),
            raw: answer.value.to_vec(),
        })?;
        out.end()?;
        Ok(ExitCode::SUCCESS)
    }
}
