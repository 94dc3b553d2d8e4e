//! `flaredb completion SHELL`

use crate::args::Args as CommandLine;
use crate::exit::Error;
use crate::output;
use clap::{Args, CommandFactory, ValueEnum};
use std::process::ExitCode;

/// Arguments of `completion`.
#[derive(Args, Debug)]
pub(crate) struct Completion {
    shell: Shell,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub(crate) fn run(&self) -> Result<ExitCode, Error> {
        let mut script = Vec::new();
        let mut command = CommandLine::command();
        let generator = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        clap_complete::generate(generator, &mut command, "flaredb", &mut script);
        output::raw(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
