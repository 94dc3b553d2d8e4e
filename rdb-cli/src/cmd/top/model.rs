//! What the screen of `flaredb top` shows: out of two answers of the cluster, one row for each thing.
//!
//! Pure: answers in, rows out. Owns the making of rates. A store's counters grow from its start, and its uptime tells
//! how much time lies between two looks, so a rate is right however late an answer came.
//!
//! Invariant: a store that was started again, or did not answer both times, has no rate rather than a wrong one.

use crate::cmd::status::lag;
use crate::cmd::status::verdict::Verdict;
use crate::cmd::status::view::{Region, keys, name, switches};
use crate::cmd::status::{age, clock, disk, memory, uptime};
use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::convert;
use rdb_proto::raft::{ServedRequests, StoreStatus};
use rdb_types::Mode;
use std::collections::BTreeMap;

/// Operations a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) reads: f64,
    pub(crate) writes: f64,
    pub(crate) refused: f64,
}

impl Rates {
    fn add(&mut self, other: Rates) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.refused += other.refused;
    }

    fn all(self) -> f64 {
        self.reads + self.writes
    }
}

/// A store.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StoreRow {
    pub(crate) id: u32,
    pub(crate) address: String,
    pub(crate) up: bool,
    pub(crate) leads: usize,
    pub(crate) uptime: String,
    pub(crate) rates: Option<Rates>,
    pub(crate) disk_free: String,
    pub(crate) memory: String,
    pub(crate) clock: String,
}

/// A region.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RegionRow {
    pub(crate) id: u64,
    /// 0: none is known.
    pub(crate) leader: u32,
    pub(crate) term: u64,
    pub(crate) quorum: bool,
    /// Entries that the replica furthest behind has to apply.
    pub(crate) lag: u64,
    pub(crate) waiting: u64,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NamespaceRow {
    pub(crate) name: String,
    pub(crate) mode: String,
    /// Where it switches to, and since when; empty: it does not.
    pub(crate) switching: String,
    pub(crate) rates: Option<Rates>,
    pub(crate) keys: u64,
    /// The worst replica's; empty: not eventual.
    pub(crate) lag: String,
    /// Beyond its objective, held, or different.
    pub(crate) troubled: bool,
    pub(crate) conflicts: u64,
}

/// The whole screen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    pub(crate) cluster: String,
    pub(crate) answered_by: u32,
    pub(crate) verdict: &'static str,
    pub(crate) findings: Vec<String>,
    pub(crate) stores: Vec<StoreRow>,
    pub(crate) regions: Vec<RegionRow>,
    /// The busiest first.
    pub(crate) namespaces: Vec<NamespaceRow>,
}

impl Model {
    /// Of an answer, and the one before it, if there was one.
    pub(crate) fn of(before: Option<&ClusterStatusResponse>, now: &ClusterStatusResponse) -> Model {
        let verdict = Verdict::of(now);
        let rates: BTreeMap<u32, BTreeMap<&str, Rates>> = now
            .stores
            .iter()
            .filter_map(|store| {
                let id = name(store).0;
                let earlier = before?.stores.iter().find(|store| name(store).0 == id)?;
                Some((id, between(status(earlier)?, status(store)?)?))
            })
            .collect();
        let regions: Vec<RegionRow> = now
            .regions
            .iter()
            .map(|region| region_row(now, region.id))
            .collect();
        Model {
            cluster: now.cluster_id.clone(),
            answered_by: now.answered_by,
            verdict: verdict.word(),
            findings: verdict.findings().cloned().collect(),
            stores: now
                .stores
                .iter()
                .map(|store| store_row(store, &regions, &rates))
                .collect(),
            namespaces: namespace_rows(now, &rates),
            regions,
        }
    }
}

fn status(store: &StoreSummary) -> Option<&StoreStatus> {
    store.status.as_ref().filter(|_| store.reachable)
}

/// What a store served of each namespace a second, from one look to the next.
fn between<'a>(earlier: &StoreStatus, now: &'a StoreStatus) -> Option<BTreeMap<&'a str, Rates>> {
    // Started again, or the same answer twice: there is nothing between the two.
    let passed_ms = now.uptime_ms.checked_sub(earlier.uptime_ms)?;
    if passed_ms == 0 {
        return None;
    }
    let seconds = passed_ms as f64 / 1e3;
    let rates = now.served.iter().map(|served| {
        let mut known = earlier.served.iter();
        let known = known.find(|known| known.namespace == served.namespace);
        let none = ServedRequests::default();
        let known = known.unwrap_or(&none);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let rates = Rates {
            reads: rate(served.reads, known.reads),
            writes: rate(served.writes, known.writes),
            refused: rate(served.refused, known.refused),
        };
        (&*served.namespace, rates)
    });
    Some(rates.collect())
}

fn store_row(
    store: &StoreSummary,
    regions: &[RegionRow],
    rates: &BTreeMap<u32, BTreeMap<&str, Rates>>,
) -> StoreRow {
    let (id, address) = name(store);
    let status = status(store);
    let shown = |text: fn(&StoreStatus) -> String| status.map_or_else(String::new, text);
    let sum = |of: &BTreeMap<&str, Rates>| {
        let mut sum = Rates::default();
        of.values().for_each(|rates| sum.add(*rates));
        sum
    };
    StoreRow {
        id,
        address: address.to_owned(),
        up: store.reachable,
        leads: regions.iter().filter(|region| region.leader == id).count(),
        uptime: shown(|status| uptime(status.uptime_ms)),
        rates: rates.get(&id).map(sum),
        disk_free: shown(disk),
        memory: shown(memory),
        clock: shown(clock),
    }
}

fn region_row(now: &ClusterStatusResponse, id: u64) -> RegionRow {
    let view = Region::of(now, id);
    let reports = || crate::cmd::status::view::reports(now, id).map(|(_, report)| report);
    let behind = reports().map(|report| view.applied.saturating_sub(report.applied_index));
    RegionRow {
        id,
        leader: view.leader,
        term: view.term,
        quorum: view.quorum,
        lag: behind.max().unwrap_or(0),
        waiting: reports().map(|report| report.waiting_writes).sum(),
    }
}

fn namespace_rows(
    now: &ClusterStatusResponse,
    rates: &BTreeMap<u32, BTreeMap<&str, Rates>>,
) -> Vec<NamespaceRow> {
    let eventual: BTreeMap<u32, Vec<lag::Replica>> = lag::of(now)
        .into_iter()
        .map(|(row, replicas)| (row.id, replicas))
        .collect();
    let switching: BTreeMap<u32, String> = switches(now)
        .into_iter()
        .map(|switch| {
            let to = crate::cmd::ns::mode(switch.row.target);
            let since = age(switch.for_ms);
            let text = match switch.undone {
                true => format!("back to {to}, {since}"),
                false => format!("to {to}, {since}"),
            };
            (switch.row.id, text)
        })
        .collect();
    let rows = now.namespaces.iter().filter(|row| !row.deleted);
    let mut rows: Vec<NamespaceRow> = rows
        .map(|row| {
            let mut sum: Option<Rates> = None;
            for of_store in rates.values() {
                let of_store = of_store.get(&*row.name).copied();
                sum.get_or_insert_default()
                    .add(of_store.unwrap_or_default());
            }
            let replicas = eventual.get(&row.id).map_or(&[][..], Vec::as_slice);
            let objective_ms = lag::objective_ms(row);
            let troubled = replicas.iter().any(|replica| {
                let late = objective_ms > 0 && replica.lag_ms > objective_ms;
                late || replica.differs || !replica.held.is_empty()
            });
            let worst = replicas
                .iter()
                .map(|it| (it.lag_writes.unwrap_or(0), it.lag_ms));
            let mode = convert::mode(row.mode);
            NamespaceRow {
                name: row.name.clone(),
                mode: mode.map_or("?", Mode::as_str).to_owned(),
                switching: switching.get(&row.id).cloned().unwrap_or_default(),
                rates: sum,
                keys: keys(now, row.id),
                lag: match worst.max() {
                    None => String::new(),
                    Some((0, _)) => "none".to_owned(),
                    Some((writes, ms)) => format!("{writes} ({})", age(ms)),
                },
                troubled,
                conflicts: replicas.iter().map(|it| it.conflicts).max().unwrap_or(0),
            }
        })
        .collect();
    let busy = |row: &NamespaceRow| row.rates.unwrap_or_default().all();
    // What switches is looked at first, then what is busy.
    rows.sort_by(|a, b| {
        let idle = |row: &NamespaceRow| row.switching.is_empty();
        let order = idle(a).cmp(&idle(b)).then(busy(b).total_cmp(&busy(a)));
        order.then_with(|| a.name.cmp(&b.name))
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::raft::{self, Member};

    fn served(namespace: &str, reads: u64, writes: u64, refused: u64) -> ServedRequests {
        ServedRequests {
            namespace: namespace.to_owned(),
            reads,
            writes,
            refused,
        }
    }

    /// A store's uptime and what it served; none: it does not answer.
    type Said = Option<(u64, Vec<ServedRequests>)>;

    fn answer(stores: Vec<(u32, Said)>) -> ClusterStatusResponse {
        let summary = |(store_id, status): (u32, Said)| {
            let status = status.map(|(uptime_ms, served)| StoreStatus {
                uptime_ms,
                served,
                ..Default::default()
            });
            StoreSummary {
                member: Some(Member {
                    store_id,
                    ..Default::default()
                }),
                reachable: status.is_some(),
                status,
                ..Default::default()
            }
        };
        let row = |id, name: &str, mode| raft::NamespaceRow {
            id,
            name: name.to_owned(),
            mode,
            target: mode,
            ..Default::default()
        };
        ClusterStatusResponse {
            stores: stores.into_iter().map(summary).collect(),
            namespaces: vec![row(1, "bank", 1), row(2, "cart", 2)],
            ..Default::default()
        }
    }

    #[test]
    fn rates_are_differences_by_the_stores_own_time() {
        let before = answer(vec![
            (1, Some((10_000, vec![served("cart", 100, 50, 0)]))),
            (2, Some((70_000, vec![served("cart", 10, 0, 0)]))),
            (3, Some((9_000, vec![served("bank", 9, 9, 9)]))),
        ]);
        let now = answer(vec![
            // Two seconds later; a namespace is new.
            (
                1,
                Some((
                    12_000,
                    vec![served("bank", 4, 0, 2), served("cart", 300, 60, 0)],
                )),
            ),
            // Four seconds later.
            (2, Some((74_000, vec![served("cart", 50, 8, 4)]))),
            // Started again.
            (3, Some((500, vec![served("bank", 1, 1, 1)]))),
        ]);
        let model = Model::of(Some(&before), &now);
        let rates = |reads, writes, refused| {
            Some(Rates {
                reads,
                writes,
                refused,
            })
        };
        let stores: Vec<_> = model.stores.iter().map(|row| row.rates).collect();
        assert_eq!(
            stores,
            [rates(102.0, 5.0, 1.0), rates(10.0, 2.0, 1.0), None]
        );
        let namespaces: Vec<_> = model
            .namespaces
            .iter()
            .map(|row| (&*row.name, row.rates))
            .collect();
        assert_eq!(
            namespaces,
            [
                ("cart", rates(110.0, 7.0, 1.0)),
                ("bank", rates(2.0, 0.0, 1.0))
            ],
            "the busiest first"
        );
    }

    #[test]
    fn without_an_earlier_answer_there_is_no_rate() {
        let now = answer(vec![
            (1, Some((12_000, vec![served("cart", 1, 1, 0)]))),
            (2, None),
        ]);
        for before in [None, Some(&now)] {
            let model = Model::of(before, &now);
            assert!(model.stores.iter().all(|row| row.rates.is_none()));
            assert!(model.namespaces.iter().all(|row| row.rates.is_none()));
            assert_eq!((model.stores[0].up, model.stores[1].up), (true, false));
        }
    }
}
