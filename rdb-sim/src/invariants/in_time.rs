//! Every call is answered by its deadline, whatever is broken: nothing hangs.

/// Its name.
pub const NAME: &str = "answered in time";

/// Simulated milliseconds that an answer may come late: the timers of the runtime have a grain.
const GRAIN_MS: u64 = 20;

/// A store took this long to answer a call with this much time.
///
/// # Errors
/// It took longer.
pub fn check(what: &str, allowed_ms: u64, took_ms: u64) -> Result<(), String> {
    if took_ms <= allowed_ms + GRAIN_MS {
        return Ok(());
    }
    Err(format!(
        "{what} was answered after {took_ms} ms and had {allowed_ms} ms"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_is_seen() {
        check("a put", 100, 105).unwrap();
        assert!(check("a put", 100, 200).is_err());
    }
}
