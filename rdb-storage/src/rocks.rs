//! The engine of production: one RocksDB, a column family for each [`Family`].
//!
//! Owns opening it, and the translation of batches and numbers. Reading is in `view`; the
//! settings are in [`options`], with their reasons; the check of the write-ahead log that
//! RocksDB's own recovery leaves out is in [`wal_check`], the one that it gets wrong after a full
//! disk in [`wal_note`]; what keeps it from crashing a process that ends is in [`process_exit`].
//! Does not know what is stored.
//!
//! # Invariants
//!
//! - A write goes to the log in the page cache and to memory, never to the disk; `sync` alone
//!   does that, for everything written before it.
//! - Nothing is begun that needs a new log file without room for one: RocksDB would take no write any more
//!   before it is opened again.
//! - A directory that has lost its `CURRENT` file is damaged, not new.

pub mod options;
mod process_exit;
mod view;
pub mod wal_check;
mod wal_format;
mod wal_note;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DB, ReadOptions, properties};

pub use self::options::RocksOptions;
use self::{
    process_exit::{ClosedBeforeTheEnd, before_the_end},
    view::RocksSnapshot,
};
use crate::{
    Engine, EngineStats, Family, KeyRange, Op, Space, StorageError, View, WriteBatch, engine::Scan,
};

/// RocksDB behind the [`Engine`] contract.
pub struct RocksEngine {
    database: Arc<Database>,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
}

/// What an engine and its snapshots share; the database closes when the last of them goes.
struct Database {
    db: ClosedBeforeTheEnd<DB>,
    path: PathBuf,
    spare_disk_bytes: u64,
    /// Shared by all families; kept to ask for its usage.
    cache: rocksdb::Cache,
}

impl RocksEngine {
    /// Opens the database in `path`, or creates it if the directory is empty or missing (its
    /// parent has to exist).
    ///
    /// # Errors
    /// [`StorageError::Corruption`]: its files do not fit together, or the write-ahead log is
    /// damaged before its end. [`StorageError::Locked`]: it is open elsewhere. Otherwise the
    /// operating system refused something. [`StorageError::Closed`]: the process is ending.
    pub fn open(path: &Path, options: RocksOptions) -> Result<Self, StorageError> {
        before_the_end(|| Self::open_now(path, options)).unwrap_or(Err(StorageError::Closed))
    }

    fn open_now(path: &Path, options: RocksOptions) -> Result<Self, StorageError> {
        if !path.join("CURRENT").exists() {
            refuse_remains(path)?;
        }
        wal_check::check_directory(path)?;
        let opening =
            |error: &rocksdb::Error| StorageError::from_rocks("opening the database", path, error);
        let spare_disk_bytes = options.spare_disk_bytes;
        let settings = options::Settings::new(options).map_err(|error| opening(&error))?;
        let open = || {
            let families = Family::ALL
                .map(|family| ColumnFamilyDescriptor::new(family.name(), settings.family(family)));
            let unused = ColumnFamilyDescriptor::new(
                rocksdb::DEFAULT_COLUMN_FAMILY_NAME,
                options::Settings::unused_family(),
            );
            let families = families.into_iter().chain([unused]);
            DB::open_cf_descriptors(&settings.database, path, families)
                .map_err(|error| opening(&error))
        };
        let db = match open() {
            Err(error) if error.is_corruption() => match wal_note::forget_wrong_length(path)? {
                true => open()?,
                // RocksDB says what is wrong with its log, but not where.
                false => return Err(wal_check::locate_damage(path)?.unwrap_or(error)),
            },
            opened => opened?,
        };
        Ok(Self {
            database: Arc::new(Database {
                db: ClosedBeforeTheEnd::new(db),
                path: path.to_owned(),
                spare_disk_bytes,
                cache: settings.cache,
            }),
            writes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        })
    }

    /// Moves everything from memory and log into sorted files: for tests and for measuring.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub fn flush(&self) -> Result<(), StorageError> {
        Family::ALL
            .into_iter()
            .try_for_each(|family| self.flush_family(family))
    }

    fn property(&self, family: Family, name: &rocksdb::properties::PropName) -> u64 {
        let database = &self.database;
        let value = database
            .handle(family)
            .ok()
            .and_then(|handle| database.db.property_int_value_cf(handle, name).ok());
        value.flatten().unwrap_or(0)
    }

    /// [`RocksEngine::flush`] for one family.
    ///
    /// # Errors
    /// As [`Engine::sync`].
    pub fn flush_family(&self, family: Family) -> Result<(), StorageError> {
        let handle = self.database.handle(family)?;
        self.database
            .db
            .flush_cf(handle)
            .map_err(|error| self.database.error("flushing", &error))
    }
}

/// RocksDB takes a directory without `CURRENT` for a new one, even next to the data that
/// belonged to it. That would be a silent loss of everything.
fn refuse_remains(path: &Path) -> Result<(), StorageError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StorageError::from_io("listing", path, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| StorageError::from_io("listing", path, &error))?;
        let file = PathBuf::from(entry.file_name());
        if file
            .extension()
            .is_some_and(|extension| extension == "sst" || extension == "log")
        {
            return Err(StorageError::corruption(
                path.display(),
                format!("it holds {} but its CURRENT file is gone", file.display()),
            ));
        }
    }
    Ok(())
}

impl Database {
    fn handle(&self, family: Family) -> Result<&ColumnFamily, StorageError> {
        // Opening would have failed without it.
        self.db
            .cf_handle(family.name())
            .ok_or_else(|| StorageError::Internal {
                doing: "looking up a family",
                detail: family.name().into(),
            })
    }

    /// Whether there is room for so much, and some to spare.
    fn has_room_for(&self, doing: &'static str, bytes: usize) -> Result<(), StorageError> {
        if self.spare_disk_bytes == 0 {
            return Ok(());
        }
        let needed = self.spare_disk_bytes.saturating_add(bytes as u64);
        match Space::of(&self.path) {
            Some(space) if space.free_bytes < needed => Err(StorageError::NoSpace {
                doing,
                detail: format!(
                    "{}: {} bytes are free, and {needed} are needed",
                    self.path.display(),
                    space.free_bytes
                )
                .into(),
            }),
            _ => Ok(()),
        }
    }

    fn error(&self, doing: &'static str, error: &rocksdb::Error) -> StorageError {
        StorageError::from_rocks(doing, &self.path, error)
    }
}

impl View for RocksEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let handle = self.database.handle(family)?;
        match self.database.db.get_pinned_cf(handle, key) {
            // One copy, out of the block cache that a value must not keep alive.
            Ok(found) => Ok(found.map(|value| Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.database.error("reading a key", &error)),
        }
    }

    fn multi_get(
        &self,
        family: Family,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.database
            .multi_get(family, keys, &ReadOptions::default())
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        self.database
            .scan(family, range, reverse, ReadOptions::default())
    }
}

impl Engine for RocksEngine {
    fn write(&self, batch: &WriteBatch) -> Result<(), StorageError> {
        self.database
            .has_room_for("writing a batch", batch.size_bytes())?;
        let mut rocks = rocksdb::WriteBatch::with_capacity_bytes(batch.size_bytes());
        // The handles of a batch's operations are nearly always that of the one before.
        let mut last: Option<(Family, &ColumnFamily)> = None;
        for op in batch.ops() {
            let (Op::Put { family, .. }
            | Op::Delete { family, .. }
            | Op::DeleteRange { family, .. }) = op;
            let handle = match last {
                Some((last_family, handle)) if last_family == *family => handle,
                _ => self.database.handle(*family)?,
            };
            last = Some((*family, handle));
            match op {
                Op::Put { key, value, .. } => rocks.put_cf(handle, key, value),
                Op::Delete { key, .. } => rocks.delete_cf(handle, key),
                Op::DeleteRange { start, end, .. } => rocks.delete_range_cf(handle, start, end),
            }
        }
        // `DB::write` uses the default options: into the log, without a sync.
        self.database
            .db
            .write(rocks)
            .map_err(|error| self.database.error("writing a batch", &error))?;
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes
            .fetch_add(batch.size_bytes() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        match self.database.db.flush_wal(true) {
            Ok(()) => Ok(()),
            // Whatever the reason, a failed sync is no refusal: a full disk here means that
            // written batches did not arrive.
            Err(error) => Err(StorageError::Io {
                doing: "syncing the write-ahead log",
                detail: error.to_string().into(),
            }),
        }
    }

    fn snapshot(&self) -> Arc<dyn View> {
        Arc::new(RocksSnapshot::new(Arc::clone(&self.database)))
    }

    fn reclaim(&self, stop: &dyn Fn() -> bool) -> Result<(), StorageError> {
        // A deletion takes its room back once it has met what it deletes, in sorted files: it has to get
        // there first, and few of them would take for ever to fill a buffer.
        for family in Family::ALL {
            if stop() {
                return Ok(());
            }
            let memory = self.property(family, properties::SIZE_ALL_MEM_TABLES);
            self.database.has_room_for("flushing", memory as usize)?;
            self.flush_family(family)?;
        }
        let database = &self.database;
        let files = database.db.live_files();
        let mut files = files.map_err(|error| database.error("listing files", &error))?;
        // Only these, file by file: all data would take hours, and room for more than one file and those below it.
        files.retain(|file| file.num_deletions > 0);
        // Logs first: what is in them was dropped in long ranges, so much comes back for little work.
        let is_log = |name: &str| {
            [Family::RaftLog, Family::OriginLog]
                .iter()
                .any(|family| family.name() == name)
        };
        files.sort_by_key(|file| {
            let later = !is_log(&file.column_family_name);
            (later, std::cmp::Reverse(file.num_deletions))
        });
        for file in files {
            if stop() {
                return Ok(());
            }
            // None: of RocksDB's own family, which nothing is in.
            if let Some(handle) = database.db.cf_handle(&file.column_family_name) {
                let (start, end) = (file.start_key, file.end_key);
                database.db.compact_range_cf(handle, start, end);
            }
        }
        Ok(())
    }

    fn stats(&self) -> EngineStats {
        let database = &self.database;
        let property = |family, name| self.property(family, name);
        let sum = |name| {
            Family::ALL
                .iter()
                .map(|family| property(*family, name))
                .sum()
        };
        let space = Space::of(&database.path);
        EngineStats {
            disk_bytes: disk_bytes(&database.path),
            free_disk_bytes: space.map(|space| space.free_bytes),
            total_disk_bytes: space.map(|space| space.total_bytes),
            memtable_bytes: sum(properties::SIZE_ALL_MEM_TABLES),
            cache_bytes: database.cache.get_usage() as u64,
            table_reader_bytes: sum(properties::ESTIMATE_TABLE_READERS_MEM),
            estimated_keys: Family::ALL
                .map(|family| property(family, properties::ESTIMATE_NUM_KEYS)),
            pending_compaction_bytes: sum(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            background_errors: property(Family::Data, properties::BACKGROUND_ERRORS),
            writes: self.writes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
        }
    }
}

/// The files of a database. They come and go while this looks, so one that is gone counts as
/// nothing.
fn disk_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return 0;
    };
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}
