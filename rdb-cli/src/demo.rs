//! `flaredb demo`: a cluster of three in this process, broken on purpose, and judged by what its
//! clients saw.
//!
//! | read | for |
//! |---|---|
//! | [`story`] | what happens, in order |
//! | [`cluster`], [`node`] | the stores: real TCP, real disks, sudden death, cut links |
//! | [`load`], [`acks`], [`cut`], [`cart`], [`switching`], [`view`] | what clients and stores were seen to do |
//! | [`judge`] | whether the promises held |
//! | [`screen`], [`prompt`] | lines and the bar; `--keep` |
//!
//! Owns the beginning and the end: where the data live, signals, the verdict, the exit code. Does not
//! know how any step works.
//!
//! Invariants:
//! - Exit code 0 means that every promise was tested and held. A step that could not be made, a
//!   history that could not be decided and a promise that broke are 1, and leave the data and the
//!   stores' log behind. An interrupt is 130, a request to end 143.
//! - However it ends, no store runs afterwards, and a temporary directory is gone unless it is needed
//!   to find out what went wrong.

mod acks;
mod cart;
mod cluster;
mod cut;
mod judge;
mod load;
mod node;
mod prompt;
mod screen;
mod story;
mod switching;
mod view;

use crate::exit::Error;
use crate::output;
use clap::Args;
use cluster::Cluster;
use judge::Finding;
use screen::{Screen, spent};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;
use tracing_subscriber::EnvFilter;

/// Starts three stores, loads a strong namespace, kills its leader, cuts a store off while an eventual
/// namespace is written on both sides, switches that to strong and back under load, and checks by recorded
/// histories that nothing was lost or read stale, and that all stores agree. Takes less than a minute.
#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Leave the cluster up afterwards, with a prompt to break it by hand
    #[arg(long)]
    keep: bool,
    /// Where the stores keep their data, and leave it [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Seconds of load between one event and the next
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// What the demo came to.
enum Ended {
    /// The story was told and judged.
    Judged { held: bool },
    /// A signal: its exit code.
    Interrupted(u8),
    /// What it prints to was closed. What is not judged has not held.
    Unread,
}

/// The names of the stores' log, below the data.
const LOG: &str = "stores.log";

impl Demo {
    pub(crate) async fn run(&self) -> Result<ExitCode, Error> {
        let mut place = Place::choose(self.data_dir.as_deref())?;
        start_log(&place.path().join(LOG))?;
        let mut signals = Signals::listen()?;
        let mut cluster = Cluster::new(place.path())?;
        let screen = Screen::new();
        let ended = tokio::select! {
            ended = self.play(&screen, &mut cluster, &place) => match ended {
                Err(Error::BrokenPipe) => Ok(Ended::Unread),
                ended => ended,
            },
            code = signals.next() => Ok(Ended::Interrupted(code)),
        };
        screen.doing("stopping the stores");
        cluster.stop().await;
        screen.clear();
        if !matches!(
            ended,
            Ok(Ended::Judged { held: true } | Ended::Interrupted(_) | Ended::Unread)
        ) {
            place.keep();
            crate::exit::note(&format!(
                "flaredb: the data and the stores' log ({LOG}) are left in {}",
                place.path().display()
            ));
        }
        place.clear().await;
        Ok(match ended? {
            Ended::Judged { held: true } => ExitCode::SUCCESS,
            Ended::Judged { held: false } => ExitCode::from(crate::exit::ERROR),
            Ended::Interrupted(code) => ExitCode::from(code),
            Ended::Unread => {
                crate::exit::note(
                    "flaredb: nobody reads what the demo says any more: it ended before everything was judged",
                );
                ExitCode::from(crate::exit::ERROR)
            }
        })
    }

    async fn play(
        &self,
        screen: &Screen,
        cluster: &mut Cluster,
        place: &Place,
    ) -> Result<Ended, Error> {
        screen.plain("FlareDB: a cluster of three, broken on purpose\n")?;
        screen.say(format!("data in {}", place.path().display()))?;
        let evidence = story::tell(screen, cluster, Duration::from_secs(self.seconds))
            .await
            .map_err(as_failure)?;
        let judged = tokio::task::spawn_blocking(move || judge::judge(&evidence)).await;
        let findings = judged.map_err(|error| failed(format!("the check broke: {error}")))?;
        screen.clear();
        let held = tell_verdict(screen, &findings)?;
        if self.keep
            && let Err(error) = prompt::run(cluster).await
            && !matches!(error, Error::BrokenPipe)
        {
            return Err(error);
        }
        Ok(Ended::Judged { held })
    }
}

/// The table, the explanations of what broke, and the verdict. Answers it.
fn tell_verdict(screen: &Screen, findings: &[Finding]) -> Result<bool, Error> {
    let broken: Vec<(&Finding, &String)> = findings
        .iter()
        .filter_map(|finding| Some((finding, finding.broken.as_ref()?)))
        .collect();
    let rows = findings.iter().map(|finding| {
        let word = if finding.broken.is_none() {
            "held"
        } else {
            "BROKEN"
        };
        vec![
            word.to_owned(),
            finding.promise.to_owned(),
            finding.seen.clone(),
        ]
    });
    screen.plain(&format!(
        "\n{}\n",
        output::table(&["", "PROMISE", "SEEN"], rows.collect())
    ))?;
    for (finding, why) in &broken {
        screen.plain(&format!(
            "BROKEN: {}\n  {}\n",
            finding.promise,
            why.replace('\n', "\n  ")
        ))?;
    }
    let verdict = match broken.len() {
        0 => format!("Every promise held. It took {}.", spent(screen.elapsed())),
        1 => "One promise is broken.".to_owned(),
        several => format!("{several} promises are broken."),
    };
    let colour = if broken.is_empty() { "32" } else { "31" };
    screen.plain(&if output::colours() {
        format!("\x1b[1;{colour}m{verdict}\x1b[0m")
    } else {
        verdict
    })?;
    Ok(broken.is_empty())
}

/// A step of the demo that could not be made.
fn failed(what: impl ToString) -> Error {
    Error::Io(what.to_string())
}

/// In the demo a store that refuses what it should not is no matter of the caller's: all failures are
/// 1, whatever a command on a cluster of somebody else's would say.
fn as_failure(error: Error) -> Error {
    match error {
        Error::BrokenPipe => Error::BrokenPipe,
        error => failed(format!("the story ended early: {error}")),
    }
}

/// Where the data live.
struct Place {
    path: PathBuf,
    /// To be removed at the end.
    temporary: Option<TempDir>,
}

impl Place {
    fn choose(given: Option<&Path>) -> Result<Place, Error> {
        let Some(given) = given else {
            let made = tempfile::Builder::new().prefix("flaredb-demo-").tempdir();
            let temporary = made.map_err(|error| {
                Error::io(
                    "cannot make a temporary directory (TMPDIR names another place)",
                    &error,
                )
            })?;
            return Ok(Place {
                path: temporary.path().to_owned(),
                temporary: Some(temporary),
            });
        };
        let refuse =
            |error: io::Error| Error::io(&format!("cannot use {}", given.display()), &error);
        fs::create_dir_all(given).map_err(refuse)?;
        if fs::read_dir(given).map_err(refuse)?.next().is_some() {
            let text = format!(
                "{} is not empty; the demo begins with new stores: name another --data-dir",
                given.display()
            );
            return Err(Error::Usage(text));
        }
        Ok(Place {
            path: given.to_owned(),
            temporary: None,
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// From now on the data stay.
    fn keep(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            self.path = temporary.keep();
        }
    }

    /// Removes a temporary directory.
    async fn clear(self) {
        let Some(temporary) = self.temporary else {
            return;
        };
        let path = temporary.keep();
        // A store that was killed may still be closing its files.
        for _ in 0..50 {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    sleep(Duration::from_millis(50)).await
                }
                _ => return,
            }
        }
        crate::exit::note(&format!("flaredb: {} could not be removed", path.display()));
    }
}

/// What the stores say goes to a file: the screen belongs to the story.
fn start_log(path: &Path) -> Result<(), Error> {
    let file = File::create(path)
        .map_err(|error| Error::io(&format!("cannot write {}", path.display()), &error))?;
    let filter = EnvFilter::try_from_env("FLAREDB_DEMO_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=error,h2=error,tonic=error"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_thread_names(true)
        .with_writer(Arc::new(file));
    log.try_init()
        .map_err(|error| failed(format!("cannot start the log: {error}")))
}

/// Ctrl-C, the polite request to end, and a terminal that is closed.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, Error> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", &error));
        Ok(Signals {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for one; the exit code that shells expect of it.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.hangup.recv() => 129,
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_temporary_place_goes_unless_it_is_kept_and_a_given_one_stays() {
        let gone = Place::choose(None).unwrap();
        let path = gone.path().to_owned();
        fs::create_dir(path.join("store-1")).unwrap();
        gone.clear().await;
        assert!(!path.exists());

        let mut kept = Place::choose(None).unwrap();
        kept.keep();
        let path = kept.path().to_owned();
        kept.clear().await;
        assert!(path.exists());

        let given = Place::choose(Some(&path.join("new"))).unwrap();
        File::create(given.path().join("x")).unwrap();
        given.clear().await;
        assert!(path.join("new").exists());
        let full = Place::choose(Some(&path.join("new")));
        assert!(
            matches!(full, Err(Error::Usage(_))),
            "a directory with something in it is refused"
        );
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_broken_promise_is_no_success() {
        let finding = |broken: Option<&str>| Finding {
            promise: "p",
            seen: "s".into(),
            broken: broken.map(str::to_owned),
        };
        let screen = Screen::new();
        assert!(tell_verdict(&screen, &[finding(None), finding(None)]).unwrap());
        assert!(!tell_verdict(&screen, &[finding(None), finding(Some("why"))]).unwrap());
    }
}
