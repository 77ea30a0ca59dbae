//! A scenario: who takes part, what they want, what befalls them, what is expected; as a TOML file says it.

mod bounds;
mod shipped;

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::network::Region;

use bounds::{rounded, within, within_all};

pub use shipped::{SHIPPED, read};

/// Most machines of a scenario.
pub const HOSTS_MAX: usize = 100_000;

/// A scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about, in a sentence or two.
    pub about: String,
    /// Virtual minutes in which jobs are wanted and faults happen; healing and settling come after.
    #[serde(deserialize_with = "within::<_, 1, 20_160>")]
    pub minutes: u64,
    /// Hour of the day in UTC at which it begins.
    #[serde(default = "eight", deserialize_with = "within::<_, 0, 23>")]
    pub start_hour: u64,
    /// The network.
    #[serde(default)]
    pub network: Network,
    /// Who takes part, in groups of like machines.
    pub hosts: Vec<Group>,
    /// Payments between accounts and withdrawals, at random times.
    #[serde(default, deserialize_with = "within::<_, 0, 1_000_000>")]
    pub orders: u64,
    /// What befalls them.
    #[serde(default)]
    pub faults: Vec<Plan>,
    /// What must have come of it besides the invariants.
    #[serde(default)]
    pub expect: Expect,
}

/// The network between the machines, and its rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Issuers: 1, or 4, 7, 10, 13, 16.
    #[serde(deserialize_with = "within::<_, 1, 16>")]
    pub issuers: u64,
    /// Where the issuers are, in turn.
    pub issuer_regions: Vec<Region>,
    /// Length of an epoch in seconds.
    #[serde(deserialize_with = "within::<_, 10, 604_800>")]
    pub epoch_s: u64,
    /// Shortest way of a message within a region in milliseconds.
    #[serde(deserialize_with = "within::<_, 0, 10_000>")]
    pub latency_ms: u64,
    /// Largest addition to it; every message draws its own, so messages overtake each other.
    #[serde(deserialize_with = "within::<_, 0, 10_000>")]
    pub jitter_ms: u64,
    /// Messages lost, of 1,000.
    #[serde(deserialize_with = "within::<_, 0, 500>")]
    pub loss_permille: u64,
    /// Messages that arrive twice, of 1,000.
    #[serde(deserialize_with = "within::<_, 0, 1_000>")]
    pub duplicate_permille: u64,
    /// Milliseconds by which everything from or to the second issuer takes longer.
    #[serde(deserialize_with = "within::<_, 0, 10_000>")]
    pub slow_issuer_ms: u64,
    /// Has the last issuer lie.
    pub lying_issuer: bool,
    /// Has machines find and hear each other as libp2p has them, by a directory and a mesh of gossip with their traffic;
    /// otherwise whoever ever provided is found, and everybody interested hears.
    pub mesh: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            issuers: 1,
            issuer_regions: Vec::new(),
            epoch_s: 3_600,
            latency_ms: 5,
            jitter_ms: 40,
            loss_permille: 0,
            duplicate_permille: 0,
            slow_issuer_ms: 0,
            lying_issuer: false,
            mesh: false,
        }
    }
}

/// Machines that are alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What faults and reports call it.
    pub name: String,
    /// How many there are.
    #[serde(deserialize_with = "within::<_, 1, 100_000>")]
    pub count: u64,
    /// Where they are, in turn; machines without a region are all near each other.
    #[serde(default)]
    pub regions: Vec<Region>,
    /// Nano-credits in the ticket of each.
    #[serde(default = "one_credit", deserialize_with = "within::<_, 0, 1_000_000_000_000>")]
    pub nano_credits: u64,
    /// Each joins at a random time within so many seconds; at once if 0.
    #[serde(default, deserialize_with = "within::<_, 0, 1_000_000>")]
    pub joins_within_s: u64,
    /// Largest difference of its clock from the true time in milliseconds, either way.
    #[serde(default, deserialize_with = "within::<_, 0, 600_000>")]
    pub clock_off_ms: u64,
    /// How it cheats; honest if not given.
    pub cheats: Option<Cheat>,
    /// What it serves.
    pub serves: Option<Serves>,
    /// What it wants.
    pub asks: Option<Asks>,
}

/// How a machine cheats; in all else it does as its program says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cheat {
    /// Never pays for what it got.
    NonPayer,
    /// Takes jobs and generates nothing.
    NonDeliverer,
    /// Says that it is ten times as fast as it is.
    OverClaimer,
    /// Says again, later and to others too, what it has said and what others have said to it.
    Replayer,
    /// Signs two steps in one place of its account every minute, and shows each to some of the issuers.
    Equivocator,
    /// Would end every channel at half of what is due.
    Haggler,
    /// Tells the directory that others serve who do not, and spreads adverts of others that are old or forged.
    Poisoner,
    /// Has a name near the model's key, connects to everybody, and answers every question to the directory with others of
    /// its kind. Needs a mesh.
    Eclipser,
}

/// What a machine serves: the one model of these simulations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serves {
    /// Tokens a second that it generates for each job: least and most; every machine draws its own.
    #[serde(deserialize_with = "within_all::<_, 1, 10_000>")]
    pub decode: [u64; 2],
    /// Prompt tokens a second.
    #[serde(default = "two_thousand", deserialize_with = "within::<_, 1, 1_000_000>")]
    pub prefill: u64,
    /// Jobs at once.
    #[serde(default = "four", deserialize_with = "within::<_, 1, 256>")]
    pub slots: u64,
    /// Nano-credits for a million prompt tokens and for a million answer tokens.
    #[serde(default = "usual_price", deserialize_with = "within_all::<_, 1, 1_000_000_000_000>")]
    pub price: [u64; 2],
    /// Hours of the local day in which it serves, from the first to before the second; always when not given.
    #[serde(default, deserialize_with = "bounds::hours")]
    pub hours: Option<[u64; 2]>,
}

/// What a machine wants, without waiting for what it wanted before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asks {
    /// Jobs an hour, by day.
    #[serde(deserialize_with = "within::<_, 1, 100_000>")]
    pub jobs_per_hour: u64,
    /// Percent of that between 23 and 7 o'clock, local time.
    #[serde(default = "hundred", deserialize_with = "within::<_, 0, 100>")]
    pub night_percent: u64,
    /// Minutes of the scenario from and up to which it wants anything; all of it if not given.
    #[serde(default, deserialize_with = "bounds::maybe_within_all::<_, 0, 20_160>")]
    pub during: Option<[u64; 2]>,
    /// Jobs that come together, within two seconds.
    #[serde(default = "one", deserialize_with = "within::<_, 1, 256>")]
    pub burst: u64,
    /// Bytes of a prompt.
    #[serde(default = "Lengths::of_prompts")]
    pub prompt_bytes: Lengths,
    /// Most tokens of an answer; half of all answers are shorter.
    #[serde(default = "Lengths::of_answers")]
    pub answer_tokens: Lengths,
    /// Jobs cancelled within four seconds, of 1,000.
    #[serde(default, deserialize_with = "within::<_, 0, 1_000>")]
    pub cancel_permille: u64,
    /// Jobs for a model that nobody serves, of 1,000.
    #[serde(default, deserialize_with = "within::<_, 0, 1_000>")]
    pub unknown_permille: u64,
}

/// How lengths are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// Shortest.
    #[serde(deserialize_with = "within::<_, 1, 16_384>")]
    pub min: u64,
    /// Longest.
    #[serde(deserialize_with = "within::<_, 1, 16_384>")]
    pub max: u64,
    /// Shape.
    #[serde(default)]
    pub tail: Tail,
}

/// The shape of a spread of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// All equally often.
    #[default]
    None,
    /// Twice as long half as often: a Pareto distribution of index 1, cut off at the longest.
    Heavy,
}

/// Something that befalls machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What.
    pub kind: Kind,
    /// Whom: the name of a group, or `issuers`, or `all` but the issuers.
    pub hosts: String,
    /// How many times, each time one machine of them; a partition takes all of them and happens once.
    #[serde(default = "one", deserialize_with = "within::<_, 1, 1_000_000>")]
    pub count: u64,
    /// When, in seconds after the beginning; at random times if not given.
    #[serde(default, deserialize_with = "bounds::maybe_within::<_, 0, 1_209_600>")]
    pub at_s: Option<u64>,
    /// For how many seconds: least and most; until the healing if not given.
    #[serde(default, deserialize_with = "bounds::maybe_within_all::<_, 0, 1_209_600>")]
    pub for_s: Option<[u64; 2]>,
}

/// What can befall a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The process dies, and starts again from its durable records.
    Crash,
    /// It dies at the next record that it writes: before it is on the disk, or just after.
    CrashAtPersist,
    /// It dies and loses its disk; what partners, mirrors and issuers give back is all it has.
    LoseDisk,
    /// It takes no more work, finishes what it has, settles, and is gone two minutes later.
    Leave,
    /// The connection to a random other machine breaks.
    Cut,
    /// Its engine breaks with all its jobs.
    Engine,
    /// Its clock jumps ahead by so many seconds, for good.
    Clock,
    /// These machines reach each other and nobody else.
    Partition,
}

/// What must have come of a scenario besides the invariants, which always hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Least percent of the jobs placed that must be done.
    #[serde(deserialize_with = "within::<_, 0, 100>")]
    pub completed_percent_min: u64,
    /// Least percent of what honest machines paid that honest machines must have earned.
    #[serde(deserialize_with = "within::<_, 0, 100>")]
    pub honest_share_percent_min: u64,
    /// Most milliseconds from wanting a job to its first token, for half of the jobs done; 0 for any.
    #[serde(deserialize_with = "within::<_, 0, 600_000>")]
    pub first_token_ms_median_max: u64,
    /// Most bytes of control traffic a second that 99 of 100 machines send; 0 for any.
    #[serde(deserialize_with = "within::<_, 0, 1_000_000>")]
    pub control_p99_max: u64,
}

impl Lengths {
    const fn of_prompts() -> Self {
        Self { min: 40, max: 2_040, tail: Tail::None }
    }

    const fn of_answers() -> Self {
        Self { min: 16, max: 416, tail: Tail::None }
    }
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// When it is not a scenario; the message names line, key and what may stand there.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str::<Self>(text)?.checked()
    }

    /// Returns the same scenario if it is one.
    ///
    /// # Errors
    /// When what it says does not fit together.
    pub fn checked(self) -> anyhow::Result<Self> {
        self.check()?;
        Ok(self)
    }

    /// Returns the text of a file that says the same.
    ///
    /// # Errors
    /// When a number is beyond what the format holds.
    pub fn to_text(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// What no single key can show.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.network.issuers % 3 == 1, "`network.issuers` must be 1, 4, 7, 10, 13 or 16");
        ensure!(
            !self.network.lying_issuer || self.network.issuers >= 4,
            "`network.lying_issuer` needs at least 4 `network.issuers`"
        );
        ensure!(!self.hosts.is_empty(), "`hosts` needs at least one group");
        ensure!(
            self.nodes() <= HOSTS_MAX,
            "all `hosts` together are {}, more than {HOSTS_MAX}",
            self.nodes()
        );
        let needs_mesh = self.hosts.iter().any(|group| group.cheats == Some(Cheat::Eclipser));
        ensure!(self.network.mesh || !needs_mesh, "eclipsers need `network.mesh`");
        let mut names = BTreeSet::from(["issuers", "all"]);
        for group in &self.hosts {
            ensure!(names.insert(&group.name), "two groups of `hosts` are called `{}`", group.name);
            group.check().with_context(|| format!("group `{}`", group.name))?;
        }
        for plan in &self.faults {
            ensure!(
                names.contains(plan.hosts.as_str()),
                "`faults` name `{}`, which no group of `hosts` is called",
                plan.hosts
            );
            self.check_plan(plan).with_context(|| format!("fault `{:?}` of `{}`", plan.kind, plan.hosts))?;
        }
        self.check_partitions()
    }

    fn check_plan(&self, plan: &Plan) -> anyhow::Result<()> {
        if let Some([least, most]) = plan.for_s {
            ensure!(least <= most, "`for_s` is [least, most]");
        }
        ensure!(
            plan.at_s.is_none_or(|at| at <= self.minutes * 60),
            "`at_s` is after the {} minutes of the scenario",
            self.minutes
        );
        match plan.kind {
            Kind::Cut | Kind::Engine if plan.for_s.is_some() => bail!("`for_s` means nothing here"),
            Kind::Clock if plan.for_s.is_none() => bail!("`for_s` says by how much the clock jumps"),
            Kind::Partition if plan.count != 1 => bail!("a partition happens once: `count` must be 1"),
            Kind::Partition if plan.at_s.is_none() => bail!("a partition needs `at_s`"),
            Kind::LoseDisk | Kind::Leave if plan.hosts == "issuers" => {
                bail!("issuers do not leave or lose their disks here")
            }
            Kind::Crash
            | Kind::CrashAtPersist
            | Kind::LoseDisk
            | Kind::Leave
            | Kind::Cut
            | Kind::Engine
            | Kind::Clock
            | Kind::Partition => Ok(()),
        }
    }

    /// There is one cut through a network at a time.
    fn check_partitions(&self) -> anyhow::Result<()> {
        let partitions = self.faults.iter().filter(|plan| plan.kind == Kind::Partition);
        let end = |plan: &Plan| plan.for_s.map_or(u64::MAX, |[_, most]| plan.at_s.unwrap_or(0) + most);
        let mut spans: Vec<(u64, u64)> = partitions.map(|plan| (plan.at_s.unwrap_or(0), end(plan))).collect();
        spans.sort_unstable();
        ensure!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two partitions overlap");
        Ok(())
    }

    /// Returns how many machines take part besides the issuers.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.hosts.iter().map(|group| usize::try_from(group.count).unwrap_or(HOSTS_MAX)).sum()
    }

    /// Returns the same scenario with so many machines: every group, and the number of orders and of faults, grows or
    /// shrinks in the same proportion, and none vanishes.
    ///
    /// # Errors
    /// When there are more groups than machines, or too many machines.
    pub fn with_nodes(mut self, nodes: usize) -> anyhow::Result<Self> {
        let groups = self.hosts.len();
        ensure!(
            (groups..=HOSTS_MAX).contains(&nodes),
            "--nodes must be between {groups}, one for each group, and {HOSTS_MAX}"
        );
        let (before, wanted) = (self.nodes() as u64, nodes as u64);
        for group in &mut self.hosts {
            group.count = rounded(group.count, wanted, before);
        }
        self.make_exactly(wanted);
        self.orders = self.orders * wanted / before;
        for plan in self.faults.iter_mut().filter(|plan| plan.count > 1) {
            plan.count = rounded(plan.count, wanted, before);
        }
        Ok(self)
    }

    /// What rounding added or took is made up for where it matters least.
    fn make_exactly(&mut self, wanted: u64) {
        while self.nodes() as u64 != wanted {
            let too_many = self.nodes() as u64 > wanted;
            let Some(largest) = self.hosts.iter_mut().max_by_key(|group| group.count) else { return };
            largest.count = if too_many { largest.count - 1 } else { largest.count + 1 };
        }
    }
}

impl Group {
    fn check(&self) -> anyhow::Result<()> {
        let by_serving = matches!(self.cheats, Some(Cheat::NonDeliverer | Cheat::OverClaimer));
        ensure!(!by_serving || self.serves.is_some(), "who cheats so must serve");
        let by_asking = matches!(self.cheats, Some(Cheat::NonPayer | Cheat::Haggler));
        ensure!(!by_asking || self.asks.is_some(), "who cheats so must ask");
        if let Some(Serves { decode: [least, most], .. }) = self.serves {
            ensure!(least <= most, "`serves.decode` is [least, most]");
        }
        let lengths = self.asks.iter().flat_map(|asks| [&asks.prompt_bytes, &asks.answer_tokens]);
        for Lengths { min, max, .. } in lengths {
            ensure!(min <= max, "a length's `min` is above its `max`");
        }
        if let Some(asks) = &self.asks {
            ensure!(asks.during.is_none_or(|[from, to]| from < to), "`asks.during` is [from, to]");
            ensure!(asks.answer_tokens.max <= 4_096, "`asks.answer_tokens` may be at most 4096");
        }
        Ok(())
    }
}

const fn one() -> u64 {
    1
}

const fn four() -> u64 {
    4
}

const fn eight() -> u64 {
    8
}

const fn hundred() -> u64 {
    100
}

const fn two_thousand() -> u64 {
    2_000
}

const fn one_credit() -> u64 {
    protocol::price::NANO_PER_CREDIT
}

const fn usual_price() -> [u64; 2] {
    [500_000_001, 2_000_000_003]
}

#[cfg(test)]
mod tests;
