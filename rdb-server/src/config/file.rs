//! The configuration file: TOML in, settings with line numbers out.
//!
//! Owns: how a file spells sections, keys, peers and namespaces, and the translation of what the
//! TOML parser complains about. Does not know: types and ranges of keys.
//!
//! Invariants: every complaint carries a line; every line of a well-formed file is looked at,
//! however many are wrong; a file that is no TOML sets nothing, since guesses about the rest of
//! it would only add noise.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::domain::{is_namespace_name, parse_store_id};
use super::error::{Origin, Problem};
use super::keys::{self, NAMESPACES, PEERS, SECTIONS, dotted};
use super::layer::{Layer, NAMESPACES_TABLE, Target, illegal_name, illegal_store_id};
use super::outline::Outline;
use super::suggest::nearest;
use super::value::{Value, quoted};

/// Reads the text of a file; `path` is what errors call it.
pub(crate) fn read(path: &Path, text: &str) -> Layer {
    let (root, complaints) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        path: Arc::new(path.to_owned()),
        text,
        layer: Layer::default(),
    };
    let outline = Outline::of(text);
    let mut is_toml = true;
    let mut last_line = 0;
    let mut repeated: Vec<String> = Vec::new();
    for complaint in &complaints {
        let span = complaint.span().unwrap_or(0..0);
        let line = reader.line(&span);
        let duplicate = complaint.message().starts_with("duplicate key");
        // Only where a key is repeated, what the parser points at is a key.
        let token = text.get(span).filter(|_| duplicate).unwrap_or_default();
        let place = outline.place(line, token);
        is_toml &= duplicate;
        // The parser may trip several times over one slip; the first complaint is the good one.
        // So is that about a section which stands there twice, not those about its keys.
        let inside = |path: &String| {
            place
                .path
                .strip_prefix(path.as_str())
                .is_some_and(|rest| rest.starts_with('.'))
        };
        if (line == last_line && !duplicate) || repeated.iter().any(inside) {
            continue;
        }
        last_line = line;
        let problem = if duplicate {
            repeated.push(place.path.clone());
            Problem::Duplicate {
                what: place.noun(),
                first_line: outline.first_line(&place, line),
            }
        } else {
            Problem::Syntax(syntax(complaint.message(), outline.value(line)))
        };
        reader.layer.error(reader.at(line), place.path, problem);
    }
    if is_toml {
        reader.root(root.get_ref());
    }
    reader
        .layer
        .settings
        .sort_by(|a, b| a.origin.cmp(&b.origin));
    reader.layer
}

/// The layer of a file that could not be read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Layer {
    let mut layer = Layer::default();
    let origin = Origin::File {
        path: Arc::new(path.to_owned()),
        line: None,
    };
    layer.error(origin, "", Problem::Unreadable(error.to_string()));
    layer
}

/// The layer of a file that is no text; the byte at `wrong` is the first that is not UTF-8.
pub(crate) fn no_text(path: &Path, bytes: &[u8], wrong: usize) -> Layer {
    let before = bytes.get(..wrong).unwrap_or(bytes);
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let mut layer = Layer::default();
    let origin = Origin::File {
        path: Arc::new(path.to_owned()),
        line: Some(before.iter().filter(|byte| **byte == b'\n').count() + 1),
    };
    let problem = Problem::NoText {
        position: wrong - line_start + 1,
        byte: bytes.get(wrong).copied().unwrap_or_default(),
    };
    layer.error(origin, "", problem);
    layer
}

/// The parser's complaint about a line, or the slip behind it where that is plain to see.
fn syntax(complaint: &str, value: Option<&str>) -> String {
    // `heartbeat = 50ms` and `addr = 127.0.0.1:50051` look to it like numbers that went wrong.
    let about_a_value =
        complaint.starts_with("invalid ") || complaint.starts_with("string values must be quoted");
    match value {
        Some("") => "the value is missing".to_owned(),
        Some(value)
            if about_a_value
                && !value.starts_with(['"', '\'', '[', '{'])
                && value.contains(|c: char| c.is_alphabetic() || matches!(c, '.' | ':' | '/')) =>
        {
            format!("text needs quotes: {}", quoted(value))
        }
        _ => complaint.to_owned(),
    }
}

struct Reader<'a> {
    path: Arc<PathBuf>,
    text: &'a str,
    layer: Layer,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;
type Node<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    /// The line, from 1, on which `span` begins.
    fn line(&self, span: &Range<usize>) -> usize {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn at(&self, line: usize) -> Origin {
        Origin::File {
            path: Arc::clone(&self.path),
            line: Some(line),
        }
    }

    fn origin(&self, key: &Key<'_>) -> Origin {
        self.at(self.line(&key.span()))
    }

    fn error(&mut self, key: &Key<'_>, path: impl Into<String>, problem: Problem) {
        let origin = self.origin(key);
        self.layer.error(origin, path, problem);
    }

    fn set(&mut self, key: &Key<'_>, target: Target, node: &Node<'_>) {
        let origin = self.origin(key);
        self.layer.set(target, value(node.get_ref()), origin);
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (key, node) in root {
            let name = key.get_ref().as_ref();
            let Some(section) = SECTIONS.into_iter().find(|section| *section == name) else {
                let problem = unknown_at_top(name, node.get_ref());
                self.error(key, dotted(name), problem);
                continue;
            };
            match node.get_ref() {
                DeValue::Table(table) if section == NAMESPACES => self.namespaces(table),
                DeValue::Table(table) => self.section(section, table),
                other if section == NAMESPACES => {
                    self.error(key, NAMESPACES, value(other).not(NAMESPACES_TABLE));
                }
                other => {
                    self.error(
                        key,
                        section,
                        value(other).not("a section ([NAME] and keys below it)"),
                    );
                }
            }
        }
    }

    fn section(&mut self, section: &'static str, table: &DeTable<'_>) {
        for (key, node) in table {
            let name = key.get_ref().as_ref();
            if section == "cluster" && name == PEERS {
                self.peers(key, node);
            } else if let Some(row) = keys::find(section, name) {
                self.set(key, Target::Key(row), node);
            } else {
                let suggestion = nearest(name, keys::names_in(section)).map(str::to_owned);
                let suggestion = suggestion.or_else(|| elsewhere(name));
                self.error(
                    key,
                    format!("{section}.{}", dotted(name)),
                    Problem::UnknownKey { suggestion },
                );
            }
        }
    }

    fn peers(&mut self, key: &Key<'_>, node: &Node<'_>) {
        let DeValue::Table(table) = node.get_ref() else {
            const EXPECTED: &str =
                r#"a table of store ids and addresses ({ 1 = "127.0.0.1:50051" })"#;
            self.error(
                key,
                format!("cluster.{PEERS}"),
                value(node.get_ref()).not(EXPECTED),
            );
            return;
        };
        for (key, node) in table {
            let id = key.get_ref().as_ref();
            match parse_store_id(id) {
                Some(id) => self.set(key, Target::Peer(id), node),
                None => self.error(
                    key,
                    format!("cluster.{PEERS}.{}", dotted(id)),
                    illegal_store_id(id),
                ),
            }
        }
    }

    fn namespaces(&mut self, table: &DeTable<'_>) {
        for (key, node) in table {
            let name = key.get_ref().as_ref();
            let legal = is_namespace_name(name);
            if !legal {
                self.error(key, keys::namespace_path(name, ""), illegal_name(name));
            }
            let DeValue::Table(table) = node.get_ref() else {
                const EXPECTED: &str = r#"a table of its keys ({ mode = "eventual" })"#;
                let problem = value(node.get_ref()).not(EXPECTED);
                self.error(key, keys::namespace_path(name, ""), problem);
                continue;
            };
            if legal {
                self.set(key, Target::Namespace(name.to_owned()), node);
            }
            self.namespace(name, table);
        }
    }

    /// The keys of one namespace. One whose name is illegal comes here too: all that is wrong
    /// with it is said at once, and a configuration with an error is never used.
    fn namespace(&mut self, namespace: &str, table: &DeTable<'_>) {
        for (key, node) in table {
            let name = key.get_ref().as_ref();
            match keys::find_namespace_key(name) {
                Some(row) => self.set(key, Target::NamespaceKey(namespace.to_owned(), row), node),
                None => {
                    let suggestion = match node.get_ref() {
                        // A dot in the name of a namespace is legal, and means a path to TOML.
                        DeValue::Table(_) => Some(format!("[namespaces.\"{namespace}.{name}\"]")),
                        _ => {
                            let names = keys::NAMESPACE_KEYS.iter().map(|row| row.name);
                            nearest(name, names).map(str::to_owned)
                        }
                    };
                    let path = keys::namespace_path(namespace, name);
                    self.error(key, path, Problem::UnknownKey { suggestion });
                }
            }
        }
    }
}

/// What is wrong with a name at the top of a file that is no section.
fn unknown_at_top(name: &str, value: &DeValue<'_>) -> Problem {
    if matches!(value, DeValue::Table(_)) {
        Problem::UnknownSection {
            suggestion: nearest(name, SECTIONS).map(|section| format!("[{section}]")),
        }
    } else {
        Problem::UnknownKey {
            suggestion: elsewhere(name),
        }
    }
}

/// The key of another section that has this very name.
fn elsewhere(name: &str) -> Option<String> {
    keys::KEYS
        .iter()
        .find(|key| key.name == name)
        .map(keys::Key::path)
}

/// A TOML value without its spans.
fn value(node: &DeValue<'_>) -> Value {
    match node {
        DeValue::String(text) => Value::Text(text.as_ref().to_owned()),
        DeValue::Integer(number) => {
            let parsed = i128::from_str_radix(number.as_str(), number.radix());
            parsed.map_or(Value::Other("number of more than 128 bits"), Value::Integer)
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| value(item.get_ref())).collect())
        }
        DeValue::Table(_) => Value::Other("table"),
        DeValue::Float(_) => Value::Other("floating-point number"),
        DeValue::Datetime(_) => Value::Other("date or time"),
    }
}
