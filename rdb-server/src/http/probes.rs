//! The probes: `/livez`, `/readyz` and `/metrics`.
//!
//! Owns what makes a store ready, a line for each check. Answers what the store knows of itself; asks
//! nobody else, so that a probe is cheap and says what is wrong with this very store.
//!
//! Invariant: a line that begins with `[!]` is a warning, and makes no store unready.

use super::Gateway;
use super::problem::Problem;
use super::query::Query;
use crate::clock::{Standing, StoreClock};
use crate::cluster::{Cluster, Step};
use crate::metrics::Metrics;
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::room::{Level, kept_bytes};
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rdb_types::NamespaceId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The routes.
pub(super) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

/// What the probes look at.
#[derive(Clone)]
pub struct Probes {
    /// Whether the store belongs to a cluster.
    pub cluster: Arc<Cluster>,
    /// Its regions.
    pub manager: Arc<PeerManager>,
    /// Its tables.
    pub namespaces: Namespaces,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
    /// The store hands over what it leads, and then ends.
    pub leaving: Arc<AtomicBool>,
}

/// One line of `/readyz?verbose`.
struct Check {
    name: String,
    problem: Option<String>,
    /// What eventual namespaces need, too; they do without a quorum.
    eventual: bool,
}

impl Check {
    fn new(name: impl Into<String>, problem: Option<String>) -> Check {
        Check {
            name: name.into(),
            problem,
            eventual: true,
        }
    }
}

/// What is wrong with the store's clock. Not a problem of being ready: strong namespaces are served all
/// the same, and a store that other stores serve better for is known by `CLOCK_SKEW`.
fn clock_warning(clock: &StoreClock) -> Option<String> {
    match clock.standing() {
        Standing::Fine => None,
        Standing::Unconfirmed(_) => Some("no majority of the stores was asked yet".to_owned()),
        Standing::Off(skew) => Some(format!(
            "{skew}: eventual writes are refused; set the machine's clock right (NTP)"
        )),
    }
}

/// Whom a store without a cluster waits for.
fn alone(cluster: &Cluster) -> Option<String> {
    if cluster.plan().is_some() {
        return None;
    }
    let waits = match cluster.next_step() {
        Ok(Step::Ask { missing, planner }) if missing.is_empty() => {
            format!("it waits for store {planner} to begin one")
        }
        Ok(Step::Ask { missing, .. }) => {
            let missing: Vec<String> = missing.iter().map(u32::to_string).collect();
            format!("it waits for an answer of store {}", missing.join(", "))
        }
        Ok(_) => "it is joining one".to_owned(),
        Err(error) => error.message,
    };
    Some(format!("this store belongs to no cluster yet: {waits}"))
}

impl Probes {
    fn checks(&self) -> Vec<Check> {
        let mut checks = vec![Check::new("cluster", alone(&self.cluster))];
        if self.leaving.load(Ordering::Acquire) {
            let problem = "this store is shutting down".to_owned();
            checks.push(Check::new("leaving", Some(problem)));
        }
        let initialised = self.namespaces.tables().cluster.is_some();
        checks.push(Check::new(
            "tables",
            (!initialised).then(|| "the cluster's tables are not here yet".into()),
        ));
        // Regions are opened one after the other when the store joins: all of them, or it is not ready.
        let planned = self.cluster.plan().map_or(0, |plan| plan.regions.len());
        let open = self.manager.peers().len();
        checks.push(Check::new(
            "regions",
            (open < planned).then(|| format!("{open} of {planned} regions are open")),
        ));
        for peer in self.manager.peers() {
            let damage = peer.damage().first();
            let eventual = damage.is_some();
            let problem = if let Some(damage) = damage {
                Some(format!("its data on this disk is damaged: {damage}"))
            } else if !peer.quorum().available() {
                Some(peer.quorum().lost(None).message)
            } else if !peer.quorum().confirmed() {
                Some("no leader with a quorum was heard of since the start".into())
            } else {
                peer.behind()
            };
            checks.push(Check {
                name: format!("region {}", peer.id()),
                problem,
                eventual,
            });
        }
        checks
    }

    /// Whether requests to eventual namespaces can be served, with a quorum or without.
    pub fn serves_eventual(&self) -> bool {
        let checks = self.checks();
        let mut needed = checks.iter().filter(|check| check.eventual);
        needed.all(|check| check.problem.is_none())
    }

    /// Whether requests can be served.
    pub fn ready(&self) -> bool {
        self.checks().iter().all(|check| check.problem.is_none())
    }

    /// What keeps the store from being ready, in one line.
    pub fn missing(&self) -> Option<String> {
        let problem = |check: &Check| Some(format!("{}: {}", check.name, check.problem.as_ref()?));
        let problems: Vec<String> = self.checks().iter().filter_map(problem).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}

/// Something worth a line that makes no store unready.
struct Note {
    name: &'static str,
    /// What is fine, where that is worth saying; else what is not.
    text: Result<String, String>,
}

impl Note {
    fn line(&self) -> String {
        match &self.text {
            Ok(text) if text.is_empty() => format!("[+] {}: ok\n", self.name),
            Ok(text) => format!("[+] {}: ok ({text})\n", self.name),
            Err(text) => format!("[!] {}: {text}\n", self.name),
        }
    }
}

/// Bytes as people read them.
fn readable(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

impl Probes {
    /// What is worth a warning, whoever asks.
    fn warnings(&self) -> Vec<Note> {
        let clock = match clock_warning(&self.manager.context().clock) {
            None => Ok(String::new()),
            Some(warning) => Err(warning),
        };
        vec![
            Note {
                name: "clock",
                text: clock,
            },
            Note {
                name: "modes",
                text: self.mismatches(),
            },
        ]
    }

    /// Which stores disagree with the cluster about modes, as far as this one looks after them.
    fn mismatches(&self) -> Result<String, String> {
        let tables = self.namespaces.tables();
        let known = self.manager.mismatches().to_wire();
        let disagree: Vec<String> = known
            .iter()
            .map(|mismatch| {
                let row = tables.namespaces.get(&NamespaceId(mismatch.namespace_id));
                let name = row.map_or("?", |row| row.name.as_str());
                format!("store {} about {name}", mismatch.store_id)
            })
            .collect();
        if disagree.is_empty() {
            return Ok(String::new());
        }
        Err(format!(
            "a store disagrees with the cluster: {}; the cluster's mode counts, and `flaredb ns modes` says what to do",
            disagree.join(", ")
        ))
    }

    /// What the disk says of itself. Waits for the disk.
    fn disk(&self) -> Vec<Note> {
        let stats = self.manager.context().engine.stats();
        let storage = match stats.background_errors {
            0 => Ok(format!("{} on disk", readable(stats.disk_bytes))),
            errors => Err(format!(
                "the engine had {errors} errors in the background since the start; the log names them"
            )),
        };
        vec![Note {
            name: "storage",
            text: storage,
        }]
    }

    /// The room on the disk. Waits for the disk.
    fn room(&self) -> Note {
        let context = self.manager.context();
        let text = match context.reserve.space() {
            None => Ok(
                "no bound is known: the data is in memory, or the file system does not say"
                    .to_owned(),
            ),
            Some(space) => {
                let kept = kept_bytes(context.reserve_bytes, space.total_bytes);
                let seen = format!(
                    "{} free, {} of it and of the {} in the reserve file are kept",
                    readable(space.free_bytes),
                    readable(kept),
                    readable(context.reserve.held_bytes())
                );
                match context.rooms.own() {
                    _ if context.rooms.stalled() => Err(format!(
                        "the disk is full ({seen}), and a write found no room: nothing is written until there is some; make room on it"
                    )),
                    Level::Ample => Ok(seen),
                    Level::Short => Err(format!(
                        "the disk is full ({seen}): data is refused (NO_SPACE), deletes and reads go on; delete what is not needed, or make room on it"
                    )),
                    Level::Out => Err(format!(
                        "the disk is full and its reserve is used ({seen}): data is refused (NO_SPACE), and what other stores send is held back; make room on it"
                    )),
                }
            }
        };
        Note {
            name: "disk space",
            text,
        }
    }
}

async fn readyz(
    State(Gateway { probes, .. }): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    // Other parameters are let be: whoever probes may have his own.
    let verbose = Query::parse(query.as_deref()).and_then(|mut query| query.switch("verbose"));
    let verbose = verbose.map_err(|error| Problem::of(&error))?;
    let checks = probes.checks();
    let ready = checks.iter().all(|check| check.problem.is_none());
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut notes = probes.warnings();
    let disk = tokio::task::spawn_blocking(move || {
        let mut disk = if verbose { probes.disk() } else { Vec::new() };
        disk.push(probes.room());
        disk
    });
    notes.extend(disk.await.unwrap_or_default());
    let mut text = String::new();
    for check in checks
        .iter()
        .filter(|check| verbose || check.problem.is_some())
    {
        match &check.problem {
            None => text.push_str(&format!("[+] {}: ok\n", check.name)),
            Some(problem) => text.push_str(&format!("[-] {}: {problem}\n", check.name)),
        }
    }
    for note in notes.iter().filter(|note| verbose || note.text.is_err()) {
        text.push_str(&note.line());
    }
    if ready {
        text.push_str("ready\n");
    }
    Ok((status, text).into_response())
}

async fn metrics(State(Gateway { probes, .. }): State<Gateway>) -> Response {
    // The engine's numbers come off the disk's directory.
    let encoded = tokio::task::spawn_blocking(move || probes.metrics.encode()).await;
    match encoded.unwrap_or(Err(std::fmt::Error)) {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
