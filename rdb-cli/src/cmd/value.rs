//! A value on the command line: the argument itself, standard input, or a file.
//!
//! Owns the reading. Bounded: what no store would take is not read whole.

use crate::exit::Error;
use bytes::Bytes;
use clap::Args;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Far above any store's limit, which then says how large a value may be.
const MAX_READ_BYTES: u64 = 64 << 20;

#[derive(Args, Debug)]
pub(crate) struct ValueArg {
    /// The value, or - for standard input (after -- where it begins with a dash)
    #[arg(conflicts_with = "file", allow_negative_numbers = true)]
    value: Option<String>,
    /// Take the value from a file
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
}

impl ValueArg {
    pub(crate) async fn read(&self) -> Result<Bytes, Error> {
        match (&self.file, self.value.as_deref()) {
            (Some(path), _) => {
                let file = tokio::fs::File::open(path)
                    .await
                    .map_err(|error| unreadable(path, &error))?;
                bounded(file)
                    .await
                    .map_err(|error| unreadable(path, &error))?
                    .ok_or_else(|| too_large(&path.display()))
            }
            (None, Some("-")) => bounded(tokio::io::stdin())
                .await
                .map_err(|error| Error::io("cannot read standard input", &error))?
                .ok_or_else(|| too_large(&"standard input")),
            (None, Some(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
            (None, None) => Err(Error::Usage(
                "no value was given: name it, - for standard input, or --file PATH".into(),
            )),
        }
    }
}

/// `None`: there is more than is read.
async fn bounded(from: impl AsyncRead + Unpin) -> std::io::Result<Option<Bytes>> {
    let mut bytes = Vec::new();
    from.take(MAX_READ_BYTES + 1)
        .read_to_end(&mut bytes)
        .await?;
    Ok((bytes.len() as u64 <= MAX_READ_BYTES).then(|| bytes.into()))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::io(&format!("cannot read {}", path.display()), error)
}

fn too_large(what: &dyn std::fmt::Display) -> Error {
    Error::Usage(format!(
        "{what} holds more than {} MiB; no store takes such a value",
        MAX_READ_BYTES >> 20
    ))
}
