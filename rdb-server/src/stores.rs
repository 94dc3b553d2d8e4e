//! What the other stores say of themselves, asked now.

use crate::peer_manager::PeerManager;
use crate::region::meta::MetaState;
use crate::transport::{Lane, SharedTransport};
use futures::future::join_all;
use rdb_proto::raft::{StoreStatus, StoreStatusRequest, peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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
        let asked = tables
            .stores
            .keys()
            .map(|store| async move { (*store, self.status(*store).await) });
        join_all(asked).await.into_iter().collect()
    }

    async fn status(&self, store: StoreId) -> Result<StoreStatus, String> {
        if store == self.me {
            return Ok(self.manager.status());
        }
        let request = peer_request::Body::Status(StoreStatusRequest {});
        match self
            .transport
            .call(store, Lane::Control, RegionId(0), request, PATIENCE)
            .await
        {
            Ok(peer_response::Body::Status(status)) => Ok(status),
            Ok(_) => Err("it answered something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
