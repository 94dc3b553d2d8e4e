//! Checks that replicas ended up equal: by their digests, and by what a scan of each returns.
//!
//! Owns the comparison. Does not know how a digest is made or a scan is run, only whether they
//! could be had.
//!
//! Invariant: replicas count as equal only when at least two were compared and every one of them
//! gave both a digest and a scan. A comparison that could not be made is a failure, never "equal".

use std::fmt::{self, Debug};

/// What one replica said about itself.
#[derive(Debug, Clone)]
pub struct Replica<D, K, V> {
    /// Its name in the report.
    pub name: String,
    /// Its digest, or why there is none. Digests can be compared only at an equal index or cut: put
    /// that into `D`, as in `(applied_index, digest)`, and a difference there is a difference.
    pub digest: Result<D, String>,
    /// Everything it holds, in the order of keys, or why that could not be read.
    pub scan: Result<Vec<(K, V)>, String>,
}

/// One reason not to call the replicas equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Fewer than two replicas: nothing was compared.
    NothingToCompare {
        /// How many there were.
        replicas: usize,
    },
    /// A replica could not be asked.
    Unreadable {
        /// Its name.
        replica: String,
        /// What could not be had: its digest or its scan.
        what: &'static str,
        /// What it answered instead.
        why: String,
    },
    /// A scan whose keys do not ascend: the store is damaged, or the scan.
    Unordered {
        /// Its name.
        replica: String,
        /// The key that does not come after the one before it.
        key: String,
    },
    /// Two digests differ.
    Digests {
        /// The replica compared with: the first that could be asked.
        first: String,
        /// The one that differs.
        second: String,
        /// What they are.
        digests: [String; 2],
    },
    /// Two scans differ.
    Scans {
        /// The replica compared with: the first that could be asked.
        first: String,
        /// The one that differs.
        second: String,
        /// In how many keys.
        keys: usize,
        /// The smallest of these keys.
        key: String,
        /// What each holds there; `None`: nothing.
        values: [Option<String>; 2],
    },
}

/// Compares every replica with the first one that could be asked.
///
/// # Errors
///
/// Every reason not to call them equal, at least one.
pub fn check<D, K, V>(replicas: &[Replica<D, K, V>]) -> Result<(), Vec<Problem>>
where
    D: PartialEq + Debug,
    K: Ord + Debug,
    V: PartialEq + Debug,
{
    let mut problems = Vec::new();
    if replicas.len() < 2 {
        problems.push(Problem::NothingToCompare {
            replicas: replicas.len(),
        });
    }
    let mut first_digest: Option<(&str, &D)> = None;
    let mut first_scan: Option<(&str, &[(K, V)])> = None;
    for Replica { name, digest, scan } in replicas {
        let unreadable = |what, why: &String| Problem::Unreadable {
            replica: name.clone(),
            what,
            why: why.clone(),
        };
        match (digest, first_digest) {
            (Err(why), _) => problems.push(unreadable("digest", why)),
            (Ok(digest), None) => first_digest = Some((name, digest)),
            (Ok(digest), Some((first, expected))) if digest != expected => {
                problems.push(Problem::Digests {
                    first: first.to_owned(),
                    second: name.clone(),
                    digests: [format!("{expected:?}"), format!("{digest:?}")],
                });
            }
            (Ok(_), Some(_)) => {}
        }
        let scan = match scan {
            Ok(scan) => scan,
            Err(why) => {
                problems.push(unreadable("scan", why));
                continue;
            }
        };
        if let Some(pair) = scan.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            let key = format!("{:?}", pair[1].0);
            problems.push(Problem::Unordered {
                replica: name.clone(),
                key,
            });
            continue;
        }
        match first_scan {
            None => first_scan = Some((name, scan)),
            Some((first, expected)) => problems.extend(compare(first, expected, name, scan)),
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// Walks two ascending scans side by side.
fn compare<K, V>(
    first: &str,
    expected: &[(K, V)],
    second: &str,
    found: &[(K, V)],
) -> Option<Problem>
where
    K: Ord + Debug,
    V: PartialEq + Debug,
{
    let (mut a, mut b) = (expected.iter().peekable(), found.iter().peekable());
    let mut keys = 0;
    let mut smallest = None;
    loop {
        // The smaller key comes next; where both scans have it, from both.
        let (left, right) = match (a.peek(), b.peek()) {
            (None, None) => break,
            (Some(left), Some(right)) if left.0 == right.0 => (a.next(), b.next()),
            (Some(left), Some(right)) if left.0 > right.0 => (None, b.next()),
            (Some(_), _) => (a.next(), None),
            (None, Some(_)) => (None, b.next()),
        };
        let same = matches!((left, right), (Some(left), Some(right)) if left.1 == right.1);
        if !same {
            keys += 1;
            smallest.get_or_insert((left, right));
        }
    }
    let (left, right) = smallest?;
    let key = left.or(right).map(|(key, _)| format!("{key:?}"))?;
    let value = |entry: Option<&(K, V)>| entry.map(|(_, value)| format!("{value:?}"));
    let values = [value(left), value(right)];
    Some(Problem::Scans {
        first: first.to_owned(),
        second: second.to_owned(),
        keys,
        key,
        values,
    })
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NothingToCompare { replicas } => {
                write!(
                    f,
                    "{replicas} replicas: at least two are needed for a comparison"
                )
            }
            Problem::Unreadable { replica, what, why } => {
                write!(f, "the {what} of {replica} could not be had: {why}")
            }
            Problem::Unordered { replica, key } => {
                write!(f, "the scan of {replica} is out of order at key {key}")
            }
            Problem::Digests {
                first,
                second,
                digests: [a, b],
            } => {
                write!(f, "digests differ: {first} has {a}, {second} has {b}")
            }
            Problem::Scans {
                first,
                second,
                keys,
                key,
                values: [a, b],
            } => {
                let [a, b] = [a, b].map(|value| value.as_deref().unwrap_or("nothing"));
                write!(
                    f,
                    "{first} and {second} differ in {keys} keys; at the first, {key}, {first} has \
                     {a} and {second} has {b}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tested = Replica<u64, &'static str, u64>;

    fn replica(name: &str, digest: u64, scan: &[(&'static str, u64)]) -> Tested {
        Replica {
            name: name.to_owned(),
            digest: Ok(digest),
            scan: Ok(scan.to_vec()),
        }
    }

    fn problems(replicas: &[Tested]) -> Vec<Problem> {
        check(replicas).expect_err("these are not equal")
    }

    #[test]
    fn equal_replicas_pass() {
        let scan = [("a", 1), ("b", 2)];
        let all = ["one", "two", "three"].map(|name| replica(name, 9, &scan));
        assert_eq!(check(&all), Ok(()));
        assert_eq!(
            check(&[replica("one", 0, &[]), replica("two", 0, &[])]),
            Ok(())
        );
    }

    #[test]
    fn a_comparison_not_made_is_a_failure() {
        assert_eq!(problems(&[]), [Problem::NothingToCompare { replicas: 0 }]);
        let one = replica("one", 9, &[]);
        assert_eq!(
            problems(std::slice::from_ref(&one)),
            [Problem::NothingToCompare { replicas: 1 }]
        );

        let mut mute = replica("two", 9, &[]);
        mute.digest = Err("not reachable".to_owned());
        let found = problems(&[mute.clone(), one.clone(), one.clone()]);
        assert!(
            matches!(&found[..], [Problem::Unreadable { what: "digest", .. }]),
            "{found:?}"
        );

        let mut unread = replica("two", 9, &[]);
        unread.scan = Err("NO_QUORUM".to_owned());
        let found = problems(&[one, unread]);
        assert!(
            matches!(&found[..], [Problem::Unreadable { what: "scan", .. }]),
            "{found:?}"
        );
        assert!(found[0].to_string().contains("NO_QUORUM"));
    }

    #[test]
    fn digests_that_differ_are_named() {
        let scan = [("a", 1)];
        let all = [
            replica("one", 9, &scan),
            replica("two", 9, &scan),
            replica("three", 8, &scan),
        ];
        let digests = ["9".to_owned(), "8".to_owned()];
        let (first, second) = ("one".to_owned(), "three".to_owned());
        assert_eq!(
            problems(&all),
            [Problem::Digests {
                first,
                second,
                digests
            }]
        );
    }

    #[test]
    fn scans_that_differ_under_equal_digests_are_found() {
        // left, right -> keys that differ, the smallest, what each holds there
        type Case = (
            &'static [(&'static str, u64)],
            &'static [(&'static str, u64)],
        );
        type Expected = (usize, &'static str, [Option<&'static str>; 2]);
        let table: [(Case, Expected); 6] = [
            ((&[("a", 1)], &[]), (1, "\"a\"", [Some("1"), None])),
            ((&[], &[("a", 1)]), (1, "\"a\"", [None, Some("1")])),
            (
                (&[("a", 1)], &[("a", 2)]),
                (1, "\"a\"", [Some("1"), Some("2")]),
            ),
            (
                (&[("a", 1), ("b", 1)], &[("b", 1)]),
                (1, "\"a\"", [Some("1"), None]),
            ),
            (
                (&[("a", 1), ("c", 1)], &[("a", 1), ("b", 1)]),
                (2, "\"b\"", [None, Some("1")]),
            ),
            ((&[("b", 1)], &[("a", 1)]), (2, "\"a\"", [None, Some("1")])),
        ];
        for ((left, right), (keys, key, values)) in table {
            let found = problems(&[replica("one", 9, left), replica("two", 9, right)]);
            let expected = Problem::Scans {
                first: "one".to_owned(),
                second: "two".to_owned(),
                keys,
                key: key.to_owned(),
                values: values.map(|value| value.map(str::to_owned)),
            };
            assert_eq!(found, [expected], "{left:?} {right:?}");
        }
    }

    #[test]
    fn a_scan_out_of_order_or_with_a_key_twice_is_not_trusted() {
        for scan in [[("b", 1), ("a", 1)], [("a", 1), ("a", 1)]] {
            let found = problems(&[replica("one", 9, &scan), replica("two", 9, &scan)]);
            let unordered =
                |p: &Problem| matches!(p, Problem::Unordered { key, .. } if key == "\"a\"");
            assert!(found.len() == 2 && found.iter().all(unordered), "{found:?}");
        }
    }
}
