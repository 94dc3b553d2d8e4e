//! A switch ends: soon after the healing every replica of every region is where the cluster's tables say,
//! or back where it was.

/// Its name.
pub const NAME: &str = "a switch is done or undone";

/// How long that may take, in simulated milliseconds: a switch gives up after ten seconds, and goes back.
pub const WITHIN_MS: u64 = 30_000;

/// `why`: what still has to follow; `None`: nothing.
///
/// # Errors
/// It took too long.
pub fn check(why: Option<&str>) -> Result<(), String> {
    match why {
        None => Ok(()),
        Some(why) => Err(format!("{WITHIN_MS} ms after everything was healed {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standing_still_is_seen() {
        check(None).unwrap();
        assert!(check(Some("a region is being sealed")).is_err());
    }
}
