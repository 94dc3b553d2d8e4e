//! Taking up a new configuration while the store runs.
//!
//! Owns the order of things: read it, compare it with the one in force, put what may change now into force,
//! wake who waits for that, say what changed. Where a configuration comes from is the process's business, and
//! so is its log, whose level can be changed beside the configuration.

use crate::config::{Config, KeyChange, LiveConfig};
use crate::error::Error;
use crate::logging::LogLevel;
use parking_lot::Mutex;
use rdb_types::Reason;
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// Reads the configuration again from where it came. What is wrong with it comes as lines.
pub type ReadConfig = Box<dyn Fn() -> Result<NewConfig, Vec<String>> + Send + Sync>;

/// A configuration that was read again.
pub struct NewConfig {
    /// Checked.
    pub config: Config,
    /// Lines for the log: legal, but probably not meant.
    pub warnings: Vec<String>,
}

/// What a new configuration changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// In force now.
    pub changed: Vec<KeyChange>,
    /// In force after a restart.
    pub waiting: Vec<KeyChange>,
    /// Legal, but probably not meant.
    pub warnings: Vec<String>,
}

/// Takes up new configurations. Apart from the store, so that who asks for it keeps no disk open.
pub struct Reloader {
    config: LiveConfig,
    /// Held while it is read and taken up: of two that come at once the later one counts.
    read: Mutex<Option<ReadConfig>>,
    taken_up: Notify,
    log_level: OnceLock<Arc<LogLevel>>,
}

impl Reloader {
    /// Changes this configuration.
    pub fn new(config: LiveConfig) -> Arc<Reloader> {
        Arc::new(Reloader {
            config,
            read: Mutex::new(None),
            taken_up: Notify::new(),
            log_level: OnceLock::new(),
        })
    }

    /// Says where a new configuration is read from.
    pub fn reads(&self, read: ReadConfig) {
        *self.read.lock() = Some(read);
    }

    /// Says where the level of the log is changed. Once.
    pub fn logs_at(&self, level: Arc<LogLevel>) {
        // A second call would change nothing.
        let _ = self.log_level.set(level);
    }

    /// Changes what is logged, until the next change or reload; of an empty text only says what is. Gives what was
    /// in force before, and what is now.
    ///
    /// # Errors
    /// It is no level, or the log is not this store's.
    pub fn set_log_level(&self, level: &str) -> Result<(String, String), Error> {
        let Some(log) = self.log_level.get() else {
            let text = "this store runs in a process that has a log of its own: its level is changed there";
            return Err(Error::new(Reason::Refused, text));
        };
        if level.is_empty() {
            return Ok((log.get(), log.get()));
        }
        let before = log
            .set(level)
            .map_err(|error| Error::invalid("level", error))?;
        Ok((before, level.to_owned()))
    }

    /// Resolves once a configuration was taken up since the last time. For one who waits.
    pub async fn taken_up(&self) {
        self.taken_up.notified().await;
    }

    /// Reads the configuration again. What is wrong with it changes nothing.
    ///
    /// # Errors
    /// It cannot be read, or is not legal: in one text, all that is wrong.
    pub fn reload(&self) -> Result<Reloaded, Error> {
        let read = self.read.lock();
        let Some(read) = read.as_ref() else {
            let text = "this store was given its configuration by the process that it runs in, and reads none";
            return Err(Error::new(Reason::Refused, text));
        };
        let new = read().map_err(|errors| {
            for error in &errors {
                tracing::error!(%error, "the new configuration is not taken up");
            }
            let text = format!(
                "the new configuration is not taken up: {}",
                errors.join("; ")
            );
            Error::invalid("config", text)
        })?;
        for warning in &new.warnings {
            tracing::warn!("{warning}");
        }
        let (changed, waiting) = self.take_up(&new.config);
        for change in &changed {
            tracing::info!(%change, "configuration changed");
        }
        for change in &waiting {
            tracing::warn!(%change, "this change waits for a restart");
        }
        tracing::info!(
            changed = changed.len(),
            waiting = waiting.len(),
            "configuration read again"
        );
        Ok(Reloaded {
            changed,
            waiting,
            warnings: new.warnings,
        })
    }

    /// Puts into force what may change while the store runs: the changes that are in force now, and those
    /// that wait for a restart.
    fn take_up(&self, new: &Config) -> (Vec<KeyChange>, Vec<KeyChange>) {
        let old = self.config.load();
        let changes = old.diff_reloadable(new);
        self.config.store(Arc::new(old.reloaded(new)));
        self.taken_up.notify_one();
        changes
    }
}
