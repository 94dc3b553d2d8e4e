//! Durations and sizes as people write them: `"500ms"`, `"15m"`, `"4MiB"`.
//!
//! Owns: the two little grammars and their inverse. Does not know: keys, ranges, defaults.
//!
//! Invariants: a duration is a whole number of milliseconds; what is shown parses back to the
//! same value; no input overflows or panics.

use std::fmt;
use std::time::Duration;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const SIZE_UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Longest first, so that the largest unit that divides a duration shows it.
const DURATION_UNITS_MS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl ByteSize {
    /// That many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// That many times 1024 bytes.
    #[must_use]
    pub const fn from_kib(kib: u32) -> Self {
        Self((kib as u64) << 10)
    }

    /// That many times 1024 * 1024 bytes.
    #[must_use]
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory; saturates where `usize` is smaller.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads `"4KiB"`, `"1MiB"`, `"1GiB"`, `"512B"` or a plain number of bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit) = number_and_unit(text)?;
        if unit.is_empty() {
            return Some(Self(number));
        }
        let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*bytes).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = largest_divisor(self.0, &SIZE_UNITS);
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

/// Reads a whole number and a unit: `ms`, `s`, `m`, `h` or `d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let (_, unit_ms) = DURATION_UNITS_MS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*unit_ms).map(Duration::from_millis)
}

/// Shows a duration as [`parse_duration`] reads it; parts of a millisecond are dropped.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    // A parsed duration fits: it came from a u64 of milliseconds.
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, unit_ms) = largest_divisor(millis, &DURATION_UNITS_MS);
    format!("{}{unit}", millis / unit_ms)
}

/// Splits `"500ms"` into 500 and `"ms"`. `None` without a number, or for one beyond u64.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// The largest unit that divides `value` evenly; the smallest one for zero.
fn largest_divisor<const N: usize>(
    value: u64,
    units: &[(&'static str, u64); N],
) -> (&'static str, u64) {
    let smallest = units[N - 1];
    if value == 0 {
        return smallest;
    }
    units
        .iter()
        .copied()
        .find(|(_, unit)| value.is_multiple_of(*unit))
        .unwrap_or(smallest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0ms", Some(0)),
            ("500ms", Some(500)),
            ("2s", Some(2_000)),
            ("15m", Some(900_000)),
            ("1h", Some(3_600_000)),
            ("7d", Some(604_800_000)),
            ("18446744073709551615ms", Some(u64::MAX)),
            ("18446744073709551616ms", None),
            ("18446744073709551615s", None),
            ("", None),
            ("5", None),
            ("ms", None),
            ("-5s", None),
            ("+5s", None),
            ("1.5s", None),
            ("5 s", None),
            ("5S", None),
            ("5sec", None),
            ("٥s", None),
        ] {
            assert_eq!(
                parse_duration(text),
                millis.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("512B", Some(512)),
            ("4KiB", Some(4096)),
            ("1MiB", Some(1 << 20)),
            ("2GiB", Some(2 << 30)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615KiB", None),
            ("4KB", None),
            ("4kib", None),
            ("4 KiB", None),
            ("KiB", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(
                ByteSize::parse(text),
                bytes.map(ByteSize::from_bytes),
                "{text:?}"
            );
        }
    }

    #[test]
    fn shown_in_the_largest_unit_that_fits() {
        for text in [
            "0ms", "1ms", "1500ms", "2s", "90s", "15m", "1h", "25h", "7d",
        ] {
            assert_eq!(
                parse_duration(text).map(show_duration).as_deref(),
                Some(text)
            );
        }
        for text in ["0B", "1B", "1025B", "4KiB", "1MiB", "3GiB"] {
            assert_eq!(
                ByteSize::parse(text)
                    .map(|size| size.to_string())
                    .as_deref(),
                Some(text)
            );
        }
    }
}
