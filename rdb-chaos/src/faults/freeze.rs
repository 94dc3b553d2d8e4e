//! SIGSTOP of the leader, SIGCONT later: it wakes up, finds requests in its sockets, and believes for a
//! moment that it still leads.

use super::{Fault, Inflicted, Site, Step, millis};
use crate::dice::Dice;
use std::time::Duration;
use tokio::time::Instant;

/// See the module.
pub(super) struct Freeze {
    lasts: Duration,
    frozen: usize,
}

impl Freeze {
    pub(super) fn new(dice: &mut Dice, longest: Duration) -> Freeze {
        // Most are about as long as an election and the client's time-outs; one in four is anything.
        let high = if dice.below(4) == 0 { 60_000 } else { 12_000 };
        Freeze {
            lasts: millis(dice, 1000, high).min(longest),
            frozen: 0,
        }
    }
}

impl Fault for Freeze {
    fn plan(&self) -> String {
        format!("the leader stands still for {:.1?}", self.lasts)
    }

    fn lasts(&self) -> Duration {
        self.lasts
    }

    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted> {
        Box::pin(async move {
            self.frozen = site.cluster.leader().await?;
            site.cluster.node(self.frozen).signal("STOP")?;
            Ok(Inflicted {
                at: Instant::now(),
                story: format!("store {} stands still", self.frozen + 1),
            })
        })
    }

    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()> {
        Box::pin(async move { site.cluster.node(self.frozen).signal("CONT") })
    }
}
