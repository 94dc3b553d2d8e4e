//! `flaredb status`: the cluster on one screen.
//!
//! Owns the screen and the document. The verdict comes first: whether to worry, about what, and what to do; the tables
//! below it are for whoever looks further. It is one store's view: what that store cannot reach is unreachable here too. What the reports add up to is `status/view.rs` and, for eventual namespaces,
//! `status/lag.rs`; what is wrong `status/verdict.rs`.

pub(crate) mod lag;
#[cfg(test)]
mod tests;
pub(crate) mod verdict;
pub(crate) mod view;

use super::ns::mode;
use crate::args::{Format, Shared};
use crate::exit::Error;
use crate::output;
use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::raft::StoreStatus;
use serde_json::{Value, json};
use std::process::ExitCode;
use verdict::Verdict;
use view::{Region, keys, name, reports, switches};

/// One screen: beyond so many namespaces the table names the rest by their number.
const NAMESPACES: usize = 10;
/// Of eventual namespaces, which take a line for each store.
const EVENTUAL: usize = 5;

pub(crate) async fn run(shared: &Shared) -> Result<ExitCode, Error> {
    let answer = shared.client()?.cluster_status().await?;
    let verdict = Verdict::of(&answer);
    match shared.output {
        Some(Format::Json) => output::line(&format!("{:#}", document(&answer, &verdict)))?,
        Some(Format::Jsonl) => output::line(&document(&answer, &verdict).to_string())?,
        Some(Format::Raw) => output::line(verdict.word())?,
        // A screen for people, also through a pipe: `flaredb status | less`.
        Some(Format::Table) | None => output::line(&screen(&answer, &verdict, output::colours()))?,
    }
    Ok(verdict.exit_code())
}

/// Id and address of a store.
pub(crate) fn name_of(store: &StoreSummary) -> (u32, &str) {
    name(store)
}

/// The screen of an answer, for one who has it already.
pub(crate) fn screen_of(answer: &ClusterStatusResponse) -> String {
    screen(answer, &Verdict::of(answer), output::colours())
}

fn screen(answer: &ClusterStatusResponse, verdict: &Verdict, colours: bool) -> String {
    let stores = answer.stores.iter().map(|store| {
        let (id, address) = name(store);
        let leads = answer
            .regions
            .iter()
            .filter(|region| Region::of(answer, region.id).leader == id)
            .count();
        let status = store.status.as_ref();
        vec![
            id.to_string(),
            address.to_owned(),
            // Why is a finding below: it would make the table too wide.
            if store.reachable { "up" } else { "unreachable" }.to_owned(),
            status.map_or_else(String::new, |_| leads.to_string()),
            status.map_or_else(String::new, |status| uptime(status.uptime_ms)),
            status.map_or_else(String::new, disk),
            status.map_or_else(String::new, memory),
            status.map_or_else(String::new, clock),
            status.map_or_else(String::new, |status| status.version.clone()),
        ]
    });
    let regions = answer.regions.iter().map(|descriptor| {
        let region = Region::of(answer, descriptor.id);
        let lag = reports(answer, descriptor.id)
            .map(|(_, report)| region.applied.saturating_sub(report.applied_index))
            .max();
        vec![
            descriptor.id.to_string(),
            if region.leader == 0 {
                "none".to_owned()
            } else {
                format!("store {}", region.leader)
            },
            region.term.to_string(),
            if region.quorum {
                "yes".to_owned()
            } else {
                "NO".to_owned()
            },
            region.applied.to_string(),
            lag.unwrap_or(0).to_string(),
            region.keys.to_string(),
        ]
    });
    // Those that switch first: they are what somebody looks for.
    let mut rows: Vec<_> = answer
        .namespaces
        .iter()
        .filter(|row| !row.deleted)
        .collect();
    rows.sort_by_key(|row| (row.attempt <= row.settled_attempt, row.id));
    let further = rows.len().saturating_sub(NAMESPACES);
    let namespaces = rows.into_iter().take(NAMESPACES).map(|row| {
        let target = if row.target == row.mode || row.target == 0 {
            ""
        } else {
            mode(row.target)
        };
        vec![
            row.name.clone(),
            mode(row.mode).to_owned(),
            target.to_owned(),
            keys(answer, row.id).to_string(),
        ]
    });
    let mut text = opening(verdict, colours);
    let cluster = match answer.cluster_id.as_str() {
        "" => "no cluster yet".to_owned(),
        id => format!("cluster {id}"),
    };
    text += &format!("\n\n{cluster}, as store {} sees it\n\n", answer.answered_by);
    text += &output::table(
        &[
            "STORE",
            "ADDRESS",
            "STATE",
            "LEADS",
            "UP",
            "DISK FREE",
            "MEMORY",
            "CLOCK",
            "VERSION",
        ],
        stores.collect(),
    );
    text += "\n\n";
    text += &output::table(
        &[
            "REGION", "LEADER", "TERM", "QUORUM", "APPLIED", "MOST LAG", "KEYS",
        ],
        regions.collect(),
    );
    text += "\n\n";
    text += &output::table(
        &["NAMESPACE", "MODE", "SWITCHING TO", "KEYS"],
        namespaces.collect(),
    );
    if further > 0 {
        text += &format!("\nand {further} more: `flaredb ns list`");
    }
    let mut eventual = lag::of(answer);
    // Those first of which there is something to say.
    eventual.sort_by_key(|(row, replicas)| {
        let is_even = |replica: &lag::Replica| {
            replica.lag_writes == Some(0)
                && replica.conflicts == 0
                && replica.held.is_empty()
                && !replica.differs
        };
        (replicas.iter().all(is_even), row.id)
    });
    if !eventual.is_empty() {
        text += "\n\n";
        let rows = eventual.iter().take(EVENTUAL).flat_map(|(row, replicas)| {
            let rows = replicas.iter();
            rows.map(|replica| lag_row(&row.name, replica))
        });
        text += &output::table(
            &["EVENTUAL", "STORE", "LAG", "OLDEST", "CONFLICTS", "HELD"],
            rows.collect(),
        );
    }
    if eventual.len() > EVENTUAL {
        let further = eventual.len() - EVENTUAL;
        text += &format!("\nand {further} more eventual namespaces: `flaredb status -o json`");
    }
    text
}

/// Whether to worry, about what, and what to do.
fn opening(verdict: &Verdict, colours: bool) -> String {
    let colour = match verdict.word() {
        "healthy" => "32",
        "degraded" => "33",
        _ => "31",
    };
    let mut text = if colours {
        format!("\x1b[1;{colour}m{}\x1b[0m", verdict.word())
    } else {
        verdict.word().to_owned()
    };
    for finding in verdict.findings() {
        text += &format!("\n- {finding}");
    }
    for note in &verdict.notes {
        text += &format!("\nnote: {note}");
    }
    text
}

/// Sizes, for people.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut size = bytes as f64;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if size < 10.0 => format!("{size:.1} {}", UNITS[unit]),
        _ => format!("{size:.0} {}", UNITS[unit]),
    }
}

pub(crate) fn disk(status: &StoreStatus) -> String {
    let disk = status.disk.filter(|disk| disk.total_bytes > 0);
    disk.map_or_else(
        || "none".to_owned(),
        |disk| {
            let part = 100.0 * disk.free_bytes as f64 / disk.total_bytes as f64;
            let full = if disk.room > 0 { "FULL, " } else { "" };
            format!("{full}{} ({part:.0}%)", bytes(disk.free_bytes))
        },
    )
}

pub(crate) fn memory(status: &StoreStatus) -> String {
    match status.resident_bytes {
        0 => String::new(),
        resident => bytes(resident),
    }
}

pub(crate) fn clock(status: &StoreStatus) -> String {
    match status.clock {
        Some(clock) if clock.off => "OFF".to_owned(),
        Some(clock) if clock.unconfirmed => "not compared".to_owned(),
        Some(clock) => clock
            .skew_ms
            .map_or_else(String::new, |skew| format!("{skew:+} ms")),
        None => String::new(),
    }
}

fn lag_row(namespace: &str, replica: &lag::Replica) -> Vec<String> {
    let held: Vec<String> = replica
        .held
        .iter()
        .map(|held| format!("store {}", held.origin))
        .collect();
    let conflicts = match (replica.reachable, replica.conflicts_dropped) {
        (false, _) => String::new(),
        (true, 0) => replica.conflicts.to_string(),
        (true, dropped) => format!("{} (+{dropped} dropped)", replica.conflicts),
    };
    vec![
        namespace.to_owned(),
        replica.store.to_string(),
        replica
            .lag_writes
            .map_or_else(|| "unknown".to_owned(), |writes| format!("{writes} writes")),
        match replica.lag_writes {
            Some(1..) => age(replica.lag_ms),
            _ => String::new(),
        },
        conflicts,
        if replica.reachable && held.is_empty() {
            "none".to_owned()
        } else {
            held.join(", ")
        },
    ]
}

/// Some time, for people.
pub(crate) fn age(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms}ms"),
        _ => uptime(ms),
    }
}

pub(crate) fn uptime(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn document(answer: &ClusterStatusResponse, verdict: &Verdict) -> Value {
    let stores: Vec<Value> = answer
        .stores
        .iter()
        .map(|store| {
            let (id, address) = name(store);
            let status = store.status.as_ref();
            json!({
                "store_id": id,
                "address": address,
                "reachable": store.reachable,
                "error": store.error,
                "version": status.map(|status| &status.version),
                "uptime_ms": status.map(|status| status.uptime_ms.to_string()),
                "http_address": status.map(|status| &status.http_address),
                "clock_off": status.and_then(|status| status.clock).map(|clock| clock.off),
                "clock_unconfirmed": status.and_then(|status| status.clock).map(|clock| clock.unconfirmed),
                "disk_free_bytes": status.and_then(|status| status.disk).map(|disk| disk.free_bytes.to_string()),
                "disk_total_bytes": status.and_then(|status| status.disk).map(|disk| disk.total_bytes.to_string()),
                "disk_reserve_bytes": status.and_then(|status| status.disk).map(|disk| disk.reserve_bytes.to_string()),
                "disk_full": status.and_then(|status| status.disk).map(|disk| disk.room > 0),
                "database_bytes": status.and_then(|status| status.disk).map(|disk| disk.used_bytes.to_string()),
                "resident_bytes": status.map(|status| status.resident_bytes.to_string()),
                "clock_skew_ms": status.and_then(|status| status.clock).and_then(|clock| clock.skew_ms),
            })
        })
        .collect();
    let regions: Vec<Value> = answer
        .regions
        .iter()
        .map(|descriptor| {
            let region = Region::of(answer, descriptor.id);
            let replicas: Vec<Value> = reports(answer, descriptor.id)
                .map(|(store, report)| {
                    json!({
                        "store_id": name(store).0,
                        "term": report.term.to_string(),
                        "applied_index": report.applied_index.to_string(),
                        "commit_index": report.commit_index.to_string(),
                        "quorum": report.quorum,
                        "quorum_age_ms": report.quorum_age_ms.to_string(),
                        "damage": report.damage,
                        "waiting_writes": report.waiting_writes.to_string(),
                    })
                })
                .collect();
            json!({
                "region_id": descriptor.id.to_string(),
                "leader": region.leader,
                "term": region.term.to_string(),
                "quorum": region.quorum,
                "applied_index": region.applied.to_string(),
                "replicas": replicas,
            })
        })
        .collect();
    let eventual = lag::of(answer);
    let namespaces: Vec<Value> = answer
        .namespaces
        .iter()
        .filter(|row| !row.deleted)
        .map(|row| {
            let mut replicas = eventual.iter().filter(|(of, _)| of.id == row.id);
            let replicas = replicas
                .next()
                .map(|(_, replicas)| replicas.iter().map(replica).collect::<Vec<Value>>());
            json!({
                "id": row.id,
                "name": row.name,
                "mode": mode(row.mode),
                "target": mode(row.target),
                "keys": keys(answer, row.id).to_string(),
                "replicas": replicas,
            })
        })
        .collect();
    let under_way = switches(answer);
    let switches = under_way.iter().map(|switch| {
        json!({
            "namespace": switch.row.name,
            "from": mode(switch.row.mode),
            "to": mode(switch.row.target),
            "for_ms": switch.for_ms.to_string(),
            "undone": switch.undone,
            "step": switch.step,
            "waiting_for": switch.waiting_for,
            "why": switch.why,
        })
    });
    json!({
        "cluster_id": answer.cluster_id,
        "answered_by": answer.answered_by,
        "verdict": verdict.word(),
        "findings": verdict.findings().collect::<Vec<_>>(),
        "notes": verdict.notes,
        "stores": stores,
        "regions": regions,
        "namespaces": namespaces,
        "switches": switches.collect::<Vec<Value>>(),
    })
}

/// A replica of an eventual namespace.
fn replica(replica: &lag::Replica) -> Value {
    let held = replica.held.iter().map(|held| {
        json!({
            "origin": held.origin,
            "held_ms": held.held_ms.to_string(),
            "ahead_ms": held.ahead_ms.to_string(),
        })
    });
    json!({
        "store_id": replica.store,
        "reachable": replica.reachable,
        "lag_writes": replica.lag_writes.map(|writes| writes.to_string()),
        "lag_ms": replica.lag_ms.to_string(),
        "conflicts": replica.conflicts.to_string(),
        "conflicts_dropped": replica.conflicts_dropped.to_string(),
        "held": held.collect::<Vec<Value>>(),
    })
}
