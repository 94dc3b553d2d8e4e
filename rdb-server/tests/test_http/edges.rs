//! Routes, methods, the document and its page, probes, numbers.

use crate::one;
use crate::support::cluster::Cluster;
use crate::web::{ask, get, put};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_route_is_a_404_problem_and_a_wrong_method_a_405_with_allow() {
    let cluster = one().await;
    for path in [
        "/",
        "/v1",
        "/v1/kv",
        "/v2/kv/default/k",
        "/v1/namespaces/default/nothing",
        "/docs/x",
    ] {
        get(&cluster, path).await.refused(404, "ROUTE_NOT_FOUND");
    }
    for (method, path, allowed) in [
        (
            "POST",
            "/v1/kv/default/k",
            &["GET", "HEAD", "PUT", "DELETE"][..],
        ),
        ("DELETE", "/v1/cluster", &["GET", "HEAD"]),
        (
            "PATCH",
            "/v1/namespaces/default/mode",
            &["GET", "HEAD", "PUT", "DELETE"],
        ),
        ("POST", "/readyz", &["GET", "HEAD"]),
        ("OPTIONS", "/v1/namespaces", &["GET", "HEAD", "POST"]),
        ("QUERY", "/v1/kv/default", &["GET", "HEAD"]),
    ] {
        let answer = ask(&cluster, 0, method, path).send().await;
        answer.refused(405, "METHOD_NOT_ALLOWED");
        let allow: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
        assert_eq!(allow, allowed, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_says_every_route_and_method_that_there_is() {
    let cluster = one().await;
    let answer = get(&cluster, "/openapi.json").await;
    assert_eq!(answer.is(200).header("content-type"), "application/json");
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        let methods = methods.as_object().unwrap();
        let path = path.replace("{ns}", "default").replace("{key}", "k");
        for method in ["get", "put", "post", "patch", "delete"] {
            let answer = ask(&cluster, 0, &method.to_uppercase(), &path).send().await;
            let there = answer.status != 405 && !answer.text().contains("ROUTE_NOT_FOUND");
            assert_eq!(
                there,
                methods.contains_key(method),
                "{method} {path}: {answer:?}"
            );
        }
        for (method, operation) in methods {
            assert!(operation["summary"].is_string(), "{method} {path}");
            assert!(operation["responses"]["503"].is_object(), "{method} {path}");
        }
    }
    assert_eq!(paths.len(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_the_document_needs_nothing_from_elsewhere() {
    let cluster = one().await;
    let page = get(&cluster, "/docs").await;
    assert!(page.is(200).header("content-type").starts_with("text/html"));
    assert!(
        page.header("content-security-policy")
            .contains("default-src 'none'")
    );
    let text = page.text();
    assert!(text.contains("/openapi.json"));
    for foreign in ["http://", "https://", " src=", "@import", "innerHTML"] {
        assert!(!text.contains(foreign), "{foreign}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_http_are_counted_as_those_over_grpc() {
    let cluster = one().await;
    put(&cluster, "/v1/kv/default/k", b"v").await.is(200);
    get(&cluster, "/v1/kv/default/k").await.is(200);
    get(&cluster, "/v1/kv/default").await.is(200);
    get(&cluster, "/v1/kv/default/k?consistency=linearizable")
        .await
        .is(200);
    get(&cluster, "/v1/kv/nowhere/k").await.is(404);
    let metrics = get(&cluster, "/metrics").await.text();
    for line in [
        "flaredb_requests_total{method=\"Put\",namespace=\"default\",code=\"OK\"} 1",
        "flaredb_requests_total{method=\"Get\",namespace=\"default\",code=\"OK\"} 2",
        "flaredb_requests_total{method=\"Scan\",namespace=\"default\",code=\"OK\"} 1",
        "flaredb_requests_total{method=\"Get\",namespace=\"unknown\",code=\"NOT_FOUND\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readyz_verbose_has_a_line_for_each_check() {
    let cluster = Cluster::start(1, &["--namespace-mode", "cart=eventual"]).await;
    let ready = get(&cluster, "/readyz?verbose").await;
    let text = ready.is(200).text();
    for line in [
        "cluster",
        "tables",
        "regions",
        "region 1",
        "region 2",
        "storage",
        "disk space",
        "clock",
        "modes",
    ] {
        assert!(
            text.contains(&format!("[+] {line}: ok")),
            "{line} in {text}"
        );
    }
    assert!(text.ends_with("ready\n"), "{text}");
    for short in ["/readyz", "/readyz?verbose=false", "/readyz?other=1"] {
        assert_eq!(get(&cluster, short).await.is(200).text(), "ready\n");
    }
    let senseless = get(&cluster, "/readyz?verbose=perhaps").await;
    senseless.invalid("verbose");
    // A mode that is declared and is not the cluster's is a warning: the store serves.
    let switch = ask(&cluster, 0, "PUT", "/v1/namespaces/cart/mode").json(r#"{"mode":"strong"}"#);
    put(&cluster, "/v1/kv/cart/k", b"v").await.is(200);
    switch.send().await.is(202);
    crate::support::wait::eventually(
        std::time::Duration::from_secs(30),
        "it is warned",
        async || {
            let ready = get(&cluster, "/readyz?verbose").await;
            let text = ready.is(200).text();
            if text.contains("[!] modes: ") && text.contains("cart") {
                Ok(())
            } else {
                Err(text)
            }
        },
    )
    .await;
    let document: Value = get(&cluster, "/v1/namespaces/cart/mode").await.json();
    assert_eq!(document["mismatched"], true);
}
