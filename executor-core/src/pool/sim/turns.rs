//! Time and chance: whose turn it is, what happens next, and how a pool comes to its end.

use super::*;

/// A step of one worker, or a step of the pool for this worker.
#[derive(Clone, Copy)]
enum Turn {
    Starter(WorkerId),
    Boot(WorkerId),
    Hello(WorkerId),
    Work(WorkerId),
    Read(WorkerId),
    Reap(WorkerId),
}

impl World {
    /// Returns all steps that could happen now.
    fn turns(&self) -> Vec<Turn> {
        let mut turns = Vec::new();
        for (&id, process) in &self.processes {
            match process.life {
                Life::Ordered
                    if !process.never_starts && process.ordered + self.start_takes <= self.now =>
                {
                    turns.push(Turn::Starter(id));
                }
                Life::Booting if !process.stopped => turns.push(Turn::Boot(id)),
                Life::Greeted => turns.push(Turn::Hello(id)),
                Life::Connected if !process.stopped => {
                    let free = match process.running {
                        Some(
                            Running::Initializer { until, .. }
                            | Running::Task { until, .. }
                            | Running::Finalizer { until, .. }
                            | Running::Report { until, .. },
                        ) => until.is_some_and(|until| until <= self.now),
                        None => !process.frames.is_empty(),
                    };
                    if free {
                        turns.push(Turn::Work(id));
                    }
                }
                Life::Dead if !process.reaped => turns.push(Turn::Reap(id)),
                _ => {}
            }
            if process.linked
                && !process.unread
                && (process.reaped || !process.published.is_empty())
            {
                turns.push(Turn::Read(id));
            }
        }
        turns
    }

    fn take_turn(&mut self, turn: Turn) {
        match turn {
            Turn::Starter(id) => self.on_starter(id),
            Turn::Boot(id) => self.on_boot(id),
            Turn::Hello(id) => self.on_hello(id),
            Turn::Work(id) => self.on_work(id),
            Turn::Reap(id) => self.on_reap(id),
            Turn::Read(id) => {
                let at_most = self.dice.pick(&[1, 2, 64]);
                self.on_read(id, at_most);
            }
        }
    }

    /// Takes one of the steps that could happen now. Returns `false` if there is none.
    pub(super) fn any_turn(&mut self) -> bool {
        let turns = self.turns();
        if turns.is_empty() {
            return false;
        }
        let turn = self.dice.pick(&turns);
        self.take_turn(turn);
        true
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now += by;
        let due: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| {
                process.alive() && process.dies_at.is_some_and(|at| at <= self.now)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.process(id).die();
        }
    }

    /// Returns when something will happen by itself.
    pub(super) fn next_moment(&self) -> Option<Instant> {
        let work = self.processes.values().filter(|process| process.alive()).flat_map(|process| {
            let until = match process.running {
                Some(
                    Running::Initializer { until, .. }
                    | Running::Task { until, .. }
                    | Running::Finalizer { until, .. }
                    | Running::Report { until, .. },
                ) if !process.stopped => until,
                _ => None,
            };
            [until, process.dies_at]
        });
        let starts = self.processes.values().filter(|process| process.life == Life::Ordered);
        let starts = starts.map(|process| process.ordered + self.start_takes);
        work.flatten()
            .chain(starts)
            .filter(|at| *at > self.now)
            .chain(self.scheduler.next_deadline())
            .min()
    }

    pub(super) fn wait(&mut self) -> bool {
        let Some(next) = self.next_moment() else { return false };
        self.advance(next.saturating_duration_since(self.now));
        true
    }

    fn any_process(&mut self) -> Option<WorkerId> {
        let alive: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, process)| process.alive())
            .map(|(id, _)| *id)
            .collect();
        (!alive.is_empty()).then(|| self.dice.pick(&alive))
    }

    pub(super) fn anything(&mut self) {
        let pause = self.dice.pick(&[0, 0, 0, 5, 5, 50, 500, 5_000]);
        let pause = self.dice.micros(pause);
        self.advance(pause);
        if self.dice.permille(self.climate.ends) {
            return self.end_of_pool();
        }
        if self.dice.permille(self.climate.stops) {
            return self.stop_or_continue();
        }
        if self.dice.permille(self.climate.crashes / 20)
            && let Some(id) = self.any_process()
            && self.processes[&id].running.is_none()
            && self.processes[&id].life == Life::Connected
            && !self.processes[&id].immortal
        {
            self.process(id).die();
            return self.note("dies idle", Some(id), None);
        }
        match self.dice.below(100) {
            // Seldom when tasks are refused, because a refused task can end in only one way.
            0..=5 if self.scheduler.refusal().is_none() || self.dice.permille(50) => {
                self.submit_any()
            }
            6..=8 => {
                if let Some(task) = self.any_task() {
                    self.cancel(task);
                }
            }
            9..=10 => {
                let running: Vec<_> = self
                    .processes
                    .values()
                    .filter_map(|process| match process.running {
                        Some(Running::Task { task, .. }) => Some(task),
                        _ => None,
                    })
                    .collect();
                let task = match running.is_empty() || self.dice.permille(500) {
                    true => self.any_task(),
                    false => Some(self.dice.pick(&running)),
                };
                if let Some(task) = task {
                    self.cancel_running(task);
                }
            }
            11 if self.config.spares.is_none() && self.dice.permille(200) => self.broadcast(),
            11 => self.tick(),
            31..=50 if !self.undecided.is_empty() => self.decide(),
            51..=53 if !self.undecided.is_empty() => {
                let task = self.undecided[0];
                if self.story(task).ending.is_none() {
                    self.cancel(task);
                }
            }
            12 if self.climate.stops > 0 => self.look_at_stopped(),
            12 => self.tick(),
            54 if self.dice.permille(self.climate.resizes) => {
                let workers_max = self.dice.pick(&[1, 1, 2, 3, 4, 8]);
                self.resize(workers_max);
            }
            // The driver ticks about when it should.
            13..=30 if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) => {
                self.tick()
            }
            13..=16 => {
                self.wait();
            }
            17..=18 => {
                if let Some(at) = self.scheduler.next_deadline() {
                    self.advance(at.saturating_duration_since(self.now));
                    self.tick();
                }
            }
            19 => {
                let long = self.dice.micros(3_000_000);
                self.advance(long);
            }
            _ => {
                if !self.any_turn() && self.dice.permille(500) {
                    self.wait();
                }
            }
        }
    }

    fn end_of_pool(&mut self) {
        match self.dice.below(10) {
            0..=5 => {
                let cancel_pending = self.dice.permille(500);
                let deadline = self
                    .dice
                    .permille(700)
                    .then(|| self.now + Duration::from_millis(self.dice.below(3_000)));
                self.shutdown(cancel_pending, deadline);
            }
            6..=7 => {
                let at_once = self.dice.permille(500);
                self.kill(at_once);
            }
            8 => self.break_it(),
            _ => {}
        }
    }

    fn stop_or_continue(&mut self) {
        let Some(id) = self.any_process() else { return };
        let process = self.process(id);
        process.stopped = !process.stopped;
        let kind = if process.stopped { "is stopped" } else { "goes on" };
        self.note(kind, Some(id), None);
    }

    /// Runs the pool to its end. From here on nothing new goes wrong.
    pub(super) fn drain(&mut self) {
        const STEPS_MAX: u32 = 60_000;
        const PATIENCE: u32 = 30_000;
        self.climate = Climate { initializer: self.climate.initializer, ..Climate::calm() };
        if !self.shut_down {
            let cancel_pending = self.dice.permille(300);
            let deadline = self.now + Duration::from_millis(self.dice.below(3_000));
            let deadline = self.dice.permille(200).then_some(deadline);
            self.shutdown(cancel_pending, deadline);
        }
        for step in 0.. {
            assert!(step < STEPS_MAX, "it does not come to its end");
            if self.closed {
                break;
            }
            let goes_on = |process: &Process| {
                process.seen_stopped.is_some()
                    && !process.stopped
                    && process.alive()
                    && process.killed.is_none()
            };
            if !self.undecided.is_empty() {
                self.decide();
            } else if self.scheduler.next_deadline().is_some_and(|at| at <= self.now) {
                self.tick();
            } else if self.processes.values().any(goes_on) {
                self.look_at_stopped();
            } else if step > PATIENCE && !self.killed || !self.any_turn() && !self.wait() {
                let hopeless = self.processes.values().any(Process::hopeless);
                assert!(hopeless && !self.killed, "everybody could go on, and nothing happens");
                let at_once = self.dice.permille(500);
                self.kill(at_once);
            }
        }
        self.after_the_end();
    }

    pub(super) fn after_the_end(&mut self) {
        assert_eq!(self.unresolved(), 0, "every task has ended");
        assert_eq!(self.scheduler.counts(), (0, 0));
        assert_eq!(self.scheduler.next_deadline(), None, "nothing is waited for");
        // Workers that were given up may still end, and users still have their handles.
        for process in self.processes.values_mut().filter(|process| process.alive()) {
            process.die();
        }
        while self.any_turn() {}
        let task = self.submit_refused();
        assert!(!self.cancel(task) && !self.cancel_running(task));
        self.shut_down = true;
        self.event(|scheduler, now, claims, out| {
            let deadline = Some(now + Duration::from_secs(1));
            let how = Shutdown { cancel_pending: true, deadline, ..Shutdown::default() };
            scheduler.on_shutdown(now, how, claims, out);
            scheduler.on_kill(now, true, claims, out);
            scheduler.on_tick(now + Duration::from_secs(2), claims, out);
            assert!(out.is_empty(), "after the end: {out:?}");
        });
        assert_eq!(self.scheduler.next_deadline(), None);
    }

    /// Submits a task after the end. Its refusal is the only action that may still come.
    fn submit_refused(&mut self) -> TaskId {
        self.closed = false;
        let task = self.submit(0, None, Conduct::Returns);
        self.closed = true;
        task
    }

    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for Step { at, what, worker, task } in &self.trace {
            text += &format!("\n{:>14.6}s  {what}", at.as_secs_f64());
            if let Some(WorkerId(worker)) = worker {
                text += &format!(", worker {worker}");
            }
            if let Some(task) = task {
                text += &format!(", task {task}");
            }
        }
        text += &format!("\nunresolved: {:?}", self.scheduler.counts());
        for (id, process) in &self.processes {
            let Process { life, stopped, immortal, killed, frames, published, asked, .. } = process;
            let at = |at: Option<Instant>| at.map(|at| at - self.start);
            let (terminated, stop_sent) = (at(process.terminated), at(process.stop_sent));
            text +=
                &format!("\nasked {asked:?}, terminated {terminated:?}, stop sent {stop_sent:?}:");
            let killed = killed.map(|at| at - self.start);
            let holding = &process.words.borrow().holding;
            text += &format!(
                "\n{id:?} known {}: {life:?}, stopped {stopped}, immortal {immortal}, killed {killed:?}, \
                 {holding:?}, {frames:?} in, {published:?} out",
                self.scheduler.knows(*id)
            );
        }
        text
    }
}
