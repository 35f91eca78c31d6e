//! Whether the scheduler was right: to let a worker go, to end one, to resolve a task in this way.

use super::*;

impl World {
    /// Checks that there are tokens for a task that is sent to a worker, by the world's own record
    /// of who has some. `alone` says whether its worker has nothing else to do.
    pub(super) fn check_tokens(&mut self, task: TaskId, alone: bool) {
        let needs = Rc::clone(&self.story(task).needs);
        if needs.is_empty() {
            return;
        }
        assert!(alone, "{task:?} has tokens, and waits behind another task");
        let mut free: Vec<_> = self.config.resources.iter().map(|all| i64::from(*all)).collect();
        let known = self.processes.iter().filter(|(id, _)| self.scheduler.knows(**id));
        for task in known.flat_map(|(_, process)| process.words.borrow().holding.clone()) {
            let story = &self.stories[task.as_u64() as usize - 1];
            let has_them = story.ending.is_none() && !story.held;
            for need in story.needs.iter().filter(|_| has_them) {
                free[usize::from(need.resource)] -= i64::from(need.tokens);
            }
        }
        for need in &*needs {
            let free = free[usize::from(need.resource)];
            assert!(i64::from(need.tokens) <= free, "{task:?} is sent, and lacks {need:?}");
        }
        self.note("sent with tokens", None, Some(task));
    }

    /// Returns why a worker of an open pool is asked to leave, if there is a reason.
    pub(super) fn why_leaves(&self, id: WorkerId) -> Option<&'static str> {
        let Lifespan { idle_timeout, lifetime_max } = self.config.lifespan;
        let process = &self.processes[&id];
        let since = |at: Option<Instant>, time: Option<Duration>| {
            at.zip(time)
                .and_then(|(at, time)| at.checked_add(time))
                .is_some_and(|at| at <= self.now)
        };
        if since(process.ready_at, lifetime_max.map(|lifetime| lifetime / 10 * 9)) {
            return Some("leaves: old");
        }
        if process.surplus {
            return Some(match process.begun.is_empty() {
                true => "leaves: too many",
                false => "leaves: too many, after its task",
            });
        }
        let idle = since(process.rested, idle_timeout);
        let min = self.config.workers_min.min(self.config.workers_max);
        (idle && self.staying() >= min).then_some("leaves: idle")
    }

    /// Returns the number of workers that are not known to be about to end.
    pub(super) fn staying(&self) -> usize {
        let stays = |(id, process): &(&WorkerId, &Process)| {
            let ends = process.killed.is_some() || process.terminated.is_some();
            process.stop_sent.is_none() && !ends && self.scheduler.knows(**id)
        };
        self.processes.iter().filter(stays).count()
    }

    /// Returns why a worker is killed. There must be a reason.
    pub(super) fn why_killed(&mut self, id: WorkerId) -> &'static str {
        let (now, start_timeout) = (self.now, self.config.start_timeout);
        let over = self.shut_down && self.unresolved() == 0;
        let process = &self.processes[&id];
        let since = |at: Option<Instant>, grace: Duration| {
            at.and_then(|at| at.checked_add(grace)).is_some_and(|at| at <= now)
        };
        if self.killed
            || self.ends()
            || self.broken
            || self.scheduler.refusal().is_some_and(|why| why.is_broken())
        {
            return "killed: pool ends";
        }
        if process.caught {
            return "killed: protocol violation";
        }
        if process.refused {
            return "killed: initializer refused";
        }
        match process.leaves {
            Some((LastStep::Finalizing, at)) if since(Some(at), self.config.finalizer_timeout) => {
                return "killed: finalizer timeout";
            }
            Some((LastStep::Initializing | LastStep::Ending, at))
                if since(Some(at), STOP_GRACE) =>
            {
                return "killed: did not stop";
            }
            _ => {}
        }
        if self.config.report_timeout.is_some_and(|timeout| since(process.reports, timeout)) {
            return "killed: reports for too long";
        }
        if since(process.seen_stopped, STOPPED_GRACE) {
            return "killed: stopped";
        }
        if !process.linked {
            let launch_timeout = self.config.launch_timeout;
            let ordered = self.taken_up.map_or(process.ordered, |at| at.max(process.ordered));
            let latest = ordered + launch_timeout;
            let started = process.launched.unwrap_or(latest).min(latest);
            assert!(
                over || since(Some(started), start_timeout),
                "{id:?} is killed while it starts"
            );
            return if over { "killed: pool ends" } else { "killed: start timeout" };
        }
        if !process.ready && since(process.greeted, self.config.initializer_timeout) {
            return "killed: initializer timeout";
        }
        // The worker was sent a task and has not begun it for as long as a start may last.
        let front = process.words.borrow().holding.front().copied();
        if front.is_some_and(|front| !self.begun_on(front, id))
            && since(Some(process.ordered), start_timeout)
        {
            return "killed: deaf";
        }
        self.ends_for_task(id);
        "killed: for a task"
    }

    /// Checks that a worker may be ended because of the task that it runs. That must be the task
    /// that it began last: otherwise it runs another task, which is innocent.
    pub(super) fn ends_for_task(&mut self, id: WorkerId) {
        let now = self.now;
        let since = |at: Option<Instant>, grace: Duration| {
            at.and_then(|at| at.checked_add(grace)).is_some_and(|at| at <= now)
        };
        let process = &self.processes[&id];
        let Some(&task) = process.begun.last() else {
            panic!("{id:?} is killed and has begun nothing")
        };
        let story = &self.stories[task.as_u64() as usize - 1];
        let (_, began) = story.begun.expect("noted at the claim");
        assert!(story.ending.is_none(), "{id:?} is killed for {task:?}, which has ended");
        assert!(
            story.cancel_running_asked
                || since(Some(began), story.timeout.unwrap_or(Duration::MAX)),
            "{id:?} is killed while it runs {task:?} rightfully"
        );
        assert!(
            process
                .words
                .borrow()
                .holding
                .iter()
                .all(|held| *held == task || self.begun_on(*held, id))
        );
        let Graces { cancel, terminate } = self.config.graces;
        if !cancel.is_zero() {
            let (asked, at) = process.asked.expect("it is asked first");
            assert!(asked == task && at + cancel <= now, "{task:?} had time left to stop");
        }
        if let Some(grace) = terminate.filter(|grace| !grace.is_zero())
            && let Some(at) = process.terminated
        {
            assert!(at + grace <= now || process.outlived, "{id:?} had time left after SIGTERM");
        }
        self.process(id).killed_for = Some(task);
    }

    /// Returns how many tasks a worker has begun that any worker could have run.
    pub(super) fn begun_of_any(&self, id: WorkerId) -> usize {
        let any = |task: &&TaskId| self.stories[task.as_u64() as usize - 1].broadcast_to.is_none();
        self.processes[&id].begun.iter().filter(any).count()
    }

    /// Submits a task for each worker, and perhaps for one that has left.
    pub(super) fn broadcast(&mut self) {
        let mut workers = self.scheduler.reachable();
        let last = self.processes.keys().next_back().map_or(0, |id| id.0);
        let gone = WorkerId(self.dice.below(u64::from(last) + 1) as u32);
        if !self.scheduler.knows(gone) {
            self.note("broadcast: to a worker that has left", Some(gone), None);
            workers.push(gone);
        }
        for id in workers {
            let process = self.processes.get(&id);
            if process.is_some_and(|process| process.life == Life::Ordered) {
                self.note("broadcast: to one that is ordered", Some(id), None);
            }
            let (conduct, timeout) = (self.any_conduct(), self.any_timeout());
            self.queue_timeout = self.any_timeout();
            let function = self.dice.below(6);
            self.broadcast_to(id, function, timeout, conduct);
            self.queue_timeout = None;
        }
    }

    /// Submits a task that only this worker may run.
    pub(super) fn broadcast_to(
        &mut self,
        id: WorkerId,
        function: u64,
        timeout: Option<Duration>,
        conduct: Conduct,
    ) {
        let (ticket, ..) = self.ticket(function, timeout, &[conduct]);
        let task = ticket.base;
        self.story(task).broadcast_to = Some(id);
        self.note("broadcast", Some(id), Some(task));
        self.event(|scheduler, now, claims, out| {
            scheduler.on_broadcast(now, [(id, ticket)], claims, out);
        });
    }

    /// Returns whether the time for a shutdown is over, so that the rest is ended.
    pub(super) fn ends(&self) -> bool {
        [self.deadline, self.kill_at].iter().flatten().any(|at| *at <= self.now)
    }

    /// A task is asked to stop, and perhaps does.
    pub(super) fn ask(&mut self, id: WorkerId, seq: u32) {
        let now = self.now;
        let (_, task, items) = self.processes[&id].words.borrow().sent[&seq];
        let ends = self.ends() && self.story(item(task, items.first)).chunk.1 > 1;
        let task = match self.processes[&id].words.borrow().sent[&seq] {
            (Word::Begun(at) | Word::Last(at), base, _) => item(base, at),
            _ => panic!("{task:?} is asked before it has begun"),
        };
        let story = self.story(task);
        let over = story.begun.and_then(|(_, at)| at.checked_add(story.timeout?));
        let itself = story.cancel_running_asked || over.is_some_and(|at| at <= now);
        assert!(itself || ends || self.ends(), "{task:?} is asked to stop without a reason");
        let kind = if itself { "asked: for a task" } else { "asked: the pool ends" };
        self.note(kind, Some(id), Some(task));
        let (obeys, takes) = (self.dice.permille(500), self.dice.micros(2_000_000));
        let process = self.process(id);
        if itself {
            process.asked = Some((task, now));
        }
        if let Some(Running::Task { task: running, until, .. }) = &mut process.running
            && *running == task
            && obeys
        {
            let at = now + takes;
            *until = Some(until.map_or(at, |until| until.min(at)));
        }
    }

    pub(super) fn begun_on(&self, task: TaskId, worker: WorkerId) -> bool {
        matches!(self.stories[task.as_u64() as usize - 1].begun, Some((on, _)) if on == worker)
    }

    /// Records that an attempt has failed, and that another one may follow.
    pub(super) fn on_failed_attempt(&mut self, task: TaskId, lost: bool, kind: &'static str) {
        assert!(!self.cancelled_pending, "{task:?} may not begin again");
        let story = self.story(task);
        assert!(story.ending.is_none() && !story.held, "{task:?} fails after its end");
        story.failed += 1;
        story.lost += u32::from(lost);
        assert!(story.failed <= story.retries, "{task:?} has too many attempts");
        assert!(story.lost < story.losses, "{task:?} loses too many workers");
        (story.begun, story.held, story.first_in_line) = (None, true, 0);
        let conduct = self.any_conduct();
        self.story(task).conduct = conduct;
        self.note(kind, None, Some(task));
        self.undecided.push(task);
    }

    /// Decides about a task whose attempt has failed.
    pub(super) fn decide(&mut self) {
        let at = self.dice.below(self.undecided.len() as u64) as usize;
        let task = self.undecided.swap_remove(at);
        if self.story(task).ending.is_some() {
            self.note("decided too late", None, Some(task));
        }
        let over = self.story(task).ending.is_some();
        if self.dice.permille(300) {
            self.note("decided: not again", None, Some(task));
            let error = TaskError::invalid("given up");
            self.event(|scheduler, now, _, out| scheduler.on_give_up(now, task, error, out));
            assert!(over || self.story(task).ending == Some(Ending::Failed));
            return;
        }
        let delay = self.dice.pick(&[0, 0, 1_000, 100_000, 10_000_000]);
        let delay = self.dice.micros(delay);
        let (kind, now) = match delay.is_zero() {
            true => ("decided: again at once", self.now),
            false => ("decided: again later", self.now),
        };
        self.note(kind, None, Some(task));
        if !over {
            self.later.push((task, now + delay));
            // The scheduler looks at all that is due, but not after a decision that comes too late.
            self.again();
        }
        self.event(|scheduler, now, claims, out| scheduler.on_retry(now, task, delay, claims, out));
    }

    /// Records which tasks wait for a worker again from now on, at the latest.
    pub(super) fn again(&mut self) {
        let now = self.now;
        let due: Vec<_> = self.later.extract_if(.., |(_, at)| *at <= now).collect();
        for (task, _) in due {
            let story = self.story(task);
            (story.held, story.submitted) = (false, now);
        }
    }

    /// Checks that a task that ended without a reply ended for a valid reason.
    pub(super) fn on_resolve(&mut self, task: TaskId, end: End) {
        self.later.retain(|(later, _)| *later != task);
        let broken = self.scheduler.refusal().is_some_and(|why| why.is_broken());
        let ended = self.killed || self.ends();
        let (now, shut_down, cancelled_pending) =
            (self.now, self.shut_down, self.cancelled_pending);
        let story = &self.stories[task.as_u64() as usize - 1];
        let (kind, ending) = match end {
            End::Lost(worker) | End::Unbegun(worker) => {
                let begun = matches!(story.begun, Some((on, _)) if on == worker);
                let awaited = story.broadcast_to == Some(worker) && story.begun.is_none();
                let thrice = story.begun.is_none() && story.first_in_line >= LOST_UNBEGUN_MAX;
                assert!(
                    match end {
                        End::Unbegun(_) => awaited,
                        _ => begun || thrice,
                    },
                    "{task:?} is lost with {worker:?}, which had not begun it"
                );
                let process = self.processes.get(&worker);
                let over = |process: &Process| {
                    let given_up = process.killed.is_some_and(|at| at + KILL_GRACE <= now);
                    process.reaped || given_up || awaited && process.life == Life::Ordered
                };
                assert!(
                    process.is_none_or(over) || !self.scheduler.knows(worker),
                    "{task:?} is lost with {worker:?}, which lives"
                );
                let kind = match awaited {
                    _ if begun => "end: lost, begun",
                    true => "end: lost, of a broadcast",
                    false => "end: lost, first in line three times",
                };
                (kind, Ending::Lost)
            }
            End::Error(TaskError::TimedOut { limit, phase: Phase::Run, .. }) => {
                let (_, began) = story.begun.expect("a timeout counts from the beginning");
                assert_eq!(story.timeout, Some(limit));
                assert!(began + limit <= now, "{task:?} has timed out too early");
                ("end: timed out", Ending::TimedOut)
            }
            End::Error(TaskError::TimedOut { limit, phase: Phase::Queue, .. }) => {
                assert_eq!(story.begun, None, "{task:?} has begun, so it waits no longer");
                assert_eq!(story.queue_timeout, Some(limit));
                assert!(story.submitted + limit <= now, "{task:?} was ended too early");
                let sent = |process: &Process| {
                    process.words.borrow().sent.values().any(|(_, base, _)| *base == task)
                };
                let kind = match self.processes.values().any(sent) {
                    _ if story.failed > 0 => "end: waited too long, at a later attempt",
                    true => "end: waited too long, sent ahead",
                    false => "end: waited too long, queued",
                };
                (kind, Ending::TimedOut)
            }
            End::Error(TaskError::Cancelled) if story.begun.is_some() => {
                assert!(
                    story.cancel_running_asked,
                    "{task:?} has begun, and nobody asked to cancel it"
                );
                ("end: cancelled while running", Ending::Cancelled)
            }
            // `cancel` is being granted in this very event.
            End::Error(TaskError::Cancelled)
                if story.cancel_granted || story.cancel_running_asked =>
            {
                match story.held {
                    true => ("end: cancelled between two attempts", Ending::Cancelled),
                    false => ("end: cancelled", Ending::Cancelled),
                }
            }
            End::Error(TaskError::Cancelled) => {
                assert!(cancelled_pending, "{task:?} is cancelled, and nobody asked");
                ("end: cancelled by shutdown", Ending::Cancelled)
            }
            End::Error(TaskError::Shutdown) => {
                assert!(
                    ended || shut_down && story.begun.is_none(),
                    "{task:?} ends with a pool that lives"
                );
                ("end: shutdown", Ending::Shutdown)
            }
            End::Error(TaskError::Broken(_)) => {
                assert!(broken, "{task:?} is broken in a whole pool");
                ("end: broken", Ending::Broken)
            }
            End::GivenUp(_) => {
                assert!(story.held, "{task:?} is given up in the middle of an attempt");
                ("end: failed", Ending::Failed)
            }
            End::Error(error) => panic!("{task:?}: {error}"),
        };
        if story.cancel_running_granted {
            assert_eq!(
                ending,
                Ending::Cancelled,
                "`cancel_running` had said it would be cancelled"
            );
        }
        self.end(task, ending, kind);
    }

    pub(super) fn end(&mut self, task: TaskId, ending: Ending, kind: &'static str) {
        let story = self.story(task);
        assert_eq!(story.ending, None, "{task:?} is resolved twice");
        story.ending = Some(ending);
        self.note(kind, None, Some(task));
    }
}
