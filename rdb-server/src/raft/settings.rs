//! openraft's settings, and why each is what it is.
//!
//! Owns the translation of a store's `[raft]` configuration into openraft's. Knows nothing of files
//! and flags.
//!
//! Invariant: whatever is configured, pre-vote is on, a leader that restarts is not a leader, and a
//! log that went backwards is never accepted.

use openraft::{Config, SnapshotPolicy};
use std::sync::Arc;
use std::time::Duration;

/// What of Raft can be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftSettings {
    /// How often a leader shows that it is alive.
    pub heartbeat: Duration,
    /// A follower that has heard nothing for this long or a little longer calls an election.
    pub election_min: Duration,
    /// The upper end of "a little longer"; also how long followers and leader trust each other.
    pub election_max: Duration,
    /// Entries applied since the last snapshot before a new one is made.
    pub snapshot_after: u64,
    /// Entries that stay in the log although a snapshot covers them, so that a replica which was
    /// away for a moment is served from the log.
    pub keep_after_snapshot: u64,
    /// Entries in one message to a follower, at most.
    pub max_batch_entries: u64,
}

impl Default for RaftSettings {
    /// For a LAN: writes go on half a second after a leader's death at the median.
    fn default() -> Self {
        RaftSettings {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            snapshot_after: 10_000,
            keep_after_snapshot: 5_000,
            max_batch_entries: 512,
        }
    }
}

/// Settings that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("raft settings: {0}")]
pub struct SettingsError(String);

/// How long one attempt to install a snapshot may take. openraft's default of 200 ms is over before
/// a large one was written to disk; our own sender watches progress by itself.
const INSTALL_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);

/// Entries that are purged together: a purge is a range delete, whose tombstone costs every later
/// read of the log's beginning, so there should be few.
const PURGE_BATCH_ENTRIES: u64 = 256;

/// openraft's configuration.
///
/// `name` shows in logs.
///
/// # Errors
/// The times do not fit together; the message says which and how.
pub fn raft_config(name: &str, settings: &RaftSettings) -> Result<Arc<Config>, SettingsError> {
    let RaftSettings {
        heartbeat,
        election_min,
        election_max,
        snapshot_after,
        keep_after_snapshot,
        max_batch_entries,
    } = settings;
    for (what, duration) in [
        ("heartbeat", heartbeat),
        ("election_min", election_min),
        ("election_max", election_max),
    ] {
        if duration.as_millis() == 0 || duration.subsec_nanos() % 1_000_000 != 0 {
            return Err(SettingsError(format!(
                "{what} is {duration:?}; it must be whole milliseconds and more than none"
            )));
        }
    }
    for (what, number) in [
        ("snapshot_after", snapshot_after),
        ("max_batch", max_batch_entries),
    ] {
        if *number == 0 {
            return Err(SettingsError(format!("{what} is 0; it must be at least 1")));
        }
    }
    // A follower that misses a single heartbeat, or gets it late, must not call an election.
    if *election_min < *heartbeat * 2 {
        return Err(SettingsError(format!(
            "election_min is {election_min:?} and heartbeat {heartbeat:?}; election_min must be at least twice heartbeat"
        )));
    }
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: name.to_owned(),
        heartbeat_interval: ms(*heartbeat),
        election_timeout_min: ms(*election_min),
        election_timeout_max: ms(*election_max),

        // Off by default. Without it a replica that was cut off comes back with a higher term and
        // deposes a leader that was fine.
        enable_pre_vote: Some(true),
        // On by default: a leader that restarts goes on leading in its old term. Ours asks for a
        // new one, so that a term never has a leader with two lives.
        enable_leader_restore: Some(false),
        // A replica whose log went backwards has lost acknowledged entries: it must not be filled
        // up again as if nothing had happened.
        allow_log_reversion: Some(false),
        // A leader that can send but not hear (half of a link is dead) would keep its followers
        // quiet for ever and commit nothing. With this it falls silent for a while once its quorum
        // is gone, and those who hear each other elect another. The smallest value that openraft
        // takes: a lease and an election have to fit.
        quorum_loss_probe_interval: Some(ms(*election_max).saturating_mul(2)),

        install_snapshot_timeout: ms(INSTALL_SNAPSHOT_TIMEOUT),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(*snapshot_after),
        max_in_snapshot_log_to_keep: *keep_after_snapshot,
        // Never more than what is to be kept, or a small log would be purged in one go.
        purge_batch_size: PURGE_BATCH_ENTRIES.min((*keep_after_snapshot).max(1)),
        // Only a report of openraft's ("is this replica far behind?"); it decides nothing.
        replication_lag_threshold: snapshot_after.saturating_add(*keep_after_snapshot),

        // Bytes bound a message as well, in the log store's reads: this bounds the count of tiny
        // entries.
        max_payload_entries: *max_batch_entries,
        // Used only where the network has no opinion; ours has one, see `NetworkSettings`.
        backoff: "50ms, 100ms, 200ms ..500ms".to_owned(),
        ..Config::default()
    };
    let config = config
        .validate()
        .map_err(|error| SettingsError(error.to_string()))?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_accepted_and_set_what_openraft_leaves_unsafe_or_slow() {
        let config = raft_config("region 2", &RaftSettings::default()).unwrap();
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.allow_log_reversion, Some(false));
        assert!(config.install_snapshot_timeout >= 60_000);
        assert_eq!(config.quorum_loss_probe_interval, Some(600));
        assert_eq!(
            (
                config.heartbeat_interval,
                config.election_timeout_min,
                config.election_timeout_max
            ),
            (50, 150, 300)
        );
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_name() {
        let refused = |change: fn(&mut RaftSettings)| {
            let mut settings = RaftSettings::default();
            change(&mut settings);
            raft_config("x", &settings).unwrap_err().to_string()
        };
        assert!(refused(|s| s.heartbeat = Duration::ZERO).contains("heartbeat"));
        assert!(
            refused(|s| s.heartbeat = Duration::from_micros(1500)).contains("whole milliseconds")
        );
        assert!(refused(|s| s.election_min = Duration::from_millis(60)).contains("twice"));
        assert!(refused(|s| s.election_max = s.election_min).contains("election"));
        assert!(refused(|s| s.snapshot_after = 0).contains("snapshot_after"));
        assert!(refused(|s| s.max_batch_entries = 0).contains("max_batch"));
    }
}
