//! `flaredb del KEY`

use super::put::request_id;
use super::receipt;
use crate::args::Shared;
use crate::exit::Error;
use crate::output::{Item, Output};
use crate::text::Key;
use clap::Args;
use rdb_client::WriteOptions;
use serde_json::json;
use std::process::ExitCode;

/// Arguments of `del`.
#[derive(Args, Debug)]
pub(crate) struct Del {
    #[command(flatten)]
    key: Key,
    /// Name this write (at most 64 bytes), so that running the command again applies it once
    #[arg(long, value_name = "TEXT")]
    request_id: Option<String>,
}

impl Del {
    pub(crate) async fn run(&self, shared: &Shared) -> Result<ExitCode, Error> {
        let request_id = Some(request_id(self.request_id.as_deref()));
        let options = WriteOptions {
            request_id,
            ..WriteOptions::default()
        };
        let answer = shared
            .client()?
            .delete(&shared.namespace, self.key.bytes()?, options)
            .await?;
        let version = answer.version.to_string();
        let mut out = Output::one(shared.output, &["EXISTED", "VERSION"]);
        out.add(Item {
            row: vec![answer.existed.to_string(), version.clone()],
            json: json!({
                "existed": answer.existed,
                "version": version,
                "receipt": receipt::json(answer.receipt.as_ref()),
            }),
            raw: version.into_bytes(),
        })?;
        out.end()?;
        Ok(ExitCode::SUCCESS)
    }
}
