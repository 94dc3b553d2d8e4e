//! The text of the file `STORE`.
//!
//! Owns its format, version 2: a line for each field, then a checksum of all lines before it.
//! Reads and writes text only; files are the business of [`DataDir`](super::DataDir).
//!
//! ```text
//! # FlareDB data directory. Do not edit: the store refuses to start with a changed file.
//! format_version = 2
//! store_id = 3
//! store_uuid = "0b0e2ac4-..."
//! cluster_id = ""
//! created_unix_s = 1795352096
//! initialised = true
//! checksum = "f3c0..."
//! ```
//!
//! # Invariants
//!
//! - `format_version` is the first field in every version to come, so that an older release
//!   can say that a newer one wrote the file, whatever else has changed.
//! - A file that differs in one byte from what was written is damaged.

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

/// The newest format that this release reads and the one that it writes. It covers the whole
/// directory, not this file alone.
pub(super) const FORMAT_VERSION: u64 = 2;

/// The oldest one that it reads. Version 1 kept the index of what expires in another order.
const OLDEST_VERSION: u64 = 2;

const COMMENT: &str =
    "# FlareDB data directory. Do not edit: the store refuses to start with a changed file.";

/// Whose a data directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The version of what is in the directory.
    pub format_version: u64,
    /// The id that the operator gave the store.
    pub store_id: u32,
    /// Made at random with the directory. A store whose directory was wiped comes back with
    /// another one, and so is told apart from the store that made the promises.
    pub store_uuid: Uuid,
    /// The cluster, once it is known.
    pub cluster_id: Option<Uuid>,
    /// When the directory was made, in seconds since 1970; for people, nothing depends on it.
    pub created_unix_s: u64,
    /// Whether the database was there once.
    pub initialised: bool,
}

/// Why the text is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParseError {
    Newer { found: u64 },
    Older { found: u64 },
    Damaged { line: usize, what: String },
}

impl StoreIdentity {
    /// A new store's, with a new UUID.
    pub(super) fn new(store_id: u32, created_unix_s: u64) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            store_id,
            store_uuid: Uuid::new_v4(),
            cluster_id: None,
            created_unix_s,
            initialised: false,
        }
    }

    pub(super) fn to_text(&self) -> String {
        let cluster_id = self.cluster_id.map(|id| id.to_string()).unwrap_or_default();
        let lines = format!(
            "{COMMENT}\n\
             format_version = {}\n\
             store_id = {}\n\
             store_uuid = \"{}\"\n\
             cluster_id = \"{cluster_id}\"\n\
             created_unix_s = {}\n\
             initialised = {}\n",
            self.format_version,
            self.store_id,
            self.store_uuid,
            self.created_unix_s,
            self.initialised,
        );
        let checksum = checksum(&lines);
        format!("{lines}checksum = \"{checksum}\"\n")
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(text).map_err(|error| {
            let good = &text[..error.valid_up_to()];
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            damaged(line, "not text")
        })?;
        let mut lines = Lines::new(text);
        let format_version: u64 = lines.number("format_version")?;
        if format_version > FORMAT_VERSION {
            return Err(ParseError::Newer {
                found: format_version,
            });
        }
        if format_version < 1 {
            return Err(damaged(lines.line, "there is no such format version"));
        }
        if format_version < OLDEST_VERSION {
            return Err(ParseError::Older {
                found: format_version,
            });
        }
        let identity = Self {
            format_version,
            store_id: lines.number("store_id")?,
            store_uuid: lines
                .uuid("store_uuid")?
                .ok_or_else(|| damaged(lines.line, "store_uuid is empty"))?,
            cluster_id: lines.uuid("cluster_id")?,
            created_unix_s: lines.number("created_unix_s")?,
            initialised: match lines.field("initialised")? {
                "true" => true,
                "false" => false,
                _ => return Err(damaged(lines.line, "initialised is neither true nor false")),
            },
        };
        let covered = &text[..lines.offset];
        if lines.quoted("checksum")? != checksum(covered) {
            return Err(damaged(
                lines.line,
                "the checksum does not match the lines above",
            ));
        }
        if lines.offset != text.len() {
            return Err(damaged(lines.line + 1, "nothing may follow the checksum"));
        }
        Ok(identity)
    }
}

fn checksum(lines: &str) -> String {
    format!("{:016x}", xxh3_64(lines.as_bytes()))
}

fn damaged(line: usize, what: impl Into<String>) -> ParseError {
    ParseError::Damaged {
        line,
        what: what.into(),
    }
}

/// Takes fields off a text, in their fixed order.
struct Lines<'a> {
    text: &'a str,
    /// How much was taken, in bytes.
    offset: usize,
    /// The line taken last, from 1.
    line: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            offset: 0,
            line: 0,
        }
    }

    fn field(&mut self, name: &str) -> Result<&'a str, ParseError> {
        loop {
            let rest = &self.text[self.offset..];
            self.line += 1;
            let Some(end) = rest.find('\n') else {
                return Err(damaged(self.line, format!("{name} is missing")));
            };
            self.offset += end + 1;
            let line = &rest[..end];
            if line.starts_with('#') {
                continue;
            }
            return line
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(" = "))
                .ok_or_else(|| {
                    damaged(self.line, format!("expected {name} = ..., found: {line}"))
                });
        }
    }

    fn quoted(&mut self, name: &str) -> Result<&'a str, ParseError> {
        let value = self.field(name)?;
        value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .ok_or_else(|| damaged(self.line, format!("{name} is not in quotes")))
    }

    fn number<N: std::str::FromStr>(&mut self, name: &str) -> Result<N, ParseError> {
        self.field(name)?
            .parse()
            .map_err(|_| damaged(self.line, format!("{name} is not a number in its range")))
    }

    fn uuid(&mut self, name: &str) -> Result<Option<Uuid>, ParseError> {
        match self.quoted(name)? {
            "" => Ok(None),
            value => Uuid::parse_str(value)
                .map(Some)
                .map_err(|error| damaged(self.line, format!("{name} is not a UUID: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> StoreIdentity {
        StoreIdentity {
            cluster_id: Some(Uuid::from_u128(7)),
            initialised: true,
            ..StoreIdentity::new(3, 1_795_352_096)
        }
    }

    #[test]
    fn what_was_written_is_read() {
        for identity in [identity(), StoreIdentity::new(u32::MAX, u64::MAX)] {
            let text = identity.to_text();
            assert_eq!(StoreIdentity::parse(text.as_bytes()), Ok(identity));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let text = identity().to_text().into_bytes();
        for position in 0..text.len() {
            let mut changed = text.clone();
            changed[position] ^= 1;
            assert!(
                StoreIdentity::parse(&changed).is_err(),
                "byte {position} of {}",
                String::from_utf8_lossy(&text)
            );
        }
        for end in 0..text.len() {
            assert!(StoreIdentity::parse(&text[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_newer_version_is_recognised_whatever_follows_it() {
        let text = b"# comment\n# another\nformat_version = 9\nshape = \"round\"\n";
        assert_eq!(
            StoreIdentity::parse(text),
            Err(ParseError::Newer { found: 9 })
        );
        let text = b"# comment\n# another\nformat_version = 1\nshape = \"round\"\n";
        assert_eq!(
            StoreIdentity::parse(text),
            Err(ParseError::Older { found: 1 })
        );
    }

    #[test]
    fn an_error_names_its_line() {
        let line = |text: &str| match StoreIdentity::parse(text.as_bytes()) {
            Err(ParseError::Damaged { line, .. }) => line,
            other => panic!("accepted or newer: {other:?}"),
        };
        let text = identity().to_text();
        assert_eq!(line(""), 1);
        assert_eq!(line(&text.replace("store_id = 3", "store_id = x")), 3);
        assert_eq!(line(&text.replace("store_id = 3", "store_id = 4")), 8);
        assert_eq!(
            line(&text.replace("initialised = true", "initialised = yes")),
            7
        );
        assert_eq!(line(&format!("{text}\n")), 9);
        assert_eq!(
            line(&text.replace("format_version = 2", "format_version = 0")),
            2
        );
    }
}
