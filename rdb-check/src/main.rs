//! `rdb-check`: judges recorded histories from the command line.
//!
//! Owns arguments, output and exit codes. What a verdict means and how it is found is the library's.
//!
//! Exit codes: 0 every file was decided (a violation is a result, not a failure of this program,
//! unless `--expect` says otherwise), 1 one could not be read or decided, or was not as expected,
//! 2 wrong usage.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use rdb_check::{Verdict, check_linearizable, jepsen};

/// Judges what a cluster did by what its clients saw.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Decide whether register histories in Jepsen's log format are linearizable.
    ///
    /// Prints "FILE linearizable" or "FILE not_linearizable" for each. Exits with 0 when every file
    /// was decided, whatever the verdict, and with 1 when one could not be.
    Jepsen {
        /// Logs to judge, each of one register.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Exit with 1 unless this is the verdict of every file.
        #[arg(long, value_name = "VERDICT")]
        expect: Option<Expected>,
        /// Say on standard error why a history is not linearizable.
        #[arg(long)]
        explain: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Expected {
    Linearizable,
    NotLinearizable,
}

fn main() -> ExitCode {
    let Command::Jepsen {
        files,
        expect,
        explain,
    } = Cli::parse().command;
    match judge_files(&files, expect, explain) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever read our output has seen enough, or cannot be told anything.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Judges each file, going on after one that cannot be judged; whether all went well.
fn judge_files(files: &[PathBuf], expect: Option<Expected>, explain: bool) -> io::Result<bool> {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    let mut all_well = true;
    for file in files {
        let calls = match jepsen::read_file(file) {
            Ok(calls) => calls,
            Err(error) => {
                writeln!(err, "rdb-check: {error}")?;
                all_well = false;
                continue;
            }
        };
        let file = file.display();
        let found = match check_linearizable(&calls) {
            Verdict::Linearizable => Expected::Linearizable,
            Verdict::NotLinearizable(explanation) => {
                if explain {
                    writeln!(err, "{file}: {explanation}")?;
                }
                Expected::NotLinearizable
            }
            Verdict::Undecided { why } => {
                writeln!(err, "rdb-check: {file}: undecided: {why}")?;
                all_well = false;
                continue;
            }
        };
        let name = match found {
            Expected::Linearizable => "linearizable",
            Expected::NotLinearizable => "not_linearizable",
        };
        writeln!(out, "{file} {name}")?;
        all_well &= expect.is_none_or(|expected| expected == found);
    }
    out.flush()?;
    Ok(all_well)
}
