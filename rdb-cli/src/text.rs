//! Keys and values as people and JSON see them.
//!
//! Owns the one rule: text is shown as text; bytes that are none are shown as base64, under a name
//! that says so. Also the way in: arguments are text, or base64 where a flag says so.

use crate::exit::Error;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use serde_json::{Map, Value};

/// A key on the command line.
#[derive(Args, Debug)]
pub(crate) struct Key {
    /// The key
    pub(crate) key: String,
    /// KEY is base64 of the key's bytes
    #[arg(long)]
    pub(crate) base64_key: bool,
}

impl Key {
    /// The key's bytes.
    pub(crate) fn bytes(&self) -> Result<Bytes, Error> {
        argument("KEY", &self.key, self.base64_key)
    }
}

/// An argument's bytes.
pub(crate) fn argument(name: &str, text: &str, is_base64: bool) -> Result<Bytes, Error> {
    if !is_base64 {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    STANDARD.decode(text).map(Bytes::from).map_err(|error| {
        Error::Usage(format!(
            "{name} is not base64: {error}; leave --base64-key out for plain text"
        ))
    })
}

/// Puts bytes into a JSON object: under `name` as text, or under `name_base64`.
pub(crate) fn insert(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Bytes for a cell of a table: on one line, nothing that moves the cursor.
pub(crate) fn cell(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().any(char::is_control) => text.escape_debug().to_string(),
        Ok(text) => text.to_owned(),
        Err(_) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_bytes_say_what_they_are() {
        let mut object = Map::new();
        insert(&mut object, "key", "käse".as_bytes());
        insert(&mut object, "value", &[0xFF, 0x00]);
        assert_eq!(
            Value::from(object).to_string(),
            r#"{"key":"käse","value_base64":"/wA="}"#
        );
        assert_eq!(cell(b"a\nb\x1b[31m"), r"a\nb\u{1b}[31m");
        assert_eq!(cell(&[0xFF]), "base64:/w==");
    }

    #[test]
    fn what_is_shown_as_base64_can_be_given_back() {
        assert_eq!(&argument("KEY", "/wA=", true).unwrap()[..], &[0xFF, 0x00]);
        assert_eq!(&argument("KEY", "/wA=", false).unwrap()[..], b"/wA=");
        assert!(argument("KEY", "???", true).is_err());
    }
}
