//! A region as it serves a namespace: in which mode and epoch, what may be done there, and what is seen now.
//!
//! Owns the refusals of requests that do not fit the mode or the epoch. Knows nothing of requests as a whole, nor of how
//! reads wait and writes are done.
//!
//! Invariant: what a place says is as of when it was taken; the region's log judges each write anew.

use crate::error::{Error, Outcome};
use crate::peer::Peer;
use crate::session::SessionToken;
use openraft::async_runtime::WatchReceiver;
use rdb_proto::convert;
use rdb_proto::raft::{NamespaceRow, WriteOp, write_op};
use rdb_types::{Epoch, Mode, NamespaceId, Reason, Stamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a request waits at most for a change of mode that its client has seen elsewhere. A follower hears
/// what is committed with the next heartbeat; one that takes longer is told from those that do not.
const REACH: Duration = Duration::from_millis(150);

/// A region as it serves a namespace.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) peer: Arc<Peer>,
    pub(super) mode: Mode,
    pub(super) epoch: u64,
    /// It takes no writes, and will be strong in moments.
    pub(super) sealing: bool,
}

/// How a region serves a namespace: as its own log says, or as the tables say where that has not heard
/// of it yet.
pub(super) fn place_in(
    peer: Arc<Peer>,
    row: &NamespaceRow,
    seen_epoch: u64,
) -> Result<Place, Error> {
    let namespace = NamespaceId(row.id);
    let said = peer.cell().with(|summary| match &summary.fresh_copy {
        Some(why) => Err(waits_for_copy(&peer, why)),
        None if summary.dropped.contains_key(&namespace) => Err(deleted(&row.name)),
        None => Ok(summary.namespaces.get(&namespace).map(|state| {
            let sealing = state.sealing.is_some();
            (state.mode, state.epoch, sealing)
        })),
    });
    let (mode, epoch, sealing) = said?.unwrap_or((
        convert::mode(row.mode).unwrap_or_default(),
        // A region that was not told of the namespace yet is told by the first write.
        Epoch(row.first_epoch).max(Epoch::FIRST),
        false,
    ));
    if seen_epoch > epoch.0 {
        return Err(Error::new(
            Reason::StaleReplica,
            format!("you have seen epoch {seen_epoch}, this store has {epoch}; ask another one"),
        )
        .with("region", peer.id())
        .with("epoch", epoch)
        .outcome(Outcome::NotApplied));
    }
    Ok(Place {
        peer,
        mode,
        epoch: epoch.0,
        sealing,
    })
}

fn waits_for_copy(peer: &Peer, why: &str) -> Error {
    Error::new(
        Reason::StaleReplica,
        format!(
            "region {} waits for a fresh copy here ({why}); ask another store",
            peer.id()
        ),
    )
    .with("region", peer.id())
    .outcome(Outcome::NotApplied)
}

/// The region has let go of the namespace, whatever this store's copy of the tables says.
pub(super) fn deleted(name: &str) -> Error {
    Error::new(
        Reason::NamespaceNotFound,
        format!("namespace {name:?} was deleted; create it again with `flaredb ns create {name}` to use its name"),
    )
    .with("namespace", name)
    .outcome(Outcome::NotApplied)
}

pub(super) fn not_installed(peer: &Peer, row: &NamespaceRow) -> Error {
    Error::new(
        Reason::NotReady,
        format!(
            "region {} has not heard of namespace {:?} here yet; try again",
            peer.id(),
            row.name
        ),
    )
    .with("region", peer.id())
}

/// Whether an operation can be done in the mode and the epoch that a namespace is in.
pub(super) fn fits(place: &Place, row: &NamespaceRow, op: &WriteOp) -> Result<(), Error> {
    if op.epoch != 0 && op.epoch != place.epoch {
        return Err(Error::new(
            Reason::ModeChanged,
            format!(
                "namespace {:?} is in epoch {} here, and this write is for epoch {} only",
                row.name, place.epoch, op.epoch
            ),
        )
        .with("namespace", &row.name)
        .with("region", place.peer.id())
        .with("epoch", place.epoch)
        .with(
            "state",
            if place.sealing {
                "sealing"
            } else {
                place.mode.as_str()
            },
        )
        .outcome(Outcome::NotApplied));
    }
    let compares = matches!(
        write_op::Kind::try_from(op.kind),
        Ok(write_op::Kind::CasPut | write_op::Kind::CasDelete)
    );
    if place.mode == Mode::Eventual && compares {
        return Err(not_strong(
            place,
            row,
            "compare-and-swap",
            "use a strong namespace, or switch this one",
        )
        .outcome(Outcome::NotApplied));
    }
    Ok(())
}

/// The refusal of what only a strong namespace does: one that is being sealed will be, in moments.
pub(super) fn not_strong(place: &Place, row: &NamespaceRow, what: &str, hint: &str) -> Error {
    if place.sealing {
        return Error::new(
            Reason::ModeSwitching,
            format!(
                "{what} needs a strong namespace, and {:?} is being switched to strong, which takes moments: repeat it",
                row.name
            ),
        )
        .with("namespace", &row.name)
        .with("region", place.peer.id())
        .with("epoch", place.epoch)
        .with("state", "sealing");
    }
    Error::new(
        Reason::WrongMode,
        format!(
            "{what} needs a strong namespace, and {:?} is eventual: {hint}",
            row.name
        ),
    )
    .with("namespace", &row.name)
    .with("mode", Mode::Eventual)
    .with("hint", hint)
}

/// Waits a moment until a region's log gets to an epoch of a namespace.
pub(super) async fn reach(peer: &Peer, namespace: NamespaceId, epoch: u64, deadline: Instant) {
    let reached = || {
        peer.cell().with(|summary| {
            let state = summary.namespaces.get(&namespace);
            state.map_or(Epoch::FIRST, |state| state.epoch).0 >= epoch
        })
    };
    if reached() {
        return;
    }
    let mut applied = peer.cell().subscribe();
    let waited = async { while !reached() && applied.changed().await.is_ok() {} };
    // Whoever asks looks himself how far it got.
    let _ = timeout_at(deadline.min(Instant::now() + REACH), waited).await;
}

/// How a region's records look at this moment.
pub(super) struct Look {
    /// By which expiry is judged.
    pub(super) now: Stamp,
    /// What whoever sees them has seen.
    pub(super) token: SessionToken,
    /// The last seal, while the namespace is eventual.
    pub(super) since: Option<Epoch>,
}

/// Taken after a record was read or written, and with what the session had seen before. The namespace may
/// have been switched since `place` was: the token is then of what is known now, which is no less.
pub(super) fn look(place: &Place, namespace: NamespaceId, asked: Option<&SessionToken>) -> Look {
    let peer = &place.peer;
    let (last_stamp, revision, said) = peer.cell().with(|summary| {
        let state = summary.namespaces.get(&namespace);
        let said = state.map(|state| (state.mode, state.epoch));
        (summary.last_stamp, summary.revision, said)
    });
    let (mode, epoch) = said.unwrap_or((place.mode, Epoch::FIRST));
    let epoch = epoch.max(Epoch(place.epoch));
    let token = |epoch| SessionToken::new(peer.id(), namespace, epoch);
    if mode == Mode::Strong {
        return Look {
            now: last_stamp,
            token: token(epoch).at_revision(revision),
            since: None,
        };
    }
    let eventual = peer.eventual();
    let state = eventual.state(namespace);
    let since = state.last_seal;
    let mut token = token(epoch.max(since)).with_writes(since, &state.vector);
    let asked = asked.filter(|asked| (asked.region(), asked.namespace()) == (peer.id(), namespace));
    if let Some(seen) = asked.and_then(|asked| asked.writes(since)) {
        token = token.with_writes(since, seen);
    }
    let now = eventual.read_stamp();
    Look {
        now: now.at_unix_ms_or_later(state.expired_through_ms),
        token,
        since: Some(since),
    }
}
