//! Where a store's log lines go: standard error, as text or JSON, at a level that can be changed while it runs.
//!
//! Owns the filter and what stands in it now, and the one way out of this process ([`outlet`]: nobody waits for who reads
//! the log). Does not know who asks for another level (a reload, an operator).
//!
//! Invariant: a level that the configuration would refuse changes nothing.

mod outlet;

use crate::config::{LogConfig, LogFormat, is_log_level};
use outlet::Outlet;
use parking_lot::Mutex;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::thread;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

/// Of the process, as its subscriber is: none until [`start`].
static OUTLET: OnceLock<Outlet> = OnceLock::new();

type Put = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// The level of a running process.
pub struct LogLevel {
    put: Put,
    /// Held while it is changed: of two that come at once the later one counts.
    now: Mutex<String>,
}

impl LogLevel {
    /// What is in force, as it was given.
    pub fn get(&self) -> String {
        self.now.lock().clone()
    }

    /// Puts another level into force, and says so in the log. Gives the one that was.
    ///
    /// # Errors
    /// It is none; the old one stays.
    pub fn set(&self, level: &str) -> Result<String, String> {
        let filter = filter(level)?;
        let mut now = self.now.lock();
        let before = now.clone();
        if before == level {
            return Ok(before);
        }
        // Under the old level, if that lets it through; else under the new one.
        let told = tracing::enabled!(tracing::Level::WARN);
        let tell = || tracing::warn!(before, level, "the log level is changed");
        if told {
            tell();
        }
        (self.put)(filter)?;
        if !told {
            tell();
        }
        level.clone_into(&mut now);
        Ok(before)
    }
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    if !is_log_level(level) {
        return Err(format!(
            "{level:?} is no log level: off, error, warn, info, debug, trace, or directives such as info,rdb_server::raft=debug"
        ));
    }
    // Consensus and HTTP/2 talk about themselves in detail; who leads and what is lost, the store says.
    let directives = if level.contains('=') {
        level.to_owned()
    } else {
        format!("{level},openraft=error,h2=error,tonic=error")
    };
    EnvFilter::try_new(&directives).map_err(|error| format!("log.level {level:?}: {error}"))
}

/// Starts logging for the process. Called once, by a binary, which calls [`end`] before it ends.
///
/// # Errors
/// The level is not one that the filter understands.
pub fn start(config: &LogConfig) -> Result<LogLevel, String> {
    let (level, handle) = reload::Layer::new(filter(&config.level)?);
    let outlet = OUTLET.get_or_init(|| Outlet::open(config.format));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(outlet.lines());
    let lines = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // An error means that somebody started logging before, a test for instance.
    let _ = tracing_subscriber::registry()
        .with(level)
        .with(lines)
        .try_init();
    // The usual hook would wait for who reads standard error, and hold the thread that panics.
    std::panic::set_hook(Box::new(|panic| outlet.at_once(&panicked(panic))));
    let put: Put = Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()));
    Ok(LogLevel {
        put,
        now: Mutex::new(config.level.clone()),
    })
}

/// The words of the usual hook.
fn panicked(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let words = format!("thread '{name}' {panic}");
    // As RUST_BACKTRACE says.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        format!("{words}\nstack backtrace:\n{trace}")
    } else {
        words
    }
}

/// Ends logging: what waits is written, and behind it `word`, whatever the level is; as a plain line, or in JSON where that
/// is the format. Takes two seconds at most, also where nobody reads. A line that comes later is lost.
pub fn end(word: Option<&str>) {
    if let Some(outlet) = OUTLET.get() {
        outlet.end(word);
    }
}

/// Lines that were dropped since the start of this process, because nobody took them from standard error.
pub fn dropped_lines() -> u64 {
    OUTLET.get().map_or(0, Outlet::dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_level_that_is_none_changes_nothing() {
        let puts = Arc::<Mutex<Vec<String>>>::default();
        let seen = puts.clone();
        let level = LogLevel {
            put: Box::new(move |filter| {
                seen.lock().push(filter.to_string());
                Ok(())
            }),
            now: Mutex::new("info".to_owned()),
        };
        // The filter itself would take a word that it does not know for a target, and be silent of all else.
        for wrong in ["", "verbose", "INFO", "info,", "a b=info"] {
            assert!(level.set(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!((level.get().as_str(), puts.lock().len()), ("info", 0));
        assert_eq!(level.set("debug").as_deref(), Ok("info"));
        assert_eq!(level.set("debug").as_deref(), Ok("debug"));
        assert_eq!(
            level.set("info,rdb_server::raft=trace").as_deref(),
            Ok("debug")
        );
        assert_eq!(level.get(), "info,rdb_server::raft=trace");
        assert_eq!(puts.lock().len(), 2);
        assert!(
            puts.lock()[0].contains("openraft=error"),
            "{:?}",
            puts.lock()
        );
    }
}
