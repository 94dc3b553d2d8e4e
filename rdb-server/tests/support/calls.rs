//! Plain gRPC calls to one store, without the retries of the client crate, and refusals taken apart.
//!
//! Owns the reading of a status: code, ErrorInfo, RetryInfo. Knows nothing of what should be refused.

use super::cluster::Cluster;
use bytes::Bytes;
use rdb_proto::kv::kv_client::KvClient;
use rdb_proto::kv::{self, Consistency};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// For calls that are expected to be answered: far beyond what a busy machine needs.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);

/// A refusal, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    /// Empty: there was no ErrorInfo.
    pub(crate) reason: String,
    pub(crate) domain: String,
    pub(crate) message: String,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn of(status: &Status) -> Refusal {
        let details = status.get_error_details();
        let info = details.error_info();
        Refusal {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            domain: info.map(|info| info.domain.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            metadata: info
                .map(|info| info.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }

    /// A metadata value; empty: none.
    pub(crate) fn meta(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("", String::as_str)
    }

    /// Whether it is this row of the table of errors.
    #[track_caller]
    pub(crate) fn is(&self, code: Code, reason: &str) -> &Refusal {
        assert_eq!(
            (self.code, self.reason.as_str(), self.domain.as_str()),
            (code, reason, "flaredb"),
            "{self:?}"
        );
        assert!(
            !self.message.is_empty(),
            "a refusal says what, why and what to do: {self:?}"
        );
        self
    }

    #[track_caller]
    pub(crate) fn field(&self, field: &str) -> &Refusal {
        assert_eq!(self.meta("field"), field, "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn outcome(&self, outcome: &str) -> &Refusal {
        assert_eq!(self.meta("outcome"), outcome, "{self:?}");
        self
    }
}

/// The refusal of a call that must be refused.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> Refusal {
    match answer {
        Ok(answer) => panic!("this must be refused, but was answered: {answer:?}"),
        Err(status) => Refusal::of(&status),
    }
}

/// A message with the time that its sender waits.
pub(crate) fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

pub(crate) async fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_lazy()
}

/// One store's `Kv`, asked plainly. Deletes and compare-and-swaps without an id get a fresh one. Names of keys and values are text in most tests.
#[derive(Clone)]
pub(crate) struct Plain {
    pub(crate) kv: KvClient<Channel>,
    pub(crate) namespace: String,
    pub(crate) timeout: Duration,
}

impl Plain {
    /// On a store of a cluster, by position.
    pub(crate) async fn on(cluster: &Cluster, store: usize) -> Plain {
        Plain::at(cluster.addr(store)).await
    }

    pub(crate) async fn at(addr: SocketAddr) -> Plain {
        Plain {
            kv: KvClient::new(channel(addr).await),
            namespace: String::new(),
            timeout: PATIENT,
        }
    }

    pub(crate) fn namespace(&self, namespace: &str) -> Plain {
        Plain {
            namespace: namespace.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn timeout(&self, timeout: Duration) -> Plain {
        Plain {
            timeout,
            ..self.clone()
        }
    }

    /// Under a fresh request id, so that an election in between costs time and no test.
    pub(crate) async fn put(&self, key: &str, value: &str) -> Result<kv::PutResponse, Status> {
        let request = kv::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            request_id: id_or_fresh(""),
            ..Default::default()
        };
        self.put_as(request).await
    }

    /// With everything but the namespace given.
    pub(crate) async fn put_as(&self, request: kv::PutRequest) -> Result<kv::PutResponse, Status> {
        let request = kv::PutRequest {
            namespace: self.namespace.clone(),
            ..request
        };
        Ok(self
            .kv
            .clone()
            .put(timed(request, self.timeout))
            .await?
            .into_inner())
    }

    pub(crate) async fn delete(
        &self,
        key: &str,
        request_id: &str,
    ) -> Result<kv::DeleteResponse, Status> {
        let request = kv::DeleteRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned().into(),
            request_id: id_or_fresh(request_id),
            ..Default::default()
        };
        Ok(self
            .kv
            .clone()
            .delete(timed(request, self.timeout))
            .await?
            .into_inner())
    }

    pub(crate) async fn cas(
        &self,
        key: &str,
        expected_version: u64,
        value: &str,
        request_id: &str,
    ) -> Result<kv::CompareAndSwapResponse, Status> {
        let request = kv::CompareAndSwapRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned().into(),
            expected_version,
            change: Some(kv::compare_and_swap_request::Change::Value(
                value.to_owned().into(),
            )),
            request_id: id_or_fresh(request_id),
            ..Default::default()
        };
        Ok(self
            .kv
            .clone()
            .compare_and_swap(timed(request, self.timeout))
            .await?
            .into_inner())
    }

    /// Linearizable, the default of a strong namespace.
    pub(crate) async fn get(&self, key: &str) -> Result<kv::GetResponse, Status> {
        self.get_as(key, kv::ReadOptions::default()).await
    }

    pub(crate) async fn get_stale(&self, key: &str) -> Result<kv::GetResponse, Status> {
        self.get_as(key, stale()).await
    }

    pub(crate) async fn get_as(
        &self,
        key: &str,
        read: kv::ReadOptions,
    ) -> Result<kv::GetResponse, Status> {
        let request = kv::GetRequest {
            namespace: self.namespace.clone(),
            key: key.to_owned().into(),
            read: Some(read),
        };
        Ok(self
            .kv
            .clone()
            .get(timed(request, self.timeout))
            .await?
            .into_inner())
    }

    /// All entries of a scan, and the receipts of its pages.
    pub(crate) async fn scan(
        &self,
        request: kv::ScanRequest,
    ) -> Result<(Vec<kv::KeyValue>, Vec<kv::Receipt>), Status> {
        let request = kv::ScanRequest {
            namespace: self.namespace.clone(),
            ..request
        };
        let mut pages = self
            .kv
            .clone()
            .scan(timed(request, self.timeout))
            .await?
            .into_inner();
        let (mut entries, mut receipts) = (Vec::new(), Vec::new());
        while let Some(page) = pages.message().await? {
            entries.extend(page.entries);
            receipts.extend(page.receipt);
        }
        Ok((entries, receipts))
    }

    /// Every key with a prefix, with its value.
    pub(crate) async fn all(
        &self,
        prefix: &str,
        read: kv::ReadOptions,
    ) -> Result<Vec<(Bytes, Bytes)>, Status> {
        let request = kv::ScanRequest {
            prefix: prefix.to_owned().into(),
            read: Some(read),
            ..Default::default()
        };
        let (entries, _) = self.scan(request).await?;
        Ok(entries
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect())
    }
}

/// The given id, or one that nobody used before.
fn id_or_fresh(given: &str) -> Bytes {
    match given {
        "" => Bytes::copy_from_slice(uuid::Uuid::now_v7().as_bytes()),
        id => Bytes::copy_from_slice(id.as_bytes()),
    }
}

/// Reads of this store's copy.
pub(crate) fn stale() -> kv::ReadOptions {
    kv::ReadOptions {
        consistency: Consistency::Stale as i32,
        ..Default::default()
    }
}

/// Reads that are linearizable or refused.
pub(crate) fn linearizable() -> kv::ReadOptions {
    kv::ReadOptions {
        consistency: Consistency::Linearizable as i32,
        ..Default::default()
    }
}

/// The value of an answer as text; `None`: there was nothing.
pub(crate) fn text(answer: &kv::GetResponse) -> Option<String> {
    answer
        .found
        .then(|| String::from_utf8_lossy(&answer.value).into_owned())
}
