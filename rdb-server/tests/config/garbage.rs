//! Text that nobody would write: no panic, and every complaint has its place.

use proptest::prelude::*;
use rdb_server::config::{Cli, Origin, load};

use super::ALL_KEYS;

/// Lines that look like a configuration, mixed up.
fn nearly_toml() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        "\\[{1,2}(store|cluster|raft|limits|log|namespaces|namespaces\\.[a-zA-Z\"]{0,4}|cluster\\.peers)\\]{0,2}",
        "(id|addr|peers|mode|name|heartbeat|max_key|level|1|2)(\\.[a-z]{1,2})? ?= ?(\"[^\"]{0,8}\"|[0-9]{1,40}|\\{ ?[a-z0-9]{0,2} = [0-9\"]{1,3} ?\\}|\\[+|true|-1|0x[0-9a-f]{1,40})",
        "\\PC{0,20}",
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

fn check_garbage(text: &str) -> Result<(), TestCaseError> {
    let cli = Cli {
        config: Some("flaredb.toml".into()),
        ..Cli::default()
    };
    let lines = text.lines().count() + 1;
    if let Err(errors) = load(&cli, std::iter::empty(), |_| Ok(text.to_owned())) {
        prop_assert!(!errors.as_slice().is_empty());
        for error in errors.as_slice() {
            let Origin::File {
                line: Some(line), ..
            } = &error.origin
            else {
                return Err(TestCaseError::fail(format!("no line: {error}")));
            };
            prop_assert!((1..=lines).contains(line), "line {line} of {lines}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn garbage_never_panics_and_every_error_has_a_line(text in "(?s).{0,200}") {
        check_garbage(&text)?;
    }

    #[test]
    fn near_misses_never_panic_and_every_error_has_a_line(text in nearly_toml()) {
        check_garbage(&text)?;
    }

    #[test]
    fn garbage_in_variables_and_flags_never_panics(key in 0..ALL_KEYS.len(), value in "(?s).{0,40}") {
        let variable = format!("FLAREDB_{}", ALL_KEYS[key].replace('.', "__").to_uppercase());
        let cli = Cli {
            peers: vec![value.clone()],
            namespace_mode: vec![value.clone()],
            addr: Some(value.clone()),
            quorum_timeout: Some(value.clone()),
            max_key: Some(value.clone()),
            ..Cli::default()
        };
        let _ = load(&cli, [(variable, value)].into_iter(), |_| Ok(String::new()));
    }
}
