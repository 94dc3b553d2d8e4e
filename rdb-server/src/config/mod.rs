//! The configuration of a store: schema, defaults, validation, reload.
//!
//! Owns: which keys exist, what they may say, which source wins, and every text that an operator
//! reads about it. Does not know: how a component uses a value, nor where files and variables
//! really are: [`load`] gets both as arguments and is a pure function of them.
//!
//! ```text
//! file.rs (+ outline.rs) ┐
//! env.rs                 ├─> settings ──> layer.rs ──> check.rs ──> Config (schema.rs)
//! cli.rs                 ┘   one row each of keys.rs; value.rs and units.rs read the values
//! ```
//!
//! Invariants:
//! - Flags win over environment over file over defaults, key by key (peers: list by list).
//! - All errors are reported, not only the first; one slip makes one error.
//! - A [`Config`] that [`load`] returned needs no further check by whoever uses it.
//! - Nothing is read from the process and nothing is touched; `--check-config` is safe anywhere.

mod check;
mod cli;
mod domain;
mod env;
mod error;
mod file;
mod keys;
mod layer;
mod outline;
mod reload;
mod schema;
mod suggest;
mod units;
mod value;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use cli::Cli;
pub use domain::{Durability, Mode};
pub use env::process_env;
pub use error::{ConfigError, ConfigErrors, Origin, Problem};
pub use reload::KeyChange;
pub use schema::{
    ClusterConfig, Config, ConsistencyConfig, EngineKind, LimitsConfig, LogConfig, LogFormat,
    NamespaceConfig, RaftConfig, SplitKey, StoreConfig,
};
pub use units::{ByteSize, parse_duration, show_duration};
pub(crate) use value::is_log_level;

use layer::Assembly;

/// The configuration in force, shared by whoever reads live keys; a reload puts another one in its
/// place.
pub type LiveConfig = std::sync::Arc<arc_swap::ArcSwap<Config>>;

/// A configuration, and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration, checked.
    pub config: Config,
    /// Lines for the log: legal, but probably not meant.
    pub warnings: Vec<String>,
    /// The file that was read, if one was named; a reload reads it again.
    pub file: Option<PathBuf>,
}

/// Puts the configuration together from a file, the environment and flags.
///
/// `env` may hold foreign variables (see [`process_env`]); `read_file` is called at most once,
/// with the path that `--config` or else `FLAREDB_CONFIG` names.
///
/// # Errors
/// Everything that is wrong with any of the sources, each with its place.
pub fn load<T: AsRef<[u8]>>(
    cli: &Cli,
    env: impl Iterator<Item = (String, String)>,
    read_file: impl Fn(&Path) -> io::Result<T>,
) -> Result<Loaded, ConfigErrors> {
    // Sorted, so that what is said does not depend on the order of the environment.
    let variables: BTreeMap<String, String> = env
        .filter(|(name, _)| name.starts_with(env::PREFIX))
        .collect();
    let path = cli.config.clone().or_else(|| env::config_file(&variables));

    let mut assembly = Assembly::default();
    if let Some(path) = &path {
        assembly.apply(match read_file(path) {
            Ok(bytes) => match std::str::from_utf8(bytes.as_ref()) {
                Ok(text) => file::read(path, text),
                Err(error) => file::no_text(path, bytes.as_ref(), error.valid_up_to()),
            },
            Err(error) => file::unreadable(path, &error),
        });
    }
    assembly.apply(env::read(&variables));
    assembly.apply(cli.layer());
    check::check(&mut assembly);

    ConfigErrors::check(assembly.errors)?;
    Ok(Loaded {
        config: assembly.config,
        warnings: assembly.warnings,
        file: path,
    })
}
