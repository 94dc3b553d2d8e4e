//! Request ids: what makes a repeated write safe.
//!
//! Any bytes, at most 64. Ids that are UUIDs of version 7 also tell when they were made, so that one
//! from before the table's memory can be refused instead of being taken for new.

use bytes::Bytes;

/// The longest id that is accepted.
pub const MAX_BYTES: usize = 64;

/// A caller's id of one write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Bytes);

impl RequestId {
    /// `None` when it is empty (the write has none) or too long (the edge refuses it first).
    pub fn new(bytes: Bytes) -> Option<RequestId> {
        (1..=MAX_BYTES)
            .contains(&bytes.len())
            .then_some(RequestId(bytes))
    }

    /// The bytes as given.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// When it was made, in Unix milliseconds, if it is a UUID of version 7 (RFC 9562, 5.7), as 16
    /// raw bytes or as text.
    pub fn made_at_ms(&self) -> Option<u64> {
        let raw: [u8; 16] = match self.0.len() {
            16 => self.0[..].try_into().ok()?,
            36 => parse_text(&self.0)?,
            _ => return None,
        };
        let is_version_7 = raw[6] >> 4 == 7 && raw[8] >> 6 == 0b10;
        is_version_7.then(|| {
            raw[..6]
                .iter()
                .fold(0, |ms, byte| (ms << 8) | u64::from(*byte))
        })
    }
}

fn parse_text(text: &[u8]) -> Option<[u8; 16]> {
    let mut digits = Vec::with_capacity(32);
    for (at, byte) in text.iter().enumerate() {
        match (at, byte) {
            (8 | 13 | 18 | 23, b'-') => {}
            (8 | 13 | 18 | 23, _) => return None,
            _ => digits.push((*byte as char).to_digit(16)? as u8),
        }
    }
    let mut raw = [0; 16];
    for (byte, pair) in raw.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_of_version_7_tells_its_age() {
        // RFC 9562, appendix A.6: made on Tuesday, February 22, 2022 2:22:22.00 PM GMT-05:00.
        let text =
            RequestId::new(Bytes::from_static(b"017F22E2-79B0-7CC3-98C4-DC0C0C07398F")).unwrap();
        assert_eq!(text.made_at_ms(), Some(0x017F_22E2_79B0));
        let raw = [
            0x01, 0x7F, 0x22, 0xE2, 0x79, 0xB0, 0x7C, 0xC3, 0x98, 0xC4, 0xDC, 0x0C, 0x0C, 0x07,
            0x39, 0x8F,
        ];
        assert_eq!(
            RequestId::new(raw.to_vec().into()).unwrap().made_at_ms(),
            Some(0x017F_22E2_79B0)
        );
        let mut version_4 = raw;
        version_4[6] = 0x4C;
        assert_eq!(
            RequestId::new(version_4.to_vec().into())
                .unwrap()
                .made_at_ms(),
            None
        );
        assert_eq!(
            RequestId::new(Bytes::from_static(b"order-4711"))
                .unwrap()
                .made_at_ms(),
            None
        );
        assert_eq!(
            RequestId::new(Bytes::from_static(b"017F22E2x79B0-7CC3-98C4-DC0C0C07398F"))
                .unwrap()
                .made_at_ms(),
            None
        );
    }

    #[test]
    fn empty_and_long_ids_are_none() {
        assert_eq!(RequestId::new(Bytes::new()), None);
        assert!(RequestId::new(vec![0; 64].into()).is_some());
        assert_eq!(RequestId::new(vec![0; 65].into()), None);
    }
}
