//! The command as scripts see it: what is on stdout, what on stderr, and the exit code.

#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

mod store;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use store::{CONFLICT, Store};

struct Ran {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn out(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn json(&self) -> String {
        self.out().trim_end().to_owned()
    }
}

fn flaredb(endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flaredb"));
    command
        .env_remove("NO_COLOR")
        .env("FLAREDB_ENDPOINTS", endpoint);
    command
}

fn run(endpoint: &str, args: &[&str]) -> Ran {
    run_with_input(endpoint, args, b"")
}

fn run_with_input(endpoint: &str, args: &[&str], input: &[u8]) -> Ran {
    let mut command = flaredb(endpoint);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read its input has closed it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A port that answers every connection as an HTTP/1 server answers a gRPC client, and hangs up.
fn http_port() -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    address
}

#[test]
fn an_endpoint_that_is_the_http_port_is_suspected() {
    let ran = run(&http_port(), &["get", "k"]);
    assert_eq!((ran.code, ran.out()), (4, ""), "{}", ran.err);
    assert!(ran.err.contains("--http-addr"), "{}", ran.err);
}

/// Nothing listens there: the port was free a moment ago, and it is not among those given out next.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let help = run("x:1", &["--help"]);
    assert_eq!(help.code, 0);
    for part in [
        "get",
        "put",
        "del",
        "cas",
        "scan",
        "ns",
        "status",
        "top",
        "log-level",
        "conflicts",
        "verify",
        "reload",
        "demo",
        "completion",
        "Exit codes: 0 done",
    ] {
        assert!(help.out().contains(part), "no {part} in:\n{}", help.out());
    }
    for command in [
        "get",
        "put",
        "del",
        "cas",
        "scan",
        "ns",
        "status",
        "top",
        "log-level",
        "conflicts",
        "verify",
        "reload",
        "demo",
        "completion",
    ] {
        let help = run("x:1", &[command, "--help"]);
        assert_eq!(
            (help.code, help.out().contains("--endpoints")),
            (0, true),
            "{command}"
        );
    }
    assert_eq!(run("x:1", &["--version"]).code, 0);
}

#[test]
fn what_is_not_well_formed_is_exit_code_2_and_nothing_on_stdout() {
    let wrong: &[&[&str]] = &[
        &[],
        &["gte", "k"],
        &["get"],
        &["get", "k", "--stale", "--linearizable"],
        &["get", "k", "-o", "xml"],
        &["get", "k", "--timeout", "5"],
        &["get", "k", "--endpoints", "localhost"],
        &["get", "k", "--endpoints", "https://localhost:1"],
        &["get", "??", "--base64-key"],
        &["put", "k"],
        &["put", "k", "v", "--file", "x"],
        &["put", "k", "v", "--ttl", "0s"],
        &["cas", "k", "one", "v"],
        &["cas", "k", "1"],
        &["cas", "k", "1", "v", "--delete"],
        &["scan", "--prefix", "a", "--start", "b"],
        &["ns", "create", "n", "--mode", "loose"],
        &["ns", "delete", "n"],
        &["completion", "tcsh"],
        &["man"],
        &["verify"],
        &["conflicts"],
        &["conflicts", "n", "restore"],
        &["conflicts", "n", "restore", "1-2-3", "--all"],
        &["conflicts", "n", "--prefix", "??", "--base64-key"],
        &["top", "--interval", "0s"],
        // Nothing to draw on: said before any store is asked.
        &["top"],
    ];
    for args in wrong {
        let ran = run("127.0.0.1:1", args);
        assert_eq!((ran.code, ran.out()), (2, ""), "{args:?}: {}", ran.err);
        assert!(!ran.err.is_empty(), "{args:?}");
    }
}

#[test]
fn a_refused_flag_is_called_by_its_name() {
    let cases: &[(&[&str], &str)] = &[
        (&["put", "k", "v", "--ttl", "-5s"], "--ttl"),
        (&["get", "k", "--timeout", "-5s"], "--timeout"),
        (&["ns", "create", "n", "--max-lag", "-5s"], "--max-lag"),
        (&["get", "k", "--endpoints", ""], "it is empty"),
    ];
    for (args, named) in cases {
        let ran = run("127.0.0.1:1", args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(named), "{args:?}: {}", ran.err);
        assert!(!ran.err.contains("unexpected argument"), "{}", ran.err);
    }
}

#[test]
fn no_store_is_exit_code_4_at_once_with_what_to_do() {
    for args in [
        &["get", "k"][..],
        &["put", "k", "v"],
        &["scan"],
        &["status"],
        &["ns", "list"],
    ] {
        let began = Instant::now();
        let address = nowhere();
        let ran = run(&address, args);
        assert_eq!((ran.code, ran.out()), (4, ""), "{args:?}: {}", ran.err);
        for part in [&*address, "refused", "rdb-server", "--endpoints"] {
            assert!(ran.err.contains(part), "no {part} in: {}", ran.err);
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "it waited for the timeout"
        );
    }
}

#[test]
fn a_value_comes_back_byte_by_byte() {
    let running = Store::start();
    let at = &*running.address;
    let value = b"\x00\xFF line\nand no end";
    let put = run_with_input(at, &["put", "k", "-"], value);
    assert_eq!(put.code, 0, "{}", put.err);
    assert!(
        put.out().contains(r#""version":"1152921504606846977""#),
        "64 bits as a string: {}",
        put.out()
    );
    assert_eq!(run(at, &["get", "k"]).out, value);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, b"from a file").unwrap();
    assert_eq!(
        run(at, &["put", "k", "--file", file.path().to_str().unwrap()]).code,
        0
    );
    assert_eq!(run(at, &["get", "k"]).out(), "from a file");
    assert_eq!(run(at, &["put", "k", "--file", "/no/such/file"]).code, 1);

    assert_eq!(
        run(
            at,
            &[
                "put",
                "--ttl",
                "5s",
                "--request-id",
                "order-1",
                "--",
                "k",
                "-v"
            ]
        )
        .code,
        0
    );
    assert_eq!(run(at, &["get", "k"]).out(), "-v");
    let (ttl_ms, request_id) = running.store.writes().pop().unwrap();
    assert_eq!((ttl_ms, &request_id[..]), (5000, &b"order-1"[..]));
}

#[test]
fn an_absent_key_is_exit_code_3() {
    let running = Store::start();
    let ran = run(&running.address, &["get", "nothing", "-n", "logs"]);
    assert_eq!((ran.code, ran.out()), (3, ""));
    assert!(
        ran.err.contains("nothing does not exist in namespace logs"),
        "{}",
        ran.err
    );
    let deleted = run(&running.address, &["del", "nothing", "-o", "json"]);
    assert_eq!(deleted.code, 0, "it is gone either way");
    assert!(deleted.out().contains(r#""existed": false"#));
}

#[test]
fn a_lost_swap_is_exit_code_5_and_tells_the_version() {
    let running = Store::start();
    let at = &*running.address;
    assert_eq!(
        run(at, &["cas", "k", "0", "first", "-o", "raw"]).out(),
        "1152921504606846977\n"
    );
    let lost = run(at, &["cas", "k", "0", "second", "-o", "raw"]);
    assert_eq!((lost.code, lost.out()), (5, "1152921504606846977\n"));
    assert!(
        lost.err
            .contains("is at version 1152921504606846977, not at version 0"),
        "{}",
        lost.err
    );
    assert_eq!(running.store.value(b"k").unwrap(), "first");
    assert_eq!(
        run(at, &["cas", "k", "1152921504606846977", "--delete"]).code,
        0
    );
    assert!(running.store.value(b"k").is_none());
}

#[test]
fn scans_in_every_format() {
    let running = Store::start();
    let at = &*running.address;
    for (key, value) in [
        (&b"a"[..], &b"1"[..]),
        (b"b", b"two\nlines"),
        (b"b\xFF", b"\xFE"),
        (b"c", b"3"),
    ] {
        running.store.put_raw(key, value);
    }
    assert_eq!(
        run(at, &["scan", "-o", "raw", "--keys-only", "--end", "b"]).out(),
        "a\n"
    );
    assert_eq!(
        run(at, &["scan", "-o", "raw", "--reverse", "--limit", "1"]).out(),
        "c\t3\n"
    );
    let lines = run(at, &["scan", "--prefix", "b"]).json();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 2, "jsonl off a terminal");
    assert!(
        lines[0].contains(r#""key":"b""#) && lines[0].contains(r#""value":"two\nlines""#),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].contains(r#""key_base64":"Yv8=""#)
            && lines[1].contains(r#""value_base64":"/g==""#)
    );
    assert_eq!(
        run(at, &["get", "Yv8=", "--base64-key"]).out,
        b"\xFE",
        "what was shown can be asked for"
    );

    let array = run(at, &["scan", "-o", "json"]).json();
    assert!(
        array.starts_with("[\n")
            && array.ends_with("\n]")
            && array.matches("\"version\"").count() == 4,
        "{array}"
    );
    assert_eq!(
        run(at, &["scan", "-o", "json", "--prefix", "x"]).json(),
        "[]"
    );
    let table = run(at, &["scan", "-o", "table"]);
    assert_eq!(table.out().lines().count(), 5, "{}", table.out());
    assert!(
        table.out().starts_with("KEY") && table.out().contains(r"two\nlines"),
        "{}",
        table.out()
    );
}

#[test]
fn a_stale_read_says_how_old_it_may_be() {
    let running = Store::start();
    let at = &*running.address;
    // Two pages of the test's store, the second with the greater bound.
    for number in 0..150 {
        running
            .store
            .put_raw(format!("k{number:03}").as_bytes(), b"v");
    }
    for format in ["table", "raw"] {
        let get = run(at, &["get", "k001", "--stale", "-o", format]);
        assert_eq!(
            (get.code, get.err.as_str()),
            (0, "flaredb: from store 1, at most 1500 ms old\n")
        );
        let scan = run(at, &["scan", "--stale", "-o", format]);
        assert_eq!(
            (scan.code, scan.err.as_str()),
            (0, "flaredb: from store 1, at most 2500 ms old\n")
        );
        for fresh in ["get k001", "scan"] {
            let mut args: Vec<&str> = fresh.split(' ').collect();
            args.extend(["-o", format]);
            assert_eq!(run(at, &args).err, "", "{fresh}");
        }
    }
    // Where no entry says it, either.
    for format in ["jsonl", "json", "table", "raw"] {
        let none = run(at, &["scan", "--stale", "--prefix", "zzz", "-o", format]);
        assert!(none.err.contains("ms old"), "{format}: {}", none.err);
    }
    let lines = run(at, &["scan", "--stale", "-o", "jsonl"]);
    assert_eq!(lines.err, "");
    assert_eq!(
        lines
            .out()
            .matches(r#""staleness_bound_ms":"1500""#)
            .count(),
        100
    );
    assert_eq!(
        lines
            .out()
            .matches(r#""staleness_bound_ms":"2500""#)
            .count(),
        50
    );
    assert!(
        !run(at, &["scan", "-o", "jsonl"])
            .out()
            .contains("staleness")
    );
    let get = run(at, &["get", "k001", "--stale", "-o", "jsonl"]);
    assert_eq!(get.err, "");
    assert!(
        get.out().contains(r#""staleness_bound_ms":"1500""#),
        "{}",
        get.out()
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let running = Store::start();
    for key in 0..5000 {
        running
            .store
            .put_raw(format!("k{key:05}").as_bytes(), &[b'v'; 100]);
    }
    let mut child = flaredb(&running.address)
        .args(["scan", "-o", "raw"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"k00000");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}

#[test]
fn unavailable_is_exit_code_4_within_the_timeout() {
    let running = Store::start();
    let began = Instant::now();
    let ran = run(&running.address, &["get", "hang", "--timeout", "300ms"]);
    assert_eq!((ran.code, ran.out()), (4, ""), "{}", ran.err);
    assert!(began.elapsed() < Duration::from_secs(5));
    let ran = run(&running.address, &["get", "no-quorum"]);
    assert_eq!((ran.code, ran.out()), (4, ""));
    for part in ["NO_QUORUM", "reaches 1 of 3", "flaredb status"] {
        assert!(ran.err.contains(part), "no {part} in: {}", ran.err);
    }
}

#[test]
fn a_write_of_unknown_outcome_says_how_to_repeat_it() {
    let running = Store::start();
    let ran = run(
        &running.address,
        &["put", "hang", "v", "--timeout", "300ms"],
    );
    assert_eq!((ran.code, ran.out()), (4, ""), "{}", ran.err);
    let sent = running.store.writes();
    let id = std::str::from_utf8(&sent[0].1).unwrap();
    assert_eq!((sent.len(), id.len()), (1, 36), "a UUID as text");
    for part in ["may have been applied", &format!("--request-id {id}")] {
        assert!(ran.err.contains(part), "no {part} in: {}", ran.err);
    }
}

#[test]
fn what_no_repeat_can_mend_is_not_to_be_repeated() {
    let running = Store::start();
    let large = vec![b'x'; 5 << 20];
    let ran = run_with_input(&running.address, &["put", "k", "-"], &large);
    assert_eq!((ran.code, ran.out()), (2, ""), "{}", ran.err);
    assert!(ran.err.contains("4194304 bytes") && ran.err.contains("limits.max_request"));
    assert!(!ran.err.contains("may have been applied"), "{}", ran.err);

    let bare = run(&running.address, &["put", "out-of-range", "v"]);
    assert_eq!((bare.code, bare.out()), (1, ""), "{}", bare.err);
    assert!(bare.err.contains("something between"), "{}", bare.err);
    for ran in [ran, bare] {
        assert!(!ran.err.to_lowercase().contains("repeat"), "{}", ran.err);
    }
    let cancelled = run(&running.address, &["put", "cancelled", "v"]);
    assert_eq!(
        (cancelled.code, cancelled.out()),
        (4, ""),
        "{}",
        cancelled.err
    );
    assert!(cancelled.err.contains("--request-id"), "{}", cancelled.err);
}

#[test]
fn a_second_endpoint_is_asked_where_the_first_is_away() {
    let running = Store::start();
    running.store.put_raw(b"k", b"v");
    let both = format!("{},{}", nowhere(), running.address);
    assert_eq!(run("x:1", &["get", "k", "--endpoints", &both]).out(), "v");
}

#[test]
fn the_status_begins_with_a_verdict() {
    let running = Store::start();
    let healthy = run(&running.address, &["status"]);
    assert_eq!(healthy.code, 0, "{}", healthy.err);
    assert!(
        healthy.out().starts_with("healthy\n") && !healthy.out().contains('\x1b'),
        "{}",
        healthy.out()
    );
    running.store.set_quorum(false);
    let lost = run(&running.address, &["status"]);
    assert_eq!(lost.code, 4);
    assert!(
        lost.out()
            .starts_with("no quorum\n- region 2 has no quorum"),
        "{}",
        lost.out()
    );
    assert_eq!(
        run(&running.address, &["status", "-o", "raw"]).out(),
        "no quorum\n"
    );
    assert!(
        run(&running.address, &["status", "-o", "json"])
            .out()
            .contains(r#""verdict": "no quorum""#)
    );
}

#[test]
fn what_a_store_does_not_do_yet_it_says_itself() {
    let running = Store::start();
    let ran = run(&running.address, &["ns", "delete", "logs", "--yes"]);
    assert_eq!((ran.code, ran.out()), (1, ""), "{}", ran.err);
    assert!(
        ran.err.contains("deleting a namespace failed"),
        "{}",
        ran.err
    );
}

#[test]
fn a_switch_is_shown_to_its_end() {
    let running = Store::start();
    let ns = |args: &[&str]| run(&running.address, &[&["ns", "set-mode"], args].concat());
    // Off a terminal: a line for each change on stderr, the last one as the result; in JSON all of them.
    let table = ns(&["cart", "strong", "-o", "table"]);
    assert_eq!(table.code, 0, "{}", table.err);
    assert!(
        table.out().contains("strong") && table.out().contains("12.3 ms"),
        "{}",
        table.out()
    );
    assert!(!table.out().contains("draining"), "{}", table.out());
    let draining =
        "flaredb: draining, 1 of 2 regions there, 5 writes to be exchanged, waits for store 3\n";
    assert!(table.err.starts_with(draining), "{}", table.err);
    let lines = ns(&["cart", "strong"]);
    let steps: Vec<&str> = lines.out().lines().collect();
    assert_eq!((lines.code, steps.len(), lines.err.as_str()), (0, 2, ""));
    assert!(
        steps[1].contains(r#""write_pause_us":"12300""#),
        "{steps:?}"
    );
    assert_eq!(ns(&["cart", "strong", "-o", "raw"]).out(), "done\n");
    let document = ns(&["cart", "strong", "-o", "json"]);
    assert!(document.out().starts_with("[\n"), "{}", document.out());

    let stuck = ns(&["stuck", "strong", "-o", "json"]);
    assert_eq!(stuck.code, 1, "{}", stuck.err);
    assert!(stuck.out().ends_with("]\n"), "{}", stuck.out());
    assert!(stuck.err.contains("was given up"), "{}", stuck.err);
    assert_eq!(
        ns(&["cart", "strong", "--no-wait", "-o", "raw"]).out(),
        "recorded\n"
    );
    let cancelled = ns(&["cart", "--cancel", "--no-wait", "-o", "raw"]);
    assert_eq!(cancelled.out(), "undoing\n");
    for wrong in [
        &["cart"][..],
        &["cart", "weak"],
        &["cart", "--cancel", "--dry-run"],
        &["cart", "--cancel", "--accept-missing", "3"],
    ] {
        assert_eq!(ns(wrong).code, 2, "{wrong:?}");
    }
}

/// A switch needs no store that watches it: where the asked one goes away, another is asked, which joins it.
#[test]
fn a_switch_is_followed_past_the_loss_of_the_stores_that_were_asked() {
    let running = Store::start();
    let followed = run(
        &running.address,
        &["ns", "set-mode", "lost", "strong", "-o", "raw"],
    );
    assert_eq!(
        (followed.code, followed.out()),
        (0, "done\n"),
        "{}",
        followed.err
    );
}

#[test]
fn a_plan_says_whether_it_would_succeed_and_so_does_the_exit_code() {
    let running = Store::start();
    let plan = |args: &[&str]| {
        let set_mode = ["ns", "set-mode", "cart", "strong", "--dry-run"];
        run(&running.address, &[&set_mode, args].concat())
    };
    let without = plan(&["--accept-missing", "3", "-o", "table"]);
    assert_eq!(without.code, 0, "{}", without.err);
    for part in ["would succeed", "yes", "120", "9.5 ms", "compare-and-swap"] {
        assert!(without.out().contains(part), "no {part}: {}", without.out());
    }
    let with = plan(&["-o", "jsonl"]);
    assert_eq!(with.code, 1, "{}", with.err);
    assert!(
        with.out()
            .contains(r#""obstacles":["store 3 cannot be reached"]"#),
        "{}",
        with.out()
    );
    assert_eq!(plan(&["-o", "raw"]).out(), "no\n");
}

#[test]
fn modes_show_what_disagrees() {
    let running = Store::start();
    let table = run(&running.address, &["ns", "modes", "-o", "table"]);
    for part in [
        "logs",
        "strong",
        "eventual",
        "switching",
        "store 3 declares strong",
    ] {
        assert!(table.out().contains(part), "no {part}: {}", table.out());
    }
    let json = run(&running.address, &["ns", "modes", "-o", "jsonl"]);
    let since = r#""mismatched_since_ms":"1700000000000""#;
    assert!(json.out().contains(since), "{}", json.out());
}

#[test]
fn top_without_a_terminal_says_what_to_use() {
    let ran = run("127.0.0.1:1", &["top"]);
    assert_eq!((ran.code, ran.out()), (2, ""), "{}", ran.err);
    for part in ["terminal", "flaredb status", "-o json"] {
        assert!(ran.err.contains(part), "no {part} in: {}", ran.err);
    }
}

#[test]
fn a_log_level_is_changed_and_told() {
    let running = Store::start();
    let at = &*running.address;
    let ran = run(at, &["log-level", "debug"]);
    let document: serde_json::Value = serde_json::from_str(ran.out()).unwrap();
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        (&document["before"], &document["level"]),
        (&"info".into(), &"debug".into())
    );
    let asked = run(at, &["log-level", "-o", "raw"]);
    assert_eq!((asked.code, asked.out()), (0, "info\n"), "{}", asked.err);
    let one = run(at, &["log-level", "warn", "--store", "1", "-o", "raw"]);
    assert_eq!((one.code, one.out()), (0, "warn\n"), "{}", one.err);
    let nobody = run(at, &["log-level", "warn", "--store", "9"]);
    assert_eq!((nobody.code, nobody.out()), (2, ""));
    assert!(nobody.err.contains("there is no store 9"), "{}", nobody.err);
    let wrong = run(at, &["log-level", "verbose"]);
    assert_eq!(wrong.code, 2, "{}", wrong.err);
    assert!(wrong.err.contains("no log level"), "{}", wrong.err);
}

#[test]
fn clocks_are_advanced_where_they_are_behind_and_only_when_asked_twice() {
    let running = Store::start();
    let at = &*running.address;
    running.store.set_clock(1_704_067_200_000);
    let shown = run(at, &["advance-clock"]);
    let document: serde_json::Value = serde_json::from_str(shown.out()).unwrap();
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert_eq!(document["hybrid_unix_ms"], "1704067200000");
    assert!(shown.err.contains("--yes"), "{}", shown.err);
    assert_eq!(running.store.clock(), 1_704_067_200_000, "only asked");

    let done = run(at, &["advance-clock", "--yes"]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let document: serde_json::Value = serde_json::from_str(done.out()).unwrap();
    let present = &document["machine_unix_ms"];
    assert_eq!(&document["hybrid_unix_ms"], present);
    assert_eq!(present, &running.store.clock().to_string());

    running.store.set_clock(4_000_000_000_000);
    let ahead = run(at, &["advance-clock", "--yes", "-o", "raw"]);
    assert_eq!(ahead.code, 0, "{}", ahead.err);
    assert!(
        ahead.out().contains("ahead of this machine"),
        "{}",
        ahead.out()
    );
    assert!(ahead.err.contains("nothing to advance"), "{}", ahead.err);
    assert_eq!(
        running.store.clock(),
        4_000_000_000_000,
        "nothing goes back"
    );
}

#[test]
fn a_reload_says_what_it_changed() {
    let running = Store::start();
    let ran = run(&running.address, &["reload", "-o", "raw"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out(),
        "namespaces.logs.mode: \"strong\" -> \"eventual\"\n"
    );
}

#[test]
fn completion_scripts() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run("x:1", &["completion", shell]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        assert!(
            ran.out().contains("flaredb") && ran.out().contains("scan"),
            "{shell}"
        );
    }
}

#[test]
fn manual_pages() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("new/man");
    let ran = run("x:1", &["man", pages.to_str().unwrap()]);
    assert_eq!((ran.code, ran.out(), ran.err.as_str()), (0, "", ""));
    let page = |name: &str| {
        let page = std::fs::read_to_string(pages.join(format!("{name}.1")));
        page.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    // One for each command that the help lists.
    let help = run("x:1", &["--help"]);
    let listed = help.out().split("Commands:\n").nth(1).unwrap();
    let listed = listed.lines().take_while(|line| !line.is_empty());
    // What is further in goes on with the line above.
    let commands: Vec<&str> = listed
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(
        commands.len() > 10 && !commands.contains(&"man"),
        "{commands:?}"
    );
    for command in commands {
        let text = page(&format!("flaredb-{command}"));
        assert!(text.contains("\\-\\-endpoints"), "{command}: {text}");
    }
    assert!(page("flaredb").contains("Exit codes: 0 done"));
    assert!(page("flaredb-ns-set-mode").contains("\\-\\-dry\\-run"));
    assert!(
        page("flaredb-get").contains("\n  \\- json "),
        "a list has its lines: {}",
        page("flaredb-get")
    );
    let server = page("rdb-server");
    assert!(server.contains("\\-\\-data\\-dir") && server.contains("SIGHUP"));

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ran = run("x:1", &["man", file.join("man").to_str().unwrap()]);
    assert_eq!((ran.code, ran.out()), (1, ""));
    assert!(
        ran.err.contains("cannot write manual pages to"),
        "{}",
        ran.err
    );
}

/// What bash offers for the last of these words. Called as bash calls it, in a directory with one file.
fn bash_offers(words: &[&str]) -> Vec<String> {
    let script = run("x:1", &["completion", "bash"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a-file"), "").unwrap();
    // `complete` exists; `compopt` works only while a person presses tab.
    let mut asked = String::from("compopt() { :; }\n");
    asked += script.out();
    asked += "\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n";
    asked += "_flaredb flaredb \"${@: -1}\" \"${@: -2:1}\"\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n";
    let output = Command::new("bash")
        .args(["--norc", "-c", &asked, "bash", "flaredb"])
        .args(words)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let offers = String::from_utf8(output.stdout).unwrap();
    let offers = offers.lines().filter(|offer| !offer.is_empty());
    offers.map(str::to_owned).collect()
}

#[test]
fn shells_complete_words_where_there_are_some_and_files_only_for_files() {
    assert_eq!(
        bash_offers(&["ns", "create", "logs", "--mode", ""]),
        ["strong", "eventual"]
    );
    assert_eq!(
        bash_offers(&["ns", "create", "logs", "--mode", "e"]),
        ["eventual"]
    );
    assert_eq!(
        bash_offers(&["ns", "update", "logs", "--durability", ""]),
        ["sync", "relaxed"]
    );
    assert_eq!(
        bash_offers(&["get", "k", "-o", ""]),
        ["table", "json", "jsonl", "raw"]
    );
    assert_eq!(bash_offers(&["scan", "--output", "r"]), ["raw"]);
    for no_file in [
        &["get", "k", "--timeout", ""][..],
        &["get", "k", "--endpoints", ""],
        &["scan", "--prefix", ""],
        &["put", "k", "v", "--ttl", ""],
    ] {
        assert_eq!(bash_offers(no_file), [""; 0], "{no_file:?}");
    }
    assert_eq!(bash_offers(&["put", "k", "--file", ""]), ["a-file"]);
    assert!(bash_offers(&["ns", "set-mode", "logs", "ev"]).contains(&"eventual".to_owned()));

    let zsh = run("x:1", &["completion", "zsh"]);
    assert!(
        zsh.out().contains(":MODE:(strong eventual)"),
        "{}",
        zsh.out()
    );
    assert!(!zsh.out().contains("DURATION:_default"), "{}", zsh.out());
    let fish = run("x:1", &["completion", "fish"]);
    let line = |option: &str| {
        let line = fish.out().lines().find(|line| line.contains(option));
        line.unwrap_or_else(|| panic!("no {option}: {}", fish.out()))
    };
    for words in [
        "-l mode -d 'Its mode; the cluster\\'s default otherwise' -r -f -a \"strong\\t''\neventual\\t''\"",
        "__fish_seen_subcommand_from set-mode\" -f -a \"strong eventual\"",
        "using_subcommand completion\" -f -a \"bash zsh fish\"",
        "\ncomplete -c flaredb -f\n",
    ] {
        assert!(fish.out().contains(words), "no {words} in: {}", fish.out());
    }
    for (option, files) in [
        ("-l mode ", false),
        ("-l timeout ", false),
        ("-l file ", true),
    ] {
        let offers_files = !line(option).contains(" -f") || line(option).contains(" -F");
        assert_eq!(offers_files, files, "{}", line(option));
    }
}

#[test]
fn conflicts_are_listed_and_restored_in_every_format() {
    let running = Store::start();
    let run = |args: &[&str]| run(&running.address, args);
    let raw = run(&["conflicts", "cart", "-o", "raw"]);
    assert_eq!((raw.code, raw.json()), (0, CONFLICT.to_owned()));
    assert!(raw.err.contains("store 3 does not answer"), "{}", raw.err);
    assert_eq!(
        run(&["conflicts", "cart", "-o", "jsonl"]).json(),
        format!(
            r#"{{"deletion":false,"id":"{CONFLICT}","key":"k","reason":"a newer write had not seen it","set_aside":false,"stores":[1,2],"value_base64":"/w==","version":"7","winner_version":"9"}}"#
        )
    );
    let table = run(&["conflicts", "cart", "-o", "table"]);
    for part in ["TO VERSION", "base64:/w==", "1,2", "had not seen it"] {
        assert!(table.out().contains(part), "no {part} in {}", table.out());
    }
    let none = run(&["conflicts", "cart", "--prefix", "x", "-o", "json"]);
    assert_eq!((none.code, none.json()), (0, "[]".to_owned()));

    for which in [CONFLICT, "--all"] {
        let done = run(&["conflicts", "cart", "restore", which, "-o", "raw"]);
        assert_eq!((done.code, done.out()), (0, "1\n"), "{}", done.err);
        assert!(
            done.err.contains("store 3 may still list it"),
            "{}",
            done.err
        );
    }
    let untouched = [
        "conflicts",
        "cart",
        "restore",
        "--all",
        "--if-untouched",
        "-o",
        "jsonl",
    ];
    assert_eq!(
        run(&untouched).json(),
        r#"{"restored":"1","skipped":"1","warnings":["store 3 may still list it"]}"#
    );
    let unknown = run(&["conflicts", "cart", "restore", "2-0-6b"]);
    assert_eq!((unknown.code, unknown.out()), (2, ""), "{}", unknown.err);
}

#[test]
fn verify_tells_by_its_exit_code_whether_replicas_agree() {
    let running = Store::start();
    let verify = |name: &str| {
        let args = ["verify", name, "--timeout", "300ms", "-o", "raw"];
        run(&running.address, &args)
    };
    let equal = verify("cart");
    assert_eq!(equal.code, 0, "{}", equal.err);
    let digest = "07".repeat(16);
    let lines: Vec<String> = (1..=3)
        .map(|store| format!("2\t{store}\t{digest}\tequal"))
        .collect();
    assert_eq!(equal.json(), lines.join("\n"));
    for (name, code, word) in [
        ("different", 1, "DIFFERENT"),
        ("behind", 4, "not at the same cut"),
        ("away", 4, "unreachable"),
    ] {
        let ran = verify(name);
        assert_eq!(ran.code, code, "{name}: {}", ran.err);
        assert!(ran.out().contains(word), "{name}: {}", ran.out());
        assert!(!ran.err.is_empty());
    }
}

/// It tells what comes as it comes, ends with Ctrl-C as with a success, and says how to go on.
#[test]
fn a_watch_goes_on_until_it_is_interrupted() {
    use std::io::{BufRead, BufReader};
    let running = Store::start();
    for (format, wanted) in [
        ("raw", ["put\tk\tv", "delete\tk\t"]),
        ("jsonl", [r#""type":"put""#, r#""type":"delete""#]),
    ] {
        let mut child = flaredb(&running.address)
            .args(["watch", "-o", format, "k"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for wanted in wanted {
            let line = lines.next().unwrap().unwrap();
            assert!(line.contains(wanted), "{line}");
        }
        let pid = child.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(lines.count(), 0);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("--session dG9rZW4="), "{told}");
    }
}

#[test]
fn a_watch_of_a_quiet_namespace_ends_with_its_reader() {
    use std::io::{BufRead, BufReader};
    let running = Store::start();
    let mut child = flaredb(&running.address)
        .args(["watch", "-o", "raw", "k"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "put\tk\tv");
    // The store tells nothing after its second event.
    assert_eq!(lines.next().unwrap().unwrap(), "delete\tk\t");
    drop(lines);
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("it goes on without a reader");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}

#[test]
fn a_scan_says_where_to_watch_from() {
    let running = Store::start();
    let at = &*running.address;
    running.store.put_raw(b"k", b"v");
    for format in ["jsonl", "json", "table", "raw"] {
        let scan = run(at, &["scan", "--receipt", "-o", format]);
        assert_eq!(scan.code, 0, "{format}: {}", scan.err);
        assert!(scan.err.starts_with('{') && scan.err.lines().count() == 1);
        assert!(scan.err.contains(r#""session":"dG9rZW4=""#), "{}", scan.err);
        assert!(!scan.out().contains("session"), "{}", scan.out());
    }
    let get = run(at, &["get", "k", "-o", "jsonl"]);
    assert!(
        get.out().contains(r#""session":"dG9rZW4=""#),
        "{}",
        get.out()
    );
    let gone = run(at, &["watch", "--from-revision", "1"]);
    assert_eq!(gone.code, 1, "{}", gone.err);
    for part in [
        "COMPACTED",
        "flaredb scan --receipt",
        "--from-revision 40 or --session b2xk",
    ] {
        assert!(gone.err.contains(part), "no {part} in: {}", gone.err);
    }
}
