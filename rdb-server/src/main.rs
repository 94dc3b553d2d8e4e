//! The `rdb-server` process: arguments, configuration, run; nothing else.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the terminal")]

use clap::Parser;
use rdb_server::config::{self, Cli};
use rdb_server::server::{Store, StoreOptions};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = match config::load(&cli, config::process_env(), |path| std::fs::read_to_string(path)) {
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
    if let Err(error) = rdb_server::logging::start(&loaded.config.log) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(loaded))
}

async fn run(loaded: config::Loaded) -> ExitCode {
    let mut options = StoreOptions::new(loaded.config);
    // A failed sync is final: what was written since the last good one may be gone, and only a restart
    // finds out. Nothing is tried again.
    options.on_fatal = Box::new(|error| {
        tracing::error!(%error, "the disk can no longer be trusted: this process ends");
        std::process::abort();
    });
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("cannot listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let store = match Store::start(options).await {
        Ok(store) => store,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let failed = tokio::select! {
        why = store.failed() => Some(why),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
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
