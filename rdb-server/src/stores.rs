//! What the other stores say of themselves, asked now.

use crate::peer_manager::PeerManager;
use crate::region::meta::MetaState;
use crate::transport::{Lane, PeerHandler, SharedTransport};
use futures::future::join_all;
use rdb_proto::raft::{StoreStatus, StoreStatusRequest, peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a store may take to say how it is; longer counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks all stores for their status.
#[derive(Clone)]
pub struct Stores {
    me: StoreId,
    manager: Arc<PeerManager>,
    transport: SharedTransport,
}

impl Stores {
    /// For this store.
    pub fn new(me: StoreId, manager: Arc<PeerManager>, transport: SharedTransport) -> Stores {
        Stores {
            me,
            manager,
            transport,
        }
    }

    /// The status of every store of the table, or why it could not be had.
    pub async fn statuses(
        &self,
        tables: &MetaState,
    ) -> BTreeMap<StoreId, Result<StoreStatus, String>> {
        let timed = self.timed_statuses(tables).await.into_iter();
        timed.map(|(store, (status, _))| (store, status)).collect()
    }

    /// As [`Stores::statuses`], with how long each took to say so.
    pub async fn timed_statuses(
        &self,
        tables: &MetaState,
    ) -> BTreeMap<StoreId, (Result<StoreStatus, String>, Duration)> {
        let asked = tables.stores.keys().map(|store| async move {
            let asked = Instant::now();
            let status = self.status(*store).await;
            (*store, (status, asked.elapsed()))
        });
        join_all(asked).await.into_iter().collect()
    }

    async fn status(&self, store: StoreId) -> Result<StoreStatus, String> {
        let request = peer_request::Body::Status(StoreStatusRequest {});
        match self
            .ask(store, Lane::Control, RegionId(0), request, PATIENCE)
            .await?
        {
            peer_response::Body::Status(status) => Ok(status),
            _ => Err("it answered something else".to_owned()),
        }
    }

    /// Asks one store, which may be this one; in words, why there is no answer.
    ///
    /// # Errors
    /// It cannot be reached, does not answer in time, or refuses.
    pub async fn ask(
        &self,
        store: StoreId,
        lane: Lane,
        region: RegionId,
        request: peer_request::Body,
        patience: Duration,
    ) -> Result<peer_response::Body, String> {
        if store == self.me {
            let answer = self.manager.handle(store, region, request, patience);
            return answer.await.map_err(|error| error.to_string());
        }
        let answer = self.transport.call(store, lane, region, request, patience);
        answer.await.map_err(|error| error.to_string())
    }

    /// When a store was last heard of; this one is heard of all the time.
    pub fn contact_age(&self, store: StoreId) -> Option<Duration> {
        if store == self.me {
            return Some(Duration::ZERO);
        }
        self.manager.context().contacts.age(store)
    }
}
