//! A log that nobody reads holds no store: standard error is a pipe here, and its other end does as it likes.

use crate::scrape::samples;
use crate::support::calls::PATIENT;
use crate::support::cluster::Cluster;
use crate::support::http;
use crate::support::process::server;
use crate::support::wait::eventually;
use rdb_chaos::node::clean;
use rdb_server::config::{LogConfig, LogFormat};
use rdb_server::logging;
use std::io::{BufRead, BufReader, PipeReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// A store that tells everything it can into a pipe.
struct Talker {
    process: Child,
    /// Ports and directory.
    cluster: Cluster,
    pipe: Option<PipeReader>,
}

impl Drop for Talker {
    fn drop(&mut self) {
        // Both fail only for a process that is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Talker {
    /// Both of its outputs are the pipe, as under most supervisors.
    fn start() -> Talker {
        let cluster = Cluster::prepare(1, &["--log-level", "trace,openraft=trace"]);
        let (pipe, end) = std::io::pipe().unwrap();
        let process = clean(server())
            .args(cluster.node(0).args())
            .stdout(end.try_clone().unwrap())
            .stderr(end)
            .spawn()
            .unwrap();
        Talker {
            process,
            cluster,
            pipe: Some(pipe),
        }
    }

    fn http(&self) -> SocketAddr {
        self.cluster.http_addr(0)
    }

    async fn dropped(&self) -> Result<f64, String> {
        let page = http::get(self.http(), "/metrics").await?.body;
        let samples = samples(&page);
        let dropped = samples
            .iter()
            .find(|it| it.name == "flaredb_log_dropped_lines_total");
        Ok(dropped.ok_or("it does not count")?.number())
    }

    async fn put(&self) -> Result<(), String> {
        let request = format!(
            "PUT /v1/kv/default/greeting HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            self.http()
        );
        let answer = http::exchange(self.http(), request.as_bytes()).await?;
        if answer.starts_with(b"HTTP/1.1 200 ") {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&answer).into_owned())
        }
    }

    /// Serves until more was said than the pipe and the queue hold.
    async fn talk_into_the_void(&self) {
        eventually(PATIENT, "it is ready", async || {
            match http::get(self.http(), "/readyz").await?.status {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        })
        .await;
        while self.dropped().await.unwrap() == 0.0 {
            for _ in 0..50 {
                self.put().await.unwrap();
            }
        }
        for _ in 0..50 {
            self.put().await.unwrap();
        }
    }

    /// All lines from now on, as they come.
    fn read(&mut self) -> Arc<Mutex<Vec<String>>> {
        let (lines, pipe) = (Arc::<Mutex<Vec<String>>>::default(), self.pipe.take());
        let read = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe.unwrap()).lines() {
                read.lock().unwrap().push(line.unwrap());
            }
        });
        lines
    }

    fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    async fn end(&mut self) -> ExitStatus {
        eventually(PATIENT, "the process ends", async || {
            let ended = self.process.try_wait().map_err(|error| error.to_string())?;
            ended.ok_or_else(|| "it runs".to_owned())
        })
        .await
    }
}

/// The first line with this text at `from` or later.
async fn wait_for(lines: &Mutex<Vec<String>>, from: usize, text: &str) -> usize {
    eventually(PATIENT, text, async || {
        let lines = lines.lock().unwrap();
        let mut places = (from..lines.len()).filter(|at| lines[*at].contains(text));
        places
            .next()
            .ok_or_else(|| format!("not in {} lines", lines.len()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_log_is_not_read_goes_on_and_tells_how_much_was_dropped() {
    let mut store = Talker::start();
    store.talk_into_the_void().await;

    let lines = store.read();
    let told = wait_for(&lines, 0, "lines of the log were dropped").await;
    // Lines go on behind it, to the last one.
    store.signal("-HUP");
    let again = wait_for(&lines, told, "rdb_server::store::reload").await;
    store.put().await.unwrap();
    store.signal("-TERM");
    let ended = store.end().await;
    assert_eq!(ended.code(), Some(0));
    wait_for(&lines, again, "stopped").await;
    let lines = lines.lock().unwrap();
    assert!(lines[told].contains("since_start="), "{}", lines[told]);
    let broken = lines.iter().filter(|line| line.contains("panicked"));
    assert_eq!(broken.count(), 0);
    println!("{} lines, the gap at {told}: {}", lines.len(), lines[told]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_log_is_not_read_leaves_in_order() {
    let mut store = Talker::start();
    store.talk_into_the_void().await;
    store.signal("-TERM");
    assert_eq!(store.end().await.code(), Some(0));
}

/// What a process of the test below does; by itself nothing.
#[test]
fn a_process_that_panics() {
    let format = match std::env::var("LOG_READER_FORMAT").as_deref() {
        Ok("json") => LogFormat::Json,
        Ok("text") => LogFormat::Text,
        _ => return,
    };
    let log = LogConfig {
        format,
        ..LogConfig::default()
    };
    logging::start(&log).unwrap();
    tracing::warn!("a line before");
    let thread = std::thread::Builder::new().name("worker".to_owned());
    let panicked = thread.spawn(|| panic!("these are its words")).unwrap();
    assert!(panicked.join().is_err());
    for line in 0..1000 {
        tracing::warn!(line, "one of many");
    }
    logging::end(Some("the last word"));
}

#[test]
fn the_words_of_a_panic_and_the_last_word_of_a_process_get_out() {
    for format in ["text", "json"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log_reader::a_process_that_panics"])
            .arg("--nocapture")
            .env("LOG_READER_FORMAT", format)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(child.stderr).unwrap();
        assert!(child.status.success(), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        let words = lines.iter().find(|line| line.contains("panicked at"));
        assert!(words.unwrap().contains("thread 'worker'"), "{said}");
        assert!(said.contains("these are its words"), "{said}");
        let many = lines.iter().filter(|line| line.contains("one of many"));
        assert_eq!(many.count(), 1000, "{said}");
        let last = lines.last().unwrap();
        if format == "json" {
            for line in &lines {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
            }
            assert!(last.contains(r#""message":"the last word""#), "{last}");
        } else {
            assert_eq!(*last, "the last word");
        }
    }
}
