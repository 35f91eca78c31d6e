//! The server's loop.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::event::{Timespec, epoll};

#[cfg(feature = "tls")]
use super::{
    super::link::{far::FarEnd, stream},
    gate::refuse,
};
use super::{
    super::{
        client::{
            Door,
            connection::LEASE,
            door::{REFUSED, WELCOME, WELCOME_BYTES, check_knock},
        },
        function,
        link::{LinkError, LinkReceiver, LinkSender},
        managed::Stored,
        protocol::{
            CallId, Fields, HEADER_BYTES, InSegment, ObjectId, Operation, Reply, Request,
            RequestBody, Status, put_bytes,
        },
    },
    core::{
        Actions, ClientId, Core, Job, JobId, LeaseId, Limits, PoolOrder, Returned, ValueId, Work,
    },
    crew::{Late, Outcome, Ran},
    gate::{Gate, GateSetup, ListenOrder, ORDER_BYTES_MAX},
    guest::{Guest, GuestSocket},
    pools::{self, Pools},
    segments::{KEPT_FOR, Kept, NotCopied, has_room_for},
};
use crate::{
    id::IdHasher,
    ipc::SocketFile,
    os::{fork::NotInherited, socket, spare, spin::Spin},
    transport::ring::lane::{self, LaneError, LaneSide},
};

/// Maximum number of requests of one client that are served before the next client's.
const TURN: usize = 32;
/// As many bytes as can be copied in the time that a request takes. A request or reply that is
/// longer counts for several. Otherwise a client that sends large values would hold up all others:
/// 32 of them are seconds.
const BYTES_OF_A_REQUEST: usize = 8 << 10;
/// Number of turns over all busy clients between two looks at the sockets. With a higher value, new
/// clients and deaths wait for longer while others are busy. With a lower value, more system calls
/// are made.
const TURNS_BETWEEN_LOOKS: u32 = 64;
/// For how many more turns one counts that has waited for its requests. It takes up to 100 µs, and
/// all that is not a lane waits meanwhile: clients over TCP, clients that sleep, pools. With a
/// lower value, they wait for longer. With a higher value, more system calls are made.
const TURNS_OF_A_SPIN: u32 = 8;
/// Number of requests between two looks at the sockets, if they come sooner than that. One client
/// that asks without waiting for answers has a full turn each time. With a higher value, the byte
/// of a client that wakes this loop waits for longer meanwhile. With a lower value, more system
/// calls are made.
const REQUESTS_BETWEEN_LOOKS: usize = 512;
/// Maximum number of pipes that one client has sent and not asked for. They also count as if they
/// were in use.
const LEASES_WAITING_MAX: usize = 1024;
/// Maximum number of functions and methods that run at the same time. Each that takes long has a
/// thread. With a lower value, functions that hang keep those of other objects from being run
/// sooner.
const FUNCTIONS_MAX: usize = 256;
/// Maximum number of messages over one client's socket that are read at a time.
const SOCKET_TURN: usize = 256;
/// Maximum number of messages that are read to find the pipe that belongs to a request. A socket
/// holds fewer than that, with the usual limit on its memory.
const LEASE_TURN: usize = 64 * SOCKET_TURN;
/// Number of turns in which everything is served that a client can have asked for before its end:
/// more requests do not fit into its ring.
const LAST_TURNS: usize = 256;
/// Bytes of the buffer that is kept for the next request. That of a longer one is a [`spare`] one
/// for all lanes.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// What a descriptor of the loop is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Door,
    Owner,
    Late,
    Client(ClientId),
    Lease(LeaseId),
}

impl Source {
    fn to_data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Source::Door => 0,
            Source::Owner => 1,
            Source::Late => 2,
            // Ids begin at 1, and are counted: they stay far below the limit.
            Source::Client(ClientId(id)) => id << 2 | 3,
            Source::Lease(LeaseId(id)) => id << 2 | 2,
        })
    }

    fn from_data(data: epoll::EventData) -> Self {
        match data.u64() {
            0 => Source::Door,
            1 => Source::Owner,
            2 => Source::Late,
            data if data & 3 == 3 => Source::Client(ClientId(data >> 2)),
            data => Source::Lease(LeaseId(data >> 2)),
        }
    }
}

/// What the loop is started with.
pub(super) struct Setup {
    /// The server's end of the door. Processes that a user's function forks do not keep it, nor the
    /// next one: clients and the owner notice the end of this process by them.
    pub(super) door: NotInherited,
    /// The door as clients have it.
    pub(super) outside: Arc<Door>,
    /// Closed when the owner of the server wants it to end.
    pub(super) owner: NotInherited,
    pub(super) limits: Limits,
    pub(super) message_bytes_max: u64,
    /// Maximum number of bytes of replies that wait for a client.
    pub(super) unread_bytes_max: u64,
    /// Maximum number of handles that all clients together have sent to other processes. Each needs
    /// a descriptor of this process.
    pub(super) leases_max: usize,
    /// What nobody knows, so that nobody can guess the ids of objects. Without it they are counted.
    pub(super) ids_key: Option<[u8; 32]>,
    pub(super) gate: GateSetup,
}

type Guests = HashMap<ClientId, Guest, IdHasher>;

pub(super) struct Server {
    setup: Setup,
    poll: OwnedFd,
    core: Core,
    guests: Guests,
    /// The clients whose lanes the loop looks at.
    hot: Vec<ClientId>,
    /// Clients that are to be cut off.
    condemned: Vec<(ClientId, String)>,
    leases: HashMap<LeaseId, (ClientId, OwnedFd)>,
    /// Number of pipes that have come from all clients, and were not asked for yet.
    leases_waiting: usize,
    /// Number of clients that have segments.
    arenas: usize,
    /// The values of users' own types.
    values: HashMap<ValueId, Arc<Stored>, IdHasher>,
    pools: Pools,
    /// Functions that are to be run.
    functions: VecDeque<Job>,
    /// Number of functions that run.
    running: usize,
    late: Arc<Late>,
    gate: Arc<Gate>,
    /// Far clients whose replies are encrypted and not written: several take one system call.
    #[cfg(feature = "tls")]
    unwritten: Vec<ClientId>,
    /// Whether the loop looks at its descriptors at this moment.
    looks: bool,
    /// Whether the owner is gone.
    over: bool,
    /// Number of turns since the last look at the descriptors.
    turns: u32,
    /// Number of requests since then.
    requests: usize,
    actions: Actions,
    message: Vec<u8>,
    kept: Kept,
    /// Bytes of replies since the last request.
    replied: usize,
    spin: Spin,
}

/// A function of a user that is to be run.
pub(super) struct Assignment {
    pub(super) job: Job,
    /// The value that a method is called of, or that is to be dropped.
    pub(super) value: Option<Arc<Stored>>,
}

/// What a turn of the loop has come to.
pub(super) enum Turn {
    Served,
    /// A function of a user is to be run, and its result to be given to [`Server::applied`].
    Function(Assignment),
    /// The owner is gone.
    Over,
}

impl Server {
    pub(super) fn new(mut setup: Setup) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let late = Arc::new(Late::new()?);
        for (descriptor, source) in [
            (setup.door.get(), Source::Door),
            (setup.owner.get(), Source::Owner),
            (Some(late.signal.as_fd()), Source::Late),
        ] {
            let descriptor = descriptor.ok_or_else(forked)?;
            epoll::add(&poll, descriptor, source.to_data(), epoll::EventFlags::IN)?;
        }
        let mut core = Core::new(setup.limits.clone(), function::is_exclusive);
        if let Some(key) = &setup.ids_key {
            core.hide_ids(key);
        }
        let gate = std::mem::take(&mut setup.gate);
        let gate = Gate::new(gate, Arc::clone(&setup.outside), Arc::clone(&late))?;
        Ok(Server {
            setup,
            poll,
            core,
            guests: Guests::default(),
            hot: Vec::new(),
            condemned: Vec::new(),
            leases: HashMap::new(),
            leases_waiting: 0,
            arenas: 0,
            values: HashMap::default(),
            pools: Pools::new(Arc::clone(&late)),
            functions: VecDeque::new(),
            running: 0,
            late,
            gate,
            #[cfg(feature = "tls")]
            unwritten: Vec::new(),
            looks: false,
            over: false,
            turns: 0,
            requests: 0,
            actions: Actions::default(),
            message: Vec::new(),
            kept: Kept::new(),
            replied: 0,
            spin: Spin::after_first_wait(),
        })
    }

    /// The door as clients have it.
    pub(super) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.setup.outside)
    }

    pub(super) fn late(&self) -> Arc<Late> {
        Arc::clone(&self.late)
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Kills the workers of all pools. The server is about to end.
    pub(super) fn kill_workers(&self) {
        self.pools.kill();
    }

    /// Takes the result of a function.
    pub(super) fn applied(&mut self, job: JobId, outcome: Outcome) {
        self.running -= 1;
        let result = match &outcome {
            Ok(Ran::Returned(output)) => {
                Ok(Returned { bytes: &output.bytes, names: &output.named.ids })
            }
            Ok(Ran::Made(value)) => {
                self.values.insert(ValueId(job), Arc::clone(value));
                Ok(Returned::default())
            }
            Err(body) => Err(&body[..]),
        };
        self.core.ran(job, result, &mut self.actions);
        // What the result names is counted now, so what has kept it until here is not needed.
        drop(outcome);
        kill_point!(ManagerFunctionApplied);
        self.perform();
        self.write();
    }

    /// Serves all clients once, and waits if there is nothing to do.
    pub(super) fn turn(&mut self) -> io::Result<Turn> {
        let busy = self.serve_hot();
        self.cut_off();
        if self.over {
            return Ok(Turn::Over);
        }
        self.turns += 1;
        let idle = !busy && (self.functions.is_empty() || self.running >= FUNCTIONS_MAX);
        if idle {
            self.write();
        }
        let came = idle && self.spins();
        if came {
            self.turns += TURNS_OF_A_SPIN;
        }
        let due = self.turns >= TURNS_BETWEEN_LOOKS
            || self.requests >= REQUESTS_BETWEEN_LOOKS
            || self.running > 0;
        // What has come while the thread spun is served without a system call before it, which
        // would take a third of the time of a call.
        if due || idle && !came {
            (self.turns, self.requests) = (0, 0);
            if self.look_or_wait(idle && !came)? {
                return Ok(Turn::Over);
            }
        }
        self.write();
        // One function between two looks at the clients: many that are slow hold up nobody.
        match self.functions.pop_front_if(|_| self.running < FUNCTIONS_MAX) {
            None => Ok(Turn::Served),
            Some(job) => {
                self.running += 1;
                let value = match &job.work {
                    Work::Call { value, .. } => self.values.get(value).cloned(),
                    Work::Drop { value } => self.values.remove(value),
                    Work::Update { .. } | Work::Construct { .. } | Work::Pool { .. } => None,
                };
                Ok(Turn::Function(Assignment { job, value }))
            }
        }
    }

    /// Looks at the descriptors, and waits if there is nothing to do. Returns whether the owner is
    /// gone.
    fn look_or_wait(&mut self, idle: bool) -> io::Result<bool> {
        self.write();
        let waits = idle && self.announce_sleep();
        let over = self.look(waits)?;
        self.cut_off();
        Ok(over)
    }

    /// Looks at the lanes for a moment, if that has paid off so far. Returns whether there is
    /// something.
    fn spins(&mut self) -> bool {
        let Server { spin, guests, hot, .. } = self;
        if hot.iter().all(|id| guests.get(id).is_none_or(Guest::is_far)) {
            // Nothing would be there before the poll says so.
            return false;
        }
        // With one client, its processor tells whether it waits for this one.
        let cpu = match **hot {
            [] => return false,
            [one] => guests.get(&one).map_or(u32::MAX, |guest| guest.receiver.sender_cpu()),
            _ => u32::MAX,
        };
        let any = |is: fn(&Guest) -> bool| hot.iter().any(|id| guests.get(id).is_some_and(is));
        match any(Guest::is_in_message) {
            true => spin.wait_in_message(cpu, || any(Guest::is_ready)),
            false => spin.wait(cpu, || any(Guest::is_ready)),
        }
    }

    /// Announces the sleep in all lanes that the loop looks at. Returns whether it may sleep. The
    /// clients that are quiet now are not looked at any more.
    fn announce_sleep(&mut self) -> bool {
        let Server { guests, hot, .. } = self;
        let mut quiet = true;
        hot.retain(|id| {
            let Some(guest) = guests.get_mut(id) else { return false };
            // If there is a message, its announcement is taken back.
            guest.hot = !guest.receiver.announce_sleep();
            quiet &= !guest.hot;
            guest.hot
        });
        quiet
    }

    /// Serves all clients whose lanes are looked at. Returns whether there was anything.
    fn serve_hot(&mut self) -> bool {
        let mut busy = false;
        let mut at = 0;
        while let Some(&client) = self.hot.get(at) {
            busy |= self.serve_one(client);
            at += 1;
        }
        busy
    }

    /// Serves one client's requests, as far as its turn goes.
    fn serve_one(&mut self, client: ClientId) -> bool {
        let mut served = 0;
        if let Some(guest) = self.guests.get_mut(&client)
            && !guest.sender.is_flushed()
            && guest.receiver.room_was_made()
        {
            served = 1;
            self.send_rest(client);
        }
        while served < TURN {
            let Some(guest) = self.guests.get_mut(&client) else { break };
            let mut is_refused = false;
            match guest.receiver.receive(&mut self.message) {
                Ok(true) => {}
                Ok(false) => break,
                Err(LinkError::Lane(LaneError::NoMemory)) => is_refused = true,
                // What a far client had asked for before its end is done.
                Err(LinkError::Closed) => {
                    self.condemned.push((client, String::new()));
                    break;
                }
                Err(error) => {
                    self.condemned.push((client, error.to_string()));
                    break;
                }
            }
            served += 1;
            let (header, body) = self.message.split_at(HEADER_BYTES);
            kill_point!(ManagerRequestTaken);
            let Some(request) = header.first_chunk().and_then(Request::from_bytes) else {
                self.condemned.push((client, "it asks for something unknown".to_owned()));
                break;
            };
            if is_refused {
                // What has come of it is in the way of others.
                self.message = Vec::new();
                self.refuse_for_memory(client, request);
                continue;
            }
            let len = body.len();
            let copied = InSegment::is_in(header)
                .then(|| guest.copy_tail(body, self.setup.message_bytes_max));
            let (fields, tail) = match copied.transpose() {
                Ok(copied) => copied.map_or((body, None), |(fields, tail)| (fields, Some(tail))),
                Err(NotCopied::Impossible) => {
                    let why = "it names a segment that it cannot have filled";
                    self.condemned.push((client, why.to_owned()));
                    break;
                }
                Err(NotCopied::NoMemory) => {
                    self.refuse_for_memory(client, request);
                    continue;
                }
            };
            if tail.is_none() && !has_room_for(len) {
                self.refuse_for_memory(client, request);
                continue;
            }
            let body = RequestBody { fields, tail: tail.as_ref() };
            served += body.len() / BYTES_OF_A_REQUEST;
            self.kept.note_request(body);
            match request.operation {
                Operation::Lease => self.lease(client, request),
                Operation::Segments if request.call == CallId::NONE => guest.confirm_segments(),
                Operation::Segments => self.grant_segments(client, request),
                Operation::CountObjects => self.count_objects(client, request),
                Operation::Received if guest.is_far() => {
                    let count = Fields::new(fields).number();
                    if !count.is_ok_and(|count| guest.has_received(count)) {
                        let why = "it has received what it was not sent".to_owned();
                        self.condemned.push((client, why));
                        break;
                    }
                    guest.look_at_unread(client, &mut self.core);
                }
                _ => self.core.request(client, request, body, &mut self.actions),
            }
            kill_point!(ManagerRequestDone);
            if self.message.capacity() > KEPT_BYTES_MAX {
                spare::give(std::mem::take(&mut self.message));
            }
            self.perform();
            served += std::mem::take(&mut self.replied) / BYTES_OF_A_REQUEST;
        }
        self.requests += served;
        if let Some(guest) = self.guests.get_mut(&client)
            && guest.receiver.must_wake()
        {
            guest.send_look();
        }
        self.write();
        served > 0
    }

    /// Writes the replies to far clients. Has to be done before the loop waits, or runs a function.
    #[cfg(feature = "tls")]
    fn write(&mut self) {
        while let Some(client) = self.unwritten.pop() {
            let Some(guest) = self.guests.get_mut(&client) else { continue };
            guest.touched = false;
            guest.wake();
            self.poll_for_room(client);
        }
    }

    #[cfg(not(feature = "tls"))]
    fn write(&mut self) {}

    /// Lets the poll report room in the socket of a far client, as long as there is something that
    /// waits for it.
    #[cfg(feature = "tls")]
    fn poll_for_room(&mut self, client: ClientId) {
        let Some(guest) = self.guests.get_mut(&client) else { return };
        let wants = guest.sender.wants_write();
        if std::mem::replace(&mut guest.polls_for_room, wants) == wants {
            return;
        }
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, wants);
        let data = Source::Client(client).to_data();
        if let Some(socket) = guest.socket.get()
            && let Err(error) = epoll::modify(&self.poll, socket, data, flags)
        {
            self.condemned.push((client, error.to_string()));
        }
    }

    /// Sends the replies that there are, and begins the jobs. What is ordered of pools is done at
    /// once, and leads to further replies.
    fn perform(&mut self) {
        while !self.actions.is_empty() {
            let orders = self.perform_once();
            for (id, executor, order) in orders {
                let answers = self.pools.obey(id, executor, order);
                self.answer(answers);
            }
        }
    }

    /// Takes what has become of orders to pools.
    fn answer(&mut self, answers: Vec<(JobId, pools::Answer)>) {
        for (job, answer) in answers {
            let outcome = answer.as_deref().map(Returned::plain).map_err(|body| &body[..]);
            self.core.ran(job, outcome, &mut self.actions);
            kill_point!(ManagerTaskAnswered);
        }
    }

    /// Sends the replies that there are, and puts the functions in line. Returns what is ordered of
    /// pools.
    fn perform_once(&mut self) -> Vec<(JobId, ValueId, PoolOrder)> {
        let Server {
            core, actions, guests, condemned, setup, functions, kept, spin, replied, ..
        } = self;
        #[cfg(feature = "tls")]
        let unwritten = &mut self.unwritten;
        let mut touched = [None; 4];
        let mut others = Vec::new();
        for (client, reply, body, takes) in actions.replies() {
            let Some(guest) = guests.get_mut(&client) else { continue };
            // One reply of any length is sent, to a client that takes its replies.
            let why = if guest.condemned {
                None
            } else if guest.untaken_bytes() > setup.unread_bytes_max {
                Some("it does not take its replies".to_owned())
            } else {
                kept.note_reply(body);
                *replied += body.len();
                let sent = guest.send(reply, body, setup.unread_bytes_max, takes);
                sent.err().map(|error| error.to_string())
            };
            if let Some(why) = why {
                guest.condemned = true;
                condemned.push((client, why));
            }
            if takes {
                let end = if guest.condemned { u64::MAX } else { guest.end() };
                guest.unread.sent(end, body.len());
                if guest.unread.is_due() {
                    guest.look_at_unread(client, core);
                    if guest.unread.is_large() {
                        guest.sender.ask_for_news();
                    }
                }
            }
            if guest.condemned {
                continue;
            }
            kill_point!(ManagerReplySent);
            if !std::mem::replace(&mut guest.touched, true) {
                #[cfg(feature = "tls")]
                if guest.is_far() {
                    unwritten.push(client);
                    continue;
                }
                match touched.iter_mut().find(|place| place.is_none()) {
                    Some(place) => *place = Some(client),
                    None => others.push(client),
                }
            }
        }
        for client in touched.into_iter().flatten().chain(others) {
            let Some(guest) = guests.get_mut(&client) else { continue };
            guest.touched = false;
            if guest.wake() {
                kill_point!(ManagerClientWoken);
            } else {
                // Its next request may come at once.
                spin.suggest();
            }
        }
        let mut orders = Vec::new();
        for job in actions.take_jobs() {
            match job.work {
                Work::Pool { executor, order } => orders.push((job.id, executor, order)),
                _ => functions.push_back(job),
            }
        }
        actions.clear();
        orders
    }

    /// Answers how many objects there are, when all deaths are counted that came before the
    /// request: a process that waits for the end of another one, and asks then, is told what is
    /// left.
    fn count_objects(&mut self, client: ClientId, request: Request) {
        // The last requests of a client that is gone are done while the loop looks. Another look
        // within that one would find the same client, and its next request of this kind.
        if !self.looks {
            match self.look(false) {
                Ok(over) => self.over |= over,
                Err(error) => {
                    tracing::error!(%error, "a manager cannot look at its descriptors");
                    self.over = true;
                }
            }
            self.cut_off();
        }
        self.core.request(client, request, [][..].into(), &mut self.actions);
    }

    /// Answers a client that has sent the pipe which is to keep an object alive.
    fn lease(&mut self, client: ClientId, request: Request) {
        // The pipe was sent before the request, so it is there, behind whatever came before.
        self.drain_socket(client, LEASE_TURN);
        let Some(guest) = self.guests.get_mut(&client) else { return };
        if guest.is_far() {
            // No pipe comes over TCP.
            let status = Status::Refused;
            let reply = Reply { call: request.call, status, number: 0, len: 0 };
            return self.actions.reply(client, reply, &[]);
        }
        let at = guest.leases.iter().position(|(object, _)| *object == request.object);
        let pipe = at.and_then(|at| guest.leases.remove(at)).map(|(_, pipe)| pipe);
        self.leases_waiting -= usize::from(pipe.is_some());
        kill_point!(ManagerPipeTaken);
        let mut text = String::new();
        let status = match pipe {
            None => {
                text = match self.has_room_for_lease(client) {
                    // It was lost on the way.
                    true => {
                        "the server has no descriptor left to watch one more handle that was sent"
                            .to_owned()
                    }
                    false => self.why_no_lease(client),
                };
                Status::Limit
            }
            Some(pipe) => match self.core.lease(client, request.object) {
                None => Status::NoObject,
                Some(lease) => {
                    kill_point!(ManagerLeaseCounted);
                    let data = Source::Lease(lease).to_data();
                    match epoll::add(&self.poll, &pipe, data, epoll::EventFlags::empty()) {
                        Ok(()) => {
                            self.leases.insert(lease, (client, pipe));
                            if let Some(guest) = self.guests.get_mut(&client) {
                                guest.leases_held += 1;
                            }
                            kill_point!(ManagerLeaseWatched);
                            Status::Done
                        }
                        Err(error) => {
                            self.core.lease_ended(lease, &mut self.actions);
                            text = format!("the server cannot watch one more handle: {error}");
                            Status::Limit
                        }
                    }
                }
            },
        };
        let mut body = Vec::new();
        super::super::protocol::put_bytes(&mut body, text.as_bytes());
        let len = body.len() as u64;
        let reply = Reply { call: request.call, status, number: 0, len };
        self.actions.reply(client, reply, &body);
    }

    /// Answers a request that is not done, because there is no memory for its value.
    fn refuse_for_memory(&mut self, client: ClientId, request: Request) {
        let mut body = Vec::new();
        put_bytes(&mut body, b"there is no memory in the server for a value of this size");
        let (status, len) = (Status::Limit, body.len() as u64);
        let reply = Reply { call: request.call, status, number: 0, len };
        self.actions.reply(client, reply, &body);
        self.perform();
    }

    /// Answers a client that wants segments for large values. Without them, it sends the values
    /// through its lane.
    fn grant_segments(&mut self, client: ClientId, request: Request) {
        // They take a descriptor, as a handle does that was sent to another process.
        let has_room = self.has_room_for_lease(client);
        let granted = has_room && self.guests.get_mut(&client).is_some_and(Guest::grant_segments);
        self.arenas += usize::from(granted);
        let status = if granted { Status::Done } else { Status::Refused };
        let reply = Reply { call: request.call, status, number: 0, len: 0 };
        self.actions.reply(client, reply, &[]);
    }

    /// Whether a client may send one more handle to another process. It may have as many as are
    /// left for others: one client gets half of them, and two get a third each. So those that come
    /// later find some as well, whatever the others do.
    fn has_room_for_lease(&self, client: ClientId) -> bool {
        let own =
            self.guests.get(&client).map_or(0, |guest| guest.leases_held + guest.leases.len());
        let used = self.leases.len() + self.leases_waiting + self.arenas;
        own < self.setup.leases_max.saturating_sub(used)
    }

    fn why_no_lease(&self, client: ClientId) -> String {
        let own = self.guests.get(&client).map_or(0, |guest| guest.leases_held);
        format!(
            "{own} handles that this process has sent are in use, and {} of all processes; the \
             server has descriptors for {} (`ulimit -n`), of which one process gets no more than it \
             leaves for others. Many handles travel as items of one managed list",
            self.leases.len(),
            self.setup.leases_max
        )
    }

    /// Looks at all descriptors, and waits for one of them if asked. Returns whether the owner is
    /// gone.
    fn look(&mut self, wait: bool) -> io::Result<bool> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 64];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gives_back = wait && self.kept.is_any();
        let later = Timespec::try_from(KEPT_FOR).unwrap_or(now);
        let timeout = match wait {
            true => gives_back.then_some(&later),
            false => Some(&now),
        };
        if wait {
            kill_point!(ManagerSleeps);
        }
        let count = match epoll::wait(&self.poll, &mut events[..], timeout) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        if wait {
            kill_point!(ManagerAwake);
        }
        match gives_back && count == 0 {
            true => self.kept.give_back(self.guests.values()),
            false => self.kept.look(self.guests.values()),
        }
        self.looks = true;
        let over = self.see(&events[..count]);
        self.looks = false;
        over
    }

    /// Deals with what the poll has reported. Returns whether the owner is gone.
    fn see(&mut self, events: &[epoll::Event]) -> io::Result<bool> {
        for event in events {
            let epoll::Event { flags, data } = *event;
            match Source::from_data(data) {
                Source::Owner => {
                    if !self.hear_owner() {
                        kill_point!(ManagerOwnerGone);
                        // Before clients notice the end, so that they find a new server there.
                        self.gate.close();
                        return Ok(true);
                    }
                }
                Source::Door => self.open_door(),
                Source::Late => {
                    for (job, outcome) in self.late.take() {
                        self.applied(job, outcome);
                    }
                    for news in self.late.news() {
                        let answers = self.pools.hear(news);
                        self.answer(answers);
                    }
                    for object in self.late.dropped_handles() {
                        self.core.let_go(object, &mut self.actions);
                    }
                    self.perform();
                    #[cfg(feature = "tls")]
                    for end in self.late.newcomers() {
                        self.let_in_far(end);
                    }
                    if let Some(why) = self.late.failure() {
                        return Err(io::Error::other(why));
                    }
                }
                Source::Lease(lease) => {
                    if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                        if let Some((client, pipe)) = self.leases.remove(&lease) {
                            let _ = epoll::delete(&self.poll, &pipe);
                            if let Some(guest) = self.guests.get_mut(&client) {
                                guest.leases_held -= 1;
                            }
                        }
                        kill_point!(ManagerLeaseEnded);
                        self.core.lease_ended(lease, &mut self.actions);
                        self.perform();
                    }
                }
                Source::Client(client) => {
                    let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                    self.hear(client, gone);
                }
            }
        }
        Ok(false)
    }

    /// Does what the owner asks for. Returns whether the server goes on.
    fn hear_owner(&mut self) -> bool {
        let mut bytes = [0; ORDER_BYTES_MAX];
        let Some(owner) = self.setup.owner.get() else { return false };
        let (len, mut descriptors) = match socket::recv_short_now(owner, &mut bytes) {
            Ok(heard) => heard,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        let Some(order) = ListenOrder::from_bytes(&bytes[..len]) else { return false };
        let file = order.file.as_ref().map(|(device, inode, path)| SocketFile {
            path: path.clone(),
            inode: (*device, *inode),
        });
        let done = match descriptors.pop() {
            Some(socket) => self.gate.listen(socket, file),
            None => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        };
        kill_point!(GateListens);
        // The owner waits for it, so there is room.
        let _ = socket::send_now(owner, &order.answer(&done), &[]);
        true
    }

    /// Reads what came over a client's socket, but no more messages than `count`. Returns whether
    /// the client is still there. The socket of a far client is read by its receiver.
    fn drain_socket(&mut self, client: ClientId, count: usize) -> bool {
        let mut bytes = [0; 16];
        for _ in 0..count {
            let Some(guest) = self.guests.get(&client) else { return false };
            let Some(socket) = guest.socket.near() else { return true };
            match socket::recv_short_now(socket, &mut bytes) {
                Ok((0, _)) => return false,
                Ok((9, mut descriptors)) if bytes[0] == LEASE => {
                    let object = u64::from_le_bytes(bytes[1..9].try_into().expect("8 bytes"));
                    if let Some(pipe) = descriptors.pop() {
                        self.keep_pipe(client, ObjectId(object), pipe);
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        // The poll will report the rest.
        true
    }

    /// Keeps a pipe until its client asks for it, in place of an older one if there is no room.
    fn keep_pipe(&mut self, client: ClientId, object: ObjectId, pipe: OwnedFd) {
        let has_room = self.has_room_for_lease(client);
        let Some(guest) = self.guests.get_mut(&client) else { return };
        if !has_room || guest.leases.len() >= LEASES_WAITING_MAX {
            if guest.leases.pop_front().is_none() {
                return;
            }
            self.leases_waiting -= 1;
        }
        guest.leases.push_back((object, pipe));
        self.leases_waiting += 1;
    }

    /// Sends what a client had no room for.
    fn send_rest(&mut self, client: ClientId) {
        let Some(guest) = self.guests.get_mut(&client) else { return };
        if let Err(error) = guest.sender.flush() {
            self.condemned.push((client, error.to_string()));
        } else {
            guest.wake();
            #[cfg(feature = "tls")]
            if guest.is_far() {
                self.poll_for_room(client);
            }
        }
    }

    /// A client has sent a byte, or is gone.
    fn hear(&mut self, client: ClientId, gone: bool) {
        // A client that lives has sent one byte, as a rule, if its lane was not looked at: to look
        // for another would cost a system call for each. If there is another, the poll will report
        // it. But while its lane is looked at, bytes come for which nobody waits.
        let piled = gone || self.guests.get(&client).is_some_and(|guest| guest.hot);
        let lives = self.drain_socket(client, if piled { SOCKET_TURN } else { 1 });
        let Some(guest) = self.guests.get_mut(&client) else { return };
        kill_point!(ManagerByteHeard);
        guest.receiver.awake();
        guest.look_at_unread(client, &mut self.core);
        if !guest.sender.is_flushed() {
            self.send_rest(client);
        }
        let Some(guest) = self.guests.get_mut(&client) else { return };
        if !std::mem::replace(&mut guest.hot, true) {
            self.hot.push(client);
        }
        if !lives {
            kill_point!(ManagerHangUpHeard);
            // What it had asked for before its end is still done.
            for _ in 0..LAST_TURNS {
                if !self.serve_one(client) {
                    break;
                }
            }
            self.condemned.push((client, String::new()));
        }
    }

    /// Lets in a client that is at the door.
    fn open_door(&mut self) {
        let Some(door) = self.setup.door.get() else { return };
        let mut knock = None;
        // From the moment at which it arrives, no process that is forked keeps the socket.
        let socket = NotInherited::open(|| {
            let (bytes, mut descriptors) = socket::recv_whole_now(door)?;
            let memory = descriptors.pop();
            let socket = descriptors.pop();
            knock = Some((bytes, memory));
            // Without one, it is no client, and nobody is told.
            socket.ok_or_else(|| io::ErrorKind::InvalidData.into())
        });
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                // Its descriptors find no place here. The client notices that they are closed.
                let _ = socket::remove_now(door);
                tracing::error!("a manager has too many open files for another client");
                return;
            }
            Err(_) => return,
        };
        kill_point!(ManagerKnockRead);
        let Some((bytes, Some(memory))) = knock else { return };
        if let Err((socket, why)) = self.let_in(&bytes, memory, socket)
            && let Some(socket) = socket.get()
        {
            let refusal = [&[REFUSED], why.as_bytes()].concat();
            let _ = socket::send_now(socket, &refusal, &[]);
        }
    }

    /// Lets in a client. Gives its socket back if it may not come in, and says why.
    fn let_in(
        &mut self,
        knock: &[u8],
        memory: OwnedFd,
        socket: NotInherited,
    ) -> Result<(), (NotInherited, String)> {
        let Some(descriptor) = socket.get() else {
            return Err((socket, "its server was forked".to_owned()));
        };
        let checked = check_knock(knock).map_err(str::to_owned).and_then(|()| {
            if !socket::is_one(descriptor) {
                return Err("it has sent another kind of socket".to_owned());
            }
            let memory = lane::open(memory).map_err(|error| format!("its memory: {error}"))?;
            let client = self.core.connect().map_err(|limit| limit.to_string())?;
            Ok((memory, client))
        });
        let (memory, client) = match checked {
            Ok(checked) => checked,
            Err(why) => return Err((socket, why)),
        };
        kill_point!(ManagerClientCounted);
        let max = self.setup.message_bytes_max;
        let (sender, receiver) = lane::ends(&memory, LaneSide::Server, max);
        let mut welcome = [0; WELCOME_BYTES];
        welcome[0] = WELCOME;
        welcome[1..].copy_from_slice(&max.to_le_bytes());
        let data = Source::Client(client).to_data();
        let entered = epoll::add(&self.poll, descriptor, data, epoll::EventFlags::IN)
            .map_err(io::Error::from)
            .and_then(|()| socket::send_now(descriptor, &welcome, &[]));
        if let Err(error) = entered {
            self.core.disconnect(client, 0, &mut self.actions);
            return Err((socket, error.to_string()));
        }
        kill_point!(ManagerWelcomeSent);
        let (sender, receiver) = (LinkSender::Near(sender), LinkReceiver::Near(receiver));
        let guest = Guest::new(GuestSocket::Near(socket), sender, receiver);
        self.guests.insert(client, guest);
        self.hot.push(client);
        kill_point!(ManagerClientEntered);
        Ok(())
    }

    /// Lets in a client that has come through the gate, over TCP.
    #[cfg(feature = "tls")]
    fn let_in_far(&mut self, end: FarEnd) {
        let client = match self.core.connect_far() {
            Ok(client) => client,
            Err(limit) => return refuse(end, &limit.to_string()),
        };
        kill_point!(ManagerClientCounted);
        let max = self.setup.message_bytes_max;
        let socket = GuestSocket::Far(Arc::clone(end.socket()));
        let (mut sender, receiver) = end.into_ends(max);
        let (header, body) = stream::welcome(self.setup.outside.id, max);
        let data = Source::Client(client).to_data();
        let entered = match (sender.send(&header, body), socket.get()) {
            (Ok(()), Some(socket)) => epoll::add(&self.poll, socket, data, epoll::EventFlags::IN)
                .map_err(|error| error.to_string()),
            (Err(error), _) => Err(error.to_string()),
            (_, None) => Err(forked().to_string()),
        };
        if let Err(error) = entered {
            tracing::error!(%error, "a manager cannot let in a client");
            return self.core.disconnect(client, 0, &mut self.actions);
        }
        self.guests.insert(client, Guest::new(socket, sender, receiver));
        self.hot.push(client);
        // The welcome.
        self.unwritten.push(client);
        self.write();
        kill_point!(ManagerClientEntered);
    }

    /// Ends the connections of clients that are gone, or that break the protocol.
    fn cut_off(&mut self) {
        while let Some((client, why)) = self.condemned.pop() {
            let Some(guest) = self.guests.remove(&client) else { continue };
            self.leases_waiting -= guest.leases.len();
            self.arenas -= usize::from(guest.segments.is_some());
            self.kept.note_large();
            // A client that is still alive might read on, and have what others get now.
            guest.sender.revoke();
            let taken = guest.taken();
            let unread = guest.unread.left(taken);
            // Closing it is not enough: a child that a user's function has forked may have a copy.
            if let Some(socket) = guest.socket.get() {
                let _ = epoll::delete(&self.poll, socket);
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
            }
            kill_point!(ManagerClientCutOff);
            if !why.is_empty() {
                tracing::warn!(client = client.0, %why, "a manager has cut off a client");
            }
            self.hot.retain(|hot| *hot != client);
            self.core.disconnect(client, unread, &mut self.actions);
            kill_point!(ManagerClientForgotten);
            self.forget_functions_of(client);
            self.perform();
        }
    }

    /// Ends the functions of a client that is gone and that have not begun. Otherwise clients that
    /// come, ask and go could fill the memory while functions hang: what they asked for does not
    /// count for anybody any more.
    fn forget_functions_of(&mut self, client: ClientId) {
        let Server { functions, core, actions, .. } = self;
        if functions.is_empty() {
            return;
        }
        let mut forgotten = Vec::new();
        functions.retain(|job| {
            let keeps = job.client != Some(client);
            if !keeps {
                forgotten.push((job.id, job.work.names().to_vec()));
            }
            keeps
        });
        for (job, names) in forgotten {
            core.ran(job, Err(&[]), actions);
            names.into_iter().for_each(|name| core.let_go(name, actions));
        }
    }
}

/// The error in a fork of this process, which has no part in the server.
fn forked() -> io::Error {
    io::Error::other("this process was forked")
}
