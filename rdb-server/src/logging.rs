//! Where a store's log lines go: standard error, as text or JSON.

use crate::config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging for the process. Called once, by a binary; a second call changes nothing.
///
/// # Errors
/// The level is not one that the filter understands.
pub fn start(config: &LogConfig) -> Result<(), String> {
    // Consensus talks about every election in detail; what an operator needs of it, the store says itself.
    let directives = if config.level.contains('=') { config.level.clone() } else { format!("{},openraft=error,h2=error,tonic=error", config.level) };
    let filter = EnvFilter::try_new(&directives).map_err(|error| format!("log.level {:?}: {error}", config.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error means that somebody started logging before, a test for instance.
    let _ = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    Ok(())
}
