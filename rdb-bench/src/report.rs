//! The table and the JSON file.
//!
//! Owns how results are told, and where they are kept.

use crate::BenchError;
use crate::plan::Plan;
use crate::run::Sample;
use crate::summary::{Line, Ratio, Spread};
use crate::target::Kind;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Results {
    /// What was measured.
    pub plan: Plan,
    /// What it was measured on.
    pub targets: Vec<Measured>,
    /// Over all rounds.
    pub lines: Vec<Line>,
    /// One over another.
    pub ratios: Vec<Ratio>,
    /// Every single measurement.
    pub samples: Vec<Sample>,
    /// Processors that clients and stores shared.
    pub processors: usize,
}

/// A target of the run.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Which.
    pub kind: Kind,
    /// Its version.
    pub version: String,
    /// How long loading all keys took, in seconds.
    pub load_seconds: f64,
    /// Resident memory of each process once the keys were loaded.
    pub resident_loaded_bytes: Vec<u64>,
    /// And at the end.
    pub resident_end_bytes: Vec<u64>,
}

/// The results as a table for people.
pub fn table(results: &Results) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "WORKLOAD",
        "STORE",
        "OPS/S",
        "(MIN - MAX)",
        "P50",
        "P99",
        "ERRORS",
    ]);
    for line in &results.lines {
        table.add_row([
            line.workload.to_string(),
            line.kind.to_string(),
            format!("{:.0}", line.per_second.median),
            format!("({:.0} - {:.0})", line.per_second.min, line.per_second.max),
            millis(line.p50_us),
            millis(line.p99_us),
            line.errors.to_string(),
        ]);
    }
    let mut text = trimmed(&mut table, 2..);
    for ratios in results.ratios.chunk_by(|a, b| (a.of, a.to) == (b.of, b.to)) {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let what = ratios
            .first()
            .map(|ratio| format!("{} / {}", ratio.of, ratio.to).to_uppercase());
        table.set_header([what.unwrap_or_default().as_str(), "OPS/S", "P50", "P99"]);
        for ratio in ratios {
            table.add_row([
                ratio.workload.to_string(),
                times(ratio.per_second),
                times(ratio.p50),
                times(ratio.p99),
            ]);
        }
        text += &format!("\n\n{}", trimmed(&mut table, 1..));
    }
    for target in &results.targets {
        text += &format!(
            "\n\n{} {}: {} keys of {} bytes loaded in {:.1} s; resident memory of each process then {}, at the end {}",
            target.kind,
            target.version,
            results.plan.keys,
            results.plan.value_bytes,
            target.load_seconds,
            mebibytes(&target.resident_loaded_bytes),
            mebibytes(&target.resident_end_bytes)
        );
    }
    text
}

/// Writes the results beside those of earlier runs under this name; where to.
pub fn write(results: &Results, dir: &Path, name: &str) -> Result<PathBuf, BenchError> {
    let failed = |error: &dyn std::fmt::Display| {
        BenchError::because(format!("cannot write results to {}", dir.display()), error)
    };
    fs::create_dir_all(dir).map_err(|error| failed(&error))?;
    let mut json = serde_json::to_string_pretty(results).map_err(|error| failed(&error))?;
    json.push('\n');
    // Numbered, so that a run never overwrites another.
    for number in 1.. {
        let path = dir.join(format!("{name}-{number:03}.json"));
        match fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
        {
            Ok(_) => {
                return fs::write(&path, json)
                    .map(|()| path)
                    .map_err(|error| failed(&error));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(failed(&"every number is taken"))
}

fn trimmed(table: &mut Table, right: std::ops::RangeFrom<usize>) -> String {
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if number >= right.start {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn millis(micros: f64) -> String {
    format!("{:.2} ms", micros / 1e3)
}

fn times(spread: Spread) -> String {
    format!(
        "{:.2}x ({:.2} - {:.2})",
        spread.median, spread.min, spread.max
    )
}

fn mebibytes(bytes: &[u64]) -> String {
    let each: Vec<String> = bytes
        .iter()
        .map(|bytes| format!("{:.0}", *bytes as f64 / f64::from(1 << 20)))
        .collect();
    format!("{} MiB", each.join(" / "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Op, Workload};

    fn results() -> Results {
        let workload = Workload {
            op: Op::Put,
            callers: 64,
        };
        let spread = Spread {
            min: 1.5,
            median: 2.0,
            max: 3.0,
        };
        let line = Line {
            workload,
            kind: Kind::FlareDb,
            per_second: spread,
            p50_us: 1234.0,
            p99_us: 5000.0,
            errors: 7,
        };
        Results {
            plan: Plan {
                workloads: vec![workload],
                rounds: 1,
                seconds: 1.0,
                keys: 10,
                value_bytes: 256,
            },
            targets: vec![Measured {
                kind: Kind::FlareDb,
                version: "0.1".into(),
                load_seconds: 1.0,
                resident_loaded_bytes: vec![1 << 20, 3 << 20],
                resident_end_bytes: vec![],
            }],
            lines: vec![line],
            ratios: vec![Ratio {
                of: Kind::FlareDb,
                to: Kind::Etcd,
                workload,
                per_second: spread,
                p50: spread,
                p99: spread,
            }],
            samples: Vec::new(),
            processors: 2,
        }
    }

    #[test]
    fn the_table_tells_workloads_ratios_and_memory() {
        let text = table(&results());
        for part in [
            "put, 64 callers",
            "FlareDB",
            "1.23 ms",
            "5.00 ms",
            "2.00x (1.50 - 3.00)",
            "1 / 3 MiB",
            "7",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn no_run_overwrites_another() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("results");
        let paths = [
            write(&results(), &dir, "put-get").unwrap(),
            write(&results(), &dir, "put-get").unwrap(),
        ];
        assert_ne!(paths[0], paths[1]);
        let json: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&paths[1]).unwrap()).unwrap();
        assert_eq!(json["ratios"][0]["callers"], 64);
        assert_eq!(json["plan"]["workloads"][0]["op"], "put");
    }
}
