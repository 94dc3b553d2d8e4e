//! Whatever a service does for a caller belongs to its store.
//!
//! Owns the layer that makes it so: the tasks that a handler starts end with the store, and its random
//! numbers and its waiting for the disk are the store's ([`crate::tasks`]), in the call and in the stream
//! of its answers. Knows nothing of what is served.

use crate::tasks::Tasks;
use futures::future::BoxFuture;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Puts [`Belongs`] around a service.
#[derive(Clone)]
pub(super) struct BelongsLayer {
    tasks: Tasks,
}

impl BelongsLayer {
    /// For the store with these tasks.
    pub(super) fn new(tasks: Tasks) -> BelongsLayer {
        BelongsLayer { tasks }
    }
}

impl<S> Layer<S> for BelongsLayer {
    type Service = Belongs<S>;

    fn layer(&self, inner: S) -> Belongs<S> {
        Belongs {
            inner,
            tasks: self.tasks.clone(),
        }
    }
}

/// A service that does all its work as a part of the store.
#[derive(Clone)]
pub(super) struct Belongs<S> {
    inner: S,
    tasks: Tasks,
}

impl<S, B> Service<Request<B>> for Belongs<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let tasks = self.tasks.clone();
        let call = tasks.within(|| self.inner.call(request));
        Box::pin(async move {
            let response = tasks.enter(call).await?;
            Ok(response.map(|body| Body::new(Answers { body, tasks })))
        })
    }
}

/// What is answered, made as a part of the store.
struct Answers {
    body: Body,
    tasks: Tasks,
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        let this = self.get_mut();
        let body = Pin::new(&mut this.body);
        this.tasks.within(|| body.poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
