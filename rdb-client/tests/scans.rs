//! Scans: pages, ends, and what happens when they are interrupted.

mod mock;

use bytes::Bytes;
use futures::StreamExt;
use mock::Net;
use rdb_client::{Client, ClientError, ClientOptions, ErrorKind, ScanOptions};

fn options() -> ClientOptions {
    ClientOptions {
        discover: false,
        ..ClientOptions::default()
    }
}

async fn keys(client: &Client, options: ScanOptions) -> Result<Vec<String>, ClientError> {
    let entries: Vec<_> = client.scan("n", options).collect().await;
    entries
        .into_iter()
        .map(|entry| entry.map(|entry| String::from_utf8_lossy(&entry.key).into_owned()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn all_of_a_range_in_order() {
    let (net, client) = Net::with(&["a"], options());
    net.fill(&["a", "b", "c", "ca", "cb", "d"]);
    assert_eq!(
        keys(&client, ScanOptions::default())
            .await
            .unwrap()
            .concat(),
        "abccacbd"
    );
    let prefix = ScanOptions {
        prefix: Bytes::from_static(b"c"),
        ..ScanOptions::default()
    };
    assert_eq!(keys(&client, prefix).await.unwrap(), ["c", "ca", "cb"]);
    let limited = ScanOptions {
        limit: 3,
        reverse: true,
        ..ScanOptions::default()
    };
    assert_eq!(keys(&client, limited).await.unwrap(), ["d", "cb", "ca"]);
    let nothing = ScanOptions {
        start: Bytes::from_static(b"x"),
        ..ScanOptions::default()
    };
    assert!(keys(&client, nothing).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_scan_goes_on_where_it_was() {
    let (net, client) = Net::with(&["a"], options());
    net.fill(&["a", "b", "c", "d", "e", "f", "g"]);
    net.break_scans_after(&[1, 2]);
    assert_eq!(
        keys(&client, ScanOptions::default())
            .await
            .unwrap()
            .concat(),
        "abcdefg"
    );
    let starts: Vec<_> = net.scans().into_iter().map(|scan| scan.start).collect();
    assert_eq!(starts, ["", "b\0", "f\0"]);

    net.break_scans_after(&[1, 1]);
    let backward = ScanOptions {
        reverse: true,
        limit: 6,
        ..ScanOptions::default()
    };
    assert_eq!(keys(&client, backward).await.unwrap().concat(), "gfedcb");
    let last = net.scans().pop().unwrap();
    assert_eq!((&last.end[..], last.limit), (&b"d"[..], 2));
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_cannot_go_on_ends_with_its_error() {
    let (net, client) = Net::with(&["a"], options());
    net.fill(&["a", "b", "c"]);
    // The second attempt makes no progress at all.
    net.break_scans_after(&[1, 0]);
    let entries: Vec<_> = client.scan("n", ScanOptions::default()).collect().await;
    assert_eq!(entries.len(), 3, "two keys and the error");
    assert_eq!(entries[2].as_ref().unwrap_err().kind, ErrorKind::Deadline);

    let nobody = Client::new(ClientOptions {
        wait_for_ready: false,
        ..ClientOptions::new(["127.0.0.1:1"])
    })
    .unwrap();
    let entries: Vec<_> = nobody.scan("n", ScanOptions::default()).collect().await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].as_ref().unwrap_err().kind, ErrorKind::Connect);
}
