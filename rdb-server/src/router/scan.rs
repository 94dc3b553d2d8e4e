//! Scans: one frozen moment of all regions that hold a range, in pages.
//!
//! Owns the pages and their receipts, and how many scans there may be. What may be read at all, and how
//! fresh, the router says.
//!
//! Invariants: a page holds about [`PAGE_BYTES`]; a scan holds a thread and a snapshot, so there are at
//! most [`SCANS`], and one whose reader takes nothing for [`SLOW_READER`] ends.

use super::{Router, ScanSpec, is_stale, without_outcome};
use crate::error::Error;
use crate::namespace::require_strong;
use crate::peer::Peer;
use crate::peer::damage::ReadOf;
use crate::session::SessionToken;
use bytes::Bytes;
use rdb_proto::kv::{self, KeyValue, Receipt};
use rdb_storage::{Family, KeyRange, View};
use rdb_types::{GlobalKey, Reason, Record, Stamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes of keys and values in one page of a scan.
const PAGE_BYTES: usize = 1 << 20;
/// A scan whose reader takes no page for this long is ended: it holds a snapshot.
const SLOW_READER: Duration = Duration::from_secs(30);
/// Scans under way at once. Each holds a thread and a snapshot for as long as its reader takes.
pub(super) const SCANS: usize = 64;

impl Router {
    /// Scans a namespace: one frozen moment of all regions that hold the range, in pages.
    pub async fn scan(
        &self,
        namespace: &str,
        spec: ScanSpec,
        deadline: Instant,
    ) -> Result<mpsc::Receiver<Result<kv::ScanResponse, Error>>, Error> {
        let row = if is_stale(&spec.options) {
            self.namespaces.find_local(namespace)
        } else {
            self.namespaces.find(namespace, deadline).await
        };
        let namespace = row
            .and_then(|row| require_strong(&row))
            .map_err(without_outcome)?;
        let start = GlobalKey::new(namespace, &spec.start).as_bytes().clone();
        let end = match &spec.end {
            Some(end) => Some(GlobalKey::new(namespace, end).as_bytes().clone()),
            None => GlobalKey::namespace_end(namespace),
        };
        let mut range = KeyRange { start, end };
        let empty = range.is_empty();
        if empty {
            range.end = Some(range.start.clone());
        }
        let mut parts = Vec::new();
        let mut barriers = BTreeMap::new();
        for peer in self.manager.data_peers() {
            let part = crate::region::layout::intersect(peer.descriptor(), &range);
            // Nothing can be in an empty range, and the answer has a receipt all the same.
            if part.is_empty() && !(empty && peer.covers(&range.start)) {
                continue;
            }
            let part = if empty { range.clone() } else { part };
            let staleness_ms = self
                .settle(&peer, &spec.options, &mut barriers, deadline)
                .await?;
            let installs = peer.settled()?;
            let (now, revision) = peer
                .cell()
                .with(|summary| (summary.last_stamp, summary.revision));
            let epoch = peer.namespace(namespace).map_or(0, |(_, epoch)| epoch.0);
            if spec.options.seen_epoch > epoch && epoch != 0 {
                return Err(Error::new(
                    Reason::StaleReplica,
                    "this store is behind the epoch that you have seen; ask another one",
                )
                .with("epoch", epoch));
            }
            parts.push(Part {
                range: part,
                installs,
                now,
                receipt: self.receipt(&peer, epoch, revision, staleness_ms),
                peer,
            });
        }
        if spec.reverse {
            parts.reverse();
        }
        let Some(first) = parts.first() else {
            return Err(Error::new(
                Reason::NotReady,
                "this store is still joining its cluster; try again",
            ));
        };
        let Ok(permit) = self.scans.clone().try_acquire_owned() else {
            return Err(Error::new(Reason::Overloaded, format!("{SCANS} scans are under way at this store; try again, or read the open ones to their end")).with("limit", SCANS));
        };
        let view = first.peer.snapshot();
        for part in &parts {
            part.peer.still(part.installs)?;
        }
        let (pages, reader) = mpsc::channel(2);
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let send = |page| {
                runtime.block_on(async { pages.send_timeout(page, SLOW_READER).await.is_ok() })
            };
            if let Err(error) = scan_parts(view.as_ref(), &parts, &spec, &send) {
                send(Err(error));
            }
        });
        Ok(reader)
    }
}

struct Part {
    peer: Arc<Peer>,
    range: KeyRange,
    /// See [`Peer::settled`].
    installs: u64,
    now: Stamp,
    receipt: Receipt,
}

/// Reads the parts page by page until the limit, the end, or a reader that is gone. At least one page
/// is sent, so that an empty answer has a receipt, too.
fn scan_parts(
    view: &dyn View,
    parts: &[Part],
    spec: &ScanSpec,
    send: &impl Fn(Result<kv::ScanResponse, Error>) -> bool,
) -> Result<(), Error> {
    let mut left = if spec.limit == 0 {
        usize::MAX
    } else {
        spec.limit
    };
    for (at, part) in parts.iter().enumerate() {
        let mut page = kv::ScanResponse {
            entries: Vec::new(),
            receipt: Some(part.receipt.clone()),
        };
        let mut bytes = 0;
        for item in view.scan(Family::Data, &part.range, spec.reverse) {
            let damage = part.peer.damage();
            let (key, value) = damage.check(ReadOf::Scan, item)?;
            let record =
                Record::decode(value).map_err(|error| damage.record(ReadOf::Scan, &error))?;
            if record.tombstone || record.is_expired(part.now) {
                continue;
            }
            let Some(global) = GlobalKey::from_bytes(key) else {
                continue;
            };
            if let Some(receipt) = &mut page.receipt
                && record.revision > receipt.revision
            {
                // The summary follows the data: what was read may be newer than it.
                receipt.revision = record.revision;
                receipt.session = SessionToken {
                    region: part.peer.id(),
                    revision: record.revision,
                }
                .encode();
            }
            let entry = KeyValue {
                key: global.user_key(),
                value: if spec.keys_only {
                    Bytes::new()
                } else {
                    record.value
                },
                version: record.stamp.0,
                revision: record.revision,
                create_revision: record.create_revision,
                expires_at_ms: i64::try_from(record.expires_at_ms).unwrap_or(i64::MAX),
            };
            bytes += entry.key.len() + entry.value.len() + 32;
            page.entries.push(entry);
            left -= 1;
            if left == 0 {
                break;
            }
            if bytes >= PAGE_BYTES {
                bytes = 0;
                let full = std::mem::replace(
                    &mut page,
                    kv::ScanResponse {
                        entries: Vec::new(),
                        receipt: Some(part.receipt.clone()),
                    },
                );
                if !send(Ok(full)) {
                    return Ok(());
                }
            }
        }
        let last = at + 1 == parts.len() || left == 0;
        if (!page.entries.is_empty() || last) && !send(Ok(page)) || left == 0 {
            return Ok(());
        }
    }
    Ok(())
}
