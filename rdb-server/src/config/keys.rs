//! The table of keys: name, type, range, and whether a change is taken up while running.
//!
//! Owns: which keys exist. Does not know: how they are written in a file, a variable or a flag.
//!
//! Invariants: every field of the schema has exactly one row here or is a map handled by name
//! (`cluster.peers`, `namespaces`); reading, showing and reloading all go through the row, so
//! they cannot disagree.
//!
//! A row is [`Reload::Live`] only where the server reads the value anew on each use. Whoever makes
//! a component do so (or stop doing so) changes the row with it.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::domain::{Mode, STORE_IDS, parse_durability, parse_mode};
use super::error::Problem;
use super::schema::{Config, EngineKind, LogFormat, NamespaceConfig};
use super::units::{ByteSize, show_duration};
use super::value::Value;

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reload {
    /// On reload.
    Live,
    /// When the process starts again.
    Restart,
}

/// One key of `T`: the whole configuration, or one namespace.
pub(crate) struct Key<T: 'static> {
    /// The section; empty for a key of a namespace.
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    pub(crate) reload: Reload,
    /// Reads `value` and stores it.
    pub(crate) set: fn(&mut T, &Value) -> Result<(), Problem>,
    /// The value as a TOML literal; `None` where it is not set and has no default.
    pub(crate) show: fn(&T) -> Option<String>,
    /// Takes the value over from another `T`.
    pub(crate) copy: fn(&T, &mut T),
}

impl<T> Key<T> {
    /// `section.name`.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// The section that holds one table per namespace.
pub(crate) const NAMESPACES: &str = "namespaces";
/// The key of `[cluster]` that holds one entry per store.
pub(crate) const PEERS: &str = "peers";
/// All sections.
pub(crate) const SECTIONS: [&str; 8] = [
    "store",
    "cluster",
    "consistency",
    "raft",
    NAMESPACES,
    "storage",
    "limits",
    "log",
];

pub(crate) const MODES: &str = "a mode (strong or eventual)";

const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const MONTH: Duration = Duration::from_secs(30 * 86_400);
const CENTURY: Duration = Duration::from_secs(36_500 * 86_400);

const NOTHING: ByteSize = ByteSize::from_bytes(0);
const BYTE: ByteSize = ByteSize::from_bytes(1);
const KIB: ByteSize = ByteSize::from_kib(1);
const MIB: ByteSize = ByteSize::from_mib(1);
const GIB: ByteSize = ByteSize::from_mib(1024);
const TIB: ByteSize = ByteSize::from_mib(1024 * 1024);

/// A row: where the field is, when it reloads, how it is read, how it is shown.
macro_rules! key {
    ($section:ident.$field:ident, $reload:ident, $read:expr, $show:expr) => {
        Key {
            section: stringify!($section),
            name: stringify!($field),
            reload: Reload::$reload,
            set: |config: &mut Config, value: &Value| {
                config.$section.$field = $read(value)?;
                Ok(())
            },
            show: |config: &Config| $show(&config.$section.$field),
            copy: |from: &Config, to: &mut Config| {
                to.$section.$field = from.$section.$field.clone()
            },
        }
    };
}

/// The same for a key of a namespace; they are all read through the current configuration.
macro_rules! namespace_key {
    ($field:ident, $read:expr, $show:expr) => {
        Key {
            section: "",
            name: stringify!($field),
            reload: Reload::Live,
            set: |namespace: &mut NamespaceConfig, value: &Value| {
                namespace.$field = $read(value)?;
                Ok(())
            },
            show: |namespace: &NamespaceConfig| $show(&namespace.$field),
            copy: |from: &NamespaceConfig, to: &mut NamespaceConfig| {
                to.$field = from.$field.clone()
            },
        }
    };
}

/// Every key but those of maps, in the order of the documentation.
pub(crate) static KEYS: &[Key<Config>] = &[
    key!(store.id, Restart, store_id, bare),
    key!(store.addr, Restart, Value::socket_addr, text),
    key!(store.http_addr, Restart, Value::socket_addr, text),
    key!(
        store.advertise_addr,
        Restart,
        |v: &Value| v.host_port().map(Some),
        optional_text
    ),
    key!(store.data_dir, Restart, Value::path, path),
    key!(
        store.engine,
        Restart,
        |v: &Value| v.word(EngineKind::parse, "an engine (rocksdb or memory)"),
        text
    ),
    key!(
        store.shutdown_delay,
        Live,
        // What ends a process by force waits no longer than that, or not much.
        |v: &Value| v.duration(Duration::ZERO..=MINUTE),
        duration
    ),
    key!(cluster.name, Restart, Value::name, text),
    key!(cluster.bootstrap_split, Restart, Value::split_keys, list),
    key!(consistency.default_mode, Restart, mode, text),
    key!(
        consistency.quorum_timeout,
        Live,
        |v: &Value| v.duration(MS..=HOUR),
        duration
    ),
    key!(
        consistency.request_timeout,
        Live,
        |v: &Value| v.duration(MS..=HOUR),
        duration
    ),
    key!(
        consistency.switch_timeout,
        Live,
        |v: &Value| v.duration(MS..=DAY),
        duration
    ),
    key!(
        consistency.seal_timeout,
        Live,
        |v: &Value| v.duration(MS..=HOUR),
        duration
    ),
    key!(
        consistency.mismatch_after,
        Live,
        |v: &Value| v.duration(MS..=DAY),
        duration
    ),
    key!(
        consistency.max_clock_skew,
        Restart,
        |v: &Value| v.duration(MS..=HOUR),
        duration
    ),
    key!(
        consistency.request_id_retention,
        Restart,
        |v: &Value| v.duration(MS..=MONTH),
        duration
    ),
    key!(consistency.auto_create, Live, Value::boolean, bare),
    key!(
        raft.heartbeat,
        Restart,
        |v: &Value| v.duration(MS..=MINUTE),
        duration
    ),
    key!(
        raft.election_min,
        Restart,
        |v: &Value| v.duration(MS..=HOUR),
        duration
    ),
    key!(
        raft.election_max,
        Restart,
        |v: &Value| v.duration(MS..=HOUR),
        duration
    ),
    key!(
        raft.snapshot_after,
        Restart,
        |v: &Value| v.integer(1..=1_000_000_000),
        bare
    ),
    key!(
        raft.max_batch,
        Restart,
        |v: &Value| v.integer(1..=65_536),
        bare
    ),
    key!(
        storage.reserve,
        Restart,
        |v: &Value| v.size(NOTHING..=TIB),
        text
    ),
    key!(limits.max_key, Live, |v: &Value| v.size(BYTE..=MIB), text),
    key!(limits.max_value, Live, |v: &Value| v.size(BYTE..=GIB), text),
    key!(
        limits.max_request,
        Restart,
        |v: &Value| v.size(KIB..=GIB),
        text
    ),
    key!(
        limits.max_inflight,
        Restart,
        |v: &Value| v.integer(1..=1_000_000),
        bare
    ),
    key!(
        limits.max_connections,
        Restart,
        |v: &Value| v.integer(1..=1_000_000),
        bare
    ),
    key!(limits.origin_log, Live, |v: &Value| v.size(KIB..=TIB), text),
    key!(
        limits.watch_history,
        Restart,
        |v: &Value| v.integer(1..=100_000_000),
        bare
    ),
    key!(log.level, Live, Value::log_level, text),
    key!(
        log.format,
        Restart,
        |v: &Value| v.word(LogFormat::parse, "a log format (text or json)"),
        text
    ),
];

/// Every key of `[namespaces.NAME]`.
pub(crate) static NAMESPACE_KEYS: &[Key<NamespaceConfig>] = &[
    namespace_key!(mode, |v: &Value| mode(v).map(Some), optional_text),
    namespace_key!(
        durability,
        |v: &Value| v.word(parse_durability, "a durability (sync or relaxed)"),
        text
    ),
    namespace_key!(
        max_lag,
        |v: &Value| v.duration(MS..=MONTH).map(Some),
        optional_duration
    ),
    namespace_key!(
        ttl,
        |v: &Value| v.duration(MS..=CENTURY).map(Some),
        optional_duration
    ),
    namespace_key!(conflict_log, |v: &Value| v.size(KIB..=TIB), text),
];

/// The key `name` of `section`.
pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key<Config>> {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
}

/// The key `name` of a namespace.
pub(crate) fn find_namespace_key(name: &str) -> Option<&'static Key<NamespaceConfig>> {
    NAMESPACE_KEYS.iter().find(|key| key.name == name)
}

/// The names of the keys that `section` has.
pub(crate) fn names_in(section: &str) -> impl Iterator<Item = &'static str> {
    let peers = (section == "cluster").then_some(PEERS);
    KEYS.iter()
        .filter(move |key| key.section == section)
        .map(|key| key.name)
        .chain(peers)
}

/// The dotted path of a namespace's key, or of the namespace for an empty `key`.
pub(crate) fn namespace_path(name: &str, key: &str) -> String {
    let namespace = format!("{NAMESPACES}.{}", dotted(name));
    if key.is_empty() {
        namespace
    } else {
        format!("{namespace}.{}", dotted(key))
    }
}

/// A name as part of a dotted path: quoted unless it is a bare TOML key.
pub(crate) fn dotted(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare {
        name.to_owned()
    } else {
        super::value::quoted(name)
    }
}

fn store_id(value: &Value) -> Result<u16, Problem> {
    const IDS: RangeInclusive<u64> = *STORE_IDS.start() as u64..=*STORE_IDS.end() as u64;
    let id = value.integer(IDS)?;
    // The range is one of u16, so nothing is cut off.
    Ok(id as u16)
}

fn mode(value: &Value) -> Result<Mode, Problem> {
    value.word(parse_mode, MODES)
}

fn bare(value: &impl ToString) -> Option<String> {
    Some(value.to_string())
}

/// A TOML string. Rust's escapes differ from TOML's in rare control characters only.
fn text(value: &impl Display) -> Option<String> {
    Some(toml::Value::String(value.to_string()).to_string())
}

fn path(value: &Path) -> Option<String> {
    text(&value.display())
}

fn optional_text(value: &Option<impl Display>) -> Option<String> {
    value.as_ref().and_then(text)
}

fn duration(value: &Duration) -> Option<String> {
    text(&show_duration(*value))
}

fn optional_duration(value: &Option<Duration>) -> Option<String> {
    value.as_ref().and_then(duration)
}

/// Nothing for an empty list, so that a hidden key stays out of sight.
fn list(values: &[impl Display]) -> Option<String> {
    let items: Vec<String> = values.iter().filter_map(text).collect();
    (!items.is_empty()).then(|| format!("[{}]", items.join(", ")))
}
