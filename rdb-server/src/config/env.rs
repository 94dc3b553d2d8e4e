//! The environment: `FLAREDB_SECTION__KEY`.
//!
//! Owns: how a variable's name spells a key. Does not know: types and ranges of keys.
//!
//! Invariants: a `FLAREDB_*` variable that names no key is a warning, never an error, because
//! orchestrators inject some (`FLAREDB_SERVICE_HOST`); others are not looked at; the order of the
//! environment does not matter.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::domain::{is_namespace_name, parse_store_id};
use super::error::{Origin, did_you_mean};
use super::keys::{self, NAMESPACES, PEERS, SECTIONS};
use super::layer::{Layer, Target, illegal_name, illegal_store_id};
use super::suggest::nearest;
use super::value::{Value, bad};

/// What every variable of ours begins with.
pub(crate) const PREFIX: &str = "FLAREDB_";
/// Names the configuration file, as `--config` does.
pub(crate) const CONFIG_FILE: &str = "FLAREDB_CONFIG";
/// What `flaredb` reads.
const CLIENT_ENDPOINTS: &str = "FLAREDB_ENDPOINTS";
/// Between section and key.
const SEPARATOR: &str = "__";

/// The variables of this process that may be ours; bytes that are no UTF-8 are replaced.
///
/// The one impure function of the configuration, for `main` to hand to [`super::load`].
/// (`std::env::vars` would panic at the first foreign variable that is no UTF-8.)
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .filter(|(name, _)| name.starts_with(PREFIX))
}

/// The configuration file that the environment names.
pub(crate) fn config_file(variables: &BTreeMap<String, String>) -> Option<PathBuf> {
    variables
        .get(CONFIG_FILE)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Reads all variables of ours.
pub(crate) fn read(variables: &BTreeMap<String, String>) -> Layer {
    let mut layer = Layer::default();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        // The endpoints are for the clients that share this environment.
        if name == CONFIG_FILE || name == CLIENT_ENDPOINTS {
            continue;
        }
        let rest = rest.to_ascii_lowercase();
        let known = rest
            .split_once(SEPARATOR)
            .is_some_and(|(section, key)| variable(&mut layer, name, section, key, value));
        if !known {
            let hint = did_you_mean(suggestion(&rest).as_deref());
            layer
                .warnings
                .push(format!("{name}: unknown variable, ignored{hint}"));
        }
    }
    layer
}

/// Takes one variable in; `false` if it names no key.
fn variable(layer: &mut Layer, name: &str, section: &str, key: &str, value: &str) -> bool {
    let origin = Origin::Env(name.to_owned());
    let bare = || Value::Bare(value.to_owned());
    if section == NAMESPACES {
        // From the right: a namespace's name may hold the separator, a key never does.
        let Some((namespace, key)) = key.rsplit_once(SEPARATOR) else {
            return false;
        };
        let Some(row) = keys::find_namespace_key(key) else {
            return false;
        };
        if is_namespace_name(namespace) {
            layer.set(
                Target::NamespaceKey(namespace.to_owned(), row),
                bare(),
                origin,
            );
        } else {
            layer.error(
                origin,
                keys::namespace_path(namespace, ""),
                illegal_name(namespace),
            );
        }
    } else if section == "cluster" && key == PEERS {
        peers(layer, &origin, value);
    } else if let Some(id) = key
        .strip_prefix(PEERS)
        .and_then(|rest| rest.strip_prefix(SEPARATOR))
        && section == "cluster"
    {
        match parse_store_id(id) {
            Some(id) => layer.set(Target::Peer(id), bare(), origin),
            None => layer.error(origin, format!("cluster.{PEERS}"), illegal_store_id(id)),
        }
    } else if let Some(row) = keys::find(section, key) {
        layer.set(Target::Key(row), bare(), origin);
    } else {
        return false;
    }
    true
}

/// All peers in one variable: `1=host:port,2=host:port`.
fn peers(layer: &mut Layer, origin: &Origin, value: &str) {
    for entry in value.split(',') {
        peer(layer, origin.clone(), entry.trim());
    }
}

/// One `ID=ADDR`.
pub(crate) fn peer(layer: &mut Layer, origin: Origin, entry: &str) {
    match entry.split_once('=') {
        None => {
            let problem = bad(entry, "a peer (ID=ADDR, such as 2=db2.example:50051)");
            layer.error(origin, format!("cluster.{PEERS}"), problem);
        }
        Some((id, addr)) => match parse_store_id(id) {
            Some(id) => layer.set(Target::Peer(id), Value::Bare(addr.to_owned()), origin),
            None => layer.error(origin, format!("cluster.{PEERS}"), illegal_store_id(id)),
        },
    }
}

/// The name of the variable for a key.
pub(crate) fn variable_of(section: &str, key: &str) -> String {
    format!(
        "{PREFIX}{}{SEPARATOR}{}",
        section.to_ascii_uppercase(),
        key.to_ascii_uppercase()
    )
}

/// The variable that somebody may have meant by `FLAREDB_{rest}` (lower case).
fn suggestion(rest: &str) -> Option<String> {
    if let Some((namespace, key)) = rest
        .strip_prefix("namespaces__")
        .and_then(|rest| rest.rsplit_once(SEPARATOR))
    {
        let key = nearest(key, keys::NAMESPACE_KEYS.iter().map(|row| row.name))?;
        return Some(format!(
            "{}{SEPARATOR}{}",
            variable_of(NAMESPACES, namespace),
            key.to_ascii_uppercase()
        ));
    }
    let known: Vec<(String, String)> = SECTIONS
        .into_iter()
        .flat_map(|section| keys::names_in(section).map(move |key| (section, key)))
        .map(|(section, key)| {
            (
                format!("{section}{SEPARATOR}{key}"),
                variable_of(section, key),
            )
        })
        .collect();
    // One underscore for two is the slip that everybody makes once.
    let single = known
        .iter()
        .find(|(name, _)| name.replacen(SEPARATOR, "_", 1) == rest);
    let near = || nearest(rest, known.iter().map(|(name, _)| name.as_str()));
    let name = single.map(|(name, _)| name.as_str()).or_else(near)?;
    known
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, variable)| variable.clone())
}
