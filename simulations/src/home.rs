//! A network in which everybody has joined: as a scenario founds it, or as a story told by hand needs it.

use std::collections::BTreeMap;

use protocol::advert::{Incentive, ModelOffer, ProviderClass};
use protocol::ids::{Digest, DomainId, JobId, ModelId, NodeId};
use protocol::job::{Constraints, Input, JobSpec, Sampling, Trace};
use protocol::keys::Signer;
use protocol::licence::open_licence;
use protocol::manifest::{Issuer, Manifest};
use protocol::model::Modality;
use protocol::node::{Config, OwnerCommand};
use protocol::price::{NANO_PER_CREDIT, Price};
use protocol::prng::Prng;
use protocol::time::Time;

use crate::checks::{self, Always};
use crate::devices::Speed;
use crate::network::directory::Directory;
use crate::network::{Conditions, Region};
use crate::scenario::{Cheat, Group, Network, Scenario, Serves};
use crate::world::{Fault, World};

/// The model that every simulated provider serves.
pub const MODEL: ModelId = ModelId([7; 32]);

/// A model that nobody serves.
pub const UNKNOWN_MODEL: ModelId = ModelId([8; 32]);

/// What a simulated provider asks unless its scenario says otherwise.
pub const PRICE: Price = Price { call: 0, input: 500_000_001, output: 2_000_000_003 };

/// Midnight of the first simulated day.
const MIDNIGHT: Time = Time(1_799_971_200_000);

/// Time in which everybody joins who is there from the beginning.
const JOIN_MS: u64 = 15_000;

/// Keys among which an eclipser chooses its own.
const NEAR_TRIES: usize = 1_000;

/// Sets the generator of the mesh apart from all others.
const MESH_SEED: u64 = 0x6d65_7368;

/// Tokens of a context: room for the longest prompt and the longest answer of any scenario.
const CONTEXT_TOKENS: u32 = 8_192;

/// Who takes part in a story told by hand: one consumer and so many providers unless it says otherwise.
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
    /// Nano-credits in each ticket.
    pub credits: u64,
    /// Jobs at once of each that serves.
    pub slots: u16,
    /// Length of an epoch in milliseconds.
    pub epoch_ms: u64,
    /// Tokens a second of those that serve; each draws its own from 40 to 99 if 0.
    pub decode: u64,
    /// They find and hear each other by a modelled mesh.
    pub mesh: bool,
}

impl Setting {
    /// Returns a setting of one issuer, one consumer and so many providers.
    #[must_use]
    pub const fn small(seed: u64, providers: usize) -> Self {
        Self {
            seed,
            issuers: 1,
            providers,
            consumers: 1,
            credits: NANO_PER_CREDIT,
            slots: 4,
            epoch_ms: 60 * 60 * 1000,
            decode: 0,
            mesh: false,
        }
    }

    fn scenario(&self) -> Scenario {
        let serves = Serves {
            decode: if self.decode == 0 { [40, 99] } else { [self.decode; 2] },
            prefill: 2_000,
            slots: u64::from(self.slots),
            price: [PRICE.input, PRICE.output],
            hours: None,
        };
        let group = |name: &str, count: usize, serves| Group {
            name: name.to_owned(),
            count: count as u64,
            regions: Vec::new(),
            nano_credits: self.credits,
            joins_within_s: 0,
            clock_off_ms: 0,
            cheats: None,
            serves,
            asks: None,
        };
        let groups =
            [group("providers", self.providers, Some(serves)), group("consumers", self.consumers, None)];
        Scenario {
            about: String::new(),
            minutes: 0,
            start_hour: 8,
            network: Network {
                issuers: self.issuers as u64,
                epoch_s: self.epoch_ms / 1000,
                mesh: self.mesh,
                ..Network::default()
            },
            hosts: groups.into(),
            orders: 0,
            faults: Vec::new(),
            expect: crate::scenario::Expect::default(),
        }
    }
}

/// A network in which everybody has joined.
#[derive(Debug)]
pub struct Home {
    /// The machines: the issuers, then the groups of the scenario in their order.
    pub world: World,
    /// Places of those that serve.
    pub providers: Vec<usize>,
    /// Places of those that do not.
    pub consumers: Vec<usize>,
    /// Places of each group, in the scenario's order.
    pub groups: Vec<Vec<usize>>,
    /// When it began.
    pub began: Time,
    pub(crate) prng: Prng,
    jobs: u64,
}

impl Home {
    /// Returns the network of `setting` after everybody has had time to join.
    #[must_use]
    pub fn joined(setting: &Setting, conditions: Conditions) -> Self {
        let mut home = Self::founded(&setting.scenario(), setting.seed);
        home.world.network.conditions = conditions;
        home.lets_join();
        for place in home.world.issuers()..home.world.hosts.len() {
            let joined = home.world.is_joined(place);
            home.world.always(Always::TicketsAdmit, joined, || format!("host {place} did not join"));
        }
        home
    }

    /// Gives everybody time to join who is there from the beginning.
    pub(crate) fn lets_join(&mut self) {
        self.world.run_for(JOIN_MS);
    }

    /// Founds the network of a scenario; nobody has joined yet.
    pub(crate) fn founded(scenario: &Scenario, seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let network = &scenario.network;
        let start = MIDNIGHT.plus_ms(scenario.start_hour * 3_600_000);
        let keys: Vec<(Signer, Signer)> =
            (0..network.issuers).map(|_| (signer(&mut prng), signer(&mut prng))).collect();
        let manifest = manifest(network, &keys, start);
        let conditions =
            Conditions { latency_ms: network.latency_ms, jitter_ms: network.jitter_ms, ..Conditions::CALM };
        let mut world = World::new(start, manifest.domain(), conditions, &mut prng);
        if network.mesh {
            // Of a generator of its own: without a mesh, everything else goes as it always did.
            world.has_mesh(&mut Prng::new(seed ^ MESH_SEED));
        }
        let mut home = Self {
            world,
            providers: Vec::new(),
            consumers: Vec::new(),
            groups: Vec::new(),
            began: start,
            prng,
            jobs: 0,
        };
        for (number, (issuer, node)) in keys.into_iter().enumerate() {
            let account = signer(&mut home.prng);
            let place = home.world.add(config(&manifest, node, account, Some(issuer)), SPEED, None, None);
            home.world.network.place(place, nth(&network.issuer_regions, number));
        }
        for group in &scenario.hosts {
            home.found_group(&manifest, group);
        }
        home
    }

    fn found_group(&mut self, manifest: &Manifest, group: &Group) {
        let mut places = Vec::new();
        for number in 0..usize::try_from(group.count).unwrap_or(0) {
            let maker = (1 + self.providers.len() + self.consumers.len()) % manifest.issuers.len();
            let secret =
                (u128::from(self.prng.next_u64()) << 64 | u128::from(self.prng.next_u64())).to_be_bytes();
            let ticket = OwnerCommand::MakeTicket { secret, amount: group.nano_credits };
            self.world.command_in(0, maker, ticket);
            self.world.deposited += u128::from(group.nano_credits);
            let place = self.found_host(manifest, group, secret);
            if let Some(cheat) = group.cheats {
                self.world.cheats(place, cheat);
            }
            self.world.network.place(place, nth(&group.regions, number));
            places.push(place);
            if group.serves.is_some() { self.providers.push(place) } else { self.consumers.push(place) }
        }
        self.groups.push(places);
    }

    fn found_host(&mut self, manifest: &Manifest, group: &Group, secret: [u8; 16]) -> usize {
        let prng = &mut self.prng;
        let [least, most] = group.serves.as_ref().map_or([40, 99], |serves| serves.decode);
        let decode = least + prng.below(most - least + 1);
        let claims = if group.cheats == Some(Cheat::OverClaimer) { 10 * decode } else { decode };
        let offer = group.serves.as_ref().map(|serves| offer(manifest.domain(), serves, claims));
        let speed = Speed { prefill: group.serves.as_ref().map_or(2_000, |serves| serves.prefill), decode };
        let node = match group.cheats {
            Some(Cheat::Eclipser) => signer_near(MODEL, prng),
            Some(_) | None => signer(prng),
        };
        let account = signer(prng);
        let clock_ms = match group.clock_off_ms {
            0 => 0,
            most => i64::try_from(prng.below(2 * most + 1)).unwrap_or(0) - i64::try_from(most).unwrap_or(0),
        };
        let late_ms = if group.joins_within_s == 0 { 0 } else { prng.below(group.joins_within_s * 1000) };
        let config = config(manifest, node, account, None);
        if late_ms == 0 && clock_ms == 0 {
            return self.world.add(config, speed, offer, Some(secret));
        }
        let place = self.world.place(config, speed, offer, Some(secret));
        self.world.hosts[place].clock_ms = clock_ms;
        self.world.fault_in(late_ms, place, Fault::Restart);
        place
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
        assert_eq!(checks::findings(checks::WHEN_HEALED, &self.world), Vec::<String>::new());
        self.settle();
        assert_eq!(checks::findings(checks::WHEN_SETTLED, &self.world), Vec::<String>::new());
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
        self.world.reunite();
        for host in 0..self.world.hosts.len() {
            self.world.spare(host);
            self.world.fault_in(0, host, Fault::Restart);
        }
        self.world.run_for(ms);
        for (host, partner) in self.partners() {
            self.world.dial(host, partner);
        }
        self.world.run_for(10_000);
    }

    /// Whoever pays with whom it pays, as far as there is a channel.
    fn partners(&self) -> Vec<(usize, usize)> {
        let hosts = 0..self.world.hosts.len();
        let channels =
            hosts.flat_map(|host| self.world.channels(host).into_iter().map(move |view| (host, view)));
        let partners = channels.filter_map(|(host, view)| Some((host, self.world.host_of(view.partner)?)));
        partners.collect()
    }
}

const SPEED: Speed = Speed { prefill: 2_000, decode: 60 };

fn nth(regions: &[Region], number: usize) -> Option<Region> {
    regions.get(number.checked_rem(regions.len())?).copied()
}

fn signer(prng: &mut Prng) -> Signer {
    let mut seed = [0; 32];
    seed.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&prng.next_u64().to_be_bytes()));
    Signer::simulated(seed)
}

/// Returns of many signers the one whose node is nearest to a model's key in the directory.
fn signer_near(model: ModelId, prng: &mut Prng) -> Signer {
    let key = Directory::key_of(&model.0);
    let distance = |signer: &Signer| Directory::key_of(&NodeId::from(signer.public()).0) ^ key;
    let mut nearest = signer(prng);
    for _ in 0..NEAR_TRIES {
        let other = signer(prng);
        if distance(&other) < distance(&nearest) {
            nearest = other;
        }
    }
    nearest
}

fn manifest(network: &Network, keys: &[(Signer, Signer)], start: Time) -> Manifest {
    let of = |(issuer, node): &(Signer, Signer)| Issuer { key: issuer.public(), node: node.public().into() };
    let issuers: Vec<Issuer> = keys.iter().map(of).collect();
    let quorum = issuers.len() - (issuers.len() - 1) / 3;
    let first: NodeId = issuers[0].node;
    Manifest {
        epoch_ms: network.epoch_s * 1000,
        quorum: u8::try_from(quorum).unwrap_or(u8::MAX),
        issuers,
        ..Manifest::home("simulated".to_owned(), start, &keys[0].0, first)
    }
}

fn config(manifest: &Manifest, node: Signer, account: Signer, issuer: Option<Signer>) -> Config {
    Config {
        manifest: manifest.clone(),
        node,
        owner: account.into(),
        issuer,
        name: String::new(),
        incentive: Incentive::Exchange,
        class: ProviderClass::Community,
        region: String::new(),
        version: "simulated".to_owned(),
        builders: BTreeMap::new(),
    }
}

fn offer(domain: DomainId, serves: &Serves, decode: u64) -> ModelOffer {
    let [input, output] = serves.price;
    ModelOffer {
        model: MODEL,
        name: "simulated".to_owned(),
        modality: Modality::Text,
        licence: open_licence(MODEL, domain),
        price: Price { call: 0, input, output },
        context_tokens: CONTEXT_TOKENS,
        slots: u16::try_from(serves.slots).unwrap_or(u16::MAX),
        busy: 0,
        decode_milli: decode * 1000,
        prefill_milli: serves.prefill * 1000,
        quantisation: "none".to_owned(),
        weights: Digest::ZERO,
    }
}

/// Returns a job with an answer of at most `max_tokens`; `length` (0 to 255) decides where the model would end it.
#[must_use]
pub fn spec(model: ModelId, bytes: u64, max_tokens: u32, length: u8) -> JobSpec {
    spec_ending(model, bytes, max_tokens, 1 + 2 * u32::from(length))
}

/// Returns a job with an answer of at most `max_tokens`, which the model would end after about `natural` tokens.
#[must_use]
pub(crate) fn spec_ending(model: ModelId, bytes: u64, max_tokens: u32, natural: u32) -> JobSpec {
    let sampling = Sampling {
        temperature_milli: 0,
        top_p_milli: 1000,
        top_k: 0,
        repetition_penalty_milli: 1000,
        seed: 0,
    };
    JobSpec {
        model,
        input: Input { digest: crate::devices::prompt_ending(natural), bytes, modality: Modality::Text },
        sampling,
        max_tokens,
        constraints: Constraints::default(),
        markup: None,
        trace: Trace::default(),
    }
}
