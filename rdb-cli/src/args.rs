//! The command line: what every command takes, and the client that comes of it.
//!
//! Owns the names of flags (a contract). A command's own arguments are beside the command.

use crate::cmd;
use crate::exit::{self, Error};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use rdb_client::{Client, ClientOptions, RetryPolicy};
use std::time::Duration;

/// FlareDB on the command line.
#[derive(Parser, Debug)]
#[command(name = "flaredb", version, about = "FlareDB on the command line", after_help = exit::TABLE)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(ClapArgs, Debug)]
pub(crate) struct Shared {
    /// Stores to ask, in order of preference; a single one is never left for another
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT,...",
        env = "FLAREDB_ENDPOINTS"
    )]
    #[arg(
        value_delimiter = ',',
        default_value = "127.0.0.1:50051",
        help_heading = "Everywhere"
    )]
    pub(crate) endpoints: Vec<String>,

    /// The namespace
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        default_value = "default",
        help_heading = "Everywhere"
    )]
    pub(crate) namespace: String,

    /// How to print [default: raw for get; else table on a terminal and jsonl off it]
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    #[arg(help_heading = "Everywhere")]
    #[arg(long_help = "How to print\n\
        - table  columns for people\n\
        - json   one document, indented\n\
        - jsonl  one document a line, as they come\n\
        - raw    values alone: a value's bytes for get, a version for put, del and cas, key TAB value for scan, what \
        TAB key TAB value for watch\n\
        \n\
        raw escapes nothing: where keys or values of a scan or a watch hold a TAB or a line's end, take another format.\n\
        \n\
        In JSON, numbers of 64 bits are strings, and a key or value that is no UTF-8 text stands in key_base64 or \
        value_base64. Default: raw for get; else table on a terminal and jsonl off it")]
    pub(crate) output: Option<Format>,

    /// How long to wait for the answer, all attempts included: 500ms, 10s, 2m
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = duration, allow_hyphen_values = true)]
    #[arg(help_heading = "Everywhere")]
    pub(crate) timeout: Duration,
}

/// How to print.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
    Jsonl,
    Raw,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Read a key
    ///
    /// Prints the value and nothing else, unless another format is chosen. A key that does not exist
    /// prints nothing: exit code 3.
    Get(cmd::get::Get),
    /// Write a key
    ///
    /// Prints the version that the key has now.
    Put(cmd::put::Put),
    /// Remove a key
    ///
    /// Prints whether it existed. That it did not is no failure: it is gone either way.
    Del(cmd::del::Del),
    /// Change a key only while it is at a version (compare and swap)
    ///
    /// Needs a strong namespace. When it loses nothing is changed, the version that is there is printed,
    /// and the exit code is 5.
    Cas(cmd::cas::Cas),
    /// Read a range of keys, in order
    ///
    /// Prints entries as they come. --timeout bounds the wait for each page of them.
    Scan(cmd::scan::Scan),
    /// Changes of keys, as they happen
    ///
    /// Goes on until Ctrl-C, also when the store that tells them fails, and then says how to go on. --timeout
    /// bounds how long no store may serve it. In a strong namespace every change is told once and in order; in
    /// an eventual one as the asked store applies it, and another one may tell some again.
    Watch(cmd::watch::Watch),
    /// Namespaces and their modes
    #[command(subcommand)]
    Ns(cmd::ns::Ns),
    /// One screen: whether to worry, about what, and what to do; then stores, regions and namespaces
    ///
    /// As one store sees it. Exit code 0 while every region has a quorum, 4 otherwise.
    Status,
    /// The same, refreshed, with what is asked of it each second; q quits
    Top(cmd::top::Top),
    /// Writes to an eventual namespace that lost to concurrent ones, and the way back for them
    Conflicts(cmd::conflicts::Conflicts),
    /// Compare what all replicas of a namespace hold
    ///
    /// Waits until all have applied the same writes, and compares digests. Exit code 0: equal. 1: not
    /// equal. 4: a store does not answer, or they have not applied the same within --timeout.
    Verify(cmd::verify::Verify),
    /// Have every store of --endpoints read its configuration again, as SIGHUP does
    Reload,
    /// What stores log, changed while they run; without a level: what it is
    ///
    /// Lasts until it is changed again, a reload, or a restart.
    LogLevel(cmd::log_level::LogLevel),
    /// Have the stamps of all stores go on from the present, where the clocks of a majority were behind it
    ///
    /// The present is what this machine's clock says. Without --yes it shows where each store is, and changes
    /// nothing. Exit code 4: a store has not followed within --timeout.
    AdvanceClock(cmd::advance_clock::AdvanceClock),
    /// See it work: three stores here, broken on purpose, and judged
    Demo(crate::demo::Demo),
    /// A completion script for your shell
    ///
    /// For bash: source <(flaredb completion bash)
    Completion(cmd::completion::Completion),
    /// Write the manual pages of flaredb and rdb-server, for a package
    #[command(hide = true)]
    Man(cmd::man::Man),
}

impl Shared {
    /// The client that the flags describe. It sends each request as a call of its own and, unlike a
    /// program, does not wait for stores to be started.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        self.client_of(self.endpoints.clone())
    }

    /// As [`Shared::client`], of these stores.
    pub(crate) fn client_of(&self, endpoints: Vec<String>) -> Result<Client, Error> {
        let attempts = u32::try_from(endpoints.len() * 2)
            .unwrap_or(u32::MAX)
            .max(5);
        Ok(Client::new(ClientOptions {
            endpoints,
            request_timeout: self.timeout,
            batch: false,
            wait_for_ready: false,
            discover: false,
            retry: RetryPolicy {
                max_attempts: Some(attempts),
                ..RetryPolicy::default()
            },
            ..ClientOptions::default()
        })?)
    }
}

/// Longest first, so that the largest unit that divides a duration shows it.
const UNITS_MS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// As [`duration`] reads it.
pub(crate) fn show_duration(ms: u64) -> String {
    let whole = UNITS_MS
        .iter()
        .find(|(_, unit_ms)| ms >= *unit_ms && ms.is_multiple_of(*unit_ms));
    let (unit, unit_ms) = whole.unwrap_or(&("ms", 1));
    format!("{}{unit}", ms / unit_ms)
}

/// `500ms`, `10s`, `15m`, `24h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let known = UNITS_MS.iter().find(|(name, _)| *name == unit);
    let (_, unit_ms) =
        known.ok_or("a duration is a whole number and ms, s, m, h or d, as in 500ms or 10s")?;
    let number: u64 = number
        .parse()
        .map_err(|_| "a duration begins with a whole number, as in 500ms".to_owned())?;
    let ms = number
        .checked_mul(*unit_ms)
        .ok_or_else(|| "that is too long".to_owned())?;
    if ms == 0 {
        return Err("it must be more than 0".to_owned());
    }
    Ok(Duration::from_millis(ms))
}

/// Which reads are good enough.
#[derive(ClapArgs, Debug, Default)]
pub(crate) struct Consistency {
    /// Take what the asked store has now, even without a quorum; how old it may be is said on stderr
    #[arg(long, conflicts_with = "linearizable")]
    stale: bool,
    /// Demand a linearizable read (what a strong namespace gives anyway)
    #[arg(long)]
    linearizable: bool,
}

impl Consistency {
    /// Whether the answer may be old.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(crate) fn options(&self) -> rdb_client::ReadOptions {
        match (self.stale, self.linearizable) {
            (true, _) => rdb_client::ReadOptions::stale(),
            (_, true) => rdb_client::ReadOptions::linearizable(),
            _ => rdb_client::ReadOptions::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
            assert_eq!(show_duration(ms), text);
        }
        let shown = [0, 1, 1_500, 90_000, 3_162_240_000_000].map(show_duration);
        assert_eq!(shown, ["0ms", "1ms", "1500ms", "90s", "36600d"]);
        for bad in [
            "",
            "5",
            "ms",
            "-5s",
            "1.5s",
            "5 s",
            "0s",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
