//! kill -9: of any store, of the leader, of all at once. What the process had not synced is gone with it
//! only if the machine fails, too; that is the simulator's.

use super::{Fault, Inflicted, Promise, QUORUM_LEFT, Site, Step, millis};
use crate::cluster::STORES;
use crate::dice::Dice;
use std::time::Duration;
use tokio::time::Instant;

enum Victim {
    Store(usize),
    Leader,
    All,
}

/// See the module.
pub(super) struct Kill {
    victim: Victim,
    down: Duration,
    killed: Vec<usize>,
}

impl Kill {
    pub(super) fn one(dice: &mut Dice) -> Kill {
        let victim = Victim::Store(dice.below(STORES as u64) as usize);
        Kill::of(victim, millis(dice, 500, 6000))
    }

    pub(super) fn leader(dice: &mut Dice) -> Kill {
        Kill::of(Victim::Leader, millis(dice, 2000, 6000))
    }

    pub(super) fn all(dice: &mut Dice) -> Kill {
        Kill::of(Victim::All, millis(dice, 0, 2000))
    }

    fn of(victim: Victim, down: Duration) -> Kill {
        Kill {
            victim,
            down,
            killed: Vec::new(),
        }
    }
}

impl Fault for Kill {
    fn plan(&self) -> String {
        let whom = match self.victim {
            Victim::Store(store) => format!("store {}", store + 1),
            Victim::Leader => "the leader".to_owned(),
            Victim::All => "all stores".to_owned(),
        };
        format!("kill -9 of {whom}, started again after {:.1?}", self.down)
    }

    fn promise(&self) -> Promise {
        match self.victim {
            Victim::All => Promise {
                during: None,
                after: Duration::from_secs(15),
            },
            _ => QUORUM_LEFT,
        }
    }

    fn lasts(&self) -> Duration {
        self.down
    }

    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted> {
        Box::pin(async move {
            self.killed = match self.victim {
                Victim::Store(store) => vec![store],
                Victim::Leader => vec![site.cluster.leader().await?],
                Victim::All => (0..STORES).collect(),
            };
            site.cluster.kill(&self.killed);
            let at = Instant::now();
            let ids: Vec<usize> = self.killed.iter().map(|store| store + 1).collect();
            Ok(Inflicted {
                at,
                story: format!("killed {ids:?}"),
            })
        })
    }

    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()> {
        Box::pin(async move {
            self.killed
                .drain(..)
                .try_for_each(|store| site.cluster.launch(store))
        })
    }
}
