//! The pages of a scan on their way to its reader.
//!
//! Owns the wait for a reader, and how the scan ended. Knows nothing of what is in a page.
//!
//! Invariants: a page is read when there is room for it, so that a slow reader holds no thread; a reader that
//! takes no page for as long as its [`Patience`] is cut; there are no more pages only where all were sent: every other
//! end is an error, which needs no room among the pages.

use crate::error::Error;
use crate::tasks;
use rdb_proto::kv::ScanResponse;
use rdb_types::Reason;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// A scan whose reader takes no page for this long is ended: it holds a snapshot. Comes with a request of this process, where
/// somebody else looks whether the reader takes anything at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(pub Duration);

impl Default for Patience {
    /// With any reader.
    fn default() -> Patience {
        Patience(Duration::from_secs(30))
    }
}
/// Pages that wait for the reader.
const WAITING: usize = 2;

/// A scan, as its reader sees it.
pub struct Pages {
    pages: mpsc::Receiver<ScanResponse>,
    /// How it ended; `None`: that was said.
    end: Option<oneshot::Receiver<Result<(), Error>>>,
}

impl Pages {
    /// Has `read` called, where it may wait for the disk, for each page until there is none. `permit` is held
    /// until the last one is taken.
    pub(super) fn send(
        read: impl FnMut() -> Result<Option<ScanResponse>, Error> + Send + 'static,
        permit: OwnedSemaphorePermit,
        patience: Patience,
    ) -> Pages {
        let (room, pages) = mpsc::channel(WAITING);
        let (ended, end) = oneshot::channel();
        tasks::spawn(async move {
            let _permit = permit;
            // A reader that is gone asks for nothing any more.
            let _ = ended.send(send_all(read, &room, patience).await);
        });
        Pages {
            pages,
            end: Some(end),
        }
    }

    /// The next page; `None` behind the last. An error is the last item.
    pub async fn next(&mut self) -> Option<Result<ScanResponse, Error>> {
        if let Some(page) = self.pages.recv().await {
            return Some(Ok(page));
        }
        match self.end.take()?.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Err(error)),
            Err(_unsaid) => Some(Err(broken_off("the store stopped it"))),
        }
    }
}

async fn send_all(
    mut read: impl FnMut() -> Result<Option<ScanResponse>, Error> + Send + 'static,
    room: &mpsc::Sender<ScanResponse>,
    patience: Patience,
) -> Result<(), Error> {
    loop {
        let reading = tasks::blocking(move || {
            let page = read();
            (read, page)
        });
        let page = match reading.await {
            Ok((again, page)) => {
                read = again;
                page?
            }
            Err(error) => return Err(broken_off(error)),
        };
        let Some(page) = page else { return Ok(()) };
        match room.send_timeout(page, patience.0).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(too_slow(patience)),
            // Nobody hears of it.
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
        }
    }
}

fn broken_off(why: impl std::fmt::Display) -> Error {
    Error::new(
        Reason::NotReady,
        format!("the scan broke off: {why}; scan again from behind the last key"),
    )
}

fn too_slow(patience: Patience) -> Error {
    let limit = format!("{}s", patience.0.as_secs());
    Error::new(
        Reason::Overloaded,
        format!(
            "this scan was read too slowly: no page was taken for {limit}; scan again from behind the last key"
        ),
    )
    .with("limit", limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn pages(count: usize, then: Result<(), Error>) -> (Pages, Arc<Semaphore>) {
        let places = Arc::new(Semaphore::new(1));
        let permit = places.clone().try_acquire_owned().unwrap();
        let mut left = count;
        let read = move || {
            if left == 0 {
                return then.clone().map(|()| None);
            }
            left -= 1;
            Ok(Some(ScanResponse::default()))
        };
        (Pages::send(read, permit, Patience::default()), places)
    }

    async fn read_all(pages: &mut Pages) -> (usize, Option<Error>) {
        let mut count = 0;
        while let Some(page) = pages.next().await {
            match page {
                Ok(_) => count += 1,
                Err(error) => return (count, Some(error)),
            }
        }
        (count, None)
    }

    /// A client whose output stalled for half a minute was told of two pages, and then that these were all.
    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_is_told_that_it_was_cut() {
        let (mut pages, places) = pages(9, Ok(()));
        tokio::time::sleep(Patience::default().0 * 2).await;
        assert_eq!(places.available_permits(), 1, "it holds no snapshot");
        let (count, error) = read_all(&mut pages).await;
        assert_eq!(count, WAITING);
        assert_eq!(error.unwrap().reason, Reason::Overloaded);
        assert!(pages.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_its_time_gets_all() {
        let (mut pages, _places) = pages(9, Ok(()));
        for _ in 0..9 {
            tokio::time::sleep(Patience::default().0 * 9 / 10).await;
            assert!(pages.next().await.unwrap().is_ok());
        }
        assert!(pages.next().await.is_none());
    }

    #[tokio::test]
    async fn what_ends_a_scan_early_is_its_last_item() {
        let damaged = Error::new(Reason::Corruption, "damaged");
        let (mut broken, _places) = pages(5, Err(damaged));
        let (count, error) = read_all(&mut broken).await;
        assert_eq!(
            (count, error.map(|error| error.reason)),
            (5, Some(Reason::Corruption))
        );
        // A reading that panics says nothing of itself.
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let mut stopped = Pages::send(|| panic!("as a defect would"), permit, Patience::default());
        let (count, error) = read_all(&mut stopped).await;
        assert_eq!(
            (count, error.map(|error| error.reason)),
            (0, Some(Reason::NotReady))
        );
    }
}
