//! `flaredb status`: the cluster on one screen.
//!
//! Owns the fold of a ClusterStatusResponse into rows and a verdict (pure), and its printing. It is
//! one store's view: what that store cannot reach is unreachable here too.
//!
//! Invariant: the verdict says "healthy" only when every store answers, every region has a quorum and
//! no namespace is declared in two modes.

use super::ns::mode;
use crate::args::{Format, Shared};
use crate::exit::{self, Error};
use crate::output;
use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::raft::RegionReport;
use serde_json::{Value, json};
use std::process::ExitCode;

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

/// What is wrong, the worst first, and what to do about each.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Regions where nothing can be written: the cluster is down for their keys.
    lost: Vec<String>,
    /// Works, with less to spare.
    degraded: Vec<String>,
}

impl Verdict {
    fn of(answer: &ClusterStatusResponse) -> Verdict {
        let mut verdict = Verdict::default();
        for region in &answer.regions {
            let view = Region::of(answer, region.id);
            if !view.quorum {
                let reached = view.replicas;
                verdict.lost.push(format!(
                    "region {} has no quorum ({reached} of {} stores report it): nothing can be written there; \
                     start the missing stores again, or mend the network between them",
                    region.id,
                    answer.stores.len()
                ));
            }
        }
        if answer.regions.is_empty() {
            verdict.lost.push(
                "the cluster has not formed yet: no region is known; check that a majority of the first members \
                 runs with the same --peer list"
                    .to_owned(),
            );
        }
        for store in answer.stores.iter().filter(|store| !store.reachable) {
            let (id, address) = name(store);
            let why = if store.error.is_empty() { "no answer" } else { &store.error };
            verdict.degraded.push(format!("store {id} at {address} is unreachable ({why}): start it again, or check the network to it"));
        }
        for row in answer.namespaces.iter().filter(|row| !row.deleted) {
            let odd: Vec<String> = answer
                .stores
                .iter()
                .filter(|store| {
                    let declared = store.status.iter().flat_map(|status| &status.declared);
                    declared.into_iter().any(|declared| declared.name == row.name && declared.mode != row.mode)
                })
                .map(|store| name(store).0.to_string())
                .collect();
            if !odd.is_empty() {
                verdict.degraded.push(format!(
                    "namespace {} is {}, but store {} is configured otherwise: make the configurations equal, or \
                     switch it with `flaredb ns set-mode`",
                    row.name,
                    mode(row.mode),
                    odd.join(", ")
                ));
            }
        }
        verdict
    }

    fn word(&self) -> &'static str {
        match (self.lost.is_empty(), self.degraded.is_empty()) {
            (false, _) => "no quorum",
            (true, false) => "degraded",
            (true, true) => "healthy",
        }
    }

    fn findings(&self) -> impl Iterator<Item = &String> {
        self.lost.iter().chain(&self.degraded)
    }

    /// Degraded is still serving: 0.
    fn exit_code(&self) -> ExitCode {
        if self.lost.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::UNAVAILABLE) }
    }
}

/// A region, out of what its replicas report.
#[derive(Debug, Default)]
struct Region {
    leader: u32,
    term: u64,
    applied: u64,
    quorum: bool,
    /// Stores that report it.
    replicas: usize,
    keys: u64,
}

impl Region {
    fn of(answer: &ClusterStatusResponse, id: u64) -> Region {
        let mut region = Region::default();
        for (_, report) in reports(answer, id) {
            region.replicas += 1;
            region.quorum |= report.quorum;
            // The newest term knows best who leads.
            if report.leader != 0 && (report.term, region.leader) > (region.term, 0) {
                region.leader = report.leader;
            }
            region.term = region.term.max(report.term);
            if report.applied_index >= region.applied {
                region.applied = report.applied_index;
                region.keys = report.namespaces.iter().map(|namespace| namespace.keys).sum();
            }
        }
        region
    }
}

fn reports(answer: &ClusterStatusResponse, region: u64) -> impl Iterator<Item = (&StoreSummary, &RegionReport)> {
    answer.stores.iter().filter(|store| store.reachable).flat_map(move |store| {
        let reports = store.status.iter().flat_map(|status| &status.regions);
        reports.filter(move |report| report.region_id == region).map(move |report| (store, report))
    })
}

fn name(store: &StoreSummary) -> (u32, &str) {
    let member = store.member.as_ref().or_else(|| store.status.as_ref().and_then(|status| status.member.as_ref()));
    member.map_or((0, "?"), |member| (member.store_id, &*member.address))
}

/// Keys of a namespace: the most that any replica of each region counts.
fn keys(answer: &ClusterStatusResponse, namespace: u32) -> u64 {
    let of_region = |id| {
        reports(answer, id)
            .flat_map(|(_, report)| &report.namespaces)
            .filter(|report| report.namespace_id == namespace)
            .map(|report| report.keys)
            .max()
            .unwrap_or(0)
    };
    answer.regions.iter().map(|region| of_region(region.id)).sum()
}

fn screen(answer: &ClusterStatusResponse, verdict: &Verdict, colours: bool) -> String {
    let stores = answer.stores.iter().map(|store| {
        let (id, address) = name(store);
        let leads = answer.regions.iter().filter(|region| Region::of(answer, region.id).leader == id).count();
        let status = store.status.as_ref();
        vec![
            id.to_string(),
            address.to_owned(),
            if store.reachable { "up".to_owned() } else { format!("unreachable: {}", store.error) },
            status.map_or_else(String::new, |_| leads.to_string()),
            status.map_or_else(String::new, |status| uptime(status.uptime_ms)),
            status.map_or_else(String::new, |status| status.version.clone()),
        ]
    });
    let regions = answer.regions.iter().map(|descriptor| {
        let region = Region::of(answer, descriptor.id);
        let lag = reports(answer, descriptor.id).map(|(_, report)| region.applied.saturating_sub(report.applied_index)).max();
        vec![
            descriptor.id.to_string(),
            if region.leader == 0 { "none".to_owned() } else { format!("store {}", region.leader) },
            region.term.to_string(),
            if region.quorum { "yes".to_owned() } else { "NO".to_owned() },
            region.applied.to_string(),
            lag.unwrap_or(0).to_string(),
            region.keys.to_string(),
        ]
    });
    let namespaces = answer.namespaces.iter().filter(|row| !row.deleted).map(|row| {
        let target = if row.target == row.mode || row.target == 0 { "" } else { mode(row.target) };
        vec![row.name.clone(), mode(row.mode).to_owned(), target.to_owned(), keys(answer, row.id).to_string()]
    });
    let mut text = format!("cluster {}, as store {} sees it\n\n", answer.cluster_id, answer.answered_by);
    text += &output::table(&["STORE", "ADDRESS", "STATE", "LEADS", "UP", "VERSION"], stores.collect());
    text += "\n\n";
    text += &output::table(&["REGION", "LEADER", "TERM", "QUORUM", "APPLIED", "MOST LAG", "KEYS"], regions.collect());
    text += "\n\n";
    text += &output::table(&["NAMESPACE", "MODE", "SWITCHING TO", "KEYS"], namespaces.collect());
    text += "\n\n";
    let colour = match verdict.word() {
        "healthy" => "32",
        "degraded" => "33",
        _ => "31",
    };
    text += &if colours { format!("\x1b[1;{colour}m{}\x1b[0m", verdict.word()) } else { verdict.word().to_owned() };
    for finding in verdict.findings() {
        text += &format!("\n- {finding}");
    }
    text
}

fn uptime(ms: u64) -> String {
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
    let namespaces: Vec<Value> = answer
        .namespaces
        .iter()
        .filter(|row| !row.deleted)
        .map(|row| {
            json!({
                "id": row.id,
                "name": row.name,
                "mode": mode(row.mode),
                "target": mode(row.target),
                "keys": keys(answer, row.id).to_string(),
            })
        })
        .collect();
    json!({
        "cluster_id": answer.cluster_id,
        "answered_by": answer.answered_by,
        "verdict": verdict.word(),
        "findings": verdict.findings().collect::<Vec<_>>(),
        "stores": stores,
        "regions": regions,
        "namespaces": namespaces,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::raft::{DeclaredNamespace, Member, NamespaceReport, NamespaceRow, RegionDescriptor, StoreStatus};

    fn store(id: u32, reports: &[(u32, u64, u64, bool)]) -> StoreSummary {
        let regions = reports
            .iter()
            .map(|&(leader, term, applied_index, quorum)| RegionReport {
                region_id: 2,
                leader,
                term,
                applied_index,
                quorum,
                namespaces: vec![NamespaceReport { namespace_id: 1, keys: applied_index, ..Default::default() }],
                ..Default::default()
            })
            .collect();
        StoreSummary {
            member: Some(Member { store_id: id, address: format!("s{id}:1"), ..Default::default() }),
            reachable: true,
            status: Some(StoreStatus { regions, version: "0.1.0".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn gone(id: u32) -> StoreSummary {
        let member = Some(Member { store_id: id, address: format!("s{id}:1"), ..Default::default() });
        StoreSummary { member, error: "connection refused".into(), ..Default::default() }
    }

    fn cluster(stores: Vec<StoreSummary>) -> ClusterStatusResponse {
        ClusterStatusResponse {
            cluster_id: "c1".into(),
            stores,
            regions: vec![RegionDescriptor { id: 2, ..Default::default() }],
            namespaces: vec![NamespaceRow { id: 1, name: "default".into(), mode: 1, target: 1, ..Default::default() }],
            answered_by: 1,
        }
    }

    #[test]
    fn healthy() {
        let answer = cluster(vec![
            store(1, &[(2, 7, 40, true)]),
            store(2, &[(2, 7, 42, true)]),
            store(3, &[(1, 6, 30, false)]),
        ]);
        let verdict = Verdict::of(&answer);
        assert_eq!((verdict.word(), verdict.exit_code()), ("healthy", ExitCode::SUCCESS));
        let region = Region::of(&answer, 2);
        assert_eq!((region.leader, region.term, region.applied), (2, 7, 42), "the newest term's word");
        let screen = screen(&answer, &verdict, false);
        for part in ["s3:1", "store 2", "default", "strong", "42", "healthy"] {
            assert!(screen.contains(part), "no {part:?} in:\n{screen}");
        }
        assert!(!screen.contains('\x1b'));
    }

    #[test]
    fn a_store_away_is_told_but_serves() {
        let answer = cluster(vec![store(1, &[(1, 7, 40, true)]), store(2, &[(1, 7, 40, true)]), gone(3)]);
        let verdict = Verdict::of(&answer);
        assert_eq!((verdict.word(), verdict.exit_code()), ("degraded", ExitCode::SUCCESS));
        assert!(verdict.degraded[0].contains("store 3 at s3:1 is unreachable (connection refused)"));
    }

    #[test]
    fn no_quorum_is_exit_code_4_and_says_what_to_do() {
        let answer = cluster(vec![store(1, &[(0, 9, 40, false)]), gone(2), gone(3)]);
        let verdict = Verdict::of(&answer);
        assert_eq!((verdict.word(), verdict.exit_code()), ("no quorum", ExitCode::from(4)));
        assert!(verdict.lost[0].contains("region 2 has no quorum (1 of 3"), "{verdict:?}");
        assert_eq!(document(&answer, &verdict)["verdict"], "no quorum");
        assert_eq!(Verdict::of(&ClusterStatusResponse::default()).word(), "no quorum", "nothing formed yet");
    }

    #[test]
    fn a_store_that_is_configured_otherwise_is_named() {
        let mut odd = store(2, &[(1, 7, 40, true)]);
        if let Some(status) = &mut odd.status {
            status.declared = vec![DeclaredNamespace { name: "default".into(), mode: 2, policies: None }];
        }
        let verdict = Verdict::of(&cluster(vec![store(1, &[(1, 7, 40, true)]), odd]));
        assert!(verdict.degraded[0].contains("namespace default is strong, but store 2"), "{verdict:?}");
    }
}
