//! Many keys: pages, order, bytes, streams.

use crate::one;
use crate::support::cluster::Cluster;
use crate::web::{get, put};
use serde_json::Value;

async fn fill(cluster: &Cluster, keys: &[&str]) {
    for key in keys {
        let path = format!("/v1/kv/default/{key}");
        put(cluster, &path, key.as_bytes()).await.is(200);
    }
}

fn keys(listing: &Value) -> Vec<&str> {
    let entries = listing["entries"].as_array().unwrap().iter();
    entries
        .map(|entry| entry["key"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_at_next_until_there_is_no_more() {
    let cluster = one().await;
    fill(
        &cluster,
        &["a", "p%2F1", "p%2F2", "p%2F3", "p%2F4", "p%2F5", "q"],
    )
    .await;
    for (turn, expected) in [
        ("", ["p/1", "p/2", "p/3", "p/4", "p/5"]),
        ("&reverse=true", ["p/5", "p/4", "p/3", "p/2", "p/1"]),
    ] {
        let mut next = Some(format!("/v1/kv/default?prefix=p/&limit=2{turn}"));
        let (mut found, mut pages) = (Vec::new(), 0);
        while let Some(path) = next {
            let answer = get(&cluster, &path).await;
            let listing = answer.is(200).json();
            found.extend(keys(&listing).into_iter().map(str::to_owned));
            next = listing["next"].as_str().map(str::to_owned);
            pages += 1;
        }
        assert_eq!((found, pages), (expected.map(str::to_owned).to_vec(), 3));
    }
    let range = get(&cluster, "/v1/kv/default?start=p/2&end=p/4")
        .await
        .json();
    assert_eq!(keys(&range), ["p/2", "p/3"]);
    // Exactly as many as there are: no page follows.
    let all = get(&cluster, "/v1/kv/default?limit=7").await.json();
    assert_eq!((keys(&all).len(), &all["next"]), (7, &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_listing_has_a_receipt_and_one_of_no_namespace_is_404() {
    let cluster = one().await;
    let empty = get(&cluster, "/v1/kv/default?prefix=none").await;
    let listing = empty.is(200).json();
    assert_eq!(listing["entries"], Value::Array(Vec::new()));
    assert_eq!(listing["next"], Value::Null);
    assert_eq!(listing["receipt"]["mode"], "strong");
    get(&cluster, "/v1/kv/nowhere")
        .await
        .refused(404, "NAMESPACE_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_is_text_and_other_bytes_are_base64_and_numbers_are_strings() {
    let cluster = one().await;
    put(&cluster, "/v1/kv/default/%FFkey", b"\x00\xFF")
        .await
        .is(200);
    put(
        &cluster,
        "/v1/kv/default/k%22%0A?ttl_ms=60000",
        "grüße\"\n".as_bytes(),
    )
    .await
    .is(200);
    let listing = get(&cluster, "/v1/kv/default").await.json();
    let text = &listing["entries"][0];
    assert_eq!(
        (&text["key"], &text["value"]),
        (&"k\"\n".into(), &"grüße\"\n".into())
    );
    assert!(
        text["expires_at_ms"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    let bytes = &listing["entries"][1];
    assert_eq!(
        (&bytes["key_base64"], &bytes["value_base64"]),
        (&"/2tleQ==".into(), &"AP8=".into())
    );
    assert!(bytes.get("key").is_none() && bytes.get("value").is_none());
    for number in ["version", "revision", "create_revision", "expires_at_ms"] {
        assert!(bytes[number].is_string(), "{number} in {bytes}");
    }
    let only = get(&cluster, "/v1/kv/default?keys_only=true").await.json();
    assert!(only["entries"][0].get("value").is_none());
    // A key that is no text goes on in an address, too.
    let first = get(&cluster, "/v1/kv/default?limit=1&reverse=true")
        .await
        .json();
    let rest = get(&cluster, first["next"].as_str().unwrap()).await.json();
    assert_eq!(keys(&rest), ["k\"\n"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_of_many_megabytes_is_streamed_and_whole() {
    let cluster = one().await;
    let value = vec![b'x'; 512 << 10];
    for number in 0..24 {
        put(&cluster, &format!("/v1/kv/default/{number:02}"), &value)
            .await
            .is(200);
    }
    let answer = get(&cluster, "/v1/kv/default?limit=1000000").await;
    assert_eq!(answer.header("transfer-encoding"), "chunked");
    let listing = answer.is(200).json();
    assert_eq!(keys(&listing).len(), 24);
    assert_eq!(listing["next"], Value::Null);
    let lengths = listing["entries"].as_array().unwrap().iter();
    let total: usize = lengths
        .map(|entry| entry["value"].as_str().unwrap().len())
        .sum();
    assert_eq!(total, 24 * value.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_behind_the_longest_key() {
    let cluster = one().await;
    let longest = "k".repeat(4096);
    fill(&cluster, &[&longest, "z"]).await;
    let first = get(&cluster, "/v1/kv/default?limit=1").await.json();
    assert_eq!(keys(&first), [&longest]);
    let rest = get(&cluster, first["next"].as_str().unwrap()).await.json();
    assert_eq!(keys(&rest), ["z"]);
    let too_long = "k".repeat(4098);
    get(&cluster, &format!("/v1/kv/default?prefix={too_long}"))
        .await
        .invalid("prefix");
    let too_long = &too_long[1..];
    get(&cluster, &format!("/v1/kv/default?after={too_long}"))
        .await
        .invalid("after");
}
