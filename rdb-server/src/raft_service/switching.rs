//! UpdateNamespaceMode: a switch asked for, watched, cancelled, or only planned.
//!
//! Owns the words between a caller and a switch. Once the target is in the cluster's tables the switch
//! needs nobody: the regions take their steps, the leader of the meta region ends it. Whoever watches only
//! looks at the tables and at what stores report, so any store can be asked, and a caller that goes away
//! changes nothing.
//!
//! Invariants: a dry run writes nothing; a call that was answered `done` saw every region there.

mod plan;

use super::{status, text_of};
use crate::error::{Error, Outcome};
use crate::modes::reconciler::{progress_of, why_of};
use crate::modes::{RegionView, data_regions, regions, state, write_pause_us};
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::region::meta::MetaState;
use crate::region::meta::modes::{being_undone, under_way};
use crate::stores::Stores;
use crate::tasks;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use plan::Asked;
use rdb_proto::convert;
use rdb_proto::raft::{
    ModeChange, NamespaceRow, RegionReport, SetTarget, SwitchEnd, UpdateNamespaceModeRequest,
};
use rdb_types::{NamespaceId, NamespaceName, Reason, RegionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(50);
/// For a switch that was given up to be undone, before its caller is told: so that he can ask again.
const UNDOING: Duration = Duration::from_secs(2);
/// For all replicas to get where their region is, so that the pause of each counts.
const ALL_THERE: Duration = Duration::from_millis(500);
/// Beyond switch_timeout, twice: there and back. Who waits longer is told to look again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that a slow reader may leave lying.
const UNREAD: usize = 16;

/// What a caller is sent.
pub(super) type Changes = BoxStream<'static, Result<ModeChange, Status>>;

/// Asks for switches and watches them.
#[derive(Clone)]
pub(super) struct Switching {
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    stores: Stores,
}

impl Switching {
    pub(super) fn new(
        manager: Arc<PeerManager>,
        namespaces: Namespaces,
        stores: Stores,
    ) -> Switching {
        Switching {
            manager,
            namespaces,
            stores,
        }
    }

    /// Does what the request says; `deadline` is for the cluster's tables alone.
    pub(super) async fn update(
        &self,
        request: UpdateNamespaceModeRequest,
        deadline: Instant,
    ) -> Result<Changes, Error> {
        let set = checked(&request)?;
        if request.dry_run {
            let change = self.dry_run(&set, deadline).await?;
            return Ok(futures::stream::iter([Ok(change)]).boxed());
        }
        let row = self.namespaces.set_target(set, deadline).await?;
        if !request.wait || !under_way(&row) {
            let views = self.views(&row, &self.namespaces.tables(), &[]);
            return Ok(futures::stream::iter([Ok(progress(&row, &views))]).boxed());
        }
        let (changes, receiver) = mpsc::channel(UNREAD);
        let watcher = Watcher {
            switching: self.clone(),
            id: NamespaceId(row.id),
            attempt: row.attempt,
            target: row.target,
            changes,
            others: Vec::new(),
            last: None,
        };
        tasks::spawn(watcher.run(row));
        Ok(ReceiverStream::new(receiver).boxed())
    }

    async fn dry_run(&self, set: &SetTarget, deadline: Instant) -> Result<ModeChange, Error> {
        // Without a quorum it is told from this store's own copy: that there is none is what is asked.
        let refreshed = self.namespaces.refresh(deadline).await;
        let meta_quorum = refreshed.is_ok();
        let tables = refreshed.unwrap_or_else(|_| self.namespaces.tables());
        let row = super::ModeService::row(&tables, &set.name)?;
        let target = convert::mode(set.mode).unwrap_or_default();
        let accept_missing = set.accept_missing.iter().copied().collect();
        tables.may_be_missing(target, &accept_missing)?;
        let answers = self.stores.timed_statuses(&tables).await;
        let asked = Asked {
            row,
            tables: &tables,
            target,
            accept_missing: &accept_missing,
            meta_quorum,
        };
        let plan = asked.plan(&answers);
        tracing::info!(plan = %plan::line(row, target, &plan), "a switch was planned");
        let reports: Vec<RegionReport> = answers
            .into_values()
            .filter_map(|(status, _)| status.ok())
            .flat_map(|status| status.regions)
            .collect();
        Ok(ModeChange {
            plan: Some(plan),
            step: "plan".to_owned(),
            ..progress(row, &self.views(row, &tables, &reports))
        })
    }

    /// The regions as this store and the others see them.
    fn views(
        &self,
        row: &NamespaceRow,
        tables: &MetaState,
        others: &[RegionReport],
    ) -> BTreeMap<RegionId, RegionView> {
        let own = self.manager.data_reports();
        let expected = data_regions(tables.cluster.as_ref());
        regions(NamespaceId(row.id), &expected, own.iter().chain(others))
    }

    fn asking(&self) -> BoxFuture<'static, Vec<RegionReport>> {
        let (stores, tables) = (self.stores.clone(), self.namespaces.tables());
        async move {
            let statuses = stores.statuses(&tables).await.into_values();
            statuses
                .flatten()
                .flat_map(|status| status.regions)
                .collect()
        }
        .boxed()
    }
}

/// The request as the cluster's tables take it.
fn checked(request: &UpdateNamespaceModeRequest) -> Result<SetTarget, Error> {
    let refused =
        |field: &str, text: String| Error::invalid(field, text).outcome(Outcome::NotApplied);
    let name = NamespaceName::of_request(&request.namespace)
        .map_err(|error| refused("namespace", error.to_string()))?;
    if request.cancel {
        let odd = [
            (request.dry_run, "dry_run"),
            (!request.accept_missing.is_empty(), "accept_missing"),
        ];
        if let Some((_, field)) = odd.into_iter().find(|(set, _)| *set) {
            let text = format!("a switch is cancelled or asked for: {field} goes with the latter");
            return Err(refused(field, text));
        }
    } else if convert::mode(request.mode).is_none() {
        let text = format!("{} is not a mode: 1 is strong, 2 eventual", request.mode);
        return Err(refused("mode", text));
    }
    Ok(SetTarget {
        name: name.as_str().to_owned(),
        mode: request.mode,
        accept_missing: request.accept_missing.clone(),
        cancel: request.cancel,
    })
}

/// How far a namespace is.
fn progress(row: &NamespaceRow, views: &BTreeMap<RegionId, RegionView>) -> ModeChange {
    let going = under_way(row);
    let left = || {
        let left = views.values();
        left.filter(|view| !view.followed(row.target, row.attempt))
    };
    let told = || left().filter_map(|view| progress_of(view, row.attempt));
    let mut waiting_for: Vec<u32> = told().flat_map(|of| of.waiting_for.clone()).collect();
    waiting_for.sort_unstable();
    waiting_for.dedup();
    let why: Vec<&str> = told().map(why_of).filter(|why| !why.is_empty()).collect();
    let step = match told().next() {
        _ if !going => "done",
        _ if being_undone(row) => "undoing",
        Some(progress) => &progress.step,
        None if left().next().is_none() => "installing",
        None => "recorded",
    };
    ModeChange {
        plan: None,
        state: state(going, views) as i32,
        mode: row.mode,
        epoch: views.values().map(|view| view.epoch).max().unwrap_or(0),
        step: step.to_owned(),
        remaining_writes: if going {
            told().map(|of| of.remaining_writes).sum()
        } else {
            0
        },
        regions_done: (views.len() - left().count()) as u32,
        regions_total: views.len() as u32,
        write_pause_us: 0,
        waiting_for: if going { waiting_for } else { Vec::new() },
        why: if going { why.join("; ") } else { String::new() },
    }
}

/// What became of an attempt, as far as the tables say.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It goes on, under this number.
    Goes(u64),
    /// All regions have followed.
    Done,
    /// It was given up or cancelled.
    Aborted(SwitchEnd),
}

fn fate(row: &NamespaceRow, attempt: u64) -> Fate {
    if row.attempt < attempt {
        // This store has not heard of it yet.
        return Fate::Goes(attempt);
    }
    match &row.last_switch {
        Some(end) if end.attempt >= attempt && !end.done => Fate::Aborted(end.clone()),
        _ if row.settled_attempt >= attempt => Fate::Done,
        // Another one joined with more stores missing: it is the same switch.
        _ => Fate::Goes(row.attempt),
    }
}

/// What the caller of a switch that was given up is told.
fn aborted(row: &NamespaceRow, end: &SwitchEnd) -> Error {
    let (name, from, to) = (&row.name, text_of(end.from), text_of(end.to));
    let stores: Vec<String> = end.waiting_for.iter().map(u32::to_string).collect();
    let undone = if being_undone(row) {
        format!("what was done of it is being undone; the namespace is {from} when that is done")
    } else {
        format!("the namespace is {from} as before")
    };
    let hint = match (stores.as_slice(), to) {
        ([], _) | (_, "eventual") => String::new(),
        _ => format!(
            "; bring {} back, or go on without it: `flaredb ns set-mode {name} {to} --accept-missing ID`",
            if stores.len() == 1 {
                format!("store {}", stores[0])
            } else {
                format!("stores {}", stores.join(", "))
            }
        ),
    };
    let text = format!(
        "the switch of {name} from {from} to {to} was given up: {}; {undone}{hint}",
        end.why
    );
    Error::new(Reason::SwitchAborted, text)
        .with("namespace", name)
        .with("from", from)
        .with("to", to)
        .with("why", &end.why)
        .with("stores", stores.join(","))
        .outcome(Outcome::NotApplied)
}

/// Watches one switch for one caller.
struct Watcher {
    switching: Switching,
    id: NamespaceId,
    attempt: u64,
    target: i32,
    changes: mpsc::Sender<Result<ModeChange, Status>>,
    /// What the other stores said last.
    others: Vec<RegionReport>,
    /// What the caller was told last.
    last: Option<ModeChange>,
}

impl Watcher {
    async fn run(mut self, asked: NamespaceRow) {
        let timeout = {
            let config = self.switching.manager.context().config.load();
            config.consistency.switch_timeout
        };
        let until = Instant::now() + timeout * 2 + PATIENCE;
        let sender = self.changes.clone();
        let ended = tokio::select! {
            biased;
            () = sender.closed() => return,
            ended = tokio::time::timeout_at(until, self.watch(asked)) => ended,
        };
        if ended.is_err() {
            let text = "the switch is still under way; it goes on, and `flaredb ns modes` shows where it is";
            let error = Error::new(Reason::DeadlineExceeded, text).outcome(Outcome::Unknown);
            // An error means that nobody listens any more.
            let _ = sender.send(Err(status(error))).await;
        }
    }

    async fn watch(&mut self, asked: NamespaceRow) {
        let mut row = asked;
        let mut asking = self.switching.asking();
        let mut ask_at = Instant::now();
        let mut aborted_at = None;
        loop {
            let index = self.switching.namespaces.applied_index();
            let tables = self.switching.namespaces.tables();
            // An old copy of the tables says less than what was answered.
            if let Some(known) = tables.namespaces.get(&self.id)
                && known.attempt >= row.attempt
            {
                row = known.clone();
            }
            let views = self.switching.views(&row, &tables, &self.others);
            match fate(&row, self.attempt) {
                Fate::Goes(attempt) => {
                    self.attempt = attempt;
                    self.tell(progress(&row, &views)).await;
                }
                Fate::Done => return self.done(&row).await,
                Fate::Aborted(end) => {
                    let since = *aborted_at.get_or_insert_with(Instant::now);
                    if !under_way(&row) || since.elapsed() >= UNDOING {
                        return self.aborted(&row, &end, &views).await;
                    }
                    self.tell(progress(&row, &views)).await;
                }
            }
            tokio::select! {
                biased;
                others = &mut asking, if ask_at <= Instant::now() => {
                    self.others = others;
                    asking = self.switching.asking();
                    ask_at = Instant::now() + PERIOD;
                }
                () = self.switching.namespaces.changed(index, PERIOD) => {}
            }
        }
    }

    /// Tells the caller what is new.
    async fn tell(&mut self, change: ModeChange) {
        if self.last.as_ref() != Some(&change) {
            self.last = Some(change.clone());
            // An error means that nobody listens any more; that ends this watcher, too.
            let _ = self.changes.send(Ok(change)).await;
        }
    }

    /// The last word: every region is there, and took no writes for so long.
    async fn done(&mut self, row: &NamespaceRow) {
        let began = Instant::now();
        let tables = self.switching.namespaces.tables();
        let views = loop {
            let others = self.switching.asking().await;
            let views = regions(
                self.id,
                &data_regions(tables.cluster.as_ref()),
                others.iter(),
            );
            let all_there = views
                .values()
                .all(|view| view.replicas_there == view.replicas);
            if all_there || began.elapsed() >= ALL_THERE {
                break views;
            }
            tokio::time::sleep(PERIOD).await;
        };
        let change = ModeChange {
            step: "done".to_owned(),
            mode: self.target,
            write_pause_us: write_pause_us(self.target, &views),
            ..progress(row, &views)
        };
        self.tell(change).await;
    }

    async fn aborted(
        &mut self,
        row: &NamespaceRow,
        end: &SwitchEnd,
        views: &BTreeMap<RegionId, RegionView>,
    ) {
        let change = ModeChange {
            step: format!("aborted: {}", end.why),
            waiting_for: end.waiting_for.clone(),
            ..progress(row, views)
        };
        self.tell(change).await;
        let error = status(aborted(row, end));
        let _ = self.changes.send(Err(error)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::raft::SwitchProgress;

    const STRONG: i32 = 1;
    const EVENTUAL: i32 = 2;

    fn row(mode: i32, target: i32, attempt: u64, settled_attempt: u64) -> NamespaceRow {
        NamespaceRow {
            name: "logs".into(),
            mode,
            target,
            attempt,
            settled_attempt,
            ..Default::default()
        }
    }

    fn end(attempt: u64, done: bool) -> SwitchEnd {
        SwitchEnd {
            attempt,
            from: EVENTUAL,
            to: STRONG,
            done,
            why: if done {
                ""
            } else {
                "region 2 waits for store 3"
            }
            .into(),
            waiting_for: if done { vec![] } else { vec![3] },
        }
    }

    fn with(row: NamespaceRow, end: SwitchEnd) -> NamespaceRow {
        NamespaceRow {
            last_switch: Some(end),
            ..row
        }
    }

    #[test]
    fn what_became_of_an_attempt() {
        for (row, attempt, fate_of_it) in [
            // The tables here do not know of it yet.
            (row(EVENTUAL, EVENTUAL, 3, 3), 4, Fate::Goes(4)),
            (row(EVENTUAL, STRONG, 4, 3), 4, Fate::Goes(4)),
            // What failed before is no matter of this one.
            (
                with(row(EVENTUAL, STRONG, 4, 3), end(2, false)),
                4,
                Fate::Goes(4),
            ),
            // Somebody joined, with a store missing.
            (row(EVENTUAL, STRONG, 5, 3), 4, Fate::Goes(5)),
            (with(row(STRONG, STRONG, 4, 4), end(4, true)), 4, Fate::Done),
            // And back again already.
            (
                with(row(STRONG, EVENTUAL, 5, 4), end(4, true)),
                4,
                Fate::Done,
            ),
            (
                with(row(EVENTUAL, EVENTUAL, 5, 3), end(4, false)),
                4,
                Fate::Aborted(end(4, false)),
            ),
            (
                with(row(EVENTUAL, EVENTUAL, 5, 5), end(4, false)),
                4,
                Fate::Aborted(end(4, false)),
            ),
            // Who cancelled watches the way back.
            (
                with(row(EVENTUAL, EVENTUAL, 5, 3), end(4, false)),
                5,
                Fate::Goes(5),
            ),
            (
                with(row(EVENTUAL, EVENTUAL, 5, 5), end(4, false)),
                5,
                Fate::Done,
            ),
        ] {
            assert_eq!(fate(&row, attempt), fate_of_it, "{row:?}");
        }
    }

    #[test]
    fn who_waited_in_vain_is_told_why_for_whom_and_what_to_do() {
        let row = with(row(EVENTUAL, EVENTUAL, 5, 5), end(4, false));
        let error = aborted(&row, &end(4, false));
        assert_eq!(error.reason, Reason::SwitchAborted);
        let meta = |key: &str| error.metadata[key].as_str();
        assert_eq!((meta("from"), meta("to")), ("eventual", "strong"));
        assert_eq!(meta("stores"), "3");
        assert_eq!(meta("why"), "region 2 waits for store 3");
        assert!(error.message.contains("--accept-missing"), "{error}");
        assert!(error.message.contains("eventual as before"), "{error}");
    }

    #[test]
    fn progress_is_of_the_regions_that_are_left() {
        let view = |mode, attempt, progress| RegionView {
            mode,
            attempt,
            epoch: attempt,
            progress,
            replicas: 3,
            ..Default::default()
        };
        let draining = SwitchProgress {
            step: "draining".into(),
            remaining_writes: 7,
            waiting_for: vec![3],
            why: "store 3 does not answer".into(),
            attempt: 4,
            ..Default::default()
        };
        let views: BTreeMap<_, _> = [
            (RegionId(2), view(STRONG, 4, None)),
            (RegionId(3), view(EVENTUAL, 3, Some(draining.clone()))),
        ]
        .into();
        let going = progress(&row(EVENTUAL, STRONG, 4, 3), &views);
        assert_eq!((going.regions_done, going.regions_total), (1, 2));
        assert_eq!(
            (going.step.as_str(), going.remaining_writes),
            ("draining", 7)
        );
        assert_eq!((going.waiting_for, going.epoch), (vec![3], 4));
        let back = progress(&row(EVENTUAL, EVENTUAL, 5, 3), &views);
        assert_eq!(back.step, "undoing");
        let views = [(RegionId(2), view(EVENTUAL, 3, Some(draining)))].into();
        let settled = progress(&row(EVENTUAL, EVENTUAL, 3, 3), &views);
        assert_eq!(
            (settled.step.as_str(), settled.remaining_writes),
            ("done", 0)
        );
        let unheard = progress(&row(EVENTUAL, STRONG, 5, 3), &views);
        assert_eq!(unheard.step, "recorded");
    }

    #[test]
    fn a_request_is_to_switch_or_to_cancel() {
        let request = |mode, cancel| UpdateNamespaceModeRequest {
            namespace: "logs".into(),
            mode,
            cancel,
            ..Default::default()
        };
        assert!(checked(&request(EVENTUAL, false)).is_ok());
        assert!(checked(&request(0, true)).is_ok());
        let field = |request: UpdateNamespaceModeRequest| {
            let error = checked(&request).unwrap_err();
            assert_eq!(error.metadata["outcome"], "not_applied");
            error.metadata["field"].clone()
        };
        assert_eq!(field(request(0, false)), "mode");
        assert_eq!(field(request(3, false)), "mode");
        let planned = UpdateNamespaceModeRequest {
            dry_run: true,
            ..request(0, true)
        };
        assert_eq!(field(planned), "dry_run");
        let without = UpdateNamespaceModeRequest {
            accept_missing: vec![3],
            ..request(0, true)
        };
        assert_eq!(field(without), "accept_missing");
        let unnamed = UpdateNamespaceModeRequest {
            namespace: "Logs".into(),
            ..request(1, false)
        };
        assert_eq!(field(unnamed), "namespace");
    }
}
