//! `flaredb watch`

use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use crate::text;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use rdb_client::proto::kv::watch_response::event::Type;
use rdb_client::{ClientError, WatchEvent, WatchOptions};
use rdb_types::Reason;
use serde_json::Map;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

const HEADER: &[&str] = &["WHAT", "KEY", "VERSION", "VALUE"];

/// Arguments of `watch`.
#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// This key alone; without it, and without --prefix, the whole namespace
    #[arg(conflicts_with = "prefix")]
    key: Option<String>,
    /// Keys that begin with this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Begin with this revision of a strong namespace; past ones are told as far as they are held
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    from_revision: Option<u64>,
    /// Go on behind this token: of a watch that ended, or `session` of a receipt; base64
    #[arg(long, value_name = "TOKEN", conflicts_with = "from_revision")]
    session: Option<String>,
    /// KEY and --prefix are base64 of the keys' bytes
    #[arg(long)]
    base64_key: bool,
}

impl Watch {
    pub(crate) async fn run(&self, shared: &Shared) -> Result<ExitCode, Error> {
        let bytes = |name, given: &Option<String>| match given {
            Some(text) => text::argument(name, text, self.base64_key),
            None => Ok(Bytes::new()),
        };
        let session = match &self.session {
            Some(token) => STANDARD.decode(token).map_err(|error| {
                Error::Usage(format!(
                    "--session is not base64: {error}; give it as it was printed"
                ))
            })?,
            None => Vec::new(),
        };
        let options = WatchOptions {
            key: bytes("KEY", &self.key)?,
            prefix: bytes("--prefix", &self.prefix)?,
            from_revision: self.from_revision.unwrap_or_default(),
            session: session.into(),
            timeout: None,
        };
        let mut messages = shared.client()?.watch(&shared.namespace, options);
        let mut out = Output::list(shared.output, HEADER);
        let interrupted = tokio::signal::ctrl_c();
        let reader_gone = reader_gone();
        tokio::pin!(interrupted, reader_gone);
        let (mut last, mut begun) = (Bytes::new(), false);
        loop {
            let message = tokio::select! {
                biased;
                _ = &mut interrupted => break,
                () = &mut reader_gone => return Err(Error::BrokenPipe),
                message = messages.next() => message,
            };
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    close(out)?;
                    // Nobody holds what follows on that any more.
                    if error.reason != Some(Reason::Compacted) {
                        going_on(&last);
                    }
                    return Err(refused(error));
                }
                None => break,
            };
            if out.is_table() && !std::mem::replace(&mut begun, true) {
                out.line(&line(HEADER))?;
            }
            for event in &message.events {
                let item = item(event);
                if out.is_table() {
                    let row: Vec<&str> = item.row.iter().map(String::as_str).collect();
                    out.line(&line(&row))?;
                } else {
                    out.add(item)?;
                }
            }
            out.flush()?;
            last = message.session;
        }
        close(out)?;
        going_on(&last);
        Ok(ExitCode::SUCCESS)
    }
}

/// Waits until nobody reads stdout any more: a quiet namespace gives nothing to write that would tell. Never, where
/// the system does not say it: of a file.
async fn reader_gone() {
    // Only watched, so it may block, and need not be a pipe.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(stdout) = stdout.and_then(Sender::from_owned_fd_unchecked)
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// A refusal, with how to go on where what was asked for is not held any more.
fn refused(mut error: ClientError) -> Error {
    if error.reason == Some(Reason::Compacted) {
        let held = [
            ("oldest_revision", "--from-revision"),
            ("oldest_session", "--session"),
        ];
        let held = held
            .into_iter()
            .filter_map(|(name, flag)| Some(format!("{flag} {}", error.metadata.get(name)?)));
        let held: Vec<String> = held.collect();
        error.message += "\n  `flaredb scan --receipt` says on stderr, as `session`, where to watch from: --session TOKEN";
        if !held.is_empty() {
            error.message += &format!(
                "\n  Without what changed until then, that store tells all from here on: {}",
                held.join(" or ")
            );
        }
    }
    error.into()
}

/// Ends the output; lines of a table have gone out one by one.
fn close(mut out: Output) -> Result<(), Error> {
    match out.is_table() {
        true => out.flush(),
        false => out.end(),
    }
}

/// Says how to go on where this ended.
fn going_on(token: &[u8]) {
    if !token.is_empty() {
        exit::note(&format!(
            "flaredb: to go on from here: --session {}",
            STANDARD.encode(token)
        ));
    }
}

/// Columns that are as wide as most of what stands in them: nobody knows what is still to come.
fn line(cells: &[&str]) -> String {
    let widths = [6, 24, 19, 0];
    let cells = cells.iter().zip(widths);
    let padded: Vec<String> = cells
        .map(|(cell, width)| format!("{cell:width$}"))
        .collect();
    padded.join("  ").trim_end().to_owned()
}

fn item(event: &WatchEvent) -> Item {
    let kv = event.kv.clone().unwrap_or_default();
    let what = match event.r#type() {
        Type::Put => "put",
        Type::Delete => "delete",
        Type::Expire => "expire",
    };
    let mut json = Map::new();
    json.insert("type".into(), what.into());
    text::insert(&mut json, "key", &kv.key);
    if event.r#type() == Type::Put {
        text::insert(&mut json, "value", &kv.value);
    }
    for (name, number) in [
        ("version", kv.version.to_string()),
        ("revision", kv.revision.to_string()),
        ("create_revision", kv.create_revision.to_string()),
        ("expires_at_ms", kv.expires_at_ms.to_string()),
    ] {
        json.insert(name.into(), number.into());
    }
    let raw = [what.as_bytes(), b"\t", &kv.key, b"\t", &kv.value].concat();
    Item {
        row: vec![
            what.to_owned(),
            text::cell(&kv.key),
            kv.version.to_string(),
            text::cell(&kv.value),
        ],
        json: json.into(),
        raw,
    }
}
