//! One key: values, versions, preconditions, ids, sessions.

use crate::one;
use crate::support::cluster::Cluster;
use crate::support::wait::eventually;
use crate::web::{ask, get, put, raw};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_comes_back_as_it_was_written_with_its_version_as_etag() {
    let cluster = one().await;
    let value: Vec<u8> = (0..=255).collect();
    let written = put(&cluster, "/v1/kv/default/k", &value).await;
    let json = written.is(200).json();
    let version = json["version"].as_str().expect("a u64 is a string");
    assert_eq!(written.header("etag"), format!("\"{version}\""));
    assert_eq!(json["receipt"]["mode"], "strong");
    assert_eq!(
        json["receipt"]["session"].as_str(),
        Some(written.header("flaredb-session"))
    );
    let read = get(&cluster, "/v1/kv/default/k").await;
    assert_eq!(read.is(200).body, value);
    assert_eq!(read.header("etag"), written.header("etag"));
    // Never anything that a browser would run.
    assert_eq!(read.header("content-type"), "application/octet-stream");
    assert_eq!(read.header("x-content-type-options"), "nosniff");
    assert_eq!(read.header("flaredb-mode"), "strong");
    assert_eq!(read.header("flaredb-staleness-ms"), "0");
    let head = ask(&cluster, 0, "HEAD", "/v1/kv/default/k").send().await;
    head.is(200);
    assert!(head.body.is_empty());
    assert_eq!(head.header("content-length"), "256");
    assert_eq!(head.header("etag"), read.header("etag"));
    let stale = get(&cluster, "/v1/kv/default/k?consistency=stale").await;
    assert_eq!(stale.is(200).body, value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_value_is_a_value() {
    let cluster = one().await;
    put(&cluster, "/v1/kv/default/empty", b"").await.is(200);
    // Without a body at all, too.
    let bare = ask(&cluster, 0, "PUT", "/v1/kv/default/bare").send().await;
    bare.is(200);
    for key in ["empty", "bare"] {
        let read = get(&cluster, &format!("/v1/kv/default/{key}")).await;
        assert_eq!((read.status, read.body.len()), (200, 0), "{key}");
        assert_ne!(read.header("etag"), "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_percent_encoded_bytes_and_a_slash_may_stand_as_it_is() {
    let cluster = one().await;
    for (number, key) in [
        "a%2Fb",
        "%FF%00",
        "gr%C3%BC%C3%9Fe",
        "a%20b",
        "a+b",
        "%25",
        "a%2F",
        "%2E%2E",
    ]
    .iter()
    .enumerate()
    {
        let value = number.to_string();
        let path = format!("/v1/kv/default/{key}");
        put(&cluster, &path, value.as_bytes()).await.is(200);
        assert_eq!(get(&cluster, &path).await.is(200).text(), value, "{key}");
    }
    assert_eq!(
        get(&cluster, "/v1/kv/default/a/b").await.is(200).text(),
        "0"
    );
    assert_eq!(get(&cluster, "/v1/kv/default/a/").await.is(200).text(), "6");
    assert_eq!(
        get(&cluster, "/v1/kv/default/a%2fb").await.is(200).text(),
        "0"
    );
    // Letters may be encoded; a plus is no space here.
    assert_eq!(
        get(&cluster, "/v1/kv/%64efault/%61+b").await.is(200).text(),
        "4"
    );
    assert_eq!(
        get(&cluster, "/v1/kv/default/a%2Bb").await.is(200).text(),
        "4"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_404_and_says_what_is_missing() {
    let cluster = one().await;
    let missing = get(&cluster, "/v1/kv/default/none").await;
    let problem = missing.refused(404, "KEY_NOT_FOUND");
    assert_eq!(problem["metadata"]["namespace"], "default");
    assert_ne!(
        missing.header("flaredb-session"),
        "",
        "it was read all the same"
    );
    let nowhere = get(&cluster, "/v1/kv/nowhere/k").await;
    nowhere.refused(404, "NAMESPACE_NOT_FOUND");
    let head = ask(&cluster, 0, "HEAD", "/v1/kv/default/none").send().await;
    assert_eq!((head.status, head.body.len()), (404, 0));
    let deleted = ask(&cluster, 0, "DELETE", "/v1/kv/default/none")
        .send()
        .await;
    assert_eq!(deleted.is(200).json()["existed"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_match_writes_and_deletes_only_the_version_that_it_names() {
    let cluster = one().await;
    let path = "/v1/kv/default/k";
    let first = put(&cluster, path, b"1").await;
    let first = first.is(200).header("etag");
    let swap = |method: &str, tag: &str| ask(&cluster, 0, method, path).header("If-Match", tag);
    let second = swap("PUT", first).body(b"2").send().await;
    let second = second.is(200).header("etag");
    assert_ne!(first, second);
    let lost = swap("PUT", first).body(b"3").send().await;
    let problem = lost.refused(412, "PRECONDITION_FAILED");
    assert_eq!(lost.header("etag"), second, "what is there, to go on with");
    assert_eq!(problem["outcome"], "not_applied");
    let current = problem["metadata"]["current_version"].as_str().unwrap();
    assert_eq!(second, format!("\"{current}\""));
    assert_eq!(get(&cluster, path).await.text(), "2");
    swap("DELETE", first)
        .send()
        .await
        .refused(412, "PRECONDITION_FAILED");
    let deleted = swap("DELETE", second).send().await;
    assert_eq!(deleted.is(200).json()["existed"], true);
    get(&cluster, path).await.refused(404, "KEY_NOT_FOUND");
    let gone = swap("PUT", second).body(b"4").send().await;
    gone.refused(412, "PRECONDITION_FAILED");
    assert_eq!(gone.header("etag"), "", "nothing is there");
    let bare = put(&cluster, path, b"6").await;
    let bare = bare.is(200).header("etag").trim_matches('"');
    swap("PUT", bare).body(b"7").send().await.is(200);
    for tag in [
        "\"5",
        "*, \"5\"",
        "W/\"5\"",
        "\"5\", \"6\"",
        "\"\"",
        "\"x\"",
    ] {
        let problem = swap("PUT", tag).body(b"5").send().await.invalid("If-Match");
        assert_eq!(problem["outcome"], "not_applied", "{tag}");
    }
}

/// RFC 9110: it holds where there is anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_match_star_changes_only_what_is_there() {
    let cluster = one().await;
    let path = "/v1/kv/default/k";
    let any = |method: &str| ask(&cluster, 0, method, path).header("If-Match", "*");
    for method in ["PUT", "DELETE"] {
        let lost = any(method).body(b"1").send().await;
        let problem = lost.refused(412, "PRECONDITION_FAILED");
        assert_eq!(problem["outcome"], "not_applied");
        assert_eq!(lost.header("etag"), "");
    }
    get(&cluster, path).await.refused(404, "KEY_NOT_FOUND");
    put(&cluster, path, b"1").await.is(200);
    // Whoever else writes: each of them finds something, and takes nothing of the others' for lost.
    let writers = (0..8).map(|writer: u8| {
        let request = any("PUT").body(&[b'a' + writer]);
        async move { request.send().await.is(200).header("etag").to_owned() }
    });
    let tags = futures::future::join_all(writers).await;
    let last = get(&cluster, path).await;
    assert!(tags.iter().any(|tag| tag == last.header("etag")));
    let distinct: std::collections::BTreeSet<_> = tags.iter().collect();
    assert_eq!(distinct.len(), tags.len(), "{tags:?}");
    // A repeat would be compared with what it wrote itself.
    let named = any("PUT").header("FlareDB-Request-Id", "id").body(b"x");
    let problem = named.send().await.invalid("If-Match");
    assert_eq!(problem["outcome"], "not_applied");
    let deleted = any("DELETE").send().await;
    assert_eq!(deleted.is(200).json()["existed"], true);
    get(&cluster, path).await.refused(404, "KEY_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_none_match_star_creates_only() {
    let cluster = one().await;
    let path = "/v1/kv/default/k";
    let create = |value: &[u8]| {
        ask(&cluster, 0, "PUT", path)
            .header("If-None-Match", "*")
            .body(value)
    };
    let made = create(b"first").send().await;
    made.is(200);
    let lost = create(b"second").send().await;
    lost.refused(412, "PRECONDITION_FAILED");
    assert_eq!(lost.header("etag"), made.header("etag"));
    assert_eq!(get(&cluster, path).await.text(), "first");
    let put = || ask(&cluster, 0, "PUT", path).body(b"v");
    put()
        .header("If-None-Match", "\"1\"")
        .send()
        .await
        .invalid("If-None-Match");
    let both = put()
        .header("If-None-Match", "*")
        .header("If-Match", "\"1\"");
    both.send().await.invalid("If-None-Match");
    let delete = ask(&cluster, 0, "DELETE", path).header("If-None-Match", "*");
    delete.send().await.invalid("If-None-Match");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_with_an_equal_etag_is_304_and_if_match_guards_it() {
    let cluster = one().await;
    let path = "/v1/kv/default/k";
    let tag = put(&cluster, path, b"v").await;
    let tag = tag.is(200).header("etag");
    let read = |name: &str, value: &str| ask(&cluster, 0, "GET", path).header(name, value);
    for tags in [tag, "*", &format!("W/{tag}"), &format!("\"1\", {tag}")] {
        let same = read("If-None-Match", tags).send().await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{tags}");
        assert_eq!(same.header("etag"), tag);
    }
    read("If-None-Match", "\"1\"").send().await.is(200);
    // Two lines of one header are one list.
    let lines = read("If-None-Match", "\"1\"").header("If-None-Match", tag);
    lines.send().await.is(304);
    read("If-Match", tag).send().await.is(200);
    read("If-None-Match", "five")
        .send()
        .await
        .invalid("if-none-match");
    read("If-Match", "\"1\"")
        .send()
        .await
        .refused(412, "PRECONDITION_FAILED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ttl_ms_lets_a_key_expire() {
    let cluster = one().await;
    let path = "/v1/kv/default/k";
    put(&cluster, &format!("{path}?ttl_ms=60000"), b"long")
        .await
        .is(200);
    assert_ne!(
        get(&cluster, path).await.header("flaredb-expires-at-ms"),
        ""
    );
    put(&cluster, &format!("{path}?ttl_ms=50"), b"short")
        .await
        .is(200);
    eventually(
        Duration::from_secs(20),
        "the key expires",
        async || match get(&cluster, path).await.status {
            404 => Ok(()),
            status => Err(format!("{status}")),
        },
    )
    .await;
    for bad in ["-1", "x", "", "9999999999999999999", "%2B5"] {
        let answer = put(&cluster, &format!("{path}?ttl_ms={bad}"), b"v").await;
        assert_eq!(answer.invalid("ttl_ms")["outcome"], "not_applied", "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_repeated_under_its_request_id_is_done_once() {
    let cluster = one().await;
    let path = "/v1/kv/default/k";
    let create = || {
        ask(&cluster, 0, "PUT", path)
            .header("FlareDB-Request-Id", "order-7")
            .header("If-None-Match", "*")
            .body(b"v")
    };
    let first = create().send().await;
    assert_eq!(first.is(200).header("flaredb-request-id"), "order-7");
    let again = create().send().await;
    assert_eq!(again.is(200).header("etag"), first.header("etag"));
    let other = create().body(b"another").send().await;
    other.refused(400, "INVALID_ARGUMENT");
    let long = ask(&cluster, 0, "PUT", path)
        .header("FlareDB-Request-Id", &"x".repeat(65))
        .body(b"v");
    long.send().await.invalid("request_id");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_reads_its_own_writes_at_another_store() {
    let cluster = Cluster::start(3, &["--namespace-mode", "cart=eventual"]).await;
    for number in 0..20 {
        let value = number.to_string();
        let path = "/v1/kv/cart/k";
        let written = ask(&cluster, 0, "PUT", path)
            .body(value.as_bytes())
            .send()
            .await;
        assert_eq!(written.is(200).header("flaredb-mode"), "eventual");
        let session = written.header("flaredb-session");
        // The write after it keeps what the session has seen.
        let other = ask(&cluster, 1, "PUT", "/v1/kv/cart/other")
            .header("FlareDB-Session", session)
            .body(b"o");
        let other = other.send().await;
        let session = other.is(200).header("flaredb-session");
        let read = ask(&cluster, 2, "GET", path).header("FlareDB-Session", session);
        let read = read.send().await;
        assert_eq!(read.is(200).text(), value);
        assert_ne!(read.header("flaredb-session"), "");
    }
    for garbage in ["nonsense!", "AAAA"] {
        let read = ask(&cluster, 0, "GET", "/v1/kv/cart/k").header("FlareDB-Session", garbage);
        let problem = read.send().await.refused(400, "INVALID_ARGUMENT");
        assert_eq!(
            problem["field"].as_str().unwrap().replace("flaredb-", ""),
            "session"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eventual_namespace_refuses_preconditions_and_linearizable_reads_with_409() {
    let cluster = Cluster::start(1, &["--namespace-mode", "cart=eventual"]).await;
    put(&cluster, "/v1/kv/cart/k", b"v").await.is(200);
    let create = ask(&cluster, 0, "PUT", "/v1/kv/cart/k").header("If-None-Match", "*");
    let problem = create.body(b"v").send().await.refused(409, "WRONG_MODE");
    assert_eq!(problem["outcome"], "not_applied");
    assert_eq!(problem["metadata"]["mode"], "eventual");
    // Nobody knows which of its versions counts.
    let any = ask(&cluster, 0, "DELETE", "/v1/kv/cart/k").header("If-Match", "*");
    any.send().await.refused(409, "WRONG_MODE");
    let read = get(&cluster, "/v1/kv/cart/k?consistency=linearizable").await;
    read.refused(409, "WRONG_MODE");
    get(&cluster, "/v1/kv/cart/k").await.is(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_over_the_limit_is_413_however_it_is_sent() {
    let cluster = Cluster::start(1, &["--max-value", "4KiB"]).await;
    let path = "/v1/kv/default/k";
    put(&cluster, path, &[b'v'; 4096]).await.is(200);
    let refused = put(&cluster, path, &[b'v'; 4097]).await;
    let problem = refused.refused(413, "INVALID_ARGUMENT");
    assert_eq!(problem["field"], "value");
    assert_eq!(problem["metadata"]["limit"], "4096");
    assert_eq!(problem["outcome"], "not_applied");
    // In pieces, without saying how much it will be.
    let addr = cluster.http_addr(0);
    let mut chunked = format!(
        "PUT {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..9 {
        chunked.extend_from_slice(b"200\r\n");
        chunked.extend_from_slice(&[b'w'; 512]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let refused = raw(addr, &chunked, false).await;
    assert_eq!(refused.refused(413, "INVALID_ARGUMENT")["field"], "value");
    // One that waits to be asked for it is not asked.
    let waits = format!(
        "PUT {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    );
    raw(addr, waits.as_bytes(), false)
        .await
        .refused(413, "INVALID_ARGUMENT");
    assert_eq!(get(&cluster, path).await.body, [b'v'; 4096]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_arrive_is_408_within_the_request_timeout() {
    let cluster = Cluster::start(1, &["--request-timeout", "1s"]).await;
    let addr = cluster.http_addr(0);
    let half = format!(
        "PUT /v1/kv/default/k HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhalf"
    );
    let problem = raw(addr, half.as_bytes(), false)
        .await
        .refused(408, "DEADLINE_EXCEEDED");
    assert_eq!(problem["outcome"], "not_applied");
    get(&cluster, "/v1/kv/default/k")
        .await
        .refused(404, "KEY_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_400_and_names_the_field() {
    let cluster = one().await;
    for (path, field) in [
        ("/v1/kv/default/%zz", "key"),
        ("/v1/kv/default/a%", "key"),
        ("/v1/kv/default/", "key"),
        ("/v1/kv/%FF/k", "namespace"),
        ("/v1/kv/UPPER/k", "namespace"),
        ("/v1/kv/default/k?consistency=strong", "consistency"),
        ("/v1/kv/default/k?consistancy=stale", "consistancy"),
        (
            "/v1/kv/default/k?consistency=stale&consistency=stale",
            "consistency",
        ),
        ("/v1/kv/default/k?ttl_ms=5", "ttl_ms"),
        ("/v1/kv/default?limit=0", "limit"),
        ("/v1/kv/default?limit=many", "limit"),
        ("/v1/kv/default?reverse=1", "reverse"),
        ("/v1/kv/default?prefix=%f", "prefix"),
        ("/v1/kv/default?prefix=a&start=b", "prefix"),
    ] {
        let problem = get(&cluster, path).await.invalid(field);
        assert!(
            problem.get("outcome").is_none(),
            "a read has none: {problem}"
        );
    }
    let long = "k".repeat(4097);
    let problem = get(&cluster, &format!("/v1/kv/default/{long}"))
        .await
        .invalid("key");
    assert_eq!(problem["metadata"]["limit"], "4096");
    let twice = ask(&cluster, 0, "PUT", "/v1/kv/default/k")
        .header("If-Match", "\"1\"")
        .header("If-Match", "\"2\"");
    twice.body(b"v").send().await.invalid("if-match");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_a_write_is_503_and_says_when_to_try_again() {
    let mut cluster = Cluster::start(3, &["--quorum-timeout", "1s"]).await;
    put(&cluster, "/v1/kv/default/k", b"v").await.is(200);
    cluster.kill_all(&[1, 2]);
    let refused = eventually(
        Duration::from_secs(20),
        "it is refused for good",
        async || {
            let answer = put(&cluster, "/v1/kv/default/k", b"w").await;
            let says = answer.text();
            if answer.status == 503 && says.contains("not_applied") {
                Ok(answer)
            } else {
                Err(says)
            }
        },
    )
    .await;
    let problem = refused.refused(503, "NO_QUORUM");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(problem["metadata"]["needed"], "2");
    let stale = get(&cluster, "/v1/kv/default/k?consistency=stale").await;
    assert_eq!(stale.is(200).text(), "v");
    assert_ne!(stale.header("flaredb-staleness-ms"), "0");
    // What must work when nothing else does.
    get(&cluster, "/v1/cluster").await.is(200);
    get(&cluster, "/v1/namespaces/default/replication")
        .await
        .is(200);
    let plan = ask(
        &cluster,
        0,
        "PUT",
        "/v1/namespaces/default/mode?dry_run=true",
    );
    let plan = plan.json("{\"mode\":\"eventual\"}").send().await;
    assert_eq!(plan.is(200).json()["would_succeed"], false);
}
