//! What users do: submit, cancel, resize, shut down.

use super::*;

impl World {
    pub(super) fn submit(
        &mut self,
        function: u64,
        timeout: Option<Duration>,
        conduct: Conduct,
    ) -> TaskId {
        self.submit_chunk(function, timeout, &[conduct])
    }

    pub(super) fn submit_chunk(
        &mut self,
        function: u64,
        timeout: Option<Duration>,
        conducts: &[Conduct],
    ) -> TaskId {
        let (ticket, task, count, open) = self.ticket(function, timeout, conducts);
        self.event(|scheduler, now, _, out| scheduler.on_submit(now, [ticket], out));
        for task in ids(task, Items { first: 0, count }) {
            assert_eq!(open, self.story(task).ending.is_none(), "taken in, or refused");
        }
        task
    }

    /// Makes a chunk, and its record. Returns also its first id, the number of its tasks, and
    /// whether tasks are accepted.
    pub(super) fn ticket(
        &mut self,
        function: u64,
        timeout: Option<Duration>,
        conducts: &[Conduct],
    ) -> (Ticket, TaskId, u32, bool) {
        const TAKES_MICROS: [u64; 6] = [1, 5, 30, 300, 20_000, 1_000_000];
        let most = TAKES_MICROS[function as usize];
        let chunk = (TaskId::from_raw(self.stories.len() as u64 + 1), conducts.len() as u32);
        let estimate = self.scheduler.ended_estimate(FnId(function));
        for &conduct in conducts {
            let takes = Duration::from_micros(most / 2) + self.dice.micros(most);
            self.stories.push(Story {
                chunk,
                timeout,
                queue_timeout: self.queue_timeout,
                bound_to: self.bound_to,
                needs: Rc::clone(&self.needs),
                priority: self.priority,
                retries: self.retries,
                losses: LOSSES,
                failed: 0,
                lost: 0,
                held: false,
                conduct,
                takes,
                submitted: self.now,
                function: FnId(function),
                broadcast_to: None,
                estimate,
                begun: None,
                ending: None,
                first_in_line: 0,
                cancel_granted: false,
                cancel_running_asked: false,
                cancel_running_granted: false,
            });
        }
        let (task, count) = chunk;
        let open = self.scheduler.refusal().is_none();
        self.note(if open { "submit" } else { "submit: refused" }, None, Some(task));
        if timeout.is_some() {
            self.note("submit: with a timeout", None, Some(task));
        }
        if count > 1 {
            self.note("submit: a chunk of several", None, Some(task));
        }
        if self.queue_timeout.is_some() {
            self.note("submit: with a limit on waiting", None, Some(task));
        }
        let wait =
            self.queue_timeout.and_then(|timeout| Some((self.now.checked_add(timeout)?, timeout)));
        let items = Items { first: 0, count };
        let (function, left) = (FnId(function), Rc::default());
        if self.retries > 0 {
            self.note("submit: with retries", None, Some(task));
        }
        let (retries, losses, priority) = (self.retries, LOSSES, self.priority);
        if priority != 0 {
            self.note("submit: with a priority", None, Some(task));
        }
        let bound_to = self.bound_to;
        if bound_to.is_some() {
            self.note("submit: bound to a worker", None, Some(task));
        }
        let needs = Rc::clone(&self.needs);
        if !needs.is_empty() {
            self.note("submit: needs tokens", None, Some(task));
        }
        let base = task;
        let ticket = Ticket {
            function,
            timeout,
            wait,
            bound_to,
            needs,
            priority,
            retries,
            losses,
            base,
            items,
            left,
        };
        (ticket, task, count, open)
    }

    pub(super) fn any_conduct(&mut self) -> Conduct {
        match self.dice.below(1_000) {
            n if n < self.climate.poison => Conduct::Poison,
            n if n < self.climate.poison + self.climate.hangs => Conduct::Hangs,
            n if n < self.climate.poison + self.climate.hangs + self.climate.crashes => {
                self.dice.pick(&[Conduct::Crashes, Conduct::ReturnsAndDies, Conduct::Fails])
            }
            _ => Conduct::Returns,
        }
    }

    pub(super) fn submit_any(&mut self) {
        let count = self.dice.pick(&[1, 1, 1, 2, 5, 20, 80]);
        let slow = self.dice.permille(150);
        let function = if slow { 4 + self.dice.below(2) } else { self.dice.below(4) };
        if count > 1 && self.dice.permille(400) {
            let conducts: Vec<_> = (0..count).map(|_| self.any_conduct()).collect();
            self.bound_to = self.any_worker();
            self.submit_chunk(function, None, &conducts);
            self.bound_to = None;
            return;
        }
        for _ in 0..count {
            self.bound_to = self.any_worker();
            let conduct = self.any_conduct();
            let timeout = self.any_timeout();
            self.queue_timeout = self.any_timeout();
            self.retries = self.dice.pick(&[0, 0, 1, 2, 5]);
            self.priority = self.any_priority();
            if self.bound_to.is_none() {
                self.needs = self.any_needs();
            }
            self.submit(function, timeout, conduct);
            self.needs = Rc::default();
            (self.queue_timeout, self.retries, self.priority) = (None, 0, 0);
            self.bound_to = None;
        }
    }

    /// Returns a worker to which a task is bound. It may be one beyond the number of workers.
    fn any_worker(&mut self) -> Option<u32> {
        let workers = self.config.workers_max as u64 + 1;
        self.dice.permille(self.climate.bound).then(|| self.dice.below(workers) as u32)
    }

    /// Returns what a task needs: some of some resources.
    fn any_needs(&mut self) -> Rc<[Need]> {
        // A pool without resources rolls no dice for them.
        if self.climate.needs == 0 || !self.dice.permille(self.climate.needs) {
            return Rc::default();
        }
        let all = self.config.resources.clone();
        let mut needs = Vec::new();
        for (resource, all) in all.iter().enumerate() {
            if self.dice.permille(500) {
                let tokens = 1 + self.dice.below(u64::from(*all)) as u32;
                needs.push(Need { resource: resource as u8, tokens });
            }
        }
        needs.into()
    }

    fn any_priority(&mut self) -> i32 {
        if self.dice.permille(self.climate.priorities) {
            self.dice.pick(&[-1, 1, 1, 2, 7, i32::MIN, i32::MAX])
        } else {
            0
        }
    }

    pub(super) fn any_timeout(&mut self) -> Option<Duration> {
        self.dice.permille(self.climate.timeouts).then(|| {
            let micros = self.dice.pick(&[0, 1, 100, 10_000, 1_000_000, 10_000_000]);
            self.dice.pick(&[
                Duration::from_micros(micros),
                Duration::from_micros(micros),
                Duration::MAX,
            ])
        })
    }

    /// Cancels the tasks of a chunk that have not begun.
    fn cancel_chunk(&mut self, (base, count): (TaskId, u32)) {
        self.note("cancel: a chunk", None, Some(base));
        let all = || ids(base, Items { first: 0, count });
        let withdrawn: Vec<_> = all()
            .filter(|task| self.story(*task).ending.is_none() && self.story(*task).begun.is_none())
            .collect();
        for task in &withdrawn {
            self.story(*task).cancel_granted = true;
        }
        self.event(|scheduler, now, claims, out| {
            scheduler.on_cancel_chunk(now, base, count, claims, out)
        });
        for task in withdrawn {
            assert_eq!(
                self.story(task).ending,
                Some(Ending::Cancelled),
                "{task:?} could be withdrawn"
            );
        }
    }

    pub(super) fn any_task(&mut self) -> Option<TaskId> {
        let recent = self.stories.len().min(1 + self.dice.pick(&[3, 30, 300])) as u64;
        (recent > 0).then(|| TaskId::from_raw(self.stories.len() as u64 - self.dice.below(recent)))
    }

    pub(super) fn cancel(&mut self, task: TaskId) -> bool {
        if self.story(task).chunk.1 > 1 {
            let chunk = self.story(task).chunk;
            self.cancel_chunk(chunk);
            return false;
        }
        let before = self.story(task).ending;
        let pending = before.is_none() && self.story(task).begun.is_none();
        self.story(task).cancel_granted = true;
        let granted =
            self.event(|scheduler, now, claims, out| scheduler.on_cancel(now, task, claims, out));
        self.story(task).cancel_granted = granted;
        assert_eq!(granted, pending, "{task:?} can be withdrawn, or cannot");
        assert_eq!(granted, before != self.story(task).ending, "an answer that is true");
        self.note(if granted { "cancel: withdrawn" } else { "cancel: too late" }, None, Some(task));
        granted
    }

    pub(super) fn cancel_running(&mut self, task: TaskId) -> bool {
        if self.story(task).chunk.1 > 1 {
            // A single task of a chunk has no handle.
            return false;
        }
        let asks = !self.config.graces.cancel.is_zero();
        let before = self.story(task).ending;
        self.story(task).cancel_running_asked = true;
        let granted = self.event(|scheduler, now, claims, out| {
            scheduler.on_cancel_running(now, task, claims, out)
        });
        let story = self.story(task);
        story.cancel_running_granted |= granted;
        story.cancel_running_asked = story.cancel_running_granted;
        let kind = match (granted, before == story.ending) {
            (false, unchanged) => {
                assert!(unchanged);
                "cancel_running: too late"
            }
            (true, true) if asks => "cancel_running: asks",
            (true, true) => "cancel_running: kills",
            (true, false) => "cancel_running: withdrawn",
        };
        assert!(!granted || before.is_none());
        self.note(kind, None, Some(task));
        granted
    }

    pub(super) fn resize(&mut self, workers_max: usize) {
        let old = std::mem::replace(&mut self.config.workers_max, workers_max);
        self.workers_most = self.workers_most.max(workers_max);
        let staying = self.staying();
        self.note(if workers_max > old { "resize: grows" } else { "resize: shrinks" }, None, None);
        if staying > workers_max {
            // Any of them may be the one that leaves.
            self.processes.values_mut().for_each(|process| process.surplus = true);
        }
        self.event(|scheduler, now, claims, out| {
            scheduler.on_resize(now, workers_max, claims, out);
        });
        // With isolation, none that is about to leave is kept.
        if workers_max > old && workers_max >= staying && self.config.spares.is_none() {
            let surplus = self.processes.values_mut().filter(|process| process.stop_sent.is_none());
            let kept = surplus.map(|process| std::mem::take(&mut process.surplus));
            if kept.filter(|surplus| *surplus).count() > 0 {
                self.note("resize: one that was about to leave stays", None, None);
            }
        }
    }

    pub(super) fn shutdown(&mut self, cancel_pending: bool, deadline: Option<Instant>) {
        self.note("shutdown", None, None);
        self.shut_down = true;
        if cancel_pending {
            self.cancelled_pending = true;
            self.note("shutdown: cancel pending", None, None);
        }
        if let Some(deadline) = deadline {
            self.deadline = Some(self.deadline.map_or(deadline, |old| old.min(deadline)));
            self.note("shutdown: deadline", None, None);
        }
        let grace = |dice: &mut Dice| {
            let millis = dice.pick(&[0, 50, 2_000]);
            dice.permille(300).then_some(Duration::from_millis(millis))
        };
        let (cancel_grace, terminate_grace) = (grace(&mut self.dice), grace(&mut self.dice));
        let kill_at = deadline.filter(|_| self.dice.permille(500)).map(|at| at + A_MOMENT);
        if let Some(at) = kill_at {
            self.kill_at = Some(self.kill_at.map_or(at, |old| old.min(at)));
            self.note("shutdown: with a limit for the whole", None, None);
        }
        let how = Shutdown { cancel_pending, deadline, cancel_grace, terminate_grace, kill_at };
        self.event(|scheduler, now, claims, out| {
            scheduler.on_shutdown(now, how, claims, out);
        });
        if cancel_pending {
            assert!(
                self.stories.iter().all(|story| story.ending.is_some() || story.begun.is_some())
            );
        }
    }

    pub(super) fn kill(&mut self, at_once: bool) {
        self.note(if at_once { "kill: at once" } else { "kill: terminate first" }, None, None);
        self.killed = true;
        self.event(|scheduler, now, claims, out| scheduler.on_kill(now, at_once, claims, out));
    }

    pub(super) fn break_it(&mut self) {
        self.note("broken from outside", None, None);
        self.broken = true;
        let cause = BrokenCause::Internal("the simulation".into());
        self.event(|scheduler, now, _, out| scheduler.on_broken(now, cause, out));
    }
}
