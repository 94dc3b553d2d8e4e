//! One value as it was written, and how each type of key reads it.
//!
//! Owns: the step from TOML or bare text to a typed value, with the ranges that make sense.
//! Does not know: which key asks, where the value was written.
//!
//! Invariants: a TOML value must have the type of its key (`id = "1"` is wrong); text from a
//! variable or a flag has no type and may stand for any; no value panics.

use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Problem;
use super::schema::SplitKey;
use super::units::{ByteSize, parse_duration, show_duration};

const DURATION: &str = r#"a duration (a whole number and a unit: "500ms", "2s", "15m", "1h")"#;
const SIZE: &str = r#"a size ("4KiB", "1MiB", or a plain number of bytes)"#;
const SOCKET_ADDR: &str = r#"an IP address and a port ("127.0.0.1:50051")"#;
const HOST_PORT: &str = r#"a host and a port ("db1.example:50051")"#;
const SPLIT_KEY: &str = r#"a split key ("NAMESPACE_ID/KEY")"#;
const LOG_LEVEL: &str =
    "a log level (off, error, warn, info, debug, trace; or target=level after commas)";

/// A value on its way into the configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Text of a variable or a flag: no type yet.
    Bare(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i128),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    List(Vec<Value>),
    /// A TOML value that no key takes, by the name of its type.
    Other(&'static str),
}

type Read<T> = Result<T, Problem>;

impl Value {
    /// `text` or `Bare` as a string; `expected` describes the key in the error.
    fn as_text(&self, expected: &'static str) -> Read<&str> {
        match self {
            Self::Bare(text) | Self::Text(text) => Ok(text),
            Self::Integer(_) | Self::Boolean(_) | Self::List(_) | Self::Other(_) => {
                Err(self.not(expected))
            }
        }
    }

    /// The value has the wrong type for a key that is `expected`.
    pub(crate) fn not(&self, expected: &'static str) -> Problem {
        let found = match self {
            Self::Bare(text) => quoted(text),
            Self::Text(text) => format!("the string {}", quoted(text)),
            Self::Integer(number) => format!("the integer {number}"),
            Self::Boolean(flag) => format!("the boolean {flag}"),
            Self::List(_) => "an array".to_owned(),
            Self::Other(kind) => format!("a {kind}"),
        };
        Problem::WrongType { expected, found }
    }

    /// Text that can stand in a log line or on a status page.
    pub(crate) fn name(&self) -> Read<String> {
        let text = self.as_text("a name in quotes")?;
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(bad(text, "a name (not empty, no control characters)"));
        }
        Ok(text.to_owned())
    }

    /// One of a few words; `parse` knows them, `words` names them for the error.
    pub(crate) fn word<T>(&self, parse: fn(&str) -> Option<T>, words: &'static str) -> Read<T> {
        let text = self.as_text(words)?;
        parse(text).ok_or_else(|| bad(text, words))
    }

    /// A path that is not empty.
    pub(crate) fn path(&self) -> Read<PathBuf> {
        let text = self.as_text("a path in quotes")?;
        if text.is_empty() || text.contains('\0') {
            return Err(bad(text, "a path"));
        }
        Ok(PathBuf::from(text))
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Read<bool> {
        const EXPECTED: &str = "true or false";
        match self {
            Self::Boolean(flag) => Ok(*flag),
            Self::Bare(text) => text.parse().map_err(|_| bad(text, EXPECTED)),
            Self::Text(_) | Self::Integer(_) | Self::List(_) | Self::Other(_) => {
                Err(self.not(EXPECTED))
            }
        }
    }

    /// A whole number in `range`.
    pub(crate) fn integer(&self, range: RangeInclusive<u64>) -> Read<u64> {
        const EXPECTED: &str = "a whole number";
        let number = match self {
            Self::Integer(number) => *number,
            Self::Bare(text) => text.parse().map_err(|_| bad(text, EXPECTED))?,
            Self::Text(_) | Self::Boolean(_) | Self::List(_) | Self::Other(_) => {
                return Err(self.not(EXPECTED));
            }
        };
        let fits = u64::try_from(number)
            .ok()
            .filter(|number| range.contains(number));
        fits.ok_or_else(|| out_of_range(&number.to_string(), range.start(), range.end()))
    }

    /// A duration in `range`.
    pub(crate) fn duration(&self, range: RangeInclusive<Duration>) -> Read<Duration> {
        let text = self.as_text(DURATION)?;
        let duration = parse_duration(text).ok_or_else(|| bad(text, DURATION))?;
        if !range.contains(&duration) {
            return Err(out_of_range(
                text,
                &show_duration(*range.start()),
                &show_duration(*range.end()),
            ));
        }
        Ok(duration)
    }

    /// A size in `range`.
    pub(crate) fn size(&self, range: RangeInclusive<ByteSize>) -> Read<ByteSize> {
        let (size, found) = match self {
            Self::Integer(bytes) => (
                u64::try_from(*bytes).ok().map(ByteSize::from_bytes),
                bytes.to_string(),
            ),
            Self::Bare(text) | Self::Text(text) => (
                Some(ByteSize::parse(text).ok_or_else(|| bad(text, SIZE))?),
                text.clone(),
            ),
            Self::Boolean(_) | Self::List(_) | Self::Other(_) => return Err(self.not(SIZE)),
        };
        size.filter(|size| range.contains(size))
            .ok_or_else(|| out_of_range(&found, range.start(), range.end()))
    }

    /// An address to listen on; port 0 lets the system choose.
    pub(crate) fn socket_addr(&self) -> Read<SocketAddr> {
        let text = self.as_text(SOCKET_ADDR)?;
        text.parse().map_err(|_| bad(text, SOCKET_ADDR))
    }

    /// An address to connect to: a name or an IP address, and a port.
    pub(crate) fn host_port(&self) -> Read<String> {
        let text = self.as_text(HOST_PORT)?;
        if let Some((scheme, rest)) = text.split_once("://") {
            let rest = rest.trim_end_matches('/');
            return Err(bad(
                text,
                &format!(r#"an address: leave out "{scheme}://" and write "{rest}""#),
            ));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if is_host(host) && is_port(port) => Ok(text.to_owned()),
            None if is_host(text) => Err(bad(
                text,
                &format!(r#"an address: the port is missing ("{text}:50051")"#),
            )),
            Some(_) | None => Err(bad(text, HOST_PORT)),
        }
    }

    /// What may stand before a log line: levels, and levels per target.
    pub(crate) fn log_level(&self) -> Read<String> {
        let text = self.as_text(LOG_LEVEL)?;
        if is_log_level(text) {
            Ok(text.to_owned())
        } else {
            Err(bad(text, LOG_LEVEL))
        }
    }

    /// Split keys, each once; text separates them by commas.
    pub(crate) fn split_keys(&self) -> Read<Vec<SplitKey>> {
        const EXPECTED: &str = r#"an array of split keys (["NAMESPACE_ID/KEY"])"#;
        let texts: Vec<&str> = match self {
            Self::Bare(text) => text.split(',').collect(),
            Self::List(items) => items
                .iter()
                .map(|item| item.as_text(SPLIT_KEY))
                .collect::<Read<_>>()?,
            Self::Text(_) | Self::Integer(_) | Self::Boolean(_) | Self::Other(_) => {
                return Err(self.not(EXPECTED));
            }
        };
        let mut splits = Vec::with_capacity(texts.len());
        for text in texts {
            let split = SplitKey::parse(text).ok_or_else(|| bad(text, SPLIT_KEY))?;
            if splits.contains(&split) {
                return Err(bad(text, "a new split key (it is in the list already)"));
            }
            splits.push(split);
        }
        Ok(splits)
    }
}

/// Quotes `text` on one line, and cuts what nobody would read to the end.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    if text.chars().count() <= SHOWN_CHARS {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(SHOWN_CHARS).collect();
    format!("{:?}", head + "...")
}

pub(crate) fn bad(found: &str, expected: &str) -> Problem {
    Problem::BadValue {
        found: quoted(found),
        expected: expected.to_owned(),
    }
}

fn out_of_range(found: &str, min: &impl ToString, max: &impl ToString) -> Problem {
    Problem::OutOfRange {
        found: found.to_owned(),
        min: min.to_string(),
        max: max.to_string(),
    }
}

/// A name as DNS has it (underscores too: container networks use them), or an IP address.
fn is_host(host: &str) -> bool {
    if let Some(v6) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return v6.parse::<Ipv6Addr>().is_ok();
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=253).contains(&host.len()) && host.bytes().all(legal)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Whether `log.level` may be this.
pub(crate) fn is_log_level(text: &str) -> bool {
    text.split(',').all(is_log_directive)
}

fn is_log_directive(directive: &str) -> bool {
    let is_level =
        |level: &str| matches!(level, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let is_target = |target: &str| {
        !target.is_empty()
            && target
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
    };
    match directive.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(directive),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_connect_to() {
        for good in [
            "127.0.0.1:50051",
            "db1:1",
            "a_b.c-d:65535",
            "[::1]:50051",
            "localhost:80",
        ] {
            assert_eq!(Value::Bare(good.into()).host_port().as_deref(), Ok(good));
        }
        for bad in [
            "",
            ":",
            "host",
            "host:",
            ":80",
            "host:0",
            "host:65536",
            "host:+80",
            "::1:80",
            "[x]:80",
            "a b:80",
            "http://a:80",
        ] {
            assert!(Value::Bare(bad.into()).host_port().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn log_levels() {
        for good in [
            "info",
            "off",
            "warn,rdb_server=debug",
            "rdb_server::raft=trace",
        ] {
            assert!(Value::Bare(good.into()).log_level().is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "verbose",
            "info,",
            "=info",
            "rdb_server=",
            "a b=info",
            "INFO ",
        ] {
            assert!(Value::Bare(bad.into()).log_level().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_toml_value_must_have_the_type_of_its_key() {
        assert!(Value::Text("1".into()).integer(1..=9).is_err());
        assert!(Value::Text("true".into()).boolean().is_err());
        assert!(
            Value::Integer(5)
                .duration(Duration::ZERO..=Duration::MAX)
                .is_err()
        );
        assert_eq!(Value::Bare("1".into()).integer(1..=9), Ok(1));
        assert_eq!(Value::Bare("true".into()).boolean(), Ok(true));
    }

    #[test]
    fn long_and_multi_line_text_is_shown_on_one_short_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert!(quoted(&"x".repeat(10_000)).len() < 110);
    }
}
