//! What happened in a run, as one number.
//!
//! Owns the running hash of every event and, on request, their text. Two runs of one seed have equal
//! hashes, or the simulator has lost hold of something that decides.

use parking_lot::Mutex;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// The events of one run; clones write to the same.
#[derive(Clone)]
pub struct Trace(Arc<Shared>);

struct Shared {
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    print: bool,
    state: Mutex<State>,
}

struct State {
    hash: Xxh3,
    /// The last event: one piece of memory for all of them.
    line: String,
    events: u64,
}

impl Trace {
    /// Nothing happened yet, and it is now 0 by the clock of the runtime. `print`: events go to standard
    /// error as they come.
    pub fn new(print: bool) -> Trace {
        let began = Instant::now();
        Trace::with_clock(print, move || began.elapsed())
    }

    /// As [`Trace::new`]; `clock` says how much simulated time has passed since the beginning.
    pub fn with_clock(print: bool, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Trace {
        Trace(Arc::new(Shared {
            clock: Box::new(clock),
            print,
            state: Mutex::new(State {
                hash: Xxh3::new(),
                line: String::new(),
                events: 0,
            }),
        }))
    }

    /// Simulated time since the beginning.
    pub fn now(&self) -> Duration {
        (self.0.clock)()
    }

    /// Simulated milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        self.now().as_millis() as u64
    }

    /// Something happened now.
    #[allow(
        clippy::print_stderr,
        reason = "printing the events is what was asked for"
    )]
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let now_ms = self.now_ms();
        let mut state = self.0.state.lock();
        let State { hash, line, events } = &mut *state;
        line.clear();
        // Into a string: it does not fail.
        let _ = writeln!(line, "{now_ms:>8} {what}");
        if self.0.print {
            eprint!("{line}");
        }
        hash.update(line.as_bytes());
        *events += 1;
    }

    /// The hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.0.state.lock().hash.digest()
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.0.state.lock().events
    }
}
