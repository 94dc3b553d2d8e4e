//! Which section and key a line of a TOML text belongs to, without parsing it.
//!
//! Owns: a line-by-line guess, good enough to name the key in a complaint about text that the
//! parser gave up on. Does not know: values, or what keys exist.
//!
//! Invariant: used for the wording of errors only; a wrong guess (a bracket at the start of a line
//! inside of a multi-line string) misnames a key and changes nothing else.

use std::collections::BTreeMap;

use super::keys::NAMESPACES;

/// Headers and keys of a text, by line.
pub(crate) struct Outline<'a> {
    /// Per line: the section in force, and the key and value that the line sets.
    lines: Vec<(String, Option<(&'a str, &'a str)>)>,
    /// The first line that opened a section or set a key, by path.
    first: BTreeMap<String, usize>,
}

/// Where a complaint belongs.
pub(crate) struct Place {
    /// Dotted; empty where there is nothing to name.
    pub(crate) path: String,
    is_header: bool,
}

impl<'a> Outline<'a> {
    /// Looks at each line of `text` once.
    pub(crate) fn of(text: &'a str) -> Self {
        let mut outline = Self {
            lines: Vec::new(),
            first: BTreeMap::new(),
        };
        let mut section = String::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            let mut key = None;
            if let Some(header) = line.strip_prefix('[') {
                section = bare(
                    header
                        .trim_start_matches('[')
                        .split(']')
                        .next()
                        .unwrap_or_default(),
                );
                outline.first.entry(section.clone()).or_insert(index + 1);
            } else if let Some((name, value)) = line.split_once('=')
                && !line.starts_with('#')
            {
                key = Some((
                    name.trim(),
                    value.split('#').next().unwrap_or_default().trim(),
                ));
                outline
                    .first
                    .entry(join(&section, &bare(name)))
                    .or_insert(index + 1);
            }
            outline.lines.push((section.clone(), key));
        }
        outline
    }

    /// The place of a complaint about `token`, which begins on `line` (from 1).
    pub(crate) fn place(&self, line: usize, token: &str) -> Place {
        let Some((section, key)) = line.checked_sub(1).and_then(|index| self.lines.get(index))
        else {
            return Place {
                path: String::new(),
                is_header: false,
            };
        };
        let Some((key, _)) = key else {
            return Place {
                path: section.clone(),
                is_header: true,
            };
        };
        let path = join(section, &bare(key));
        // A key inside of an inline table: the token is no part of what stands before the sign.
        let inner = bare(token);
        let is_inner = !inner.is_empty()
            && !key.contains(token)
            && inner
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        Place {
            path: if is_inner { join(&path, &inner) } else { path },
            is_header: false,
        }
    }

    /// What `line` sets its key to, as written and without a comment; `None` if it sets none.
    pub(crate) fn value(&self, line: usize) -> Option<&'a str> {
        let (_, set) = line
            .checked_sub(1)
            .and_then(|index| self.lines.get(index))?;
        set.map(|(_, value)| value)
    }

    /// The line before `line` that was first to say what `place` says.
    pub(crate) fn first_line(&self, place: &Place, line: usize) -> Option<usize> {
        self.first
            .get(&place.path)
            .copied()
            .filter(|first| *first < line)
    }
}

impl Place {
    /// What a repetition of this place is called.
    pub(crate) fn noun(&self) -> &'static str {
        let is_namespace = |name: &str| !name.is_empty() && !name.contains('.');
        let rest = self
            .path
            .strip_prefix(NAMESPACES)
            .and_then(|rest| rest.strip_prefix('.'));
        if rest.is_some_and(|rest| self.is_header || is_namespace(rest)) {
            "namespace"
        } else if self.path.starts_with("cluster.peers.") {
            "peer"
        } else if self.is_header {
            "section"
        } else {
            "key"
        }
    }
}

/// A written key without blanks and quotes.
fn bare(written: &str) -> String {
    written
        .chars()
        .filter(|c| !matches!(c, ' ' | '\t' | '"' | '\''))
        .collect()
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
top = 1
[store]
id = 1
# id = 2
  id = 3
[ namespaces . \"logs\" ]
mode = \"strong\"
[cluster]
peers = { 1 = \"a:1\", 1 = \"b:1\" }
[namespaces.logs]
";

    #[test]
    fn names_places() {
        let outline = Outline::of(TEXT);
        for (line, token, path, noun) in [
            (1, "top", "top", "key"),
            (2, "store", "store", "section"),
            (5, "id", "store.id", "key"),
            (7, "mode", "namespaces.logs.mode", "key"),
            (9, "1", "cluster.peers.1", "peer"),
            (10, "logs", "namespaces.logs", "namespace"),
            (99, "x", "", "key"),
        ] {
            let place = outline.place(line, token);
            assert_eq!(
                (place.path.as_str(), place.noun()),
                (path, noun),
                "line {line}"
            );
        }
    }

    #[test]
    fn finds_the_first_of_two() {
        let outline = Outline::of(TEXT);
        assert_eq!(outline.first_line(&outline.place(5, "id"), 5), Some(3));
        assert_eq!(outline.first_line(&outline.place(10, "logs"), 10), Some(6));
        assert_eq!(outline.first_line(&outline.place(2, "store"), 2), None);
    }
}
