//! HTTP/1.1 by hand: what a probe or a scraper sends, without a library that would hide mistakes.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The code of the first line.
    pub status: u16,
    /// First line and headers, in lower case.
    pub head: String,
    /// What follows them.
    pub body: String,
}

/// Gets a path; an error is one line.
pub async fn get(addr: SocketAddr, path: &str) -> Result<Answer, String> {
    let whole = exchange(
        addr,
        format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes(),
    )
    .await?;
    let text = String::from_utf8_lossy(&whole).into_owned();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("not an HTTP answer: {text:?}"))?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| format!("no status in {head:?}"))?;
    Ok(Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

/// Sends bytes and reads until the other side closes.
pub async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let talk = async {
        let mut stream = TcpStream::connect(addr)
            .await
            .map_err(|error| error.to_string())?;
        stream
            .write_all(bytes)
            .await
            .map_err(|error| error.to_string())?;
        let mut whole = Vec::new();
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut whole).await;
        Ok(whole)
    };
    tokio::time::timeout(Duration::from_secs(5), talk)
        .await
        .unwrap_or_else(|_| Err(format!("{addr} did not answer in 5 s")))
}
