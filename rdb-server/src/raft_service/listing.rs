//! Which mode a namespace has, and which stores declare or apply another: a row of the listing.
//!
//! Pure. Owns the words for what disagrees; knows nothing of how the reports were fetched. What counts as a
//! mismatch is [`crate::modes::mismatch`]'s.
//!
//! Invariant: what a store declares is known of one that cannot be reached, too: the cluster's tables have
//! its last word. What it applies is known as far as a store that looks after it has heard it.

use super::replication::Statuses;
use crate::modes::mismatch::Has;
use crate::modes::{data_regions, regions, state, text_of};
use crate::region::meta::MetaState;
use crate::region::meta::modes::under_way;
use crate::store::declared_mode;
use rdb_proto::raft::{NamespaceMode, NamespaceRow, StoreMode};
use rdb_types::{NamespaceId, StoreId};

/// The row of a namespace.
pub(super) fn of(
    row: &NamespaceRow,
    tables: &MetaState,
    statuses: &Statuses,
    now_unix_ms: u64,
) -> NamespaceMode {
    let expected = data_regions(tables.cluster.as_ref());
    let answered = || statuses.values().flatten();
    let reports = answered().flat_map(|status| &status.regions);
    let views = regions(NamespaceId(row.id), &expected, reports);
    // A store knows of itself, and the one that leads the meta region of all.
    let known = |store: u32| {
        let known = answered().flat_map(|status| &status.mismatches);
        let of_it = known.filter(|known| known.namespace_id == row.id && known.store_id == store);
        of_it.min_by_key(|known| known.since_ms)
    };
    let now_ms = i64::try_from(now_unix_ms).unwrap_or(i64::MAX);
    let (mut stores, mut disagree, mut declared_otherwise) = (Vec::new(), Vec::new(), false);
    for (store, status) in statuses {
        let id = u32::from(store.get());
        let last_word = tables.stores.get(store).map(|row| &row.declared[..]);
        let known = known(id);
        let since = known.map(|known| known.since_ms);
        let (has, applies) = match status {
            Ok(status) => {
                let declared = declared_mode(&status.declared, &row.name);
                let has = Has::of(row, declared, &status.regions, &views);
                let applies = has.applies_another(row).then(|| has.applies());
                (has, applies)
            }
            Err(_) => {
                let has = Has {
                    declared: declared_mode(last_word.unwrap_or_default(), &row.name),
                    applied: known.map_or(0, |known| known.applied),
                    epoch: known.map_or(0, |known| known.epoch),
                    ..Has::default()
                };
                let applies = known.filter(|known| !known.applies.is_empty());
                let applies = applies.map(|known| {
                    format!("does not answer, and by its last answer {}", known.applies)
                });
                (has, applies)
            }
        };
        let mut mismatched_since_ms = 0;
        if has.declares_another(row) {
            declared_otherwise = true;
            // Where nothing is known of a beginning, nobody has looked since.
            mismatched_since_ms = since.unwrap_or(now_ms);
            let text = format!("store {store} declares {}", text_of(has.declared));
            disagree.push(aged(text, mismatched_since_ms, now_ms));
        }
        // A lag is one only after some time, which whoever looks after that store has seen pass.
        if let (Some(since), Some(applies)) = (since, applies) {
            disagree.push(aged(format!("store {store} {applies}"), since, now_ms));
            mismatched_since_ms = since;
        }
        stores.push(StoreMode {
            store_id: id,
            declared: has.declared,
            applied: has.applied,
            epoch: has.epoch,
            reachable: status.is_ok(),
            mismatched_since_ms,
        });
    }
    NamespaceMode {
        namespace: row.name.clone(),
        mode: row.mode,
        target: row.target,
        epoch: views.values().map(|view| view.epoch).max().unwrap_or(0),
        state: state(under_way(row), &views) as i32,
        from_default: row.from_default,
        mismatched: !disagree.is_empty(),
        mismatch: words(row, tables.stores.keys(), &disagree, declared_otherwise),
        stores,
    }
}

/// Says for how long, where that is worth saying.
fn aged(text: String, since_ms: i64, now_ms: i64) -> String {
    match now_ms.saturating_sub(since_ms) / 1000 {
        ..1 => text,
        seconds => format!("{text} (for {seconds} s)"),
    }
}

fn words<'s>(
    row: &NamespaceRow,
    members: impl Iterator<Item = &'s StoreId>,
    disagree: &[String],
    declared_otherwise: bool,
) -> String {
    if disagree.is_empty() {
        return String::new();
    }
    let mut text = disagree.join(", ");
    let name = &row.name;
    text.push_str(&format!("; the cluster serves {}", text_of(row.mode)));
    if row.target != row.mode {
        text.push_str(&format!(" and is switching to {}", text_of(row.target)));
    }
    let end = row.last_switch.as_ref();
    let given_up = end.filter(|end| !end.done && row.votes.is_empty());
    match given_up {
        _ if !declared_otherwise => {}
        // All votes were given, and none is any more: equal files start nothing.
        Some(end) => {
            let (asked, why) = (text_of(end.to), &end.why);
            text.push_str(&format!(
                "; the last switch, to {asked}, was given up ({why}), and its votes with it: `flaredb ns set-mode {name} {asked}` asks for it again"
            ));
        }
        None => text.push_str(", which counts until the files agree"),
    }
    if let Some(vote) = row.votes.first() {
        let (asked, votes, members) = (text_of(vote.mode), row.votes.len(), members.count());
        text.push_str(&format!(
            "; {votes} of {members} stores vote for {asked} by a changed declaration: the last vote, or `flaredb ns set-mode {name} {asked}`, starts the switch"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::raft::{
        ClusterPlan, DeclaredNamespace, Member, ModeMismatch, NamespaceReport, RegionDescriptor,
        RegionReport, RegisterStore, SettleTarget, State, StoreStatus,
    };

    const STRONG: i32 = 1;
    const EVENTUAL: i32 = 2;

    fn declares(mode: i32) -> Vec<DeclaredNamespace> {
        vec![DeclaredNamespace {
            name: "logs".into(),
            mode,
            policies: None,
        }]
    }

    fn tables() -> MetaState {
        let mut tables = MetaState::default();
        let region = |id| RegionDescriptor {
            id,
            ..Default::default()
        };
        tables.init_cluster(&ClusterPlan {
            members: (1..=3).map(member).collect(),
            regions: vec![region(1), region(2)],
            namespaces: declares(STRONG),
            default_mode: STRONG,
            ..Default::default()
        });
        for store in 1..=3 {
            register(&mut tables, store, STRONG);
        }
        tables
    }

    fn member(store_id: u32) -> Member {
        Member {
            store_id,
            ..Default::default()
        }
    }

    fn register(tables: &mut MetaState, store: u32, mode: i32) {
        let command = RegisterStore {
            member: Some(member(store)),
            declared: declares(mode),
            ..Default::default()
        };
        tables.register_store(&command).unwrap();
    }

    fn says(declared: i32, epoch: u64, since_ms: Option<i64>) -> Result<StoreStatus, String> {
        let mismatch = |since_ms| ModeMismatch {
            namespace_id: 2,
            store_id: 3,
            since_ms,
            applied: STRONG,
            epoch: 3,
            applies: "applies strong (epoch 3 of region 2, where the cluster is at 5)".into(),
        };
        Ok(StoreStatus {
            declared: declares(declared),
            regions: vec![RegionReport {
                region_id: 2,
                namespaces: vec![NamespaceReport {
                    namespace_id: 2,
                    mode: STRONG,
                    epoch,
                    ..Default::default()
                }],
                ..Default::default()
            }],
            mismatches: since_ms.map(mismatch).into_iter().collect(),
            ..Default::default()
        })
    }

    fn listed(tables: &MetaState, said: [Result<StoreStatus, String>; 3]) -> NamespaceMode {
        let stores = (1..).filter_map(StoreId::new);
        let row = tables.namespace("logs").unwrap();
        of(row, tables, &stores.zip(said).collect(), 9000)
    }

    fn agrees() -> Result<StoreStatus, String> {
        says(STRONG, 5, None)
    }

    #[test]
    fn stores_that_agree_are_no_mismatch() {
        let mode = listed(&tables(), [agrees(), agrees(), agrees()]);
        assert!(!mode.mismatched && mode.mismatch.is_empty());
        assert_eq!((mode.epoch, mode.state), (5, State::Stable as i32));
        assert!(
            mode.stores
                .iter()
                .all(|store| store.mismatched_since_ms == 0)
        );
    }

    #[test]
    fn votes_are_named_with_what_starts_the_switch() {
        let mut tables = tables();
        register(&mut tables, 1, EVENTUAL);
        register(&mut tables, 3, EVENTUAL);
        let eventual = || says(EVENTUAL, 5, None);
        let mode = listed(&tables, [eventual(), agrees(), Err("gone".into())]);
        assert!(mode.mismatched);
        assert_eq!(
            mode.mismatch,
            "store 1 declares eventual, store 3 declares eventual; the cluster serves strong, which counts until \
             the files agree; 2 of 3 stores vote for eventual by a changed declaration: the last vote, or \
             `flaredb ns set-mode logs eventual`, starts the switch"
        );
        let since: Vec<i64> = mode
            .stores
            .iter()
            .map(|store| store.mismatched_since_ms)
            .collect();
        assert_eq!(since, [9000, 0, 9000]);
        assert!(!mode.stores[2].reachable);
        assert_eq!(mode.stores[2].declared, EVENTUAL);
    }

    /// Files that agree start nothing where their switch was given up.
    #[test]
    fn after_a_switch_that_was_given_up_it_is_said_what_starts_it_again() {
        let mut tables = tables();
        for store in 1..=3 {
            register(&mut tables, store, EVENTUAL);
        }
        let attempt = tables.namespace("logs").unwrap().attempt;
        assert_eq!(attempt, 1, "the votes have begun it");
        for (attempt, why) in [(attempt, "store 1 did not answer"), (attempt + 1, "")] {
            let command = SettleTarget {
                namespace_id: 2,
                attempt,
                why: why.into(),
                waiting_for: vec![1],
            };
            tables.settle_target(&command).unwrap();
        }
        let says = || says(EVENTUAL, 5, None);
        let mode = listed(&tables, [says(), says(), says()]);
        assert_eq!(
            mode.mismatch,
            "store 1 declares eventual, store 2 declares eventual, store 3 declares eventual; the cluster serves \
             strong; the last switch, to eventual, was given up (store 1 did not answer), and its votes with it: \
             `flaredb ns set-mode logs eventual` asks for it again"
        );
    }

    #[test]
    fn a_store_that_lags_is_named_once_it_was_seen_for_long_enough() {
        let tables = tables();
        let behind = || says(STRONG, 3, None);
        let mode = listed(&tables, [agrees(), agrees(), behind()]);
        assert!(!mode.mismatched, "{}", mode.mismatch);
        // The store that leads the meta region has seen it since then.
        let mode = listed(&tables, [agrees(), says(STRONG, 5, Some(700)), behind()]);
        assert_eq!(
            mode.mismatch,
            "store 3 applies strong (epoch 3 of region 2, where the cluster is at 5) (for 8 s); the cluster serves strong"
        );
        assert_eq!(mode.stores[2].mismatched_since_ms, 700);
        // It does not answer any more: what it said last counts.
        let mode = listed(
            &tables,
            [agrees(), says(STRONG, 5, Some(700)), Err("gone".into())],
        );
        assert_eq!(
            mode.mismatch,
            "store 3 does not answer, and by its last answer applies strong (epoch 3 of region 2, where the cluster is at \
             5) (for 8 s); the cluster serves strong"
        );
        let of_it = &mode.stores[2];
        assert_eq!(
            (of_it.applied, of_it.epoch, of_it.mismatched_since_ms),
            (STRONG, 3, 700)
        );
        assert!(!of_it.reachable);
        // It has caught up since, and that store has not looked yet.
        let mode = listed(&tables, [agrees(), says(STRONG, 5, Some(700)), agrees()]);
        assert!(!mode.mismatched);
    }
}
