//! The few words of the domain that a configuration speaks: modes, durability, names, store ids.
//!
//! Owns: how a file, a variable or a flag gets at them. Does not know: what they mean and which are
//! legal (`rdb_types` does), where the text came from, nor which key it was meant for.
//!
//! Invariant: what parses here is legal everywhere else in the system; nobody checks it again.

use std::ops::RangeInclusive;

pub use rdb_types::{Durability, Mode};
use rdb_types::{NamespaceName, StoreId};

/// Legal store ids: ten bits of a stamp, without zero.
pub(crate) const STORE_IDS: RangeInclusive<u16> = 1..=StoreId::MAX;

/// The mode that is spelled `text`, if there is one.
pub(crate) fn parse_mode(text: &str) -> Option<Mode> {
    text.parse().ok()
}

/// The durability that is spelled `text`, if there is one.
pub(crate) fn parse_durability(text: &str) -> Option<Durability> {
    text.parse().ok()
}

/// The store id that is spelled `text`: a decimal number within [`STORE_IDS`].
pub(crate) fn parse_store_id(text: &str) -> Option<u16> {
    // `u16::from_str` takes a leading plus sign; an id in a file should have one spelling.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| STORE_IDS.contains(id))
}

/// Whether `name` may name a namespace: 1 to 64 of `a-z 0-9 _ . -`, a letter first.
pub(crate) fn is_namespace_name(name: &str) -> bool {
    NamespaceName::parse(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_ids_are_ten_bits_without_zero() {
        for (text, want) in [
            ("1", Some(1)),
            ("1023", Some(1023)),
            ("007", Some(7)),
            ("0", None),
            ("1024", None),
            ("+1", None),
            ("-1", None),
            ("", None),
            ("99999999999", None),
            ("one", None),
        ] {
            assert_eq!(parse_store_id(text), want, "{text:?}");
        }
    }

    #[test]
    fn namespace_names() {
        let longest = "n".repeat(NamespaceName::MAX_BYTES);
        for name in ["a", "default", "logs-2", "a.b_c-d", longest.as_str()] {
            assert!(is_namespace_name(name), "{name:?}");
        }
        let too_long = "n".repeat(NamespaceName::MAX_BYTES + 1);
        for name in [
            "",
            "1a",
            "-a",
            ".a",
            "_a",
            "Logs",
            "a b",
            "a/b",
            "é",
            "aé",
            too_long.as_str(),
        ] {
            assert!(!is_namespace_name(name), "{name:?}");
        }
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for mode in [Mode::Strong, Mode::Eventual] {
            assert_eq!(parse_mode(&mode.to_string()), Some(mode));
        }
        for durability in [Durability::Sync, Durability::Relaxed] {
            assert_eq!(parse_durability(&durability.to_string()), Some(durability));
        }
        assert_eq!(parse_mode("Strong"), None);
        assert_eq!(parse_durability(""), None);
    }
}
