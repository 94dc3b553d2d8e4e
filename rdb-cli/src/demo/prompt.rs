//! `flaredb demo --keep`: the cluster stays up, and whoever sits there breaks it by hand.
//!
//! Owns the commands of the prompt. Lines come from stdin, be it a terminal or a pipe; the end of the
//! input is `quit`.

use super::cluster::Cluster;
use super::failed;
use super::load::NAMESPACE;
use super::screen::spent;
use super::switching;
use crate::cmd::status;
use crate::exit::Error;
use crate::output;
use crate::text;
use rdb_client::{Client, PutOptions, ReadOptions};
use rdb_types::{Mode, StoreId};
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Instant;
use tokio::sync::mpsc;

const HELP: &str = "\
put KEY VALUE      write (a value may have spaces)
get KEY [N]        read; of store N alone, and what it has without asking anybody, with its age
kill N             end store N without a warning
restart N          start it again on its data
partition N        cut store N off from the others
heal               take every cut back
status             stores, regions, namespaces
switch NAME MODE   make a namespace strong or eventual, as in: switch cart strong
quit               stop the stores and leave";

/// A line that was understood.
#[derive(Debug, PartialEq, Eq)]
enum Command<'a> {
    Put(&'a str, &'a str),
    Get(&'a str, Option<StoreId>),
    Kill(StoreId),
    Restart(StoreId),
    Partition(StoreId),
    Heal,
    Status,
    Switch(&'a str, Mode),
    Help,
    Quit,
    Nothing,
}

/// Reads and obeys until `quit`.
pub(super) async fn run(cluster: &mut Cluster) -> Result<(), Error> {
    let client = cluster.client()?;
    let endpoints: Vec<String> = cluster
        .ids()
        .into_iter()
        .map(|store| cluster.addr(store))
        .collect();
    output::line(&format!(
        "The cluster stays up. Type help, or use another terminal:\n  flaredb --endpoints {} -n {NAMESPACE} status\n",
        endpoints.join(",")
    ))?;
    let mut lines = lines();
    loop {
        if io::stdin().is_terminal() {
            let mut out = io::stdout().lock();
            let _ = out.write_all(b"flaredb> ").and_then(|()| out.flush());
        }
        let Some(line) = lines.recv().await else {
            return Ok(());
        };
        let answer = match parse(&line, &cluster.ids()) {
            Err(why) => why,
            Ok(Command::Quit) => return Ok(()),
            Ok(Command::Nothing) => continue,
            Ok(command) => obey(command, cluster, &client)
                .await
                .unwrap_or_else(|error| error.to_string()),
        };
        output::line(&answer)?;
    }
}

async fn obey(
    command: Command<'_>,
    cluster: &mut Cluster,
    client: &Client,
) -> Result<String, Error> {
    let began = Instant::now();
    Ok(match command {
        Command::Put(key, value) => {
            let answer = client
                .put(
                    NAMESPACE,
                    key.to_owned(),
                    value.to_owned(),
                    PutOptions::default(),
                )
                .await?;
            format!(
                "version {}, acknowledged by a quorum after {}",
                answer.version,
                spent(began.elapsed())
            )
        }
        Command::Get(key, store) => {
            let answer = match store {
                None => {
                    client
                        .get(NAMESPACE, key.to_owned(), ReadOptions::linearizable())
                        .await?
                }
                Some(store) => {
                    cluster
                        .probe(store)?
                        .get(NAMESPACE, key.to_owned(), ReadOptions::stale())
                        .await?
                }
            };
            let value = if answer.found {
                text::cell(&answer.value)
            } else {
                "there is no such key".to_owned()
            };
            let receipt = answer.receipt.unwrap_or_default();
            match receipt.staleness_bound_ms {
                0 => format!(
                    "{value}\n  linearizable, from store {}, after {}",
                    receipt.store_id,
                    spent(began.elapsed())
                ),
                bound_ms => format!(
                    "{value}\n  stale, from store {}: at most {bound_ms} ms old",
                    receipt.store_id
                ),
            }
        }
        Command::Kill(store) if cluster.is_running(store) => {
            cluster.kill(store);
            format!("store {store} is dead")
        }
        Command::Kill(store) => format!("store {store} does not run"),
        Command::Restart(store) if cluster.is_running(store) => {
            format!("store {store} runs already")
        }
        Command::Restart(store) => {
            cluster.start_one(store).await?;
            format!("store {store} runs again after {}", spent(began.elapsed()))
        }
        Command::Partition(store) => {
            cluster.isolate(store);
            let others: Vec<String> = cluster
                .cut_from(store)
                .iter()
                .map(ToString::to_string)
                .collect();
            format!(
                "nothing passes between store {store} and stores {}; clients reach all of them",
                others.join(" and ")
            )
        }
        Command::Heal => {
            cluster.heal();
            "every cut is taken back".to_owned()
        }
        Command::Status => status::screen_of(&client.cluster_status().await?),
        Command::Switch(name, mode) => {
            let refused = switching::switch(client, name, mode).await?;
            format!(
                "{name} is {mode} after {}; writes were refused for {}",
                spent(began.elapsed()),
                spent(refused)
            )
        }
        Command::Help | Command::Quit | Command::Nothing => HELP.to_owned(),
    })
}

fn parse<'a>(line: &'a str, stores: &[StoreId]) -> Result<Command<'a>, String> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let store = |text: &str| {
        let id = text
            .parse()
            .ok()
            .and_then(StoreId::new)
            .filter(|id| stores.contains(id));
        id.ok_or_else(|| {
            format!(
                "{text:?} is not a store; the stores are 1 to {}",
                stores.len()
            )
        })
    };
    Ok(match word {
        "" => Command::Nothing,
        "put" => match rest.split_once(char::is_whitespace) {
            Some((key, value)) => Command::Put(key, value.trim()),
            None => return Err("put KEY VALUE".to_owned()),
        },
        "get" if rest.is_empty() => {
            return Err("get KEY, or get KEY N for store N's own copy".to_owned());
        }
        "get" => match rest.split_once(char::is_whitespace) {
            Some((key, at)) => Command::Get(key, Some(store(at.trim())?)),
            None => Command::Get(rest, None),
        },
        "kill" => Command::Kill(store(rest)?),
        "restart" => Command::Restart(store(rest)?),
        "partition" => Command::Partition(store(rest)?),
        "heal" => Command::Heal,
        "status" => Command::Status,
        "switch" => {
            let (name, mode) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let mode = mode.trim().parse::<Mode>();
            let mode =
                mode.map_err(|_| "switch NAME strong, or switch NAME eventual".to_owned())?;
            Command::Switch(name, mode)
        }
        "help" => Command::Help,
        "quit" | "exit" => Command::Quit,
        other => return Err(format!("there is no command {other:?}; type help")),
    })
}

/// Lines of stdin, read on a thread of their own: a read that nothing interrupts must not keep the
/// process from ending.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    let read = move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("stdin".into()).spawn(read) {
        // The receiver then sees the end of the input.
        tracing::error!(error = %failed(error), "stdin cannot be read");
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_people_type_them() {
        let stores: Vec<StoreId> = (1..=3).filter_map(StoreId::new).collect();
        let two = stores[1];
        for (line, command) in [
            ("", Command::Nothing),
            ("  put k  some words ", Command::Put("k", "some words")),
            ("get k", Command::Get("k", None)),
            ("get k 2", Command::Get("k", Some(two))),
            ("kill 2", Command::Kill(two)),
            ("restart 2", Command::Restart(two)),
            ("partition 2", Command::Partition(two)),
            ("heal", Command::Heal),
            ("status", Command::Status),
            ("switch cart strong", Command::Switch("cart", Mode::Strong)),
            ("help", Command::Help),
            ("quit", Command::Quit),
        ] {
            assert_eq!(parse(line, &stores), Ok(command), "{line:?}");
        }
        for (line, why) in [
            ("put", "put KEY VALUE"),
            ("put k", "put KEY VALUE"),
            ("get", "get KEY"),
            ("get k 4", "not a store"),
            ("kill", "not a store"),
            ("kill 0", "1 to 3"),
            ("kill all", "not a store"),
            ("switch cart", "switch NAME strong"),
            ("switch cart weak", "or switch NAME eventual"),
            ("explode", "type help"),
        ] {
            assert!(parse(line, &stores).unwrap_err().contains(why), "{line:?}");
        }
    }
}
