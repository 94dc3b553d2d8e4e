//! Writes that lost: listing and restoring them.
//!
//! Owns nothing but the requests and the reading of the listing.

use crate::batch::MAX_ANSWER_BYTES;
use crate::call::Call;
use crate::client::{Client, with_deadline};
use crate::error::ClientError;
use bytes::Bytes;
use rdb_proto::raft::{self, raft_service_client::RaftServiceClient};
use tonic::{Response, Streaming};

/// Header of a listing: the stores whose logs are not in it.
const MISSING_STORES: &str = "flaredb-missing-stores";
const LISTING: &str = "listing conflicts";

/// The conflicts of a namespace, the oldest of each region first.
#[derive(Debug)]
pub struct Conflicts {
    missing_stores: Vec<u32>,
    rows: Streaming<raft::Conflict>,
}

impl Conflicts {
    /// Stores that do not answer: what only they list is not in here.
    pub fn missing_stores(&self) -> &[u32] {
        &self.missing_stores
    }

    /// The next one; `None`: that was all.
    ///
    /// # Errors
    /// The listing broke off; it is to be begun anew.
    pub async fn next(&mut self) -> Result<Option<raft::Conflict>, ClientError> {
        let next = self.rows.message().await;
        next.map_err(|status| ClientError::of_stream(LISTING, &status))
    }
}

impl Client {
    /// The writes of a namespace that lost to concurrent ones, of keys that begin with `prefix`; at most
    /// `limit`, or all where that is 0. The call's time bounds the whole listing.
    pub async fn list_conflicts(
        &self,
        namespace: &str,
        prefix: impl Into<Bytes>,
        limit: u32,
    ) -> Result<Conflicts, ClientError> {
        let request = raft::ListConflictsRequest {
            namespace: namespace.to_owned(),
            prefix: prefix.into(),
            limit,
        };
        let call = Call::read(LISTING, namespace, None);
        self.run(call, |node, deadline, _| {
            let request = request.clone();
            async move {
                node.unary(deadline, async |channel| {
                    let response = RaftServiceClient::new(channel)
                        .max_decoding_message_size(MAX_ANSWER_BYTES)
                        .list_conflicts(with_deadline(request, deadline))
                        .await?;
                    let missing = response.metadata().get(MISSING_STORES);
                    let missing = missing.and_then(|stores| stores.to_str().ok());
                    let missing_stores = missing.unwrap_or_default().split(',');
                    Ok(Response::new(Conflicts {
                        missing_stores: missing_stores.filter_map(|id| id.parse().ok()).collect(),
                        rows: response.into_inner(),
                    }))
                })
                .await
            }
        })
        .await
    }

    /// Makes a new write of one that lost, or of all (`id` is `None`); with `if_untouched` only of keys
    /// that were not written since.
    pub async fn restore_conflict(
        &self,
        namespace: &str,
        id: Option<&str>,
        if_untouched: bool,
    ) -> Result<raft::RestoreConflictResponse, ClientError> {
        let request = raft::RestoreConflictRequest {
            namespace: namespace.to_owned(),
            id: id.unwrap_or_default().to_owned(),
            all: id.is_none(),
            if_untouched,
        };
        let call = Call::anonymous("restoring conflicts", namespace);
        self.raft(call, request, async |mut client, request| {
            client.restore_conflict(request).await
        })
        .await
    }
}
