//! What people and tools ask: namespaces, modes, conflicts, the cluster.

use crate::one;
use crate::support::cluster::Cluster;
use crate::support::wait::eventually;
use crate::web::{ask, get, put};
use std::time::Duration;

const SWITCHED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_created_listed_described_and_changed() {
    let cluster = one().await;
    let create = |body: &str| ask(&cluster, 0, "POST", "/v1/namespaces").json(body);
    let made = create(
        r#"{"name":"cart","mode":"eventual","policies":{"ttl_ms":60000,"durability":"relaxed"}}"#,
    );
    let made = made.send().await;
    assert_eq!(made.is(201).header("location"), "/v1/namespaces/cart");
    let cart = made.json();
    assert_eq!(
        (&cart["mode"], &cart["policies"]["ttl_ms"]),
        (&"eventual".into(), &"60000".into())
    );
    create(r#"{"name":"plain"}"#).send().await.is(201);
    let again = create(r#"{"name":"cart","mode":"strong"}"#).send().await;
    again.refused(409, "ALREADY_EXISTS");
    let list = get(&cluster, "/v1/namespaces").await.is(200).json();
    let names: Vec<_> = list["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].clone())
        .collect();
    assert_eq!(names, ["default", "cart", "plain"]);
    let path = "/v1/namespaces/cart";
    assert_eq!(
        get(&cluster, path).await.is(200).json()["policies"]["durability"],
        "relaxed"
    );
    // PATCH changes what it names; numbers may be text, as they are shown.
    let change = |method: &str, body: &str| ask(&cluster, 0, method, path).json(body);
    let patched = change("PATCH", r#"{"policies":{"max_lag_ms":"5000"}}"#)
        .send()
        .await;
    let policies = patched.is(200).json()["policies"].clone();
    assert_eq!(
        (&policies["max_lag_ms"], &policies["ttl_ms"]),
        (&"5000".into(), &"60000".into())
    );
    assert_eq!(policies["durability"], "relaxed");
    // PUT replaces all.
    let replaced = change("PUT", r#"{"policies":{"max_lag_ms":7000}}"#)
        .send()
        .await;
    let policies = replaced.is(200).json()["policies"].clone();
    assert_eq!(
        (&policies["max_lag_ms"], &policies["ttl_ms"]),
        (&"7000".into(), &"0".into())
    );
    assert_eq!(policies["durability"], "sync");
    get(&cluster, "/v1/namespaces/none")
        .await
        .refused(404, "NAMESPACE_NOT_FOUND");
    let illegal = create(r#"{"name":"UPPER"}"#).send().await.invalid("name");
    assert_eq!(illegal["outcome"], "not_applied");
    let beyond = change("PUT", r#"{"policies":{"ttl_ms":9999999999999999}}"#)
        .send()
        .await;
    beyond.invalid("policies.ttl_ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_deleted_is_404_until_it_is_created_again() {
    let cluster = one().await;
    let (path, key) = ("/v1/namespaces/cart", "/v1/kv/cart/k");
    put(&cluster, key, b"old").await.is(200);
    let delete = || ask(&cluster, 0, "DELETE", path);
    let deleted = delete().send().await;
    assert_eq!(deleted.is(204).text(), "");
    delete().send().await.refused(404, "NAMESPACE_NOT_FOUND");
    get(&cluster, path)
        .await
        .refused(404, "NAMESPACE_NOT_FOUND");
    let written = put(&cluster, key, b"late").await;
    let refused = written.refused(404, "NAMESPACE_NOT_FOUND");
    assert_eq!(refused["outcome"], "not_applied");
    let create = ask(&cluster, 0, "POST", "/v1/namespaces").json(r#"{"name":"cart"}"#);
    create.send().await.is(201);
    get(&cluster, key).await.is(404);
    put(&cluster, key, b"new").await.is(200);
    let default = ask(&cluster, 0, "DELETE", "/v1/namespaces/default");
    default.send().await.invalid("name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_json_of_the_call_is_refused_and_says_why() {
    let cluster = one().await;
    let post = |body: &str| ask(&cluster, 0, "POST", "/v1/namespaces").json(body);
    for body in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"name":1}"#,
        r#"{"name":"n","made":"strong"}"#,
        r#"{"name":"n","mode":"weak"}"#,
        r#"{"name":"n","policies":{"ttl_ms":-1}}"#,
        r#"{"name":"n","policies":{"ttl_ms":"1e3"}}"#,
        "\u{FEFF}{\"name\":\"n\"}",
        // The fields of an object by their order, which is no object.
        r#"["arr1","strong",null]"#,
        r#"{"name":"n","policies":["sync",null,null,null]}"#,
        r#""n""#,
        "null",
    ] {
        let problem = post(body).send().await.invalid("body");
        assert_eq!(problem["outcome"], "not_applied", "{body}");
    }
    let problem = ask(&cluster, 0, "PUT", "/v1/namespaces/default")
        .json(r#"[{"ttl_ms":1000}]"#)
        .send()
        .await
        .invalid("body");
    let said = problem["detail"].as_str().unwrap();
    assert!(said.contains("sequence, expected an object"), "{said}");
    let form = ask(&cluster, 0, "POST", "/v1/namespaces")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(br#"{"name":"n"}"#);
    let problem = form.send().await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    assert_eq!(problem["field"], "Content-Type");
    let large = format!("{{\"name\":\"{}\"}}", "n".repeat(70_000));
    post(&large).send().await.refused(413, "INVALID_ARGUMENT");
    let charset = ask(&cluster, 0, "POST", "/v1/namespaces")
        .header("Content-Type", "Application/JSON; charset=utf-8")
        .body(br#"{"name":"n"}"#);
    charset.send().await.is(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mode_is_planned_switched_and_seen_to_be_switched() {
    let cluster = Cluster::start(3, &[]).await;
    let path = "/v1/namespaces/cart/mode";
    put(&cluster, "/v1/kv/cart/k", b"v").await.is(200);
    let switch =
        |query: &str, body: &str| ask(&cluster, 1, "PUT", &format!("{path}{query}")).json(body);
    let plan = switch("?dry_run=true", r#"{"mode":"eventual"}"#)
        .send()
        .await;
    let plan = plan.is(200).json();
    assert_eq!(plan["would_succeed"], true, "{plan}");
    assert!(plan["estimated_write_pause_us"].is_string());
    let mode = get(&cluster, path).await.is(200).json();
    assert_eq!(
        (&mode["mode"], &mode["target"]),
        (&"strong".into(), &"strong".into())
    );
    assert_eq!(mode["stores"].as_array().unwrap().len(), 3);
    let taken = switch("", r#"{"mode":"eventual"}"#).send().await;
    assert!(taken.is(202).json()["step"].is_string());
    eventually(SWITCHED, "it is eventual", async || {
        let mode = get(&cluster, path).await.json();
        if mode["mode"] == "eventual" && mode["state"] == "stable" {
            Ok(())
        } else {
            Err(mode.to_string())
        }
    })
    .await;
    let read = get(&cluster, "/v1/kv/cart/k").await;
    assert_eq!(
        (read.is(200).text().as_str(), read.header("flaredb-mode")),
        ("v", "eventual")
    );
    // There is none under way any more: nothing is cancelled, and that is no error.
    ask(&cluster, 0, "DELETE", path).send().await.is(202);
    switch("?dry_run=1", r#"{"mode":"strong"}"#)
        .send()
        .await
        .invalid("dry_run");
    switch("", r#"{"mode":"strong","accept_missing":[9]}"#)
        .send()
        .await
        .invalid("accept_missing");
    for number in ["0", "1024", "99999999999"] {
        let body = format!(r#"{{"mode":"strong","accept_missing":[{number}]}}"#);
        let problem = switch("", &body).send().await.invalid("accept_missing");
        let said = problem["detail"].as_str().unwrap();
        assert!(
            said.contains(&format!("{number} is no store's id")),
            "{said}"
        );
        assert_eq!(problem["outcome"], "not_applied");
    }
    let nowhere = ask(&cluster, 0, "PUT", "/v1/namespaces/none/mode").json(r#"{"mode":"strong"}"#);
    nowhere.send().await.refused(404, "NAMESPACE_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_that_waits_for_a_store_is_cancelled() {
    let mut cluster = Cluster::start(
        3,
        &[
            "--namespace-mode",
            "cart=eventual",
            "--switch-timeout",
            "60s",
        ],
    )
    .await;
    put(&cluster, "/v1/kv/cart/k", b"v").await.is(200);
    cluster.kill(2);
    let path = "/v1/namespaces/cart/mode";
    let taken = ask(&cluster, 0, "PUT", path).json(r#"{"mode":"strong"}"#);
    // The store that was killed may have led the region of the tables.
    eventually(SWITCHED, "it is asked for", async || {
        let answer = taken.send().await;
        if answer.status == 202 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
    let other = ask(&cluster, 0, "PUT", path).json(r#"{"mode":"eventual"}"#);
    other.send().await.refused(409, "SWITCH_IN_PROGRESS");
    ask(&cluster, 0, "DELETE", path).send().await.is(202);
    eventually(SWITCHED, "it is eventual as before", async || {
        let mode = get(&cluster, path).await.json();
        if mode["target"] == "eventual" && mode["state"] == "stable" {
            Ok(())
        } else {
            Err(mode.to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lost_a_conflict_is_listed_and_restored() {
    let cluster = Cluster::start_meshed(2, &["--namespace-mode", "cart=eventual"]).await;
    put(&cluster, "/v1/kv/cart/k", b"before").await.is(200);
    let conflicts = "/v1/namespaces/cart/conflicts";
    let none = get(&cluster, conflicts).await.is(200).json();
    assert_eq!(
        (&none["conflicts"], &none["more"]),
        (&serde_json::json!([]), &false.into())
    );
    cluster.mesh().isolate(1);
    for number in 0..3 {
        let path = format!("/v1/kv/cart/k{number}");
        ask(&cluster, 0, "PUT", &path)
            .body(b"\xFFlost")
            .send()
            .await
            .is(200);
        tokio::time::sleep(Duration::from_millis(5)).await;
        ask(&cluster, 1, "PUT", &path)
            .body(b"won")
            .send()
            .await
            .is(200);
    }
    cluster.mesh().heal();
    let list = eventually(SWITCHED, "the conflicts are found by both", async || {
        let list = get(&cluster, &format!("{conflicts}?prefix=k")).await.json();
        let all = list["conflicts"].as_array().unwrap();
        let both = all
            .iter()
            .filter(|it| it["stores"].as_array().unwrap().len() == 2)
            .count();
        if both == 3 {
            Ok(list)
        } else {
            Err(list.to_string())
        }
    })
    .await;
    let lost = &list["conflicts"][0];
    assert_eq!(
        (&lost["key"], &lost["value_base64"]),
        (&"k0".into(), &"/2xvc3Q=".into())
    );
    assert_eq!(list["missing_stores"], serde_json::json!([]));
    let some = get(&cluster, &format!("{conflicts}?limit=2")).await.json();
    assert_eq!(
        (some["conflicts"].as_array().unwrap().len(), &some["more"]),
        (2, &true.into())
    );
    let restore = |body: &str| ask(&cluster, 0, "POST", &format!("{conflicts}/restore")).json(body);
    let body = serde_json::json!({ "id": lost["id"], "if_untouched": true }).to_string();
    let came = restore(&body).send().await.is(200).json();
    assert_eq!(
        (&came["restored"], &came["skipped"]),
        (&"1".into(), &"0".into())
    );
    assert_eq!(get(&cluster, "/v1/kv/cart/k0").await.body, b"\xFFlost");
    restore("{}").send().await.invalid("id");
    restore(r#"{"id":"nonsense"}"#).send().await.invalid("id");
    let all = restore(r#"{"all":true}"#).send().await.is(200).json();
    assert_eq!(all["restored"], "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_and_the_cluster_are_shown() {
    let cluster = Cluster::start(3, &["--namespace-mode", "cart=eventual"]).await;
    put(&cluster, "/v1/kv/cart/k", b"v").await.is(200);
    eventually(SWITCHED, "all replicas have it", async || {
        let shown = get(&cluster, "/v1/namespaces/cart/replication")
            .await
            .is(200)
            .json();
        let replicas = shown["regions"][0]["replicas"].as_array().unwrap().clone();
        let same = replicas
            .iter()
            .all(|it| it["lag_writes"] == "0" && it["vector"]["1"] == "1");
        if replicas.len() == 3 && same {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await;
    let shown = get(&cluster, "/v1/cluster").await.is(200).json();
    assert_eq!(shown["stores"].as_array().unwrap().len(), 3, "{shown}");
    assert_eq!(
        shown["stores"][0]["http_address"],
        cluster.http_addr(0).to_string()
    );
    assert_eq!(
        shown["regions"][1]["replicas"].as_array().unwrap().len(),
        3,
        "{shown}"
    );
    let names: Vec<_> = shown["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names, ["default", "cart"]);
}
