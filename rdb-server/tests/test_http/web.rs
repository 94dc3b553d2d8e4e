//! HTTP/1.1 by hand, one request a connection: a library would hide what is wrong with an answer.
//!
//! Owns the reading of an answer, pieces of a streamed one included, and the look at a refusal.

use crate::support::cluster::Cluster;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far beyond what a busy machine needs.
const PATIENT: Duration = Duration::from_secs(30);

/// A request that is being put together.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    addr: SocketAddr,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// It has its end.
    pub(crate) whole: bool,
}

/// To a store of a cluster, by position.
pub(crate) fn ask(cluster: &Cluster, store: usize, method: &str, path: &str) -> Ask {
    Ask {
        addr: cluster.http_addr(store),
        method: method.to_owned(),
        path: path.to_owned(),
        headers: Vec::new(),
        body: None,
    }
}

/// GET from the first store.
pub(crate) async fn get(cluster: &Cluster, path: &str) -> Answer {
    ask(cluster, 0, "GET", path).send().await
}

/// PUT of a value to the first store.
pub(crate) async fn put(cluster: &Cluster, path: &str, value: &[u8]) -> Answer {
    ask(cluster, 0, "PUT", path).body(value).send().await
}

impl Ask {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Ask {
        self.body = Some(body.to_vec());
        self
    }

    pub(crate) fn json(self, body: &str) -> Ask {
        self.header("Content-Type", "application/json")
            .body(body.as_bytes())
    }

    pub(crate) async fn send(&self) -> Answer {
        let mut request = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.method, self.path, self.addr
        );
        for (name, value) in &self.headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &self.body {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        raw(self.addr, &bytes, self.method == "HEAD").await
    }
}

/// Sends bytes as they are and reads one answer.
pub(crate) async fn raw(addr: SocketAddr, bytes: &[u8], head_only: bool) -> Answer {
    let talk = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // A store that refuses a body may close before it has come.
        let _ = stream.write_all(bytes).await;
        let mut whole = Vec::new();
        let _ = stream.read_to_end(&mut whole).await;
        whole
    };
    let whole = tokio::time::timeout(PATIENT, talk).await.expect("answered");
    parse(&whole, head_only)
}

fn parse(bytes: &[u8], head_only: bool) -> Answer {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let rest = &bytes[end + 4..];
    let (body, whole) = if headers
        .get("transfer-encoding")
        .is_some_and(|it| it == "chunked")
    {
        pieces(rest)
    } else {
        let length = headers.get("content-length").map(|it| it.parse().unwrap());
        let whole = head_only || length.is_none_or(|length: usize| length == rest.len());
        (rest.to_vec(), whole)
    };
    Answer {
        status: status.parse().unwrap(),
        headers,
        body,
        whole,
    }
}

/// Joins the pieces of a streamed body; says whether the last one came.
fn pieces(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(piece) = rest.get(end + 2..end + 2 + size) else {
            break;
        };
        body.extend_from_slice(piece);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    (body, false)
}

impl Answer {
    /// A header; empty: it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert!(self.whole, "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It was done, with this status.
    #[track_caller]
    pub(crate) fn is(&self, status: u16) -> &Answer {
        assert_eq!(self.status, status, "{} {:?}", self.text(), self.headers);
        self
    }

    /// It is a refusal: this status and reason, in the form of all refusals.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, reason: &str) -> Value {
        self.is(status);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["reason"], reason, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], format!("urn:flaredb:reason:{reason}"));
        assert!(
            problem["detail"].as_str().is_some_and(|it| !it.is_empty()),
            "{problem}"
        );
        // Retry-After and its exact form go together.
        assert_eq!(
            self.headers.contains_key("retry-after"),
            problem.get("retry_after_ms").is_some(),
            "{self:?}"
        );
        problem
    }

    /// It is refused for this field.
    #[track_caller]
    pub(crate) fn invalid(&self, field: &str) -> Value {
        let problem = self.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["field"], field, "{problem}");
        problem
    }
}
