//! A node of the network: takes what happened, says what follows. The one place where all rules meet.
//!
//! The same machine runs in the real binary and, by the ten thousand, in the simulator. A job's path can be followed
//! here: the requester's side in `requester`, the provider's in `provider`, the issuer's in `issuing`, and what
//! keeps channels, their copies at other nodes, peers and adverts in order in `channels`, `mirrors`, `peers` and
//! `adverts`.

mod accounts;
mod adverts;
mod agreeing;
mod auditing;
mod channels;
mod checkpoints;
mod committing;
mod confirming;
mod forward;
mod issuing;
mod markups;
mod mirrors;
mod notices;
mod orders;
mod peers;
mod provider;
mod queries;
mod quorum;
mod recovery;
mod replay;
mod requester;
mod spending;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one kind of effect among all")]
mod tests;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::advert::{Advert, Device, Incentive, ModelOffer, ProviderClass};
use crate::books::{BooksMessage, BooksRecord};
use crate::clocks::Clocks;
use crate::deadlines::Deadlines;
use crate::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, NodeId, RecordId};
use crate::job::{Finish, JobEvent, JobSpec, too_long};
use crate::keys::Signer;
use crate::ledger::account::{Inception, Lineage};
use crate::ledger::issuer::Booked;
use crate::ledger::paid::{Agreement, Paid};
use crate::ledger::quorum::{Acks, Answers, View, Views};
use crate::ledger::records::{self, Epoch, Membership, Rights};
use crate::ledger::wallet::Wallet;
use crate::manifest::Manifest;
use crate::message::{Checked, JoinError, Message, Wire};
use crate::prng::Prng;
use crate::record::Record;
use crate::router::Router;
use crate::scheduler::Scheduler;
use crate::signed::{Role, Signable, Signed, Verified, sign};
use crate::time::Time;

pub use accounts::RotationView;
pub use adverts::Heard;
pub use auditing::{AuditState, AuditView, Distrusted};
pub use checkpoints::{BooksView, KEPT_MAX as CHECKPOINTS_KEPT_MAX, OwnLeaf};
pub use forward::{Bookkeeper, are_stated, is_issuers};
pub use markups::MarkupError;
pub use orders::{Order, OrderError, OwnWithdrawal};
pub use queries::{AccountView, ChannelView, DeviceView, PeerView};
pub use recovery::RecoveryView;
pub use replay::{ReplayError, Starting};
pub use requester::{JOBS_MAX as OWN_JOBS_MAX, JobView};

/// Everything that a node is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The network.
    pub manifest: Manifest,
    /// Key of the node: its name on the mesh.
    pub node: Signer,
    /// For whom it acts.
    pub owner: Owner,
    /// Key of the issuer, on the node that is one.
    pub issuer: Option<Signer>,
    /// What its owner calls it.
    pub name: String,
    /// What happens with what it earns.
    pub incentive: Incentive,
    /// Kind of provider.
    pub class: ProviderClass,
    /// Where it is, as an ISO 3166 code; empty when it does not say.
    pub region: String,
    /// Software version, for the advert.
    pub version: String,
    /// Builders to whom jobs of this account may pay a markup, each with the most, in basis points.
    pub builders: BTreeMap<AccountId, u16>,
}

/// For whom a node acts, and by which right.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a node has one")]
pub enum Owner {
    /// The account that is this key. The key cannot be replaced.
    Key(Signer),
    /// An account with a next key, as its wallet node: the one node that signs its steps.
    Wallet {
        /// How the account begins.
        inception: Inception,
        /// Its key in force, as far as this node knows.
        key: Signer,
        /// The next key, when a rotation was under way.
        next: Option<Signer>,
    },
    /// An account whose wallet node is another one, which has authorised this node.
    Device(Box<Delegation>),
}

/// By which right a node acts for an account without holding its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Delegation {
    /// The owner's word.
    pub device: Verified<records::Device>,
    /// The keys that the account had; none for an account that is a plain key.
    pub lineage: Option<Lineage>,
    /// The account's wallet node.
    pub wallet: NodeId,
}

impl Owner {
    /// Returns the account.
    #[must_use]
    pub fn account(&self) -> AccountId {
        match self {
            Self::Key(signer) => signer.public().into(),
            Self::Wallet { inception, .. } => inception.account(),
            Self::Device(delegation) => delegation.device.account,
        }
    }
}

impl From<Signer> for Owner {
    fn from(signer: Signer) -> Self {
        Self::Key(signer)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one is taken at a time")]
pub enum Input {
    /// A peer said something.
    Received(NodeId, Message<Checked>),
    /// An advert came by gossip.
    Heard(Verified<Advert>),
    /// Something about the issuers' books came by gossip.
    Spread(BooksMessage<Checked>),
    /// A message about a job did not reach a peer.
    SendFailed(NodeId, JobId),
    /// The owner wants a job done.
    Submitted(JobId, JobSpec),
    /// The owner no longer wants it.
    Cancelled(JobId),
    /// So many tokens of a job have arrived in all.
    Progress {
        /// The job.
        job: JobId,
        /// Tokens so far.
        tokens: u32,
    },
    /// A job's stream came to its end.
    StreamEnded {
        /// The job.
        job: JobId,
        /// Tokens that arrived.
        tokens: u32,
        /// Digest over their ids.
        digest: Digest,
    },
    /// A job's stream broke, or was silent for too long.
    StreamLost {
        /// The job.
        job: JobId,
        /// Tokens that arrived before.
        tokens: u32,
        /// Digest over their ids.
        digest: Digest,
    },
    /// The engine of a model said something.
    Engine(EngineEvent),
    /// The directory names nodes that might serve a model.
    Found(ModelId, Vec<NodeId>),
    /// A peer is connected.
    PeerUp(NodeId),
    /// A peer is no longer connected.
    PeerDown(NodeId),
    /// The owner wants something else.
    Owner(OwnerCommand),
    /// The time that the node asked for has come.
    Wake,
}

/// What an engine says.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineEvent {
    /// It can serve a model.
    Ready {
        /// What it serves, at which price.
        offer: ModelOffer,
        /// On what.
        device: Device,
    },
    /// It cannot serve a model until it is ready again.
    Lost(ModelId),
    /// It has counted a prompt.
    Prepared {
        /// The job.
        job: JobId,
        /// Prompt tokens.
        tokens_in: u32,
    },
    /// It has generated all that a job may, and waits for a grant.
    Waiting {
        /// The job.
        job: JobId,
        /// Tokens generated.
        tokens_out: u32,
    },
    /// It has finished a job.
    Finished {
        /// The job.
        job: JobId,
        /// Tokens generated.
        tokens_out: u32,
        /// Digest over their ids.
        digest: Digest,
        /// Why it ended.
        finish: Finish,
    },
    /// It could not finish a job.
    Failed {
        /// The job.
        job: JobId,
        /// Tokens generated before.
        tokens_out: u32,
        /// Digest over their ids.
        digest: Digest,
        /// Why.
        fault: EngineFault,
    },
}

/// Why an engine fails a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    /// Prompt and answer do not fit the context.
    #[error("{} has {tokens} tokens, and the model's context is {context}", too_long(*text))]
    PromptTooLong {
        /// Tokens counted.
        tokens: u32,
        /// Tokens that fit.
        context: u32,
        /// Which of several texts it is, the first being 0.
        text: Option<u32>,
    },
    /// The request makes no sense to the model.
    #[error("{0}")]
    BadRequest(String),
    /// The engine broke.
    #[error("{0}")]
    Broken(String),
}

/// What the owner of a node wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerCommand {
    /// As issuer: makes a ticket that carries `amount` nano-credits.
    MakeTicket {
        /// Its secret, drawn by the shell.
        secret: [u8; 16],
        /// Nano-credits.
        amount: u64,
    },
    /// As issuer: gives credits out of the budget.
    Grant {
        /// Names the gift; the same one counts once.
        reference: Digest,
        /// To whom.
        account: AccountId,
        /// Nano-credits.
        amount: u64,
    },
    /// As issuer: books credits that were paid for outside; the operator has seen the payment.
    Deposit {
        /// Names the payment outside; the same one counts once.
        reference: Digest,
        /// To whom.
        account: AccountId,
        /// Nano-credits.
        amount: u64,
    },
    /// As issuer: notes that a withdrawal was paid out.
    MarkPaid {
        /// The step that withdrew.
        step: RecordId,
        /// The operator's reference.
        reference: String,
    },
    /// Pays or withdraws; answered with [`Effect::Ordered`] under this name.
    Order(Digest, Order),
    /// Joins the network with a ticket's secret, as soon as an issuer is connected.
    Join {
        /// The secret.
        secret: [u8; 16],
    },
    /// Closes every idle channel and redeems what was earned, now.
    Settle,
    /// Looks for providers of a model.
    Discover(ModelId),
    /// Computes the checkpoint of an epoch again, or the newest.
    Audit(Option<Epoch>),
    /// Takes no more work; jobs in flight are finished.
    Stop,
    /// Replaces the account's key by the promised one.
    Rotate {
        /// Seed of the promised key, which is on disk already.
        seed: [u8; 32],
        /// Promise of the key after it.
        next: Digest,
    },
    /// Lets a node act for the account, or with no rights no longer.
    Authorise {
        /// The node.
        node: NodeId,
        /// What it may do.
        rights: Rights,
        /// Last epoch in which it may.
        until: Epoch,
        /// Nano-credits that it may have escrowed in an epoch.
        budget: u64,
    },
    /// Asks issuers, partners and mirrors for what this node has lost, and signs and serves nothing before.
    Recover,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write to the journal; later effects of the same batch wait until it is durable.
    Record(Record),
    /// Write to the journal with the next group commit; nothing waits.
    Note(Record),
    /// Say something to a peer. A submitted job's prompt travels beside it.
    Send(NodeId, Message<Wire>),
    /// Spread an advert to whoever is interested in a model.
    Publish(ModelId, Signed<Advert>),
    /// Spread a message about the issuers' books to everybody.
    Spread(BooksMessage<Wire>),
    /// Be interested in a model's adverts.
    Subscribe(ModelId),
    /// Ask the directory who might serve a model.
    Lookup(ModelId),
    /// Tell the directory that this node serves a model.
    Provide(ModelId),
    /// Take up a connection to a peer.
    Dial(NodeId),
    /// Give a job to the engine, its tokens to `requester` (this node itself for a job of its owner).
    Run {
        /// The job.
        job: JobId,
        /// Who gets the tokens.
        requester: NodeId,
        /// What is to be done.
        spec: JobSpec,
        /// Tokens that may be generated before a grant.
        up_to: u32,
    },
    /// Let a job generate up to so many tokens in all.
    Grant {
        /// The job.
        job: JobId,
        /// Tokens in all.
        up_to: u32,
    },
    /// Stop generating.
    Abort(JobId),
    /// Take the tokens of a job from this provider.
    Attach {
        /// The job.
        job: JobId,
        /// The provider.
        provider: NodeId,
    },
    /// Take no more tokens of a job.
    Detach(JobId),
    /// Tell whoever submitted a job.
    Tell(JobId, JobEvent),
    /// The issuer's answer to an attempt to join.
    Joined(Result<(), JoinError>),
    /// What became of an order: the step that was taken, or why there is none.
    Ordered(Digest, Result<RecordId, OrderError>),
    /// A peer broke a rule: count it.
    Penalise(NodeId, Offence),
    /// Somebody gave back what this node had lost: a channel, with so much paid on it, in nano-credits.
    Restored {
        /// Who.
        by: NodeId,
        /// The channel.
        channel: ChannelId,
        /// Base paid on it by the receipt given back; none when only the proof of the channel was.
        paid: Option<u64>,
    },
    /// The recovery is over; so many channels were given back, and so many are still missing.
    Recovered {
        /// Given back.
        channels: usize,
        /// Open at the issuer, and held by nobody who was there.
        missing: usize,
    },
}

/// A rule that a peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offence {
    /// A record signed with a key that has no right to it.
    WrongSigner,
    /// A message that only members may send.
    NotAdmitted,
    /// A receipt, a final or an opening that breaks the ledger's rules.
    BadLedger,
    /// A count or a digest that is not what was delivered.
    BadCount,
    /// An advert that is foreign, old news of its author's, or one that no node would sign.
    BadAdvert,
    /// More than a bound allows.
    Excess,
}

/// What can fall due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The present phase of a job of ours.
    Job(JobId),
    /// A job that we serve waits for a payment.
    Serving(JobId),
    /// Resending and settling.
    Reconcile,
    /// Adverts and provider records grow old.
    Advertise,
    /// Another channel may be opened.
    Openings,
    /// Issuers agree on a checkpoint.
    Agreement,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    me: NodeId,
    domain: DomainId,
    config: Config,
    device: Verified<records::Device>,
    membership: Option<Verified<Membership>>,
    joining: Option<[u8; 16]>,
    peers: BTreeMap<NodeId, peers::Peer>,
    router: Router,
    wallet: Wallet,
    /// Terms of the channel that the wallet's pending step opens.
    opening_terms: Option<Verified<records::Terms>>,
    /// What issuers have answered to the wallet's pending step.
    answers: Answers,
    /// What issuers last said of our account.
    views: Views,
    clocks: Clocks,
    /// What issuers have acknowledged of our channels.
    acks: BTreeMap<ChannelId, Acks>,
    /// What issuers are shown of that, so that they count it.
    confirming: confirming::Confirming,
    /// Issuers that do not know the ticket with which we are joining.
    refusing: BTreeSet<NodeId>,
    /// The issuer has moved credits since it last told us what our account holds.
    balance_is_old: bool,
    paying: BTreeMap<ChannelId, channels::PayingChannel>,
    /// On the heap, because a map's nodes are a third empty.
    paid: BTreeMap<ChannelId, Box<Paid>>,
    /// What channels in `paid` share, by their terms.
    agreed: BTreeMap<RecordId, Arc<Agreement>>,
    /// Channels on which we were paid and which are closed, until they would have ended anyway: their openings must not
    /// be shown to us again.
    ended: BTreeMap<ChannelId, (Epoch, AccountId)>,
    checkpoints: checkpoints::Checkpoints,
    auditing: Option<auditing::Auditing>,
    jobs: BTreeMap<JobId, requester::Job>,
    burst: requester::Burst,
    orders: orders::Orders,
    /// News of our account that is in the journal.
    noted: notices::Noted,
    markups: markups::Markups,
    scheduler: Scheduler,
    served: BTreeMap<ModelId, (ModelOffer, Device)>,
    serving: BTreeMap<JobId, provider::Serving>,
    /// Subscribed, so that each is asked for once.
    subscribed: BTreeSet<ModelId>,
    /// Nodes dialled because they were heard of, and since when they are counted.
    heard_of: (Time, u32),
    issuing: Option<issuing::Issuing>,
    /// What is out of date of other accounts.
    outdated: accounts::Outdated,
    /// A rotation that the owner wants, or why it was refused.
    rotation: accounts::Rotation,
    /// The nodes that this wallet node has authorised.
    devices: BTreeMap<NodeId, accounts::Authorised>,
    /// Channels for the account's other nodes.
    spending: spending::Spending,
    mirrors: mirrors::Mirrors,
    /// What others are asked for before this node signs or serves.
    recovery: Option<recovery::Recovery>,
    /// Before which epoch the issuers have named all channels of ours, in the last recovery.
    recovered: Option<Epoch>,
    /// Books that are being taken out of the journal, at the start.
    forwarding: forward::Forwarding,
    /// Channels of ours that are open at the issuer and that nobody has given back yet, since the last recovery.
    missing: BTreeMap<ChannelId, Booked>,
    /// Up to which channel peers have given back what they hold of those, if that was not all.
    missing_after: BTreeMap<NodeId, ChannelId>,
    advert_sequence: u64,
    stopping: bool,
    deadlines: Deadlines<Timer>,
    prng: Prng,
    /// What this node says to itself, in its other roles.
    loopback: VecDeque<Message<Checked>>,
}

impl Node {
    /// Returns the node that the journal's `records` describe, at `now`. Whoever has very many reads them one by one,
    /// with [`Starting`].
    ///
    /// # Errors
    /// When a record cannot be read or contradicts the ones before it: the journal is not this node's.
    pub fn new(config: Config, seed: u64, records: &[Record], now: Time) -> Result<Self, ReplayError> {
        let is_checkpoint = |record: &&Record| matches!(record, Record::Books(BooksRecord::Checkpoint(_)));
        let mut starting = Starting::new(config, seed, records.iter().filter(is_checkpoint).count());
        for record in records {
            starting.follow(record.clone())?;
        }
        Ok(starting.start(now))
    }

    fn empty(config: Config, seed: u64) -> Self {
        let domain = config.manifest.domain();
        let me = NodeId::from(config.node.public());
        let wallet = accounts::wallet(domain, &config.owner);
        let device = accounts::delegation(&wallet, &config.owner, me, domain, Epoch::default());
        let issuing =
            config.issuer.clone().map(|signer| issuing::Issuing::new(config.manifest.clone(), signer));
        let clocks = Clocks::new(config.issuer.as_ref().map(Signer::public));
        Self {
            me,
            domain,
            config,
            device,
            membership: None,
            joining: None,
            peers: BTreeMap::new(),
            router: Router::default(),
            wallet,
            opening_terms: None,
            answers: Answers::default(),
            views: Views::default(),
            clocks,
            acks: BTreeMap::new(),
            confirming: confirming::Confirming::default(),
            refusing: BTreeSet::new(),
            balance_is_old: false,
            paying: BTreeMap::new(),
            paid: BTreeMap::new(),
            agreed: BTreeMap::new(),
            ended: BTreeMap::new(),
            checkpoints: checkpoints::Checkpoints::default(),
            auditing: None,
            jobs: BTreeMap::new(),
            burst: requester::Burst::default(),
            orders: orders::Orders::default(),
            noted: notices::Noted::default(),
            markups: markups::Markups::default(),
            scheduler: Scheduler::default(),
            served: BTreeMap::new(),
            serving: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            heard_of: (Time::default(), 0),
            issuing,
            outdated: accounts::Outdated::default(),
            rotation: accounts::Rotation::default(),
            devices: BTreeMap::new(),
            spending: spending::Spending::default(),
            mirrors: mirrors::Mirrors::default(),
            recovery: None,
            recovered: None,
            forwarding: forward::Forwarding::default(),
            missing: BTreeMap::new(),
            missing_after: BTreeMap::new(),
            advert_sequence: 0,
            stopping: false,
            deadlines: Deadlines::default(),
            prng: Prng::new(seed),
            loopback: VecDeque::new(),
        }
    }

    /// The journal ends here.
    fn start(&mut self, now: Time) {
        self.advert_sequence = now.0;
        self.learn_own_account();
        if let Some(issuing) = &mut self.issuing {
            issuing.untold.extend(issuing.witness.books.all_routed());
        }
        self.sign_own_device(now);
        self.paying.values_mut().for_each(|channel| channel.side.restarted());
        self.paid.values_mut().for_each(|paid| paid.restarted());
        self.deadlines.set(Timer::Reconcile, now.plus_ms(channels::RECONCILE_MS));
        self.deadlines.set(Timer::Advertise, now.plus_ms(adverts::ADVERTISE_MS));
    }

    /// Takes one input and appends what follows from it to `out`, in order.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        self.end_epochs(now, out);
        match input {
            Input::Received(from, message) => self.on_received(from, message, now, out),
            Input::Heard(advert) => self.on_advert(advert, now, out),
            Input::Spread(message) => self.on_spread(message, now, out),
            Input::SendFailed(to, job) => self.on_send_failed(to, job, now, out),
            Input::Submitted(job, spec) => self.on_submitted(job, spec, now, out),
            Input::Cancelled(job) => self.on_cancelled(job, now, out),
            Input::Progress { job, tokens } => self.on_progress(job, tokens, now, out),
            Input::StreamEnded { job, tokens, digest } => self.on_stream_ended(job, tokens, digest, now, out),
            Input::StreamLost { job, tokens, digest } => self.on_stream_lost(job, tokens, digest, now, out),
            Input::Engine(event) => self.on_engine(event, now, out),
            Input::Found(_, nodes) => self.on_found(&nodes, out),
            Input::PeerUp(peer) => self.on_peer_up(peer, now, out),
            Input::PeerDown(peer) => self.on_peer_down(peer, now, out),
            Input::Owner(command) => self.on_owner(command, now, out),
            Input::Wake => self.on_wake(now, out),
        }
        while let Some(message) = self.loopback.pop_front() {
            self.on_message(self.me, message, now, out);
        }
    }

    /// Returns when this node next wants an [`Input::Wake`], and why.
    #[must_use]
    pub fn next_wake(&self) -> Option<(Time, &'static str)> {
        self.deadlines.next().map(|(at, timer)| (at, timer.reason()))
    }

    fn on_wake(&mut self, now: Time, out: &mut Vec<Effect>) {
        while let Some(timer) = self.deadlines.expire(now) {
            match timer {
                Timer::Job(job) => self.on_job_due(job, now, out),
                Timer::Serving(job) => self.on_serving_due(job, now, out),
                Timer::Reconcile => self.on_reconcile_due(now, out),
                Timer::Advertise => self.on_advertise_due(now, out),
                Timer::Openings => self.resume_openings(now, out),
                Timer::Agreement => self.on_agreement_due(now, out),
            }
        }
    }

    fn on_received(&mut self, from: NodeId, message: Message<Checked>, now: Time, out: &mut Vec<Effect>) {
        if let Some(message) = self.admit(from, message, out) {
            self.on_message(from, message, now, out);
        }
    }

    fn on_message(&mut self, from: NodeId, message: Message<Checked>, now: Time, out: &mut Vec<Effect>) {
        if self.recovery.is_some() && !recovery::lets_through(&message) {
            return;
        }
        match message {
            Message::Hello { device, lineage, membership, advert, asks } => {
                let known = self.has_greeted(from);
                self.on_hello(from, (device, lineage.as_ref()), membership, advert, now, out);
                if asks && known {
                    self.greet(from, now, out);
                }
            }
            Message::Join { secret } => self.on_join(from, secret, now, out),
            Message::Joined { membership, deposit } => self.on_joined(from, membership, deposit, now, out),
            Message::JoinRefused(error) => self.on_join_refused(from, error, out),
            Message::AdvertQuery => self.on_advert_query(from, now, out),
            Message::Advert(advert) => self.on_advert_said(from, advert, now, out),
            Message::Ask { job, model, account, markup } => {
                self.on_ask(from, job, (model, account, markup), now, out);
            }
            Message::Offer { job, terms } => self.on_offer(from, job, terms, now, out),
            Message::Refused { job, refusal } => self.on_refused(from, job, refusal, now, out),
            Message::AccountQuery => self.on_account_query(from, now, out),
            Message::Clock(theirs) => self.on_clock(from, theirs, now),
            Message::AccountState { account, next, head, balance } => {
                self.on_account_state(from, account, View { next, head, balance }, now, out);
            }
            Message::Step { op, terms } => self.on_step(from, &op, terms.as_ref(), now, out),
            Message::Stepped { vote, recorded, balance } => {
                self.on_stepped(from, &vote, recorded, balance, now, out);
            }
            Message::StepRefused { op, error, balance } => {
                self.on_step_refused(from, op, error, balance, now, out);
            }
            Message::Submit { job, spec, channel, opening } => {
                self.on_submit(from, job, spec, channel, opening, now, out);
            }
            Message::Accepted(accepted) => self.on_accepted(from, &accepted, now, out),
            Message::Pay { receipt, allowances } => self.on_pay(from, &receipt, &allowances, now, out),
            Message::CoSigned(receipt) => self.on_co_signed(from, receipt, now, out),
            Message::Finished { record, jobs } => self.on_finished(from, record, jobs, now, out),
            Message::Failed { job, tokens_out, reason } => {
                self.on_failed(from, job, tokens_out, reason, now, out)
            }
            Message::Cancel { job } => self.on_cancel(from, job, out),
            Message::Heads(heads) => {
                if self.answers_heads(from, &heads, now, out) {
                    self.on_heads(from, &heads, out);
                }
            }
            Message::Redeem { receipt, claim } => self.on_redeem(from, &receipt, &claim, now, out),
            Message::Redeemed(ack) => self.on_redeemed(from, &ack, out),
            Message::Close { closing, opening } => self.on_close(from, &closing, opening, now, out),
            Message::Keep(_)
            | Message::Kept { .. }
            | Message::Compare(_)
            | Message::Compared(_)
            | Message::KeptQuery(_)
            | Message::Over(_)
            | Message::RedeemKept(_)
            | Message::RedeemedKept(_)
            | Message::Recover(_) => self.on_mirror_message(from, message, now, out),
            Message::ChannelsQuery(after) => self.on_channels_query(from, after, now, out),
            Message::Channels { channels, last } => self.on_channels(from, &channels, last, now, out),
            Message::Voted { vote, balance } => self.on_voted(from, vote, balance, out),
            Message::Recorded { recorded, balance } => self.on_recorded(from, recorded, balance, now, out),
            Message::Fact(fact) => self.on_fact(from, &fact, now, out),
            Message::Deposit(deposit) => self.on_deposit(from, &deposit, now, out),
            Message::CloseVoted(vote) => self.on_close_voted(from, &vote, now, out),
            Message::FactsQuery(since) => self.on_facts_query(from, since, out),
            Message::Facts { first, names } => self.on_facts(from, first, &names, out),
            Message::FactQuery(names) => self.on_fact_query(from, &names, out),
            Message::Agreeing(message) => self.on_agreeing(from, message, now, out),
            Message::Markups(routed) => self.on_markups(from, routed, out),
            Message::MarkupsNoted(routed) => self.on_markups_noted(from, &routed, now, out),
            Message::Confirm(acks) => self.on_confirm(from, &acks, out),
            Message::Confirmed { channel, amount } => self.on_confirmed(from, (channel, amount), out),
            Message::Notice(news) => self.on_notice(from, &news, out),
            Message::Noticed(record) => self.on_noticed(from, record, out),
            Message::Payout { step, to } => self.on_payout(from, step, to, out),
            Message::Withdrawal { step, paid } => self.on_withdrawal(from, step, paid, now, out),
            Message::Books(message) => self.on_books(from, message, now, out),
            Message::Lineage(lineage) => self.on_lineage(from, &lineage, now, out),
            Message::Devices { devices, lineage } => {
                self.on_devices(from, devices, lineage.as_ref(), now, out)
            }
            Message::Spend { request, terms, cap, payer_key } => {
                self.on_spend(from, (request, payer_key), terms, cap, now, out);
            }
            Message::Spent(opening) => self.on_spent(opening, now, out),
            Message::SpendRefused { request, refusal } => self.on_spend_refused(from, request, refusal, out),
        }
    }

    fn on_owner(&mut self, command: OwnerCommand, now: Time, out: &mut Vec<Effect>) {
        match command {
            OwnerCommand::MakeTicket { secret, amount } => self.make_ticket(secret, amount, out),
            OwnerCommand::Grant { reference, account, amount } => {
                self.grant(reference, account, amount, now, out)
            }
            OwnerCommand::Deposit { reference, account, amount } => {
                self.book_deposit(reference, account, amount, now, out);
            }
            OwnerCommand::MarkPaid { step, reference } => self.mark_paid(step, reference, now, out),
            OwnerCommand::Order(id, order) => self.on_order(id, order, now, out),
            OwnerCommand::Join { secret } => self.join(secret, out),
            OwnerCommand::Settle => self.settle(now, out),
            OwnerCommand::Discover(model) => self.discover(model, out),
            OwnerCommand::Audit(epoch) => self.audit(epoch, now, out),
            OwnerCommand::Stop => self.stop(now, out),
            OwnerCommand::Rotate { seed, next } => self.want_rotation(seed, next, now, out),
            OwnerCommand::Authorise { node, rights, until, budget } => {
                self.authorise(node, rights, (until, budget), now, out);
            }
            OwnerCommand::Recover => self.recover(out),
        }
    }

    fn epoch(&self, now: Time) -> Epoch {
        self.config.manifest.epoch(now)
    }

    /// Says something to a peer, or to another role of this node.
    fn send(&mut self, to: NodeId, message: Message<Checked>, out: &mut Vec<Effect>) {
        if to == self.me {
            self.loopback.push_back(message);
        } else {
            out.push(Effect::Send(to, message.to_wire()));
        }
    }

    fn sign<T: Signable>(&self, record: T) -> Verified<T> {
        sign(record, self.domain, Role::Node, &self.config.node)
    }
}

impl Timer {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Job(_) => "a job of ours is due",
            Self::Serving(_) => "a job we serve is due",
            Self::Reconcile => "reconcile",
            Self::Advertise => "advertise",
            Self::Openings => "another channel may be opened",
            Self::Agreement => "issuers agree",
        }
    }
}
