//! `rdb-sim`: runs seeds.
#![allow(clippy::print_stdout, reason = "printing is what a command does")]
#![allow(clippy::print_stderr, reason = "so is saying what is wrong with it")]

use clap::{Args, Parser, Subcommand};
use rdb_sim::bugs::Bug;
use rdb_sim::search::{self, Limits, record_next, resume_from, search, shrink};
use rdb_sim::tcp;
use rdb_sim::world::{Report, RunOptions, run};
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(
    name = "rdb-sim",
    version,
    about = "Runs a cluster of FlareDB under simulated faults, from a seed"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one seed and say what held. Exit code 1: something did not.
    Run {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Leave these faults of the plan out, by their numbers.
        #[arg(long, value_delimiter = ',')]
        without: Vec<usize>,
        /// Print every event to standard error.
        #[arg(long)]
        events: bool,
        /// Print the stores' own logs to standard error. RUST_LOG chooses them.
        #[arg(long)]
        logs: bool,
        #[command(flatten)]
        size: Size,
    },
    /// Run one seed after the other. Exit code 1: some failed; each is printed with the command that runs
    /// it again.
    Search {
        /// Seeds at most.
        #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
        seeds: u64,
        /// Minutes at most.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The first seed; without it, the search goes on where the last one in --state was stopped.
        #[arg(long)]
        first: Option<u64>,
        /// Where a search notes how far it came.
        #[arg(long)]
        state: Option<PathBuf>,
        /// Stop at the first failing seed.
        #[arg(long)]
        stop: bool,
        /// A search that ran fewer seeds has failed, too.
        #[arg(long, default_value_t = 1)]
        at_least_seeds: u64,
        /// A search in which fewer regions changed their mode has failed, too.
        #[arg(long, default_value_t = 0)]
        at_least_switches: u64,
        #[command(flatten)]
        size: Size,
    },
    /// Leave out faults of a failing seed as long as it still fails.
    Shrink {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Runs at most.
        #[arg(long, default_value_t = 100)]
        runs: usize,
        #[command(flatten)]
        size: Size,
    },
    /// Run seeds in the other mode: real gRPC and the real client over simulated TCP. Exit code 1: some
    /// failed.
    Tonic {
        /// Seeds at most.
        #[arg(long, default_value_t = 24)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Plant this bug.
        #[arg(long)]
        bug: Option<tcp::bugs::Bug>,
        /// Plant each bug, and count the seeds until it is caught. Exit code 1: one was not.
        #[arg(long, conflicts_with = "bug")]
        controls: bool,
        /// Simulated seconds of faults.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: u64,
        /// Operations a second.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=5_000))]
        rate: u64,
        /// Print every event to standard error.
        #[arg(long)]
        events: bool,
        /// Print the stores' own logs to standard error. RUST_LOG chooses them.
        #[arg(long)]
        logs: bool,
    },
    /// Plant each bug, and count the seeds until it is caught. Exit code 1: one was not.
    Bugs {
        /// Seeds for each bug at most.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// Only this one.
        #[arg(long)]
        only: Option<Bug>,
        #[command(flatten)]
        size: Size,
    },
}

#[derive(Args)]
struct Size {
    /// Plant this bug.
    #[arg(long)]
    bug: Option<Bug>,
    /// Stores of the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    stores: u64,
    /// Simulated seconds of faults.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Operations a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=5_000))]
    rate: u64,
    /// Clients of strong namespaces alone, and no switches.
    #[arg(long)]
    strong: bool,
}

impl Size {
    fn options(&self, seed: u64) -> RunOptions {
        let usual = RunOptions::new(seed);
        let nobody = (0, 1);
        RunOptions {
            eventual: if self.strong { nobody } else { usual.eventual },
            switched: if self.strong { nobody } else { usual.switched },
            bug: self.bug,
            stores: self.stores,
            fault_s: self.seconds,
            rate: self.rate,
            ..usual
        }
    }
}

fn main() -> ExitCode {
    match command(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rdb-sim: {error}");
            ExitCode::from(2)
        }
    }
}

fn command(command: Command) -> std::io::Result<ExitCode> {
    match command {
        Command::Run {
            seed,
            without,
            events,
            logs,
            size,
        } => {
            if logs {
                print_logs();
            }
            let options = RunOptions {
                without: without.into_iter().collect(),
                print: events,
                ..size.options(seed)
            };
            let began = Instant::now();
            let report = run(&options)?;
            for (number, planned) in report.plan.iter().enumerate() {
                let out = if options.without.contains(&number) {
                    "left out "
                } else {
                    ""
                };
                println!("fault {number:>3} {out}{planned}");
            }
            print(&report, began.elapsed());
            Ok(code(report.violations.is_empty()))
        }
        Command::Search {
            seeds,
            minutes,
            first,
            state,
            stop,
            at_least_seeds,
            at_least_switches,
            size,
        } => {
            let first = match (&state, first) {
                (_, Some(first)) => first,
                (Some(file), None) => resume_from(file)?,
                (None, None) => 1,
            };
            let limits = Limits {
                seeds,
                time: Duration::from_secs(minutes * 60),
            };
            let began = Instant::now();
            let mut noted = Ok(());
            let found = search(&size.options(first), first, &limits, |report| {
                if let Some(file) = &state {
                    noted = record_next(file, report.seed + 1);
                }
                if !report.violations.is_empty() {
                    say_failed(report, &size);
                }
                noted.is_ok() && (!stop || report.violations.is_empty())
            })?;
            noted?;
            let (real, simulated) = (began.elapsed(), found.simulated);
            println!(
                "{} seeds from {first}, {} failed; {} switches of a region done, {} seals given up; {:.0} s simulated in {:.1} s, {:.0} times real time",
                found.seeds,
                found.failed.len(),
                found.switches,
                found.aborted,
                simulated.as_secs_f64(),
                real.as_secs_f64(),
                simulated.as_secs_f64() / real.as_secs_f64().max(0.001)
            );
            let enough = found.seeds >= at_least_seeds && found.switches >= at_least_switches;
            if !enough {
                eprintln!(
                    "rdb-sim: that is too little: {at_least_seeds} seeds and {at_least_switches} switches at least; give it more --seeds and --minutes"
                );
            }
            Ok(code(found.failed.is_empty() && enough))
        }
        Command::Shrink { seed, runs, size } => {
            let smallest = shrink(&size.options(seed), runs)?;
            let report = run(&smallest)?;
            for (number, planned) in report.plan.iter().enumerate() {
                if !smallest.without.contains(&number) {
                    println!("fault {number:>3} {planned}");
                }
            }
            for violation in &report.violations {
                println!("{violation}");
            }
            println!("again: {}", again(seed, &smallest.without, &size));
            Ok(code(report.violations.is_empty()))
        }
        Command::Bugs { seeds, only, size } => match only {
            Some(bug) => one_bug(seeds, bug, &size),
            None => bugs(seeds, &size),
        },
        Command::Tonic {
            seeds,
            first,
            bug,
            controls,
            seconds,
            rate,
            events,
            logs,
        } => {
            if logs {
                print_logs();
            }
            let base = tcp::Options {
                bug,
                rate,
                fault_s: seconds,
                print: events,
                ..tcp::Options::new(first)
            };
            Ok(code(if controls {
                tonic_controls(seeds, &base)
            } else {
                tonic(seeds, &base)
            }))
        }
    }
}

fn print_logs() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .without_time()
        .init();
}

/// Runs seeds over simulated TCP. Whether everything held.
fn tonic(seeds: u64, base: &tcp::Options) -> bool {
    let (mut failed, mut simulated_ms, began) = (0_u64, 0, Instant::now());
    for seed in (base.seed..).take(usize::try_from(seeds).unwrap_or(usize::MAX)) {
        let options = tcp::Options {
            seed,
            ..base.clone()
        };
        let began = Instant::now();
        let report = tcp::run(&options);
        simulated_ms += report.simulated_ms;
        println!(
            "seed {seed}: {} faults, {} restarts, {} writes acknowledged, {} unknown, {} reads, {} entries looked at, {:.0} times real time, trace {:016x} of {} events",
            report.plan.len(),
            report.restarts,
            report.tally.acknowledged,
            report.tally.unknown,
            report.tally.read,
            report.looked.entries,
            report.simulated_ms as f64 / 1_000.0 / began.elapsed().as_secs_f64().max(0.001),
            report.trace.0,
            report.trace.1
        );
        if !report.violations.is_empty() {
            failed += 1;
            for planned in &report.plan {
                println!("  {planned}");
            }
            for violation in &report.violations {
                println!("  BROKEN {violation}");
            }
            println!(
                "  again: rdb-sim tonic --first {seed} --seeds 1 --seconds {} --rate {}",
                options.fault_s, options.rate
            );
        }
    }
    println!(
        "{seeds} seeds from {}, {failed} failed; {:.0} times real time",
        base.seed,
        simulated_ms as f64 / 1_000.0 / began.elapsed().as_secs_f64().max(0.001)
    );
    failed == 0 && seeds > 0
}

/// Plants each bug of that mode. Whether every one was caught.
fn tonic_controls(seeds: u64, base: &tcp::Options) -> bool {
    let mut all_caught = true;
    println!("{:<28} {:>6}  caught by", "bug", "seeds");
    for bug in <tcp::bugs::Bug as clap::ValueEnum>::value_variants() {
        let name = clap::ValueEnum::to_possible_value(bug)
            .map_or_else(String::new, |value| value.get_name().to_owned());
        let caught = (1..=seeds).find_map(|seed| {
            let report = tcp::run(&tcp::Options {
                seed,
                bug: Some(*bug),
                ..base.clone()
            });
            let caught: BTreeSet<_> = report.violations.iter().map(|v| v.invariant).collect();
            (!caught.is_empty()).then_some((seed, caught))
        });
        match caught {
            Some((seed, by)) => {
                let by: Vec<_> = by.into_iter().collect();
                println!("{name:<28} {seed:>6}  {}", by.join(", "));
            }
            None => {
                all_caught = false;
                println!("{name:<28} {seeds:>6}  nobody");
            }
        }
    }
    all_caught
}

/// Plants each bug in a process of its own, as many at a time as there are cores: a run owns its process, for
/// it listens to panics. Lines come in the order of the list.
fn bugs(seeds: u64, size: &Size) -> std::io::Result<ExitCode> {
    println!("{BUGS_HEADING}");
    let me = std::env::current_exe()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut waiting = <Bug as clap::ValueEnum>::value_variants().iter();
    let (mut running, mut all_caught) = (VecDeque::new(), true);
    loop {
        while running.len() < cores
            && let Some(bug) = waiting.next()
        {
            let mut child = std::process::Command::new(&me);
            child.args(["bugs", "--only", &name(*bug), "--seeds", &seeds.to_string()]);
            child.args(["--stores", &size.stores.to_string()]);
            child.args(["--seconds", &size.seconds.to_string()]);
            child.args(["--rate", &size.rate.to_string()]);
            running.push_back(child.stdout(std::process::Stdio::piped()).spawn()?);
        }
        let Some(first) = running.pop_front() else {
            return Ok(code(all_caught));
        };
        let output = first.wait_with_output()?;
        all_caught &= output.status.success();
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .filter(|line| *line != BUGS_HEADING)
            .for_each(|line| println!("{line}"));
    }
}

/// The first line of the table of bugs.
const BUGS_HEADING: &str = "bug                           seeds  caught by";

fn name(bug: Bug) -> String {
    clap::ValueEnum::to_possible_value(&bug)
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Plants one bug, and counts the seeds until it is caught.
fn one_bug(seeds: u64, bug: Bug, size: &Size) -> std::io::Result<ExitCode> {
    let base = RunOptions {
        bug: Some(bug),
        ..size.options(1)
    };
    let limits = Limits {
        seeds,
        time: Duration::from_secs(3600),
    };
    let found = search::search(&base, 1, &limits, |report| report.violations.is_empty())?;
    let caught: BTreeSet<_> = match found.failed.first() {
        Some(report) => report.violations.iter().map(|v| v.invariant).collect(),
        None => ["nobody"].into(),
    };
    let by: Vec<_> = caught.into_iter().collect();
    println!("{BUGS_HEADING}");
    println!("{:<28} {:>6}  {}", name(bug), found.seeds, by.join(", "));
    Ok(code(!found.failed.is_empty()))
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn again(seed: u64, without: &BTreeSet<usize>, size: &Size) -> String {
    let mut command = format!("rdb-sim run --seed {seed}");
    if !without.is_empty() {
        let numbers: Vec<_> = without.iter().map(usize::to_string).collect();
        command.push_str(&format!(" --without {}", numbers.join(",")));
    }
    if size.stores != 3 {
        command.push_str(&format!(" --stores {}", size.stores));
    }
    if size.seconds != 60 {
        command.push_str(&format!(" --seconds {}", size.seconds));
    }
    if size.rate != 200 {
        command.push_str(&format!(" --rate {}", size.rate));
    }
    if size.strong {
        command.push_str(" --strong");
    }
    if let Some(value) = size
        .bug
        .and_then(|bug| clap::ValueEnum::to_possible_value(&bug))
    {
        command.push_str(&format!(" --bug {}", value.get_name()));
    }
    command
}

fn say_failed(report: &Report, size: &Size) {
    println!("seed {} failed", report.seed);
    for violation in &report.violations {
        println!("  {violation}");
    }
    println!("  again: {}", again(report.seed, &BTreeSet::new(), size));
}

fn print(report: &Report, took: Duration) {
    let simulated = Duration::from_millis(report.simulated_ms);
    println!(
        "seed {}: {:.1} s simulated in {:.2} s ({:.0} times real time), {} restarts",
        report.seed,
        simulated.as_secs_f64(),
        took.as_secs_f64(),
        simulated.as_secs_f64() / took.as_secs_f64().max(0.001),
        report.restarts,
    );
    println!(
        "writes: {} acknowledged, {} of unknown outcome; reads: {}; refusals: {:?}",
        report.tally.acknowledged, report.tally.unknown, report.tally.read, report.tally.refused
    );
    println!(
        "looked at: {} leaders of terms, {} committed entries, {} digests",
        report.looked.leaders, report.looked.entries, report.looked.digests
    );
    let eventual = &report.eventual;
    println!(
        "eventual: {} acknowledged, {} entries, {} digests; equal after {} ms{}",
        eventual.acknowledged,
        eventual.entries,
        eventual.digests,
        eventual.converged_ms,
        if eventual.held > 0 {
            ", but for streams of a store that was alone with a wild clock"
        } else {
            ""
        }
    );
    let switches = &report.switches;
    println!(
        "switches: {} regions became eventual, {} strong, {} seals were given up; {} began by votes; the last ended {} ms after the healing",
        switches.opened, switches.sealed, switches.aborted, report.voted, switches.settled_ms
    );
    println!(
        "switched: {} writes acknowledged as strong, {} as eventual; {} calls judged from a seal on, {} writes set aside",
        report.switched_acknowledged.0,
        report.switched_acknowledged.1,
        switches.judged,
        switches.set_aside
    );
    println!("trace: {:016x}, {} events", report.trace.0, report.trace.1);
    if report.violations.is_empty() {
        println!("everything held");
    }
    for violation in &report.violations {
        println!("BROKEN {violation}");
    }
}
