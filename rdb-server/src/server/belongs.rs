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

impl<S, B, R> Service<Request<B>> for Belongs<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Whole,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let tasks = self.tasks.clone();
        let call = tasks.within(|| self.inner.call(request));
        Box::pin(async move {
            let response = tasks.enter(call).await?;
            Ok(response.map(|body| R::whole(Answers { body, tasks })))
        })
    }
}

/// What is answered, made as a part of the store.
pub(super) struct Answers<R> {
    body: R,
    tasks: Tasks,
}

/// The body of an edge's answers, which holds any other: gRPC's and HTTP's are two types.
pub(super) trait Whole: http_body::Body<Data = Bytes> + Unpin + Sized {
    /// Puts such a body into one of its own kind.
    fn whole(answers: Answers<Self>) -> Self;
}

impl Whole for Body {
    fn whole(answers: Answers<Body>) -> Body {
        Body::new(answers)
    }
}

impl Whole for axum::body::Body {
    fn whole(answers: Answers<axum::body::Body>) -> axum::body::Body {
        axum::body::Body::new(answers)
    }
}

impl<R: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Answers<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, R::Error>>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{self, Blocking};
    use std::convert::Infallible;
    use std::future::{pending, poll_fn};

    /// A stream of answers that starts a task and ends.
    struct Starts;

    impl http_body::Body for Starts {
        type Data = Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
            tasks::spawn(pending::<()>());
            Poll::Ready(None)
        }
    }

    #[tokio::test]
    async fn what_a_call_and_its_answers_start_ends_with_the_store() {
        let store = Tasks::new(1, Blocking::Inline);
        let handler = tower::service_fn(|_: Request<()>| {
            tasks::spawn(pending::<()>());
            async {
                tasks::spawn(pending::<()>());
                Ok::<_, Infallible>(Response::new(Body::new(Starts)))
            }
        });
        let mut service = BelongsLayer::new(store.clone()).layer(handler);
        let response = service.call(Request::new(())).await.unwrap();
        assert_eq!(store.count(), 2, "before the answers are read");
        let mut answers = response.into_body();
        let end =
            poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut answers), context)).await;
        assert!(end.is_none());
        assert_eq!(store.count(), 3);
        store.abort_all();
        assert_eq!(store.count(), 3, "they end when the runtime comes by them");
        while store.count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
