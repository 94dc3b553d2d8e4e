//! Tells a torn tail of the write-ahead log from damage before its end.
//!
//! Owns a look at RocksDB's log files before RocksDB opens them, and the search for the place
//! when RocksDB reports damage without one. Changes nothing. Does not know what the records
//! contain. How a log file is laid out is in [`wal_format`](super::wal_format).
//!
//! RocksDB checks the checksum of each record and refuses to open on a mismatch. It trusts the
//! header before it has checked it, though, and takes these for a torn tail, or for nothing:
//!
//! ```text
//! length, in the last block, points past the end of the file -> "torn", all that follows is lost
//! type and length are zero                                   -> rest of the block is skipped
//! type says "recycled log file", which FlareDB never has     -> the file ends here (or RocksDB
//!                                                               looks at this byte for ever)
//! ```
//!
//! Here such a header is damage if a good record follows it in the file, or if the record is
//! whole but for its length. Then synced, acknowledged writes would be lost by going on.
//!
//! # Invariants
//!
//! - A log that merely ends within a record passes: that is what a crash leaves.
//! - Costs one pass over the headers. Checksums are computed only behind a strange header.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::wal_format::{BLOCK_BYTES, HEADER_BYTES, Header, log_files, read_full};
use crate::StorageError;

/// Checks every log file in a database's directory. A directory that does not exist is fine.
///
/// # Errors
/// [`StorageError::Corruption`] with file and offset, or the directory cannot be read.
pub fn check_directory(path: &Path) -> Result<(), StorageError> {
    for file in log_files(path)? {
        if let Some(damage) = find_damage(&file, false)? {
            return Err(damage.into_error(&file));
        }
    }
    Ok(())
}

/// Searches the log files for the first record that is bad, checksums included: after RocksDB
/// reported damage. None if the log is fine and the damage is elsewhere.
///
/// # Errors
/// The directory cannot be read.
pub fn locate_damage(path: &Path) -> Result<Option<StorageError>, StorageError> {
    for file in log_files(path)? {
        if let Some(damage) = find_damage(&file, true)? {
            return Ok(Some(damage.into_error(&file)));
        }
    }
    Ok(None)
}

/// A bad record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Where its header begins in the file.
    offset: u64,
    what: String,
}

impl Damage {
    fn into_error(self, file: &Path) -> StorageError {
        StorageError::corruption(
            format_args!("{} at byte {}", file.display(), self.offset),
            self.what,
        )
    }
}

/// The first damage in the log file at `path`; see [`scan`].
pub(super) fn find_damage(path: &Path, checksums: bool) -> Result<Option<Damage>, StorageError> {
    File::open(path)
        .and_then(|mut file| scan(&mut file, checksums))
        .map_err(|error| StorageError::from_io("checking the write-ahead log", path, &error))
}

/// The first damage in a log file. With `checksums` every record's checksum is computed, and a
/// wrong one counts.
fn scan(file: &mut impl Read, checksums: bool) -> io::Result<Option<Damage>> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut block_offset = 0;
    // A strange header seen before, which is damage if a good record follows.
    let mut strange: Option<Damage> = None;
    loop {
        let filled = read_full(file, &mut block)?;
        let bytes = &block[..filled];
        let mut position = 0;
        if strange.is_none() {
            match walk(bytes, checksums) {
                Walk::Whole => {}
                Walk::Damaged { position, what } => {
                    let offset = block_offset + position as u64;
                    return Ok(Some(Damage { offset, what }));
                }
                Walk::Strange { position: at, what } => {
                    strange = Some(Damage {
                        offset: block_offset + at as u64,
                        what,
                    });
                    position = at + 1;
                }
            }
        }
        if let Some(damage) = &mut strange
            && let Some(good) = find_record(bytes, position)
        {
            damage.what += &format!(
                ", yet a good record follows at byte {}",
                block_offset + good as u64
            );
            return Ok(strange);
        }
        if filled < BLOCK_BYTES {
            return Ok(None);
        }
        block_offset += BLOCK_BYTES as u64;
    }
}

/// What following the headers of one block came to.
#[derive(Debug, PartialEq, Eq)]
enum Walk {
    /// Its end, or a record that RocksDB judges itself.
    Whole,
    /// A header that no crash leaves.
    Damaged { position: usize, what: String },
    /// A header that a crash may leave, as long as nothing good comes after it.
    Strange { position: usize, what: String },
}

fn walk(block: &[u8], checksums: bool) -> Walk {
    let mut position = 0;
    // Fewer bytes than a header are padding, or a torn header.
    while let Some(header) = Header::parse(&block[position..]) {
        let rest = &block[position..];
        if header.is_recycled() {
            let what = format!(
                "record type {} belongs to recycled log files, which are not in use",
                header.kind
            );
            return Walk::Damaged { position, what };
        }
        if header.kind == 0 && header.length == 0 {
            let what = "the header is empty".to_owned();
            return Walk::Strange { position, what };
        }
        let Some(record) = rest.get(..HEADER_BYTES + header.length) else {
            if header.matches(&rest[HEADER_BYTES - 1..]) {
                let what = "the length of the last record is wrong".to_owned();
                return Walk::Damaged { position, what };
            }
            let what = format!(
                "the header says {} bytes, {} are there",
                header.length,
                rest.len() - HEADER_BYTES
            );
            return Walk::Strange { position, what };
        };
        if checksums && !header.matches(&record[HEADER_BYTES - 1..]) {
            let what = "the checksum of the record does not match".to_owned();
            return Walk::Damaged { position, what };
        }
        position += record.len();
    }
    Walk::Whole
}

/// The position of the first record at or behind `from` whose checksum matches.
fn find_record(block: &[u8], from: usize) -> Option<usize> {
    (from..block.len()).find(|&position| {
        let rest = &block[position..];
        Header::parse(rest).is_some_and(|header| {
            header.is_plain()
                && rest
                    .get(HEADER_BYTES - 1..HEADER_BYTES + header.length)
                    .is_some_and(|checked| header.matches(checked))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{super::wal_format::record, *};

    /// Two records in one block.
    fn log() -> Vec<u8> {
        [record(1, &[3; 100]), record(1, &[1; 50])].concat()
    }

    fn damage(bytes: &[u8]) -> Option<u64> {
        scan(&mut &bytes[..], false)
            .expect("a slice can be read")
            .map(|damage| damage.offset)
    }

    #[test]
    fn a_good_log_and_every_torn_one_pass() {
        let log = log();
        for end in 0..=log.len() {
            assert_eq!(damage(&log[..end]), None, "cut at {end}");
        }
        // Torn in the second of two blocks.
        let mut long = record(2, &vec![9; BLOCK_BYTES - HEADER_BYTES]);
        long.extend(record(4, &[8; 20]));
        assert_eq!(damage(&long), None);
        assert_eq!(damage(&long[..long.len() - 1]), None);
        // Space that was reserved and never written.
        let mut zeros = log;
        zeros.extend(vec![0; 2 * BLOCK_BYTES]);
        assert_eq!(damage(&zeros), None);
    }

    #[test]
    fn a_wrong_length_is_damage_also_in_the_last_record() {
        let mut bytes = log();
        bytes[5] ^= 0x40;
        assert_eq!(damage(&bytes), Some(0));
        let mut bytes = log();
        bytes[107 + 5] ^= 0x40;
        assert_eq!(damage(&bytes), Some(107));
    }

    #[test]
    fn an_emptied_header_before_a_good_record_is_damage() {
        let mut bytes = log();
        bytes[..HEADER_BYTES].fill(0);
        assert_eq!(damage(&bytes), Some(0));
        // The good record may also be in a later block.
        let mut bytes = record(1, &[3; 100]);
        bytes.resize(BLOCK_BYTES, 0);
        bytes.extend(record(1, &[1; 50]));
        assert_eq!(damage(&bytes), Some(107));
    }

    #[test]
    fn a_recycled_type_is_damage() {
        for kind in [5, 8, 11, 131] {
            let mut bytes = log();
            bytes[107 + 6] = kind;
            assert_eq!(damage(&bytes), Some(107), "type {kind}");
        }
    }

    #[test]
    fn with_checksums_every_flipped_bit_is_found() {
        let log = log();
        for position in 0..log.len() {
            for bit in 0..8 {
                let mut bytes = log.clone();
                bytes[position] ^= 1 << bit;
                let found = scan(&mut &bytes[..], true).expect("a slice can be read");
                let expected = if position < 107 { 0 } else { 107 };
                assert_eq!(
                    found.map(|damage| damage.offset),
                    Some(expected),
                    "bit {bit} of byte {position}"
                );
            }
        }
    }
}
