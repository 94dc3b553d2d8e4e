//! `flaredb put KEY VALUE`

use super::receipt;
use super::value::ValueArg;
use crate::args::{Shared, duration};
use crate::exit::Error;
use crate::output::{Item, Output};
use crate::text::Key;
use bytes::Bytes;
use clap::Args;
use rdb_client::PutOptions;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use uuid::Uuid;

/// Arguments of `put`.
#[derive(Args, Debug)]
pub(crate) struct Put {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    value: ValueArg,
    #[command(flatten)]
    write: WriteArgs,
}

/// What put and cas have in common.
#[derive(Args, Debug)]
pub(crate) struct WriteArgs {
    /// Let the key expire after this time: 30s, 15m, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    ttl: Option<Duration>,
    /// Name this write (at most 64 bytes), so that running the command again applies it once
    #[arg(long, value_name = "TEXT")]
    request_id: Option<String>,
}

impl WriteArgs {
    pub(super) fn options(&self) -> PutOptions {
        let request_id = Some(request_id(self.request_id.as_deref()));
        PutOptions {
            ttl: self.ttl,
            request_id,
            ..PutOptions::default()
        }
    }
}

/// The caller's id, or a fresh one that can be typed: where the outcome is unknown the command says how
/// to run it again (see `exit.rs`).
pub(super) fn request_id(given: Option<&str>) -> Bytes {
    match given {
        Some(id) => Bytes::copy_from_slice(id.as_bytes()),
        None => Uuid::now_v7().to_string().into(),
    }
}

impl Put {
    pub(crate) async fn run(&self, shared: &Shared) -> Result<ExitCode, Error> {
        let client = shared.client()?;
        let (key, value) = (self.key.bytes()?, self.value.read().await?);
        let answer = client
            .put(&shared.namespace, key, value, self.write.options())
            .await?;
        let version = answer.version.to_string();
        let mut out = Output::one(shared.output, &["VERSION"]);
        out.add(Item {
            row: vec![version.clone()],
            json: json!({ "version": version, "receipt": receipt::json(answer.receipt.as_ref()) }),
            raw: version.into_bytes(),
        })?;
        out.end()?;
        Ok(ExitCode::SUCCESS)
    }
}
