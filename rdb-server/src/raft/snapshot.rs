//! What a snapshot is: the sorted records of a frozen view, as one stream of bytes.
//!
//! Owns the format of the stream, reading it from a view piece by piece, and reading it back into
//! records. Knows nothing of regions, connections or what records mean: whoever makes a snapshot
//! names the ranges, and everything that describes the region is in one of them.
//!
//! ```text
//! stream = record*      record = length (varint) SnapshotRecord
//! ```
//!
//! # Invariants
//!
//! - The stream of a snapshot is the same whenever and however often it is read: the view is frozen,
//!   and records come in the order of the ranges and of their keys. So a transfer can go on at any
//!   offset that it had reached.
//! - Pieces end between records. Memory is bounded by a piece and a record, on either side.

use super::runtime;
use bytes::{Bytes, BytesMut};
use prost::Message;
use rdb_proto::raft::SnapshotRecord;
use rdb_storage::{Family, KeyRange, StorageError, View};
use std::fmt;
use std::io::Read;
use std::sync::Arc;

/// The largest record that is believed. A length beyond it is damage, not a reason to allocate.
const MAX_RECORD_BYTES: u64 = 256 << 20;

/// One record of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotItem {
    /// Where it belongs.
    pub family: Family,
    /// Its key, as it is stored.
    pub key: Bytes,
    /// Its value, as it is stored.
    pub value: Bytes,
}

/// A snapshot as openraft hands it around: one's own, or one that came from the leader.
#[derive(Debug)]
pub enum SnapshotData {
    /// A view of this store's own.
    Frozen(FrozenSnapshot),
    /// All pieces of a leader's.
    Received(ReceivedSnapshot),
}

impl SnapshotData {
    /// Its records, in order. Reads from the disk while it is iterated. After an error it ends.
    pub fn into_records(
        self,
    ) -> Box<dyn Iterator<Item = Result<SnapshotItem, StorageError>> + Send> {
        match self {
            SnapshotData::Frozen(frozen) => Box::new(frozen.into_records()),
            SnapshotData::Received(received) => Box::new(received.into_records()),
        }
    }
}

/// A frozen view of some ranges. Cheap to clone. The view keeps what it shows from being compacted
/// away, so one should not outlive its use by hours.
#[derive(Clone)]
pub struct FrozenSnapshot {
    id: Arc<str>,
    view: Arc<dyn View>,
    ranges: Arc<[(Family, KeyRange)]>,
}

impl fmt::Debug for FrozenSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrozenSnapshot")
            .field("id", &self.id)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

impl FrozenSnapshot {
    /// A snapshot of `ranges` as `view` shows them. `id` names these bytes, also to the store that
    /// receives them: no two snapshots that could differ may share it, not even across a restart.
    pub fn new(
        id: impl Into<Arc<str>>,
        view: Arc<dyn View>,
        ranges: Vec<(Family, KeyRange)>,
    ) -> FrozenSnapshot {
        FrozenSnapshot {
            id: id.into(),
            view,
            ranges: ranges.into(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A reader of its stream, at the beginning.
    pub fn reader(&self) -> SnapshotReader {
        SnapshotReader {
            snapshot: self.clone(),
            at: Position::start(&self.ranges),
            before: None,
        }
    }

    fn into_records(self) -> impl Iterator<Item = Result<SnapshotItem, StorageError>> + Send {
        // A scan borrows its view, so it is taken up again behind the last key of each handful.
        const HANDFUL: usize = 256;
        let mut at = Some(Position::start(&self.ranges));
        let mut handful = Vec::new().into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(item) = handful.next() {
                    return Some(Ok(item));
                }
                let mut items = Vec::new();
                let read = self.walk(at.take()?, |item, _| {
                    items.push(item);
                    items.len() < HANDFUL
                });
                match read {
                    Ok(next) => at = next,
                    Err(error) => return Some(Err(error)),
                }
                handful = items.into_iter();
            }
        })
    }

    /// Visits records from `at` on until `visit` says that the one it got was the last for now.
    /// Answers where to go on; `None`: there is nothing more.
    fn walk(
        &self,
        mut at: Position,
        mut visit: impl FnMut(SnapshotItem, u64) -> bool,
    ) -> Result<Option<Position>, StorageError> {
        while let Some((family, range)) = self.ranges.get(at.range) {
            let rest = KeyRange {
                start: at.key.clone(),
                end: range.end.clone(),
            };
            for found in self.view.scan(*family, &rest, false) {
                let (key, value) = found?;
                let item = SnapshotItem {
                    family: *family,
                    key,
                    value,
                };
                at.offset += encoded_len(&item) as u64;
                at.key = behind(&item.key);
                if !visit(item, at.offset) {
                    return Ok(Some(at));
                }
            }
            at.range += 1;
            at.key = self
                .ranges
                .get(at.range)
                .map(|(_, range)| range.start.clone())
                .unwrap_or_default();
        }
        Ok(None)
    }
}

/// A place in the stream, between two records.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    /// In bytes of the stream.
    offset: u64,
    /// Which range comes next.
    range: usize,
    /// The first key of it that is still to come.
    key: Bytes,
}

impl Position {
    fn start(ranges: &[(Family, KeyRange)]) -> Position {
        let key = ranges
            .first()
            .map(|(_, range)| range.start.clone())
            .unwrap_or_default();
        Position {
            offset: 0,
            range: 0,
            key,
        }
    }
}

/// A piece of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the stream it begins.
    pub offset: u64,
    /// Whole records.
    pub data: Bytes,
    /// Whether it is the last.
    pub done: bool,
}

/// Reads the stream of a snapshot piece by piece.
pub struct SnapshotReader {
    snapshot: FrozenSnapshot,
    /// Where the next piece begins.
    at: Position,
    /// Where the last piece began: where a transfer goes on whose last piece was lost.
    before: Option<Position>,
}

impl SnapshotReader {
    /// The piece that begins at `offset`: some `max_bytes`, the last record may go beyond it. Reads
    /// from the disk. To go on where the last piece ended, or at its beginning, costs one seek;
    /// anywhere else costs reading all that comes before.
    ///
    /// # Errors
    /// The disk fails. `Ok(None)`: no piece ever began at this offset.
    pub fn read(&mut self, offset: u64, max_bytes: usize) -> Result<Option<Piece>, StorageError> {
        let Some(start) = self.seek(offset)? else {
            return Ok(None);
        };
        let mut data = BytesMut::new();
        let next = self.snapshot.walk(start.clone(), |item, _| {
            encode(&item, &mut data);
            data.len() < max_bytes
        })?;
        let done = next.is_none();
        let end = Position {
            offset: start.offset + data.len() as u64,
            ..start.clone()
        };
        self.at = next.unwrap_or(end);
        self.before = Some(start);
        Ok(Some(Piece {
            offset,
            data: data.freeze(),
            done,
        }))
    }

    fn seek(&self, offset: u64) -> Result<Option<Position>, StorageError> {
        let known = [Some(&self.at), self.before.as_ref()];
        if let Some(position) = known
            .into_iter()
            .flatten()
            .find(|position| position.offset == offset)
        {
            return Ok(Some(position.clone()));
        }
        let start = Position::start(&self.snapshot.ranges);
        if offset == 0 {
            return Ok(Some(start));
        }
        let found = self.snapshot.walk(start, |_, reached| reached < offset)?;
        Ok(found.filter(|position| position.offset == offset))
    }

    /// As [`SnapshotReader::read`], on a thread where waiting for the disk holds up nobody. Gives
    /// the reader back.
    ///
    /// # Errors
    /// As [`SnapshotReader::read`], or the thread ended early.
    pub async fn read_async(
        mut self,
        offset: u64,
        max_bytes: usize,
    ) -> (Option<SnapshotReader>, Result<Option<Piece>, StorageError>) {
        let read = move || {
            let piece = self.read(offset, max_bytes);
            (self, piece)
        };
        match runtime::blocking(read).await {
            Ok((reader, piece)) => (Some(reader), piece),
            Err(error) => (None, Err(io_error("reading a snapshot", &error))),
        }
    }
}

/// The complete stream of a leader's snapshot.
pub struct ReceivedSnapshot {
    id: String,
    stream: Box<dyn Read + Send + Sync>,
}

impl fmt::Debug for ReceivedSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedSnapshot")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl ReceivedSnapshot {
    /// Reads from `stream`, which should be buffered.
    pub fn new(id: String, stream: Box<dyn Read + Send + Sync>) -> ReceivedSnapshot {
        ReceivedSnapshot { id, stream }
    }

    /// The bytes as they came, from where reading stands.
    pub fn into_stream(self) -> Box<dyn Read + Send + Sync> {
        self.stream
    }

    fn into_records(self) -> impl Iterator<Item = Result<SnapshotItem, StorageError>> + Send {
        let ReceivedSnapshot { id, mut stream } = self;
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let item = read_record(&mut stream)
                .map_err(|why| damage(&id, why))
                .transpose();
            ended = !matches!(item, Some(Ok(_)));
            item
        })
    }
}

fn wire(item: &SnapshotItem) -> SnapshotRecord {
    // Bytes are shared: this copies nothing.
    SnapshotRecord {
        family: family_to_wire(item.family),
        key: item.key.clone(),
        value: item.value.clone(),
    }
}

fn encoded_len(item: &SnapshotItem) -> usize {
    let len = wire(item).encoded_len();
    len + prost::length_delimiter_len(len)
}

fn encode(item: &SnapshotItem, into: &mut BytesMut) {
    into.extend_from_slice(&wire(item).encode_length_delimited_to_vec());
}

/// The next record, or nothing at the end of the stream.
fn read_record(stream: &mut impl Read) -> Result<Option<SnapshotItem>, String> {
    let Some(len) = read_length(stream)? else {
        return Ok(None);
    };
    if len > MAX_RECORD_BYTES {
        return Err(format!("a record claims to have {len} bytes"));
    }
    let mut bytes = Vec::new();
    let read = stream
        .take(len)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if (read as u64) < len {
        return Err("it ends in the middle of a record".to_owned());
    }
    let record = SnapshotRecord::decode(Bytes::from(bytes)).map_err(|error| error.to_string())?;
    let family =
        family(record.family).ok_or_else(|| format!("there is no family {}", record.family))?;
    Ok(Some(SnapshotItem {
        family,
        key: record.key,
        value: record.value,
    }))
}

fn read_length(stream: &mut impl Read) -> Result<Option<u64>, String> {
    let mut length = 0u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0u8];
        let read = stream.read_exact(&mut byte);
        match read {
            Ok(()) => {}
            Err(error) if shift == 0 && error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Ok(None);
            }
            Err(error) => return Err(format!("the length of a record: {error}")),
        }
        length |= u64::from(byte[0] & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte[0] & 0x80 == 0 {
            return Ok(Some(length));
        }
    }
    Err("the length of a record does not end".to_owned())
}

/// A family's number in a stream. Part of the wire format: it does not follow the order of the enum.
fn family_to_wire(family: Family) -> u32 {
    match family {
        Family::Data => 1,
        Family::RaftLog => 2,
        Family::RaftState => 3,
        Family::OriginLog => 4,
        Family::Region => 5,
        Family::Conflicts => 6,
        Family::Expiry => 7,
        Family::RequestIds => 8,
    }
}

fn family(wire: u32) -> Option<Family> {
    Family::ALL
        .into_iter()
        .find(|family| family_to_wire(*family) == wire)
}

/// The first key behind `key`.
fn behind(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}

fn damage(id: &str, why: String) -> StorageError {
    StorageError::Corruption {
        at: format!("snapshot {id}").into(),
        detail: why.into(),
    }
}

pub(super) fn io_error(doing: &'static str, error: &std::io::Error) -> StorageError {
    let detail = error.to_string().into();
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            StorageError::NoSpace { doing, detail }
        }
        _ => StorageError::Io { doing, detail },
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
