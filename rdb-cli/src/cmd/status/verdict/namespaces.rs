//! What is wrong with namespaces, and what to do about it: kinds of findings, of which a few are told by name.
//!
//! Pure. Which kinds are a reason to worry is said here; how many are told, in the verdict.

use super::STUCK_MS;
use crate::cmd::ns::mode;
use crate::cmd::status::age;
use crate::cmd::status::lag;
use crate::cmd::status::view::{Switch, name, reports};
use rdb_proto::admin::ClusterStatusResponse;
use rdb_proto::raft::{NamespaceReport, NamespaceRow};

/// What is found of a namespace.
pub(super) type Found = Vec<(Kind, String)>;

/// In the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Declares,
    Follows,
    Stuck,
    Differs,
    Held,
    Lags,
    DeclaresOld,
    Switches,
    Conflicts,
}

impl Kind {
    /// Nothing to worry about.
    pub(super) fn is_note(self) -> bool {
        matches!(self, Kind::DeclaresOld | Kind::Switches | Kind::Conflicts)
    }

    /// What the others are that are not told one by one, and what tells them.
    pub(super) fn others(self) -> &'static str {
        match self {
            Kind::Declares => {
                "namespaces that stores are configured otherwise for: `flaredb ns modes`"
            }
            Kind::Follows => "namespaces that stores have not followed: `flaredb ns modes`",
            Kind::Stuck => "namespaces whose switch takes long: `flaredb ns modes`",
            Kind::Differs => "replicas that hold other data: `flaredb verify NAME`",
            Kind::Held => "streams of writes that wait: `flaredb status -o json`",
            Kind::Lags => "replicas that are further behind than max_lag: `flaredb status -o json`",
            Kind::DeclaresOld => {
                "namespaces that switch while stores declare another mode: `flaredb ns modes`"
            }
            Kind::Switches => "namespaces that switch: `flaredb ns modes`",
            Kind::Conflicts => "namespaces that list such writes: `flaredb conflicts NAME`",
        }
    }
}

/// `store 3`, `stores 1, 2`.
fn named(stores: &[u32]) -> String {
    let ids: Vec<String> = stores.iter().map(u32::to_string).collect();
    let noun = if stores.len() == 1 { "store" } else { "stores" };
    format!("{noun} {}", ids.join(", "))
}

/// The word for one store, or the one for several.
fn verb<'a>(stores: &[u32], one: &'a str, several: &'a str) -> &'a str {
    if stores.len() == 1 { one } else { several }
}

pub(super) fn of_modes(answer: &ClusterStatusResponse, row: &NamespaceRow) -> Found {
    // While it switches, the mode that it will have.
    let wanted = if row.target == 0 {
        row.mode
    } else {
        row.target
    };
    let is_switching = row.attempt > row.settled_attempt;
    let (mut declares, mut follows) = (Vec::new(), Vec::new());
    for store in &answer.stores {
        let id = name(store).0;
        let declared = store.status.iter().flat_map(|status| &status.declared);
        let mut of_row = declared.filter(|declared| declared.name == row.name);
        if of_row.any(|declared| declared.mode != wanted) {
            declares.push(id);
            continue;
        }
        // A store knows of itself, the one that leads the meta region of all. While it switches, whom it waits for
        // is what the switch says.
        let told = answer.stores.iter().flat_map(|store| &store.status);
        let mut told = told.flat_map(|status| &status.mismatches);
        if !is_switching && told.any(|it| it.namespace_id == row.id && it.store_id == id) {
            follows.push(id);
        }
    }
    let mut found = Found::new();
    let name = &row.name;
    if !declares.is_empty() && is_switching {
        found.push((
            Kind::DeclaresOld,
            format!(
                "namespace {name} is on its way to {}, and {} {} otherwise: change what they declare, too, once it is \
                 there",
                mode(wanted),
                named(&declares),
                verb(&declares, "is configured", "are configured")
            ),
        ));
    } else if !declares.is_empty() {
        found.push((
            Kind::Declares,
            format!(
                "namespace {name} is {}, but {} {} configured otherwise: make the configurations equal, or switch it \
                 with `flaredb ns set-mode`",
                mode(row.mode),
                named(&declares),
                verb(&declares, "is", "are")
            ),
        ));
    }
    if !follows.is_empty() {
        found.push((
            Kind::Follows,
            format!(
                "{} {} not followed namespace {name}, which is {}: `flaredb ns modes` says what {}, since when; {} by \
                 {} the others, so look at {}",
                named(&follows),
                verb(&follows, "has", "have"),
                mode(row.mode),
                verb(&follows, "it has", "they have"),
                verb(&follows, "it follows", "they follow"),
                verb(&follows, "itself once it reaches", "themselves once they reach"),
                verb(&follows, "its log and its network", "their logs and their network"),
            ),
        ));
    }
    found
}

pub(super) fn of_switch(switch: &Switch<'_>) -> Found {
    let Switch { row, for_ms, .. } = switch;
    let name = &row.name;
    let waits = match (&*switch.waiting_for, &*switch.why) {
        ([], "") => String::new(),
        ([], why) => format!(" ({why})"),
        (stores, _) => format!(" (it waits for {})", named(stores)),
    };
    let what = match switch.undone {
        true => format!("goes back to {}", mode(row.mode)),
        false => format!("switches from {} to {}", mode(row.mode), mode(row.target)),
    };
    let told = format!("namespace {name} {what}, since {}{waits}", age(*for_ms));
    let found = if *for_ms < STUCK_MS {
        (Kind::Switches, told)
    } else if switch.undone {
        let text =
            "it cannot end before its regions have a quorum; start the stores that are missing";
        (Kind::Stuck, format!("{told}: {text}"))
    } else {
        let text = format!(
            "{told}: start the stores that it waits for, go on without them (`flaredb ns set-mode {name} {} \
             --accept-missing ID`), or take it back (`flaredb ns set-mode {name} --cancel`)",
            mode(row.target)
        );
        (Kind::Stuck, text)
    };
    vec![found]
}

pub(super) fn of_replica(row: &NamespaceRow, replica: &lag::Replica) -> Found {
    let (name, store) = (&row.name, replica.store);
    let mut found = Found::new();
    if replica.differs {
        found.push((
            Kind::Differs,
            format!(
                "store {store} holds other data of namespace {name} than a replica that has the same writes: a defect, \
                 or a damaged disk; it is repaired by itself, and `flaredb verify {name}` tells when it is"
            ),
        ));
    }
    for held in &replica.held {
        found.push((
            Kind::Held,
            format!(
                "the writes of store {} to namespace {name} wait at store {store}, since {}: they are stamped {} ahead of \
                 its clock; mend the clock that is wrong (`flaredb advance-clock`, where store {}'s was right)",
                held.origin,
                age(held.held_ms),
                age(held.ahead_ms),
                held.origin
            ),
        ));
    }
    let objective_ms = lag::objective_ms(row);
    if objective_ms > 0 && replica.lag_ms > objective_ms {
        found.push((
            Kind::Lags,
            format!(
                "store {store} is {} behind in namespace {name} ({} writes), and max_lag is {}: it catches up by itself \
                 once it is reached; is it up, is its network, is its disk slow?",
                age(replica.lag_ms),
                replica.lag_writes.unwrap_or(0),
                age(objective_ms)
            ),
        ));
    }
    found
}

/// Those in the logs now. What is listed at one replica is what the others list, or will.
pub(super) fn of_conflicts(answer: &ClusterStatusResponse) -> Found {
    let mut found = Found::new();
    for row in answer.namespaces.iter().filter(|row| !row.deleted) {
        let of_region = |region: u64, field: fn(&NamespaceReport) -> u64| {
            let reports = reports(answer, region).flat_map(|(_, report)| &report.namespaces);
            let own = reports.filter(|report| report.namespace_id == row.id);
            own.map(field).max().unwrap_or(0)
        };
        let sum = |field| {
            let regions = answer.regions.iter();
            regions
                .map(|region| of_region(region.id, field))
                .sum::<u64>()
        };
        let (listed, dropped) = (sum(|it| it.conflicts), sum(|it| it.conflicts_dropped));
        if listed == 0 && dropped == 0 {
            continue;
        }
        let pushed_out = match dropped {
            0 => String::new(),
            _ => format!(
                ", and {dropped} more were pushed out of its log and cannot be restored (raise conflict_log)"
            ),
        };
        found.push((
            Kind::Conflicts,
            format!(
                "namespace {0} lists {listed} writes that lost to concurrent ones or were set aside by a \
                 switch{pushed_out}: `flaredb conflicts {0}` shows them, and restores them",
                row.name
            ),
        ));
    }
    found
}
