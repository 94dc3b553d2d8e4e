//! Once everything is healed, writes and linearizable reads go on at every store.

/// Its name.
pub const NAME: &str = "goes on after healing";

/// How long that may take, in simulated milliseconds (all stores may have to start, elect and catch up).
pub const WITHIN_MS: u64 = 15_000;

/// A probe of one store came to this; `None`: it never succeeded.
///
/// # Errors
/// It took too long.
pub fn check(what: &str, took_ms: Option<u64>) -> Result<(), String> {
    match took_ms {
        Some(took_ms) if took_ms <= WITHIN_MS => Ok(()),
        Some(took_ms) => Err(format!(
            "{what} took {took_ms} ms after everything was healed"
        )),
        None => Err(format!(
            "{what} did not succeed within {WITHIN_MS} ms after everything was healed"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standing_still_is_seen() {
        check("a put", Some(400)).unwrap();
        assert!(check("a put", None).is_err());
        assert!(check("a put", Some(WITHIN_MS + 1)).is_err());
    }
}
