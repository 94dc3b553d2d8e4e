//! `flaredb scan`

use super::receipt;
use crate::args::{Consistency, Shared};
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use crate::text;
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use rdb_client::{KeyValue, Receipt, ScanOptions};
use serde_json::Map;
use std::process::ExitCode;

/// Arguments of `scan`.
#[derive(Args, Debug)]
pub(crate) struct Scan {
    /// Keys that begin with this
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// From this key, inclusive
    #[arg(long, value_name = "KEY")]
    start: Option<String>,
    /// To this key, exclusive
    #[arg(long, value_name = "KEY")]
    end: Option<String>,
    /// Most entries; 0: all
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    limit: u32,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    consistency: Consistency,
    /// --prefix, --start and --end are base64 of the keys' bytes
    #[arg(long)]
    base64_key: bool,
}

impl Scan {
    pub(crate) async fn run(&self, shared: &Shared) -> Result<ExitCode, Error> {
        let bytes = |name, given: &Option<String>| match given {
            Some(text) => text::argument(name, text, self.base64_key),
            None => Ok(Bytes::new()),
        };
        let options = ScanOptions {
            prefix: bytes("--prefix", &self.prefix)?,
            start: bytes("--start", &self.start)?,
            end: bytes("--end", &self.end)?,
            limit: self.limit,
            reverse: self.reverse,
            keys_only: self.keys_only,
            read: self.consistency.options(),
        };
        let header: &[&str] = if self.keys_only {
            &["KEY", "VERSION"]
        } else {
            &["KEY", "VERSION", "VALUE"]
        };
        let mut pages = shared.client()?.scan_pages(&shared.namespace, options);
        let mut out = Output::list(shared.output, header);
        let mut oldest: Option<Receipt> = None;
        let mut empty = true;
        while let Some(page) = pages.next().await {
            match page {
                Ok(page) => {
                    let receipt = page.receipt.filter(|_| self.consistency.is_stale());
                    empty &= page.entries.is_empty();
                    for entry in &page.entries {
                        out.add(self.item(entry, receipt.as_ref()))?;
                    }
                    let bound_ms =
                        |it: &Option<Receipt>| it.as_ref().map(|it| it.staleness_bound_ms);
                    if bound_ms(&receipt) > bound_ms(&oldest) {
                        oldest = receipt;
                    }
                }
                Err(error) => {
                    // What came before the failure is worth having, and the array its end.
                    out.end()?;
                    return Err(error.into());
                }
            }
        }
        let is_text = out.is_text();
        out.end()?;
        // Elsewhere each entry says it.
        if let Some(receipt) = oldest.filter(|_| is_text || empty) {
            let staleness = receipt::staleness(receipt.store_id, receipt.staleness_bound_ms);
            exit::note(&format!("flaredb: {staleness}"));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// `receipt`: of the page, where the read may be stale.
    fn item(&self, entry: &KeyValue, receipt: Option<&Receipt>) -> Item {
        let mut json = Map::new();
        text::insert(&mut json, "key", &entry.key);
        if !self.keys_only {
            text::insert(&mut json, "value", &entry.value);
        }
        json.insert("version".into(), entry.version.to_string().into());
        json.insert("revision".into(), entry.revision.to_string().into());
        json.insert(
            "create_revision".into(),
            entry.create_revision.to_string().into(),
        );
        json.insert(
            "expires_at_ms".into(),
            entry.expires_at_ms.to_string().into(),
        );
        if let Some(receipt) = receipt {
            let bound_ms = receipt.staleness_bound_ms.to_string();
            json.insert("staleness_bound_ms".into(), bound_ms.into());
        }
        let mut row = vec![text::cell(&entry.key), entry.version.to_string()];
        let mut raw = entry.key.to_vec();
        if !self.keys_only {
            row.push(text::cell(&entry.value));
            raw.push(b'\t');
            raw.extend_from_slice(&entry.value);
        }
        Item {
            row,
            json: json.into(),
            raw,
        }
    }
}
