//! The commands, a file each.
//!
//! Owns only which is which. Each gives the exit code of what it found, or an error.

pub(crate) mod advance_clock;
pub(crate) mod cas;
pub(crate) mod completion;
pub(crate) mod conflicts;
pub(crate) mod del;
pub(crate) mod get;
pub(crate) mod log_level;
pub(crate) mod man;
pub(crate) mod ns;
pub(crate) mod put;
mod receipt;
pub(crate) mod reload;
pub(crate) mod scan;
pub(crate) mod status;
pub(crate) mod top;
mod value;
pub(crate) mod verify;
pub(crate) mod watch;

use crate::args::{Args, Command};
use crate::exit::Error;
use std::process::ExitCode;

pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    let Args { shared, command } = args;
    match command {
        Command::Get(get) => get.run(&shared).await,
        Command::Put(put) => put.run(&shared).await,
        Command::Del(del) => del.run(&shared).await,
        Command::Cas(cas) => cas.run(&shared).await,
        Command::Scan(scan) => scan.run(&shared).await,
        Command::Watch(watch) => watch.run(&shared).await,
        Command::Ns(ns) => ns.run(&shared).await,
        Command::Conflicts(conflicts) => conflicts.run(&shared).await,
        Command::Verify(verify) => verify.run(&shared).await,
        Command::Status => status::run(&shared).await,
        Command::Top(top) => top.run(&shared).await,
        Command::Reload => reload::run(&shared).await,
        Command::LogLevel(level) => level.run(&shared).await,
        Command::AdvanceClock(advance) => advance.run(&shared).await,
        Command::Demo(demo) => demo.run().await,
        Command::Completion(completion) => completion.run(),
        Command::Man(man) => man.run(),
    }
}
