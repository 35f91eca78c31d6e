//! What the scheduler is given: a chunk of tasks, as the pool's own, without its bytes.

use super::*;

/// A submitted chunk, or a part of one. Only the owner of a ticket can resolve its items.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) function: FnId,
    pub(super) timeout: Option<Duration>,
    pub(super) wait: Option<(Instant, Duration)>,
    pub(super) bound_to: Option<u32>,
    pub(super) needs: Rc<[Need]>,
    pub(super) priority: i32,
    /// How often it may be tried again.
    pub(super) retries: u32,
    /// The number of workers that may still be lost with it.
    pub(super) losses: u32,
    pub(super) base: TaskId,
    pub(super) items: Items,
    /// Whether the memory of the arguments is excluded from reuse. Shared by all parts of a chunk.
    pub(super) left: Rc<Cell<bool>>,
}

impl Scheduled for Ticket {
    type Sending = (TaskId, Items, u32);

    fn function(&self) -> FnId {
        self.function
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    fn queue_until(&self) -> Option<Instant> {
        self.wait.map(|(until, _)| until)
    }

    fn queue_timeout(&self) -> Duration {
        self.wait.map_or(Duration::ZERO, |(_, timeout)| timeout)
    }

    fn bound_to(&self) -> Option<u32> {
        self.bound_to
    }

    fn needs(&self) -> &[Need] {
        &self.needs
    }

    fn priority(&self) -> i32 {
        self.priority
    }

    fn base(&self) -> TaskId {
        self.base
    }

    fn items(&self) -> Items {
        self.items
    }

    fn resolve_first(&mut self, count: u32) {
        self.items.first += count;
    }

    fn split_off(&mut self, at: u32) -> Self {
        let items = Items { first: at, count: std::mem::replace(&mut self.items.count, at) };
        let (left, needs) = (Rc::clone(&self.left), Rc::clone(&self.needs));
        Ticket { items, left, needs, ..*self }
    }

    fn may_retry(&self, lost: bool) -> bool {
        self.retries > 0 && !(lost && self.losses <= 1)
    }

    fn next_attempt(&mut self, lost: bool) {
        self.retries -= 1;
        self.losses -= u32::from(lost);
        self.items = Items::ONE;
    }

    fn wait_anew(&mut self, now: Instant) {
        self.wait = self.wait.map(|(_, timeout)| (now + timeout, timeout));
    }

    fn send_to(&self, seq: u32) -> Self::Sending {
        (self.base, self.items, seq)
    }

    fn leave_arguments(&self) {
        self.left.set(true);
    }
}

pub(super) fn item(base: TaskId, item: u32) -> TaskId {
    TaskId::from_raw(base.as_u64() + u64::from(item))
}

pub(super) fn ids(base: TaskId, items: Items) -> impl Iterator<Item = TaskId> {
    (items.first..items.count).map(move |at| item(base, at))
}
