//! What workers do: begin a task, end it, crash, hang, lie.

use super::*;

impl World {
    pub(super) fn on_boot(&mut self, id: WorkerId) {
        if self.dice.permille(self.climate.start_trouble / 3) {
            self.note("dies before hello", Some(id), None);
            self.process(id).die();
        } else if self.dice.permille(self.climate.start_trouble / 5) {
            // The worker hangs before its hello.
            self.note("is stopped", Some(id), None);
            self.process(id).stopped = true;
        } else {
            self.process(id).life = Life::Greeted;
        }
    }

    pub(super) fn on_work(&mut self, id: WorkerId) {
        if self.dice.permille(self.climate.lies) {
            return self.lie(id);
        }
        match self.process(id).running {
            Some(Running::Initializer { dies, says, .. }) => {
                let process = self.process(id);
                process.running = None;
                if dies {
                    process.die();
                    self.note("dies in the initializer", Some(id), None);
                } else {
                    process.publish(says);
                }
            }
            Some(Running::Finalizer { dies, .. }) => {
                let lingers = self.dice.permille(100);
                let process = self.process(id);
                process.running = None;
                if !dies {
                    process.publish(FromWorker::Finalized);
                }
                process.stopped |= lingers && !dies;
                if !process.stopped {
                    process.die();
                }
                let kind = if dies { "dies in the finalizer" } else { "exits as asked" };
                self.note(kind, Some(id), None);
            }
            Some(Running::Report { dies, .. }) => {
                let process = self.process(id);
                process.running = None;
                if dies {
                    process.die();
                    self.note("dies while it reports", Some(id), None);
                } else {
                    process.publish(FromWorker::Reported);
                }
            }
            Some(Running::Task { task, rest, .. }) => self.finish(id, task, rest),
            None => {
                let frame = self.process(id).frames.pop_front().expect("else it has no turn");
                self.take(id, frame);
            }
        }
    }

    fn finish(&mut self, id: WorkerId, task: TaskId, rest: Option<ToWorker>) {
        let conduct = self.story(task).conduct;
        let process = self.process(id);
        process.running = None;
        if let Some(rest) = rest {
            process.frames.push_front(rest);
        }
        if conduct == Conduct::Crashes {
            process.die();
            return self.note("dies in a task", Some(id), Some(task));
        }
        process.publish(FromWorker::Reply(task));
        process.answered = Some(task);
        let more = process.published.len() > 1;
        if conduct == Conduct::ReturnsAndDies && process.alive() {
            process.die();
            self.note("dies between reply and claim", Some(id), Some(task));
            if more {
                self.note("dies after publishing, unseen", Some(id), None);
            }
        }
        if conduct == Conduct::Fails && self.config.report_timeout.is_some() {
            let now = self.now;
            let takes = self.dice.micros(INITIALIZER_MAX.as_micros() as u64);
            let hangs = self.dice.permille(self.climate.hangs);
            let dies = self.dice.permille(self.climate.crashes);
            let process = self.process(id);
            process.publish(FromWorker::Reports);
            if process.alive() {
                let until = if hangs { None } else { Some(now + takes) };
                process.running = Some(Running::Report { until, dies });
            }
        }
        self.note("publishes a reply", Some(id), Some(task));
    }

    pub(super) fn take(&mut self, id: WorkerId, frame: ToWorker) {
        let now = self.now;
        match frame {
            ToWorker::Init => {
                let takes = self.dice.micros(INITIALIZER_MAX.as_micros() as u64);
                let trouble = self.climate.start_trouble;
                let (dies, fails, refused, hangs) = (
                    self.dice.permille(trouble / 2),
                    self.dice.permille(trouble / 4),
                    self.dice.permille(trouble / 4),
                    self.dice.permille(self.climate.hangs),
                );
                let says = match (fails, refused) {
                    (true, _) => FromWorker::InitFailed,
                    (_, true) => FromWorker::InitRefused,
                    _ => FromWorker::Ready,
                };
                let until = if hangs { None } else { now.checked_add(takes) };
                self.process(id).running = Some(Running::Initializer { until, dies, says });
                if hangs {
                    self.note("hangs in the initializer", Some(id), None);
                }
            }
            ToWorker::Stop => {
                if self.dice.permille(100) {
                    let process = self.process(id);
                    process.stopped = true;
                    process.frames.push_front(ToWorker::Stop);
                    self.note("ignores stop", Some(id), None);
                } else if self.config.finalizer.is_some() {
                    let takes = self.dice.micros(INITIALIZER_MAX.as_micros() as u64);
                    let hangs = self.dice.permille(self.climate.hangs);
                    let dies = self.dice.permille(self.climate.crashes);
                    let until = if hangs { None } else { Some(now + takes) };
                    self.process(id).running = Some(Running::Finalizer { until, dies });
                    self.note("runs its finalizer", Some(id), None);
                } else {
                    self.process(id).die();
                    self.note("exits as asked", Some(id), None);
                }
            }
            ToWorker::Run { base, seq, items } | ToWorker::Rest { base, seq, items } => {
                let at = items.first;
                let task = item(base, at);
                let (conduct, takes) = (self.story(task).conduct, self.story(task).takes);
                let timed = self.story(task).timeout.is_some();
                let tasks_max = self.config.tasks_max;
                let process = self.process(id);
                let words = process.words.get_mut();
                let word = &mut words.sent.get_mut(&seq).expect("it was sent").0;
                let (expected, skips, claims) = match frame {
                    ToWorker::Run { .. } => {
                        (Word::Offered(at), "skips what was taken back", "claims")
                    }
                    _ => (
                        Word::Begun(at - 1),
                        "skips the rest of a chunk",
                        "claims the next of a chunk",
                    ),
                };
                if *word != expected {
                    return self.note(skips, Some(id), Some(task));
                }
                if conduct == Conduct::Poison {
                    process.die();
                    return self.note("dies of a frame, before the claim", Some(id), Some(task));
                }
                if timed {
                    words.began = Some(now);
                }
                *word = Word::Begun(at);
                process.begun.push(task);
                let waits = matches!(conduct, Conduct::Hangs | Conduct::Meets);
                let until = if waits { None } else { Some(now + takes) };
                let rest = Items { first: at + 1, ..items };
                let rest =
                    (rest.first < rest.count).then_some(ToWorker::Rest { base, seq, items: rest });
                process.running = Some(Running::Task { task, until, rest });
                let (killed_for, lied) = (process.killed_for, process.lied);
                self.note(claims, Some(id), Some(task));
                if conduct == Conduct::Hangs {
                    self.note("hangs in a task", Some(id), Some(task));
                }
                assert!(
                    tasks_max.is_none_or(|max| self.begun_of_any(id) <= max as usize),
                    "{id:?} has had enough"
                );
                assert_eq!(
                    killed_for, None,
                    "{task:?} begins behind a task that {id:?} is killed for"
                );
                let Story { failed, priority, bound_to, broadcast_to, .. } = *self.story(task);
                let again = failed > 0;
                if broadcast_to.is_none() {
                    let needs = &self.stories[task.as_u64() as usize - 1].needs;
                    let resources = needs.iter().map(|need| need.resource).collect();
                    let key = (bound_to, resources, priority);
                    let last = self.last_begun.entry(key).or_insert(TaskId::from_raw(0));
                    let in_order = self.workers_most > 1 || lied || again || task > *last;
                    assert!(in_order, "{task:?} begins after {last:?}");
                    *last = task.max(*last);
                }
                let story = self.story(task);
                assert!(story.ending.is_none() || lied, "{task:?} begins after its end");
                assert!(story.begun.is_none(), "{task:?} runs twice");
                story.begun = Some((id, now));
                let (submitted, estimate, function) =
                    (story.submitted, story.estimate, story.function);
                self.note_wait(submitted, estimate.max(self.scheduler.ended_estimate(function)));
                if conduct == Conduct::Meets {
                    self.meet(id);
                }
            }
        }
    }

    pub(super) fn meet(&mut self, id: WorkerId) {
        self.meeting.push(id);
        if self.meeting.len() == self.config.workers_max {
            let now = self.now;
            for id in std::mem::take(&mut self.meeting) {
                if let Some(Running::Task { until, .. }) = &mut self.process(id).running {
                    *until = Some(now);
                }
            }
        }
    }

    pub(super) fn lie(&mut self, id: WorkerId) {
        let behind = self.processes[&id].words.borrow().holding.iter().skip(1).last().copied();
        let answered = self.processes[&id].answered;
        let (what, message) = match (self.dice.below(5), answered, behind) {
            (0, Some(task), _) => ("lies: answers twice", FromWorker::Reply(task)),
            (1, _, Some(task)) => ("lies: out of order", FromWorker::Reply(task)),
            (2, ..) => ("lies: garbage", FromWorker::Garbage),
            (3, ..) => ("lies: garbage", FromWorker::Unexpected),
            _ => (
                "lies: a task it does not have",
                FromWorker::Reply(TaskId::from_raw(u64::MAX >> 3)),
            ),
        };
        self.note(what, Some(id), None);
        let process = self.process(id);
        process.lied = true;
        process.publish(message);
    }

    fn note_wait(&mut self, submitted: Instant, estimate: Duration) {
        let waited =
            self.neglects_since.map_or(Duration::ZERO, |since| self.now - since.max(submitted));
        self.neglect.waited.push(waited);
        if estimate >= Duration::from_millis(1) {
            self.neglect.estimates.push(waited.as_secs_f64() / estimate.as_secs_f64());
        }
    }
}
