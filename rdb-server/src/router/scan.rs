//! Scans: one frozen moment of all regions that hold a range, in pages.
//!
//! Owns where a scan stands, its pages and their receipts, and how many scans there may be. What may be
//! read at all, and how fresh, the router says; how pages get to their reader, [`super::pages`].
//!
//! Invariants: a page holds about [`PAGE_BYTES`]; there are at most [`SCANS`]; at least one page is sent, so
//! that an empty answer has a receipt, too.

use super::pages::Pages;
use super::place::look;
use super::{Router, ScanSpec, is_stale, without_outcome};
use crate::error::Error;
use crate::peer::Peer;
use crate::peer::damage::ReadOf;
use crate::session::SessionToken;
use bytes::{BufMut, Bytes, BytesMut};
use rdb_proto::convert;
use rdb_proto::kv::{self, KeyValue, Receipt};
use rdb_storage::{Family, KeyRange, View};
use rdb_types::{Epoch, GlobalKey, Mode, NamespaceId, Reason, Record, Stamp};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::time::Instant;

/// Bytes of keys and values in one page of a scan.
const PAGE_BYTES: usize = 1 << 20;
/// Scans under way at once. Each holds a snapshot for as long as its reader takes.
pub(super) const SCANS: usize = 64;

impl Router {
    /// Scans a namespace: one frozen moment of all regions that hold the range, in pages.
    pub async fn scan(
        &self,
        namespace: &str,
        spec: ScanSpec,
        deadline: Instant,
    ) -> Result<Pages, Error> {
        let row = if is_stale(&spec.options) {
            self.namespaces.find_local(namespace)
        } else {
            self.namespaces.find(namespace, deadline).await
        };
        let row = row.map_err(without_outcome)?;
        let namespace = NamespaceId(row.id);
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
            let (place, settled) = self
                .settled(peer, &row, &spec.options, &mut barriers, deadline)
                .await?;
            let installs = match place.mode {
                Mode::Strong => place.peer.settled()?,
                Mode::Eventual => place.peer.own_settled(namespace)?,
            };
            let look = look(&place, namespace, settled.token.as_ref());
            parts.push(Part {
                range: part,
                installs,
                now: look.now,
                receipt: self.receipt(&place, &look.token, settled.staleness_ms),
                token: look.token,
                since: look.since,
                peer: place.peer,
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
        let mut reading = Reading::new(view, parts, &spec);
        Ok(Pages::send(move || reading.next(), permit, spec.patience))
    }
}

/// The piece of a scan that lies in one region.
struct Part {
    /// The region.
    peer: Arc<Peer>,
    /// Global keys that are still to be read.
    range: KeyRange,
    /// See [`Peer::settled`] and [`Peer::own_settled`].
    installs: u64,
    /// The region's time: what has expired by then is not there.
    now: Stamp,
    /// How the region serves it.
    receipt: Receipt,
    /// What whoever reads it has seen.
    token: SessionToken,
    /// See [`super::place::Look`].
    since: Option<Epoch>,
}

/// A scan under way.
struct Reading {
    view: Arc<dyn View>,
    parts: VecDeque<Part>,
    /// Entries that may still be sent.
    left: usize,
    reverse: bool,
    keys_only: bool,
}

/// What reading a page came to.
struct Page {
    entries: Vec<KeyValue>,
    receipt: Receipt,
    /// Where the part goes on; `None`: it was read to its end.
    rest: Option<KeyRange>,
}

impl Reading {
    /// Reads `parts`, in their order, from `view`.
    fn new(view: Arc<dyn View>, parts: Vec<Part>, spec: &ScanSpec) -> Reading {
        Reading {
            view,
            parts: parts.into(),
            left: if spec.limit == 0 {
                usize::MAX
            } else {
                spec.limit
            },
            reverse: spec.reverse,
            keys_only: spec.keys_only,
        }
    }

    /// The next page; `None` after the last.
    fn next(&mut self) -> Result<Option<kv::ScanResponse>, Error> {
        while let Some(part) = self.parts.pop_front() {
            let Page {
                entries,
                receipt,
                rest,
            } = self.read(&part)?;
            self.left -= entries.len();
            if self.left == 0 {
                self.parts.clear();
            } else if let Some(range) = rest {
                self.parts.push_front(Part { range, ..part });
            }
            if !entries.is_empty() || self.parts.is_empty() {
                return Ok(Some(kv::ScanResponse {
                    entries,
                    receipt: Some(receipt),
                }));
            }
        }
        Ok(None)
    }

    fn read(&self, part: &Part) -> Result<Page, Error> {
        let mut token = part.token.clone();
        let mut page = self.read_entries(part, &mut token)?;
        if page.receipt.mode == convert::mode_to_wire(Mode::Strong) {
            page.receipt.revision = token.revision();
        }
        page.receipt.session = token.encode();
        Ok(page)
    }

    fn read_entries(&self, part: &Part, token: &mut SessionToken) -> Result<Page, Error> {
        let mut page = Page {
            entries: Vec::new(),
            receipt: part.receipt.clone(),
            rest: None,
        };
        let mut bytes = 0;
        let damage = part.peer.damage();
        for item in self.view.scan(Family::Data, &part.range, self.reverse) {
            let (key, value) = damage.check(ReadOf::Scan, item)?;
            let record =
                Record::decode(value).map_err(|error| damage.record(ReadOf::Scan, &error))?;
            // What is known of the region follows its data: what was read may be newer, and what is gone
            // was seen to be gone.
            token.saw(&record, part.since);
            if record.tombstone || record.is_expired(part.now) {
                continue;
            }
            let Some(global) = GlobalKey::from_bytes(key.clone()) else {
                continue;
            };
            let entry = KeyValue {
                key: global.user_key(),
                value: if self.keys_only {
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
            if page.entries.len() == self.left {
                return Ok(page);
            }
            if bytes >= PAGE_BYTES {
                page.rest = Some(beyond(&part.range, key, self.reverse));
                return Ok(page);
            }
        }
        Ok(page)
    }
}

/// What is left of `range` once `key` was read.
fn beyond(range: &KeyRange, key: Bytes, reverse: bool) -> KeyRange {
    if reverse {
        return KeyRange {
            start: range.start.clone(),
            end: Some(key),
        };
    }
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(&key);
    next.put_u8(0);
    KeyRange {
        start: next.freeze(),
        end: range.end.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_goes_on_right_after_the_last_key() {
        let range = KeyRange::new("a", "d");
        let rest = beyond(&range, Bytes::from_static(b"b"), false);
        assert!(!rest.contains(b"b") && rest.contains(b"b\0") && rest.contains(b"c"));
        let rest = beyond(&range, Bytes::from_static(b"b"), true);
        assert!(!rest.contains(b"b") && rest.contains(b"a\xff") && !rest.contains(b"c"));
    }
}
