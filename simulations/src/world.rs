//! The world: hosts, one clock, one heap of events. Everything that happens follows from one seed.

mod adverts;
mod cheating;
mod faults;
mod jobs;
mod mesh;
mod messages;
mod pruning;
mod queries;
mod reference;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::rc::Rc;

use protocol::advert::{Advert, ModelOffer};
use protocol::agreeing::AgreedRecord;
use protocol::ids::{ChannelId, Digest, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::job::{Failure, JobAccount, JobSpec};
use protocol::keys::Scheme;
use protocol::message::Message;
use protocol::node::{Config, Effect, Input, Node, Offence, OrderError, OwnerCommand};
use protocol::price::Usage;
use protocol::prng::Prng;
use protocol::record::Record;
use protocol::signed::{Signed, Verified};
use protocol::time::Time;

use crate::checks::{self, Always};
use crate::devices::{Device, Speed};
use crate::network::directory::Key;
use crate::network::gossip::Topic;
use crate::network::wire::Traffic;
use crate::network::{Conditions, Network};
use crate::reference::Reference;

/// How long a shell waits for a stream that is silent before it calls it lost.
pub const STREAM_SILENCE_MS: u64 = 1_500;

/// How long a message that never arrives is waited for.
const SEND_TIMEOUT_MS: u64 = 1_000;

/// Longest wait for a group commit.
const COMMIT_MS: u64 = 100;

/// How often a shell sees to its connection with the issuer.
const KEEP_MS: u64 = 1_000;

/// Hosts of a world in which the books of an issuer are summed up after every step.
const FEW_HOSTS: usize = 100;

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
    /// Its disk was lost once, or it was away while issuers ended channels of its and forgot them: its journal does not
    /// have the whole history.
    pub lost_history: bool,
    /// Answers every question to the directory with others that do the same.
    pub misleads: bool,
    /// Says again what it has said and heard.
    pub replays: bool,
    /// Would end every channel at half of what is due.
    pub haggles: bool,
    /// Its owner wants the engine for something else.
    pub resting: bool,
    /// The advert that it published last.
    published: Option<Signed<Advert>>,
    /// Until when the last advert that it signed counts, by its own clock.
    advertised_until: Option<Time>,
    /// Others dialled in the running second of virtual time.
    dials: (u64, BTreeSet<usize>),
    /// It dies at its next record, with or without it on the disk, and starts again after so many milliseconds.
    doomed: Option<(bool, Option<u64>)>,
    /// Its journal is gone, and it must ask for what was in it.
    lost: bool,
    /// Lines with the time at which they are durable.
    journal: Vec<(Time, Vec<u8>)>,
    /// Its votes for checkpoints, with the time at which they are durable.
    ballots: Vec<(Time, RecordId)>,
    incarnation: u32,
    armed: Option<Time>,
    /// When effects that wait for the disk are applied; later batches of the shell queue behind them.
    held_until: Time,
    /// Batches of effects that wait for that.
    waiting: VecDeque<Vec<Effect>>,
    /// It will be looked whether the disk is done.
    waits: bool,
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
    /// When the first came.
    pub first_token: Option<Time>,
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
    Gossip(Rc<Verified<Advert>>),
    /// A message about the books, by gossip.
    Spread(Vec<u8>),
    Wake,
    /// The disk is done, perhaps.
    Apply(u32),
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
    /// The owner lends the engine, or takes it back.
    Serve(bool),
    /// Two steps in one place.
    Equivocate,
    /// Adverts that are forged or old, and false records in the directory.
    Poison,
    /// Connections to random others, to be in their directories.
    Crowd,
    /// What was said once is said again.
    SayAgain {
        to: usize,
        bytes: Vec<u8>,
    },
    /// These hosts reach only each other; none: all reach all.
    Part(Vec<usize>),
    /// A heartbeat of gossip, everywhere.
    Beat,
    /// Whoever knows few others looks for more.
    LookAround(u32),
    /// The same goes on with these keys.
    Refresh(u32, Vec<Key>),
    /// What a host provides is entered again in the directory; if so said, every half hour.
    ProvideAgain(u32, bool),
}

/// A fault that befalls a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies without a word.
    Crash,
    /// The process dies at the next record that it writes, and starts again after so many milliseconds.
    CrashAtRecord {
        /// The record is on the disk by then.
        durable: bool,
        /// After how many milliseconds it starts again, if it does.
        restart_ms: Option<u64>,
    },
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
    /// Its clock jumps by so many milliseconds.
    Clock(i64),
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
    /// Jobs that nobody wanted but whoever checks that jobs are done.
    pub probes: BTreeSet<JobId>,
    /// What became of orders, by name; a host that crashes forgets who asked.
    pub orders: BTreeMap<Digest, Result<RecordId, OrderError>>,
    /// Nano-credits that have entered.
    pub deposited: u128,
    /// Inputs handled.
    pub inputs: u64,
    /// Events of any kind that have happened.
    pub events: u64,
    /// What each machine has sent.
    pub traffic: Vec<Traffic>,
    /// Messages sent, by name, and their bytes.
    pub sent: BTreeMap<&'static str, (u64, u64)>,
    /// Channels that payees gave to their mirrors.
    pub copies: u64,
    /// Invariants found broken while running.
    pub findings: Vec<String>,
    /// How often each rule about single events was checked, and broken, in the order of [`Always::ALL`].
    tallies: [(u64, u64); Always::ALL.len()],
    /// What the lines of an issuer that is alone add up to, in a small world.
    reference: Option<Reference>,
    /// Prints what happens to this host, for whoever looks for a fault.
    pub watched: Option<usize>,
    domain: DomainId,
    sequence: u64,
    queue: BinaryHeap<Reverse<Event>>,
    index: BTreeMap<NodeId, usize>,
    directory: BTreeMap<ModelId, BTreeSet<usize>>,
    mesh: Option<Box<mesh::Mesh>>,
    streams: BTreeMap<(JobId, usize), Stream>,
    trace: blake3::Hasher,
    disks: Prng,
    seeds: Prng,
    mischief: Prng,
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
            probes: BTreeSet::new(),
            orders: BTreeMap::new(),
            deposited: 0,
            inputs: 0,
            events: 0,
            tallies: Default::default(),
            traffic: Vec::new(),
            sent: BTreeMap::new(),
            copies: 0,
            findings: Vec::new(),
            reference: None,
            watched: None,
            domain,
            sequence: 0,
            queue: BinaryHeap::new(),
            index: BTreeMap::new(),
            directory: BTreeMap::new(),
            mesh: None,
            streams: BTreeMap::new(),
            trace: blake3::Hasher::new(),
            disks: prng.child(),
            seeds: prng.child(),
            mischief: prng.child(),
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
        let host = self.place(config, speed, offer, secret);
        self.start(host);
        host
    }

    /// Adds a machine that is started later, by [`Fault::Restart`].
    pub fn place(
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
            lost_history: false,
            misleads: false,
            replays: false,
            haggles: false,
            resting: false,
            published: None,
            advertised_until: None,
            dials: (0, BTreeSet::new()),
            doomed: None,
            lost: false,
            journal: Vec::new(),
            ballots: Vec::new(),
            incarnation: 0,
            armed: None,
            held_until: self.now,
            waiting: VecDeque::new(),
            waits: false,
            up: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            attached: BTreeMap::new(),
            load: (0, 0),
        });
        self.traffic.push(Traffic::default());
        self.meets(host);
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
        let delay = 2 * self.network.delay(from, to);
        self.schedule(from, delay, What::Dialled(to));
    }

    /// Has the owner of `host` lend its engine, or take it back, in `ms`.
    pub fn serve_in(&mut self, ms: u64, host: usize, serves: bool) {
        self.schedule(host, ms, What::Serve(serves));
    }

    /// Lets `some` reach only each other in `ms`; with nobody named, all reach all again.
    pub fn part_in(&mut self, ms: u64, some: Vec<usize>) {
        self.schedule(0, ms, What::Part(some));
    }

    /// Counts a check of a rule, and says what was found where it does not hold.
    pub fn always(&mut self, rule: Always, holds: bool, finding: impl FnOnce() -> String) {
        let tally = &mut self.tallies[rule as usize];
        tally.0 += 1;
        if !holds {
            tally.1 += 1;
            if self.findings.len() < checks::FINDINGS_MAX {
                self.findings.push(finding());
            }
        }
    }

    /// Returns how often a rule was checked, and how often it was broken.
    #[must_use]
    pub const fn tally(&self, rule: Always) -> (u64, u64) {
        self.tallies[rule as usize]
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
        self.events += 1;
        match what {
            What::Input(incarnation, input) => {
                if incarnation == self.hosts[host].incarnation {
                    self.handle(host, *input, &[]);
                }
            }
            What::Deliver { from, link, bytes } => self.deliver(host, from, link, &bytes),
            What::Gossip(advert) => {
                let id = advert.id();
                self.handle(host, Input::Heard(Verified::clone(&advert)), &id.0);
            }
            What::Spread(bytes) => {
                if let Ok(Message::Books(message)) = Message::check(&bytes, self.domain, Scheme::Simulated) {
                    self.handle(host, Input::Spread(message), &bytes);
                }
            }
            What::Wake => {
                if self.hosts[host].armed == Some(at) {
                    self.hosts[host].armed = None;
                    self.handle(host, Input::Wake, &[]);
                }
            }
            What::Apply(incarnation) => {
                if incarnation == self.hosts[host].incarnation {
                    self.go_on(host);
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
            What::Serve(serves) => self.serves(host, serves),
            What::Equivocate => self.equivocate(host),
            What::Poison => self.poison(host),
            What::Crowd => self.crowd(host),
            What::SayAgain { to, bytes } => {
                self.bytes_in(self.network.conditions.latency_ms, host, to, bytes)
            }
            What::Part(some) if some.is_empty() => self.reunite(),
            What::Part(some) => self.part(&some),
            What::Beat => self.beat(),
            What::LookAround(incarnation) => {
                if incarnation == self.hosts[host].incarnation {
                    self.look_around(host);
                }
            }
            What::Refresh(incarnation, keys) => {
                if incarnation == self.hosts[host].incarnation {
                    self.refresh(host, keys);
                }
            }
            What::ProvideAgain(incarnation, repeats) => {
                if incarnation == self.hosts[host].incarnation {
                    self.provide_again(host, repeats);
                }
            }
        }
    }

    /// Gives a node one input; `wire` is what the trace holds of it, if it came as bytes.
    fn handle(&mut self, host: usize, input: Input, wire: &[u8]) {
        let clock = self.clock(host);
        // In large books the sum over everything is taken once a second.
        let sums = self.hosts.len() <= FEW_HOSTS || self.now.0 / 1000 != self.hosts[host].load.0;
        let Some(node) = self.hosts[host].node.as_mut() else { return };
        self.inputs += 1;
        self.trace.update(&self.now.0.to_be_bytes()).update(&(host as u64).to_be_bytes());
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
        let books = node.books().filter(|_| sums);
        let conserved = books.map(protocol::ledger::issuer::Issuer::is_conserved);
        if let Some(conserved) = conserved {
            let now = self.now;
            self.always(Always::CreditsConserved, conserved, || {
                format!("{now}: the books of host {host} hold other credits than were deposited")
            });
        }
        self.compare_books(host, &effects);
        self.count_load(host);
        if self.watched == Some(host) {
            for effect in &effects {
                eprintln!("{} host {host} > {effect:?}", self.now.0);
            }
        }
        let here = &mut self.hosts[host];
        if (here.held_until > self.now || !here.waiting.is_empty()) && !effects.is_empty() {
            // A shell applies its effects in order: what follows waits behind what waits for the disk.
            here.waiting.push_back(effects);
            self.await_disk(host);
        } else {
            self.apply(host, effects);
        }
        self.arm(host);
    }

    fn count_load(&mut self, host: usize) {
        let second = self.now.0 / 1000;
        let load = &mut self.hosts[host].load;
        *load = if load.0 == second { (second, load.1 + 1) } else { (second, 1) };
        // An issuer hears everybody.
        let most = checks::INPUTS_PER_SECOND_MAX + checks::INPUTS_OF_ONE_MAX * self.index.len() as u64;
        let (now, holds) = (self.now, load.1 != most);
        self.always(Always::NoBusyLoop, holds, || format!("{now}: host {host} is in a busy loop"));
    }

    /// Looks again when the disk is done.
    fn await_disk(&mut self, host: usize) {
        let here = &mut self.hosts[host];
        if !std::mem::replace(&mut here.waits, true) {
            let (ms, incarnation) = (here.held_until.since_ms(self.now), here.incarnation);
            self.schedule(host, ms, What::Apply(incarnation));
        }
    }

    /// Applies what waited for the disk, if that is done.
    fn go_on(&mut self, host: usize) {
        self.hosts[host].waits = false;
        while self.hosts[host].held_until <= self.now {
            let Some(effects) = self.hosts[host].waiting.pop_front() else { return };
            self.apply(host, effects);
        }
        self.await_disk(host);
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
                    if self.dies_at_record(host, &record) {
                        return;
                    }
                    let sync = 1 + self.disks.below(8);
                    self.write(host, &record, sync);
                    let rest: Vec<Effect> = effects.collect();
                    let until = self.now.plus_ms(sync).max(self.hosts[host].held_until);
                    self.hosts[host].held_until = until;
                    self.hosts[host].waiting.push_front(rest);
                    self.await_disk(host);
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
                    self.listens(host, Topic::Model(model));
                }
                Effect::Lookup(model) => self.look_up(host, model),
                Effect::Provide(model) if self.mesh.is_some() => self.provide(host, model),
                Effect::Provide(model) => {
                    self.directory.entry(model).or_default().insert(host);
                }
                Effect::Dial(node) => {
                    if let Some(peer) = self.host_of(node) {
                        self.count_dial(host, peer);
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
                    let now = self.now;
                    self.always(Always::TicketsAdmit, result.is_ok(), || {
                        format!("{now}: host {host} could not join: {result:?}")
                    });
                }
                Effect::Ordered(name, result) => {
                    self.orders.insert(name, result);
                }
                Effect::Penalise(node, offence) => {
                    if let Some(peer) = self.host_of(node) {
                        self.hosts[peer].penalties.push((host, offence));
                        self.offends(host, peer);
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

    /// Returns the network's name.
    #[must_use]
    pub const fn domain(&self) -> DomainId {
        self.domain
    }
}
