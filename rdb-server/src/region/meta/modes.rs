//! What namespaces shall become: targets, attempts, and the votes of stores' configurations.
//!
//! Owns the rules by which the meta region's rows of namespaces change when a switch is asked for, ends,
//! is given up or cancelled, and when a store declares another mode than before. Knows nothing of
//! regions: what they have followed is looked at by [`crate::modes`], which proposes the end.
//!
//! ```text
//!                     SetTarget, or the last vote
//!   mode == target ────────────────────────────────► target = the other mode, attempt + 1
//!   settled == attempt                                 │                     │
//!        ▲   ▲          SettleTarget                   │                     │ SettleTarget{why}, or cancel
//!        │   └──────── mode = target, settled ◄────────┘                     ▼
//!        └────────────────────────────────── settled ◄──── target = mode, attempt + 1: being undone
//! ```
//!
//! Invariants: `settled_attempt <= attempt`, and a switch is under way just where they differ; an attempt's
//! number stands for one target and one set of missing stores, and is never used again; `mode` changes
//! only with `settled_attempt`; there are votes only for a mode that is not in force, and none while a
//! switch is under way.

use super::{MetaState, Rows, not_found};
use crate::error::{Error, Outcome};
use rdb_proto::convert;
use rdb_proto::raft::{self, NamespaceRow, SwitchEnd};
use rdb_types::{Mode, NamespaceId, Reason, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// Why a switch that was cancelled is not done.
pub const CANCELLED: &str = "it was cancelled";

/// Whether regions are still to follow what was asked for, or to go back.
pub fn under_way(row: &NamespaceRow) -> bool {
    row.attempt > row.settled_attempt
}

/// Whether a switch that was given up or cancelled is being undone.
pub fn being_undone(row: &NamespaceRow) -> bool {
    under_way(row) && row.target == row.mode
}

impl MetaState {
    /// Asks for a mode. Nothing changes where the namespace has it, or is on its way to it with no fewer
    /// stores missing.
    pub fn set_target(&mut self, command: &raft::SetTarget) -> Result<(NamespaceRow, Rows), Error> {
        let row = self.namespace(&command.name).cloned();
        let row = row.ok_or_else(|| not_found(&command.name))?;
        if command.cancel {
            return Ok(self.cancel(row));
        }
        let Some(wanted) = convert::mode(command.mode) else {
            let text = format!("{} is not a mode: 1 is strong, 2 eventual", command.mode);
            return Err(Error::invalid("mode", text).outcome(Outcome::NotApplied));
        };
        let mut missing: BTreeSet<u32> = command.accept_missing.iter().copied().collect();
        self.may_be_missing(wanted, &missing)?;
        let wanted = convert::mode_to_wire(wanted);
        if !under_way(&row) {
            if wanted == row.mode {
                return Ok((row, Rows::new()));
            }
            return Ok(self.begin(row, wanted, missing));
        }
        if wanted != row.target {
            return Err(in_progress(&row));
        }
        let known: BTreeSet<u32> = row.accept_missing.iter().copied().collect();
        if missing.is_subset(&known) {
            return Ok((row, Rows::new()));
        }
        missing.extend(known);
        self.may_be_missing(convert::mode(wanted).unwrap_or_default(), &missing)?;
        // What was done under the old number was done with all stores; the new one goes on from there.
        Ok(self.begin(row, wanted, missing))
    }

    /// Whether a namespace may switch to `wanted` without these stores.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: in words, why not.
    pub fn may_be_missing(&self, wanted: Mode, missing: &BTreeSet<u32>) -> Result<(), Error> {
        let refused = |text: String| {
            let error = Error::invalid("accept_missing", text);
            Err(error.outcome(Outcome::NotApplied))
        };
        if missing.is_empty() {
            return Ok(());
        }
        if wanted == Mode::Eventual {
            return refused(
                "a switch to eventual waits for no store: leave accept_missing out".to_owned(),
            );
        }
        let is_member =
            |id: u32| StoreId::new(u64::from(id)).is_some_and(|id| self.stores.contains_key(&id));
        if let Some(stranger) = missing.iter().find(|id| !is_member(**id)) {
            return refused(format!("store {stranger} is not a member of this cluster"));
        }
        let (members, left) = (self.stores.len(), self.stores.len() - missing.len());
        if left <= members / 2 {
            return refused(format!(
                "without these only {left} of {members} stores are left: a switch needs a majority of them"
            ));
        }
        Ok(())
    }

    fn cancel(&mut self, row: NamespaceRow) -> (NamespaceRow, Rows) {
        if !under_way(&row) || being_undone(&row) {
            return (row, Rows::new());
        }
        self.turn_back(row, CANCELLED, Vec::new())
    }

    fn begin(
        &mut self,
        row: NamespaceRow,
        target: i32,
        missing: BTreeSet<u32>,
    ) -> (NamespaceRow, Rows) {
        self.replace(NamespaceRow {
            target,
            attempt: row.attempt + 1,
            accept_missing: missing.into_iter().collect(),
            votes: Vec::new(),
            ..row
        })
    }

    fn turn_back(
        &mut self,
        row: NamespaceRow,
        why: &str,
        waiting_for: Vec<u32>,
    ) -> (NamespaceRow, Rows) {
        let end = SwitchEnd {
            attempt: row.attempt,
            from: row.mode,
            to: row.target,
            done: false,
            why: why.to_owned(),
            waiting_for,
        };
        let mode = row.mode;
        let row = NamespaceRow {
            last_switch: Some(end),
            ..row
        };
        self.begin(row, mode, BTreeSet::new())
    }

    fn replace(&mut self, row: NamespaceRow) -> (NamespaceRow, Rows) {
        let mut rows = Rows::new();
        self.put_namespace(&mut rows, row.clone());
        (row, rows)
    }

    /// Ends an attempt, unless it has ended: all regions have followed it, or it is given up.
    pub fn settle_target(
        &mut self,
        command: &raft::SettleTarget,
    ) -> Result<(NamespaceRow, Rows), Error> {
        let id = NamespaceId(command.namespace_id);
        let row = self.namespaces.get(&id).filter(|row| !row.deleted).cloned();
        let row = row.ok_or_else(|| not_found(&format!("of id {}", command.namespace_id)))?;
        if command.attempt != row.attempt || !under_way(&row) {
            return Ok((row, Rows::new()));
        }
        if !command.why.is_empty() {
            if being_undone(&row) {
                // There is nothing else to go back to.
                return Ok((row, Rows::new()));
            }
            return Ok(self.turn_back(row, &command.why, command.waiting_for.clone()));
        }
        let done = SwitchEnd {
            attempt: row.attempt,
            from: row.mode,
            to: row.target,
            done: true,
            ..SwitchEnd::default()
        };
        Ok(self.replace(NamespaceRow {
            last_switch: if row.mode == row.target {
                row.last_switch
            } else {
                Some(done)
            },
            mode: row.target,
            settled_attempt: row.attempt,
            accept_missing: Vec::new(),
            votes: Vec::new(),
            ..row
        }))
    }

    /// Takes up what a store declares now, where that is not what it declared before: its vote, or the
    /// end of one. The last vote starts the switch.
    pub(super) fn count_votes(
        &mut self,
        rows: &mut Rows,
        store: StoreId,
        before: &[raft::DeclaredNamespace],
        now: &[raft::DeclaredNamespace],
    ) {
        let (before, now) = (by_name(before), by_name(now));
        let names: BTreeSet<&str> = before.keys().chain(now.keys()).copied().collect();
        for name in names {
            let (was, is) = (before.get(name), now.get(name));
            if was == is {
                continue;
            }
            let Some(row) = self.namespace(name).filter(|row| !under_way(row)).cloned() else {
                continue;
            };
            let row = with_vote(&row, store, is.copied());
            match self.agreed(&row) {
                Some(target) => {
                    let (_, written) = self.begin(row, target, BTreeSet::new());
                    rows.extend(written);
                }
                None if self.namespace(name) != Some(&row) => {
                    let (_, written) = self.replace(row);
                    rows.extend(written);
                }
                None => {}
            }
        }
    }

    /// The mode that every member has voted for.
    fn agreed(&self, row: &NamespaceRow) -> Option<i32> {
        let target = row.votes.first()?.mode;
        let has_voted = |store: &StoreId| {
            let mut votes = row.votes.iter();
            votes.any(|vote| vote.store_id == u32::from(store.get()) && vote.mode == target)
        };
        self.stores.keys().all(has_voted).then_some(target)
    }
}

/// The row with this vote in place of the store's earlier one. None at all, and one for the mode in force,
/// takes the earlier one back.
fn with_vote(row: &NamespaceRow, store: StoreId, mode: Option<i32>) -> NamespaceRow {
    let mut row = row.clone();
    let store_id = u32::from(store.get());
    row.votes.retain(|vote| vote.store_id != store_id);
    if let Some(mode) = mode.filter(|mode| *mode != row.mode && convert::mode(*mode).is_some()) {
        row.votes.push(raft::ModeVote { store_id, mode });
        row.votes.sort_by_key(|vote| vote.store_id);
    }
    row
}

fn by_name(declared: &[raft::DeclaredNamespace]) -> BTreeMap<&str, i32> {
    let declared = declared.iter();
    declared.map(|of| (of.name.as_str(), of.mode)).collect()
}

fn text_of(mode: i32) -> &'static str {
    convert::mode(mode).map_or("unknown", Mode::as_str)
}

/// Another switch is under way.
fn in_progress(row: &NamespaceRow) -> Error {
    let (name, mode, target) = (&row.name, text_of(row.mode), text_of(row.target));
    let (to, text) = if being_undone(row) {
        let end = row.last_switch.clone().unwrap_or_default();
        let to = text_of(end.to);
        let text = format!(
            "the switch of {name} to {to} ended ({}) and is being undone: wait until all of it is {mode} again, which `flaredb ns modes` shows, and ask again",
            end.why
        );
        (to, text)
    } else {
        let text = format!(
            "{name} is being switched from {mode} to {target}: wait until that is done, or cancel it with `flaredb ns set-mode {name} --cancel`"
        );
        (target, text)
    };
    Error::new(Reason::SwitchInProgress, text)
        .with("namespace", name)
        .with("from", mode)
        .with("to", to)
        .outcome(Outcome::NotApplied)
}

#[cfg(test)]
#[path = "modes_tests.rs"]
mod tests;
