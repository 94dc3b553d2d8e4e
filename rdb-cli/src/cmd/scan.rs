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
use serde_json::{Map, Value};
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
    /// At the end, say on stderr how it was served: one line of JSON, whose `session` is where `watch --session` goes on
    #[arg(long)]
    receipt: bool,
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
        let mut all = Whole::default();
        let mut empty = true;
        while let Some(page) = pages.next().await {
            match page {
                Ok(page) => {
                    all.add(page.receipt.as_ref());
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
        if self.receipt {
            exit::note(&all.line());
            return Ok(ExitCode::SUCCESS);
        }
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

/// How all pages were served.
#[derive(Default)]
struct Whole {
    /// The first page's, with the highest staleness of any.
    receipt: Option<Receipt>,
    /// Pages came from more than one region, and a token is of one.
    spans_regions: bool,
}

impl Whole {
    fn add(&mut self, page: Option<&Receipt>) {
        match (&mut self.receipt, page) {
            (Some(receipt), Some(page)) => {
                self.spans_regions |= receipt.region_id != page.region_id;
                receipt.staleness_bound_ms =
                    receipt.staleness_bound_ms.max(page.staleness_bound_ms);
            }
            // What changes after the first page was read may be missing from it though a later page has seen it: a
            // watch goes on from the first.
            (None, page) => self.receipt = page.cloned(),
            (Some(_), None) => {}
        }
    }

    /// One line of JSON.
    fn line(&self) -> String {
        let mut json = receipt::json(self.receipt.as_ref());
        if self.spans_regions {
            json["session"] = Value::Null;
        }
        json.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_goes_on_from_the_first_page_and_only_of_one_region() {
        let page = |region_id, staleness_bound_ms, session: &'static str| Receipt {
            region_id,
            staleness_bound_ms,
            session: session.into(),
            ..Receipt::default()
        };
        let mut all = Whole::default();
        all.add(Some(&page(2, 5, "one")));
        all.add(Some(&page(2, 9, "two")));
        all.add(Some(&page(2, 7, "three")));
        let told: Value = serde_json::from_str(&all.line()).unwrap_or_default();
        assert_eq!(told["session"], "b25l");
        assert_eq!(told["staleness_bound_ms"], "9");
        all.add(Some(&page(3, 0, "four")));
        let told: Value = serde_json::from_str(&all.line()).unwrap_or_default();
        assert!(told["session"].is_null() && told["region_id"] == "2");
        assert_eq!(Whole::default().line(), "null");
    }
}
