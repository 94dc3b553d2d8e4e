//! What a reload applies, and what it says it does not.

use std::time::Duration;

use rdb_server::config::{Config, KeyChange};

use super::{ALL_KEYS, FULL, config};

#[test]
fn a_reload_says_what_it_applied_and_what_needs_a_restart() {
    let old = config(
        "[namespaces.logs]\nmode = \"strong\"\n[namespaces.gone]\nmode = \"strong\"\n",
        &[],
        &[],
    );
    let new = config(
        "[store]\naddr = \"127.0.0.1:6000\"\n[consistency]\nquorum_timeout = \"3s\"\nmax_clock_skew = \"1s\"\n\
         [namespaces.logs]\nmode = \"eventual\"\nttl = \"1h\"\n[namespaces.new]\nmode = \"eventual\"\n[log]\nlevel = \"debug\"\n",
        &[],
        &["--store-id", "1", "--peer", "1=127.0.0.1:6000"],
    );
    let (live, restart) = old.diff_reloadable(&new);
    let lines = |changes: &[KeyChange]| changes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        lines(&live),
        [
            "consistency.quorum_timeout: \"2s\" -> \"3s\"",
            "log.level: \"info\" -> \"debug\"",
            "namespaces.gone: declared -> (not set)",
            "namespaces.gone.mode: \"strong\" -> (not set)",
            "namespaces.logs.mode: \"strong\" -> \"eventual\"",
            "namespaces.logs.ttl: (not set) -> \"1h\"",
            "namespaces.new: (not set) -> declared",
            "namespaces.new.mode: (not set) -> \"eventual\"",
        ]
    );
    assert_eq!(
        lines(&restart),
        [
            "store.addr: \"127.0.0.1:50051\" -> \"127.0.0.1:6000\"",
            "consistency.max_clock_skew: \"500ms\" -> \"1s\"",
            "cluster.peers: (not set) -> { 1 = \"127.0.0.1:6000\" }",
        ]
    );

    let in_force = old.reloaded(&new);
    assert_eq!(in_force.consistency.quorum_timeout, Duration::from_secs(3));
    assert_eq!(in_force.log.level, "debug");
    assert_eq!(in_force.namespaces, new.namespaces);
    assert_eq!(in_force.store, old.store);
    assert_eq!(
        in_force.consistency.max_clock_skew,
        old.consistency.max_clock_skew
    );
    // What is left to do is what was said to need a restart, and a second reload changes nothing.
    assert_eq!(in_force.diff_reloadable(&new), (Vec::new(), restart));
    assert_eq!(in_force.reloaded(&new), in_force);
}

#[test]
fn a_reload_without_changes_is_silent() {
    let config = config(FULL, &[], &[]);
    assert_eq!(
        config.diff_reloadable(&config.clone()),
        (Vec::new(), Vec::new())
    );
}

#[test]
fn every_key_is_in_the_diff() {
    let (live, restart) = Config::default().diff_reloadable(&config(FULL, &[], &[]));
    let changed: Vec<&str> = live
        .iter()
        .chain(&restart)
        .map(|change| change.key.as_str())
        .collect();
    for key in ALL_KEYS
        .iter()
        .filter(|key| !key.starts_with("namespaces."))
    {
        assert!(changed.contains(key), "{key} differs and is not reported");
    }
    assert!(changed.contains(&"namespaces.logs") && changed.contains(&"namespaces.logs.mode"));
}
