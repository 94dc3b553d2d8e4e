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
