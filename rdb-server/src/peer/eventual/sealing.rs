//! What a replica does for a seal: it says what it holds, and promises.
//!
//! Owns the answers to [`AskSealing`] and [`FetchOrigins`]. Who asks, and what follows from the answers, is
//! [`crate::peer::switch`]'s.
//!
//! Invariants:
//! - an answer in a sealing epoch is given after the writer has done all that came before, and behind a
//!   sync: that this replica takes no more writes is as durable as what it says it holds;
//! - while a namespace is sealed, it changes by what is asked for here alone, and never beyond the fence.
//!   Since no participant takes writes, the join of what they hold never changes either: so a promise
//!   binds without being written down, whoever leads.

use super::Shared;
use super::writer::{Job, SealWork};
use crate::error::Error;
use crate::eventual::{EventualState, layout};
use crate::transport::Lane;
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use rdb_proto::convert::{vector, vector_to_wire};
use rdb_proto::raft::{
    AskSealing, FetchOrigins, FetchOriginsReply, SealingReply, peer_request, peer_response,
};
use rdb_storage::{Durability, Family, WriteBatch};
use rdb_types::{Epoch, NamespaceId, Reason, StoreId, VersionVector};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long to wait for the log to get to the epoch that is asked about.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Bytes of entries in one answer, at most one entry more.
const FETCH_BYTES: usize = 1 << 20;
/// How long another replica may take to give entries.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers the leader of the region.
pub(super) async fn answer(shared: &Arc<Shared>, ask: AskSealing) -> Result<SealingReply, Error> {
    let (namespace, epoch) = (NamespaceId(ask.namespace_id), Epoch(ask.epoch));
    let fence = vector(&ask.fence)
        .ok_or_else(|| Error::invalid("fence", "it names a store that cannot be"))?;
    reach(shared, namespace, epoch).await?;
    let Some(served) = shared.serves(namespace) else {
        return Err(Error::new(
            Reason::NotReady,
            format!("namespace {namespace} is not served by this replica"),
        ));
    };
    if served.open {
        if ask.promise {
            return Err(stale(namespace, epoch));
        }
        return Ok(reply_of(epoch, &shared.durable_state(namespace)));
    }
    if ask.promise {
        gather(shared, namespace, epoch, &fence, &ask).await?;
        let cut_ms = ask.expiry_cut_ms;
        while !work(shared, namespace, epoch, SealWork::Bury { cut_ms }).await? {}
    } else {
        work(shared, namespace, epoch, SealWork::Look).await?;
    }
    let barrier = shared
        .core
        .committer
        .commit(WriteBatch::new(), Durability::Synced);
    barrier.await.map_err(Error::from)?;
    let state = shared.state(namespace);
    // The epoch has not ended meanwhile, so this is what was asked for.
    if shared.serves(namespace) != Some(served) {
        return Err(stale(namespace, epoch));
    }
    if ask.promise && state.vector != fence {
        return Err(Error::new(
            Reason::NotReady,
            format!(
                "this replica holds {} and the fence is {fence}",
                state.vector
            ),
        ));
    }
    Ok(reply_of(epoch, &state))
}

fn reply_of(epoch: Epoch, state: &EventualState) -> SealingReply {
    SealingReply {
        epoch: epoch.0,
        vector: vector_to_wire(&state.vector),
        expired_through_ms: state.expired_through_ms,
        partial: !state.partial.is_empty(),
        digest: state.digest.to_bytes().to_vec().into(),
        last_stamp: state.last_stamp.0,
    }
}

fn stale(namespace: NamespaceId, epoch: Epoch) -> Error {
    Error::new(
        Reason::StaleEpoch,
        format!("namespace {namespace} is beyond epoch {epoch} here"),
    )
}

/// Waits until this replica's log is at an epoch.
async fn reach(shared: &Shared, namespace: NamespaceId, epoch: Epoch) -> Result<(), Error> {
    let deadline = Instant::now() + CATCH_UP;
    let mut applied = shared.core.cell.subscribe();
    loop {
        let here = shared.core.cell.with(|summary| {
            let state = summary.namespaces.get(&namespace);
            state.map(|state| state.epoch)
        });
        match here {
            Some(here) if here == epoch => return Ok(()),
            Some(here) if here > epoch => return Err(stale(namespace, epoch)),
            _ => {}
        }
        let waited = tokio::time::timeout_at(deadline, applied.changed()).await;
        if !matches!(waited, Ok(Ok(()))) {
            return Err(Error::new(
                Reason::NotReady,
                format!("this replica has not applied epoch {epoch} of namespace {namespace} yet"),
            ));
        }
    }
}

async fn work(
    shared: &Shared,
    namespace: NamespaceId,
    epoch: Epoch,
    work: SealWork,
) -> Result<bool, Error> {
    shared
        .do_job(|reply| Job::Seal {
            namespace,
            epoch,
            work,
            reply,
        })
        .await
}

/// Fetches what is missing up to the fence.
async fn gather(
    shared: &Arc<Shared>,
    namespace: NamespaceId,
    epoch: Epoch,
    fence: &VersionVector,
    ask: &AskSealing,
) -> Result<(), Error> {
    for (origin, last) in fence.iter() {
        loop {
            let have = shared.state(namespace).vector.get(origin);
            if have >= last {
                break;
            }
            let holder = ask
                .holders
                .iter()
                .find(|holder| holder.origin == u32::from(origin.get()))
                .and_then(|holder| StoreId::new(u64::from(holder.store_id)))
                .filter(|holder| *holder != shared.core.me);
            let Some(holder) = holder else {
                return Err(Error::new(
                    Reason::NotReady,
                    format!("nobody holds the writes of store {origin} that are missing here"),
                ));
            };
            let fetch = FetchOrigins {
                namespace_id: namespace.0,
                epoch: epoch.0,
                origin: u32::from(origin.get()),
                first: have + 1,
                last,
            };
            let entries = fetch_from(shared, holder, fetch).await?;
            work(
                shared,
                namespace,
                epoch,
                SealWork::Gather {
                    origin,
                    entries,
                    fence: fence.clone(),
                },
            )
            .await?;
        }
    }
    Ok(())
}

async fn fetch_from(
    shared: &Shared,
    holder: StoreId,
    fetch: FetchOrigins,
) -> Result<Vec<Bytes>, Error> {
    let failed = |why: String| {
        Error::new(
            Reason::NotReady,
            format!("store {holder} does not give the writes that are missing here: {why}"),
        )
    };
    let request = peer_request::Body::FetchOrigins(fetch);
    let reply = shared
        .core
        .transport
        .call(holder, Lane::Origins, shared.region, request, PATIENCE);
    match reply.await {
        Ok(peer_response::Body::FetchOrigins(reply)) if !reply.entries.is_empty() => {
            Ok(reply.entries)
        }
        Ok(_) => Err(failed("it has none of them".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Entries of an origin's log, for another participant of the same seal.
pub(super) fn fetched(shared: &Shared, fetch: &FetchOrigins) -> Result<FetchOriginsReply, Error> {
    let namespace = NamespaceId(fetch.namespace_id);
    let origin = StoreId::new(u64::from(fetch.origin))
        .ok_or_else(|| Error::invalid("origin", "that is not a store"))?;
    let served = shared.serves(namespace);
    if served.is_none_or(|served| served.epoch.0 != fetch.epoch) {
        return Err(stale(namespace, Epoch(fetch.epoch)));
    }
    let last = fetch
        .last
        .min(shared.durable_state(namespace).vector.get(origin));
    let range = layout::entries(shared.region, namespace, origin, fetch.first, last);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for item in shared.core.engine.scan(Family::OriginLog, &range, false) {
        if bytes >= FETCH_BYTES {
            break;
        }
        let (_, value) = item?;
        bytes += value.len();
        entries.push(value);
    }
    Ok(FetchOriginsReply { entries })
}
