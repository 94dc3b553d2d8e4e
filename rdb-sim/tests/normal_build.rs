//! What users run has no part in the simulator: no planted bug can be switched on in it, because none is
//! there.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// The crates that users' binaries are made of.
const SHIPPED: [&str; 3] = ["rdb-server", "rdb-cli", "rdb-client"];

/// The workspace's own crates: no other one can depend on the simulator.
fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let run = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "cargo metadata: {said}");
    serde_json::from_slice(&run.stdout).unwrap()
}

#[test]
fn shipped_crates_neither_know_the_simulator_nor_have_a_switch_for_it() {
    let metadata = metadata();
    let packages: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["name"].as_str().unwrap(), package))
        .collect();
    for shipped in SHIPPED {
        let (mut seen, mut open) = (BTreeSet::new(), vec![shipped]);
        while let Some(name) = open.pop() {
            let Some(package) = packages.get(name).filter(|_| seen.insert(name)) else {
                continue;
            };
            let dependencies = package["dependencies"].as_array().unwrap();
            open.extend(
                dependencies
                    .iter()
                    .filter(|dependency| dependency["kind"] != "dev")
                    .map(|dependency| dependency["name"].as_str().unwrap()),
            );
            if name.starts_with("rdb-") {
                let features = package["features"].as_object().unwrap();
                assert!(features.is_empty(), "{name} has features: {features:?}");
            }
        }
        assert!(seen.len() > 2, "{shipped}: {seen:?}");
        assert!(!seen.contains("rdb-sim"), "{shipped} depends on rdb-sim");
    }
}

#[test]
fn shipped_code_has_no_name_of_a_planted_bug() {
    let names: Vec<String> = <rdb_sim::bugs::Bug as clap::ValueEnum>::value_variants()
        .iter()
        .map(|bug| format!("{bug:?}"))
        .chain(
            <rdb_sim::tcp::bugs::Bug as clap::ValueEnum>::value_variants()
                .iter()
                .map(|bug| format!("{bug:?}")),
        )
        .collect();
    assert!(names.len() >= 12);
    let mut read = 0;
    let mut open: Vec<_> = [
        "rdb-server",
        "rdb-storage",
        "rdb-types",
        "rdb-client",
        "rdb-cli",
    ]
    .map(|name| std::path::PathBuf::from(format!("{}/../{name}/src", env!("CARGO_MANIFEST_DIR"))))
    .into();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|item| item.unwrap().path()),
            );
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        read += 1;
        for name in names
            .iter()
            .map(String::as_str)
            .chain(["rdb_sim", "turmoil"])
        {
            assert!(!text.contains(name), "{} names {name}", path.display());
        }
    }
    assert!(read > 100, "only {read} files were looked at");
}
