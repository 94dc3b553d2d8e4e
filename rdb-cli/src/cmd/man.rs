//! `flaredb man DIR`: the manual pages of both programs, for whoever packages them (`make deb`).
//!
//! Owns what becomes of help that roff would spoil. What the pages say is the command lines' own.

use crate::args::Args as CommandLine;
use crate::exit::Error;
use clap::{Args, Command, CommandFactory};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `man`.
#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Where they are written; made if it does not exist
    dir: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> Result<ExitCode, Error> {
        let write = || {
            std::fs::create_dir_all(&self.dir)?;
            for command in [CommandLine::command(), rdb_server::config::Cli::command()] {
                clap_mangen::generate_to(lists_stay_lists(command), &self.dir)?;
            }
            Ok(())
        };
        write().map_err(|error| {
            Error::io(
                &format!("cannot write manual pages to {}", self.dir.display()),
                &error,
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// roff fills paragraphs, and begins a line only where one begins with a space.
fn lists_stay_lists(command: Command) -> Command {
    command
        .mut_args(|arg| match arg.get_long_help().map(ToString::to_string) {
            Some(help) => arg.long_help(help.replace("\n- ", "\n  - ")),
            None => arg,
        })
        .mut_subcommands(lists_stay_lists)
}
