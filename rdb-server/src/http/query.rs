//! The parameters behind the question mark.
//!
//! Owns their reading: each is given once, is one that the route knows, and has a value that makes sense.
//! Anything else is refused with the parameter's name, since a `ttl_ms` that is misspelt and ignored costs
//! data. Knows nothing of what they mean.

use super::bytes::{percent_decode, percent_decode_text};
use crate::error::Error;
use bytes::Bytes;
use rdb_proto::kv::Consistency;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Parameters that were not looked at yet.
#[derive(Debug)]
pub(super) struct Query(BTreeMap<String, Bytes>);

impl Query {
    /// Reads what stands behind the question mark.
    pub(super) fn parse(raw: Option<&str>) -> Result<Query, Error> {
        let mut found = BTreeMap::new();
        for part in raw.unwrap_or_default().split('&') {
            if part.is_empty() {
                continue;
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = percent_decode_text("query", name, true)?;
            let value = percent_decode(&name, value, true)?;
            if found.insert(name.clone(), value).is_some() {
                return Err(Error::invalid(&name, format!("{name} is given twice")));
            }
        }
        Ok(Query(found))
    }

    /// A parameter that is any bytes.
    pub(super) fn bytes(&mut self, name: &str) -> Option<Bytes> {
        self.0.remove(name)
    }

    /// The same, left there for another look.
    pub(super) fn peek(&self, name: &str) -> Option<Bytes> {
        self.0.get(name).cloned()
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        let Some(bytes) = self.0.remove(name) else {
            return Ok(None);
        };
        String::from_utf8(bytes.into())
            .map(Some)
            .map_err(|_| Error::invalid(name, format!("{name} is not UTF-8 text")))
    }

    /// A parameter that is a number of this range.
    pub(super) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Error> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let (low, high) = (*range.start(), *range.end());
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let number: Option<i64> = digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten();
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(Error::invalid(
                name,
                format!("{name} is {text:?}; it is a number from {low} to {high}"),
            )
            .with("limit", high)),
        }
    }

    /// A parameter that is `true` or `false`; `false` where it is not given.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Error> {
        match self.text(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => Err(Error::invalid(
                name,
                format!("{name} is {text:?}; it is true or false"),
            )),
        }
    }

    /// A parameter that says yes by being there, unless it has a value that says no.
    pub(super) fn switch(&mut self, name: &str) -> Result<bool, Error> {
        match self.text(name)?.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(text) => Err(Error::invalid(
                name,
                format!("{name} is {text:?}; it is true or false, and true without a value"),
            )),
        }
    }

    /// The parameter `consistency`, as the services take it.
    pub(super) fn consistency(&mut self) -> Result<i32, Error> {
        let consistency = match self.text("consistency")?.as_deref() {
            None | Some("default") => Consistency::Default,
            Some("linearizable") => Consistency::Linearizable,
            Some("stale") => Consistency::Stale,
            Some(text) => {
                return Err(Error::invalid(
                    "consistency",
                    format!("consistency is {text:?}; it is default, linearizable or stale"),
                ));
            }
        };
        Ok(consistency as i32)
    }

    /// All that the route knows were looked at.
    ///
    /// # Errors
    /// One is left.
    pub(super) fn done(&self) -> Result<(), Error> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::invalid(
                name,
                format!("{name:?} is no parameter here; /docs shows those that are"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(error: Error) -> String {
        error.metadata.get("field").cloned().unwrap_or_default()
    }

    #[test]
    fn a_parameter_that_is_unknown_twice_or_senseless_is_named() {
        let twice = Query::parse(Some("a=1&a=2")).unwrap_err();
        assert_eq!(field(twice), "a");
        let mut query = Query::parse(Some("tll_ms=5&limit=x&reverse=yes&consistency=s")).unwrap();
        assert_eq!(field(query.number("limit", 1..=9).unwrap_err()), "limit");
        assert_eq!(field(query.flag("reverse").unwrap_err()), "reverse");
        assert_eq!(field(query.consistency().unwrap_err()), "consistency");
        assert_eq!(field(query.done().unwrap_err()), "tll_ms");
    }

    #[test]
    fn a_switch_is_on_where_it_is_named_and_not_said_to_be_off() {
        for (text, on) in [
            ("", false),
            ("verbose", true),
            ("verbose=", true),
            ("a&verbose=true&b=2", true),
            ("verbose=1", true),
            ("verbose=false", false),
            ("verbose=0", false),
        ] {
            let mut query = Query::parse(Some(text)).unwrap();
            assert_eq!(query.switch("verbose").unwrap(), on, "{text}");
        }
        for text in ["verbose=yes", "verbose=%FF", "verbose=True"] {
            let mut query = Query::parse(Some(text)).unwrap();
            assert_eq!(field(query.switch("verbose").unwrap_err()), "verbose");
        }
    }

    #[test]
    fn numbers_are_digits_within_the_range() {
        for (text, expected) in [
            ("n=7", Some(7)),
            ("n=-1", None),
            ("n=%2B7", None),
            ("n=10", None),
            ("n=", None),
            ("n=-", None),
            ("n=99999999999999999999", None),
        ] {
            let number = Query::parse(Some(text)).unwrap().number("n", 0..=9);
            assert_eq!(number.ok().flatten(), expected, "{text}");
        }
    }
}
