//! Namespaces: names, modes, policies.

use std::fmt;
use std::str::FromStr;

/// How a namespace's data is kept consistent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Linearizable: reads and writes go through a Raft quorum.
    #[default]
    Strong,
    /// Every replica accepts writes; the newest stamp wins; replicas converge.
    Eventual,
}

impl Mode {
    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Strong => "strong",
            Mode::Eventual => "eventual",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        match text {
            "strong" => Ok(Mode::Strong),
            "eventual" => Ok(Mode::Eventual),
            other => Err(format!(
                "there is no mode {other:?}; a mode is \"strong\" or \"eventual\""
            )),
        }
    }
}

/// When an eventual write is acknowledged. Strong writes are always synced on a quorum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// After the accepting store's disk has it.
    #[default]
    Sync,
    /// Before the sync.
    Relaxed,
}

impl Durability {
    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Sync => "sync",
            Durability::Relaxed => "relaxed",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> Result<Durability, String> {
        match text {
            "sync" => Ok(Durability::Sync),
            "relaxed" => Ok(Durability::Relaxed),
            other => Err(format!(
                "there is no durability {other:?}; it is \"sync\" or \"relaxed\""
            )),
        }
    }
}

/// What a namespace is told beside its mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// When an eventual write is acknowledged.
    pub durability: Durability,
    /// Objective for replication lag; 0: none.
    pub max_lag_ms: u64,
    /// Time to live of a write that brings none; 0: forever.
    pub ttl_ms: u64,
    /// Bound of the conflict log; 0: the default.
    pub conflict_log_bytes: u64,
}

/// The longest time to live: 100 years. A longer one is a mistake in its unit.
pub const MAX_TTL_MS: i64 = 100 * 366 * 24 * 3600 * 1000;
/// The laxest objective for replication lag: 30 days.
pub const MAX_LAG_MS: u64 = 30 * 24 * 3600 * 1000;
/// The largest bound of a conflict log: 1 TiB.
pub const MAX_CONFLICT_LOG_BYTES: u64 = 1 << 40;

/// A policy that is beyond what makes sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; the limit is {limit} ({limit_text})")]
pub struct PolicyError {
    /// Which one, as it is called in requests: `ttl_ms`.
    pub field: &'static str,
    /// What was asked for.
    pub value: u64,
    /// The most that is allowed.
    pub limit: u64,
    limit_text: &'static str,
}

impl Policies {
    /// Refuses numbers beyond the limits, which are those of the configuration, too.
    ///
    /// Asked where requests come in, never where committed ones are applied: those are facts.
    pub fn check(&self) -> Result<(), PolicyError> {
        [
            (
                "ttl_ms",
                self.ttl_ms,
                MAX_TTL_MS.unsigned_abs(),
                "100 years",
            ),
            ("max_lag_ms", self.max_lag_ms, MAX_LAG_MS, "30 days"),
            (
                "conflict_log_bytes",
                self.conflict_log_bytes,
                MAX_CONFLICT_LOG_BYTES,
                "1 TiB",
            ),
        ]
        .into_iter()
        .find(|(_, value, limit, _)| value > limit)
        .map_or(Ok(()), |(field, value, limit, limit_text)| {
            Err(PolicyError {
                field,
                value,
                limit,
                limit_text,
            })
        })
    }
}

/// A legal name: 1 to 64 of `a-z 0-9 _ . -`, starting with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName(String);

/// A name that is not legal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a namespace name: {why}; a name is 1 to 64 of a-z 0-9 _ . - and starts with a letter"
)]
pub struct NameError {
    name: String,
    why: &'static str,
}

impl NamespaceName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 64;
    /// What an empty name in a request means.
    pub const DEFAULT: &'static str = "default";

    /// Checks a name. An empty one is an error here; [`NamespaceName::of_request`] reads it as
    /// `default`.
    pub fn parse(name: &str) -> Result<NamespaceName, NameError> {
        let refuse = |why| {
            // A huge name is not repeated whole into logs and answers.
            let name = name.chars().take(Self::MAX_BYTES + 1).collect();
            Err(NameError { name, why })
        };
        let Some(first) = name.bytes().next() else {
            return refuse("it is empty");
        };
        if name.len() > Self::MAX_BYTES {
            return refuse("it is too long");
        }
        if !first.is_ascii_lowercase() {
            return refuse("it does not start with a letter a-z");
        }
        if !name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte)
        }) {
            return refuse("it has a character that is not allowed");
        }
        Ok(NamespaceName(name.to_owned()))
    }

    /// As [`NamespaceName::parse`], but an empty name means `default`.
    pub fn of_request(name: &str) -> Result<NamespaceName, NameError> {
        NamespaceName::parse(if name.is_empty() { Self::DEFAULT } else { name })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "default", "a-b_c.d9", &"x".repeat(64)] {
            assert_eq!(NamespaceName::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "9a",
            "-a",
            "A",
            "aB",
            "a b",
            "a/b",
            "ä",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(NamespaceName::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(NamespaceName::of_request("").unwrap().as_str(), "default");
        let long = NamespaceName::parse(&"y".repeat(100_000))
            .unwrap_err()
            .to_string();
        assert!(long.len() < 300, "{} bytes", long.len());
    }

    #[test]
    fn modes_and_durabilities_are_written_as_they_are_read() {
        for mode in [Mode::Strong, Mode::Eventual] {
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
        for durability in [Durability::Sync, Durability::Relaxed] {
            assert_eq!(durability.as_str().parse(), Ok(durability));
        }
        assert!("Strong".parse::<Mode>().is_err());
    }
}
