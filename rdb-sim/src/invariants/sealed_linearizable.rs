//! From a seal on a namespace is linearizable, until it is eventual again: each strong time by itself, key
//! by key, beginning with what was sealed.

use bytes::Bytes;
use rdb_check::{Call, Op, Outcome, Verdict, check_linearizable};
use rdb_types::RegionId;
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "linearizable from the seal on";

/// A call, and where it was served.
#[derive(Clone, Debug)]
pub struct Served {
    /// The user's key.
    pub key: Bytes,
    /// The call.
    pub call: Call,
    /// The region and the epoch that a receipt names, of a call that was served as strong; `None`: nobody
    /// knows, it may have been done in any time after it was asked for.
    pub place: Option<(RegionId, u64)>,
}

/// Judges one strong time: `initial` says what was sealed under a key.
///
/// # Errors
/// There is no order that explains what was seen, or none could be found.
pub fn check(
    (region, epoch): (RegionId, u64),
    calls: &[Served],
    initial: impl Fn(&Bytes) -> Option<u64>,
) -> Result<usize, String> {
    let mut keys: BTreeMap<&Bytes, (u64, Vec<Call>)> = BTreeMap::new();
    for served in calls
        .iter()
        .filter(|served| served.place == Some((region, epoch)))
    {
        let number = keys.len() as u64;
        let (number, of_key) = keys.entry(&served.key).or_insert((number, Vec::new()));
        of_key.push(Call {
            key: *number,
            ..served.call.clone()
        });
    }
    let judged = keys.values().map(|(_, calls)| calls.len()).sum();
    for (key, (number, of_key)) in &mut keys {
        let until = of_key.iter().filter_map(|call| call.returned_ns).max();
        let may_be = calls.iter().filter(|served| {
            served.place.is_none() && served.key == **key && Some(served.call.invoked_ns) < until
        });
        of_key.extend(may_be.map(|served| Call {
            key: *number,
            outcome: Outcome::Unknown,
            ..served.call.clone()
        }));
        if let Some(value) = initial(key) {
            of_key.push(Call {
                process: u64::MAX,
                key: *number,
                op: Op::Write(value),
                invoked_ns: 0,
                returned_ns: Some(1),
                outcome: Outcome::Done,
            });
        }
        match check_linearizable(of_key) {
            Verdict::Linearizable => {}
            verdict => {
                return Err(format!(
                    "key {} of region {region} in epoch {epoch}: {verdict}",
                    key.escape_ascii()
                ));
            }
        }
    }
    Ok(judged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_where_it_begins() {
        let key = Bytes::from_static(b"k");
        let place = (RegionId(2), 3);
        let read = |value, at| Served {
            key: key.clone(),
            place: Some(place),
            call: Call {
                process: 1,
                key: 0,
                op: Op::Read,
                invoked_ns: at,
                returned_ns: Some(at + 1),
                outcome: Outcome::Read(value),
            },
        };
        let unknown = Served {
            place: None,
            call: Call {
                op: Op::Write(9),
                returned_ns: None,
                outcome: Outcome::Unknown,
                ..read(None, 5).call
            },
            ..read(None, 5)
        };
        let judge = |calls: &[Served]| check(place, calls, |_| Some(7));
        assert_eq!(judge(&[read(Some(7), 10)]), Ok(1));
        assert!(judge(&[read(None, 10)]).is_err());
        assert!(judge(&[read(Some(9), 10)]).is_err());
        assert!(judge(&[read(Some(7), 10), unknown.clone(), read(Some(9), 20)]).is_ok());
        assert!(judge(&[read(Some(9), 10), unknown, read(Some(7), 20)]).is_err());
    }
}
