//! What systemd hears of a store (`Type=notify`): a socket at NOTIFY_SOCKET, and real processes.

use crate::support::calls::PATIENT;
use crate::support::cluster::Cluster;
use crate::support::http;
use std::path::PathBuf;
use tokio::net::{TcpStream, UnixDatagram};

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn in_dir_of(cluster: &Cluster) -> Manager {
        let path = cluster.dir().join("notify");
        Manager {
            socket: UnixDatagram::bind(&path).unwrap(),
            path,
        }
    }

    fn env(&self) -> (String, String) {
        ("NOTIFY_SOCKET".to_owned(), self.path.display().to_string())
    }

    /// The lines of messages, up to the one with this line.
    async fn until(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut heard = Vec::new();
        let wait = async {
            loop {
                let mut message = [0; 4096];
                let length = self.socket.recv(&mut message).await.unwrap();
                let text = std::str::from_utf8(&message[..length]).unwrap();
                heard.extend(text.lines().map(str::to_owned));
                if text.lines().any(&wanted) {
                    break;
                }
            }
        };
        if tokio::time::timeout(PATIENT, wait).await.is_err() {
            panic!("not heard; only {heard:?}");
        }
        heard
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_told_of_the_start_a_reload_and_the_end() {
    let mut cluster = Cluster::prepare(1, &[]);
    let manager = Manager::in_dir_of(&cluster);
    let watchdog = ("WATCHDOG_USEC".to_owned(), "400000".to_owned());
    cluster.node_mut(0).set_env(vec![manager.env(), watchdog]);
    cluster.launch(0);

    let heard = manager.until(|line| line == "READY=1").await;
    assert_eq!(heard, ["READY=1"], "the first word");
    // At that very moment, without another try.
    TcpStream::connect(cluster.addr(0)).await.unwrap();
    let alive = http::get(cluster.http_addr(0), "/livez").await.unwrap();
    assert_eq!(alive.status, 200);
    manager.until(|line| line == "STATUS=serving").await;
    for _ in 0..3 {
        manager.until(|line| line == "WATCHDOG=1").await;
    }

    cluster.node(0).signal("HUP").unwrap();
    let heard = manager.until(|line| line == "READY=1").await;
    let at = heard.iter().position(|line| line == "RELOADING=1").unwrap();
    let time = heard[at + 1].strip_prefix("MONOTONIC_USEC=").unwrap();
    assert!(time.parse::<u64>().unwrap() > 0, "{heard:?}");

    cluster.node(0).signal("TERM").unwrap();
    manager.until(|line| line == "STOPPING=1").await;
    let ended = cluster.node_mut(0).wait_exit(PATIENT).await.unwrap();
    assert_eq!(ended.code(), Some(0));
}

/// A start that a service manager waits for ends although the cluster cannot begin yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_waits_for_the_others_is_up_and_says_for_whom_it_waits() {
    let mut cluster = Cluster::prepare(3, &[]);
    let manager = Manager::in_dir_of(&cluster);
    cluster.node_mut(0).set_env(vec![manager.env()]);
    cluster.launch(0);
    manager.until(|line| line == "READY=1").await;
    let waits = "it waits for an answer of store 2, 3";
    manager
        .until(|line| line.starts_with("STATUS=not ready: cluster: ") && line.contains(waits))
        .await;
    let ready = http::get(cluster.http_addr(0), "/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(waits), "{}", ready.body);

    cluster.launch(1);
    cluster.launch(2);
    let heard = manager.until(|line| line == "STATUS=serving").await;
    assert!(!heard.contains(&"READY=1".to_owned()), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_start_is_never_ready_and_says_why() {
    let mut cluster = Cluster::prepare(1, &[]);
    let manager = Manager::in_dir_of(&cluster);
    let taken = std::net::TcpListener::bind(cluster.http_addr(0)).unwrap();
    cluster.node_mut(0).set_env(vec![manager.env()]);
    cluster.launch(0);
    let ended = cluster.node_mut(0).wait_exit(PATIENT).await.unwrap();
    // systemd restarts no 1: deploy/systemd/flaredb.service.
    assert_eq!(ended.code(), Some(1));
    drop(taken);
    let heard = manager.until(|line| line.starts_with("STATUS=")).await;
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(
        heard[0].starts_with("STATUS=cannot listen on "),
        "{heard:?}"
    );
}
