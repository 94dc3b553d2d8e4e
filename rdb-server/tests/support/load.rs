//! The recorded load of `rdb-chaos` on a test's cluster: what it returns as an error fails the test.

use super::cluster::Cluster;
use rdb_chaos::load;
use rdb_chaos::registers::FlareDb;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

pub(crate) use rdb_chaos::load::LoadOptions;

/// Load under way.
pub(crate) struct Load(load::Load);

/// What all clients saw.
pub(crate) struct Loaded(load::Loaded);

impl Load {
    pub(crate) fn start(cluster: &Cluster, options: LoadOptions) -> Load {
        let clients = FlareDb::clients(&cluster.endpoints_from(0), &options).unwrap();
        Load(load::Load::start(clients, options))
    }

    /// Waits until so many more writes were acknowledged: what follows happens under load, on a slow
    /// machine, too.
    pub(crate) async fn more(&self, count: usize) {
        self.0.more(count).await.unwrap();
    }

    /// Lets calls that are under way end.
    pub(crate) async fn stop(self) -> Loaded {
        Loaded(self.0.stop().await)
    }
}

impl Loaded {
    /// Reads every shared key once more at each store, and judges everything. Prints what there was.
    pub(crate) async fn judge(self, cluster: &Cluster) {
        // Longer than in the load: after the last fault a store may still be looking for its leader.
        let options = LoadOptions {
            timeout: Duration::from_secs(10),
            ..LoadOptions::default()
        };
        let readers = (0..cluster.len())
            .map(|store| FlareDb::new(vec![cluster.addr(store).to_string()], &options).unwrap());
        let judged = self.0.judge(&readers.collect::<Vec<_>>()).await;
        match judged {
            Ok(judgement) => println!("{judgement}"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Failed calls, by reason.
    pub(crate) fn errors(&self) -> &BTreeMap<String, u64> {
        self.0.errors()
    }

    /// From `fault` to the answer of the first write that was begun after it.
    pub(crate) fn outage(&self, fault: Instant) -> Duration {
        self.0
            .outage(fault)
            .expect("no write was acknowledged any more")
    }

    /// The longest time between two acknowledged writes.
    pub(crate) fn longest_silence(&self) -> Duration {
        self.0.longest_silence()
    }
}
