//! What the demo shows: plain lines with the time, and on a terminal what it is doing now.
//!
//! Owns stdout (lines) and the bar on stderr. The bar hides itself where stderr is no terminal, and
//! the lines are the same with and without it.

use crate::exit::Error;
use crate::output;
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::time::{Duration, Instant};

pub(super) struct Screen {
    started: Instant,
    bar: ProgressBar,
}

impl Screen {
    pub(super) fn new() -> Screen {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Screen {
            started: Instant::now(),
            bar,
        }
    }

    /// A line, with the time since the start before it.
    pub(super) fn say(&self, text: impl Display) -> Result<(), Error> {
        let seconds = self.started.elapsed().as_secs_f64();
        self.plain(&format!("[{seconds:5.1} s] {text}"))
    }

    /// A line as it is.
    pub(super) fn plain(&self, text: &str) -> Result<(), Error> {
        self.bar.suspend(|| output::line(text))
    }

    /// What is going on until the next line.
    pub(super) fn doing(&self, text: impl Into<String>) {
        self.bar.set_style(ProgressStyle::default_spinner());
        self.bar.set_message(text.into());
    }

    /// The same where it is known how much there is to do; count with the bar that this returns.
    pub(super) fn counting(&self, what: &'static str, total: u64) -> ProgressBar {
        // The template is a constant that the library accepts; the default stands in for it otherwise.
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {per_sec}");
        self.bar
            .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.reset();
        self.bar.set_length(total);
        self.bar.set_message(what);
        self.bar.clone()
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A number for people: 12,345.
pub(super) fn grouped(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time for people: 850 us, 12 ms, 2.1 s.
pub(super) fn spent(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..1_000 => format!("{micros} us"),
        micros @ 1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        micros @ 10_000..1_000_000 => format!("{:.0} ms", micros as f64 / 1e3),
        micros => format!("{:.1} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_for_people() {
        for (number, text) in [
            (0u64, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
        for (micros, text) in [
            (850, "850 us"),
            (1_250, "1.2 ms"),
            (412_300, "412 ms"),
            (2_149_000, "2.1 s"),
        ] {
            assert_eq!(spent(Duration::from_micros(micros)), text);
        }
    }
}
