//! What a new configuration changes in a running store.
//!
//! Owns: the comparison of two configurations, and the one that is in force after a reload.
//! Does not know: how a component takes a value up; `keys.rs` says which ones do.
//!
//! Invariant: `a.reloaded(&b)` differs from `a` in exactly the live keys of `a.diff_reloadable(&b)`,
//! and what it still lacks of `b` is exactly that diff's other half.

use std::collections::BTreeSet;
use std::fmt;

use super::keys::{KEYS, NAMESPACE_KEYS, PEERS, Reload, namespace_path};
use super::schema::{Config, NamespaceConfig};

/// One key whose value differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The key, dotted.
    pub key: String,
    /// The value in force, as TOML; `None` if it was not set.
    pub from: Option<String>,
    /// The value wanted, as TOML; `None` if it is not set any more.
    pub to: Option<String>,
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "(not set)".to_owned());
        write!(
            f,
            "{}: {} -> {}",
            self.key,
            show(&self.from),
            show(&self.to)
        )
    }
}

impl Config {
    /// What differs between the configuration in force and `new`: the changes that a reload takes
    /// up, and those that wait for a restart.
    #[must_use]
    pub fn diff_reloadable(&self, new: &Self) -> (Vec<KeyChange>, Vec<KeyChange>) {
        let (mut live, mut restart) = (Vec::new(), Vec::new());
        for key in KEYS {
            let change = change(key.path(), (key.show)(self), (key.show)(new));
            match key.reload {
                Reload::Live => live.extend(change),
                Reload::Restart => restart.extend(change),
            }
        }
        restart.extend(change(
            format!("cluster.{PEERS}"),
            show_peers(self),
            show_peers(new),
        ));
        // Sets are ordered, so the lines of a log come in the same order each time.
        let names: BTreeSet<&String> = self
            .namespaces
            .keys()
            .chain(new.namespaces.keys())
            .collect();
        for name in names {
            let (from, to) = (self.namespaces.get(name), new.namespaces.get(name));
            let declared =
                |namespace: Option<&NamespaceConfig>| namespace.map(|_| "declared".to_owned());
            live.extend(change(
                namespace_path(name, ""),
                declared(from),
                declared(to),
            ));
            for key in NAMESPACE_KEYS {
                let show = |namespace: Option<&NamespaceConfig>| {
                    namespace.and_then(|namespace| (key.show)(namespace))
                };
                if from.is_some() && to.is_some() {
                    live.extend(change(namespace_path(name, key.name), show(from), show(to)));
                } else if key.name == "mode" {
                    // The one key of a new or a dropped declaration that somebody waits for: it is
                    // a vote, or the end of one.
                    live.extend(change(namespace_path(name, key.name), show(from), show(to)));
                }
            }
        }
        (live, restart)
    }

    /// The configuration in force after a reload: this one, with the live keys of `new`.
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        let mut next = self.clone();
        for key in KEYS.iter().filter(|key| key.reload == Reload::Live) {
            (key.copy)(new, &mut next);
        }
        next.namespaces = new.namespaces.clone();
        next
    }

    /// The whole configuration as a file that would say the same, defaults included.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{}]\n", key.section));
                section = key.section;
                if let ("cluster", Some(peers)) = (section, show_peers(self)) {
                    text.push_str(&format!("{PEERS} = {peers}\n"));
                }
            }
            if let Some(value) = (key.show)(self) {
                text.push_str(&format!("{} = {value}\n", key.name));
            }
        }
        for (name, namespace) in &self.namespaces {
            text.push_str(&format!("\n[{}]\n", namespace_path(name, "")));
            for key in NAMESPACE_KEYS {
                if let Some(value) = (key.show)(namespace) {
                    text.push_str(&format!("{} = {value}\n", key.name));
                }
            }
        }
        text
    }
}

fn change(key: String, from: Option<String>, to: Option<String>) -> Option<KeyChange> {
    (from != to).then_some(KeyChange { key, from, to })
}

fn show_peers(config: &Config) -> Option<String> {
    let peers = &config.cluster.peers;
    let entries: Vec<String> = peers
        .iter()
        .map(|(id, addr)| format!("{id} = {addr:?}"))
        .collect();
    (!peers.is_empty()).then(|| format!("{{ {} }}", entries.join(", ")))
}
