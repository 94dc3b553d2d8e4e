//! Where a store's log lines go: standard error, as text or JSON, at a level that a reload can change.

use crate::config::{LogConfig, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

/// Changes the level of a running process.
pub struct LogLevel(Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>);

impl LogLevel {
    /// Takes up the level of a new configuration.
    ///
    /// # Errors
    /// The level is not one that the filter understands; the old one stays.
    pub fn set(&self, config: &LogConfig) -> Result<(), String> {
        (self.0)(filter(config)?)
    }
}

fn filter(config: &LogConfig) -> Result<EnvFilter, String> {
    // Consensus and HTTP/2 talk about themselves in detail; who leads and what is lost, the store says.
    let directives = if config.level.contains('=') {
        config.level.clone()
    } else {
        format!("{},openraft=error,h2=error,tonic=error", config.level)
    };
    EnvFilter::try_new(&directives)
        .map_err(|error| format!("log.level {:?}: {error}", config.level))
}

/// Starts logging for the process. Called once, by a binary.
///
/// # Errors
/// The level is not one that the filter understands.
pub fn start(config: &LogConfig) -> Result<LogLevel, String> {
    let (level, handle) = reload::Layer::new(filter(config)?);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // An error means that somebody started logging before, a test for instance.
    let _ = tracing_subscriber::registry()
        .with(level)
        .with(lines)
        .try_init();
    Ok(LogLevel(Box::new(move |filter| {
        handle.reload(filter).map_err(|error| error.to_string())
    })))
}
