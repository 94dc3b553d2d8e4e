//! What can be wrong with a configuration, and where: the texts that an operator reads.
//!
//! Owns: the form of every message. Does not know: how a problem is found.
//!
//! Invariant: an error names its place (file and line, variable, or flag) and, for a file, the
//! key; it says what is wrong and what is expected instead.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a value came from. Later variants win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A configuration file; `line` counts from 1 and is absent for the file as a whole.
    File {
        /// The path as it was given.
        path: Arc<PathBuf>,
        /// The line of the key.
        line: Option<usize>,
    },
    /// An environment variable, by name.
    Env(String),
    /// A flag as it was typed: `--addr`, or `--peer 2=host:port` for one that may be repeated.
    Flag(String),
}

/// What is wrong with one key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No key has this name.
    #[error("unknown key{}", did_you_mean(.suggestion.as_deref()))]
    UnknownKey {
        /// A key that the author may have meant.
        suggestion: Option<String>,
    },
    /// No section has this name.
    #[error("unknown section{}", did_you_mean(.suggestion.as_deref()))]
    UnknownSection {
        /// A section that the author may have meant.
        suggestion: Option<String>,
    },
    /// The value has another type than the key.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// The type of the key, with an example.
        expected: &'static str,
        /// The value, or its type where it is long.
        found: String,
    },
    /// The type is right, the value is none that the key can have.
    #[error("{found} is not {expected}")]
    BadValue {
        /// The value.
        found: String,
        /// What the key can have.
        expected: String,
    },
    /// The value lies outside of what makes sense for the key.
    #[error("{found} is out of range: expected {min} to {max}")]
    OutOfRange {
        /// The value.
        found: String,
        /// The smallest legal value.
        min: String,
        /// The largest legal value.
        max: String,
    },
    /// The same thing was said twice in one place.
    #[error("duplicate {what}{}", first_on(*.first_line))]
    Duplicate {
        /// `key`, `section`, `namespace` or `peer`.
        what: &'static str,
        /// Where it was said first, in the same file.
        first_line: Option<usize>,
    },
    /// The file is no TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// The file is no text.
    #[error(
        "byte {position} of this line is 0x{byte:02x}, which is not UTF-8: save the file as UTF-8"
    )]
    NoText {
        /// Where in its line it is, from 1.
        position: usize,
        /// The byte.
        byte: u8,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file: {0}")]
    Unreadable(String),
    /// Two values that are legal by themselves do not go together.
    #[error("{0}")]
    Inconsistent(String),
}

/// One problem at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The place that has to be edited.
    pub origin: Origin,
    /// The key, dotted; empty where a file as a whole is meant.
    pub key: String,
    /// What is wrong.
    pub problem: Problem,
}

/// Every problem of a configuration, in the order file, environment, flags; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `Err` with all of `errors` in reading order, `Ok` when there are none.
    ///
    /// # Errors
    /// When `errors` is not empty.
    pub(crate) fn check(mut errors: Vec<ConfigError>) -> Result<(), Self> {
        if errors.is_empty() {
            return Ok(());
        }
        // Stable: what one place is blamed for stays in the order in which it was found.
        errors.sort_by(|a, b| a.origin.cmp(&b.origin));
        Err(Self(errors))
    }

    /// The problems, one by one.
    #[must_use]
    pub fn as_slice(&self) -> &[ConfigError] {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            key,
            problem,
        } = self;
        match origin {
            Origin::Default => write!(f, "{key}: {problem}"),
            Origin::File { .. } if !key.is_empty() => write!(f, "{origin}: {key}: {problem}"),
            // A variable or flag says by its own name which key it is for.
            Origin::File { .. } | Origin::Env(_) | Origin::Flag(_) => {
                write!(f, "{origin}: {problem}")
            }
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

pub(crate) fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion
        .map(|name| format!(" (did you mean {name}?)"))
        .unwrap_or_default()
}

fn first_on(line: Option<usize>) -> String {
    line.map(|line| format!(" (first on line {line})"))
        .unwrap_or_default()
}
