//! Conflict logs of several replicas, read side by side as one.
//!
//! Owns the pages and their order. Each log stands in the order of stamp and key, region by region; the
//! listing does too, and a row that several replicas have comes once.
//!
//! Invariant: a row comes only when every log has been read up to it, so that it names all replicas that
//! list it.

use super::{PAGE_ROWS, PATIENCE};
use crate::error::Error;
use crate::stores::Stores;
use crate::transport::Lane;
use bytes::Bytes;
use rdb_proto::raft::{
    ConflictPlace, ConflictRow, ReadConflicts, ReadConflictsReply, peer_request, peer_response,
};
use rdb_types::{NamespaceId, Reason, RegionId, StoreId};
use std::collections::{BTreeSet, VecDeque};

/// A conflict, and the replicas that list it.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(super) region: RegionId,
    /// As the replica says that knows the newest winner.
    pub(super) row: ConflictRow,
    pub(super) stores: Vec<StoreId>,
}

/// All conflicts of a namespace, in order.
pub(crate) struct Listing {
    stores: Stores,
    namespace: NamespaceId,
    prefix: Bytes,
    logs: Vec<Log>,
}

/// One replica's log, as far as it was fetched.
struct Log {
    region: RegionId,
    store: StoreId,
    rows: VecDeque<ConflictRow>,
    /// Where the next page begins; `None`: there is none.
    after: Option<ConflictPlace>,
}

impl Log {
    fn take(&mut self, page: ReadConflictsReply) {
        self.rows.extend(page.rows);
        self.after = page.last.filter(|_| page.more);
    }
}

impl Listing {
    /// Fetches the first page of every log; gives the stores of those that do not answer, too.
    pub(super) async fn open(
        stores: Stores,
        namespace: NamespaceId,
        prefix: Bytes,
        places: Vec<(RegionId, StoreId)>,
    ) -> Result<(Listing, BTreeSet<StoreId>), Error> {
        let mut listing = Listing {
            stores,
            namespace,
            prefix,
            logs: Vec::new(),
        };
        let asked = places.iter().map(|(region, store)| {
            let page = listing.page(*region, *store, None);
            async move { (*region, *store, page.await) }
        });
        let (mut missing, mut why_not) = (BTreeSet::new(), String::new());
        for (region, store, page) in futures::future::join_all(asked).await {
            match page {
                Ok(page) => {
                    let mut log = Log {
                        region,
                        store,
                        rows: VecDeque::new(),
                        after: None,
                    };
                    log.take(page);
                    listing.logs.push(log);
                }
                Err(why) => {
                    missing.insert(store);
                    why_not = why;
                }
            }
        }
        if listing.logs.is_empty() {
            return Err(Error::new(
                Reason::NotReady,
                format!("no replica gives its conflict log: {why_not}; try again"),
            ));
        }
        Ok((listing, missing))
    }

    fn page(
        &self,
        region: RegionId,
        store: StoreId,
        after: Option<ConflictPlace>,
    ) -> impl Future<Output = Result<ReadConflictsReply, String>> + use<> {
        let read = peer_request::Body::ReadConflicts(ReadConflicts {
            namespace_id: self.namespace.0,
            prefix: self.prefix.clone(),
            limit: PAGE_ROWS,
            after,
        });
        let stores = self.stores.clone();
        async move {
            match stores
                .ask(store, Lane::Bulk, region, read, PATIENCE)
                .await?
            {
                peer_response::Body::ReadConflicts(page) => Ok(page),
                _ => Err("it answered something else".to_owned()),
            }
        }
    }

    /// The next conflict.
    ///
    /// # Errors
    /// A replica does not answer any more.
    pub(crate) async fn next(&mut self) -> Result<Option<Joined>, Error> {
        for at in 0..self.logs.len() {
            while self.logs[at].rows.is_empty()
                && let Some(after) = self.logs[at].after.take()
            {
                let Log { region, store, .. } = self.logs[at];
                let page = self.page(region, store, Some(after)).await;
                let page = page.map_err(|why| {
                    Error::new(
                        Reason::NotReady,
                        format!("store {store} stopped giving its conflict log: {why}; ask again"),
                    )
                })?;
                self.logs[at].take(page);
            }
        }
        Ok(first(&mut self.logs))
    }
}

/// Takes the first row out of all logs that have it.
fn first(logs: &mut [Log]) -> Option<Joined> {
    let place = |log: &Log| {
        let row = log.rows.front()?;
        Some((log.region, row.stamp, row.key.clone()))
    };
    let at = logs.iter().filter_map(place).min()?;
    let mut joined: Option<Joined> = None;
    for log in logs {
        if place(log).as_ref() != Some(&at) {
            continue;
        }
        let Some(row) = log.rows.pop_front() else {
            continue;
        };
        match &mut joined {
            None => {
                joined = Some(Joined {
                    region: log.region,
                    row,
                    stores: vec![log.store],
                });
            }
            Some(joined) => {
                joined.stores.push(log.store);
                if row.winner_stamp > joined.row.winner_stamp {
                    joined.row = row;
                }
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stamp: u64, key: &'static str, winner_stamp: u64) -> ConflictRow {
        ConflictRow {
            key: key.into(),
            stamp,
            winner_stamp,
            ..Default::default()
        }
    }

    fn log(region: u64, store: u64, rows: Vec<ConflictRow>) -> Log {
        Log {
            region: RegionId(region),
            store: StoreId::new(store).unwrap(),
            rows: rows.into(),
            after: None,
        }
    }

    #[test]
    fn a_row_that_several_replicas_list_comes_once_and_in_order() {
        let mut logs = [
            log(2, 1, vec![row(5, "a", 9), row(7, "b", 9)]),
            log(2, 2, vec![row(5, "a", 11), row(6, "c", 8), row(7, "a", 9)]),
            log(3, 1, vec![row(1, "z", 2)]),
        ];
        let mut seen = Vec::new();
        while let Some(joined) = first(&mut logs) {
            let stores: Vec<u16> = joined.stores.iter().map(|store| store.get()).collect();
            let winner = joined.row.winner_stamp;
            seen.push((joined.region.0, joined.row.stamp, winner, stores));
        }
        assert_eq!(
            seen,
            [
                (2, 5, 11, vec![1, 2]),
                (2, 6, 8, vec![2]),
                (2, 7, 9, vec![2]),
                (2, 7, 9, vec![1]),
                (3, 1, 2, vec![1]),
            ]
        );
    }
}
