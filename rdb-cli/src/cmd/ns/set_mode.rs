//! `flaredb ns set-mode`: switching a namespace, watching it, cancelling it, or asking what it would do.
//!
//! Owns the printing. In a table's place a person gets a line that moves on stderr, and where that is no
//! terminal a line for each change; the last one is the result. In JSON every change is.

use super::{mode, mode_parser, state};
use crate::args::Shared;
use crate::exit::{self, Error};
use crate::output::{self, Item, Output};
use clap::Args;
use indicatif::ProgressBar;
use rdb_client::{Client, ModeChanges};
use rdb_proto::convert;
use rdb_proto::raft::{ModeChange, Plan, UpdateNamespaceModeRequest};
use rdb_types::Mode;
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

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
        let mut changes = client.update_mode(request).await?;
        if self.dry_run {
            return show_plan(shared, &mut changes).await;
        }
        let mut screen = Screen::new(shared);
        let ended = loop {
            match changes.next().await {
                Ok(Some(change)) => screen.add(change)?,
                Ok(None) => break Ok(ExitCode::SUCCESS),
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

/// Where the changes go.
struct Screen {
    out: Output,
    bar: Option<ProgressBar>,
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
            last: None,
        }
    }

    fn add(&mut self, change: ModeChange) -> Result<(), Error> {
        if !self.out.is_text() {
            self.out.add(change_item(&change))?;
            return self.out.flush();
        }
        match &self.bar {
            Some(bar) => bar.set_message(progress_line(&change)),
            None => exit::note(&format!("flaredb: {}", progress_line(&change))),
        }
        self.last = Some(change);
        Ok(())
    }

    fn end(mut self) -> Result<(), Error> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        match &self.last {
            Some(last) => self.out.add(change_item(last))?,
            // A table would be nothing but its head.
            None if self.out.is_text() => return Ok(()),
            None => {}
        }
        self.out.end()
    }
}

/// A change in a line.
fn progress_line(change: &ModeChange) -> String {
    let mut line = format!(
        "{}, {} of {} regions there",
        change.step, change.regions_done, change.regions_total
    );
    if change.remaining_writes > 0 {
        line.push_str(&format!(
            ", {} writes to be exchanged",
            change.remaining_writes
        ));
    }
    if !change.waiting_for.is_empty() {
        let stores: Vec<String> = change.waiting_for.iter().map(u32::to_string).collect();
        line.push_str(&format!(", waits for store {}", stores.join(", ")));
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
            "draining, 1 of 2 regions there, 12 writes to be exchanged, waits for store 2, 3 (they do not answer)"
        );
    }
}
