//! The files of `deploy/` and the operator's page name what there is: needs no promtool (scripts/check-deploy.sh runs
//! that where there is one).

use crate::story::CONTRACT;
use rdb_server::metrics::catalog::{CATALOG, Exported};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const RUNBOOK: &str = "https://github.com/flaredb/flaredb/blob/main/docs/operations.md#";

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every word that begins as our metrics do.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices("flaredb_") {
        let inside = text[..at].chars().next_back().is_some_and(is_part);
        let name: String = text[at..].chars().take_while(|c| is_part(*c)).collect();
        if !inside && name.len() > "flaredb_".len() {
            names.insert(name);
        }
    }
    names
}

fn series() -> BTreeSet<String> {
    CATALOG.iter().flat_map(Exported::series).collect()
}

/// The queries of a dashboard, panel by panel; of rows the panels in them.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut panels: Vec<&Value> = dashboard["panels"].as_array().unwrap().iter().collect();
    while let Some(panel) = panels.pop() {
        panels.extend(panel["panels"].as_array().into_iter().flatten());
        let title = panel["title"].as_str().unwrap().to_owned();
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((title.clone(), target["expr"].as_str().unwrap().to_owned()));
        }
    }
    found
}

/// The values of a key in the rules, one a line.
fn all_of<'a>(rules: &'a str, key: &str) -> Vec<&'a str> {
    let lines = rules
        .lines()
        .map(|line| line.trim_start().trim_start_matches("- "));
    lines
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        .collect()
}

#[test]
fn dashboard_and_alerts_use_only_metrics_that_a_store_exports() {
    let exported = series();
    for path in [
        "deploy/grafana/flaredb.json",
        "deploy/prometheus/flaredb.rules.yml",
        "deploy/prometheus/flaredb.rules.test.yml",
    ] {
        let used = names(&read(path));
        let unknown: Vec<_> = used.difference(&exported).collect();
        assert!(unknown.is_empty(), "{path} uses {unknown:?}");
        assert!(used.len() > 10, "{path} uses only {used:?}");
    }
}

#[test]
fn every_metric_of_the_contract_is_on_the_dashboard() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/flaredb.json")).unwrap();
    let shown: BTreeSet<String> = queries(&dashboard)
        .iter()
        .flat_map(|(_, query)| names(query))
        .collect();
    let missing: Vec<_> = CONTRACT
        .iter()
        .filter(|(name, _)| {
            let listed = CATALOG.iter().find(|it| it.name == *name);
            let series = listed.map(Exported::series).unwrap_or_default();
            !series.iter().any(|name| shown.contains(name))
        })
        .collect();
    assert!(missing.is_empty(), "not on the dashboard: {missing:?}");
    // Panels have their own ids, and none is empty.
    let ids: Vec<&Value> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|panel| &panel["id"])
        .collect();
    let distinct: BTreeSet<String> = ids.iter().map(|id| id.to_string()).collect();
    assert_eq!(ids.len(), distinct.len());
}

/// A dashboard with a slip in a query is an empty panel, and nobody knows why. Where there is no promtool this says so.
#[test]
fn every_query_of_the_dashboard_is_promql() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/flaredb.json")).unwrap();
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    let found = queries(&dashboard);
    assert!(found.len() > 40, "only {} queries", found.len());
    for (number, (_, query)) in found.iter().enumerate() {
        // As Grafana fills them in.
        let query = query.replace("$__rate_interval", "5m");
        let query = query.replace("$job", "flaredb").replace("$namespace", ".*");
        let query = Value::from(query);
        rules += &format!("  - record: panel{number}\n    expr: {query}\n");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, rules).unwrap();
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(file.path())
        .output();
    match checked {
        Err(error) => println!("promtool is not installed ({error}): the queries are not parsed"),
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

#[test]
fn every_alert_has_a_test_and_a_runbook_and_every_runbook_an_alert() {
    let rules = read("deploy/prometheus/flaredb.rules.yml");
    let alerts = all_of(&rules, "alert");
    assert!(alerts.len() > 20, "{alerts:?}");
    let runbooks: Vec<&str> = all_of(&rules, "runbook_url")
        .into_iter()
        .map(|url| url.strip_prefix(RUNBOOK).unwrap_or_else(|| panic!("{url}")))
        .collect();
    let anchors: Vec<String> = alerts.iter().map(|name| name.to_lowercase()).collect();
    assert_eq!(runbooks, anchors, "each alert's runbook has its name");
    for key in ["severity", "summary", "description"] {
        assert_eq!(all_of(&rules, key).len(), alerts.len(), "{key}");
    }
    let page = read("docs/operations.md");
    let sections: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|title| title.starts_with("FlareDB"))
        .collect();
    let named: BTreeSet<&str> = alerts.iter().copied().collect();
    assert_eq!(named.len(), alerts.len(), "an alert twice");
    assert_eq!(
        sections, named,
        "sections of docs/operations.md, and alerts"
    );
    for section in &sections {
        let text = page.split(&format!("### {section}\n")).nth(1).unwrap();
        let text = text.split("\n### ").next().unwrap();
        for part in ["**Means**", "**Look at**", "**Do**"] {
            assert!(text.contains(part), "no {part} in {section}");
        }
    }
    let tests = read("deploy/prometheus/flaredb.rules.test.yml");
    let tested: BTreeSet<&str> = all_of(&tests, "alertname").into_iter().collect();
    let untested: Vec<_> = named.difference(&tested).collect();
    assert!(untested.is_empty(), "not tested: {untested:?}");
}

#[test]
fn the_operators_page_lists_every_metric() {
    let listed = names(&read("docs/operations.md"));
    let missing: Vec<_> = CATALOG
        .iter()
        .filter(|it| !listed.contains(it.name))
        .map(|it| it.name)
        .collect();
    assert!(missing.is_empty(), "not in docs/operations.md: {missing:?}");
    let unknown: Vec<_> = listed
        .into_iter()
        .filter(|name| !series().contains(name) && !CATALOG.iter().any(|it| it.name == *name))
        .collect();
    assert!(unknown.is_empty(), "docs/operations.md names {unknown:?}");
}
