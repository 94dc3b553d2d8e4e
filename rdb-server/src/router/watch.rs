//! Watches: what changes in a namespace, told as it is applied here.
//!
//! Owns where a watch begins, the merging of regions, when progress is told, and how many watches there may be.
//! What there is to tell, and how far a watch is, [`crate::history`] says.
//!
//! A watch has no task and no buffer. It is a place in the history, and looks there when its reader has room for
//! more: so one that is not read holds nothing, makes nobody wait, and finds its place gone when it comes back.
//!
//! Invariants:
//! - every message says up to where its reader was told, so that what follows it can be asked for anywhere;
//! - the changes of a region come in its own order; those of several regions lie between each other as it happens;
//! - the first message comes at once, and there is none for [`PROGRESS`] at most;
//! - there are at most [`WATCHES`].

use super::place::{Place as Served, deleted, place_in, reach};
use super::{Router, without_outcome};
use crate::error::Error;
use crate::history::Begin;
use crate::history::change::{Change, Kind};
use crate::history::place::Place;
use crate::history::ring::{Cursor, Ended, Keys};
use crate::peer::Peer;
use crate::session::{self, SessionToken, Token};
use crate::watch;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::select_all;
use futures::{FutureExt, future};
use openraft::async_runtime::WatchReceiver;
use rdb_proto::kv::{KeyValue, WatchResponse, watch_response};
use rdb_proto::raft::NamespaceRow;
use rdb_storage::KeyRange;
use rdb_types::{Epoch, GlobalKey, Mode, NamespaceId, Reason, RegionId, WatchPlace, WatchToken};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Watches of one store at once.
pub const WATCHES: usize = 1024;
/// A watch that has nothing to tell says so after this long.
pub const PROGRESS: Duration = Duration::from_secs(2);

/// The watches of a store.
#[derive(Clone)]
pub struct Watches(Arc<Shared>);

struct Shared {
    places: Arc<Semaphore>,
    stop: CancellationToken,
    events: AtomicU64,
    cut: AtomicU64,
}

impl Default for Watches {
    fn default() -> Watches {
        Watches(Arc::new(Shared {
            places: Arc::new(Semaphore::new(WATCHES)),
            stop: CancellationToken::new(),
            events: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }))
    }
}

impl Watches {
    /// Ends all of them, and begins no more: they never end by themselves.
    pub fn close(&self) {
        self.0.stop.cancel();
    }

    /// Watches that are open.
    pub fn open(&self) -> u64 {
        (WATCHES - self.0.places.available_permits()) as u64
    }

    /// Changes that were told.
    pub fn events(&self) -> u64 {
        self.0.events.load(Ordering::Relaxed)
    }

    /// Watches that were ended because they were read too slowly.
    pub fn cut(&self) -> u64 {
        self.0.cut.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        if self.0.stop.is_cancelled() {
            return Err(leaving());
        }
        self.0.places.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                Reason::Overloaded,
                format!("{WATCHES} watches are open at this store; ask another one, or end some"),
            )
            .with("limit", WATCHES)
        })
    }
}

/// What a watch asks for.
#[derive(Clone, Debug)]
pub struct WatchSpec {
    /// Which keys.
    pub keys: Keys,
    /// The first revision that is wanted; 0: does not say.
    pub from_revision: u64,
    /// A token of an answer, or of a watch; empty: none.
    pub session: Bytes,
}

/// A watch.
pub struct Watching {
    watches: Watches,
    namespace: NamespaceId,
    name: String,
    keys: Keys,
    regions: Vec<Region>,
    /// Which region is looked at first, so that a busy one does not hide the others.
    turn: usize,
    /// When it has to tell something.
    due: Instant,
    /// When its caller stops to listen.
    until: Option<Instant>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

struct Region {
    peer: Arc<Peer>,
    cursor: Cursor,
    grown: watch::Receiver<u64>,
}

impl Router {
    /// Begins a watch. `deadline`: until when that may take; `until`: when it ends.
    ///
    /// # Errors
    /// What is asked for makes no sense, or is not held any more.
    pub async fn watch(
        &self,
        namespace: &str,
        spec: WatchSpec,
        deadline: Instant,
        until: Option<Instant>,
    ) -> Result<Watching, Error> {
        let row = self.namespaces.find(namespace, deadline).await;
        let row = row.map_err(without_outcome)?;
        let namespace = NamespaceId(row.id);
        let watches = self.manager.watches().clone();
        let permit = watches.enter()?;
        let token = session::decode(&spec.session)?;
        let peers = self.peers_of(namespace, &spec.keys);
        if peers.is_empty() {
            return Err(Error::new(
                Reason::NotReady,
                "this store is still joining its cluster; try again",
            ));
        }
        if spec.from_revision > 0 && peers.len() > 1 {
            return Err(Error::invalid(
                "from_revision",
                format!(
                    "these keys lie in {} regions, which count their revisions apart: go on from the session token of a watch's message",
                    peers.len()
                ),
            ));
        }
        let mut regions = Vec::with_capacity(peers.len());
        for peer in peers {
            let from = begin(&token, spec.from_revision, peer.id(), namespace)?;
            // Before it is looked at: nothing that grows meanwhile is missed.
            let grown = peer.cell().history().subscribe();
            let cursor = self.cursor(&peer, &row, from, deadline).await?;
            regions.push(Region {
                peer,
                cursor,
                grown,
            });
        }
        Ok(Watching {
            watches,
            namespace,
            name: row.name,
            keys: spec.keys,
            regions,
            turn: 0,
            due: Instant::now(),
            until,
            ended: false,
            _place: permit,
        })
    }

    /// The regions that hold keys of a watch.
    fn peers_of(&self, namespace: NamespaceId, keys: &Keys) -> Vec<Arc<Peer>> {
        let global = |key: &[u8]| GlobalKey::new(namespace, key).as_bytes().clone();
        let range = match keys {
            Keys::One(key) => {
                let key = global(key);
                return self.manager.peer_of_key(&key).into_iter().collect();
            }
            Keys::Prefix(prefix) => KeyRange {
                start: global(prefix),
                end: match rdb_types::key::prefix_end(prefix).filter(|_| !prefix.is_empty()) {
                    Some(end) => Some(global(&end)),
                    None => GlobalKey::namespace_end(namespace),
                },
            },
        };
        let mut peers = self.manager.data_peers();
        peers
            .retain(|peer| !crate::region::layout::intersect(peer.descriptor(), &range).is_empty());
        peers
    }

    async fn cursor(
        &self,
        peer: &Arc<Peer>,
        row: &NamespaceRow,
        from: From,
        deadline: Instant,
    ) -> Result<Cursor, Error> {
        let namespace = NamespaceId(row.id);
        let epoch = from.session().map_or(0, |token| token.epoch().0);
        reach(peer, namespace, epoch, deadline).await;
        let served = place_in(peer.clone(), row, epoch).map_err(without_outcome)?;
        if let From::Revision(..) = from
            && served.mode == Mode::Eventual
        {
            return Err(no_revisions(&served, row));
        }
        if let From::Revision(first, _) = from {
            not_ahead(peer, &row.name, first, deadline).await?;
        }
        if let Some(token) = from.session() {
            match self.caught_up(peer, row, &token, deadline).await {
                Ok(()) => {}
                Err(error) if error.reason == Reason::SessionLost => {
                    return Err(compacted(peer, row, None));
                }
                // In an eventual namespace nobody need wait for what another store alone has: what it brings is
                // told when it comes.
                Err(error) if error.metadata.contains_key("missing") => {}
                Err(error) => return Err(error),
            }
        }
        let history = peer.cell().history();
        // Looked at last: what the token names has been applied by now.
        let state = peer
            .cell()
            .with(|summary| summary.namespaces.get(&namespace).cloned());
        let state = state.unwrap_or_else(|| crate::region::state::NamespaceState::new(served.mode));
        let begin = match &from {
            From::Now => Some(Begin::Now),
            From::Session(token) => Place::of_session(token, &state).map(Begin::Behind),
            From::Watch(token) => Place::of_watch(token, &state).map(Begin::Behind),
            From::Revision(first, _) => Some(Begin::BehindRevision(first - 1)),
        };
        let Some(begin) = begin else {
            return Err(compacted(peer, row, history.oldest(namespace)));
        };
        let begun = history.watch(namespace, served.mode, begin);
        begun.map_err(|gone| compacted(peer, row, Some(gone.oldest)))
    }
}

/// Refuses a revision that is not even the next one. Waiting for it would look like a watch of a namespace where nothing
/// changes, and it is a slip: of another region, of another cluster, a version.
async fn not_ahead(peer: &Peer, name: &str, first: u64, deadline: Instant) -> Result<(), Error> {
    let revision = || peer.cell().with(|summary| summary.revision);
    if first - 1 <= revision() {
        return Ok(());
    }
    // This replica may be behind: whoever has heard of a revision is right where the region has it.
    peer.barrier(deadline).await.map_err(without_outcome)?;
    let revision = revision();
    if first - 1 <= revision {
        return Ok(());
    }
    Err(Error::invalid(
        "from_revision",
        format!(
            "revision {first} is ahead of namespace {name:?}, whose region is at {revision}: watch from {} at most, or without a revision from now on",
            revision + 1
        ),
    )
    .with("namespace", name)
    .with("region", peer.id())
    .with("revision", revision))
}

/// Where a watch begins in a region.
enum From {
    Now,
    /// The first that is wanted, and what has been seen before it.
    Revision(u64, SessionToken),
    Session(SessionToken),
    Watch(WatchPlace),
}

impl From {
    /// What this replica has to have seen.
    fn session(&self) -> Option<SessionToken> {
        match self {
            From::Now => None,
            From::Revision(_, token) | From::Session(token) => Some(token.clone()),
            From::Watch(place) => Some(place.seen.clone()),
        }
    }
}

fn begin(
    token: &Option<Token>,
    from_revision: u64,
    region: RegionId,
    namespace: NamespaceId,
) -> Result<From, Error> {
    let from = match token {
        None if from_revision > 0 => {
            let seen = SessionToken::new(region, namespace, Epoch(0));
            From::Revision(from_revision, seen.at_revision(from_revision - 1))
        }
        None => From::Now,
        Some(_) if from_revision > 0 => {
            return Err(Error::invalid(
                "from_revision",
                "give a revision or a session token to go on from, not both",
            ));
        }
        Some(Token::Session(token)) if token.region() == region => From::Session(token.clone()),
        Some(Token::Watch(token)) if token.place(region).is_some() => {
            token.place(region).cloned().map_or(From::Now, From::Watch)
        }
        Some(_) => {
            return Err(Error::invalid(
                "session",
                format!(
                    "this token says nothing of region {region}, which holds keys of this watch: go on from a token of a watch of the same keys"
                ),
            ));
        }
    };
    match from.session() {
        Some(token) if token.namespace() != namespace => Err(Error::invalid(
            "session",
            "this token is of another namespace",
        )),
        _ => Ok(from),
    }
}

impl Watching {
    /// The next message; `None` behind the last. It is an error that ends a watch.
    pub async fn next(&mut self) -> Option<Result<WatchResponse, Error>> {
        if self.ended {
            return None;
        }
        let next = self.wait().await;
        self.due = Instant::now() + PROGRESS;
        self.ended = next.is_err();
        if let Ok(message) = &next {
            let told = message.events.len() as u64;
            self.watches.0.events.fetch_add(told, Ordering::Relaxed);
        }
        Some(next)
    }

    async fn wait(&mut self) -> Result<WatchResponse, Error> {
        loop {
            let (events, more) = self.look()?;
            if !events.is_empty() || (Instant::now() >= self.due) {
                return Ok(self.message(events));
            }
            if more {
                // Nothing of it was for this one; others want to go on, too.
                tokio::task::yield_now().await;
                continue;
            }
            let until = self.until;
            let late = async move {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => future::pending().await,
                }
            };
            let grown = self.regions.iter_mut();
            let grown = select_all(grown.map(|region| region.grown.changed().boxed()));
            tokio::select! {
                biased;
                () = self.watches.0.stop.cancelled() => return Err(leaving()),
                () = late => return Err(over()),
                (changed, _, _) = grown => changed.map_err(|_| leaving())?,
                () = tokio::time::sleep_until(self.due) => {}
            }
        }
    }

    fn look(&mut self) -> Result<(Vec<watch_response::Event>, bool), Error> {
        let count = self.regions.len();
        self.turn = (self.turn + 1) % count;
        let mut more = false;
        for at in 0..count {
            let at = (self.turn + at) % count;
            let region = &mut self.regions[at];
            let history = region.peer.cell().history();
            match history.look(self.namespace, &mut region.cursor, &self.keys) {
                Ok(piece) if !piece.changes.is_empty() => {
                    return Ok((piece.changes.into_iter().map(event).collect(), true));
                }
                Ok(piece) => more |= piece.more,
                Err(ended) => return Err(self.ended_by(at, &ended)),
            }
        }
        Ok((Vec::new(), more))
    }

    fn message(&self, events: Vec<watch_response::Event>) -> WatchResponse {
        let places = self.regions.iter().map(|region| {
            let place = &region.cursor.place;
            place.token(region.peer.id(), self.namespace)
        });
        let revision = match &self.regions[..] {
            [one] if !one.cursor.place.time.eventual => one.cursor.place.revision,
            _ => 0,
        };
        WatchResponse {
            events,
            revision,
            session: WatchToken(places.collect()).encode(),
        }
    }

    fn ended_by(&self, at: usize, ended: &Ended) -> Error {
        let peer = &self.regions[at].peer;
        match ended {
            Ended::Turned { time, epoch } => {
                let mode = if time.eventual {
                    Mode::Eventual
                } else {
                    Mode::Strong
                };
                Error::new(
                    Reason::ModeChanged,
                    format!(
                        "namespace {:?} is {mode} now: watch again from the session token of the last message",
                        self.name
                    ),
                )
                .with("namespace", &self.name)
                .with("region", peer.id())
                .with("epoch", epoch)
                .with("state", mode)
            }
            Ended::Replaced => gone(
                peer,
                self.namespace,
                &self.name,
                peer.cell().history().oldest(self.namespace),
            ),
            Ended::Deleted => deleted(&self.name),
            Ended::Overrun => {
                self.watches.0.cut.fetch_add(1, Ordering::Relaxed);
                Error::new(
                    Reason::Overloaded,
                    format!(
                        "this watch was read too slowly: what it was to be told next is not held any more. Watch again from the session token of the last message, and where that is COMPACTED, scan region {} and watch from the scan's",
                        peer.id()
                    ),
                )
                .with("region", peer.id())
                .with("limit", "limits.watch_history")
            }
        }
    }
}

fn event(change: Change) -> watch_response::Event {
    use watch_response::event::Type;
    let kind = match change.kind {
        Kind::Put => Type::Put,
        Kind::Delete => Type::Delete,
        Kind::Expire => Type::Expire,
    };
    watch_response::Event {
        r#type: kind as i32,
        kv: Some(KeyValue {
            key: change.key,
            value: change.value,
            version: change.version,
            revision: change.revision,
            create_revision: change.create_revision,
            expires_at_ms: i64::try_from(change.expires_at_ms).unwrap_or(i64::MAX),
        }),
    }
}

fn leaving() -> Error {
    Error::new(
        Reason::NotReady,
        "this store is shutting down: watch at another one, from the session token of the last message",
    )
}

fn over() -> Error {
    Error::new(
        Reason::DeadlineExceeded,
        "the time that the caller gave this watch is over",
    )
}

fn no_revisions(served: &Served, row: &NamespaceRow) -> Error {
    let hint = "go on from a session token";
    Error::new(
        Reason::WrongMode,
        format!(
            "only a strong namespace has revisions to watch from, and {:?} is eventual: {hint}",
            row.name
        ),
    )
    .with("namespace", &row.name)
    .with("region", served.peer.id())
    .with("mode", Mode::Eventual)
    .with("hint", hint)
}

fn compacted(peer: &Peer, row: &NamespaceRow, oldest: Option<Place>) -> Error {
    gone(peer, NamespaceId(row.id), &row.name, oldest)
}

/// The refusal of a place behind which not everything is held; `oldest`: one behind which it is.
fn gone(peer: &Peer, namespace: NamespaceId, name: &str, oldest: Option<Place>) -> Error {
    let error = Error::new(
        Reason::Compacted,
        format!(
            "not all that has changed in namespace {name:?} since then is held here (limits.watch_history): ask another store, or scan again and watch from the scan's session token"
        ),
    )
    .with("namespace", name)
    .with("region", peer.id());
    let Some(oldest) = oldest else { return error };
    let token = WatchToken(vec![oldest.token(peer.id(), namespace)]).encode();
    let error = error.with("oldest_session", BASE64_STANDARD.encode(token));
    match oldest.time.eventual {
        true => error,
        false => error.with("oldest_revision", oldest.revision + 1),
    }
}
