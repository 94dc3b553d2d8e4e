//! Tells a hole between two logs from a length that was never reached.
//!
//! Owns one decision, for a database that RocksDB has refused: whether the note that opens its
//! newest log file is wrong. Does not know what the batches contain.
//!
//! With `track_and_verify_wals` a log file begins with a note on its predecessor: number, length,
//! and the sequence number of its last record. After a write that found no room, RocksDB goes on
//! by itself: it begins a new log file and writes out everything that it has in memory. The length
//! in the note of that file counts fragments which never reached the disk, and until everything is
//! written out (a crash, a disk that is still full) the database cannot be opened:
//!
//! ```text
//! 000004.log   [batch 17][batch 18][ba         the write of batch 19 failed; it was refused
//! 000009.log   [note: 4, 1000 bytes, last 18]  but 000004.log has 800 bytes
//! ```
//!
//! The sequence number says all that is to be known: it is of the last batch that was accepted, so
//! if the predecessor ends with it, nothing is missing. The newer file holds nothing then, and is
//! emptied, as RocksDB leaves it when it dies a moment earlier.
//!
//! # Invariants
//!
//! - Only a file without a batch is emptied, and only if its predecessor is undamaged and ends with
//!   the very batch that the note names.
//! - Called only after RocksDB refused: it had its lock then, so no process is using the files.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use super::{
    wal_check,
    wal_format::{BLOCK_BYTES, HEADER_BYTES, Header, log_files, read_full},
};
use crate::StorageError;

/// Sequence number and count, before the operations of a batch.
const BATCH_HEAD_BYTES: usize = 8 + 4;

/// Empties the newest log file if it holds nothing but a wrong length of its predecessor. Whether
/// it did: then RocksDB may be asked again.
///
/// # Errors
/// A log file cannot be read or emptied.
pub(super) fn forget_wrong_length(path: &Path) -> Result<bool, StorageError> {
    let files = log_files(path)?;
    let [.., before, newest] = &files[..] else {
        return Ok(false);
    };
    // A file of damaged bytes proves nothing.
    for file in [before, newest] {
        if wal_check::find_damage(file, true)?.is_some() {
            return Ok(false);
        }
    }
    let reading = |file: &Path| {
        File::open(file)
            .and_then(|mut file| Contents::read(&mut file))
            .map_err(|error| StorageError::from_io("reading the write-ahead log", file, &error))
    };
    let note = match reading(newest)? {
        Contents {
            note: Some(note),
            last: None,
            understood: true,
        } => note,
        _ => return Ok(false),
    };
    let length_bytes = fs::metadata(before)
        .map_err(|error| StorageError::from_io("reading the write-ahead log", before, &error))?
        .len();
    if !note.is_wrong_only_in_length(log_number(before), length_bytes, &reading(before)?) {
        return Ok(false);
    }
    File::options()
        .write(true)
        .open(newest)
        .and_then(|file| file.set_len(0).and_then(|()| file.sync_all()))
        .map_err(|error| StorageError::from_io("emptying the write-ahead log", newest, &error))?;
    Ok(true)
}

/// `000004.log` is 4.
fn log_number(file: &Path) -> Option<u64> {
    file.file_stem()?.to_str()?.parse().ok()
}

/// What a log file says of the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    log_number: u64,
    length_bytes: u64,
    /// That with which the last batch begins; 0 if there is none.
    last_sequence: u64,
}

impl Note {
    fn parse(payload: &[u8]) -> Option<Self> {
        let (numbers, []) = payload.as_chunks::<8>() else {
            return None;
        };
        let &[log_number, length_bytes, last_sequence] = numbers else {
            return None;
        };
        Some(Self {
            log_number: u64::from_le_bytes(log_number),
            length_bytes: u64::from_le_bytes(length_bytes),
            last_sequence: u64::from_le_bytes(last_sequence),
        })
    }

    fn is_wrong_only_in_length(
        &self,
        log_number: Option<u64>,
        length_bytes: u64,
        before: &Contents,
    ) -> bool {
        let ends_as_noted = match before.last {
            // A batch without operations has the sequence number of the one after it, and would
            // pass for that.
            Some(last) => last.operations > 0 && last.sequence == self.last_sequence,
            None => self.last_sequence == 0,
        };
        before.understood
            && ends_as_noted
            && log_number == Some(self.log_number)
            && length_bytes != self.length_bytes
    }
}

/// How a batch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    sequence: u64,
    operations: u32,
}

impl Batch {
    /// The batch at the start of `payload`.
    fn parse(payload: &[u8]) -> Option<Self> {
        let (sequence, rest) = payload.split_first_chunk()?;
        Some(Self {
            sequence: u64::from_le_bytes(*sequence),
            operations: u32::from_le_bytes(*rest.first_chunk()?),
        })
    }
}

/// What a log file without damage holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Contents {
    note: Option<Note>,
    /// The last one that is whole.
    last: Option<Batch>,
    /// Whether every fragment was of a kind known here, and in its place.
    understood: bool,
}

impl Contents {
    /// Ends at the first fragment that is not whole. Checksums were compared before.
    fn read(file: &mut impl Read) -> io::Result<Self> {
        let mut contents = Self {
            understood: true,
            ..Self::default()
        };
        // The first bytes of a batch of which not all fragments were seen.
        let mut open: Option<Vec<u8>> = None;
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let filled = read_full(file, &mut block)?;
            let mut rest = &block[..filled];
            // Fewer bytes than a header are padding, or a torn header.
            while let Some(header) = Header::parse(rest) {
                let whole = rest.get(HEADER_BYTES..HEADER_BYTES + header.length);
                let Some(payload) = whole.filter(|_| header.kind != 0) else {
                    return Ok(contents);
                };
                contents.add(header.kind, payload, &mut open);
                rest = &rest[HEADER_BYTES + header.length..];
            }
            if filled < BLOCK_BYTES {
                return Ok(contents);
            }
        }
    }

    fn add(&mut self, kind: u8, payload: &[u8], open: &mut Option<Vec<u8>>) {
        let head = |mut begun: Vec<u8>| {
            let missing = BATCH_HEAD_BYTES - begun.len();
            begun.extend(payload.iter().take(missing));
            begun
        };
        match (kind, open.take()) {
            // All of a batch, or its last fragment.
            (1, None) => self.end(&head(Vec::new())),
            (4, Some(begun)) => self.end(&head(begun)),
            // Its first, its middle.
            (2, None) => *open = Some(head(Vec::new())),
            (3, Some(begun)) => *open = Some(head(begun)),
            // Once, and before all batches.
            (130, None) if self.note.is_none() && self.last.is_none() => {
                self.note = Note::parse(payload);
                self.understood &= self.note.is_some();
            }
            _ => self.understood = false,
        }
    }

    fn end(&mut self, head: &[u8]) {
        self.last = Batch::parse(head);
        self.understood &= self.last.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::wal_format::record, *};

    const NOTE: u8 = 130;

    fn batch(sequence: u64, operations: u32) -> Vec<u8> {
        let mut payload = sequence.to_le_bytes().to_vec();
        payload.extend(operations.to_le_bytes());
        payload.extend([7; 30]);
        payload
    }

    fn note(log_number: u64, length_bytes: u64, last_sequence: u64) -> Vec<u8> {
        [log_number, length_bytes, last_sequence]
            .map(u64::to_le_bytes)
            .concat()
    }

    fn contents(bytes: &[u8]) -> Contents {
        Contents::read(&mut &bytes[..]).expect("a slice can be read")
    }

    /// Of 000004.log with `before`, and of a file that opens with `noted` and goes on with `after`:
    /// whether the second is emptied. Nothing else may change.
    fn is_emptied(before: &[u8], noted: &[u8], after: &[u8]) -> bool {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let old = parent.path().join("000004.log");
        let new = parent.path().join("000009.log");
        let opened = [&record(NOTE, noted), after].concat();
        fs::write(&old, before).expect("it can be written");
        fs::write(&new, &opened).expect("it can be written");
        let emptied = forget_wrong_length(parent.path()).expect("both can be read");
        assert_eq!(fs::read(&old).expect("it can be read"), before);
        let left = fs::read(&new).expect("it can be read");
        assert_eq!(left, if emptied { Vec::new() } else { opened });
        emptied
    }

    /// Batches 17 and 18, 98 bytes.
    fn two() -> Vec<u8> {
        [record(1, &batch(17, 1)), record(1, &batch(18, 2))].concat()
    }

    #[test]
    fn a_length_that_was_never_reached_is_forgotten() {
        let whole = two();
        assert_eq!(whole.len(), 98);
        assert!(is_emptied(&whole, &note(4, 150, 18), &[]));
        // Some of the failed write is there, also more than RocksDB counts.
        let failed = record(1, &batch(20, 1));
        for length_bytes in [98 + 7, 98 + 49] {
            for cut in 1..failed.len() {
                let torn = [&whole, &failed[..cut]].concat();
                let same = torn.len() as u64 == length_bytes;
                assert_eq!(is_emptied(&torn, &note(4, length_bytes, 18), &[]), !same);
            }
        }
        // The first write of a log failed.
        assert!(is_emptied(&failed[..5], &note(4, 49, 0), &[]));
    }

    #[test]
    fn a_predecessor_that_lost_a_batch_is_not() {
        let whole = two();
        for cut in 0..whole.len() {
            assert!(
                !is_emptied(&whole[..cut], &note(4, 98, 18), &[]),
                "cut at {cut}"
            );
        }
        // One that has more than the note knows is no better.
        assert!(!is_emptied(&whole, &note(4, 49, 17), &[]));
        // The right length is no reason to touch anything.
        assert!(!is_emptied(&whole, &note(4, 98, 18), &[]));
        assert!(!is_emptied(&whole, &note(3, 150, 18), &[]));
        // Batch 18 is gone, and the empty one before it has its number.
        let empty = record(1, &batch(18, 0));
        assert!(!is_emptied(&empty, &note(4, 98, 18), &[]));
    }

    #[test]
    fn a_newest_log_that_holds_anything_stays() {
        let whole = two();
        let more = record(1, &batch(20, 1));
        assert!(!is_emptied(&whole, &note(4, 150, 18), &more));
        let strange = record(10, &[1; 8]);
        assert!(!is_emptied(&whole, &note(4, 150, 18), &strange));
        let second = record(NOTE, &note(4, 98, 18));
        assert!(!is_emptied(&whole, &note(4, 150, 18), &second));
        assert!(!is_emptied(&whole, &note(4, 150, 18)[..23], &[]));
    }

    #[test]
    fn damage_anywhere_proves_nothing() {
        let whole = two();
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 1 << (position % 8);
            assert!(
                !is_emptied(&bytes, &note(4, 150, 18), &[]),
                "byte {position}"
            );
        }
    }

    #[test]
    fn a_batch_is_read_across_blocks() {
        // Seven bytes are left in the first block: a fragment without payload.
        let filler = BLOCK_BYTES - 2 * HEADER_BYTES;
        let long = batch(21, 3);
        let mut filled = batch(17, 1);
        filled.resize(filler, 0);
        let bytes = [
            record(1, &filled),
            record(2, &[]),
            record(3, &long[..9]),
            record(4, &long[9..]),
        ]
        .concat();
        assert_eq!(bytes[..BLOCK_BYTES].len(), BLOCK_BYTES);
        let read = contents(&bytes);
        let expected = Batch {
            sequence: 21,
            operations: 3,
        };
        assert_eq!((read.last, read.understood), (Some(expected), true));
        // Without its last fragment it does not count.
        let torn = contents(&bytes[..bytes.len() - 1]);
        assert_eq!(torn.last.map(|batch| batch.sequence), Some(17));
        // A fragment in the wrong place is not understood.
        for bytes in [record(3, &long), record(4, &long)] {
            assert!(!contents(&bytes).understood);
        }
    }
}
