//! Cuts between the stores, of every shape that three of them have. Clients reach all of them.
//!
//! Whoever has no quorum must say so: NO_QUORUM to a linearizable read and to a write, each in time.

use super::{Fault, Inflicted, Promise, Site, Step, millis};
use crate::ChaosError;
use crate::cluster::{Cluster, STORES};
use crate::dice::Dice;
use rdb_client::{Client, ClientError, PutOptions, ReadOptions};
use std::time::Duration;
use tokio::time::Instant;

/// A store without a quorum says so within this.
const KNOWS: Duration = Duration::from_secs(5);
/// The limit is that many times the aim: machines are slow and busy.
const PATIENCE: u32 = 3;
/// Of one question.
const ASK: Duration = Duration::from_secs(3);

/// Who does not hear whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The leader is alone.
    Leader,
    /// A follower is alone.
    Follower,
    /// The leader and a follower do not hear each other; the third hears and is heard by both.
    Pair,
    /// Nobody hears a store, which hears all.
    OneWay,
    /// Everybody is alone.
    All,
}

/// See the module.
pub(super) struct Partition {
    shape: Shape,
    lasts: Duration,
    /// Which of those that the shape leaves open.
    choice: usize,
    /// Stores that have no quorum.
    alone: Vec<usize>,
    at: Instant,
}

impl Partition {
    pub(super) fn new(shape: Shape, dice: &mut Dice, longest: Duration) -> Partition {
        Partition {
            shape,
            lasts: millis(dice, 4000, 15_000).min(longest),
            choice: dice.below(STORES as u64) as usize,
            alone: Vec::new(),
            at: Instant::now(),
        }
    }

    fn cuts(&mut self, leader: usize) -> Vec<(usize, usize)> {
        let follower = (leader + 1 + self.choice % (STORES - 1)) % STORES;
        let any = self.choice;
        let others = |store: usize| (0..STORES).filter(move |other| *other != store);
        let both = |one, other| [(one, other), (other, one)];
        self.alone = match self.shape {
            Shape::Leader => vec![leader],
            Shape::Follower => vec![follower],
            // Who may lead after this is not for us to say.
            Shape::Pair | Shape::OneWay => Vec::new(),
            Shape::All => (0..STORES).collect(),
        };
        match self.shape {
            Shape::Leader => others(leader)
                .flat_map(|other| both(leader, other))
                .collect(),
            Shape::Follower => others(follower)
                .flat_map(|other| both(follower, other))
                .collect(),
            Shape::Pair => both(leader, follower).to_vec(),
            Shape::OneWay => others(any).map(|other| (any, other)).collect(),
            Shape::All => (0..STORES)
                .flat_map(|store| others(store).map(move |other| (store, other)))
                .collect(),
        }
    }

    /// Asks a store that is alone until it says so.
    async fn says_so(&self, cluster: &Cluster, store: usize) -> Result<String, ChaosError> {
        let client = cluster.client_of(store);
        let limit = self.at + KNOWS * PATIENCE;
        loop {
            let asked = Instant::now();
            let (read, write) = futures::join!(read(client), write(client));
            let no_quorum = |error: &ClientError| error.to_string().contains("NO_QUORUM");
            match (&read, &write) {
                (Err(read), Err(write)) if no_quorum(read) && no_quorum(write) => {
                    let took = self.at.elapsed();
                    return Ok(format!("store {} NO_QUORUM after {took:.1?}", store + 1));
                }
                // It does not know yet. What it answers meanwhile the checker judges.
                _ if asked < limit => tokio::time::sleep(Duration::from_millis(100)).await,
                _ => {
                    return Err(ChaosError::Broken(format!(
                        "store {} is cut off and does not say NO_QUORUM within {:?}: read {}, write {}",
                        store + 1,
                        KNOWS * PATIENCE,
                        told(&read),
                        told(&write)
                    )));
                }
            }
        }
    }
}

async fn read(client: &Client) -> Result<(), ClientError> {
    let options = ReadOptions {
        timeout: Some(ASK),
        ..ReadOptions::linearizable()
    };
    client.get("default", "probe", options).await.map(drop)
}

async fn write(client: &Client) -> Result<(), ClientError> {
    let options = PutOptions {
        timeout: Some(ASK),
        ..PutOptions::default()
    };
    client.put("default", "probe", "x", options).await.map(drop)
}

fn told(answer: &Result<(), ClientError>) -> String {
    match answer {
        Ok(()) => "answered".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

impl Fault for Partition {
    fn plan(&self) -> String {
        let what = match self.shape {
            Shape::Leader => "the leader is cut off",
            Shape::Follower => "a follower is cut off",
            Shape::Pair => "the leader and a follower do not hear each other",
            Shape::OneWay => "nobody hears a store that hears all",
            Shape::All => "nobody hears anybody",
        };
        format!("{what} for {:.1?}", self.lasts)
    }

    fn promise(&self) -> Promise {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        Promise {
            during: match self.shape {
                Shape::Leader | Shape::Follower => seconds(3),
                Shape::Pair | Shape::OneWay => seconds(10),
                Shape::All => None,
            },
            after: Duration::from_secs(3),
        }
    }

    fn lasts(&self) -> Duration {
        self.lasts
    }

    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted> {
        Box::pin(async move {
            let leader = site.cluster.leader().await?;
            let cuts = self.cuts(leader);
            for (from, to) in &cuts {
                site.cluster.network().cut(*from, *to)?;
            }
            // From here on nothing passes; before, the way of one may have been cut and of another not.
            self.at = Instant::now();
            let told: Vec<String> = cuts
                .iter()
                .map(|(from, to)| format!("{}-/->{}", from + 1, to + 1))
                .collect();
            Ok(Inflicted {
                at: self.at,
                story: format!("store {} led; {}", leader + 1, told.join(" ")),
            })
        })
    }

    fn watch<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, String> {
        Box::pin(async move {
            let asked = self
                .alone
                .iter()
                .map(|store| self.says_so(site.cluster, *store));
            let told = futures::future::try_join_all(asked).await?;
            Ok(told.join(", "))
        })
    }

    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()> {
        Box::pin(async move { site.cluster.network().heal() })
    }
}
