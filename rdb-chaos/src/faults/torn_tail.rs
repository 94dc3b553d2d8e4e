//! What power loss leaves behind the last synced record of the write-ahead log: half a record, or zeros
//! (the file had grown, its bytes had not arrived), or garbage.
//!
//! Nothing that was synced is touched: no store can know of a record that is gone without a trace. So the
//! store must start with half a record or zeros, and lose nothing. Garbage it may take for a torn record,
//! or for damage: then it stops with a clear line, until the garbage is gone.

use super::{Fault, Inflicted, Site, Step, clear_end, millis};
use crate::ChaosError;
use crate::cluster::STORES;
use crate::dice::Dice;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    HalfARecord,
    Zeros,
    Garbage,
}

/// See the module.
pub(super) struct TornTail {
    store: usize,
    tail: Tail,
    bytes: u64,
    dice: Dice,
    lasts: Duration,
    /// The file, and how long it was.
    torn: Option<(PathBuf, u64)>,
}

impl TornTail {
    pub(super) fn new(dice: &mut Dice) -> TornTail {
        TornTail {
            store: dice.below(STORES as u64) as usize,
            tail: *dice.one_of(&[Tail::HalfARecord, Tail::Zeros, Tail::Garbage]),
            bytes: dice.between(1, 5000),
            dice: Dice::new(dice.draw()),
            lasts: millis(dice, 500, 3000),
            torn: None,
        }
    }

    /// What is appended to a log that begins like this.
    fn tail(&mut self, log: &[u8]) -> Vec<u8> {
        match self.tail {
            Tail::HalfARecord => half_a_record(log),
            Tail::Zeros => vec![0; self.bytes as usize],
            Tail::Garbage => (0..self.bytes.min(400))
                .map(|_| self.dice.below(256) as u8)
                .collect(),
        }
    }
}

/// A record of RocksDB's log: 4 bytes of checksum, 2 of length, 1 of type, then so many bytes.
const HEADER: usize = 7;
/// None of them crosses the border of a block; the last few bytes of one that hold no header are zeros.
const BLOCK: usize = 32 << 10;

/// What a writer had written of its next record behind this log when it was cut off in the middle: the
/// header of the log's first record, for as much as its block has room for, and half of that. A record
/// that said it were longer than its block is none that a writer writes, and rightly taken for damage.
fn half_a_record(log: &[u8]) -> Vec<u8> {
    let Some((header, rest)) = log.split_at_checked(HEADER) else {
        return Vec::new();
    };
    let left = BLOCK - log.len() % BLOCK;
    let (zeros, room) = if left < HEADER {
        (left, BLOCK)
    } else {
        (0, left)
    };
    let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let length = length.min(room - HEADER).min(rest.len());
    let mut tail = vec![0; zeros];
    if length == 0 {
        // No half of nothing: cut off in the header.
        tail.extend(&header[..HEADER / 2]);
        return tail;
    }
    tail.extend(&header[..4]);
    tail.extend((length as u16).to_le_bytes());
    tail.push(header[6]);
    tail.extend(&rest[..length / 2]);
    tail
}

/// The newest write-ahead log of a store.
fn newest_log(data_dir: &Path) -> Result<PathBuf, ChaosError> {
    let db = data_dir.join("db");
    let entries = fs::read_dir(&db).map_err(|error| ChaosError::because(db.display(), error))?;
    let logs = entries.flatten().map(|entry| entry.path());
    // Numbers of six digits: the order of names is theirs.
    logs.filter(|path| path.extension().is_some_and(|it| it == "log"))
        .max()
        .ok_or_else(|| ChaosError::Harness(format!("{} has no write-ahead log", db.display())))
}

impl Fault for TornTail {
    fn plan(&self) -> String {
        let what = match self.tail {
            Tail::HalfARecord => "half a record".to_owned(),
            Tail::Zeros => format!("{} zeros", self.bytes),
            Tail::Garbage => format!("{} bytes of garbage", self.bytes.min(400)),
        };
        format!(
            "store {} killed, {what} at the end of its write-ahead log",
            self.store + 1
        )
    }

    fn lasts(&self) -> Duration {
        self.lasts
    }

    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted> {
        Box::pin(async move {
            let at = Instant::now();
            site.cluster.kill(&[self.store]);
            let path = newest_log(site.cluster.node(self.store).data_dir())?;
            let cannot = |error| ChaosError::because(path.display(), error);
            let log = fs::read(&path).map_err(cannot)?;
            let tail = self.tail(&log);
            let mut file = File::options().append(true).open(&path).map_err(cannot)?;
            file.write_all(&tail).map_err(cannot)?;
            let story = format!(
                "{} bytes behind the {} of {}",
                tail.len(),
                log.len(),
                path.display()
            );
            self.torn = Some((path, log.len() as u64));
            site.cluster.launch(self.store)?;
            Ok(Inflicted { at, story })
        })
    }

    fn watch<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, String> {
        Box::pin(async move {
            match site.cluster.ready(self.store).await {
                Ok(()) => Ok("it cut the tail off and serves".to_owned()),
                Err(error) if site.cluster.node(self.store).is_running() => Err(error),
                Err(error) => {
                    let log = site.cluster.node(self.store).log_since_start();
                    let clear = !log.contains("panicked at") && !log.trim().is_empty();
                    if self.tail == Tail::Garbage && clear {
                        let said = log.lines().last().unwrap_or_default().trim().to_owned();
                        return Ok(format!(
                            "it takes the garbage for damage and stopped: {said}"
                        ));
                    }
                    Err(error)
                }
            }
        })
    }

    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()> {
        Box::pin(async move {
            if let Some(status) = site.cluster.node_mut(self.store).ended()? {
                clear_end(site.cluster, self.store, status)?;
            }
            if site.cluster.node(self.store).is_running() {
                return Ok(());
            }
            if let Some((path, length)) = self.torn.take() {
                let cut = File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(length));
                cut.map_err(|error| ChaosError::because(path.display(), error))?;
            }
            site.cluster.launch(self.store)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_record_has_its_whole_header() {
        let mut log = vec![1, 2, 3, 4, 10, 0, 1];
        log.extend([7; 10]);
        assert_eq!(half_a_record(&log), &log[..12]);
        assert_eq!(half_a_record(&[]), [0u8; 0]);
    }

    /// A run of `make chaos-short` took a store for broken that refused half a record of 32 KiB, 4 KiB before
    /// the end of a block: no writer leaves that, so no store need take it for torn.
    #[test]
    fn half_a_record_stays_within_its_block_and_says_more_than_is_there() {
        let first = BLOCK - HEADER;
        let mut log = vec![1, 2, 3, 4];
        log.extend((first as u16).to_le_bytes());
        log.push(2);
        log.resize(BLOCK, 7);
        for left in (1..40).chain([100, 4_251, BLOCK - 1, BLOCK]) {
            log.resize(3 * BLOCK - left, 7);
            let mut whole = log.clone();
            whole.extend(half_a_record(&log));
            let begin = if left < HEADER { 3 * BLOCK } else { log.len() };
            let there = whole.len() - begin;
            assert_eq!(
                begin / BLOCK,
                (whole.len() - 1) / BLOCK,
                "{left} bytes left"
            );
            let Some(length) = whole.get(begin + 4..begin + 6) else {
                continue; // cut off in its header
            };
            let says = HEADER + usize::from(u16::from_le_bytes([length[0], length[1]]));
            assert!(
                says > there && says <= BLOCK - begin % BLOCK,
                "{left} bytes left"
            );
        }
    }

    #[test]
    fn the_newest_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest_log(dir.path()).is_err());
        fs::create_dir(dir.path().join("db")).unwrap();
        for name in ["000009.log", "000012.log", "000013.sst", "LOG"] {
            fs::write(dir.path().join("db").join(name), "").unwrap();
        }
        assert!(newest_log(dir.path()).unwrap().ends_with("000012.log"));
    }
}
