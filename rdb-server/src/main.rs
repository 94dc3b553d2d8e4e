//! The `rdb-server` process: arguments, configuration, run; nothing else.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the terminal"
)]

use clap::Parser;
use rdb_server::config::{self, Cli, LogConfig, LogFormat};
use rdb_server::logging::{self, LogLevel};
use rdb_server::server::{NewConfig, Store, StoreOptions};
use rdb_server::service_manager;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let code = run_process();
    // Whoever returned early has said his last word; else what waits is written.
    logging::end(None);
    code
}

fn run_process() -> ExitCode {
    let cli = Cli::parse();
    let loaded = match config::load(&cli, config::process_env(), |path| std::fs::read(path)) {
        Ok(loaded) => loaded,
        Err(errors) => {
            // The file's own word on the format is not known: it may be what is wrong.
            let format = cli.log_format.clone().or_else(|| {
                let mut variables = config::process_env();
                variables
                    .find(|(name, _)| name == "FLAREDB_LOG__FORMAT")
                    .map(|(_, value)| value)
            });
            if format.as_deref() == Some("json") && !cli.check_config {
                let log = LogConfig {
                    format: LogFormat::Json,
                    ..LogConfig::default()
                };
                // An error means that nobody could be told.
                let _ = logging::start(&log);
                for error in errors.as_slice() {
                    tracing::error!("{error}");
                }
            } else {
                eprintln!("{errors}");
            }
            return ExitCode::FAILURE;
        }
    };
    if cli.check_config {
        for warning in &loaded.warnings {
            eprintln!("warning: {warning}");
        }
        println!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    let level = match logging::start(&loaded.config.log) {
        Ok(level) => Arc::new(level),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for (name, _) in loaded
        .config
        .namespaces
        .iter()
        .filter(|(_, namespace)| namespace.mode.is_none())
    {
        tracing::warn!(
            "namespaces.{name} names no mode: it declares nothing, and its other keys have no effect"
        );
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    runtime.block_on(run(loaded, cli, level))
}

/// The last word of a process that cannot start or go on: a line as plain as it can be, or in JSON where
/// whoever reads the log expects nothing else.
fn fail(why: &str) -> ExitCode {
    service_manager::failed(why);
    logging::end(Some(why));
    ExitCode::FAILURE
}

async fn run(loaded: config::Loaded, cli: Cli, level: Arc<LogLevel>) -> ExitCode {
    let mut options = StoreOptions::new(loaded.config);
    // A failed sync is final: what was written since the last good one may be gone, and only a restart
    // finds out. Nothing is tried again.
    options.on_fatal = Box::new(|error| {
        tracing::error!(%error, "the disk can no longer be trusted: this process ends");
        logging::end(None);
        std::process::abort();
    });
    options.log_level = Some(level.clone());
    options.read_config = Some(Box::new(move || read_again(&cli, &level)));
    let signals = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(signal);
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = signals else {
        return fail("cannot listen for signals");
    };
    let store = match Store::start(options).await {
        Ok(store) => store,
        Err(error) => return fail(&error.to_string()),
    };
    service_manager::ready();
    let failed = {
        let mut news = pin!(service_manager::keep_told(|| store.missing()));
        loop {
            tokio::select! {
                why = store.failed() => {
                    tracing::info!(why, "leaving");
                    break Some(why);
                }
                _ = terminate.recv() => {
                    tracing::info!(signal = "SIGTERM", "leaving");
                    break None;
                }
                _ = interrupt.recv() => {
                    tracing::info!(signal = "SIGINT", "leaving");
                    break None;
                }
                _ = hangup.recv() => {
                    service_manager::reloading();
                    // What came of it is in the log.
                    drop(store.reload());
                    service_manager::ready();
                }
                () = &mut news => {}
            }
        }
    };
    service_manager::stopping();
    if failed.is_none() {
        tokio::select! {
            () = store.leave() => {}
            // Whoever asks twice does not want to wait.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    store.shutdown().await;
    tracing::info!("stopped");
    match failed {
        None => ExitCode::SUCCESS,
        Some(why) => fail(&why),
    }
}

/// Reads the configuration again, and takes up the log level, which is the process's.
fn read_again(cli: &Cli, level: &LogLevel) -> Result<NewConfig, Vec<String>> {
    let loaded = config::load(cli, config::process_env(), |path| std::fs::read(path));
    let loaded = loaded.map_err(|errors| {
        let errors = errors.as_slice().iter();
        errors.map(ToString::to_string).collect::<Vec<_>>()
    })?;
    let mut warnings = loaded.warnings;
    if let Err(error) = level.set(&loaded.config.log.level) {
        warnings.push(format!("the log level stays as it was: {error}"));
    }
    Ok(NewConfig {
        config: loaded.config,
        warnings,
    })
}
