//! The `rdb-server` process: arguments, configuration, run; nothing else.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the terminal"
)]

use clap::Parser;
use rdb_server::config::{self, Cli};
use rdb_server::logging::LogLevel;
use rdb_server::server::{Store, StoreOptions};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = match config::load(&cli, config::process_env(), |path| {
        std::fs::read_to_string(path)
    }) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
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
    let level = match rdb_server::logging::start(&loaded.config.log) {
        Ok(level) => level,
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
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(loaded, &cli, &level))
}

async fn run(loaded: config::Loaded, cli: &Cli, level: &LogLevel) -> ExitCode {
    let mut options = StoreOptions::new(loaded.config);
    // A failed sync is final: what was written since the last good one may be gone, and only a restart
    // finds out. Nothing is tried again.
    options.on_fatal = Box::new(|error| {
        tracing::error!(%error, "the disk can no longer be trusted: this process ends");
        std::process::abort();
    });
    let signals = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(signal);
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = signals else {
        eprintln!("cannot listen for signals");
        return ExitCode::FAILURE;
    };
    let store = match Store::start(options).await {
        Ok(store) => store,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let failed = loop {
        tokio::select! {
            why = store.failed() => break Some(why),
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => reload(&store, cli, level),
        }
    };
    tracing::info!("leaving");
    store.shutdown().await;
    match failed {
        None => ExitCode::SUCCESS,
        Some(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration again. What is wrong with it changes nothing.
fn reload(store: &Store, cli: &Cli, level: &LogLevel) {
    let loaded = match config::load(cli, config::process_env(), |path| {
        std::fs::read_to_string(path)
    }) {
        Ok(loaded) => loaded,
        Err(errors) => {
            for error in errors.as_slice() {
                tracing::error!(%error, "the new configuration is not taken up");
            }
            return;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = level.set(&loaded.config.log) {
        tracing::error!(%error, "the log level stays as it was");
    }
    let (live, restart) = store.reload(&loaded.config);
    for change in &live {
        tracing::info!(%change, "configuration changed");
    }
    for change in &restart {
        tracing::warn!(%change, "this change waits for a restart");
    }
    tracing::info!(
        changed = live.len(),
        waiting = restart.len(),
        "configuration read again"
    );
}
