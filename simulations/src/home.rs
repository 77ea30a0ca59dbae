//! Stories with an end that can be checked: a home network, its troubles, its healing, its settlement.

use protocol::advert::{Incentive, ModelOffer, ProviderClass};
use protocol::ids::{Digest, JobId, ModelId};
use protocol::job::{Constraints, Input, JobSpec, Sampling};
use protocol::keys::Signer;
use protocol::licence::open_licence;
use protocol::manifest::{Issuer, Manifest};
use protocol::model::Modality;
use protocol::node::{Config, Order, OwnerCommand};
use protocol::price::{NANO_PER_CREDIT, Price};
use protocol::prng::Prng;
use protocol::time::Time;

use crate::checks;
use crate::devices::Speed;
use crate::network::Conditions;
use crate::world::{Fault, World};

/// The model that every simulated provider serves.
pub const MODEL: ModelId = ModelId([7; 32]);

/// A model that nobody serves.
pub const UNKNOWN_MODEL: ModelId = ModelId([8; 32]);

/// What every simulated provider asks.
pub const PRICE: Price = Price { call: 0, input: 500_000_001, output: 2_000_000_003 };

/// Where simulated time begins.
const START: Time = Time(1_800_000_000_000);

/// Who takes part, and what befalls them.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Issuers: 1, 4, 7 and so on.
    pub issuers: usize,
    /// Machines that serve.
    pub providers: usize,
    /// Machines that ask.
    pub consumers: usize,
    /// Jobs of each that asks.
    pub jobs: usize,
    /// Length of the troubled time in milliseconds.
    pub trouble_ms: u64,
    /// Messages lost in it, of 1,000.
    pub loss_permille: u64,
    /// Crashes, cuts and engine faults in it.
    pub faults: usize,
    /// Payments and withdrawals in it.
    pub orders: usize,
    /// Nano-credits in each ticket.
    pub credits: u64,
    /// Jobs at once of each that serves.
    pub slots: u16,
    /// Length of an epoch in milliseconds.
    pub epoch_ms: u64,
}

impl Setting {
    /// The setting of the smoke test.
    #[must_use]
    pub const fn smoke(seed: u64) -> Self {
        Self {
            seed,
            issuers: 1,
            providers: 4,
            consumers: 8,
            jobs: 40,
            trouble_ms: 180_000,
            loss_permille: 10,
            faults: 24,
            orders: 40,
            credits: NANO_PER_CREDIT,
            slots: 4,
            epoch_ms: 60 * 60 * 1000,
        }
    }

    /// Returns a setting of one consumer and so many providers, without trouble, for a story told by hand.
    #[must_use]
    pub const fn small(seed: u64, providers: usize) -> Self {
        Self {
            providers,
            consumers: 1,
            jobs: 0,
            trouble_ms: 0,
            loss_permille: 0,
            faults: 0,
            orders: 0,
            ..Self::smoke(seed)
        }
    }

    /// The setting of the smoke test for a network with four issuers.
    #[must_use]
    pub const fn four_issuers(seed: u64) -> Self {
        Self { issuers: 4, providers: 3, consumers: 5, jobs: 30, ..Self::smoke(seed) }
    }

    /// Returns a line that runs this setting again.
    #[must_use]
    pub fn reproduce(&self) -> String {
        format!(
            "cargo run -p simulations -- run --seed {} --issuers {} --providers {} --consumers {} --jobs {} --trouble-ms {} --loss {} --faults {} --orders {} --epoch-ms {}",
            self.seed,
            self.issuers,
            self.providers,
            self.consumers,
            self.jobs,
            self.trouble_ms,
            self.loss_permille,
            self.faults,
            self.orders,
            self.epoch_ms
        )
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash over every input of every node.
    pub trace: String,
    /// Inputs handled.
    pub inputs: u64,
    /// Jobs wanted, done, failed.
    pub jobs: (usize, usize, usize),
    /// Why jobs failed, with how many.
    pub failures: std::collections::BTreeMap<String, usize>,
    /// Checkpoints that the issuer keeps at the end.
    pub checkpoints: usize,
    /// Invariants that did not hold.
    pub findings: Vec<String>,
}

/// A home network in which everybody has joined.
#[derive(Debug)]
pub struct Home {
    /// The machines: the issuer, then those that serve, then those that ask.
    pub world: World,
    /// Places of those that serve.
    pub providers: Vec<usize>,
    /// Places of those that ask.
    pub consumers: Vec<usize>,
    /// Nano-credits in all tickets.
    pub deposited: u128,
    prng: Prng,
    jobs: u64,
}

impl Home {
    /// Returns the network of `setting` after everybody has had time to join.
    #[must_use]
    pub fn joined(setting: &Setting, conditions: Conditions) -> Self {
        let mut home = Self::founded(setting, conditions);
        home.world.run_for(15_000);
        let places = home.providers.iter().chain(&home.consumers).copied();
        let missing: Vec<usize> = places.filter(|place| !home.world.is_joined(*place)).collect();
        if !missing.is_empty() {
            home.world.findings.push(format!("hosts {missing:?} did not join"));
        }
        home
    }

    fn founded(setting: &Setting, conditions: Conditions) -> Self {
        let mut prng = Prng::new(setting.seed);
        let signer = |prng: &mut Prng| {
            let mut seed = [0; 32];
            seed.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&prng.next_u64().to_be_bytes()));
            Signer::simulated(seed)
        };
        let keys: Vec<(Signer, Signer)> =
            (0..setting.issuers).map(|_| (signer(&mut prng), signer(&mut prng))).collect();
        let issuers: Vec<Issuer> = keys
            .iter()
            .map(|(issuer, node)| Issuer { key: issuer.public(), node: node.public().into() })
            .collect();
        let quorum = issuers.len() - (issuers.len() - 1) / 3;
        let manifest = Manifest {
            epoch_ms: setting.epoch_ms,
            quorum: u8::try_from(quorum).unwrap_or(u8::MAX),
            ..Manifest::home("simulated".to_owned(), START, &keys[0].0, issuers[0].node)
        };
        let manifest = Manifest { issuers, ..manifest };
        let domain = manifest.domain();
        let mut world = World::new(START, domain, conditions, &mut prng);
        let config = |node: Signer, account: Signer, issuer: Option<Signer>| Config {
            manifest: manifest.clone(),
            node,
            owner: account.into(),
            issuer,
            name: String::new(),
            incentive: Incentive::Exchange,
            class: ProviderClass::Community,
            region: String::new(),
            version: "simulated".to_owned(),
        };
        let speed = Speed { prefill: 2_000, decode: 60 };
        for (issuer, node) in keys {
            let account = signer(&mut prng);
            world.add(config(node, account, Some(issuer)), speed, None, None);
        }
        let mut deposited = 0;
        let mut places = (Vec::new(), Vec::new());
        for place in 1..=setting.providers + setting.consumers {
            let serves = place <= setting.providers;
            let maker = place % setting.issuers;
            let secret = (u128::from(prng.next_u64()) << 64 | u128::from(prng.next_u64())).to_be_bytes();
            world.command_in(0, maker, OwnerCommand::MakeTicket { secret, amount: setting.credits });
            deposited += u128::from(setting.credits);
            let decode = 40 + prng.below(60);
            let offer = serves.then(|| offer(domain, decode, setting.slots));
            let (node, account) = (signer(&mut prng), signer(&mut prng));
            let place =
                world.add(config(node, account, None), Speed { prefill: 2_000, decode }, offer, Some(secret));
            if serves { places.0.push(place) } else { places.1.push(place) }
        }
        Self { world, providers: places.0, consumers: places.1, deposited, prng, jobs: 0 }
    }

    /// Makes every message from or to `host` take so many milliseconds longer.
    pub fn slows(&mut self, host: usize, ms: u64) {
        self.world.network.slow_ms.insert(host, ms);
    }

    /// Makes an issuer lie from now on.
    pub fn lies(&mut self, issuer: usize) {
        self.world.hosts[issuer].lies = true;
        self.world.hosts[issuer].adversary = true;
    }

    /// Submits a job at `consumer` in `ms`; returns its name.
    pub fn submit(&mut self, ms: u64, consumer: usize, spec: JobSpec) -> JobId {
        self.jobs += 1;
        let job = JobId((u128::from(self.prng.next_u64()) << 64 | u128::from(self.jobs)).to_be_bytes());
        self.world.submit_in(ms, consumer, job, spec);
        job
    }

    /// Has the first consumer do a job; returns how many tokens came.
    ///
    /// # Panics
    /// When it is not done in time.
    #[track_caller]
    pub fn does_a_job(&mut self) -> u64 {
        let job = self.submit(0, self.consumers[0], spec(MODEL, 400, 100, 255));
        self.does(job, 20_000);
        u64::from(self.world.jobs[&job].tokens)
    }

    /// Lets time pass until a job is done.
    ///
    /// # Panics
    /// When it is not done after `ms`.
    #[track_caller]
    pub fn does(&mut self, job: JobId, ms: u64) {
        let done = self.world.run_until_so(ms, |world| world.is_done(job));
        assert!(done, "{:?}", self.world.outcome(job));
    }

    /// Ends all faults, has everybody settle, and checks every invariant.
    ///
    /// # Panics
    /// When one does not hold.
    #[track_caller]
    pub fn settles(&mut self) {
        self.heal(60_000);
        assert_eq!(checks::when_healed(&self.world), Vec::<String>::new());
        self.settle();
        assert_eq!(checks::when_settled(&self.world, self.deposited, &PRICE), Vec::<String>::new());
        assert_eq!(self.world.findings, Vec::<String>::new());
    }

    /// Everybody closes and redeems what there is, and has time for it.
    pub fn settle(&mut self) {
        for round in 0..3 {
            for host in 0..self.world.hosts.len() {
                self.world.command_in(round * 20_000, host, OwnerCommand::Settle);
            }
        }
        self.world.run_for(90_000);
    }

    /// Ends all faults, starts whoever is down, lets time pass, and lets everybody meet who has dealt with each other.
    pub fn heal(&mut self, ms: u64) {
        self.world.network.conditions = Conditions::CALM;
        for host in 0..self.world.hosts.len() {
            self.world.fault_in(0, host, Fault::Restart);
        }
        self.world.run_for(ms);
        for consumer in self.consumers.clone() {
            for provider in self.providers.clone() {
                self.world.dial(consumer, provider);
            }
        }
        self.world.run_for(10_000);
    }
}

fn offer(domain: protocol::ids::DomainId, decode: u64, slots: u16) -> ModelOffer {
    ModelOffer {
        model: MODEL,
        name: "simulated".to_owned(),
        modality: Modality::Text,
        licence: open_licence(MODEL, domain),
        price: PRICE,
        context_tokens: 8192,
        slots,
        busy: 0,
        decode_milli: decode * 1000,
        prefill_milli: 2_000_000,
        quantisation: "none".to_owned(),
        weights: Digest::ZERO,
    }
}

/// Returns a job with an answer of at most `max_tokens`; `length` (0 to 255) decides where the model would end it.
#[must_use]
pub fn spec(model: ModelId, bytes: u64, max_tokens: u32, length: u8) -> JobSpec {
    let mut digest = [0; 32];
    digest[0] = length;
    let sampling = Sampling {
        temperature_milli: 0,
        top_p_milli: 1000,
        top_k: 0,
        repetition_penalty_milli: 1000,
        seed: 0,
    };
    JobSpec {
        model,
        input: Input { digest: Digest(digest), bytes, modality: Modality::Text },
        sampling,
        max_tokens,
        constraints: Constraints::default(),
    }
}

/// Runs the troubles of `setting`: jobs, losses, crashes, cuts; then heals, checks, settles, checks.
#[must_use]
pub fn run(setting: &Setting, watched: Option<usize>) -> Report {
    let mut home = Home::joined(setting, Conditions { latency_ms: 5, jitter_ms: 40, loss_permille: 0 });
    home.world.watched = watched;
    if setting.issuers > 1 {
        home.slows(1, 300);
        // A liar may keep to itself what it alone holds: let the deposits for its tickets reach the others first.
        home.world.run_for(15_000);
        home.lies(setting.issuers - 1);
    }
    let mut workload = home.prng.child();
    let mut churn = home.prng.child();
    home.world.network.conditions.loss_permille = setting.loss_permille;
    for consumer in home.consumers.clone() {
        for _ in 0..setting.jobs {
            let model = if workload.below(40) == 0 { UNKNOWN_MODEL } else { MODEL };
            let length = u8::try_from(workload.below(256)).unwrap_or(0);
            let max_tokens = u32::try_from(16 + workload.below(400)).unwrap_or(16);
            let spec = spec(model, 40 + workload.below(2_000), max_tokens, length);
            let at = workload.below(setting.trouble_ms);
            let job = home.submit(at, consumer, spec);
            if workload.below(10) == 0 {
                home.world.cancel_in(at + 1 + workload.below(4_000), consumer, job);
            }
        }
    }
    let mut owners = home.prng.child();
    for _ in 0..setting.orders {
        order(&mut home, &mut owners, setting.trouble_ms);
    }
    for _ in 0..setting.faults {
        trouble(&mut home, &mut churn, setting.trouble_ms);
    }
    home.world.run_for(setting.trouble_ms);
    home.heal(120_000);
    home.world.findings.extend(checks::when_healed(&home.world));
    home.settle();
    home.world.findings.extend(checks::when_settled(&home.world, home.deposited, &PRICE));
    report(setting.seed, &home.world)
}

/// Somebody pays somebody, withdraws, or fills a slot.
fn order(home: &mut Home, prng: &mut Prng, ms: u64) {
    let hosts = home.world.hosts.len() as u64;
    let place = |prng: &mut Prng| usize::try_from(1 + prng.below(hosts - 1)).unwrap_or(1);
    let (host, other) = (place(prng), place(prng));
    let amount = 1 + prng.below(NANO_PER_CREDIT / 20);
    let to = home.world.hosts[other].config.owner.account();
    let order = match prng.below(8) {
        0 => Order::Noop,
        1 | 2 => Order::Withdraw { amount, to: format!("account {host} at a bank") },
        _ => Order::Pay { to, amount },
    };
    let name = Digest::of(&prng.next_u64().to_be_bytes());
    home.world.command_in(prng.below(ms), host, OwnerCommand::Order(name, order));
}

fn trouble(home: &mut Home, churn: &mut Prng, ms: u64) {
    let hosts = home.world.hosts.len();
    let at = churn.below(ms);
    let host = usize::try_from(churn.below(hosts as u64)).unwrap_or(0);
    let other = usize::try_from(churn.below(hosts as u64)).unwrap_or(0);
    match churn.below(5) {
        0 | 1 => {
            home.world.fault_in(at, host, Fault::Crash);
            home.world.fault_in(at + 300 + churn.below(10_000), host, Fault::Restart);
        }
        2 | 3 => home.world.fault_in(at, host, Fault::Cut(other)),
        _ => home.world.fault_in(at, host, Fault::Engine),
    }
}

fn report(seed: u64, world: &World) -> Report {
    use crate::world::Outcome;
    let ended = |done: bool| {
        let is = |outcome: &Outcome| matches!(outcome, Outcome::Done(_)) == done;
        world.jobs.values().filter(|job| job.outcome.as_ref().is_some_and(|(_, outcome)| is(outcome))).count()
    };
    let mut failures = std::collections::BTreeMap::new();
    for job in world.jobs.values() {
        let name = match &job.outcome {
            Some((_, Outcome::Failed(failure, _))) => format!("{failure:?}"),
            Some((_, Outcome::OwnerGone)) => "OwnerGone".to_owned(),
            Some((_, Outcome::Done(_))) => continue,
            None => "None".to_owned(),
        };
        let name = name.split(['(', ' ']).next().unwrap_or_default().to_owned();
        *failures.entry(name).or_insert(0) += 1;
    }
    Report {
        seed,
        trace: world.trace_hash().to_hex().to_string(),
        inputs: world.inputs,
        jobs: (world.jobs.len(), ended(true), ended(false)),
        failures,
        checkpoints: world.node(0).map_or(0, |issuer| issuer.checkpoints().len()),
        findings: world.findings.clone(),
    }
}
