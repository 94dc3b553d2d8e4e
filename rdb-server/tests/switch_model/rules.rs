//! The rules that the model can leave out, one at a time, to see that each of them is needed.
//!
//! They are left out here, beside the code that ships: that has no switch for any of them.

/// A rule of `consistency.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What a replica says for a seal is synced before it says it.
    SyncBeforeAnswer,
    /// From the promise on a replica merges nothing more into the namespace.
    PromiseBinds,
    /// A replica that knows of a seal under way takes no writes.
    ClosedWhileSealed,
    /// What other stores send is taken only in the epoch in which it was sent.
    EpochOnArrival,
    /// A step counts only in the epoch that it was meant for.
    EpochInApply,
    /// A step of an attempt that was overtaken does not count.
    AttemptInApply,
    /// A strong write is applied only in the epoch that it was meant for.
    EpochOfWrites,
    /// A seal has the promises of all participants.
    EveryPromise,
    /// A replica looks whether it holds the fence before it becomes strong.
    FenceChecked,
    /// What a fresh copy does not hold is set aside before it is replaced.
    SetAside,
    /// A snapshot is merged only into the eventual time that it comes from.
    SameTime,
    /// A fresh copy begins no number anew.
    NumbersOnce,
    /// The region's time goes on beyond all that was sealed.
    SealLiftsTime,
    /// The participants of a seal contain a quorum of the voters.
    QuorumTakesPart,
    /// Promises of replicas that hold different data make no seal.
    DigestsCompared,
    /// An eventual write is stamped beyond the strong ones before it.
    StampsBeyondStrong,
    /// Who waits for a fresh copy is nobody's leader.
    StuckLeadsNobody,
    /// A fresh copy is from beyond the seal that it is needed for: so nobody who waits for one himself gives any.
    CopyBeyondSeal,
    /// Nobody joins while a seal is under way.
    NoJoinWhileSealed,
    /// Learners take part in a seal, as voters do.
    LearnersTakePart,
    /// A store takes writes only after it has applied the entry that names it a member.
    WritesAfterNamed,
    /// What is settled waits for the writes that others reported: that all have seen it is not enough.
    OwnCoversReports,
    /// Learners have to report, as voters do.
    LearnersReport,
    /// A report counts only in the epoch that this replica is in.
    ReportOfEpoch,
    /// A report from a log that is ahead of this replica's does not count.
    ReportOfLog,
    /// A report bears the index as of after its vector.
    IndexAfterVector,
    /// Who has to report is who is a member as of the index that reports are measured with.
    ReplicasOfIndex,
    /// A copy from before a tombstone was dropped here is refused.
    FloorRefuses,
    /// That is looked at when it is merged, not when it arrives.
    FloorAtMerge,
    /// The floor is on disk with the drop.
    FloorWithDrop,
    /// A copy brings its donor's floor along.
    FloorComesAlong,
    /// Who took a copy stamps beyond all that its donor knows of, dropped or not.
    StampsGoOn,
    /// Nothing leaves a store before it is synced.
    SyncBeforeSending,
    /// A store is given a copy only as of a point behind the entry that names it.
    CopyAfterNamed,
    /// A new store begins with a copy, in the place of all that it has by the log.
    NewTakesCopy,
}

/// The rules that are kept: all, or all but one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    broken: Option<Rule>,
}

impl Rules {
    /// Without one of them.
    pub fn without(rule: Rule) -> Rules {
        Rules { broken: Some(rule) }
    }

    pub fn keep(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }
}
