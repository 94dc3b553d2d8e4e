//! What a step of a change of mode does to a namespace in a region.
//!
//! Owns the rules of the log's side of switching: which step counts in which state, and what the state is
//! then. Knows nothing of who proposes steps ([`crate::peer::switch`]) or of records: what becomes of them,
//! [`super::apply`] does.
//!
//! ```text
//! strong   (e)  SetEventual                -> eventual (e+1)
//! eventual (e)  BeginSeal                  -> sealing  (e+1)
//! sealing  (e)  Seal{fence, digest, ..}    -> strong   (e+1)
//! sealing  (e)  AbortSeal{why}             -> eventual (e+1)
//! any      (e)  AbortSeal                  -> the same (e), told of the attempt
//! ```
//!
//! Invariants:
//! - a step counts only in the epoch that it names, and only if no higher attempt was told: so nothing that
//!   was delayed comes back;
//! - one epoch has one mode, on all replicas;
//! - participants of a seal are a quorum of the voters at least.

use super::state::{FENCES_KEPT, Fence, NamespaceState, Sealing, stores_from_wire};
use crate::error::{Error, Outcome};
use crate::eventual::EventualState;
use rdb_proto::convert;
use rdb_proto::raft::switch_step::Step;
use rdb_proto::raft::{self, SwitchStep};
use rdb_types::{Digest, Epoch, Mode, NamespaceId, Reason, StoreId};
use std::collections::BTreeSet;

/// Who replicates a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Who counts for a quorum.
    pub voters: BTreeSet<StoreId>,
    /// Learners, too.
    pub all: BTreeSet<StoreId>,
}

impl Members {
    /// Whether these stores are a quorum of the voters.
    pub fn is_quorum(&self, stores: &BTreeSet<StoreId>) -> bool {
        self.voters.intersection(stores).count() > self.voters.len() / 2
    }
}

/// What a step changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing but the attempt.
    Told,
    /// Every replica takes writes from here on.
    Opened,
    /// No replica takes writes from here on.
    Begun,
    /// Strong from here on.
    Sealed,
    /// The seal was given up: every replica takes writes again.
    Aborted,
}

/// Takes a step, or says why it does not count. A step that does not count changes nothing.
pub fn take(
    state: &mut NamespaceState,
    members: &Members,
    step: &SwitchStep,
) -> Result<Change, Error> {
    let namespace = NamespaceId(step.namespace_id);
    if step.attempt < state.attempt {
        return Err(stale(
            namespace,
            format!(
                "attempt {} was overtaken by attempt {}",
                step.attempt, state.attempt
            ),
        ));
    }
    if step.expected_epoch != state.epoch.0 {
        return Err(stale(
            namespace,
            format!(
                "it was meant for epoch {}, and this is epoch {}",
                step.expected_epoch, state.epoch
            ),
        ));
    }
    let change = match (&step.step, state.mode, &state.sealing) {
        (Some(Step::SetEventual(_)), Mode::Strong, _) => {
            state.mode = Mode::Eventual;
            Change::Opened
        }
        (Some(Step::BeginSeal(begin)), Mode::Eventual, None) => {
            let missing = stores_from_wire(&begin.accept_missing)
                .ok_or_else(|| stale(namespace, "it names a store that cannot be".to_owned()))?;
            let participants: BTreeSet<StoreId> =
                members.all.difference(&missing).copied().collect();
            if !members.is_quorum(&participants) {
                return Err(stale(
                    namespace,
                    "its participants are no quorum of the voters".to_owned(),
                ));
            }
            state.sealing = Some(Sealing { participants });
            Change::Begun
        }
        (Some(Step::Seal(seal)), _, Some(sealing)) => {
            if stores_from_wire(&seal.participants).as_ref() != Some(&sealing.participants) {
                return Err(stale(namespace, "its participants are others".to_owned()));
            }
            let (Some(fence), Some(digest)) = (
                convert::vector(&seal.fence),
                Digest::from_bytes(&seal.digest),
            ) else {
                return Err(stale(namespace, "it has no fence or digest".to_owned()));
            };
            state.mode = Mode::Strong;
            state.sealing = None;
            state.digest = digest;
            state.buried_through_ms = state.buried_through_ms.max(seal.expiry_cut_ms);
            state.last_abort.clear();
            state.fences.push(Fence {
                epoch: Epoch(state.epoch.0 + 1),
                vector: fence,
            });
            if state.fences.len() > FENCES_KEPT {
                state.fences.remove(0);
            }
            Change::Sealed
        }
        (Some(Step::AbortSeal(abort)), _, Some(_)) => {
            state.sealing = None;
            state.last_abort.clone_from(&abort.why);
            Change::Aborted
        }
        (Some(Step::AbortSeal(_)), _, None) => Change::Told,
        (Some(_), mode, _) => {
            return Err(stale(
                namespace,
                format!(
                    "it does not fit a namespace that is {mode} in epoch {}",
                    state.epoch
                ),
            ));
        }
        (None, _, _) => {
            return Err(stale(
                namespace,
                "this build does not know that step: upgrade this store".to_owned(),
            ));
        }
    };
    state.attempt = step.attempt;
    if change != Change::Told {
        state.epoch = Epoch(state.epoch.0 + 1);
    }
    Ok(change)
}

/// Whether a replica may become strong with what it holds, when a seal takes effect that counts.
///
/// # Errors
/// Why not, in words: it needs a fresh copy.
pub fn may_go_on(
    state: &NamespaceState,
    me: StoreId,
    seal: &raft::Seal,
    own: &EventualState,
) -> Result<(), String> {
    let takes_part = state
        .sealing
        .as_ref()
        .is_some_and(|sealing| sealing.participants.contains(&me));
    if !takes_part {
        return Err("the namespace became strong without this store".to_owned());
    }
    let fence = convert::vector(&seal.fence).unwrap_or_default();
    if own.vector != fence {
        return Err(format!(
            "this replica holds {} and the fence is {fence}",
            own.vector
        ));
    }
    if !own.partial.is_empty() {
        return Err("a copy that was being taken here is not complete".to_owned());
    }
    if own.digest.to_bytes()[..] != seal.digest[..] {
        return Err("this replica has seen the same writes and holds other data".to_owned());
    }
    Ok(())
}

/// Whether two replicas hold parts of one eventual time of a namespace, so that what one holds may be merged
/// into the other.
pub fn same_time(one: &NamespaceState, other: &NamespaceState) -> bool {
    one.mode == Mode::Eventual
        && other.mode == Mode::Eventual
        && one.last_seal() == other.last_seal()
}

/// The fence that ended the eventual time which a replica is still in, as a later state of the namespace
/// tells; `None`: the later state is of the same time, or strong before it.
pub fn fence_after<'s>(earlier: &NamespaceState, later: &'s NamespaceState) -> Option<&'s Fence> {
    let last = earlier.last_seal();
    later.fences.iter().find(|fence| fence.epoch > last)
}

fn stale(namespace: NamespaceId, why: String) -> Error {
    Error::new(
        Reason::StaleEpoch,
        format!("the step of a change of mode does not count: {why}"),
    )
    .with("namespace", namespace)
    .outcome(Outcome::NotApplied)
}

#[cfg(test)]
#[path = "switching_tests.rs"]
mod tests;
