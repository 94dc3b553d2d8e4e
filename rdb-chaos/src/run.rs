//! A run: load on a cluster, one fault after the other, healing after each, the last judgement at the end.
//!
//! Owns the order of things and the measured times. What a fault does is its own; whether a history is
//! right is [`crate::load::judge`]'s. What cannot be done on this machine is skipped, said, and counted
//! as nothing else.

use crate::ChaosError;
use crate::cluster::{Cluster, ClusterOptions};
use crate::faults::{Fault, Kind, Site};
use crate::load::judge::missing;
use crate::load::{Load, LoadOptions, Loaded};
use crate::registers::FlareDb;
use crate::schedule::Schedule;
use crate::wait::eventually;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Writes that are acknowledged before a fault and after its healing.
const CALM_WRITES: usize = 60;
/// A store that serves answers a scan at once; the rest is for a busy machine.
const SCAN: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Everything that is drawn is drawn from this.
    pub seed: u64,
    /// Kinds of faults to choose from.
    pub kinds: Vec<Kind>,
    /// No freeze or cut lasts longer.
    pub longest: Duration,
    /// No round begins later than this after the start.
    pub time: Option<Duration>,
    /// No more rounds than this, the skipped ones included.
    pub rounds: Option<u32>,
    /// The limits are that many times the aims.
    pub patience: u32,
    /// On what.
    pub cluster: ClusterOptions,
}

/// The load of a run: enough to see, little enough to be judged.
pub fn load_options(seed: u64) -> LoadOptions {
    LoadOptions {
        pinned: 3,
        keys: 8,
        pace: Duration::from_millis(8),
        seed,
        ..LoadOptions::default()
    }
}

/// What came of a run.
#[derive(Debug)]
pub enum Ended {
    /// Everything held.
    Held(Summary),
    /// Something did not.
    Broken {
        /// What, and in which round.
        error: ChaosError,
        /// Logs, data and the history, if there was a cluster.
        kept: Option<PathBuf>,
    },
}

/// The times of a run.
#[derive(Debug, Default)]
pub struct Summary {
    kinds: BTreeMap<&'static str, Times>,
}

/// Of one kind of fault.
#[derive(Clone, Debug, Default)]
struct Times {
    rounds: u32,
    skipped: u32,
    /// Writes again after the beginning, after the healing; all stores ready after the healing.
    during: Option<Duration>,
    after: Duration,
    ready: Duration,
    /// Rounds in which an aim was missed (and the limit kept).
    slow: u32,
}

impl Summary {
    /// Rounds in which a fault was inflicted.
    pub fn rounds(&self) -> u32 {
        self.kinds.values().map(|times| times.rounds).sum()
    }

    /// Rounds that could not be done here.
    pub fn skipped(&self) -> u32 {
        self.kinds.values().map(|times| times.skipped).sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:>6} {:>7}  {:>21} {:>21} {:>16} {:>5}",
            "fault",
            "rounds",
            "skipped",
            "worst: writes during",
            "writes after healing",
            "all ready after",
            "slow"
        )?;
        for (kind, times) in &self.kinds {
            let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
            let during = times.during.map_or_else(|| "-".to_owned(), seconds);
            writeln!(
                f,
                "{kind:<14} {:>6} {:>7}  {during:>21} {:>21} {:>16} {:>5}",
                times.rounds,
                times.skipped,
                seconds(times.after),
                seconds(times.ready),
                times.slow
            )?;
        }
        Ok(())
    }
}

/// Runs. `tell` gets every line for the reader.
pub async fn run(options: &RunOptions, tell: &dyn Fn(String)) -> Ended {
    let mut summary = Summary::default();
    match on_cluster(options, &mut summary, tell).await {
        Ok(()) => Ended::Held(summary),
        Err((error, kept)) => Ended::Broken { error, kept },
    }
}

/// All rounds, and the last judgement.
async fn on_cluster(
    options: &RunOptions,
    summary: &mut Summary,
    tell: &dyn Fn(String),
) -> Result<(), (ChaosError, Option<PathBuf>)> {
    let started = Cluster::start(&options.cluster).await;
    let mut cluster = started.map_err(|error| (error, None))?;
    tell(format!(
        "a cluster of three in {}; {}",
        cluster.dir().display(),
        cluster.notes().join("; ")
    ));
    let load_options = load_options(options.seed);
    let clients = FlareDb::clients(&cluster.endpoints(), &load_options);
    let clients = clients.map_err(|error| (error, None))?;
    let load = Load::start(clients, load_options.clone());
    let held = rounds(options, &mut cluster, &load, summary, tell).await;
    let loaded = load.stop().await;
    let judged = match held {
        Ok(()) => last_judgement(&cluster, &loaded, &load_options).await,
        Err(error) => Err(error),
    };
    match judged {
        Ok(judged) => {
            tell(judged);
            Ok(())
        }
        Err(error) => {
            write_history(&loaded, cluster.dir());
            cluster.keep(&format!("seed {}: {error}", options.seed));
            Err((error, Some(cluster.dir().to_owned())))
        }
    }
}

async fn rounds(
    options: &RunOptions,
    cluster: &mut Cluster,
    load: &Load,
    summary: &mut Summary,
    tell: &dyn Fn(String),
) -> Result<(), ChaosError> {
    let mut schedule = Schedule::new(options.seed, &options.kinds, options.longest);
    let (started, mut round) = (Instant::now(), 0);
    let readers = cluster.readers(&load_options(options.seed))?;
    // Also when the first faults are skipped: there is something to judge.
    load.more(2 * CALM_WRITES).await?;
    loop {
        let late = options.time.is_some_and(|time| started.elapsed() >= time);
        if late || options.rounds.is_some_and(|rounds| round >= rounds) {
            return Ok(());
        }
        let Some((kind, mut fault)) = schedule.next() else {
            return Ok(());
        };
        round += 1;
        let times = summary.kinds.entry(kind.name()).or_default();
        let head = format!("round {round:>3} {:<13}", kind.name());
        if let Err(why) = fault.possible(cluster) {
            times.skipped += 1;
            tell(format!("{head} SKIPPED: {why}"));
            continue;
        }
        tell(format!("{head} {}", fault.plan()));
        let mut site = Site { cluster, load };
        let told = one_round(options, fault.as_mut(), &mut site, &readers, times).await;
        let told =
            told.map_err(|error| error.within(&format!("round {round} ({})", kind.name())))?;
        tell(told);
        load.next_era();
    }
}

/// A fault from its beginning until everything is as it was; what there is to tell of it.
async fn one_round(
    options: &RunOptions,
    fault: &mut dyn Fault,
    site: &mut Site<'_>,
    readers: &[FlareDb],
    times: &mut Times,
) -> Result<String, ChaosError> {
    let promise = fault.promise();
    let mut told = String::new();
    let mut slow = false;
    site.load.more(CALM_WRITES).await?;
    let failed_before = site.load.errors();

    let inflicted = fault.inflict(site).await?;
    line(&mut told, &inflicted.story);
    let watched = fault.watch(site).await?;
    if !watched.is_empty() {
        line(&mut told, &watched);
    }
    let lasts = fault.lasts();
    tokio::time::sleep(lasts.saturating_sub(inflicted.at.elapsed())).await;
    let mut measured = String::new();
    if let Some(aim) = promise.during {
        let limit = aim * options.patience;
        let what = "the fault began";
        let during = site.load.writes_again(inflicted.at, limit, what).await?;
        let _ = write!(measured, "writes {during:.2?} after its beginning, ");
        slow |= during > aim;
        times.during = times.during.max(Some(during));
    }

    let healed = Instant::now();
    fault.heal(site).await?;
    let limit = promise.after * options.patience;
    let what = "everything was healed";
    let after = site.load.writes_again(healed, limit, what).await?;
    site.cluster.all_ready().await?;
    let ready = healed.elapsed();
    slow |= after > promise.after;
    let _ = write!(
        measured,
        "{after:.2?} after the healing; all ready {ready:.2?} after it"
    );
    if slow {
        measured.push_str("  (slower than the aim)");
    }
    line(&mut told, &measured);
    let failed = site
        .load
        .errors()
        .into_iter()
        .filter_map(|(reason, count)| {
            let more = count - failed_before.get(&reason).copied().unwrap_or_default();
            (more > 0).then(|| format!("{reason} {more}"))
        });
    let failed: Vec<String> = failed.collect();
    if !failed.is_empty() {
        line(
            &mut told,
            &format!("calls that failed meanwhile: {}", failed.join(", ")),
        );
    }

    // Whatever was acknowledged by now is at every store.
    let acknowledged = site.load.acknowledged();
    for (store, reader) in (1..).zip(readers) {
        let lost = eventually(SCAN, "a scan of what was acknowledged", async || {
            missing(&acknowledged, reader).await
        })
        .await?;
        if !lost.is_empty() {
            return Err(ChaosError::Broken(format!(
                "LOST at store {store}: {lost:?} were acknowledged"
            )));
        }
    }
    for store in 0..readers.len() {
        let node = site.cluster.node_mut(store);
        let runs = node.check_running();
        runs.map_err(|error| error.within(&format!("store {}", store + 1)))?;
    }
    site.load.more(CALM_WRITES).await?;
    times.rounds += 1;
    times.slow += u32::from(slow);
    times.after = times.after.max(after);
    times.ready = times.ready.max(ready);
    Ok(told)
}

/// A line below the head of a round.
fn line(told: &mut String, text: &str) {
    if !told.is_empty() {
        told.push('\n');
    }
    told.push_str("          ");
    told.push_str(text);
}

async fn last_judgement(
    cluster: &Cluster,
    loaded: &Loaded,
    options: &LoadOptions,
) -> Result<String, ChaosError> {
    let judgement = loaded.judge(&cluster.readers(options)?).await?;
    let agree = cluster.replicas_agree().await?;
    Ok(format!("{judgement}\nreplicas: {agree}"))
}

/// The history, a call a line, for whoever looks into a violation.
pub(crate) fn write_history(loaded: &Loaded, dir: &Path) {
    let mut text = String::from("# invoked_ns returned_ns process key operation: outcome\n");
    for call in loaded.calls() {
        let returned = call
            .returned_ns
            .map_or_else(|| "-".to_owned(), |it| it.to_string());
        let _ = writeln!(
            text,
            "{} {returned} {} {} {}: {}",
            call.invoked_ns, call.process, call.key, call.op, call.outcome
        );
    }
    // It is a help; the verdict is told without it.
    let _ = fs::write(dir.join("history.txt"), text);
}
