//! The world: hosts, one clock, one heap of events. Everything that happens follows from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use protocol::advert::{Advert, Device as Hardware, ModelOffer};
use protocol::agreeing::{AgreedRecord, Agreeing};
use protocol::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::job::{Failure, Finish, JobAccount, JobEvent, JobSpec};
use protocol::keys::Scheme;
use protocol::ledger::issuer::Issuer;
use protocol::ledger::records::{AccountOp, OpBody};
use protocol::message::{Checked, Message, Wire};
use protocol::node::{
    Config, Effect, EngineEvent, EngineFault, Input, Node, Offence, OrderError, OwnerCommand,
};
use protocol::price::Usage;
use protocol::prng::Prng;
use protocol::record::Record;
use protocol::signed::{Signed, Verified};
use protocol::time::Time;

use crate::checks;
use crate::devices::{Device, Speed, Step, digest_of};
use crate::liar;
use crate::network::{Conditions, Network};

/// How long a shell waits for a stream that is silent before it calls it lost.
pub const STREAM_SILENCE_MS: u64 = 1_500;

/// How long a message that never arrives is waited for.
const SEND_TIMEOUT_MS: u64 = 1_000;

/// Longest wait for a group commit.
const COMMIT_MS: u64 = 100;

/// How often a shell sees to its connection with the issuer.
const KEEP_MS: u64 = 1_000;

/// One machine.
#[derive(Debug)]
pub struct Host {
    /// Name of its node.
    pub id: NodeId,
    /// What its node is told at every start.
    pub config: Config,
    /// The node, while the machine runs.
    pub node: Option<Node>,
    /// Its engine.
    pub device: Device,
    /// What the engine says when it is ready.
    pub offer: Option<ModelOffer>,
    /// Ticket with which it joins.
    pub secret: Option<[u8; 16]>,
    /// Said by nobody honest: what others think of it does not count.
    pub adversary: bool,
    /// An issuer that says what suits whoever asks, whatever its books say.
    pub lies: bool,
    /// How many milliseconds its clock is ahead; may change while it runs.
    pub clock_ms: i64,
    /// Kinds of messages that it never sends.
    pub silent: BTreeSet<&'static str>,
    /// Offences it was charged with, by whom.
    pub penalties: Vec<(usize, Offence)>,
    /// What others gave back after it lost its disk: who, which channel, and the base paid on it.
    pub restored: Vec<(NodeId, ChannelId, Option<u64>)>,
    /// How its last recovery ended: channels given back, and channels missing.
    pub recovered: Option<(usize, usize)>,
    /// Its journal is gone, and it must ask for what was in it.
    lost: bool,
    joined: bool,
    /// Lines with the time at which they are durable.
    journal: Vec<(Time, Vec<u8>)>,
    /// Its votes for checkpoints, with the time at which they are durable.
    ballots: Vec<(Time, RecordId)>,
    incarnation: u32,
    armed: Option<Time>,
    /// When effects that wait for the disk are applied; later batches of the shell queue behind them.
    held_until: Time,
    /// Batches of effects that are not applied yet.
    waiting: usize,
    up: BTreeMap<usize, u64>,
    subscribed: BTreeSet<ModelId>,
    attached: BTreeMap<JobId, Attached>,
    /// Inputs in the running second of virtual time.
    load: (u64, u64),
}

/// The requester's end of a stream.
#[derive(Debug, Clone, Copy)]
struct Attached {
    provider: usize,
    tokens: u32,
}

/// The provider's end of a stream.
#[derive(Debug, Clone, Copy)]
struct Stream {
    requester: usize,
    link: Option<u64>,
    /// Tokens of one stream never overtake each other.
    last: Time,
}

/// A job as the world saw it.
#[derive(Debug, Clone)]
pub struct Tracked {
    /// Who wanted it.
    pub host: usize,
    /// What was wanted.
    pub spec: JobSpec,
    /// When.
    pub submitted: Time,
    /// Provider chosen last.
    pub provider: Option<NodeId>,
    /// Every provider chosen.
    pub chosen: Vec<NodeId>,
    /// Tokens that arrived.
    pub tokens: u32,
    /// Prompt tokens counted by the provider.
    pub tokens_in: u32,
    /// Its owner gave it up.
    pub cancelled: bool,
    /// How it ended, and when.
    pub outcome: Option<(Time, Outcome)>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done, with its account.
    Done(JobAccount),
    /// Failed.
    Failed(Failure, Option<JobAccount>),
    /// Whoever wanted it crashed.
    OwnerGone,
}

/// Work that one host delivered to another, counted by nobody's books but ours.
#[derive(Debug, Clone, Copy, Default)]
pub struct Delivered {
    /// Work that arrived.
    pub usage: Usage,
    /// Jobs in which the two may have counted differently.
    pub interrupted: u64,
}

/// Something that will happen to a host.
#[derive(Debug)]
enum What {
    Input(u32, Box<Input>),
    Deliver {
        from: usize,
        link: u64,
        bytes: Vec<u8>,
    },
    Gossip(Box<Signed<Advert>>),
    /// A message about the books, by gossip.
    Spread(Vec<u8>),
    Wake,
    Apply(u32, Vec<Effect>),
    Engine(u32, JobId),
    Frame {
        job: JobId,
        provider: usize,
        link: Option<u64>,
        tokens: u32,
        end: bool,
    },
    /// The partner's end of a stream is gone.
    Broken {
        job: JobId,
        partner: usize,
    },
    Dialled(usize),
    Down {
        peer: usize,
        link: u64,
    },
    Keep,
    Fault(Fault),
    Submit(JobId, Box<JobSpec>),
    Cancel(JobId),
    Owner(OwnerCommand),
}

/// A fault that befalls a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies without a word.
    Crash,
    /// The same, and its journal is gone.
    LoseDisk,
    /// The process dies, and its journal is an old copy from now on: its first so many lines.
    OldCopy(usize),
    /// It starts again with what its journal holds.
    Restart,
    /// The same, and it asks the others for what its journal lacks.
    Recover,
    /// The connection to another host breaks.
    Cut(usize),
    /// The engine breaks, with all its jobs, and is ready again at once.
    Engine,
}

#[derive(Debug)]
struct Event {
    at: Time,
    sequence: u64,
    host: usize,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// The one time, by which hosts set their clocks.
    pub now: Time,
    /// The machines.
    pub hosts: Vec<Host>,
    /// What connects them.
    pub network: Network,
    /// Every job that was ever wanted.
    pub jobs: BTreeMap<JobId, Tracked>,
    /// Work delivered, by requester and provider.
    pub delivered: BTreeMap<(usize, usize), Delivered>,
    /// What became of orders, by name; a host that crashes forgets who asked.
    pub orders: BTreeMap<Digest, Result<RecordId, OrderError>>,
    /// Inputs handled.
    pub inputs: u64,
    /// Messages sent, by name, and their bytes.
    pub sent: BTreeMap<&'static str, (u64, u64)>,
    /// Channels that payees gave to their mirrors.
    pub copies: u64,
    /// Invariants found broken while running.
    pub findings: Vec<String>,
    /// Prints what happens to this host, for whoever looks for a fault.
    pub watched: Option<usize>,
    domain: DomainId,
    sequence: u64,
    queue: BinaryHeap<Reverse<Event>>,
    index: BTreeMap<NodeId, usize>,
    directory: BTreeMap<ModelId, BTreeSet<usize>>,
    streams: BTreeMap<(JobId, usize), Stream>,
    trace: blake3::Hasher,
    disks: Prng,
    seeds: Prng,
}

impl World {
    /// Returns an empty world at `start` for the network `domain`.
    #[must_use]
    pub fn new(start: Time, domain: DomainId, conditions: Conditions, prng: &mut Prng) -> Self {
        Self {
            now: start,
            hosts: Vec::new(),
            network: Network::new(conditions, prng.child()),
            jobs: BTreeMap::new(),
            delivered: BTreeMap::new(),
            orders: BTreeMap::new(),
            inputs: 0,
            sent: BTreeMap::new(),
            copies: 0,
            findings: Vec::new(),
            watched: None,
            domain,
            sequence: 0,
            queue: BinaryHeap::new(),
            index: BTreeMap::new(),
            directory: BTreeMap::new(),
            streams: BTreeMap::new(),
            trace: blake3::Hasher::new(),
            disks: prng.child(),
            seeds: prng.child(),
        }
    }

    /// Adds a machine and starts it.
    pub fn add(
        &mut self,
        config: Config,
        speed: Speed,
        offer: Option<ModelOffer>,
        secret: Option<[u8; 16]>,
    ) -> usize {
        let host = self.hosts.len();
        let id = NodeId::from(config.node.public());
        self.index.insert(id, host);
        self.hosts.push(Host {
            id,
            config,
            node: None,
            device: Device::new(speed),
            offer,
            secret,
            adversary: false,
            lies: false,
            clock_ms: 0,
            silent: BTreeSet::new(),
            penalties: Vec::new(),
            restored: Vec::new(),
            recovered: None,
            lost: false,
            joined: false,
            journal: Vec::new(),
            ballots: Vec::new(),
            incarnation: 0,
            armed: None,
            held_until: self.now,
            waiting: 0,
            up: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            attached: BTreeMap::new(),
            load: (0, 0),
        });
        self.start(host);
        self.schedule(host, 0, What::Keep);
        host
    }

    /// Lets a fault befall `host` in `ms`.
    pub fn fault_in(&mut self, ms: u64, host: usize, fault: Fault) {
        self.schedule(host, ms, What::Fault(fault));
    }

    /// Submits a job at `host` in `ms`.
    pub fn submit_in(&mut self, ms: u64, host: usize, job: JobId, spec: JobSpec) {
        self.schedule(host, ms, What::Submit(job, Box::new(spec)));
    }

    /// Cancels a job of `host` in `ms`.
    pub fn cancel_in(&mut self, ms: u64, host: usize, job: JobId) {
        self.schedule(host, ms, What::Cancel(job));
    }

    /// Has the owner of `host` say something in `ms`.
    pub fn command_in(&mut self, ms: u64, host: usize, command: OwnerCommand) {
        self.schedule(host, ms, What::Owner(command));
    }

    /// Has `from` send arbitrary bytes to `to` in `ms`, if they are connected then.
    pub fn bytes_in(&mut self, ms: u64, from: usize, to: usize, bytes: Vec<u8>) {
        if let Some(link) = self.network.link(from, to) {
            self.schedule(to, ms, What::Deliver { from, link, bytes });
        }
    }

    /// Connects two hosts soon.
    pub fn dial(&mut self, from: usize, to: usize) {
        let delay = 2 * self.network.delay();
        self.schedule(from, delay, What::Dialled(to));
    }

    /// Runs until `until`.
    pub fn run_until(&mut self, until: Time) {
        while self.queue.peek().is_some_and(|Reverse(event)| event.at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }

    /// Runs for `ms` milliseconds of virtual time.
    pub fn run_for(&mut self, ms: u64) {
        self.run_until(self.now.plus_ms(ms));
    }

    /// Runs until something is so, at most for `ms`; says whether it came to be.
    pub fn run_until_so(&mut self, ms: u64, so: impl Fn(&Self) -> bool) -> bool {
        let end = self.now.plus_ms(ms);
        while !so(self) && self.now < end {
            self.run_for(1);
        }
        so(self)
    }

    /// Returns the hash over all inputs so far.
    #[must_use]
    pub fn trace_hash(&self) -> blake3::Hash {
        self.trace.finalize()
    }

    /// Returns the place of a node.
    #[must_use]
    pub fn host_of(&self, node: NodeId) -> Option<usize> {
        self.index.get(&node).copied()
    }

    /// Returns the node of a machine that runs.
    #[must_use]
    pub fn node(&self, host: usize) -> Option<&Node> {
        self.hosts[host].node.as_ref()
    }

    /// Returns how many of the first hosts are issuers.
    #[must_use]
    pub fn issuers(&self) -> usize {
        self.hosts.first().map_or(0, |host| host.config.manifest.issuers.len())
    }

    /// Returns the books of every issuer that runs and is honest, with its place.
    pub fn books(&self) -> impl Iterator<Item = (usize, &Issuer)> {
        let honest = (0..self.issuers()).filter(|place| !self.hosts[*place].lies);
        honest.filter_map(|place| Some((place, self.node(place)?.books()?)))
    }

    /// Returns what an account holds by the books of the first honest issuer that runs.
    #[must_use]
    pub fn booked(&self, account: AccountId) -> protocol::ledger::issuer::Balance {
        self.books().next().map(|(_, books)| books.balance(account)).unwrap_or_default()
    }

    /// Returns how many lines the journal of a host has.
    #[must_use]
    pub fn lines(&self, host: usize) -> usize {
        self.hosts[host].journal.len()
    }

    /// Returns what the clock of a host says.
    fn clock(&self, host: usize) -> Time {
        Time(self.now.0.saturating_add_signed(self.hosts[host].clock_ms))
    }

    fn schedule(&mut self, host: usize, ms: u64, what: What) {
        self.sequence += 1;
        let event = Event { at: self.now.plus_ms(ms), sequence: self.sequence, host, what };
        self.queue.push(Reverse(event));
    }

    fn input_in(&mut self, ms: u64, host: usize, input: Input) {
        let incarnation = self.hosts[host].incarnation;
        self.schedule(host, ms, What::Input(incarnation, Box::new(input)));
    }

    /// Lets the next thing happen.
    fn step(&mut self) {
        let Some(Reverse(Event { at, host, what, .. })) = self.queue.pop() else { return };
        self.now = at;
        match what {
            What::Input(incarnation, input) => {
                if incarnation == self.hosts[host].incarnation {
                    self.handle(host, *input, &[]);
                }
            }
            What::Deliver { from, link, bytes } => self.deliver(host, from, link, &bytes),
            What::Gossip(advert) => {
                if let Ok(advert) = advert.verify(self.domain, Scheme::Simulated) {
                    self.handle(host, Input::Heard(advert), &[]);
                }
            }
            What::Spread(bytes) => {
                if let Ok(Message::Books(message)) = Message::check(&bytes, self.domain, Scheme::Simulated) {
                    self.handle(host, Input::Spread(message), &[]);
                }
            }
            What::Wake => {
                if self.hosts[host].armed == Some(at) {
                    self.hosts[host].armed = None;
                    self.handle(host, Input::Wake, &[]);
                }
            }
            What::Apply(incarnation, effects) => {
                let held = self.hosts[host].held_until;
                if incarnation != self.hosts[host].incarnation {
                    return;
                }
                if held > self.now {
                    self.schedule(host, held.since_ms(self.now), What::Apply(incarnation, effects));
                } else {
                    self.hosts[host].waiting -= 1;
                    self.apply(host, effects);
                }
            }
            What::Engine(incarnation, job) => {
                if incarnation == self.hosts[host].incarnation {
                    self.run_engine(host, job);
                }
            }
            What::Frame { job, provider, link, tokens, end } => {
                self.frame(host, job, provider, link, tokens, end)
            }
            What::Broken { job, partner } => self.broken(host, job, partner),
            What::Dialled(peer) => self.connect(host, peer),
            What::Down { peer, link } => self.down(host, peer, link),
            What::Keep => self.keep(host),
            What::Fault(fault) => self.befall(host, fault),
            What::Submit(job, spec) => self.submit(host, job, *spec),
            What::Cancel(job) => {
                if let Some(tracked) = self.jobs.get_mut(&job).filter(|tracked| tracked.outcome.is_none()) {
                    tracked.cancelled = true;
                    self.handle(host, Input::Cancelled(job), &[]);
                }
            }
            What::Owner(command) => self.handle(host, Input::Owner(command), &[]),
        }
    }

    /// Gives a node one input; `wire` is what the trace holds of it, if it came as bytes.
    fn handle(&mut self, host: usize, input: Input, wire: &[u8]) {
        let clock = self.clock(host);
        let Some(node) = self.hosts[host].node.as_mut() else { return };
        self.inputs += 1;
        self.trace.update(&self.now.0.to_be_bytes()).update(&[u8::try_from(host).unwrap_or(u8::MAX)]);
        if wire.is_empty() {
            self.trace.update(format!("{input:?}").as_bytes());
        } else {
            self.trace.update(wire);
        }
        if self.watched == Some(host) {
            eprintln!("{} host {host} < {input:?}", self.now.0);
        }
        let mut effects = Vec::new();
        node.handle(clock, input, &mut effects);
        self.findings.extend(checks::after_step(node, host, self.now));
        self.count_load(host);
        if self.watched == Some(host) {
            for effect in &effects {
                eprintln!("{} host {host} > {effect:?}", self.now.0);
            }
        }
        let held = self.hosts[host].held_until;
        if (held > self.now || self.hosts[host].waiting > 0) && !effects.is_empty() {
            // A shell applies its effects in order: what follows waits behind what waits for the disk.
            let incarnation = self.hosts[host].incarnation;
            self.hosts[host].waiting += 1;
            self.schedule(host, held.since_ms(self.now), What::Apply(incarnation, effects));
        } else {
            self.apply(host, effects);
        }
        self.arm(host);
    }

    fn count_load(&mut self, host: usize) {
        let second = self.now.0 / 1000;
        let load = &mut self.hosts[host].load;
        *load = if load.0 == second { (second, load.1 + 1) } else { (second, 1) };
        if load.1 == checks::INPUTS_PER_SECOND_MAX {
            self.findings.push(format!("{}: host {host} is in a busy loop", self.now));
        }
    }

    fn arm(&mut self, host: usize) {
        let Some((at, _)) = self.hosts[host].node.as_ref().and_then(Node::next_wake) else { return };
        let at = self.now.plus_ms(at.since_ms(self.clock(host)));
        if self.hosts[host].armed != Some(at) {
            self.hosts[host].armed = Some(at);
            self.schedule(host, at.since_ms(self.now), What::Wake);
        }
    }

    fn apply(&mut self, host: usize, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(effect) = effects.next() {
            match effect {
                Effect::Record(record) => {
                    let sync = 1 + self.disks.below(8);
                    self.write(host, &record, sync);
                    let rest: Vec<Effect> = effects.collect();
                    let until = self.now.plus_ms(sync).max(self.hosts[host].held_until);
                    self.hosts[host].held_until = until;
                    let incarnation = self.hosts[host].incarnation;
                    self.hosts[host].waiting += 1;
                    self.schedule(host, until.since_ms(self.now), What::Apply(incarnation, rest));
                    return;
                }
                Effect::Note(record) => {
                    let wait = self.disks.below(COMMIT_MS);
                    self.write(host, &record, wait);
                }
                Effect::Send(to, message) => self.send(host, to, &message),
                Effect::Publish(model, advert) => self.publish(host, model, &advert),
                Effect::Spread(message) => self.spread(host, &Message::Books(message).to_bytes()),
                Effect::Subscribe(model) => {
                    self.hosts[host].subscribed.insert(model);
                }
                Effect::Lookup(model) => self.look_up(host, model),
                Effect::Provide(model) => {
                    self.directory.entry(model).or_default().insert(host);
                }
                Effect::Dial(node) => {
                    if let Some(peer) = self.host_of(node) {
                        self.dial(host, peer);
                    }
                }
                Effect::Run { job, requester, spec, up_to } => self.begin(host, job, requester, &spec, up_to),
                Effect::Grant { job, up_to } => {
                    if self.hosts[host].device.grant(job, up_to) {
                        self.engine_in(1, host, job);
                    }
                }
                Effect::Abort(job) => self.abort(host, job),
                Effect::Attach { job, provider } => {
                    if let Some(provider) = self.host_of(provider) {
                        self.hosts[host].attached.insert(job, Attached { provider, tokens: 0 });
                    }
                }
                Effect::Detach(job) => self.detach(host, job),
                Effect::Tell(job, event) => self.tell(job, event),
                Effect::Joined(result) => {
                    self.hosts[host].joined = result.is_ok();
                    if let Err(error) = result {
                        self.findings.push(format!("{}: host {host} could not join: {error}", self.now));
                    }
                }
                Effect::Ordered(name, result) => {
                    self.orders.insert(name, result);
                }
                Effect::Penalise(node, offence) => {
                    if let Some(peer) = self.host_of(node) {
                        self.hosts[peer].penalties.push((host, offence));
                    }
                }
                Effect::Restored { by, channel, paid } => {
                    self.hosts[host].restored.push((by, channel, paid));
                }
                Effect::Recovered { channels, missing } => {
                    self.hosts[host].recovered = Some((channels, missing));
                }
            }
        }
    }

    /// Appends to a journal; what was written before is durable no later.
    fn write(&mut self, host: usize, record: &Record, ms: u64) {
        let durable = self.now.plus_ms(ms);
        let journal = &mut self.hosts[host].journal;
        for (before, _) in journal.iter_mut().rev().take_while(|(before, _)| *before > durable) {
            *before = durable;
        }
        journal.push((durable, record.to_bytes()));
        let ballots = &mut self.hosts[host].ballots;
        ballots.iter_mut().for_each(|(before, _)| *before = (*before).min(durable));
        if let Record::Agreed(AgreedRecord::Balloted { ballot, .. }) = record
            && let Some((_, id, _)) = ballot.peek_in(self.domain)
        {
            self.hosts[host].ballots.push((durable, id));
        }
    }

    /// A vote for a checkpoint leaves only when it is on disk.
    fn check_ballot(&mut self, host: usize, message: &Message<Wire>) {
        let Message::Agreeing(Agreeing::Ballot(ballot)) = message else { return };
        let Some((_, id, _)) = ballot.peek_in(self.domain).filter(|_| !self.hosts[host].lies) else { return };
        let on_disk = |(durable, written): &(Time, RecordId)| *durable <= self.now && *written == id;
        if !self.hosts[host].ballots.iter().any(on_disk) {
            self.findings.push(format!("{}: host {host} votes before it is on its disk", self.now));
        }
    }

    fn send(&mut self, from: usize, to: NodeId, message: &Message<Wire>) {
        let Some(to) = self.host_of(to) else { return };
        if self.hosts[from].silent.contains(message.name()) {
            return;
        }
        self.check_ballot(from, message);
        let greeting = matches!(message, Message::Hello { .. });
        let carried = match self.network.link(from, to) {
            // A greeting is the opening of a connection, which stands or falls with it.
            Some(link) if greeting => Some((link, self.network.delay())),
            Some(link) => self.network.carry().map(|delay| (link, delay)),
            None => None,
        };
        match carried {
            Some((link, delay)) => {
                let delay = delay + self.network.slowness(from, to);
                let bytes = message.to_bytes();
                if let Message::Keep(entries) = message {
                    self.copies += entries.len() as u64;
                }
                let sent = self.sent.entry(message.name()).or_default();
                *sent = (sent.0 + 1, sent.1 + bytes.len() as u64);
                self.schedule(to, delay, What::Deliver { from, link, bytes });
            }
            None => self.fail_send(from, to, message.job()),
        }
    }

    fn fail_send(&mut self, from: usize, to: usize, job: Option<JobId>) {
        if let Some(job) = job {
            let to = self.hosts[to].id;
            self.input_in(SEND_TIMEOUT_MS, from, Input::SendFailed(to, job));
        }
    }

    fn deliver(&mut self, host: usize, from: usize, link: u64, bytes: &[u8]) {
        let checked = Message::check(bytes, self.domain, Scheme::Simulated);
        if self.network.link(from, host) != Some(link) {
            if let Ok(message) = checked {
                self.fail_send(from, host, message.job());
            }
            return;
        }
        match checked {
            Ok(message) => {
                if message.to_wire().to_bytes() != bytes {
                    self.findings.push(format!("{}: a message has two encodings: {message:?}", self.now));
                }
                if self.hosts[host].lies && self.lie(host, from, &message) {
                    return;
                }
                let from = self.hosts[from].id;
                self.handle(host, Input::Received(from, message), bytes);
            }
            Err(error) => {
                if !self.hosts[from].adversary {
                    self.findings
                        .push(format!("{}: host {from} sent what does not check: {error}", self.now));
                }
            }
        }
    }

    /// Answers as a lying issuer; says whether that was all the answer.
    fn lie(&mut self, host: usize, from: usize, message: &Message<Checked>) -> bool {
        let Some(signer) = self.hosts[host].config.issuer.clone() else { return false };
        let to = self.hosts[from].id;
        let account = self.hosts[from].config.owner.account();
        let Some(lie) = liar::answer(&signer, self.domain, account, message) else { return false };
        self.send(host, to, &lie.to_wire());
        true
    }

    fn publish(&mut self, from: usize, model: ModelId, advert: &Signed<Advert>) {
        let interested: Vec<usize> = (0..self.hosts.len())
            .filter(|host| *host != from && self.hosts[*host].subscribed.contains(&model))
            .collect();
        for host in interested {
            if let Some(delay) = self.network.carry() {
                self.schedule(host, 2 * delay, What::Gossip(Box::new(advert.clone())));
            }
        }
    }

    fn spread(&mut self, from: usize, bytes: &[u8]) {
        for host in (0..self.hosts.len()).filter(|host| *host != from) {
            if let Some(delay) = self.network.carry() {
                self.schedule(host, 2 * delay, What::Spread(bytes.to_vec()));
            }
        }
    }

    fn look_up(&mut self, host: usize, model: ModelId) {
        let known =
            self.directory.get(&model).into_iter().flatten().map(|host| self.hosts[*host].id).collect();
        let delay = 3 * self.network.delay();
        self.input_in(delay, host, Input::Found(model, known));
    }

    // Engines and streams.

    fn engine_in(&mut self, ms: u64, host: usize, job: JobId) {
        let incarnation = self.hosts[host].incarnation;
        self.schedule(host, ms, What::Engine(incarnation, job));
    }

    fn begin(&mut self, host: usize, job: JobId, requester: NodeId, spec: &JobSpec, up_to: u32) {
        let Some(to) = self.host_of(requester) else { return };
        self.hosts[host].device.run(job, requester, spec, up_to);
        let link = self.network.link(host, to);
        self.streams.insert((job, host), Stream { requester: to, link, last: self.now });
        if to != host && link.is_none() {
            self.schedule(host, STREAM_SILENCE_MS, What::Broken { job, partner: to });
        }
        self.engine_in(1, host, job);
    }

    fn run_engine(&mut self, host: usize, job: JobId) {
        match self.hosts[host].device.step(job) {
            None => {}
            Some(Step::Counted(tokens_in, ms)) => {
                self.input_in(0, host, Input::Engine(EngineEvent::Prepared { job, tokens_in }));
                self.engine_in(ms, host, job);
            }
            Some(Step::Generated(tokens, ms)) => {
                self.stream(host, job, tokens, false);
                self.engine_in(ms, host, job);
            }
            Some(Step::Paused(tokens)) => {
                self.stream(host, job, tokens, false);
                self.input_in(0, host, Input::Engine(EngineEvent::Waiting { job, tokens_out: tokens }));
            }
            Some(Step::Done(tokens, finish)) => self.finish(host, job, tokens, finish),
        }
    }

    fn finish(&mut self, host: usize, job: JobId, tokens_out: u32, finish: Finish) {
        self.stream(host, job, tokens_out, true);
        self.streams.remove(&(job, host));
        let digest = digest_of(job, tokens_out);
        self.input_in(0, host, Input::Engine(EngineEvent::Finished { job, tokens_out, digest, finish }));
    }

    fn abort(&mut self, host: usize, job: JobId) {
        if let Some(run) = self.hosts[host].device.abort(job) {
            self.finish(host, job, run.tokens, Finish::Cancelled);
        }
    }

    fn stream(&mut self, host: usize, job: JobId, tokens: u32, end: bool) {
        let delay = self.network.delay();
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&(job, host)) else { return };
        let delay = if stream.requester == host { 0 } else { delay };
        stream.last = stream.last.max(now.plus_ms(delay));
        let (to, link, wait) = (stream.requester, stream.link, stream.last.since_ms(now));
        self.schedule(to, wait, What::Frame { job, provider: host, link, tokens, end });
    }

    fn frame(&mut self, host: usize, job: JobId, provider: usize, link: Option<u64>, tokens: u32, end: bool) {
        if self.hosts[host].node.is_none() || (host != provider && self.network.link(host, provider) != link)
        {
            return;
        }
        let attached =
            self.hosts[host].attached.get_mut(&job).filter(|attached| attached.provider == provider);
        let Some(attached) = attached else {
            let delay = self.network.delay();
            self.schedule(provider, delay, What::Broken { job, partner: host });
            return;
        };
        attached.tokens = tokens;
        self.count_delivery(host, provider, job, tokens);
        if end {
            self.hosts[host].attached.remove(&job);
            let digest = digest_of(job, tokens);
            self.handle(host, Input::StreamEnded { job, tokens, digest }, &[]);
        } else if tokens > 0 {
            self.handle(host, Input::Progress { job, tokens }, &[]);
        }
    }

    fn count_delivery(&mut self, host: usize, provider: usize, job: JobId, tokens: u32) {
        let Some(tracked) = self.jobs.get_mut(&job) else { return };
        let news = u64::from(tokens.saturating_sub(tracked.tokens));
        let first = tracked.tokens == 0 && tokens > 0;
        tracked.tokens = tracked.tokens.max(tokens);
        let prompt = crate::devices::tokens_of(tracked.spec.input.bytes);
        let usage = &mut self.delivered.entry((host, provider)).or_default().usage;
        usage.tokens_out += news;
        if first {
            usage.calls += 1;
            usage.tokens_in += u64::from(prompt);
        }
    }

    /// One end of a stream has gone: whoever is at `host` notices.
    fn broken(&mut self, host: usize, job: JobId, partner: usize) {
        if self.hosts[host].node.is_none() {
            return;
        }
        let attached =
            self.hosts[host].attached.get(&job).copied().filter(|attached| attached.provider == partner);
        if let Some(Attached { tokens, .. }) = attached {
            self.hosts[host].attached.remove(&job);
            self.interrupted(host, partner);
            let digest = digest_of(job, tokens);
            self.handle(host, Input::StreamLost { job, tokens, digest }, &[]);
        }
        let served = self.streams.get(&(job, host)).filter(|stream| stream.requester == partner);
        if served.is_some() {
            self.interrupted(partner, host);
            let tokens = self.hosts[host].device.job(job).map_or(0, |run| run.tokens);
            let digest = digest_of(job, tokens);
            self.handle(host, Input::StreamLost { job, tokens, digest }, &[]);
        }
    }

    fn interrupted(&mut self, requester: usize, provider: usize) {
        self.delivered.entry((requester, provider)).or_default().interrupted += 1;
    }

    fn detach(&mut self, host: usize, job: JobId) {
        let Some(Attached { provider, .. }) = self.hosts[host].attached.remove(&job) else { return };
        if self.streams.contains_key(&(job, provider)) {
            self.interrupted(host, provider);
            let delay = self.network.delay();
            self.schedule(provider, delay, What::Broken { job, partner: host });
        }
    }

    // Connections.

    fn connect(&mut self, host: usize, peer: usize) {
        if self.hosts[host].node.is_none() || self.hosts[peer].node.is_none() {
            return;
        }
        let Some(link) = self.network.connect(host, peer) else { return };
        for (one, other) in [(host, peer), (peer, host)] {
            let node = self.hosts[other].id;
            if self.hosts[one].up.insert(other, link).is_some() {
                self.handle(one, Input::PeerDown(node), &[]);
            }
            self.handle(one, Input::PeerUp(node), &[]);
        }
    }

    fn down(&mut self, host: usize, peer: usize, link: u64) {
        if self.hosts[host].up.get(&peer) == Some(&link) {
            self.hosts[host].up.remove(&peer);
            let node = self.hosts[peer].id;
            self.handle(host, Input::PeerDown(node), &[]);
        }
    }

    /// Parts `some` from all others: their connections are gone, and none comes about until [`World::reunite`].
    pub fn part(&mut self, some: &[usize]) {
        self.network.part(some);
        for one in some {
            for other in (0..self.hosts.len()).filter(|other| !some.contains(other)) {
                self.cut(*one, other);
            }
        }
    }

    /// Ends what [`World::part`] began.
    pub fn reunite(&mut self) {
        self.network.part(&[]);
    }

    fn cut(&mut self, one: usize, other: usize) {
        let Some(link) = self.network.cut(one, other) else { return };
        for (host, peer) in [(one, other), (other, one)] {
            self.schedule(host, STREAM_SILENCE_MS, What::Down { peer, link });
            self.break_streams(host, peer);
        }
    }

    /// Every stream that `host` has with `peer` will be found silent.
    fn break_streams(&mut self, host: usize, peer: usize) {
        let attached = self.hosts[host].attached.iter().filter(|(_, attached)| attached.provider == peer);
        let mut jobs: Vec<JobId> = attached.map(|(job, _)| *job).collect();
        let served = self.streams.iter().filter(|((_, at), stream)| *at == host && stream.requester == peer);
        jobs.extend(served.map(|((job, _), _)| *job));
        for job in jobs {
            self.schedule(host, STREAM_SILENCE_MS, What::Broken { job, partner: peer });
        }
    }

    fn keep(&mut self, host: usize) {
        self.schedule(host, KEEP_MS, What::Keep);
        if self.hosts[host].node.is_none() {
            return;
        }
        for issuer in 0..self.issuers() {
            if issuer != host && self.network.link(host, issuer).is_none() {
                self.dial(host, issuer);
            }
        }
    }

    // Faults.

    fn befall(&mut self, host: usize, fault: Fault) {
        match fault {
            Fault::Crash => self.crash(host),
            Fault::LoseDisk => {
                self.crash(host);
                self.hosts[host].journal.clear();
                self.hosts[host].lost = true;
            }
            Fault::OldCopy(lines) => {
                self.crash(host);
                self.hosts[host].journal.truncate(lines);
            }
            Fault::Restart => self.start(host),
            Fault::Recover => {
                self.hosts[host].lost = true;
                self.start(host);
            }
            Fault::Cut(peer) => self.cut(host, peer),
            Fault::Engine => self.break_engine(host),
        }
    }

    fn break_engine(&mut self, host: usize) {
        let jobs: Vec<JobId> =
            self.streams.keys().filter(|(_, at)| *at == host).map(|(job, _)| *job).collect();
        for job in jobs {
            let Some(run) = self.hosts[host].device.abort(job) else { continue };
            self.stream(host, job, run.tokens, true);
            self.streams.remove(&(job, host));
            let fault = EngineFault::Broken("out of memory".to_owned());
            let digest = digest_of(job, run.tokens);
            let event = EngineEvent::Failed { job, tokens_out: run.tokens, digest, fault };
            self.input_in(0, host, Input::Engine(event));
        }
    }

    fn crash(&mut self, host: usize) {
        if self.hosts[host].node.take().is_none() {
            return;
        }
        let now = self.now;
        let partners = self.network.partners(host);
        for peer in partners {
            if let Some(link) = self.network.cut(host, peer) {
                self.schedule(peer, STREAM_SILENCE_MS, What::Down { peer: host, link });
                self.break_streams(peer, host);
            }
        }
        self.streams.retain(|(_, at), _| *at != host);
        let here = &mut self.hosts[host];
        here.incarnation += 1;
        here.armed = None;
        here.held_until = now;
        here.waiting = 0;
        here.journal.retain(|(durable, _)| *durable <= now);
        here.ballots.retain(|(durable, _)| *durable <= now);
        here.device.reset();
        here.up.clear();
        here.subscribed.clear();
        here.attached.clear();
        // What was noted last may be forgotten, of jobs under way and of those just over.
        for ((requester, provider), delivered) in &mut self.delivered {
            if *requester == host || *provider == host {
                delivered.interrupted += 1;
            }
        }
        for tracked in self.jobs.values_mut().filter(|job| job.host == host && job.outcome.is_none()) {
            tracked.outcome = Some((now, Outcome::OwnerGone));
        }
    }

    fn start(&mut self, host: usize) {
        if self.hosts[host].node.is_some() {
            return;
        }
        let lines = self.hosts[host].journal.iter().map(|(_, line)| Record::from_bytes(line));
        let records: Vec<Record> = match lines.collect() {
            Ok(records) => records,
            Err(error) => {
                self.findings
                    .push(format!("{}: the journal of host {host} does not read: {error}", self.now));
                return;
            }
        };
        match Node::new(self.hosts[host].config.clone(), self.seeds.next_u64(), &records, self.clock(host)) {
            Ok(node) => self.hosts[host].node = Some(node),
            Err(error) => {
                self.findings.push(format!("{}: host {host} cannot start again: {error}", self.now));
                return;
            }
        }
        if let Some(offer) = self.hosts[host].offer.clone() {
            let device = Hardware {
                kind: "cpu".to_owned(),
                name: "simulated".to_owned(),
                memory_bytes: 1 << 34,
                backend: "simulated".to_owned(),
            };
            self.input_in(50, host, Input::Engine(EngineEvent::Ready { offer, device }));
        }
        let admitted = self.node(host).is_some_and(Node::is_admitted);
        if let Some(secret) = self.hosts[host].secret.filter(|_| !admitted) {
            self.input_in(1, host, Input::Owner(OwnerCommand::Join { secret }));
        }
        if std::mem::take(&mut self.hosts[host].lost) {
            self.handle(host, Input::Owner(OwnerCommand::Recover), &[]);
        }
        self.arm(host);
    }

    // Jobs.

    fn submit(&mut self, host: usize, job: JobId, spec: JobSpec) {
        if self.hosts[host].node.is_none() {
            return;
        }
        let tracked = Tracked {
            host,
            spec: spec.clone(),
            submitted: self.now,
            provider: None,
            chosen: Vec::new(),
            tokens: 0,
            tokens_in: 0,
            cancelled: false,
            outcome: None,
        };
        self.jobs.insert(job, tracked);
        self.handle(host, Input::Submitted(job, spec), &[]);
    }

    fn tell(&mut self, job: JobId, event: JobEvent) {
        let now = self.now;
        let Some(tracked) = self.jobs.get_mut(&job) else { return };
        let parties =
            tracked.provider.and_then(|provider| self.index.get(&provider)).map(|at| (tracked.host, *at));
        if let (JobEvent::Failed { account: Some(_), .. }, Some(parties)) = (&event, parties) {
            // The requester accounts for a failed job by its own count alone.
            self.delivered.entry(parties).or_default().interrupted += 1;
        }
        let outcome = match event {
            JobEvent::Chosen { provider, .. } => {
                tracked.provider = Some(provider);
                tracked.chosen.push(provider);
                return;
            }
            JobEvent::Accepted { tokens_in } => {
                tracked.tokens_in = tokens_in;
                return;
            }
            JobEvent::Done(account) => Outcome::Done(account),
            JobEvent::Failed { failure, account } => Outcome::Failed(failure, account),
        };
        if let Some(before) = &tracked.outcome {
            self.findings.push(format!("{now}: job {job:?} ended twice: {before:?}, then {outcome:?}"));
        } else {
            tracked.outcome = Some((now, outcome));
        }
    }

    /// Returns the lines of a host's journal, durable or not.
    pub fn records(&self, host: usize) -> impl Iterator<Item = Record> + '_ {
        self.hosts[host].journal.iter().filter_map(|(_, line)| Record::from_bytes(line).ok())
    }

    /// Returns every step that the first honest issuer ever took.
    pub fn steps(&self) -> impl Iterator<Item = Verified<AccountOp>> + '_ {
        let first = self.books().next().map_or(0, |(place, _)| place);
        self.records(first).filter_map(|record| {
            let op = if let Record::Certified { certificate, .. } = record {
                certificate.op
            } else if let Record::Stepped { op, .. } = record {
                op
            } else {
                return None;
            };
            op.read_back(self.domain).ok()
        })
    }

    /// Returns the network's name.
    #[must_use]
    pub const fn domain(&self) -> DomainId {
        self.domain
    }

    /// Returns every channel that the first honest issuer ever opened, with its payer's and its payee's place.
    #[must_use]
    pub fn opened_channels(&self) -> Vec<(ChannelId, usize, usize)> {
        let parties = self.steps().filter_map(|op| match &op.body {
            OpBody::OpenChannel(open) => {
                Some((op.id().into(), self.host_of(open.payer)?, self.host_of(open.payee)?))
            }
            OpBody::Expire(_)
            | OpBody::Pay { .. }
            | OpBody::Withdraw { .. }
            | OpBody::Noop
            | OpBody::Inception(_)
            | OpBody::Rotate(_) => None,
        });
        parties.collect()
    }

    /// Returns whether a host has taken part.
    #[must_use]
    pub fn is_joined(&self, host: usize) -> bool {
        self.node(host).is_some_and(Node::is_admitted)
    }

    /// Returns the tokens that a host's engine has generated for a job that runs there.
    #[must_use]
    pub fn generated(&self, host: usize, job: JobId) -> Option<u32> {
        self.hosts[host].device.job(job).map(|run| run.tokens)
    }
}
