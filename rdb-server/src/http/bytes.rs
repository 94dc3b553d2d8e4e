//! Bytes in addresses and in JSON.
//!
//! Owns percent-encoding, both ways, and the one rule for JSON: what is UTF-8 stands there as text, all else
//! as base64 under a name that says so. Knows nothing of keys and values.

use crate::error::Error;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

/// Decodes percent-encoding. `plus_is_space`: as in a form, that is in a query.
///
/// # Errors
/// A percent sign without two hexadecimal digits, named with `field`.
pub(super) fn percent_decode(field: &str, text: &str, plus_is_space: bool) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'%' => {
                let digit = |at: usize| after.get(at).and_then(|byte| hex(*byte));
                let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                    return Err(Error::invalid(
                        field,
                        format!(
                            "{field} is not percent-encoded: a % stands before something that is not two hexadecimal digits; % itself is %25"
                        ),
                    ));
                };
                out.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            b'+' if plus_is_space => out.push(b' '),
            byte => out.push(*byte),
        }
    }
    Ok(out.into())
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

/// As [`percent_decode`], for what has to be text.
///
/// # Errors
/// As there, or it is not UTF-8.
pub(super) fn percent_decode_text(
    field: &str,
    text: &str,
    plus_is_space: bool,
) -> Result<String, Error> {
    let bytes = percent_decode(field, text, plus_is_space)?;
    String::from_utf8(bytes.into())
        .map_err(|_| Error::invalid(field, format!("{field} is not UTF-8 text")))
}

/// Percent-encodes all but what every part of an address may hold.
pub(super) fn percent_encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(*byte as char);
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Bytes as two fields of a JSON object, of which one is there: as text, or as base64.
pub(super) fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_percent_encoding_is_refused_with_the_field() {
        for text in ["%", "%4", "%zz", "a%", "%%41", "%+1"] {
            let error = percent_decode("key", text, false).unwrap_err();
            assert_eq!(error.metadata["field"], "key", "{text}");
        }
        assert_eq!(
            &percent_decode("key", "a%2Fb+", false).unwrap()[..],
            b"a/b+"
        );
        assert_eq!(&percent_decode("key", "a+b%2B", true).unwrap()[..], b"a b+");
        assert!(percent_decode_text("ns", "%FF", false).is_err());
    }

    proptest! {
        #[test]
        fn every_key_survives_its_way_through_an_address(key in any::<Vec<u8>>(), form in any::<bool>()) {
            let decoded = percent_decode("key", &percent_encode(&key), form).unwrap();
            prop_assert_eq!(&decoded[..], &key[..]);
        }
    }
}
