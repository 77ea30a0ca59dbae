//! The event loop: one task owns the protocol's node and every handle to the outside; nothing in its loop awaits.
//!
//! What happened becomes an input, what follows becomes a call. Tokens do not pass the core: they go from the worker to
//! the job's stream and from there to the client, and the core hears of windows and ends only.

mod answers;
mod audit;
mod body;
mod durable;
mod ended;
mod index;
mod jobs;
mod mesh;
mod offences;
mod orders;
mod promises;
mod prompts;
mod pruning;
mod settle;
mod steps;
mod stream;
mod verify;
mod wants;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use protocol::advert::Incentive;
use protocol::ids::{JobId, ModelId, NodeId};
use protocol::message::Message;
use protocol::node::{self, Effect, Input, Node, OwnerCommand, Starting};
use protocol::record::{Record, is_checkpoint};
use protocol::time::Time;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::command::{COMMANDS_MAX, Command};
use crate::config::Config;
use crate::exit::{Failure, FailureKind};
use crate::folder::DataFolder;
use crate::identity::Identity;
use crate::journal;
use crate::models::ServedModel;
use crate::net::{Limits, Mdns, Net, NetConfig, PeerKey, Repeat};
use crate::worker::{self, Program, Workers};

use self::durable::Durable;
use self::jobs::{OwnJob, Serving};
use self::stream::StreamEvent;
pub(crate) use self::stream::hash_vectors;

/// How often waiting requests, lost connections and closed clients are looked after.
const TICK: Duration = Duration::from_millis(250);

/// How long jobs in flight may take to end when the node is told to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

/// How long what was said last may take to arrive: a round trip, and some.
const FAREWELL: Duration = Duration::from_millis(250);

/// Everything that a running node holds.
struct Driver {
    node: Node,
    net: Net,
    durable: Durable,
    workers: Workers,
    clock: Clock,
    config: Config,
    identity: Identity,
    commands: mpsc::Receiver<Command>,
    stream_events: mpsc::Receiver<StreamEvent>,
    stream_sender: mpsc::Sender<StreamEvent>,
    tick: Interval,
    /// Whether the last turn woke the core: another turn comes before it is woken again.
    woken: bool,
    /// Turns since the mesh had one.
    local: usize,
    shutdown: CancellationToken,
    /// Inputs that this node makes itself while it applies effects.
    inputs: VecDeque<Input>,
    outbox: Vec<Effect>,
    jobs: BTreeMap<JobId, OwnJob>,
    /// Jobs of the owner that lost their provider: the core may be done with them.
    detached: BTreeSet<JobId>,
    serving: BTreeMap<JobId, Serving>,
    ended: ended::Endings,
    /// Prompts of jobs that were submitted to us and have not begun.
    prompts: prompts::Prompts,
    models: BTreeMap<String, Model>,
    /// Jobs whose message must be known to have failed.
    tags: BTreeMap<u64, JobId>,
    next_tag: u64,
    mesh: mesh::Contacts,
    offences: offences::Offences,
    waiting: answers::Waiting,
    pruning: pruning::Pruning,
    joined: Option<Result<(), protocol::message::JoinError>>,
    /// Why the node must stop.
    fatal: Option<anyhow::Error>,
    folder: DataFolder,
}

/// A model that this node serves, or tries to.
#[derive(Debug)]
struct Model {
    served: ServedModel,
    id: Option<ModelId>,
    info: Option<engine::frame::ModelInfo>,
    state: &'static str,
    detail: String,
    pid: Option<u32>,
    restarts: u32,
}

/// Starts a node: an error says what keeps it from starting; the task ends with what made it stop.
#[expect(clippy::unused_async, reason = "the ports are opened inside a runtime")]
pub async fn start(
    config: Config,
    commands: mpsc::Receiver<Command>,
    shutdown: CancellationToken,
) -> Result<JoinHandle<Result<()>>> {
    Ok(tokio::spawn(Driver::open(config, commands, shutdown)?.run()))
}

impl Driver {
    /// Opens the data folder, follows the journal, opens the ports, starts the workers.
    fn open(config: Config, commands: mpsc::Receiver<Command>, shutdown: CancellationToken) -> Result<Self> {
        let folder = DataFolder::open(&config.data)?;
        let identity = Identity::open(&folder, &config, Time(Clock::start(0).now_ms()))?;
        if !identity.manifest.development
            && config.serve.iter().any(|model| model.name == crate::models::FAKE)
        {
            return Err(Failure::usage(
                "the fake model is served only in a network made with `sharemesh up --dev`: choose another model",
            )
            .into());
        }
        check_recoverable(&config, &identity)?;
        let (node, durable, clock) = follow_journal(&folder, &config, &identity)?;
        let mut net = Net::new(net_config(&config, &identity)?)?;
        net.subscribe(mesh::BOOKS_TOPIC);
        let workers = Workers::new(Program::current()?, worker::Limits::NODE);
        let (stream_sender, stream_events) = mpsc::channel(COMMANDS_MAX);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut driver = Self {
            node,
            net,
            durable,
            workers,
            clock,
            mesh: mesh::Contacts::new(&identity),
            config,
            identity,
            commands,
            stream_events,
            stream_sender,
            tick,
            woken: false,
            local: 0,
            shutdown,
            inputs: VecDeque::new(),
            outbox: Vec::new(),
            jobs: BTreeMap::new(),
            detached: BTreeSet::new(),
            serving: BTreeMap::new(),
            ended: ended::Endings::default(),
            prompts: prompts::Prompts::default(),
            models: BTreeMap::new(),
            tags: BTreeMap::new(),
            next_tag: 0,
            offences: offences::Offences::default(),
            waiting: answers::Waiting::default(),
            pruning: pruning::Pruning::default(),
            joined: None,
            fatal: None,
            folder,
        };
        if driver.config.recover {
            driver.inputs.push_back(Input::Owner(OwnerCommand::Recover));
        }
        for model in driver.config.serve.clone() {
            driver.load(model)?;
        }
        // An issuer is a member by its manifest.
        if let Some(secret) = driver.identity.ticket.filter(|_| driver.identity.issuer.is_none()) {
            driver.inputs.push_back(Input::Owner(OwnerCommand::Join { secret }));
        }
        Ok(driver)
    }

    /// Runs until told to stop; an error says why the node had to.
    async fn run(mut self) -> Result<()> {
        let shutdown = self.shutdown.clone();
        loop {
            self.process_inputs();
            if self.fatal.is_some() {
                return self.close().await;
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.turn() => {}
            }
        }
        self.stop().await
    }

    /// Waits for one event and deals with it. Cancel safe: every arm is, and what it yields is dealt with at once.
    ///
    /// What is due comes first, then local work; after [`LOCAL_MAX`] events of it the mesh has its turn.
    async fn turn(&mut self) {
        let wake = self.node.next_wake().map_or(DAY, |(at, _)| self.clock.until(at.0));
        if wake.is_zero() && !std::mem::replace(&mut self.woken, true) {
            // A timer that is set anew each time would never fire while there is other work.
            self.inputs.push_back(Input::Wake);
            return;
        }
        self.woken = false;
        let is_local = self.local < LOCAL_MAX;
        self.local += 1;
        tokio::select! {
            biased;
            committed = self.durable.committed() => self.on_committed(committed),
            _ = self.tick.tick() => self.on_tick(),
            () = sleep_until(Instant::now() + wake) => self.inputs.push_back(Input::Wake),
            (model, event) = self.workers.next(), if is_local => self.on_worker(&model, event),
            asked = next_local(&mut self.commands, &mut self.stream_events, self.local.is_multiple_of(2)), if is_local => {
                match asked {
                    Local::Command(command) => self.on_command(command),
                    Local::Stream(event) => self.on_stream(event),
                }
            }
            event = self.net.next() => {
                self.local = 0;
                self.on_net(event);
            }
            () = std::future::ready(()), if !is_local => self.local = 0,
        }
    }

    /// Gives the core what happened, and does what follows. Once the journal takes no more, nothing follows any more.
    fn process_inputs(&mut self) {
        while self.fatal.is_none() {
            if let Some(input) = self.inputs.pop_front() {
                let mut effects = std::mem::take(&mut self.outbox);
                self.node.handle(self.now(), input, &mut effects);
                self.apply(&mut effects);
                self.outbox = effects;
                continue;
            }
            self.end_forgotten();
            self.answer_waiting();
            // A job that waited may have been placed just now.
            if self.inputs.is_empty() {
                return;
            }
        }
    }

    /// Does what follows, in order: what comes after a record waits until it is durable.
    fn apply(&mut self, effects: &mut Vec<Effect>) {
        let mut after = None;
        for effect in effects.drain(..) {
            let written = if let Effect::Record(record) = &effect {
                self.durable.record(record).map(|position| {
                    after = Some(position);
                    self.note_promised(record, position);
                })
            } else if let Effect::Note(record) = &effect {
                self.durable.note(record).map(drop)
            } else {
                if let Some(effect) = self.durable.hold(effect, after) {
                    self.execute(effect);
                }
                Ok(())
            };
            if let Err(error) = written {
                self.fatal.get_or_insert(error);
                return;
            }
        }
    }

    fn on_committed(&mut self, committed: Result<crate::journal::Position, crate::journal::JournalError>) {
        match committed {
            Ok(position) => {
                self.durable.index_up_to(position);
                for effect in self.durable.release(position) {
                    self.execute(effect);
                }
            }
            Err(error) => {
                let what = "the journal cannot be written, so no payment would be safe: free the disk and start again";
                self.fatal.get_or_insert(anyhow::Error::new(error).context(what));
            }
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Record(_) | Effect::Note(_) => {}
            Effect::Send(to, message) => self.send(to, &message),
            Effect::Publish(model, advert) => {
                let message = Message::<protocol::message::Wire>::Advert(advert).to_bytes();
                self.net.publish(&mesh::topic(model), message);
            }
            Effect::Spread(message) => {
                self.net.publish(mesh::BOOKS_TOPIC, Message::Books(message).to_bytes())
            }
            Effect::Subscribe(model) => self.net.subscribe(&mesh::topic(model)),
            Effect::Lookup(model) => self.net.lookup(model.0),
            Effect::Provide(model) => self.provide(model),
            Effect::Dial(node) => self.net.dial(PeerKey(node.0), Vec::new()),
            Effect::Run { job, requester, spec, up_to } => self.run_job(job, requester, &spec, up_to),
            Effect::Grant { job, up_to } => self.grant(job, up_to),
            Effect::Abort(job) => self.abort(job),
            Effect::Attach { job, provider } => self.attach(job, provider),
            Effect::Detach(job) => self.detach(job),
            Effect::Tell(job, event) => self.tell(job, event),
            Effect::Joined(result) => self.on_joined(result),
            Effect::Ordered(name, result) => self.on_ordered(name, result),
            Effect::Penalise(peer, offence) => self.penalise(peer, offence.into()),
            Effect::Restored { by, channel, paid } => {
                tracing::info!(%by, %channel, paid_nano = paid, "Got a channel back");
            }
            Effect::Recovered { channels, missing } => tracing::info!(channels, missing, "Recovered"),
        }
    }

    fn send(&mut self, to: NodeId, message: &Message<protocol::message::Wire>) {
        let body = if let Message::Submit { job, .. } = message {
            let Some(own) = self.jobs.get(job) else {
                tracing::warn!(%job, "Did not submit a job whose prompt is gone");
                self.inputs.extend([Input::Cancelled(*job), Input::SendFailed(to, *job)]);
                return;
            };
            own.body.clone()
        } else {
            Bytes::new()
        };
        if let Message::Refused { job, .. } = message {
            self.prompts.take(to, *job);
        }
        self.next_tag += 1;
        if let Some(job) = message.job() {
            self.tags.insert(self.next_tag, job);
            while self.tags.len() > TAGS_MAX {
                self.tags.pop_first();
            }
        }
        tracing::trace!(%to, message = message.name(), "Sent");
        self.net.send(PeerKey(to.0), self.next_tag, message.to_bytes(), body, repeat_of(message));
    }

    fn on_joined(&mut self, result: Result<(), protocol::message::JoinError>) {
        match &result {
            Ok(()) => tracing::info!(network = %self.identity.manifest.name, "Joined the network"),
            Err(error) => {
                self.fatal.get_or_insert(
                    Failure::new(FailureKind::Forbidden, format!("cannot join the network: {error}")).into(),
                );
            }
        }
        self.joined = Some(result);
    }

    fn on_tick(&mut self) {
        self.keep_contacts();
        self.watch_clock();
        self.cancel_unwanted();
        self.detach_silent();
        self.prompts.forget_old(self.clock.now_ms());
        self.review_pruning();
        self.durable.index_retry();
    }

    /// Takes no more work, lets jobs in flight end, commits, ends the workers.
    async fn stop(mut self) -> Result<()> {
        self.inputs.push_back(Input::Owner(OwnerCommand::Stop));
        let deadline = Instant::now() + STOP_MAX;
        self.process_inputs();
        while !(self.jobs.is_empty() && self.serving.is_empty() && self.durable.is_settled())
            && self.fatal.is_none()
        {
            tokio::select! {
                biased;
                () = sleep_until(deadline) => break,
                () = self.turn() => self.process_inputs(),
            }
        }
        // The last words of jobs may be on their way: closed connections would cut them off.
        let farewell = Instant::now() + FAREWELL;
        while self.fatal.is_none() {
            tokio::select! {
                biased;
                () = sleep_until(farewell) => break,
                () = self.turn() => self.process_inputs(),
            }
        }
        self.close().await
    }

    /// Ends the workers, commits, says goodbye; an error says why the node had to stop.
    async fn close(mut self) -> Result<()> {
        self.end_all();
        let Self { workers, mut durable, net, fatal, .. } = self;
        workers.shutdown().await;
        let closed = durable.close();
        net.close().await;
        fatal.map_or(closed, Err)
    }

    fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }
}

/// What comes from the API or from the streams of jobs.
enum Local {
    Command(Command),
    Stream(StreamEvent),
}

/// Waits for a command or a stream's event, in turn where both are there: requests that flood the node must not keep those
/// that were taken from their ends, nor fast streams the owner from being answered. Cancel safe.
async fn next_local(
    commands: &mut mpsc::Receiver<Command>,
    streams: &mut mpsc::Receiver<StreamEvent>,
    is_for_streams: bool,
) -> Local {
    if is_for_streams && let Ok(event) = streams.try_recv() {
        return Local::Stream(event);
    }
    tokio::select! {
        biased;
        Some(command) = commands.recv() => Local::Command(command),
        Some(event) = streams.recv() => Local::Stream(event),
        else => std::future::pending().await,
    }
}

/// Turns that workers, commands and streams may take in a row: one provider's tokens must not silence the others.
const LOCAL_MAX: usize = 64;

/// When nothing is due, looking again tomorrow is soon enough.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Messages about jobs whose failure would be of interest; older ones have long arrived.
const TAGS_MAX: usize = 4096;

/// Returns the node that the journal describes; its clock is not behind what the journal says.
fn follow_journal(
    folder: &DataFolder,
    config: &Config,
    identity: &Identity,
) -> Result<(Node, Durable, Clock)> {
    let mut checkpoints = 0;
    if identity.issuer.is_some() {
        let count = |record: &[u8]| checkpoints += usize::from(is_checkpoint(record));
        journal::peek(&folder.journal(), count)?;
    }
    let seed = u64::from_le_bytes(crate::identity::random());
    let mut starting = Starting::new(node_config(config, identity), seed, checkpoints);
    let mut latest = Time::default();
    let durable = Durable::open(folder, identity.manifest.domain(), |record| {
        if let Record::Job(job) = &record {
            latest = latest.max(job.end);
        }
        Ok(starting.follow(record)?)
    })?;
    let clock = Clock::start(latest.0);
    Ok((starting.start(Time(clock.now_ms())), durable, clock))
}

/// An issuer's books are on its own disk only.
fn check_recoverable(config: &Config, identity: &Identity) -> Result<()> {
    if config.recover && identity.issuer.is_some() {
        return Err(Failure::new(
            FailureKind::Forbidden,
            "this node is an issuer: its books cannot be had from other nodes. Restore its data folder from a backup, \
             or its ledger from an exported file",
        )
        .into());
    }
    Ok(())
}

fn node_config(config: &Config, identity: &Identity) -> node::Config {
    node::Config {
        manifest: protocol::manifest::Manifest::clone(&identity.manifest),
        node: identity.node.clone(),
        owner: identity.owner.clone(),
        issuer: identity.issuer.clone(),
        name: config.name.clone(),
        incentive: Incentive::Exchange,
        class: config.class,
        region: config.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        builders: config.builders.clone(),
    }
}

/// A provider that has done a job would do it again, and no node says an advert twice; whatever else is said may be.
fn repeat_of(message: &Message<protocol::message::Wire>) -> Repeat {
    if matches!(message, Message::Submit { .. } | Message::Advert(_)) { Repeat::No } else { Repeat::Yes }
}

fn net_config(config: &Config, identity: &Identity) -> Result<NetConfig> {
    let listen = config.listen.iter().map(|address| address.parse());
    let name = identity.manifest.name.clone();
    Ok(NetConfig {
        secret: identity.secret,
        domain: identity.manifest.domain().0,
        listen: listen.collect::<Result<_, _>>()?,
        announce: Vec::new(),
        mdns: if config.mdns { Mdns::Announce { name } } else { Mdns::Off },
        relay_server: false,
        upnp: false,
        agent: format!("sharemesh/{}", env!("CARGO_PKG_VERSION")),
        limits: Limits::STANDARD,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::frame::{Generate, Prompt, Sampling};
    use tokio::sync::oneshot;

    use std::sync::Arc;

    use super::*;
    use crate::api::views::JobEvent;
    use crate::command::{JobRequest, events_of};

    /// Returns the driver of a new home network's issuer, not running.
    fn driver(folder: &Path) -> Driver {
        let config = Config {
            data: folder.join("node"),
            name: "test".to_owned(),
            class: protocol::advert::ProviderClass::Community,
            region: String::new(),
            listen: Vec::from(["/ip4/127.0.0.1/udp/0/quic-v1".to_owned()]),
            api: ([127, 0, 0, 1], 0).into(),
            keep_epochs: crate::config::KEEP_EPOCHS,
            join: None,
            mdns: false,
            dev: true,
            serve: Vec::new(),
            price: None,
            slots: 1,
            threads: Some(1),
            budget_nano: 1_000_000,
            recover: false,
            exit_with_parent: false,
            passphrase: None,
            device: None,
            network: None,
            issuer_key: None,
            bootstrap: Vec::new(),
            builders: BTreeMap::new(),
            cors_origins: crate::api::cors::Origins::default(),
        };
        let (_, commands) = mpsc::channel(1);
        Driver::open(config, commands, CancellationToken::new()).unwrap()
    }

    fn request(model: &str) -> JobRequest {
        let generate = Generate {
            prompt: Prompt::Text("hello".to_owned()),
            max_tokens: 4,
            sampling: Sampling::default(),
            resume: Vec::new(),
            logprobs: None,
            form: None,
        };
        JobRequest::new(model.to_owned(), generate)
    }

    /// Submits a job; returns where its events come.
    fn submit(driver: &mut Driver, job: u8, model: &str) -> mpsc::Receiver<JobEvent> {
        let request = request(model);
        let (events, receiver) = events_of(&request);
        driver.on_command(Command::Submit { job: [job; 16], request: Arc::new(request), events });
        driver.process_inputs();
        receiver
    }

    /// Checks that a job had exactly one event: a failure of this kind.
    fn check_failed(events: &mut mpsc::Receiver<JobEvent>, kind: FailureKind) {
        let Ok(JobEvent::Failed { failure, .. }) = events.try_recv() else { panic!("no failure") };
        assert_eq!(failure.kind, kind);
        assert_eq!(events.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
    }

    /// A model by its id: its job goes to the core, which looks for a provider.
    fn unserved() -> String {
        ModelId([7; 32]).to_string()
    }

    #[test]
    fn only_a_job_and_an_advert_are_never_sent_twice() {
        let model = ModelId([7; 32]);
        let (spec, _) = body::describe(&request("model"), model).unwrap();
        let job = JobId([1; 16]);
        let account = protocol::ids::AccountId([0; 32]);

        assert_eq!(repeat_of(&Message::Submit { job, spec, channel: None, opening: None }), Repeat::No);
        assert_eq!(repeat_of(&Message::Ask { job, model, account, markup: None }), Repeat::Yes);
        assert_eq!(repeat_of(&Message::AdvertQuery), Repeat::Yes);
    }

    #[tokio::test]
    async fn two_jobs_of_one_name_do_not_wait_side_by_side_and_each_ends_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());

        let mut first = submit(&mut driver, 1, "unheard-of");
        let mut second = submit(&mut driver, 1, "unheard-of");
        check_failed(&mut second, FailureKind::Busy);
        driver.on_command(Command::Cancel { job: [1; 16] });

        check_failed(&mut first, FailureKind::Cancelled);
    }

    #[tokio::test]
    async fn a_job_that_is_cancelled_while_a_provider_is_sought_ends_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());

        let mut events = submit(&mut driver, 1, &unserved());
        assert_eq!(driver.node.jobs().count(), 1);
        driver.on_command(Command::Cancel { job: [1; 16] });
        driver.process_inputs();

        check_failed(&mut events, FailureKind::Cancelled);
        assert!(driver.jobs.is_empty() && driver.node.jobs().next().is_none());
    }

    #[tokio::test]
    async fn a_job_stays_cancellable_when_its_client_has_gone_and_its_provider_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());

        drop(submit(&mut driver, 1, &unserved()));
        driver.detach(JobId([1; 16]));
        driver.process_inputs();
        assert!(driver.jobs.contains_key(&JobId([1; 16])), "the core still has it");
        driver.on_tick();
        driver.process_inputs();

        assert!(driver.jobs.is_empty() && driver.node.jobs().next().is_none());
    }

    #[tokio::test]
    async fn a_node_that_stops_ends_every_job() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());
        let mut waiting = submit(&mut driver, 1, "unheard-of");
        let mut sought = submit(&mut driver, 2, &unserved());

        driver.close().await.unwrap();

        check_failed(&mut waiting, FailureKind::Unavailable);
        check_failed(&mut sought, FailureKind::Unavailable);
    }

    #[tokio::test]
    async fn nothing_follows_once_the_journal_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());
        driver.fatal = Some(anyhow::anyhow!("the disk is full"));

        let _events = submit(&mut driver, 1, &unserved());

        assert!(driver.node.jobs().next().is_none());
        assert!(driver.close().await.unwrap_err().to_string().contains("full"));
    }

    #[tokio::test]
    async fn a_grant_is_answered_once_it_is_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());
        let (reply, mut answer) = oneshot::channel();
        let account = driver.node.account().to_string();

        driver.on_command(Command::Grant { account, nano: 1000, reply });
        driver.process_inputs();
        assert!(answer.try_recv().is_err(), "the disk has not said so");
        let committed = driver.durable.committed().await;
        driver.on_committed(committed);
        driver.process_inputs();

        assert_eq!(answer.try_recv().unwrap().unwrap().credits.nano, 1000);
    }

    #[tokio::test]
    async fn grants_that_were_asked_for_at_once_do_not_exceed_the_budget() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());
        let account = driver.node.account().to_string();
        let mut answers = Vec::new();
        for _ in 0..2 {
            let (reply, answer) = oneshot::channel();
            driver.on_command(Command::Grant { account: account.clone(), nano: 600_000, reply });
            answers.push(answer);
        }

        driver.process_inputs();

        assert!(answers[0].try_recv().is_err(), "it waits for the disk");
        let refused = answers[1].try_recv().unwrap().unwrap_err();
        assert_eq!(refused.kind, FailureKind::NoCredits);
    }
}
