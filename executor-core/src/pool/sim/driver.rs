//! What the pool's driver and readers do: ticks, starts, hellos, replies, deaths.

use super::*;

impl World {
    pub(super) fn tick(&mut self) {
        self.again();
        let due = self.scheduler.next_deadline().is_some_and(|at| at <= self.now);
        self.note(if due { "tick: due" } else { "tick: early" }, None, None);
        // The tick decides about workers that are given up in it. Their first tasks count as at a
        // death.
        let given_up: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| process.killed.is_some_and(|at| at + KILL_GRACE <= self.now))
            .map(|(id, _)| *id)
            .filter(|id| self.scheduler.knows(*id))
            .collect();
        for id in &given_up {
            self.count_losses(*id);
        }
        self.event(|scheduler, now, claims, out| scheduler.on_tick(now, claims, out));
        for id in given_up {
            assert!(!self.scheduler.knows(id), "{id:?} is not given up");
            self.note("given up", Some(id), None);
        }
        for (story, number) in self.stories.iter().zip(1..) {
            let limit = story.queue_timeout.and_then(|limit| story.submitted.checked_add(limit));
            let waits = story.ending.is_none() && story.begun.is_none() && !story.held;
            let over = limit.is_some_and(|at| at <= self.now);
            assert!(!waits || !over, "task {number} waits after its limit");
        }
        // If something stayed due, the driver would tick again and again.
        let next = self.scheduler.next_deadline();
        assert!(next.is_none_or(|at| at > self.now), "a tick leaves something due: {next:?}");
    }

    /// Lets the driver check which workers are stopped.
    pub(super) fn look_at_stopped(&mut self) {
        let linked =
            |process: &Process| process.linked && process.alive() && process.killed.is_none();
        let all = self.processes.iter().filter(|(_, process)| linked(process));
        let (mut stopped, mut continued) = (Vec::new(), Vec::new());
        for id in all.map(|(id, _)| *id).collect::<Vec<_>>() {
            let (now, for_good, has_run) =
                (self.now, self.dice.permille(500), self.dice.permille(200));
            let process = self.process(id);
            if process.stopped {
                if has_run {
                    process.seen_stopped = None;
                }
                process.seen_stopped.get_or_insert(now);
                self.note("seen stopped", Some(id), None);
                stopped.push(Stopped { worker: id, for_good, has_run });
            } else if process.seen_stopped.take().is_some() {
                self.note("seen to go on", Some(id), None);
                continued.push(id);
            }
        }
        if stopped.len() > 1 {
            self.note("seen stopped: several at once", None, None);
        }
        if !stopped.is_empty() {
            self.event(|scheduler, now, claims, out| {
                scheduler.on_stopped(now, &stopped, claims, out);
            });
        }
        for id in continued {
            self.event(|scheduler, now, claims, out| scheduler.on_continued(now, id, claims, out));
        }
        for Stopped { worker: id, .. } in stopped {
            let holding = self.processes[&id].words.borrow().holding.clone();
            let begun = |task: &TaskId| {
                let story = &self.stories[task.as_u64() as usize - 1];
                story.begun.is_some() || story.broadcast_to.is_some()
            };
            let lied = self.processes[&id].lied;
            // A worker that is about to end gives back its tasks when it has ended.
            let doomed = self.killed || self.broken || self.processes[&id].terminated.is_some();
            assert!(
                doomed || lied || holding.iter().all(begun),
                "{id:?} keeps what it has not begun"
            );
        }
    }

    /// Updates the record before the scheduler decides about a worker's end.
    fn count_losses(&mut self, id: WorkerId) {
        let process = &self.processes[&id];
        if !process.ready && process.terminated.is_none() && process.stop_sent.is_none() {
            let expected = self.killed
                || self.ends()
                || self.broken
                || self.shut_down && self.unresolved() == 0;
            if !expected {
                self.trouble_in_initializer = process.linked;
                self.start_troubles.push(self.now);
            }
        }
        self.count_young_death(id);
        let first = self.processes[&id].words.borrow().holding.front().copied();
        if let Some(task) = first
            && self.story(task).begun.is_none()
        {
            self.story(task).first_in_line += 1;
        }
    }

    /// Updates the record if a worker has ended right after it was ready.
    fn count_young_death(&mut self, id: WorkerId) {
        let (now, doomed) = (self.now, self.killed || self.ends() || self.broken);
        let process = &self.processes[&id];
        let young = process.ready_at.is_some_and(|at| at + YOUNG > now);
        let front = process.words.borrow().holding.front().copied();
        let begun = front.is_some_and(|front| self.begun_on(front, id));
        let ended = process.terminated.is_some() || process.stop_sent.is_some() || doomed;
        if !young || process.has_replied || begun || ended {
            return;
        }
        self.note("dies right after it was ready", Some(id), None);
        self.trouble_in_initializer = false;
        self.start_troubles.push(now);
        // What the pool believes about a worker that lies is not what has happened.
        if !self.processes[&id].lied && !self.scheduler.leaves(id) {
            self.young_death = Some(now);
        }
    }

    pub(super) fn on_starter(&mut self, id: WorkerId) {
        let trouble = self.climate.start_trouble;
        if !self.config.launch_timeout.is_zero() {
            self.taken_up = Some(self.now);
            self.event(|scheduler, now, _, _| scheduler.on_order_taken_up(now));
        }
        if self.dice.permille(trouble) {
            self.note("start: refused", Some(id), None);
            self.refuse_start(id);
            self.processes.remove(&id);
            return;
        }
        self.note("start: a process", Some(id), None);
        let now = self.now;
        let process = self.process(id);
        process.life = Life::Booting;
        process.launched = Some(now);
        self.event(|scheduler, now, _, _| scheduler.on_launched(now, id));
        let process = self.process(id);
        if process.overdue {
            process.immortal = false;
            process.dies_at = Some(now);
            self.note("start: overdue signal", Some(id), None);
        }
    }

    pub(super) fn refuse_start(&mut self, id: WorkerId) {
        if self.scheduler.knows(id) {
            self.trouble_in_initializer = false;
            self.start_troubles.push(self.now);
        }
        let cause = BrokenCause::Start("refused".into());
        self.event(|scheduler, now, _, out| scheduler.on_start_refused(now, id, cause, out));
    }

    pub(super) fn on_hello(&mut self, id: WorkerId) {
        if self.dice.permille(self.climate.start_trouble / 20) {
            self.note("hello: connecting fails", Some(id), None);
            self.process(id).die();
            self.refuse_start(id);
            return;
        }
        let (initializer, now) = (self.climate.initializer, self.now);
        let process = self.process(id);
        process.life = Life::Connected;
        process.linked = true;
        process.greeted = Some(now);
        self.note("hello", Some(id), None);
        let (knows, killed) = (self.scheduler.knows(id), self.processes[&id].killed.is_some());
        // A worker that was only sent SIGTERM is not wanted either.
        let wanted = knows && !killed && self.processes[&id].terminated.is_none();
        if wanted && !initializer {
            self.is_ready(id);
        }
        let welcome = self.event(|scheduler, now, claims, out| {
            let welcome = scheduler.on_hello(now, id);
            if welcome && !initializer {
                scheduler.on_ready(now, id, claims, out);
            }
            welcome
        });
        assert_eq!(welcome, wanted, "{id:?} is wanted, or is not");
        if welcome && !initializer {
            self.note("ready", Some(id), None);
        }
        if !welcome {
            self.note("hello: nobody wants it", Some(id), None);
        } else if initializer {
            self.process(id).frames.push_front(ToWorker::Init);
        }
    }

    fn is_ready(&mut self, id: WorkerId) {
        let now = self.now;
        let trouble = self.dice.permille(self.climate.start_trouble / 3);
        let lives = self.dice.micros(2_500_000);
        let process = self.process(id);
        process.ready = true;
        (process.ready_at, process.rested) = (Some(now), Some(now));
        if trouble && !process.immortal {
            process.dies_at.get_or_insert(now + lives);
        }
        self.ever_ready = true;
    }

    /// Reads up to `at_most` messages of one worker as one event. If there are none, the worker is
    /// dead, and its end is read.
    pub(super) fn on_read(&mut self, id: WorkerId, at_most: usize) {
        let process = self.process(id);
        if process.published.is_empty() {
            assert!(process.reaped);
            return self.on_exit(id);
        }
        let mut count = process.published.len().min(at_most);
        // They are one frame.
        count += usize::from(process.published.get(count) == Some(&FromWorker::Reports));
        let mut batch: Vec<FromWorker> = process.published.drain(..count).collect();
        let garbage = batch.iter().position(|message| *message == FromWorker::Garbage);
        if let Some(at) = garbage {
            batch.truncate(at);
            process.unread = true;
            process.published.clear();
        }
        if count > 1 {
            self.note("batch of replies", Some(id), None);
        }
        let (now, finalizes) = (self.now, self.config.finalizer.is_some());
        // All replies of a batch are processed before any action is performed, as in the pool.
        for message in &batch {
            match message {
                FromWorker::InitFailed => self.broken = true,
                FromWorker::InitRefused => {
                    let known = self.scheduler.knows(id);
                    let process = self.process(id);
                    process.refused = known && !process.caught;
                }
                FromWorker::Unexpected => self.process(id).caught = true,
                FromWorker::Reply(task)
                    if self.processes[&id].words.borrow().holding.front() != Some(task) =>
                {
                    // It is not this task's turn: a lie, or a reply of a worker that was given up.
                    self.process(id).caught = true;
                }
                FromWorker::Reply(task) if self.processes[&id].killed_for == Some(*task) => {
                    // It has outlived SIGTERM, if it has got no more than that.
                    self.process(id).outlived = true;
                }
                FromWorker::Reply(_) => {
                    let now = self.now;
                    let process = self.process(id);
                    process.rested = Some(now);
                    process.has_replied = true;
                    process.words.borrow_mut().holding.pop_front();
                }
                FromWorker::Ready => {
                    let process = self.process(id);
                    if !process.caught && process.killed.is_none() && process.terminated.is_none() {
                        match process.leaves {
                            None => self.is_ready(id),
                            Some(_) => {
                                let leaving = match finalizes {
                                    true => LastStep::Finalizing,
                                    false => LastStep::Ending,
                                };
                                process.ready = true;
                                process.leaves = Some((leaving, now));
                            }
                        }
                    }
                }
                FromWorker::Reports => self.process(id).reports = Some(now),
                FromWorker::Reported => self.process(id).reports = None,
                FromWorker::Finalized => {
                    let process = self.process(id);
                    if let Some((leaving @ LastStep::Finalizing, since)) = &mut process.leaves {
                        (*leaving, *since) = (LastStep::Ending, now);
                    }
                }
                _ => {}
            }
        }
        let takes: Vec<u64> = batch
            .iter()
            .map(|message| match message {
                FromWorker::Reply(task) => self.stories.get(task.as_u64() as usize - 1),
                _ => None,
            })
            .map(|story| story.map_or(0, |story| story.takes.as_nanos() as u64))
            .collect();
        let fails: Vec<_> = batch
            .iter()
            .filter_map(|message| match message {
                FromWorker::Reply(task) => Some(*task),
                _ => None,
            })
            .filter(|task| {
                let story = self.stories.get(task.as_u64() as usize - 1);
                story.is_some_and(|story| story.conduct == Conduct::Fails)
            })
            .collect();
        let grows: Vec<bool> =
            batch.iter().map(|_| self.dice.permille(self.climate.grows)).collect();
        self.event_then(
            |scheduler, now, claims, out| {
                let mut decide = |scheduler: &mut Scheduler<Ticket>, message, nanos| match message {
                    FromWorker::Ready => {
                        let leaves = scheduler.leaves_after_initializer(id);
                        scheduler.on_ready(now, id, claims, out);
                        (if leaves { "ready to leave" } else { "ready" }, None)
                    }
                    FromWorker::Finalized => {
                        // A worker that was given up may still run its own.
                        scheduler.on_finalized(now, id);
                        ("a finalizer ends", None)
                    }
                    FromWorker::Reports => {
                        scheduler.on_reports(now, id, claims);
                        ("reports an error", None)
                    }
                    FromWorker::Reported => {
                        // One that was given up is not known any more.
                        assert!(scheduler.on_reported(now, id) || !scheduler.knows(id));
                        ("has reported", None)
                    }
                    FromWorker::InitFailed => {
                        let cause = BrokenCause::Internal("the initializer".into());
                        scheduler.on_broken(now, cause, out);
                        ("initializer fails", None)
                    }
                    FromWorker::InitRefused => {
                        scheduler.on_initializer_refused(now, id, out);
                        ("initializer is refused", None)
                    }
                    FromWorker::Reply(task) => {
                        match scheduler.on_reply(now, id, task, 1, nanos, fails.contains(&task)) {
                            Ok(
                                Replied::Last(Ticket { base, .. }, at, count)
                                | Replied::Items(&Ticket { base, .. }, at, count),
                            ) => {
                                assert_eq!(
                                    (item(base, at), count),
                                    (task, 1),
                                    "a reply resolves the task it belongs to"
                                );
                                ("reply: value", Some(task))
                            }
                            Ok(Replied::Undecided(undecided)) => {
                                assert_eq!(undecided, task, "a reply belongs to its task");
                                ("reply: failed, perhaps to be tried again", Some(task))
                            }
                            Ok(Replied::Late) => ("reply: too late", Some(task)),
                            Err(ReplyToNobody) => {
                                scheduler.on_protocol_violation(now, id, out);
                                ("violates the protocol", Some(task))
                            }
                        }
                    }
                    FromWorker::Unexpected => {
                        scheduler.on_protocol_violation(now, id, out);
                        ("violates the protocol", None)
                    }
                    FromWorker::Garbage => unreachable!("cut off above"),
                };
                let mut answers = Vec::new();
                for ((message, nanos), grows) in batch.into_iter().zip(takes).zip(grows) {
                    let answer = decide(scheduler, message, nanos);
                    answers.push(answer);
                    if grows && answer.0.starts_with("reply: ") && scheduler.on_grown(id, claims) {
                        answers.push(("has grown", None));
                    }
                }
                scheduler.after_replies(now, id, claims, out);
                answers
            },
            |world, answers| {
                for &(what, task) in answers {
                    world.note(what, Some(id), task);
                    world.process(id).grown |= what == "has grown";
                    let asked = world.processes[&id].asked.map(|(task, _)| task);
                    if what == "reply: too late"
                        && task == asked
                        && world.processes[&id].killed_for.is_none()
                    {
                        world.process(id).asked = None;
                        world.note("asked: stops in time", Some(id), task);
                    }
                    if let ("reply: value", Some(task)) = (what, task) {
                        let just = world.begun_on(task, id) || world.processes[&id].lied;
                        assert!(just, "{task:?} is answered by {id:?}, which did not run it");
                        let fails = world.story(task).conduct == Conduct::Fails;
                        let (ending, kind) = match world.story(task).failed {
                            _ if fails => (Ending::Failed, "end: failed"),
                            0 => (Ending::Value, "end: value"),
                            _ => (Ending::Value, "end: value, at a later attempt"),
                        };
                        world.end(task, ending, kind);
                    }
                    if let ("reply: failed, perhaps to be tried again", Some(task)) = (what, task) {
                        let just = world.begun_on(task, id) || world.processes[&id].lied;
                        assert!(just, "{task:?} is answered by {id:?}, which did not run it");
                        world.on_failed_attempt(task, false, "an attempt fails");
                    }
                }
            },
        );
        let process = &self.processes[&id];
        if process.outlived && process.terminated.is_some() {
            let ended = process.killed.is_some() || !self.scheduler.knows(id);
            assert!(ended, "{id:?} has outlived SIGTERM and has nothing to do");
            self.note("terminated: the task returns", Some(id), None);
        }
        if garbage.is_some() {
            if self.processes[&id].reaped {
                self.on_exit(id);
            } else {
                self.process(id).caught = true;
                self.note("violates the protocol", Some(id), None);
                self.event(|scheduler, now, _, out| scheduler.on_protocol_violation(now, id, out));
            }
        }
    }

    pub(super) fn on_reap(&mut self, id: WorkerId) {
        let process = self.process(id);
        process.reaped = true;
        self.scheduler.on_ended(id);
        let process = self.process(id);
        if !process.linked || process.unread {
            self.on_exit(id);
        }
    }

    fn on_exit(&mut self, id: WorkerId) {
        let known = self.scheduler.knows(id);
        self.note(if known { "exit" } else { "exit: of one given up" }, Some(id), None);
        let process = self.process(id);
        process.unread = true;
        if process.refused {
            self.note("exit: after a refusal", Some(id), None);
            self.refuse_start(id);
        } else {
            if known {
                self.count_losses(id);
            }
            self.event(|scheduler, now, claims, out| {
                let cause = |_| BrokenCause::NoEntry { status: ExitStatus::Unknown };
                scheduler.on_exit(now, id, cause, claims, out);
            });
        }
        assert!(!self.scheduler.knows(id));
        self.processes.remove(&id);
    }
}
