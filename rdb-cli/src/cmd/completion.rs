//! `flaredb completion SHELL`

use crate::args::Args as CommandLine;
use crate::exit::Error;
use crate::output;
use clap::{Args, Command, CommandFactory, ValueEnum, ValueHint};
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
        let mut command = files_only_where_meant(CommandLine::command());
        let generator = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        clap_complete::generate(generator, &mut command, "flaredb", &mut script);
        if matches!(self.shell, Shell::Fish) {
            // The generator leaves arguments without a name to fish, which offers files for them.
            script.extend_from_slice(b"complete -c flaredb -f\n");
            fish_words(&command, &[], &mut script);
        }
        output::raw(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Shells complete file names where nothing else is known. Here only paths are paths: an argument that
/// is no [`std::path::PathBuf`] has its own words completed, or nothing.
fn files_only_where_meant(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let is_unknown = arg.get_value_hint() == ValueHint::Unknown;
            if is_unknown && arg.get_action().takes_values() {
                arg.value_hint(ValueHint::Other)
            } else {
                arg
            }
        })
        .mut_subcommands(files_only_where_meant)
}

/// Lines for fish that complete the words of arguments that have no name.
fn fish_words(command: &Command, path: &[&str], script: &mut Vec<u8>) {
    let condition = match path {
        [] => "__fish_flaredb_needs_command".to_owned(),
        [outer] => format!("__fish_flaredb_using_subcommand {outer}"),
        [outer, inner @ ..] => format!(
            "__fish_flaredb_using_subcommand {outer}; and __fish_seen_subcommand_from {}",
            inner.join(" ")
        ),
    };
    for arg in command.get_positionals() {
        let words = arg.get_possible_values();
        let words: Vec<&str> = words.iter().map(|word| word.get_name()).collect();
        if !words.is_empty() {
            let words = words.join(" ");
            let line = format!("complete -c flaredb -n \"{condition}\" -f -a \"{words}\"\n");
            script.extend_from_slice(line.as_bytes());
        }
    }
    for inner in command.get_subcommands() {
        let path: Vec<&str> = path.iter().copied().chain([inner.get_name()]).collect();
        fish_words(inner, &path, script);
    }
}
