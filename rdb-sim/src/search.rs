//! Many seeds one after the other, and the smallest plan that still fails.
//!
//! Owns where a search stands, so that the next one goes on behind it. Knows nothing of what a run does.

use crate::world::{Report, RunOptions, run};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How far a search goes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Seeds at most.
    pub seeds: u64,
    /// Time at most.
    pub time: Duration,
}

/// What a search came to.
#[derive(Clone, Debug, Default)]
pub struct Searched {
    /// Seeds that were run.
    pub seeds: u64,
    /// Simulated time of all of them.
    pub simulated: Duration,
    /// Regions that became strong or eventual, in all of them.
    pub switches: u64,
    /// Seals that were given up.
    pub aborted: u64,
    /// Runs in which something did not hold.
    pub failed: Vec<Report>,
}

/// Runs the seeds from `first` on. `each` hears of every run, and says whether to go on.
///
/// # Errors
/// The system gives no runtime.
pub fn search(
    base: &RunOptions,
    first: u64,
    limits: &Limits,
    mut each: impl FnMut(&Report) -> bool,
) -> io::Result<Searched> {
    let began = Instant::now();
    let mut searched = Searched::default();
    while searched.seeds < limits.seeds && began.elapsed() < limits.time {
        let options = RunOptions {
            seed: first + searched.seeds,
            ..base.clone()
        };
        let report = run(&options)?;
        searched.seeds += 1;
        searched.simulated += Duration::from_millis(report.simulated_ms);
        searched.switches += report.switches.opened + report.switches.sealed;
        searched.aborted += report.switches.aborted;
        let go_on = each(&report);
        if !report.violations.is_empty() {
            searched.failed.push(report);
        }
        if !go_on {
            break;
        }
    }
    Ok(searched)
}

/// Leaves out faults of a failing run for as long as the same invariant still breaks. At most `runs` runs.
///
/// # Errors
/// The system gives no runtime.
pub fn shrink(failing: &RunOptions, runs: usize) -> io::Result<RunOptions> {
    let first = run(failing)?;
    let Some(broken) = first.violations.first().map(|found| found.invariant) else {
        return Ok(failing.clone());
    };
    let mut left: Vec<usize> = (0..first.plan.len())
        .filter(|number| !failing.without.contains(number))
        .collect();
    let mut smallest = failing.clone();
    let mut spent = 0;
    // Halves first, then smaller pieces (delta debugging, Zeller and Hildebrandt).
    let mut piece = left.len().div_ceil(2);
    while piece > 0 && spent < runs {
        let mut at = 0;
        while at < left.len() && spent < runs {
            let removed: BTreeSet<usize> = left[at..(at + piece).min(left.len())]
                .iter()
                .copied()
                .collect();
            let mut candidate = smallest.clone();
            candidate.without.extend(&removed);
            spent += 1;
            let still = run(&candidate)?
                .violations
                .iter()
                .any(|found| found.invariant == broken);
            if still {
                left.retain(|number| !removed.contains(number));
                smallest = candidate;
            } else {
                at += piece;
            }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    Ok(smallest)
}

/// The seed after the last one that a search recorded in this file; 1 without one.
///
/// # Errors
/// The file holds something else.
pub fn resume_from(file: &Path) -> io::Result<u64> {
    match std::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
        Ok(text) => text.trim().parse().map_err(|_| {
            io::Error::other(format!(
                "{} holds {text:?} and not the number of a seed; remove it to begin at seed 1",
                file.display()
            ))
        }),
    }
}

/// Records where the next search goes on.
///
/// # Errors
/// The file cannot be written.
pub fn record_next(file: &Path, next: u64) -> io::Result<()> {
    std::fs::write(file, format!("{next}\n"))
}
