//! `flaredb`: FlareDB on the command line.
//!
//! Owns arguments, output and exit codes; what a request means is the client's and the stores'
//! business. One file for each command in `cmd/`; `args.rs` holds what all of them share.
//!
//! Invariants: data goes to stdout and nothing else does; every failure says what, why and what to do
//! next on stderr and ends with the exit code that `exit.rs` gives it; a reader that went away
//! (`flaredb scan | head`) is no failure.

mod args;
mod cmd;
mod demo;
mod exit;
mod output;
mod text;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&exit::Error::io("cannot start", &error)),
    };
    runtime
        .block_on(cmd::run(args))
        .unwrap_or_else(|error| exit::report(&error))
}
