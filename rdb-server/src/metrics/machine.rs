//! What is read off the engine, the clock, the connections and the process when somebody scrapes.
//!
//! Owns the names of these numbers. Counts nothing itself. What the system does not say is absent.

use super::regions::{gauges, number, seconds};
use crate::host::Process;
use crate::logging;
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::room::kept_bytes;
use crate::transport::grpc::{Kind, Places};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;
use rdb_storage::EngineStats;
use std::fmt;
use std::sync::{Arc, Weak};

/// What a store has beside its regions.
pub(super) struct Machine {
    manager: Weak<PeerManager>,
    places: Arc<Places>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machine")
    }
}

/// Name, what it is, and the number, if there is one.
type Row = (&'static str, &'static str, Option<u64>);

impl Machine {
    pub(super) fn new(manager: Weak<PeerManager>, places: Arc<Places>) -> Machine {
        Machine { manager, places }
    }
}

impl Collector for Machine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(manager) = self.manager.upgrade() else {
            return Ok(());
        };
        of_store(&mut encoder, &manager)?;
        let kinds = [
            ("client", Kind::Client),
            ("probation", Kind::Probation),
            ("store", Kind::Store),
        ];
        gauges(
            &mut encoder,
            "connections",
            "Open connections to the client port; on probation is who found no client's place and may be a store",
            kinds.into_iter().map(|(name, kind)| {
                let open = self.places.open(kind) as u64;
                (vec![("kind", name.to_owned())], number(open))
            }),
        )?;
        let process = Process::now();
        // Looked at once: it reads the directory of the database.
        let engine = manager.context().engine.stats();
        of_clock(&mut encoder, &manager)?;
        of_sizes(&mut encoder, &manager, &engine, &process)?;
        of_counters(&mut encoder, &manager, &engine, &self.places, &process)
    }
}

fn of_store(encoder: &mut DescriptorEncoder<'_>, manager: &Arc<PeerManager>) -> fmt::Result {
    let info = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    let help = "The build that runs";
    info.encode(encoder.encode_descriptor("build", help, None, info.metric_type())?)?;
    let uptime = std::iter::once((Vec::new(), manager.uptime()));
    seconds(encoder, "uptime", "For how long this store has run", uptime)?;
    let tables = Namespaces::new(manager.clone()).tables();
    let others = tables
        .stores
        .keys()
        .filter(|store| **store != manager.context().me);
    seconds(
        encoder,
        "store_contact_age",
        "How long ago this store heard of another one; of one that it never heard of, how long it has run itself",
        others.map(|store| {
            let labels = vec![("store", store.get().to_string())];
            (labels, manager.contact_age(*store))
        }),
    )
}

fn of_clock(encoder: &mut DescriptorEncoder<'_>, manager: &PeerManager) -> fmt::Result {
    let clock = &manager.context().clock;
    let most = manager.context().config.load().consistency.max_clock_skew;
    gauges(
        encoder,
        "clock_off",
        "1 while a majority of the stores is against this store's clock",
        std::iter::once((Vec::new(), i64::from(clock.off().is_some()))),
    )?;
    gauges(
        encoder,
        "clock_skew_ms",
        "How far this store's clock is ahead of the middle of those read lately; absent: none was",
        clock.skew().map(|skew| (Vec::new(), skew.0)).into_iter(),
    )?;
    gauges(
        encoder,
        "clock_max_skew_ms",
        "How far a store's clock may be from the others', as max_clock_skew says",
        std::iter::once((Vec::new(), number(most.as_millis() as u64))),
    )
}

fn of_sizes(
    encoder: &mut DescriptorEncoder<'_>,
    manager: &PeerManager,
    engine: &EngineStats,
    process: &Process,
) -> fmt::Result {
    let committer = manager.context().committer.stats();
    let (context, total) = (manager.context(), engine.total_disk_bytes);
    let rows: [Row; 16] = [
        (
            "storage_disk_bytes",
            "Bytes of the database on disk",
            Some(engine.disk_bytes),
        ),
        (
            "storage_free_bytes",
            "Bytes that can still be written to the file system of the data directory",
            engine.free_disk_bytes,
        ),
        (
            "storage_total_bytes",
            "Bytes of the file system of the data directory",
            engine.total_disk_bytes,
        ),
        (
            "storage_reserve_bytes",
            "With less room than this on its disk the store takes no more data",
            total.map(|total| kept_bytes(context.reserve_bytes, total)),
        ),
        (
            "storage_reserve_held_bytes",
            "Bytes that the reserve file holds, to be given up when the disk is full",
            total.map(|_| context.reserve.held_bytes()),
        ),
        (
            "storage_room_level",
            "0: there is room. 1: the disk is full, no data is taken. 2: half of the reserve is used, and nothing is taken of stores that still take data",
            Some(u64::from(context.rooms.own().to_wire())),
        ),
        (
            "storage_memtable_bytes",
            "Bytes of writes held in memory",
            Some(engine.memtable_bytes),
        ),
        (
            "storage_cache_bytes",
            "Bytes of the block cache in use",
            Some(engine.cache_bytes),
        ),
        (
            "storage_table_reader_bytes",
            "Bytes of indexes and filters held outside the block cache",
            Some(engine.table_reader_bytes),
        ),
        (
            "storage_queued_bytes",
            "Bytes of batches that wait for the committer",
            Some(committer.queued_bytes),
        ),
        (
            "storage_pending_compaction_bytes",
            "Bytes that compaction has still to rewrite",
            Some(engine.pending_compaction_bytes),
        ),
        (
            "process_resident_memory_bytes",
            "Memory that the process holds",
            process.resident_bytes,
        ),
        (
            "process_anonymous_memory_bytes",
            "Of it, what is no file's",
            process.anonymous_bytes,
        ),
        (
            "process_open_files",
            "Files and connections that are open",
            process.open_files,
        ),
        (
            "process_max_files",
            "Files and connections that may be open; absent: there is no limit",
            process.max_files,
        ),
        ("process_threads", "Threads of the process", process.threads),
    ];
    for (name, help, value) in rows {
        let value = value.map(|value| (Vec::new(), number(value)));
        gauges(encoder, name, help, value.into_iter())?;
    }
    Ok(())
}

fn of_counters(
    encoder: &mut DescriptorEncoder<'_>,
    manager: &PeerManager,
    engine: &EngineStats,
    places: &Places,
    process: &Process,
) -> fmt::Result {
    let committer = manager.context().committer.stats();
    let rows: [(&str, &str, u64); 7] = [
        (
            "log_dropped_lines",
            "Lines of the log that were dropped, because whoever reads standard error did not take them",
            logging::dropped_lines(),
        ),
        (
            "connections_refused",
            "Connections closed because clients held all that limits.max_connections allows",
            places.refused(),
        ),
        (
            "storage_background_errors",
            "Errors of the engine's background work; any means that the disk is not sound",
            engine.background_errors,
        ),
        (
            "storage_written_bytes",
            "Bytes of batches written",
            engine.written_bytes,
        ),
        (
            "storage_syncs",
            "Syncs of the write-ahead log",
            engine.syncs,
        ),
        (
            "storage_commit_submissions",
            "Batches submitted to the committer",
            committer.submissions,
        ),
        (
            "storage_commit_groups",
            "Groups that the committer wrote; batches per group is how well a sync is shared",
            committer.groups,
        ),
    ];
    for (name, help, value) in rows {
        let counter = ConstCounter::new(value);
        let descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
        counter.encode(descriptor)?;
    }
    if let Some(cpu) = process.cpu_seconds {
        let counter = ConstCounter::new(cpu);
        let (name, help) = ("process_cpu", "Processor time of all threads together");
        let descriptor =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), counter.metric_type())?;
        counter.encode(descriptor)?;
    }
    Ok(())
}
