//! How RocksDB is set up, and why.
//!
//! Owns every setting. Does not know the engine that is opened with them.
//!
//! The aim is a small process: an idle store takes some ten MiB, and the two budgets of
//! [`RocksOptions`] bound what data can add to that.

use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel, Options,
    WriteBufferManager,
};

use crate::Family;

/// Memory budgets of a [`RocksEngine`](crate::RocksEngine).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Blocks of sorted files that are kept in memory, with their indexes and filters, of all
    /// families together.
    pub block_cache_bytes: usize,
    /// What is written but not yet in sorted files, of all families together.
    pub write_buffer_bytes: usize,
    /// With less than this left on the disk, beside what is to be written, a write is refused before RocksDB sees
    /// it. A new log file that finds no room is an error from which RocksDB does not go on by itself; of most
    /// others it does, after seconds. 0: RocksDB finds out.
    pub spare_disk_bytes: u64,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 32 << 20,
            write_buffer_bytes: 32 << 20,
            spare_disk_bytes: 1 << 20,
        }
    }
}

/// Log files of RocksDB itself (`LOG`), in bytes each and in number.
const INFO_LOG_BYTES: usize = 1 << 20;
const INFO_LOGS: usize = 3;

/// File handles of sorted files. Each open file also holds its index reader in memory.
const MAX_OPEN_FILES: i32 = 512;

/// The write-ahead log is at least this long before families that are seldom written are
/// flushed just to let go of it. It bounds both disk use and the time to recover.
const MIN_TOTAL_WAL_BYTES: u64 = 64 << 20;

/// The smallest write buffer that makes sense.
const MIN_WRITE_BUFFER_BYTES: usize = 1 << 20;

/// Everything that opening needs; keeps the cache that the options share.
pub(super) struct Settings {
    pub(super) database: Options,
    pub(super) cache: Cache,
    write_buffer_bytes: usize,
}

impl Settings {
    pub(super) fn new(options: RocksOptions) -> Result<Self, rocksdb::Error> {
        // Each log file records where its predecessor ended, so that recovery notices a tail
        // that a power loss took from one file while a later one survived: skipping such a
        // hole would apply writes without those before them. There is no setter for it.
        let mut db = Options::default().get_options_from_string("track_and_verify_wals=true")?;
        db.create_if_missing(true);
        db.create_missing_column_families(true);
        db.set_paranoid_checks(true);
        // An incomplete last record is what a crash leaves; everything else stops the open. The
        // default mode would cut the log at the first damage and lose what follows.
        db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        // Two cores: one flush and one compaction at a time leave room for requests.
        db.set_max_background_jobs(2);
        db.set_max_open_files(MAX_OPEN_FILES);
        db.set_max_file_opening_threads(1);
        // One thread writes (the committer), so a group of writers never forms, and spinning
        // for one would take a core from somebody who has work.
        db.set_allow_concurrent_memtable_write(false);
        db.set_enable_write_thread_adaptive_yield(false);
        // Spread the write-back of large files, or a sync of the log waits behind them.
        db.set_bytes_per_sync(1 << 20);
        db.set_max_total_wal_size(MIN_TOTAL_WAL_BYTES.max(2 * options.write_buffer_bytes as u64));
        db.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(
            options.write_buffer_bytes,
            false,
        ));
        db.set_log_level(LogLevel::Warn);
        db.set_keep_log_file_num(INFO_LOGS);
        db.set_max_log_file_size(INFO_LOG_BYTES);
        db.set_max_manifest_file_size(4 << 20);
        // The server has metrics of its own; RocksDB's history of its statistics is memory.
        db.set_stats_dump_period_sec(0);
        db.set_stats_persist_period_sec(0);
        Ok(Self {
            database: db,
            cache: Cache::new_lru_cache(options.block_cache_bytes),
            write_buffer_bytes: options.write_buffer_bytes,
        })
    }

    /// For the family that every RocksDB has, and that is not used here.
    pub(super) fn unused_family() -> Options {
        let mut cf = Options::default();
        cf.set_write_buffer_size(MIN_WRITE_BUFFER_BYTES);
        cf
    }

    pub(super) fn family(&self, family: Family) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        // Inside the budget, and not thrown out by a scan: without its filter and index every
        // block of a file is out of reach.
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);

        let mut cf = Options::default();
        // Two buffers may exist for a moment (one is flushed while the other fills), and the
        // manager above starts a flush before all families together pass the budget.
        //
        // After a full disk RocksDB goes on by itself once as much is free as the largest of the families'
        // buffers may hold.
        let buffer_bytes = match family {
            Family::Conflicts | Family::Expiry => self.write_buffer_bytes / 8,
            _ => self.write_buffer_bytes / 2,
        };
        cf.set_write_buffer_size(buffer_bytes.max(MIN_WRITE_BUFFER_BYTES));
        cf.set_max_write_buffer_number(2);
        cf.set_level_compaction_dynamic_level_bytes(true);
        cf.set_compression_type(DBCompressionType::Lz4);
        // Files are as large as what is flushed into them, and a level that is merged with them holds some.
        let file_bytes = (self.write_buffer_bytes / 2).max(MIN_WRITE_BUFFER_BYTES) as u64;
        cf.set_target_file_size_base(file_bytes);
        cf.set_max_bytes_for_level_base(4 * file_bytes);
        match family {
            // Point reads, also of keys that do not exist (create if absent, a request id seen
            // for the first time): a filter answers those from memory.
            Family::Data | Family::RequestIds => {
                table.set_bloom_filter(10.0, false);
                table.set_whole_key_filtering(true);
                table.set_optimize_filters_for_memory(true);
            }
            // Appended at the end, read once in sequence, removed at the front soon after: no
            // filter helps, and compressing what dies within minutes is a waste of a core.
            // Larger blocks, because reading goes on with the next entry.
            Family::RaftLog => {
                cf.set_compression_type(DBCompressionType::None);
                table.set_block_size(16 << 10);
            }
            // Read in sequence as well, but kept for longer.
            Family::OriginLog => table.set_block_size(16 << 10),
            // Small and rewritten again and again. Its memory is flushed rarely, so one file
            // replaces the last.
            Family::RaftState | Family::Region | Family::Conflicts | Family::Expiry => {}
        }
        cf.set_block_based_table_factory(&table);
        cf
    }
}
