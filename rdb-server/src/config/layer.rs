//! Settings of one source, and how sources are laid over each other.
//!
//! Owns: what a setting is aimed at, and the rule of precedence. Does not know: how a source
//! spells its settings, nor which values go together.
//!
//! Invariants: a later layer wins key by key, except that the peers are one list, which a later
//! layer replaces as a whole (half a membership from here and half from there is nobody's
//! intention); inside one layer nothing is said twice; the origin of each value is remembered.

use std::collections::BTreeMap;

use super::error::{ConfigError, Origin, Problem};
use super::keys::{Key, PEERS, namespace_path};
use super::schema::{Config, NamespaceConfig};
use super::value::Value;

/// What a setting is aimed at.
pub(crate) enum Target {
    /// A key of the table.
    Key(&'static Key<Config>),
    /// The address of a peer.
    Peer(u16),
    /// The namespace is declared, with defaults for what is not said.
    Namespace(String),
    /// A key of a namespace.
    NamespaceKey(String, &'static Key<NamespaceConfig>),
}

/// One value from one place.
pub(crate) struct Setting {
    pub(crate) target: Target,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// All that one source says, and what is wrong with how it says it.
#[derive(Default)]
pub(crate) struct Layer {
    pub(crate) settings: Vec<Setting>,
    pub(crate) errors: Vec<ConfigError>,
    pub(crate) warnings: Vec<String>,
}

impl Layer {
    pub(crate) fn set(&mut self, target: Target, value: Value, origin: Origin) {
        self.settings.push(Setting {
            target,
            value,
            origin,
        });
    }

    pub(crate) fn error(&mut self, origin: Origin, key: impl Into<String>, problem: Problem) {
        self.errors.push(ConfigError {
            origin,
            key: key.into(),
            problem,
        });
    }
}

impl Target {
    /// The dotted path of the key.
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Key(key) => key.path(),
            Self::Peer(id) => peer_path(*id),
            Self::Namespace(name) => namespace_path(name, ""),
            Self::NamespaceKey(name, key) => namespace_path(name, key.name),
        }
    }

    /// What a second setting of this target is called.
    fn noun(&self) -> &'static str {
        match self {
            Self::Peer(_) => "peer",
            Self::Namespace(_) => "namespace",
            Self::Key(_) | Self::NamespaceKey(..) => "key",
        }
    }
}

/// The dotted path of a peer.
pub(crate) fn peer_path(id: u16) -> String {
    format!("cluster.{PEERS}.{id}")
}

/// Whether `path` is [`peer_path`] of some store, or the whole list.
pub(crate) fn is_peer_path(path: &str) -> bool {
    path.strip_prefix("cluster.")
        .and_then(|rest| rest.strip_prefix(PEERS))
        .is_some()
}

/// A configuration that is being put together, layer by layer.
#[derive(Default)]
pub(crate) struct Assembly {
    pub(crate) config: Config,
    /// Where each value that is no default came from, by path.
    pub(crate) origins: BTreeMap<String, Origin>,
    pub(crate) errors: Vec<ConfigError>,
    pub(crate) warnings: Vec<String>,
}

impl Assembly {
    /// Lays `layer` over what is there.
    pub(crate) fn apply(&mut self, layer: Layer) {
        self.errors.extend(layer.errors);
        self.warnings.extend(layer.warnings);
        if layer
            .settings
            .iter()
            .any(|setting| matches!(setting.target, Target::Peer(_)))
        {
            self.config.cluster.peers.clear();
            self.origins.retain(|path, _| !is_peer_path(path));
        }
        let mut seen: BTreeMap<String, Origin> = BTreeMap::new();
        for Setting {
            target,
            value,
            origin,
        } in layer.settings
        {
            let path = target.path();
            let result = match seen.get(&path) {
                Some(first) => {
                    let first_line = match first {
                        Origin::File { line, .. } => *line,
                        Origin::Default | Origin::Env(_) | Origin::Flag(_) => None,
                    };
                    Err(Problem::Duplicate {
                        what: target.noun(),
                        first_line,
                    })
                }
                None => self.set(&target, &value),
            };
            seen.entry(path.clone()).or_insert_with(|| origin.clone());
            match result {
                Ok(()) => {
                    self.origins.insert(path, origin);
                }
                Err(problem) => self.errors.push(ConfigError {
                    origin,
                    key: path,
                    problem,
                }),
            }
        }
    }

    fn set(&mut self, target: &Target, value: &Value) -> Result<(), Problem> {
        match target {
            Target::Key(key) => (key.set)(&mut self.config, value),
            Target::Peer(id) => {
                self.config.cluster.peers.insert(*id, value.host_port()?);
                Ok(())
            }
            Target::Namespace(name) => {
                self.namespace(name);
                Ok(())
            }
            Target::NamespaceKey(name, key) => (key.set)(self.namespace(name), value),
        }
    }

    fn namespace(&mut self, name: &str) -> &mut NamespaceConfig {
        self.config.namespaces.entry(name.to_owned()).or_default()
    }

    /// Where the value of `path` came from.
    pub(crate) fn origin(&self, path: &str) -> Origin {
        self.origins.get(path).cloned().unwrap_or(Origin::Default)
    }

    /// Whether the value of `path` is what its author wrote: nothing was wrong with it.
    pub(crate) fn is_sound(&self, path: &str) -> bool {
        !self.errors.iter().any(|error| error.key == path)
    }
}

/// The problem with a namespace's name.
pub(crate) fn illegal_name(name: &str) -> Problem {
    super::value::bad(
        name,
        "a namespace name (1 to 64 of a-z 0-9 _ . -, starting with a letter)",
    )
}

/// The problem with a store's id.
pub(crate) fn illegal_store_id(id: &str) -> Problem {
    super::value::bad(id, "a store id (1 to 1023)")
}

/// `namespaces`, for sources that meet the section as a whole.
pub(crate) const NAMESPACES_TABLE: &str = "a table for each namespace ([namespaces.NAME])";
