//! What is shipped beside the program says the truth: the example file and `--help`.

use clap::CommandFactory;
use rdb_server::config::{Cli, Config, Mode};

use super::{ALL_KEYS, config, try_load};

const EXAMPLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/flaredb.example.toml"
);

fn example() -> String {
    std::fs::read_to_string(EXAMPLE).expect("deploy/flaredb.example.toml")
}

/// The example with those comments opened that are keys or headers, by their prefix.
fn uncommented(example: &str, prefixes: &[&str]) -> String {
    let is_key = |text: &str| {
        let name = text.split(" = ").next().unwrap_or_default();
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        (text.contains(" = ") && is_name) || (text.starts_with('[') && text.ends_with(']'))
    };
    let open = |line: &str| {
        let opened = prefixes
            .iter()
            .filter_map(|prefix| line.strip_prefix(prefix))
            .find(|text| is_key(text));
        opened.unwrap_or(line).to_owned()
    };
    example.lines().map(open).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_file_is_the_defaults() {
    let as_shipped = try_load(&example(), &[], &[]).expect("the example is legal");
    assert_eq!(as_shipped.config, Config::default());
    assert_eq!(as_shipped.warnings, Vec::<String>::new());

    // What the file's own words say: every line that starts with "#key" may be uncommented.
    let opened = uncommented(&example(), &["#"]);
    assert_eq!(config(&opened, &[], &[]), Config::default());
    // Each default is written, not only implied: without one of them the texts would differ.
    let written: Vec<&str> = opened
        .lines()
        .filter(|line| !line.starts_with('#') && line.contains(" = "))
        .collect();
    for line in Config::default()
        .to_toml()
        .lines()
        .filter(|line| line.contains(" = "))
    {
        assert!(
            written.contains(&line),
            "the example file lacks the default {line}"
        );
    }
}

#[test]
fn the_example_file_names_every_key() {
    let all = uncommented(&example(), &["# ", "#"]);
    let config = config(&all, &[], &["--store-id", "1"]);
    assert_eq!(config.cluster.peers.len(), 3);
    assert_eq!(config.mode_of("logs"), Mode::Eventual);

    let mut section = String::new();
    let mut found = Vec::new();
    for line in all.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            found.push(format!("{section}.{name}"));
        }
    }
    assert_eq!(found, ALL_KEYS);
}

#[test]
fn every_key_has_a_flag_or_is_named_in_the_help() {
    let help = Cli::command().render_long_help().to_string();
    for key in ALL_KEYS {
        let (section, name) = key.rsplit_once('.').expect("a dotted key");
        let plain = format!("--{} ", name.replace('_', "-"));
        let prefixed = format!("--{section}-{} ", name.replace('_', "-"));
        let named = match section {
            "namespaces.logs" if name == "mode" => help.contains("--namespace-mode "),
            "namespaces.logs" => help.contains(&format!("namespaces.NAME.{name} ")),
            "cluster" if name == "peers" => help.contains("--peer "),
            _ => help.contains(&plain) || help.contains(&prefixed),
        };
        assert!(named, "{key} is not in --help:\n{help}");
    }
    assert!(!help.contains("bootstrap"), "test-only flags are hidden");
}

#[test]
fn the_help_shows_the_real_defaults() {
    let help = Cli::command()
        .render_long_help()
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let defaults = Config::default().to_toml();
    let mut section = "";
    for line in defaults.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        } else if let Some((name, value)) = line.split_once(" = ") {
            let flag = match (section, name) {
                ("store", "id") | ("cluster", "name") | ("log", _) => {
                    format!("--{section}-{name} ")
                }
                _ => format!("--{} ", name.replace('_', "-")),
            };
            let at = help
                .find(&flag)
                .unwrap_or_else(|| panic!("{flag} is not in the help"));
            let shown = help[at..]
                .split("[default: ")
                .nth(1)
                .and_then(|rest| rest.split(']').next());
            let written = value.trim_matches('"');
            // `advertise_addr` has no default of its own and never comes here.
            assert_eq!(shown, Some(written), "{flag}");
        }
    }
}

#[test]
fn the_flags_are_well_formed() {
    Cli::command().debug_assert();
}
