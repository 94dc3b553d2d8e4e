//! The way from a line of the log to standard error, which may be a pipe that nobody reads.
//!
//! Owns the queue of lines, the thread that writes them (`tracing-appender`'s), what was dropped, and the last words of
//! a thread or of the process. Does not know which lines there are, nor their format, but for its own.
//!
//! Invariants: whoever logs never waits for who reads the log; at most [`WAITING_LINES`] wait, what comes beyond them is
//! dropped and counted, and the log says so once it is read again; ending the process takes [`END`] at most for its log.

use crate::config::LogFormat;
use parking_lot::Mutex;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Lines that wait for who reads them: seconds of a store that tells everything, and a few MiB.
const WAITING_LINES: usize = 16_384;

/// How long a process that ends waits until its log is read. The guard of the queue waits 1.1 s itself.
const END: Duration = Duration::from_secs(2);

/// How long a thread that panics waits until its words are out.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Last words of threads that may wait for a reader: each holds a thread of its own.
const WAITING_WORDS: usize = 8;

/// The way out of this process: there is one standard error.
pub(super) struct Outlet {
    lines: NonBlocking,
    dropped: ErrorCounter,
    format: LogFormat,
    /// Writes what waits when it is dropped; none once the log has ended.
    guard: Mutex<Option<WorkerGuard>>,
    /// Last words of threads that wait for a reader.
    waiting: Arc<AtomicUsize>,
}

/// Standard error, as the thread that writes sees it.
struct Drain {
    out: io::Stderr,
    dropped: Arc<OnceLock<ErrorCounter>>,
    told: usize,
}

impl Write for Drain {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.out.write(line)
    }

    /// A line in one piece, whoever else writes to standard error.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.out.write_all(line)
    }

    /// Comes when no line waits any more: behind the last one before the gap.
    fn flush(&mut self) -> io::Result<()> {
        let dropped = self.dropped.get().map_or(0, ErrorCounter::dropped_lines);
        let new = dropped - self.told;
        if new > 0 {
            self.told = dropped;
            // Comes back here by the queue, which has room.
            tracing::warn!(
                lines = new,
                since_start = dropped,
                "lines of the log were dropped, because standard error was not read as fast as they came"
            );
        }
        self.out.flush()
    }
}

impl Outlet {
    pub(super) fn open(format: LogFormat) -> Outlet {
        let counter = Arc::new(OnceLock::new());
        let drain = Drain {
            out: io::stderr(),
            dropped: counter.clone(),
            told: 0,
        };
        let (lines, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(WAITING_LINES)
            .lossy(true)
            .thread_name("log")
            .finish(drain);
        let dropped = lines.error_counter();
        // Nothing was logged yet.
        let _ = counter.set(dropped.clone());
        Outlet {
            lines,
            dropped,
            format,
            guard: Mutex::new(Some(guard)),
            waiting: Arc::default(),
        }
    }

    /// Where lines go.
    pub(super) fn lines(&self) -> NonBlocking {
        self.lines.clone()
    }

    /// Lines that were dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }

    /// Writes what waits, and behind it a last word: all of it, unless nobody reads.
    pub(super) fn end(&self, word: Option<&str>) {
        let guard = self.guard.lock().take();
        let word = word.map(|word| self.line(word));
        if guard.is_none() && word.is_none() {
            return;
        }
        aside(END, move || {
            drop(guard);
            if let Some(word) = word {
                // An error means that nobody can be told.
                let _ = io::stderr().write_all(word.as_bytes());
            }
        });
    }

    /// A word that must get out although the queue may be full, past what waits there.
    pub(super) fn at_once(&self, word: &str) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= WAITING_WORDS {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let (word, waiting) = (self.line(word), self.waiting.clone());
        aside(LAST_WORDS, move || {
            let _ = io::stderr().write_all(word.as_bytes());
            waiting.fetch_sub(1, Ordering::AcqRel);
        });
    }

    /// A plain line, or a JSON one where whoever reads the log expects nothing else. At any level: it is the last.
    fn line(&self, word: &str) -> String {
        match self.format {
            LogFormat::Text => format!("{word}\n"),
            LogFormat::Json => {
                let mut now = String::new();
                // An error leaves the time empty.
                let _ = SystemTime.format_time(&mut format::Writer::new(&mut now));
                let line = serde_json::json!({
                    "timestamp": now,
                    "level": "ERROR",
                    "message": word,
                    "target": module_path!(),
                });
                format!("{line}\n")
            }
        }
    }
}

/// Does what may wait for a reader, on a thread of its own, and waits `limit` at most.
fn aside(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("log-end".to_owned());
    let spawned = thread.spawn(move || {
        work();
        // An error means that it took too long, and nobody waits any more.
        let _ = done.send(());
    });
    if spawned.is_ok() {
        // Done, or time is up: the same for who waited.
        let _ = finished.recv_timeout(limit);
    }
}
