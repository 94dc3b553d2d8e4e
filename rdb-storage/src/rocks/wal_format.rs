//! How RocksDB lays out a write-ahead log.
//!
//! Owns the names of the files and the header of a fragment. Changes nothing. Does not know which
//! files are good: that is [`wal_check`](super::wal_check)'s, and what the fragments contain:
//! [`wal_note`](super::wal_note)'s.
//!
//! ```text
//! block of 32 KiB   [crc 4][length 2][type 1][payload]  [crc][length][type][payload] ...
//! ```

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::StorageError;

/// Records do not cross the border of a block; longer ones are split into fragments.
pub(super) const BLOCK_BYTES: usize = 32 << 10;
/// Checksum, length, type.
pub(super) const HEADER_BYTES: usize = 7;

/// The log files, oldest first.
pub(super) fn log_files(path: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let failed = |error: io::Error| StorageError::from_io("listing the log files", path, &error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "log") {
            files.push(file);
        }
    }
    // Their names are numbers with leading zeros.
    files.sort();
    Ok(files)
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What stands before each fragment.
pub(super) struct Header {
    checksum: u32,
    /// Of the payload, in bytes.
    pub(super) length: usize,
    pub(super) kind: u8,
}

impl Header {
    /// None if `bytes` are fewer than a header.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let &[c0, c1, c2, c3, l0, l1, kind] = bytes.first_chunk::<HEADER_BYTES>()?;
        Some(Self {
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
            length: usize::from(u16::from_le_bytes([l0, l1])),
            kind,
        })
    }

    /// Full, first, middle, last; compression, timestamp size and predecessor.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.kind, 1..=4 | 9 | 10 | 130)
    }

    /// Types of log files that are written over again, which FlareDB's are not.
    pub(super) fn is_recycled(&self) -> bool {
        matches!(self.kind, 5..=8 | 11 | 131)
    }

    /// Whether the checksum fits `checked`, which is type and payload. RocksDB rotates and
    /// shifts the value, so that data that contains checksums does not confuse them.
    pub(super) fn matches(&self, checked: &[u8]) -> bool {
        crc32c(checked).rotate_right(15).wrapping_add(0xa282_ead8) == self.checksum
    }
}

/// CRC-32C (Castagnoli) a byte at a time. It runs over a block behind a strange header, and over whole
/// files only after RocksDB has refused them, so a dependency for a fast one is not worth having.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = (value >> 1) ^ (0x82f6_3b78 * (value & 1));
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| {
        TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
    })
}

/// A fragment as RocksDB writes it.
#[cfg(test)]
pub(super) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut checked = vec![kind];
    checked.extend(payload);
    let checksum = crc32c(&checked).rotate_right(15).wrapping_add(0xa282_ead8);
    let mut bytes = checksum.to_le_bytes().to_vec();
    bytes.extend((payload.len() as u16).to_le_bytes());
    bytes.extend(checked);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_its_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
