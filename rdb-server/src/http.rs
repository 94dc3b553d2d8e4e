//! The HTTP port: `/livez`, `/readyz` and `/metrics`.
//!
//! Answers what the store knows of itself; asks nobody else, so that a probe is cheap and says what is
//! wrong with this very store.

mod accept;

pub use accept::{Bounded, CONNECTIONS, IDLE};

use crate::clock::{Standing, StoreClock};
use crate::cluster::Cluster;
use crate::metrics::Metrics;
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// The routes.
pub fn routes(probes: Probes) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probes)
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

impl Probes {
    fn checks(&self) -> Vec<Check> {
        let alone = self.cluster.plan().is_none();
        let mut checks = vec![Check::new(
            "cluster",
            alone.then(|| {
                "this store belongs to no cluster yet; see its log for whom it waits".into()
            }),
        )];
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
}

async fn readyz(State(probes): State<Probes>, RawQuery(query): RawQuery) -> Response {
    let checks = probes.checks();
    let ready = checks.iter().all(|check| check.problem.is_none());
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part == "verbose" || part.starts_with("verbose="))
    });
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
    if let Some(warning) = clock_warning(&probes.manager.context().clock) {
        text.push_str(&format!("[!] clock: {warning}\n"));
    } else if verbose {
        text.push_str("[+] clock: ok\n");
    }
    if ready {
        text.push_str("ready\n");
    }
    (status, text).into_response()
}

async fn metrics(State(probes): State<Probes>) -> Response {
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
