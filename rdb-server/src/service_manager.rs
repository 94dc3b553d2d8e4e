//! What the process tells the service manager that started it: systemd with `Type=notify`, or whoever listens
//! at `NOTIFY_SOCKET`. Where nobody does, nothing is said.
//!
//! Owns the words: READY, RELOADING, STOPPING, a STATUS line, and the sign of life that a watchdog waits for.
//! Decides nothing, and does not know what a store is.
//!
//! READY means that both ports are served, not that the store is ready (`/readyz`): one that waits for the other
//! members of its first cluster may wait for days, and whoever waits for READY (a boot, an upgrade, the script that
//! starts three machines one after the other) must not wait with it, or kill it. STATUS says what it waits for.

use sd_notify::NotifyState;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often the status is looked at, and a sign of life given.
const LOOK: Duration = Duration::from_secs(1);

/// Lost words change nothing about the store: they are worth a line for whoever looks for them.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// Whether somebody listens.
fn listened_to() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// The ports are served.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is read again. Over with [`ready`].
pub fn reloading() {
    // `Type=notify-reload` (systemd 253) matches the answer with its question by the time.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager is not told of the reload"),
    }
}

/// The store leaves.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("leaving")]);
}

/// Why the store did not start, or left.
pub fn failed(why: &str) {
    tell(&[NotifyState::Status(&one_line(why))]);
}

/// Keeps the status up to date with what keeps the store from being ready, and the watchdog quiet. Never ends.
///
/// The watchdog hears that this runtime still runs tasks, and nothing more: a store that has no quorum, or waits,
/// is not mended by a restart.
pub async fn keep_told(missing: impl Fn() -> Option<String>) {
    if !listened_to() {
        return std::future::pending().await;
    }
    let watchdog = sd_notify::watchdog_enabled();
    // Twice within the time that it allows, as it asks for.
    let every = watchdog.map_or(LOOK, |limit| LOOK.min(limit / 2));
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        ticks.tick().await;
        let status = missing().map_or_else(
            || "serving".to_owned(),
            |missing| format!("not ready: {}", one_line(&missing)),
        );
        if told.as_ref() != Some(&status) {
            tell(&[NotifyState::Status(&status)]);
            told = Some(status);
        }
        if watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// A line's end would end the word.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
