//! Scans: pages as one stream of entries, taken up again after a failure.
//!
//! Owns where a scan goes on. Knows nothing of how a page was read.
//!
//! Invariant: every key is given at most once and in order, also across failures: a page begins
//! strictly beyond the last key that was given. A scan is not a picture of one moment: each page is as
//! fresh as its own read.

use crate::batch::MAX_ANSWER_BYTES;
use crate::call::Call;
use crate::client::{Client, with_deadline};
use crate::error::ClientError;
use crate::failure::Failure;
use crate::node::Node;
use crate::options::ScanOptions;
use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use futures::stream::{self, StreamExt};
use rdb_proto::kv::{self, kv_client::KvClient};
use rdb_types::key::prefix_end;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

impl Client {
    /// The entries of a range, in order. An error is the last item. Nothing is asked before the stream
    /// is polled, and nothing more after it is dropped.
    pub fn scan(
        &self,
        namespace: &str,
        options: ScanOptions,
    ) -> impl Stream<Item = Result<kv::KeyValue, ClientError>> + Send + Unpin + use<> {
        let pages = self.scan_pages(namespace, options);
        pages
            .map(|page| match page {
                Ok(page) => stream::iter(page.entries).map(Ok).left_stream(),
                Err(error) => stream::iter([Err(error)]).right_stream(),
            })
            .flatten()
            .boxed()
    }

    /// As [`Client::scan`], page by page as the store cut them, each with the receipt that says how it
    /// was served. Pages may be empty.
    pub fn scan_pages(
        &self,
        namespace: &str,
        options: ScanOptions,
    ) -> impl Stream<Item = Result<kv::ScanResponse, ClientError>> + Send + Unpin + use<> {
        let scan = Scan {
            client: self.clone(),
            rest: Rest::new(namespace, &options),
            asked: kv::ReadOptions::default(),
            options,
            stream: None,
            done: false,
        };
        stream::unfold(scan, |mut scan| async move {
            scan.next().await.map(|item| (item, scan))
        })
        .boxed()
    }
}

struct Scan {
    client: Client,
    options: ScanOptions,
    rest: Rest,
    /// How the open stream was asked for.
    asked: kv::ReadOptions,
    stream: Option<(Arc<Node>, Streaming<kv::ScanResponse>)>,
    done: bool,
}

impl Scan {
    async fn next(&mut self) -> Option<Result<kv::ScanResponse, ClientError>> {
        if self.done {
            return None;
        }
        let page = self.fill().await;
        self.done |= !matches!(page, Ok(Some(_)));
        page.transpose()
    }

    /// Gets the next page, from the open stream or from a new one that begins at the rest.
    async fn fill(&mut self) -> Result<Option<kv::ScanResponse>, ClientError> {
        let timeout = self
            .options
            .read
            .timeout
            .unwrap_or(self.client.options().request_timeout);
        if let Some((node, stream)) = &mut self.stream {
            let deadline = Instant::now() + timeout;
            match page(node, stream, deadline).await {
                Ok(page) => {
                    return Ok(self.take(page));
                }
                // Also a deadline: the store ends a stream whose time is up, though it made progress.
                // Whether a new one may be tried is decided there, by what it meets.
                Err(failure) => {
                    tracing::debug!(
                        endpoint = node.address(),
                        error = failure.message,
                        "scan interrupted"
                    );
                    self.stream = None;
                }
            }
        }
        let read = self
            .client
            .in_session(&self.rest.namespace, &self.options.read, None);
        self.asked.clone_from(&read);
        let request = self.rest.request(&self.options, read);
        let call = Call::read("scan", &self.rest.namespace, Some(timeout));
        let begun = self
            .client
            .run(call, |node, deadline, _| {
                let mut request = request.clone();
                let seen = self.client.learned().seen_epoch(&request.namespace);
                let read = request.read.get_or_insert_default();
                read.seen_epoch = read.seen_epoch.max(seen);
                async move {
                    let mut stream = node
                        .unary(deadline, async |channel| {
                            KvClient::new(channel)
                                .max_decoding_message_size(MAX_ANSWER_BYTES)
                                .scan(with_deadline(request, deadline))
                                .await
                        })
                        .await?;
                    // The first page belongs to the attempt: a store may refuse only then.
                    let first = page(&node, &mut stream, deadline).await?;
                    Ok(((node, stream), first))
                }
            })
            .await;
        let (stream, first) = self
            .client
            .not_lost(&self.rest.namespace, &self.asked, begun)?;
        self.stream = Some(stream);
        Ok(self.take(first))
    }

    /// Notes what `page` gives.
    fn take(&mut self, page: Option<kv::ScanResponse>) -> Option<kv::ScanResponse> {
        if let Some(page) = &page {
            self.client
                .note_read(&self.rest.namespace, page.receipt.as_ref(), &self.asked);
            self.rest.given(&page.entries, self.options.reverse);
            self.done = self.rest.is_empty();
        }
        page
    }
}

async fn page(
    node: &Node,
    stream: &mut Streaming<kv::ScanResponse>,
    deadline: Instant,
) -> Result<Option<kv::ScanResponse>, Failure> {
    match timeout_at(deadline, stream.message()).await {
        Ok(Ok(page)) => Ok(page),
        Ok(Err(status)) => Err(Failure::from_status(node.address(), &status)),
        Err(_) => Err(Failure::deadline(node.address(), true)),
    }
}

/// What of the range was not given yet.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    namespace: String,
    start: Bytes,
    end: Bytes,
    /// `None`: all.
    limit: Option<u32>,
    /// A range can become empty where it must not be asked again: an empty end means "to the end".
    exhausted: bool,
}

impl Rest {
    fn new(namespace: &str, options: &ScanOptions) -> Rest {
        let (start, end) = if options.prefix.is_empty() {
            (options.start.clone(), options.end.clone())
        } else {
            // No end: everything from the prefix on begins with it.
            let end = prefix_end(&options.prefix).unwrap_or_default();
            (options.prefix.clone(), end)
        };
        let limit = (options.limit > 0).then_some(options.limit);
        Rest {
            namespace: namespace.to_owned(),
            start,
            end,
            limit,
            exhausted: false,
        }
    }

    fn request(&self, options: &ScanOptions, read: kv::ReadOptions) -> kv::ScanRequest {
        kv::ScanRequest {
            namespace: self.namespace.clone(),
            start: self.start.clone(),
            end: self.end.clone(),
            prefix: Bytes::new(),
            limit: self.limit.unwrap_or(0),
            reverse: options.reverse,
            keys_only: options.keys_only,
            read: Some(read),
        }
    }

    fn given(&mut self, entries: &[kv::KeyValue], reverse: bool) {
        let Some(last) = entries.last() else { return };
        if reverse {
            // Exclusive already. Nothing lies before the empty key.
            self.end = last.key.clone();
            self.exhausted = last.key.is_empty();
        } else {
            self.start = successor(&last.key);
        }
        if let Some(limit) = &mut self.limit {
            *limit = limit.saturating_sub(u32::try_from(entries.len()).unwrap_or(u32::MAX));
        }
    }

    fn is_empty(&self) -> bool {
        self.exhausted || self.limit == Some(0)
    }
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(keys: &[&'static str]) -> Vec<kv::KeyValue> {
        keys.iter()
            .map(|key| kv::KeyValue {
                key: Bytes::from_static(key.as_bytes()),
                ..Default::default()
            })
            .collect()
    }

    #[test]
    fn a_scan_goes_on_strictly_beyond_what_was_given() {
        let options = ScanOptions {
            prefix: Bytes::from_static(b"k"),
            limit: 5,
            ..ScanOptions::default()
        };
        let mut rest = Rest::new("n", &options);
        rest.given(&entries(&["k1", "k2"]), false);
        let request = rest.request(&options, kv::ReadOptions::default());
        assert_eq!(
            (&request.start[..], &request.end[..], request.limit),
            (&b"k2\0"[..], &b"l"[..], 3)
        );
        rest.given(&entries(&["k3", "k4", "k5"]), false);
        assert!(rest.is_empty());

        let backward = ScanOptions {
            reverse: true,
            ..ScanOptions::default()
        };
        let mut rest = Rest::new("n", &backward);
        rest.given(&entries(&["z", "y"]), true);
        assert_eq!(
            rest.request(&backward, kv::ReadOptions::default()).end,
            &b"y"[..]
        );
        assert!(!rest.is_empty());
        rest.given(&entries(&["a", ""]), true);
        assert!(rest.is_empty(), "an empty end would begin the scan anew");
    }
}
