//! `flaredb cas KEY EXPECTED_VERSION NEW_VALUE`

use super::put::WriteArgs;
use super::receipt;
use super::value::ValueArg;
use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use crate::text::{self, Key};
use clap::Args;
use rdb_client::Change;
use serde_json::json;
use std::process::ExitCode;

/// Arguments of `cas`.
#[derive(Args, Debug)]
pub(crate) struct Cas {
    #[command(flatten)]
    key: Key,
    /// The version that the key must have (`flaredb get -o json` shows it); 0: it must not exist
    expected_version: u64,
    #[command(flatten)]
    value: ValueArg,
    /// Remove the key instead of writing it
    #[arg(long, conflicts_with_all = ["value", "file", "ttl"])]
    delete: bool,
    #[command(flatten)]
    write: WriteArgs,
}

impl Cas {
    pub(crate) async fn run(&self, shared: &Shared) -> Result<ExitCode, Error> {
        let client = shared.client()?;
        let key = self.key.bytes()?;
        let change = if self.delete {
            Change::Delete
        } else {
            Change::Put(self.value.read().await?)
        };
        let options = self.write.options();
        let answer = client
            .compare_and_swap(
                &shared.namespace,
                key.clone(),
                self.expected_version,
                change,
                options,
            )
            .await?;
        // Of use to whoever goes on: the version that is there now.
        let version = if answer.success {
            answer.new_version
        } else {
            answer.current_version
        };
        let mut out = Output::one(shared.output, &["SUCCESS", "VERSION"]);
        out.add(Item {
            row: vec![answer.success.to_string(), version.to_string()],
            json: json!({
                "success": answer.success,
                "current_version": answer.current_version.to_string(),
                "new_version": answer.new_version.to_string(),
                "receipt": receipt::json(answer.receipt.as_ref()),
            }),
            raw: version.to_string().into_bytes(),
        })?;
        out.end()?;
        if answer.success {
            return Ok(ExitCode::SUCCESS);
        }
        let there = match answer.current_version {
            0 => "does not exist".to_owned(),
            version => format!("is at version {version}"),
        };
        exit::note(&format!(
            "flaredb: lost: {} {there}, not at version {}; read it again before you try again",
            text::cell(&key),
            self.expected_version
        ));
        Ok(ExitCode::from(exit::LOST))
    }
}
