//! One bit of one file of a killed store is another when it starts again.
//!
//! It may stop with a clear line (then the bit is put back: there is no other repair yet); refuse reads
//! with CORRUPTION; or serve, because the bit is in nothing that matters. What it serves is judged like
//! everything else: the load goes on at it, and every key that was acknowledged is looked for at it.

use super::{Fault, Inflicted, Site, Step, clear_end, millis};
use crate::ChaosError;
use crate::cluster::STORES;
use crate::dice::Dice;
use crate::load::{LoadOptions, judge::missing};
use crate::registers::FlareDb;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Until a store has ended or serves. The limits of what follows are the runner's.
const SETTLES: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    WriteAheadLog,
    SortedFile,
    Manifest,
    Anywhere,
}

/// See the module.
pub(super) struct FlippedBit {
    store: usize,
    place: Where,
    dice: Dice,
    lasts: Duration,
    flipped: Option<Flipped>,
}

struct Flipped {
    path: PathBuf,
    offset: u64,
    /// What is there now.
    byte: u8,
    bit: u8,
}

impl FlippedBit {
    pub(super) fn new(dice: &mut Dice) -> FlippedBit {
        FlippedBit {
            store: dice.below(STORES as u64) as usize,
            place: *dice.one_of(&[
                Where::WriteAheadLog,
                Where::SortedFile,
                Where::Manifest,
                Where::Anywhere,
            ]),
            dice: Dice::new(dice.draw()),
            lasts: millis(dice, 2000, 5000),
            flipped: None,
        }
    }

    /// Flips a bit of a file that is not empty, of the kind that was drawn if there is one.
    fn flip(&mut self, data_dir: &Path) -> Result<String, ChaosError> {
        let mut files = Vec::new();
        list(data_dir, &mut files);
        files.sort();
        let mut fitting: Vec<_> = files.iter().filter(|path| fits(self.place, path)).collect();
        if fitting.is_empty() {
            fitting = files.iter().collect();
        }
        if fitting.is_empty() {
            let what = format!("{} holds no file", data_dir.display());
            return Err(ChaosError::Harness(what));
        }
        let path = (*self.dice.one_of(&fitting)).clone();
        let cannot = |error| ChaosError::because(path.display(), error);
        let bytes = fs::read(&path).map_err(cannot)?;
        let offset = self.dice.below(bytes.len() as u64);
        let bit = 1 << self.dice.below(8);
        let byte = bytes[offset as usize] ^ bit;
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(cannot)?;
        file.write_all_at(&[byte], offset).map_err(cannot)?;
        let story = format!(
            "bit {bit:#04x} of byte {offset} of {} in {}",
            bytes.len(),
            path.display()
        );
        self.flipped = Some(Flipped {
            path,
            offset,
            byte,
            bit,
        });
        Ok(story)
    }
}

/// Every file below `dir` that is not empty.
fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => list(&entry.path(), files),
            Ok(metadata) if metadata.len() > 0 => files.push(entry.path()),
            _ => {}
        }
    }
}

fn fits(place: Where, path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match place {
        Where::WriteAheadLog => name.ends_with(".log"),
        Where::SortedFile => name.ends_with(".sst"),
        Where::Manifest => name.starts_with("MANIFEST") || name == "CURRENT" || name == "STORE",
        // Not RocksDB's own diary, which nobody reads.
        Where::Anywhere => !name.starts_with("LOG"),
    }
}

impl Flipped {
    /// Puts the bit back, if the byte is still there: the store may have removed the file, or have
    /// written it anew.
    fn put_back(&self) -> std::io::Result<()> {
        let mut now = [0];
        let file = match fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        if file.read_at(&mut now, self.offset)? == 1 && now[0] == self.byte {
            file.write_all_at(&[self.byte ^ self.bit], self.offset)?;
        }
        Ok(())
    }
}

impl Fault for FlippedBit {
    fn plan(&self) -> String {
        let place = match self.place {
            Where::WriteAheadLog => "its write-ahead log",
            Where::SortedFile => "a sorted file",
            Where::Manifest => "MANIFEST, CURRENT or STORE",
            Where::Anywhere => "any file",
        };
        format!("store {} killed, a bit flipped in {place}", self.store + 1)
    }

    fn lasts(&self) -> Duration {
        self.lasts
    }

    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted> {
        Box::pin(async move {
            let at = Instant::now();
            site.cluster.kill(&[self.store]);
            let data_dir = site.cluster.node(self.store).data_dir().to_owned();
            let story = self.flip(&data_dir)?;
            site.cluster.launch(self.store)?;
            Ok(Inflicted { at, story })
        })
    }

    fn watch<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, String> {
        Box::pin(async move {
            let only = site.cluster.node(self.store).addr().to_string();
            let options = LoadOptions {
                timeout: Duration::from_secs(2),
                ..LoadOptions::default()
            };
            let reader = FlareDb::new(vec![only], &options)?;
            let until = Instant::now() + SETTLES;
            loop {
                if let Some(status) = site.cluster.node_mut(self.store).ended()? {
                    let said = clear_end(site.cluster, self.store, status)?;
                    return Ok(format!("it stopped: {said}"));
                }
                let acknowledged = site.load.acknowledged();
                match missing(&acknowledged, &reader).await {
                    Ok(missing) if missing.is_empty() => {
                        return Ok("it serves, and has all that was acknowledged".to_owned());
                    }
                    Ok(missing) => {
                        return Err(ChaosError::Broken(format!(
                            "store {} serves with a flipped bit, and without {missing:?}",
                            self.store + 1
                        )));
                    }
                    Err(why) if why.contains("CORRUPTION") => {
                        return Ok(format!("it refuses: {why}"));
                    }
                    Err(why) if Instant::now() >= until => {
                        return Ok(format!("it does not serve: {why}"));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
    }

    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()> {
        Box::pin(async move {
            // A store that met damage later on may stop, too.
            if let Some(status) = site.cluster.node_mut(self.store).ended()? {
                clear_end(site.cluster, self.store, status)?;
            }
            site.cluster.kill(&[self.store]);
            if let Some(flipped) = self.flipped.take() {
                let back = flipped.put_back();
                back.map_err(|error| ChaosError::because(flipped.path.display(), error))?;
            }
            site.cluster.launch(self.store)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_flipped_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("db")).unwrap();
        let log = dir.path().join("db").join("000004.log");
        fs::write(&log, [7; 100]).unwrap();
        fs::write(dir.path().join("db").join("LOG"), "diary").unwrap();
        for seed in 0..20 {
            let mut fault = FlippedBit::new(&mut Dice::new(seed));
            fault.flip(dir.path()).unwrap();
            let bits: u32 = fs::read(&log)
                .unwrap()
                .iter()
                .map(|byte| (byte ^ 7).count_ones())
                .sum();
            let flipped = fault.flipped.unwrap();
            assert_eq!(bits, u32::from(flipped.path == log));
            flipped.put_back().unwrap();
            assert_eq!(fs::read(&log).unwrap(), [7; 100]);
        }
    }

    #[test]
    fn a_file_that_was_written_anew_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("CURRENT");
        fs::write(&file, [7; 3]).unwrap();
        let mut fault = FlippedBit::new(&mut Dice::new(1));
        fault.flip(dir.path()).unwrap();
        fs::write(&file, [0; 3]).unwrap();
        fault.flipped.as_ref().unwrap().put_back().unwrap();
        assert_eq!(fs::read(&file).unwrap(), [0; 3]);
        fs::remove_file(&file).unwrap();
        fault.flipped.unwrap().put_back().unwrap();
    }
}
