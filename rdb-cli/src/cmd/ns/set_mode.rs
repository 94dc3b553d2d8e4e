//! `flaredb ns set-mode`: switching a namespace, watching it, cancelling it, or asking what it would do.
//!
//! Owns the printing. In a table's place a person gets a line that moves on stderr, and where that is no
//! terminal a line for each step; the last one is the result. In JSON every step is. A step is told again while it
//! lasts, but seldom.
//!
//! A switch needs no store that watches it: where the asked one fails, another is asked for the same, which joins what
//! is under way.

use super::{mode, mode_parser, state};
use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{self, Item, Output};
use clap::Args;
use indicatif::ProgressBar;
use rdb_client::{Client, ClientError, ErrorKind, ModeChanges, Outcome};
use rdb_proto::convert;
use rdb_proto::raft::{ModeChange, Plan, UpdateNamespaceModeRequest};
use rdb_types::Mode;
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tonic::Code;

#[derive(Args, Debug)]
pub(crate) struct SetMode {
    name: String,
    /// The mode to switch to
    #[arg(value_parser = mode_parser(), required_unless_present = "cancel")]
    mode: Option<Mode>,
    /// Only say what it would do; exit code 1: it would not succeed
    #[arg(long)]
    dry_run: bool,
    /// Go on without this store (may be repeated); what only it holds is set aside
    #[arg(long, value_name = "ID")]
    accept_missing: Vec<u32>,
    /// Cancel the switch that is under way: back to the mode that the namespace had
    #[arg(long, conflicts_with_all = ["dry_run", "accept_missing"])]
    cancel: bool,
    /// Return once the target is recorded
    #[arg(long)]
    no_wait: bool,
}

/// How often a step that lasts is told again, off a terminal.
const AGAIN: Duration = Duration::from_secs(5);
/// How often another store is asked without hearing of a change.
const ASKED_AGAIN: u32 = 5;

const CHANGE: &[&str] = &["STATE", "MODE", "EPOCH", "STEP", "REGIONS", "WRITE PAUSE"];

impl SetMode {
    pub(super) async fn run(self, shared: &Shared, client: &Client) -> Result<ExitCode, Error> {
        let request = UpdateNamespaceModeRequest {
            namespace: self.name,
            mode: self.mode.map_or(0, convert::mode_to_wire),
            dry_run: self.dry_run,
            accept_missing: self.accept_missing,
            wait: !self.no_wait,
            cancel: self.cancel,
        };
        let mut changes = ask(client, &request).await?;
        if self.dry_run {
            return show_plan(shared, &mut changes).await;
        }
        let mut screen = Screen::new(shared);
        let (mut asked_again, mut is_asked_for) = (0, false);
        let ended = loop {
            match changes.next().await {
                Ok(Some(change)) => {
                    (asked_again, is_asked_for) = (0, true);
                    screen.add(change)?;
                }
                Ok(None) => break Ok(ExitCode::SUCCESS),
                Err(error) if is_store_lost(&error) && asked_again < ASKED_AGAIN => {
                    asked_again += 1;
                    match ask(client, &request).await {
                        Ok(again) => changes = again,
                        Err(mut error) => {
                            screen.last = None;
                            if is_asked_for {
                                error.message += "; the switch was asked for and goes on: `flaredb ns modes` shows where it is";
                            }
                            break Err(error.into());
                        }
                    }
                }
                Err(error) => {
                    // What was told last was no result.
                    screen.last = None;
                    break Err(error.into());
                }
            }
        };
        screen.end()?;
        ended
    }
}

/// Asks any store. What one that fell silent made of it does not matter: asked again for the same, another joins it.
async fn ask(
    client: &Client,
    request: &UpdateNamespaceModeRequest,
) -> Result<ModeChanges, ClientError> {
    let mut asked_again = 0;
    loop {
        match client.update_mode(request.clone()).await {
            Err(error) if is_store_lost(&error) && asked_again < ASKED_AGAIN => {
                // Those that are away are not there at once again.
                if error.outcome != Outcome::Unknown {
                    return Err(error);
                }
                asked_again += 1;
            }
            answered => return answered.map_err(may_be_asked_for),
        }
    }
}

/// Whether the store that was asked failed, and not what it was asked for.
fn is_store_lost(error: &ClientError) -> bool {
    error.kind == ErrorKind::Broken || matches!(error.code, Code::Unavailable | Code::Cancelled)
}

/// A failure that leaves open whether the switch is recorded, in words for a switch: it is no write.
fn may_be_asked_for(mut error: ClientError) -> ClientError {
    if error.outcome == Outcome::Unknown {
        error.outcome = Outcome::NotAWrite;
        error.message += "; the switch may have been asked for: `flaredb ns modes` shows it, and asking again does no harm";
    }
    error
}

/// Where the changes go.
struct Screen {
    out: Output,
    bar: Option<ProgressBar>,
    /// What was told, and when, where there is no bar.
    told: Option<(ModeChange, Instant)>,
    /// The last one, where only that is the result.
    last: Option<ModeChange>,
}

impl Screen {
    fn new(shared: &Shared) -> Screen {
        let out = Output::list(shared.output, CHANGE);
        let bar = (out.is_text() && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Screen {
            out,
            bar,
            told: None,
            last: None,
        }
    }

    fn add(&mut self, change: ModeChange) -> Result<(), Error> {
        match &self.bar {
            Some(bar) => bar.set_message(progress_line(&change)),
            None if is_news(self.told.as_ref(), &change, Instant::now()) => {
                self.told = Some((change.clone(), Instant::now()));
                if self.out.is_text() {
                    exit::note(&format!("flaredb: {}", progress_line(&change)));
                } else {
                    self.out.add(change_item(&change))?;
                    self.out.flush()?;
                }
            }
            None => {}
        }
        self.last = Some(change);
        Ok(())
    }

    fn end(mut self) -> Result<(), Error> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let is_told = self.told.as_ref().map(|(change, _)| change) == self.last.as_ref();
        match &self.last {
            // In JSON the last one is a line like the others.
            Some(_) if is_told && !self.out.is_text() => {}
            Some(last) => self.out.add(change_item(last))?,
            // A table would be nothing but its head.
            None if self.out.is_text() => return Ok(()),
            None => {}
        }
        self.out.end()
    }
}

/// Whether a change is worth a line: another step, other stores that are waited for, or again after a while.
fn is_news(told: Option<&(ModeChange, Instant)>, change: &ModeChange, now: Instant) -> bool {
    told.is_none_or(|(told, at)| {
        told.step != change.step
            || told.waiting_for != change.waiting_for
            || now.duration_since(*at) >= AGAIN
    })
}

/// A change in a line.
fn progress_line(change: &ModeChange) -> String {
    let mut line = change.step.clone();
    // There is where an aborted one does not go any more.
    if !line.starts_with("aborted") {
        line.push_str(&format!(
            ", {} of {} regions there",
            change.regions_done, change.regions_total
        ));
    }
    if change.remaining_writes > 0 {
        line.push_str(&format!(
            ", {} writes to be exchanged",
            change.remaining_writes
        ));
    }
    if !change.waiting_for.is_empty() {
        let stores: Vec<String> = change.waiting_for.iter().map(u32::to_string).collect();
        let noun = if stores.len() == 1 { "store" } else { "stores" };
        line.push_str(&format!(", waits for {noun} {}", stores.join(", ")));
    }
    if !change.why.is_empty() {
        line.push_str(&format!(" ({})", change.why));
    }
    line
}

async fn show_plan(shared: &Shared, changes: &mut ModeChanges) -> Result<ExitCode, Error> {
    let Some(change) = changes.next().await? else {
        return Err(Error::Io("the store planned nothing".to_owned()));
    };
    let plan = change.plan.clone().unwrap_or_default();
    let mut out = Output::one(shared.output, CHANGE);
    if out.is_table() {
        drop(out);
        output::line(&output::table(&["WHAT", "PLAN"], plan_rows(&change, &plan)))?;
    } else {
        let raw = if plan.would_succeed { "yes" } else { "no" };
        out.add(Item {
            raw: raw.into(),
            ..change_item(&change)
        })?;
        out.end()?;
    }
    Ok(if plan.would_succeed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::ERROR)
    })
}

fn plan_rows(change: &ModeChange, plan: &Plan) -> Vec<Vec<String>> {
    let unreachable: Vec<String> = plan.unreachable_stores.iter().map(u32::to_string).collect();
    let listed = |lines: &[String]| match lines {
        [] => "nothing".to_owned(),
        lines => lines.join("\n"),
    };
    let pause = Duration::from_micros(plan.estimated_write_pause_us);
    let rows = [
        (
            "would succeed",
            if plan.would_succeed { "yes" } else { "no" }.to_owned(),
        ),
        ("in its way", listed(&plan.obstacles)),
        (
            "mode now",
            format!("{}, epoch {}", mode(change.mode), change.epoch),
        ),
        (
            "unreachable stores",
            if unreachable.is_empty() {
                "none".to_owned()
            } else {
                unreachable.join(", ")
            },
        ),
        ("writes to exchange", plan.writes_to_exchange.to_string()),
        ("estimated write pause", pause_text(pause)),
        ("conflicts so far", plan.conflicts.to_string()),
        (
            "largest clock skew",
            format!("{:.1} ms", plan.clock_skew_us as f64 / 1e3),
        ),
        ("stops working", listed(&plan.stops_working)),
        ("starts working", listed(&plan.starts_working)),
    ];
    let rows = rows.into_iter();
    rows.map(|(what, is)| vec![what.to_owned(), is]).collect()
}

fn pause_text(pause: Duration) -> String {
    format!("{:.1} ms", pause.as_secs_f64() * 1e3)
}

fn change_item(change: &ModeChange) -> Item {
    let pause = Duration::from_micros(change.write_pause_us);
    Item {
        row: vec![
            state(change.state).to_owned(),
            mode(change.mode).to_owned(),
            change.epoch.to_string(),
            change.step.clone(),
            format!("{}/{}", change.regions_done, change.regions_total),
            pause_text(pause),
        ],
        json: json!({
            "state": state(change.state),
            "mode": mode(change.mode),
            "epoch": change.epoch.to_string(),
            "step": change.step,
            "remaining_writes": change.remaining_writes.to_string(),
            "regions_done": change.regions_done,
            "regions_total": change.regions_total,
            "write_pause_us": change.write_pause_us.to_string(),
            "waiting_for": change.waiting_for,
            "why": change.why,
            "plan": change.plan.as_ref().map(plan_json),
        }),
        raw: change.step.clone().into_bytes(),
    }
}

fn plan_json(plan: &Plan) -> Value {
    json!({
        "would_succeed": plan.would_succeed,
        "obstacles": plan.obstacles,
        "unreachable_stores": plan.unreachable_stores,
        "writes_to_exchange": plan.writes_to_exchange.to_string(),
        "estimated_write_pause_us": plan.estimated_write_pause_us.to_string(),
        "conflicts": plan.conflicts.to_string(),
        "clock_skew_us": plan.clock_skew_us.to_string(),
        "stops_working": plan.stops_working,
        "starts_working": plan.starts_working,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_and_what_keeps_it() {
        let mut change = ModeChange {
            step: "sealing".into(),
            regions_done: 1,
            regions_total: 2,
            ..Default::default()
        };
        assert_eq!(progress_line(&change), "sealing, 1 of 2 regions there");
        change.step = "draining".into();
        change.remaining_writes = 12;
        change.waiting_for = vec![2, 3];
        change.why = "they do not answer".into();
        assert_eq!(
            progress_line(&change),
            "draining, 1 of 2 regions there, 12 writes to be exchanged, waits for stores 2, 3 (they do not answer)"
        );
        let aborted = ModeChange {
            step: "aborted: it took too long".into(),
            ..ModeChange::default()
        };
        assert_eq!(progress_line(&aborted), "aborted: it took too long");
    }

    #[test]
    fn off_a_terminal_a_step_is_told_when_it_begins_and_then_seldom() {
        let change = |step: &str, waiting_for: Vec<u32>, remaining_writes| ModeChange {
            step: step.into(),
            waiting_for,
            remaining_writes,
            ..Default::default()
        };
        let mut told = None;
        let mut is_news = |change: ModeChange, now: Instant| {
            let news = is_news(told.as_ref(), &change, now);
            if news {
                told = Some((change, now));
            }
            news
        };
        let now = Instant::now();
        assert!(is_news(change("draining", vec![], 9), now));
        assert!(!is_news(change("draining", vec![], 8), now));
        assert!(is_news(change("draining", vec![3], 8), now));
        assert!(!is_news(change("draining", vec![3], 7), now + AGAIN / 2));
        assert!(is_news(change("draining", vec![3], 7), now + AGAIN));
        assert!(is_news(change("sealing", vec![3], 0), now + AGAIN));
    }
}
