//! Nothing fails: every store takes writes and serves reads, and says truthfully how.

use crate::support::calls::{Plain, linearizable, text};
use crate::support::cluster::{Cluster, DATA};
use crate::support::load::{Load, LoadOptions};
use rdb_proto::kv::{self, Mode, Receipt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_serves_every_operation() {
    let cluster = Cluster::start(1, &[]).await;
    let store = Plain::on(&cluster, 0).await;

    assert_eq!(text(&store.get("k").await.unwrap()), None);
    let put = store.put("k", "v1").await.unwrap();
    let got = store.get("k").await.unwrap();
    assert_eq!(
        (text(&got).as_deref(), got.version, got.expires_at_ms),
        (Some("v1"), put.version, 0)
    );

    let lost = store.cas("k", put.version + 1, "v2", "").await.unwrap();
    assert_eq!(
        (lost.success, lost.current_version, lost.new_version),
        (false, put.version, 0)
    );
    let won = store.cas("k", put.version, "v2", "").await.unwrap();
    assert!(won.success && won.new_version > put.version, "{won:?}");
    assert_eq!(text(&store.get("k").await.unwrap()).as_deref(), Some("v2"));

    let deleted = store.delete("k", "").await.unwrap();
    assert!(
        deleted.existed && deleted.version > won.new_version,
        "{deleted:?}"
    );
    assert!(!store.delete("k", "").await.unwrap().existed);
    let gone = store.get("k").await.unwrap();
    assert_eq!((gone.found, gone.version), (false, 0));
    assert!(
        store.cas("k", 0, "anew", "").await.unwrap().success,
        "0 expects that nothing is there"
    );
    assert!(!store.cas("k", 0, "again", "").await.unwrap().success);

    for number in 0..5 {
        store.put(&format!("s{number}"), "x").await.unwrap();
    }
    let keys = |entries: &[kv::KeyValue]| {
        entries
            .iter()
            .map(|entry| String::from_utf8(entry.key.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let (entries, receipts) = store
        .scan(kv::ScanRequest {
            prefix: "s".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(keys(&entries), ["s0", "s1", "s2", "s3", "s4"]);
    assert!(
        entries
            .windows(2)
            .all(|pair| pair[0].version < pair[1].version && pair[0].revision < pair[1].revision)
    );
    assert_eq!(receipts[0].store_id, 1);
    let bounded = kv::ScanRequest {
        start: "s1".into(),
        end: "s4".into(),
        limit: 2,
        reverse: true,
        keys_only: true,
        ..Default::default()
    };
    let (entries, _) = store.scan(bounded).await.unwrap();
    assert_eq!(keys(&entries), ["s3", "s2"]);
    assert!(entries.iter().all(|entry| entry.value.is_empty()));
    let (entries, receipts) = store
        .scan(kv::ScanRequest {
            prefix: "nothing".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert!(
        entries.is_empty() && receipts.len() == 1,
        "an empty answer has a receipt, too"
    );
}

#[track_caller]
fn assert_receipt(receipt: Option<&Receipt>, store: usize) -> Receipt {
    let receipt = receipt
        .expect("every answer says how it was served")
        .clone();
    assert_eq!(
        (
            receipt.mode(),
            receipt.epoch,
            receipt.store_id as usize,
            receipt.region_id,
            receipt.staleness_bound_ms
        ),
        (Mode::Strong, 1, store + 1, DATA, 0),
        "{receipt:?}"
    );
    assert!(!receipt.session.is_empty());
    receipt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quorum_write_and_read() {
    let cluster = Cluster::start(3, &[]).await;
    let stores = [
        Plain::on(&cluster, 0).await,
        Plain::on(&cluster, 1).await,
        Plain::on(&cluster, 2).await,
    ];

    // Written at any store, read at any store, at once.
    let (mut last_version, mut last_revision) = (0, 0);
    for round in 0..3 {
        for (writer, store) in stores.iter().enumerate() {
            let value = format!("{round}-{writer}");
            let put = store.put("k", &value).await.unwrap();
            let written = assert_receipt(put.receipt.as_ref(), writer);
            assert!(
                put.version > last_version,
                "a later write has a larger version"
            );
            assert!(written.revision > last_revision, "{written:?}");
            (last_version, last_revision) = (put.version, written.revision);
            for (reader, store) in stores.iter().enumerate() {
                let got = store.get_as("k", linearizable()).await.unwrap();
                assert_eq!(
                    (text(&got), got.version),
                    (Some(value.clone()), put.version),
                    "store {} after a write at store {}",
                    reader + 1,
                    writer + 1
                );
                let read = assert_receipt(got.receipt.as_ref(), reader);
                assert!(read.revision >= written.revision, "{read:?}");
            }
            // A stale read that brings the write's token sees it, and says how stale it may be.
            for (reader, store) in stores.iter().enumerate() {
                let session = kv::ReadOptions {
                    consistency: kv::Consistency::Stale as i32,
                    session: written.session.clone(),
                    ..Default::default()
                };
                let got = store.get_as("k", session).await.unwrap();
                assert_eq!(
                    text(&got),
                    Some(value.clone()),
                    "store {} with a token of store {}",
                    reader + 1,
                    writer + 1
                );
                let receipt = got.receipt.unwrap();
                assert_eq!(receipt.store_id as usize, reader + 1);
                assert!(
                    receipt.staleness_bound_ms > 0,
                    "0 would say that it is linearizable"
                );
            }
        }
    }

    // The same under concurrency, judged by the checker.
    let load = Load::start(
        &cluster,
        LoadOptions {
            clients: 9,
            ..LoadOptions::default()
        },
    );
    load.more(500).await;
    let loaded = load.stop().await;
    println!(
        "longest time without an acknowledged write: {:?}",
        loaded.longest_silence()
    );
    // Nothing failed; a starved machine may still hold an election, and a nameless write under way then
    // is of unknown outcome.
    let explained = |reason: &String| reason == "OUTCOME_UNKNOWN";
    assert!(
        loaded.errors().keys().all(explained),
        "{:?}",
        loaded.errors()
    );
    loaded.judge(&cluster).await;
}
