//! `flaredb top`: the status, refreshed on a terminal.
//!
//! Owns the terminal, the keys and the times. What is shown is `top/model.rs`, how it looks `top/screen.rs`; both are
//! pure, so that they are tested without a terminal.
//!
//! Invariant: however it ends, the terminal is as it was.

mod model;
mod screen;

use crate::args::{Shared, duration};
use crate::exit::Error;
use crate::output;
use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use model::Model;
use ratatui::DefaultTerminal;
use rdb_client::{Client, ClientError};
use rdb_proto::admin::ClusterStatusResponse;
use screen::{Frills, draw};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Between two looks of the thread that waits for keys at whether it is still wanted.
const KEYS: Duration = Duration::from_millis(100);
/// Keys that were pressed and not acted on yet; more are waited for.
const PRESSED: usize = 16;

#[derive(Args, Debug)]
pub(crate) struct Top {
    /// Between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    interval: Duration,
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Press {
    Quit,
    Up(usize),
    Down(usize),
    /// The terminal has another size.
    Redraw,
}

fn press(event: &Event) -> Option<Press> {
    let key = match event {
        Event::Resize(..) => return Some(Press::Redraw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Press::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Press::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Press::Up(1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Press::Down(1)),
        KeyCode::PageUp => Some(Press::Up(10)),
        KeyCode::PageDown => Some(Press::Down(10)),
        KeyCode::Home => Some(Press::Up(usize::MAX)),
        _ => None,
    }
}

impl Top {
    pub(crate) async fn run(self, shared: &Shared) -> Result<ExitCode, Error> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Error::Usage(
                "`flaredb top` draws on a terminal, and there is none here: `flaredb status` prints the same once \
                 (-o json for programs)"
                    .to_owned(),
            ));
        }
        let client = shared.client()?;
        // Before the terminal is taken: what is wrong from the start is said in plain lines.
        let first = client.cluster_status().await?;
        let mut terminal = ratatui::try_init().map_err(|error| drawing(&error))?;
        let watched = Watched {
            first,
            client,
            every: self.interval,
        };
        let ended = watched.on(&mut terminal).await;
        ratatui::restore();
        ended.map(|()| ExitCode::SUCCESS)
    }
}

fn drawing(error: &io::Error) -> Error {
    Error::io("cannot draw on this terminal", error)
}

/// A cluster that is looked at again and again.
struct Watched {
    first: ClusterStatusResponse,
    client: Client,
    every: Duration,
}

impl Watched {
    async fn on(self, terminal: &mut DefaultTerminal) -> Result<(), Error> {
        let (pressed, mut presses) = mpsc::channel(PRESSED);
        let wanted = Arc::new(AtomicBool::new(true));
        let listens = wanted.clone();
        let listener = tokio::task::spawn_blocking(move || listen(&listens, &pressed));
        let ended = self.watch(terminal, &mut presses).await;
        wanted.store(false, Ordering::Relaxed);
        // It looks up soon; what it says then nobody needs.
        presses.close();
        let _ = listener.await;
        ended
    }

    async fn watch(
        self,
        terminal: &mut DefaultTerminal,
        presses: &mut mpsc::Receiver<Press>,
    ) -> Result<(), Error> {
        let mut frills = Frills {
            plain: !output::colours(),
            ..Frills::default()
        };
        let mut model = Model::of(None, &self.first);
        let mut before = self.first;
        // In a task of its own: a key that is held down keeps no answer from coming.
        let (told, mut answers) = mpsc::channel(1);
        let mut looking = JoinSet::new();
        looking.spawn(look(self.client, self.every, told));
        loop {
            let show = |frame: &mut ratatui::Frame<'_>| draw(frame, &model, &frills);
            terminal.draw(show).map_err(|error| drawing(&error))?;
            tokio::select! {
                press = presses.recv() => match press {
                    None | Some(Press::Quit) => return Ok(()),
                    Some(Press::Up(rows)) => frills.skipped = frills.skipped.saturating_sub(rows),
                    Some(Press::Down(rows)) => {
                        let last = model.namespaces.len().saturating_sub(1);
                        frills.skipped = frills.skipped.saturating_add(rows).min(last);
                    }
                    Some(Press::Redraw) => {}
                },
                answer = answers.recv() => match answer {
                    None => return Ok(()),
                    Some(Ok(answer)) => {
                        model = Model::of(Some(&before), &answer);
                        before = answer;
                        frills.stale.clear();
                    }
                    Some(Err(error)) => frills.stale = why(&error),
                },
            }
        }
    }
}

/// Asks again and again, until nobody listens.
async fn look(
    client: Client,
    every: Duration,
    told: mpsc::Sender<Result<ClusterStatusResponse, ClientError>>,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if told.send(client.cluster_status().await).await.is_err() {
            return;
        }
    }
}

/// On one line.
fn why(error: &ClientError) -> String {
    error.to_string().replace('\n', " ")
}

/// Waits for keys, on a thread of its own.
fn listen(wanted: &AtomicBool, pressed: &mpsc::Sender<Press>) {
    while wanted.load(Ordering::Relaxed) {
        let event = match event::poll(KEYS) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(error) => Err(error),
        };
        // A terminal that cannot be read any more is one that is gone.
        let press = match event {
            Ok(event) => press(&event),
            Err(_) => Some(Press::Quit),
        };
        if let Some(press) = press
            && (pressed.blocking_send(press).is_err() || press == Press::Quit)
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossterm::event::KeyEvent;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        let key = |code, modifiers| press(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = |code| key(code, KeyModifiers::NONE);
        assert_eq!(plain(KeyCode::Char('q')), Some(Press::Quit));
        assert_eq!(plain(KeyCode::Esc), Some(Press::Quit));
        assert_eq!(
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Press::Quit)
        );
        assert_eq!(plain(KeyCode::Char('c')), None);
        assert_eq!(plain(KeyCode::Down), Some(Press::Down(1)));
        assert_eq!(plain(KeyCode::PageUp), Some(Press::Up(10)));
        assert_eq!(press(&Event::Resize(1, 1)), Some(Press::Redraw));
        assert_eq!(press(&Event::FocusLost), None);
    }
}
