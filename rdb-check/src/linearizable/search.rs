//! Looks for an order of one key's calls: Wing and Gong's search, with memoised states as Lowe
//! describes it ("Testing for linearizability", 2017), and fewer choices.
//!
//! Owns the search and its budget. Does not know keys, values, clocks or how calls are recorded.
//!
//! The calls not yet given a place stand in a linked list of invocations and returns, in the order
//! of time. Whatever comes next in the order must be invoked before the first return in that list
//! (else the call that returned would have to come first); these calls are *open*. The search takes
//! one of them, takes it out of the list, goes on, and puts it back when that led nowhere.
//!
//! A **state** is the set of calls placed, the content of the register, and how many unknown calls
//! of each class were used. No state is explored twice: its future depends on nothing else.
//!
//! Choices that need not be made, and why none of them changes the verdict:
//!
//! 1. *An open call that changes nothing and agrees with the register is placed at once.* Given any
//!    order that goes on from here, that call can be moved to its front: it agrees with the register
//!    here, it is open here, and as it changes nothing, no other call notices.
//! 2. *An unknown call is used only right before a certain call that could not be placed without
//!    it.* Take any order, and in it the unknown calls that stand between two certain calls; let the
//!    register be at `s` before them. If the certain call can be placed at `s` already, then either
//!    it is a write, which hides what they did: leave them out. Or it must see `v = s`, and does so
//!    without them, too: leave them out. Or it must see anything but `v`: move them behind it, as an
//!    unknown call can always happen later. If it must see `v` and `s` differs, then all that is
//!    needed is a *chain* of unknown calls from `s`, or from the last one that sets the register
//!    whatever it held, through contents each different, to `v`: the rest can be left out. If it
//!    must see anything but `v = s`, then the first one that leaves `v` is needed, and the rest can
//!    move behind the certain call. Repeat with the next certain call; behind the last one nothing
//!    is needed. What remains is an order that this search considers.
//! 3. *A state that used no fewer unknown calls of any class than another with the same set and
//!    register is dropped.* Whatever follows from it follows from the other.
//! 4. *A state is dropped when some call still has to see a content that the register does not hold
//!    and nothing left could give it.* Where all values written are distinct, this is what keeps the
//!    search from overwriting a value that somebody has yet to read.

use super::memo::{Known, Scarcity};
use super::model::{Action, Content, Event, Maybe, Model};

/// How much work one key may cost before the search gives up. Counted, not timed, so that a verdict
/// never depends on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Choices looked at. Some ten million take a second.
    pub steps: u64,
    /// Memory for remembered states, in bytes, roughly.
    pub memory_bytes: u64,
}

impl Default for Budget {
    /// Half a minute at the worst, on memory that a test machine has to spare.
    fn default() -> Self {
        Budget {
            steps: 200_000_000,
            memory_bytes: 512 << 20,
        }
    }
}

/// How a search ended.
#[derive(Debug)]
pub(super) enum Found {
    /// The calls can be ordered.
    Order,
    /// They cannot.
    NoOrder,
    /// Nobody knows.
    BudgetExhausted { states: u64 },
}

/// What the states have in common in which nothing is left to do before some call returns.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// For each content that the register can have there, the call that left it so, or `None` for
    /// the register as it started.
    pub(super) contents: Vec<(Content, Option<Step>)>,
    /// The end of one order that arrives there.
    pub(super) tail: Vec<Step>,
}

/// One element of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A certain call.
    Certain(u32),
    /// The `nth` unknown call of a class.
    Unknown { class: u32, nth: u32 },
}

/// How many steps an explanation shows at most.
const TAIL_LEN: usize = 10;

/// Looks for an order.
pub(super) fn search(model: &Model, budget: Budget) -> Found {
    run(&mut Search::new(model, budget, None))
}

/// Looks for all states in which nothing is left to do before `call` returns, where no order is
/// known to exist that gets beyond.
pub(super) fn search_arrivals(model: &Model, budget: Budget, call: u32) -> Arrivals {
    let mut search = Search::new(model, budget, Some(call));
    // Whether it ends or is cut short: what it met on its way is what there is to tell.
    let _ = run(&mut search);
    search.arrivals
}

fn run(search: &mut Search<'_>) -> Found {
    if search.arrive() == Arrived::Complete {
        return Found::Order;
    }
    while let Some(frame) = search.frames.last_mut() {
        let depth = frame.path_len;
        search.content = frame.content;
        let choice = (frame.next_choice < frame.choices_end).then_some(frame.next_choice);
        frame.next_choice += 1;
        search.take_back_to(depth);
        match choice {
            Some(choice) => {
                search.forget_choices_from(search.frames[search.frames.len() - 1].choices_end);
                search.take(choice);
                if search.arrive() == Arrived::Complete {
                    return Found::Order;
                }
            }
            None => {
                search.frames.pop();
            }
        }
        if search.exhausted() {
            return Found::BudgetExhausted {
                states: search.states,
            };
        }
    }
    Found::NoOrder
}

#[derive(Debug, PartialEq, Eq)]
enum Arrived {
    /// All calls have a place.
    Complete,
    /// At a new state: its choices are on top of the stack.
    New,
    /// At a state that need not be explored (again).
    Known,
}

/// A state with choices left to try.
struct Frame {
    content: Content,
    path_len: usize,
    next_choice: usize,
    choices_end: usize,
}

/// Use these unknown calls, then place this call.
struct Choice {
    call: u32,
    leaves: Content,
    /// Where its chain ends in `Search::chains`; it begins where the previous choice's ends.
    chain_end: usize,
}

/// The list of calls without a place: entry 0 is the head, then one entry per event.
const HEAD: usize = 0;

struct Search<'a> {
    model: &'a Model,
    budget: Budget,

    // The state.
    next: Vec<u32>,
    prev: Vec<u32>,
    placed: Vec<u64>,
    used: Vec<u32>,
    content: Content,

    // How it was reached, and what else to try. Choices and chains of a frame lie on top of those
    // of the frames below it.
    path: Vec<Step>,
    frames: Vec<Frame>,
    choices: Vec<Choice>,
    chains: Vec<u32>,

    known: Known,
    /// By certain call, its two entries in the list.
    entries: Vec<(u32, u32)>,
    scarcity: Scarcity,
    /// The call whose arrivals are wanted, if any, and what is known of them.
    wanted: Option<u32>,
    arrivals: Arrivals,
    steps: u64,
    states: u64,
}

impl<'a> Search<'a> {
    fn new(model: &'a Model, budget: Budget, wanted: Option<u32>) -> Self {
        let len = model.events.len() + 1;
        let mut entries = vec![(0, 0); model.certain.len()];
        for (entry, event) in (1_u32..).zip(&model.events) {
            match *event {
                Event::Invoked(call) => entries[call as usize].0 = entry,
                Event::Returned(call) => entries[call as usize].1 = entry,
            }
        }
        let last = len as u32 - 1;
        Search {
            model,
            budget,
            next: (1..=last).chain([HEAD as u32]).collect(),
            prev: [last].into_iter().chain(0..last).collect(),
            placed: vec![0; model.certain.len().div_ceil(64)],
            used: vec![0; model.classes.len()],
            content: model.start,
            path: Vec::with_capacity(model.certain.len()),
            frames: Vec::new(),
            choices: Vec::new(),
            chains: Vec::new(),
            known: Known::default(),
            entries,
            scarcity: Scarcity::of(model, wanted),
            wanted,
            arrivals: Arrivals::default(),
            steps: 0,
            states: 0,
        }
    }

    fn exhausted(&self) -> bool {
        self.steps > self.budget.steps || self.known.bytes() > self.budget.memory_bytes
    }

    /// Settles at the state just reached: places what needs no choice, then lists the choices.
    fn arrive(&mut self) -> Arrived {
        self.place_observers();
        let Some(first_return) = self.first_return() else {
            return Arrived::Complete;
        };
        if self.scarcity.is_hopeless(self.content) {
            return Arrived::Known;
        }
        if self.wanted == Some(first_return) {
            self.note_arrival();
        }
        let bound = self.model.certain[first_return as usize].invoked_before_return;
        let Some(Event::Invoked(first)) = self.event_at(self.next[HEAD]) else {
            return Arrived::Complete; // Cannot be: an invocation comes before its return.
        };
        if !self
            .known
            .insert(first, bound, self.content, &self.placed, &self.used)
        {
            return Arrived::Known;
        }
        self.states += 1;
        let next_choice = self.choices.len();
        self.list_choices(self.model.certain[first_return as usize].returned_at);
        self.frames.push(Frame {
            content: self.content,
            path_len: self.path.len(),
            next_choice,
            choices_end: self.choices.len(),
        });
        Arrived::New
    }

    /// Rule 1.
    fn place_observers(&mut self) {
        loop {
            let mut placed_any = false;
            let mut entry = self.next[HEAD];
            while let Some(Event::Invoked(call)) = self.event_at(entry) {
                entry = self.next[entry as usize];
                self.steps += 1;
                let agrees = match self.model.certain[call as usize].action {
                    Action::Saw(content) => content == self.content,
                    Action::SawOther(content) => content != self.content,
                    Action::Set(_) | Action::Swap { .. } => false,
                };
                if agrees {
                    self.place(call);
                    placed_any = true;
                }
            }
            // The first return may be a later one now, and more calls be open.
            if !placed_any {
                return;
            }
        }
    }

    /// Puts the choices of this state on the stack, the most promising first: those without unknown
    /// calls, of these the call that returns first. `before` is the position of the first return.
    fn list_choices(&mut self, before: u32) {
        let model = self.model;
        let start = self.choices.len();
        let mut entry = self.next[HEAD];
        while let Some(Event::Invoked(call)) = self.event_at(entry) {
            self.steps += 1;
            match model.certain[call as usize].action {
                Action::Set(to) => self.choose(call, to),
                Action::Swap { from, to } if from == self.content => self.choose(call, to),
                _ => {}
            }
            entry = self.next[entry as usize];
        }
        self.choices[start..].sort_by_key(|choice| model.certain[choice.call as usize].returned_at);
        let mut entry = self.next[HEAD];
        while let Some(Event::Invoked(call)) = self.event_at(entry) {
            // Rule 2. Those that the register agrees with have been placed or chosen above.
            match model.certain[call as usize].action {
                Action::Saw(content) => self.choose_with_chains(call, content, content, before),
                Action::Swap { from, to } if from != self.content => {
                    self.choose_with_chains(call, from, to, before);
                }
                Action::SawOther(_) => self.choose_with_departure(call, before),
                Action::Set(_) | Action::Swap { .. } => {}
            }
            entry = self.next[entry as usize];
        }
    }

    /// Offers to place `call` after whatever chain was pushed since the last choice.
    fn choose(&mut self, call: u32, leaves: Content) {
        self.choices.push(Choice {
            call,
            leaves,
            chain_end: self.chains.len(),
        });
    }

    /// Offers `call`, which must see `wanted`, with every chain of unknown calls that gets there.
    /// Looks for them backwards, depth first.
    fn choose_with_chains(&mut self, call: u32, wanted: Content, leaves: Content, before: u32) {
        let model = self.model;
        let mut trail: Vec<u32> = Vec::new();
        let mut goals: Vec<(Content, usize)> = vec![(wanted, 0)];
        while let Some((goal, tried)) = goals.last_mut() {
            let Some(&class) = model.producers[goal.0 as usize].get(*tried) else {
                goals.pop();
                trail.pop();
                continue;
            };
            *tried += 1;
            self.steps += 1;
            if self.steps > self.budget.steps {
                return;
            }
            if !self.available(class, before) {
                continue;
            }
            let begins = match model.classes[class as usize].effect {
                Maybe::Set(_) => true,
                Maybe::Swap { from, .. } if from == self.content => true,
                Maybe::Swap { from, .. } => {
                    if !goals.iter().any(|(goal, _)| *goal == from) {
                        trail.push(class);
                        goals.push((from, 0));
                    }
                    false
                }
            };
            if begins {
                self.chains.push(class);
                self.chains.extend(trail.iter().rev());
                self.choose(call, leaves);
            }
        }
    }

    /// Offers `call`, which must not see the present content, after each single unknown call that
    /// changes it.
    fn choose_with_departure(&mut self, call: u32, before: u32) {
        let model = self.model;
        for (number, class) in (0_u32..).zip(&model.classes) {
            self.steps += 1;
            let leaves = class.effect.leaves();
            let departs = match class.effect {
                Maybe::Set(_) => leaves != self.content,
                Maybe::Swap { from, .. } => from == self.content,
            };
            if departs && self.available(number, before) {
                self.chains.push(number);
                self.choose(call, leaves);
            }
        }
    }

    /// Whether a call of this class is left that was invoked before the first return.
    fn available(&self, class: u32, before: u32) -> bool {
        let nth = self.used[class as usize] as usize;
        self.model.classes[class as usize]
            .invoked
            .get(nth)
            .is_some_and(|(at, _)| *at < before)
    }

    fn take(&mut self, choice: usize) {
        let chain_start = match choice {
            0 => 0,
            later => self.choices[later - 1].chain_end,
        };
        let Choice {
            call,
            leaves,
            chain_end,
        } = self.choices[choice];
        for link in chain_start..chain_end {
            let class = self.chains[link];
            let nth = &mut self.used[class as usize];
            self.path.push(Step::Unknown { class, nth: *nth });
            *nth += 1;
            self.scarcity
                .consume(self.model.classes[class as usize].effect.leaves());
        }
        self.place(call);
        self.content = leaves;
    }

    fn forget_choices_from(&mut self, len: usize) {
        self.choices.truncate(len);
        self.chains
            .truncate(self.choices.last().map_or(0, |choice| choice.chain_end));
    }

    fn take_back_to(&mut self, path_len: usize) {
        while self.path.len() > path_len {
            match self.path.pop() {
                Some(Step::Certain(call)) => self.put_back(call),
                Some(Step::Unknown { class, .. }) => {
                    self.used[class as usize] -= 1;
                    self.scarcity
                        .restock(self.model.classes[class as usize].effect.leaves());
                }
                None => return,
            }
        }
    }

    fn place(&mut self, call: u32) {
        let (invoked, returned) = self.entries[call as usize];
        for entry in [invoked, returned] {
            let (prev, next) = (self.prev[entry as usize], self.next[entry as usize]);
            self.next[prev as usize] = next;
            self.prev[next as usize] = prev;
        }
        self.placed[call as usize / 64] |= 1 << (call % 64);
        self.path.push(Step::Certain(call));
        let (sees, leaves) = self.needs_of(call);
        sees.into_iter()
            .for_each(|content| self.scarcity.satisfy(content));
        leaves
            .into_iter()
            .for_each(|content| self.scarcity.consume(content));
    }

    /// The exact reverse of [`Self::place`]: entries remember their neighbours.
    fn put_back(&mut self, call: u32) {
        let (invoked, returned) = self.entries[call as usize];
        for entry in [returned, invoked] {
            let (prev, next) = (self.prev[entry as usize], self.next[entry as usize]);
            self.next[prev as usize] = entry;
            self.prev[next as usize] = entry;
        }
        self.placed[call as usize / 64] &= !(1 << (call % 64));
        let (sees, leaves) = self.needs_of(call);
        sees.into_iter()
            .for_each(|content| self.scarcity.demand(content));
        leaves
            .into_iter()
            .for_each(|content| self.scarcity.restock(content));
    }

    /// What a call has to see (for the call that is wanted, that is not asked) and what it leaves.
    fn needs_of(&self, call: u32) -> (Option<Content>, Option<Content>) {
        let action = self.model.certain[call as usize].action;
        (
            action.sees().filter(|_| self.wanted != Some(call)),
            action.leaves(),
        )
    }

    /// The event of an entry; none for the head, where the list ends.
    fn event_at(&self, entry: u32) -> Option<Event> {
        self.model
            .events
            .get((entry as usize).checked_sub(1)?)
            .copied()
    }

    /// The call whose return comes first in the list; none if the list is empty.
    fn first_return(&self) -> Option<u32> {
        let mut entry = self.next[HEAD];
        loop {
            match self.event_at(entry)? {
                Event::Returned(call) => return Some(call),
                Event::Invoked(_) => entry = self.next[entry as usize],
            }
        }
    }

    fn note_arrival(&mut self) {
        if self.arrivals.contents.is_empty() {
            let from = self.path.len().saturating_sub(TAIL_LEN);
            self.arrivals.tail = self.path[from..].to_vec();
        }
        let content = self.content;
        if !self
            .arrivals
            .contents
            .iter()
            .any(|(known, _)| *known == content)
        {
            let changes = |step: &&Step| match **step {
                Step::Certain(call) => self.model.certain[call as usize].action.leaves().is_some(),
                Step::Unknown { .. } => true,
            };
            let changed = self.path.iter().rev().find(changes).copied();
            self.arrivals.contents.push((content, changed));
        }
    }
}
