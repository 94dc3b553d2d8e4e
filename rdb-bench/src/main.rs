//! `rdb-bench`: arguments, the run, the report.
//!
//! A command: it prints. Exit codes: 0 measured, 1 could not be run, 2 usage. A bad result is a
//! result.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command talks to the terminal"
)]

use clap::Parser;
use rdb_bench::convergence::Buckets;
use rdb_bench::etcd::Etcd;
use rdb_bench::flaredb::FlareDb;
use rdb_bench::plan::{Op, Plan, Workload};
use rdb_bench::redis::{self, Redis};
use rdb_bench::report::{self, Measured, Results};
use rdb_bench::run::{self, Sample};
use rdb_bench::target::{Kind, Target};
use rdb_bench::{BenchError, etcd, failover, flaredb, summary, switching};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Measures put and get on three-node clusters that it starts itself, FlareDB and etcd by turns, and
/// tells the ratios. Both run on this machine, together with their clients.
#[derive(Parser, Debug)]
#[command(name = "rdb-bench", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// What to measure; both by default, where etcd is installed
    #[arg(long, value_enum, value_name = "STORE")]
    target: Option<Which>,
    /// Seconds of each measurement
    #[arg(long, value_name = "N", default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Callers at the same time, one measurement for each number
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,64,256", value_parser = clap::value_parser!(u32).range(1..=4096))]
    callers: Vec<u32>,
    /// Operations to measure
    #[arg(
        long,
        value_name = "OP,...",
        value_delimiter = ',',
        value_enum,
        default_value = "put,get"
    )]
    ops: Vec<Op>,
    /// Size of each value
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    value_bytes: u32,
    /// Keys that are loaded first, and used
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// FlareDB: a plain gRPC call for each operation, instead of the client's shared stream
    #[arg(long)]
    unary: bool,
    /// The rdb-server to measure [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    rdb_server: Option<PathBuf>,
    /// Where the JSON goes
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    results: PathBuf,
}

/// What else can be measured.
#[derive(clap::Subcommand, Debug)]
enum Other {
    /// How long writes stand still when the leader is killed (kill -9), as a client sees it
    ///
    /// FlareDB alone. The killed store is restarted and waited for each time. Exit code 1 also when a
    /// write under way fails or an acknowledged one is lost.
    Failover {
        /// How often
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        times: u32,
        /// The rdb-server to measure [default: the one beside this program]
        #[arg(long, value_name = "FILE")]
        rdb_server: Option<PathBuf>,
    },
    /// How long writes stand still when a namespace changes its mode, as clients and stores see it
    ///
    /// FlareDB alone, under load. Exit code 1 also when a write fails or an acknowledged one is lost.
    Switch {
        /// How often there and back, at each number of keys
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        times: u32,
        /// Keys in the namespace, growing
        #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1000,100000,1000000", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        keys: Vec<u64>,
        /// The rdb-server to measure [default: the one beside this program]
        #[arg(long, value_name = "FILE")]
        rdb_server: Option<PathBuf>,
    },
    /// Puts in a strong, an eventual and a relaxed namespace of one cluster, and in Redis, by turns
    ///
    /// Redis syncs its file every second and has two replicas (Debian: redis-server); without it FlareDB is
    /// measured alone. Also tells how soon the other stores had what one accepted.
    Eventual {
        /// Seconds of each measurement
        #[arg(long, value_name = "N", default_value_t = 3.0, value_parser = seconds)]
        seconds: f64,
        /// How often everything is measured
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// Callers at the same time, one measurement for each number
        #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,64,256", value_parser = clap::value_parser!(u32).range(1..=4096))]
        callers: Vec<u32>,
        /// The rdb-server to measure [default: the one beside this program]
        #[arg(long, value_name = "FILE")]
        rdb_server: Option<PathBuf>,
        /// Where the JSON goes
        #[arg(long, value_name = "DIR", default_value = "bench/results")]
        results: PathBuf,
    },
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Flaredb,
    Etcd,
    Both,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds are a number from 0.1 to 3600".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rdb-bench: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = bench(&args) => ended,
            // Dropping the run ends every process that it started.
            signal = interrupted() => Err(BenchError(signal)),
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rdb-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Waits to be told to end.
async fn interrupted() -> String {
    let terminate = signal(SignalKind::terminate());
    let terminated = async {
        match terminate {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => "interrupted".to_owned(),
        _ = terminated => "told to end".to_owned(),
    }
}

async fn bench(args: &Args) -> Result<(), BenchError> {
    if let Some(Other::Failover { times, rdb_server }) = &args.other {
        let program = flaredb::find_server(rdb_server.as_deref())?;
        let failovers = failover::measure(&program, *times, |line| println!("{line}")).await?;
        println!("\n{failovers}");
        return Ok(());
    }
    if let Some(Other::Switch {
        times,
        keys,
        rdb_server,
    }) = &args.other
    {
        let program = flaredb::find_server(rdb_server.as_deref())?;
        let found = switching::measure(&program, *times, keys, |line| println!("{line}")).await?;
        println!();
        for switches in found {
            println!("{switches}");
        }
        return Ok(());
    }
    if let Some(Other::Eventual {
        seconds,
        rounds,
        callers,
        rdb_server,
        results,
    }) = &args.other
    {
        let plan = Plan {
            workloads: callers
                .iter()
                .map(|&callers| Workload {
                    op: Op::Put,
                    callers: callers as usize,
                })
                .collect(),
            rounds: *rounds as usize,
            seconds: *seconds,
            keys: 100_000,
            value_bytes: 256,
        };
        let program = flaredb::find_server(rdb_server.as_deref())?;
        return eventual(plan, &program, results).await;
    }
    let plan = Plan {
        workloads: args
            .ops
            .iter()
            .flat_map(|&op| {
                args.callers.iter().map(move |&callers| Workload {
                    op,
                    callers: callers as usize,
                })
            })
            .collect(),
        rounds: args.rounds as usize,
        seconds: args.seconds,
        keys: args.keys,
        value_bytes: args.value_bytes as usize,
    };
    let flaredb = match args.target {
        Some(Which::Etcd) => None,
        Some(Which::Flaredb | Which::Both) | None => {
            Some(flaredb::find_server(args.rdb_server.as_deref())?)
        }
    };
    let etcd = match (args.target, etcd::find()) {
        (Some(Which::Flaredb), _) => None,
        (_, Some(program)) => Some(program),
        (Some(Which::Etcd | Which::Both), None) => {
            return Err(BenchError("etcd is not on the PATH; install it (Debian: etcd-server), or measure --target flaredb".to_owned()));
        }
        (None, None) => {
            println!(
                "etcd is not installed (Debian: etcd-server): FlareDB is measured alone, without ratios"
            );
            None
        }
    };
    let mut measured = Vec::new();
    let flaredb = match flaredb {
        Some(program) => Some(
            loaded(
                FlareDb::start(&program, !args.unary).await?,
                &plan,
                &mut measured,
            )
            .await?,
        ),
        None => None,
    };
    let etcd = match etcd {
        Some(program) => Some(loaded(Etcd::start(&program).await?, &plan, &mut measured).await?),
        None => None,
    };

    let mut samples = Vec::new();
    for round in 1..=plan.rounds {
        for &workload in &plan.workloads {
            if let Some(target) = &flaredb {
                samples.push(tell(run::measure(target, &plan, workload, round).await?));
            }
            if let Some(target) = &etcd {
                samples.push(tell(run::measure(target, &plan, workload, round).await?));
            }
        }
    }
    for target in &mut measured {
        target.resident_end_bytes = match target.kind {
            Kind::FlareDb => flaredb.as_ref().map(Target::resident_bytes),
            Kind::Etcd => etcd.as_ref().map(Target::resident_bytes),
            Kind::Eventual | Kind::Relaxed | Kind::Redis => None,
        }
        .unwrap_or_default();
    }
    let results = Results {
        lines: summary::lines(&samples),
        ratios: summary::ratios(&samples, Kind::FlareDb, Kind::Etcd),
        plan,
        targets: measured,
        samples,
        processors: std::thread::available_parallelism().map_or(0, usize::from),
    };
    println!("\n{}", report::table(&results));
    let path = report::write(&results, &args.results, "put-get")?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// Strong, eventual, relaxed and Redis by turns.
async fn eventual(plan: Plan, program: &Path, results: &Path) -> Result<(), BenchError> {
    let whole = FlareDb::start(program, true).await?;
    let namespace = whole.namespace(Kind::Eventual).await?;
    let relaxed = whole.namespace(Kind::Relaxed).await?;
    let redis = match redis::find() {
        Some(program) => Some(Redis::start(&program).await?),
        None => {
            println!(
                "redis-server is not installed (Debian: redis-server): FlareDB is measured alone"
            );
            None
        }
    };
    let before = Buckets::of(&whole.metrics().await?, "eventual");
    let mut samples = Vec::new();
    for round in 1..=plan.rounds {
        for &workload in &plan.workloads {
            samples.push(tell(run::measure(&whole, &plan, workload, round).await?));
            samples.push(tell(
                run::measure(&namespace, &plan, workload, round).await?,
            ));
            samples.push(tell(run::measure(&relaxed, &plan, workload, round).await?));
            if let Some(redis) = &redis {
                samples.push(tell(run::measure(redis, &plan, workload, round).await?));
            }
        }
    }
    let converged = Buckets::of(&whole.metrics().await?, "eventual").since(&before);
    let told = |target: &dyn Fn() -> (Kind, String, Vec<u64>)| {
        let (kind, version, resident_end_bytes) = target();
        Measured {
            kind,
            version,
            load_seconds: 0.0,
            resident_loaded_bytes: Vec::new(),
            resident_end_bytes,
        }
    };
    let mut targets = vec![told(&|| {
        (whole.kind(), whole.version(), whole.resident_bytes())
    })];
    if let Some(redis) = &redis {
        targets.push(told(&|| {
            (redis.kind(), redis.version(), redis.resident_bytes())
        }));
    }
    let pairs = [
        (Kind::Eventual, Kind::FlareDb),
        (Kind::Relaxed, Kind::FlareDb),
        (Kind::Relaxed, Kind::Redis),
        (Kind::Eventual, Kind::Redis),
    ];
    let all = Results {
        lines: summary::lines(&samples),
        ratios: pairs
            .into_iter()
            .flat_map(|(ours, theirs)| summary::ratios(&samples, ours, theirs))
            .collect(),
        plan,
        targets,
        samples,
        processors: std::thread::available_parallelism().map_or(0, usize::from),
    };
    println!("\n{}", report::table(&all));
    let bound = |part| {
        converged.quantile(part).map_or_else(
            || "unknown".to_owned(),
            |seconds| format!("{:.1} ms", seconds * 1e3),
        )
    };
    println!(
        "\neventual writes applied elsewhere: {}, half within {}, 99 of 100 within {} (upper bounds of buckets)",
        converged.count(),
        bound(0.5),
        bound(0.99)
    );
    let path = report::write(&all, results, "eventual")?;
    println!("written to {}", path.display());
    Ok(())
}

/// Loads the keys, and notes how long that took and what it cost.
async fn loaded<T: Target>(
    target: T,
    plan: &Plan,
    measured: &mut Vec<Measured>,
) -> Result<T, BenchError> {
    println!(
        "{} {} runs; loading {} keys",
        target.kind(),
        target.version(),
        plan.keys
    );
    let took = run::load(&target, plan).await?;
    measured.push(Measured {
        kind: target.kind(),
        version: target.version(),
        load_seconds: took.as_secs_f64(),
        resident_loaded_bytes: target.resident_bytes(),
        resident_end_bytes: Vec::new(),
    });
    Ok(target)
}

/// A line for a sample as it comes.
fn tell(sample: Sample) -> Sample {
    println!(
        "round {} {:>16} {:>8} {:>9.0} ops/s  p50 {:>8.2} ms  p99 {:>8.2} ms",
        sample.round,
        sample.workload.to_string(),
        sample.kind.to_string(),
        sample.per_second,
        sample.p50_us as f64 / 1e3,
        sample.p99_us as f64 / 1e3
    );
    if let Some(error) = &sample.error {
        println!("  {} calls failed, the first: {error}", sample.errors);
    }
    sample
}
