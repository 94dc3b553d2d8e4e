//! `rdb-chaos`: arguments, a run or the controls, the report.
//!
//! A command: it prints. Exit codes: 0 everything held, 1 something broke or could not be done, 2 usage.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the terminal"
)]

use clap::Parser;
use rdb_chaos::cluster::ClusterOptions;
use rdb_chaos::faults::Kind;
use rdb_chaos::heal::{HealOptions, heal};
use rdb_chaos::run::{Ended, RunOptions, run};
use rdb_chaos::{ChaosError, control, network};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Runs real FlareDB stores under faults and judges what their clients saw.
#[derive(Parser, Debug)]
#[command(name = "rdb-chaos", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// One fault after the other on a cluster of three under load; exit code 1 when a promise broke
    Run(Run),
    /// Whether the harness is worth anything: a healthy etcd passes, a broken client is caught
    Control {
        /// What the clients choose
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
        /// Leave etcd out where it is not installed, and say so, instead of failing
        #[arg(long)]
        etcd_if_installed: bool,
        #[command(flatten)]
        on: On,
    },
    /// Both sides of a cut write to an eventual namespace; the cut is healed, and the lag falls
    ///
    /// Exit code 1 unless all replicas become equal in time and hold what was acknowledged.
    Heal(Heal),
}

#[derive(clap::Args, Debug)]
struct Heal {
    /// Records that each side writes, one in ten under a key of the other
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Size of each value
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    value_bytes: u32,
    /// Seconds after the heal within which all have to be equal
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    within: u32,
    /// No store may hold more memory [default: as much as it takes]
    #[arg(long, value_name = "MIB")]
    resident_mib: Option<u64>,
    #[command(flatten)]
    on: On,
}

#[derive(clap::Args, Debug)]
struct Run {
    /// For how long; the last round is finished [default: 10, unless --rounds is given]
    #[arg(long, value_name = "N", value_parser = minutes)]
    minutes: Option<f64>,
    /// How many faults, the skipped ones included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Repeats a schedule [default: another one each time; it is printed]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// These kinds of faults alone
    #[arg(long, value_name = "FAULT,...", value_delimiter = ',', value_enum)]
    only: Vec<Kind>,
    /// No freeze or cut lasts longer (it is part of the schedule)
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    longest: u32,
    /// Limits are that many times the aims: how slow a machine may be
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    patience: u32,
    #[command(flatten)]
    on: On,
}

#[derive(clap::Args, Debug)]
struct On {
    /// The rdb-server to run [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    rdb_server: Option<PathBuf>,
    /// Where logs and data are while it runs, and stay when something broke
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// How the stores reach each other
    #[arg(long, value_enum, default_value_t)]
    network: network::Kind,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.01..=100_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("minutes are a number from 0.01 to 100000".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The main thread owns the stores: it starts them (they end with it), and drops them.
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rdb-chaos: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let held = runtime.block_on(async {
        tokio::select! {
            held = execute(args.command) => held,
            // Dropping what runs ends processes, mounts and networks.
            signal = interrupted() => {
                eprintln!("rdb-chaos: {signal}");
                false
            }
        }
    });
    // A judge that still thinks is nobody's concern.
    runtime.shutdown_background();
    if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Waits to be told to end.
async fn interrupted() -> &'static str {
    let terminate = signal(SignalKind::terminate());
    let terminated = async {
        match terminate {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => "interrupted",
        _ = terminated => "told to end",
    }
}

async fn execute(command: Command) -> bool {
    let done = match command {
        Command::Run(args) => chaos(args).await,
        Command::Control {
            seed,
            etcd_if_installed,
            on,
        } => controls(seed, etcd_if_installed, on).await,
        Command::Heal(args) => healed(args).await,
    };
    match done {
        Ok(held) => held,
        Err(error) => {
            eprintln!("rdb-chaos: {error}");
            false
        }
    }
}

impl On {
    fn options(self) -> Result<ClusterOptions, ChaosError> {
        let program = rdb_bench::flaredb::find_server(self.rdb_server.as_deref())
            .map_err(|error| ChaosError::Harness(error.to_string()))?;
        Ok(ClusterOptions {
            program,
            parent: self.dir,
            network: self.network,
        })
    }
}

async fn chaos(args: Run) -> Result<bool, ChaosError> {
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let minutes = args.minutes.or(args.rounds.is_none().then_some(10.0));
    let options = RunOptions {
        seed,
        kinds: if args.only.is_empty() {
            Kind::ALL.to_vec()
        } else {
            args.only
        },
        longest: Duration::from_secs(args.longest.into()),
        time: minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
        rounds: args.rounds,
        patience: args.patience,
        cluster: args.on.options()?,
    };
    println!("seed {seed}: the same schedule again with --seed {seed}");
    Ok(match run(&options, &|line| println!("{line}")).await {
        Ended::Held(summary) => {
            println!("\n{summary}");
            println!(
                "\n{} rounds, {} skipped: everything held (seed {seed})",
                summary.rounds(),
                summary.skipped()
            );
            // Nothing inflicted is nothing proven.
            summary.rounds() > 0
        }
        Ended::Broken { error, kept } => {
            eprintln!("\nrdb-chaos: {error}");
            eprintln!("rdb-chaos: the same schedule again with --seed {seed}");
            if let Some(kept) = kept {
                eprintln!(
                    "rdb-chaos: kept in {}: store-N.log, history.txt, and the data in store-N or, as images of \
                     file systems (mount -o loop), in disk-N.img",
                    kept.display()
                );
            }
            false
        }
    })
}

async fn healed(args: Heal) -> Result<bool, ChaosError> {
    let options = HealOptions {
        records: args.records,
        value_bytes: args.value_bytes as usize,
        within: Duration::from_secs(args.within.into()),
        resident_mib: args.resident_mib,
        cluster: args.on.options()?,
    };
    match heal(&options, &|line| println!("{line}")).await {
        Ok(healed) => {
            let ((listed, dropped), [one, two, three]) = (healed.conflicts, healed.resident_mib);
            println!(
                "every acknowledged write is there or lost to a newer one: {} keys, {listed} conflicts listed, \
                 {dropped} pushed out of the list; resident at most {one} {two} {three} MiB; equal after {:.2} s",
                healed.keys,
                healed.equal_after.as_secs_f64()
            );
            Ok(true)
        }
        Err((error, kept)) => {
            if let Some(kept) = kept {
                eprintln!("rdb-chaos: kept in {}", kept.display());
            }
            Err(error)
        }
    }
}

async fn controls(seed: u64, etcd_if_installed: bool, on: On) -> Result<bool, ChaosError> {
    let options = on.options()?;
    let mut held = true;
    println!("a healthy etcd of three nodes must pass");
    match control::healthy_etcd(seed).await {
        Ok(Some(told)) => println!("passed: {told}"),
        Ok(None) => {
            let why =
                "etcd is not on the PATH (Debian: etcd-server; scripts/chaos-setup.sh installs it)";
            if etcd_if_installed {
                println!("LEFT OUT: {why}");
            } else {
                held = false;
                eprintln!("rdb-chaos: control FAILED: {why}");
            }
        }
        Err(error) => {
            held = false;
            eprintln!("rdb-chaos: control FAILED: {error}");
        }
    }
    println!("FlareDB through clients that take stale reads for linearizable ones must be caught");
    match control::stale_reads(seed, &options).await {
        Ok(told) => println!("caught: {told}"),
        Err(error) => {
            held = false;
            eprintln!("rdb-chaos: control FAILED: {error}");
        }
    }
    Ok(held)
}
