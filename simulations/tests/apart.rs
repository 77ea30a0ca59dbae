//! Parts of a network that do not reach each other for epochs: a payee away until after grace, a network cut in two.

use std::collections::BTreeSet;

use protocol::ids::{JobId, RecordId};
use protocol::node::{ChannelView, Node};
use protocol::price::Usage;
use simulations::home::{Home, MODEL, PRICE, Setting, spec};
use simulations::network::Conditions;
use simulations::world::{Fault, World};

/// Has a payee work while no issuer is there, and go before one is back; its customer and three others stay, of whom
/// those may be mirrors. Returns the channel as the payee last saw it.
fn leaves_unredeemed(issuers: usize, mirrors: bool) -> (Home, ChannelView) {
    let setting = Setting { issuers, consumers: 5, epoch_ms: 10 * 60_000, ..Setting::small(42, 1) };
    let mut home = Home::joined(&setting, Conditions::CALM);
    let provider = home.providers[0];
    if issuers > 1 {
        home.world.run_for(15_000);
        home.lies(issuers - 1);
    }
    for consumer in home.consumers.clone() {
        home.world.dial(consumer, provider);
    }
    home.does_a_job();
    home.world.run_for(70_000);
    for issuer in 0..issuers {
        home.world.fault_in(0, issuer, Fault::Crash);
    }
    home.world.run_for(1_000);
    home.does_a_job();
    home.world.run_for(70_000);

    let left = home.world.channels(provider)[0];
    home.world.fault_in(0, provider, Fault::Crash);
    for mirror in home.consumers[1..].iter().filter(|_| !mirrors) {
        home.world.fault_in(0, *mirror, Fault::Crash);
    }
    for issuer in 0..issuers {
        home.world.fault_in(1_000, issuer, Fault::Restart);
    }
    home.world.run_for(5_000);
    (home, left)
}

/// Returns what each honest issuer has paid out on a channel once its time is over at all of them.
fn paid_after_grace(home: &mut Home, issuers: usize, left: ChannelView) -> Vec<u64> {
    let honest = 0..issuers.max(2) - 1;
    let state = |world: &World, issuer: usize| world.node(issuer)?.books()?.channel(left.channel);
    let is_over =
        |world: &World| honest.clone().all(|issuer| state(world, issuer).is_some_and(|(_, over)| over));
    assert!(home.world.run_until_so(12 * 10 * 60_000, is_over), "the channel is never over");
    honest.clone().filter_map(|issuer| state(&home.world, issuer)).map(|(paid, _)| paid).collect()
}

/// What both jobs of the story cost.
fn earned() -> u64 {
    let usage = Usage { calls: 2, tokens_in: 2 * 110, tokens_out: 2 * 100, compute: 0 };
    PRICE.cost(&usage).expect("small numbers")
}

#[track_caller]
fn is_paid_by_a_mirror(issuers: usize) {
    let (mut home, left) = leaves_unredeemed(issuers, true);
    assert!(left.unredeemed > 0, "{left:?}");
    let paid = paid_after_grace(&mut home, issuers, left);
    assert_eq!(paid, vec![earned(); paid.len()]);

    let provider = home.providers[0];
    let account = home.world.booked(home.world.hosts[provider].config.owner.account());
    home.world.fault_in(0, provider, Fault::Restart);
    home.world.run_for(30_000);
    let balance = home.world.node(provider).expect("runs").balance();
    assert_eq!(balance.available(), account.available(), "the payee knows what it has");
    home.settles();
}

#[test]
fn a_payee_that_is_away_until_after_grace_is_paid_by_its_mirrors() {
    is_paid_by_a_mirror(1);
}

#[test]
fn a_payee_that_is_away_until_after_grace_is_paid_by_its_mirrors_though_one_issuer_of_four_lies() {
    is_paid_by_a_mirror(4);
}

#[test]
fn a_payee_that_is_away_until_after_grace_without_mirrors_loses_what_it_had_not_redeemed() {
    let (mut home, left) = leaves_unredeemed(1, false);
    let paid = paid_after_grace(&mut home, 1, left);
    assert_eq!(paid, [earned() - left.unredeemed]);
}

/// Bytes of all messages by which two nodes find and send each other what they lack.
fn reconciled(world: &World) -> u64 {
    const NAMES: [&str; 14] = [
        "heads",
        "pay",
        "co_signed",
        "compare",
        "compared",
        "keep",
        "kept",
        "kept_query",
        "over",
        "facts",
        "fact_query",
        "fact",
        "redeem",
        "redeemed",
    ];
    NAMES.iter().map(|name| sent(world, name)).sum()
}

/// Bytes of all messages of one kind.
fn sent(world: &World, name: &str) -> u64 {
    world.sent.get(name).map_or(0, |(_, bytes)| *bytes)
}
/// Returns who keeps which receipt of a payee's channels.
fn kept_by(world: &World, payee: usize) -> BTreeSet<(usize, RecordId)> {
    let id = world.hosts[payee].id;
    let nodes = world.hosts.iter().enumerate().filter_map(|(at, host)| Some((at, host.node.as_ref()?)));
    let kept =
        nodes.flat_map(|(at, node)| node.kept_receipts().map(move |(whose, receipt)| (at, whose, receipt)));
    kept.filter(|(_, whose, _)| *whose == id).map(|(at, _, receipt)| (at, receipt.id())).collect()
}

/// Two providers with four customers each, of whom the second provider, its customers and some issuers will be cut off; a
/// ninth customer comes to the first provider while they are.
struct Halves {
    home: Home,
    pairs: Vec<(usize, usize)>,
    far: Vec<usize>,
}

impl Halves {
    fn new(issuers: usize, far_issuers: &[usize]) -> Self {
        let setting = Setting { issuers, consumers: 9, ..Setting::small(42, 2) };
        let home = Home::joined(&setting, Conditions::CALM);
        let (near, far) = (home.providers[0], home.providers[1]);
        let pairs = home.consumers.iter().enumerate().map(|(number, consumer)| {
            let is_far = (4..8).contains(&number);
            (*consumer, if is_far { far } else { near })
        });
        let pairs: Vec<_> = pairs.collect();
        let customers = pairs.iter().filter(|(_, provider)| *provider == far).map(|(consumer, _)| *consumer);
        let far = customers.chain([far]).chain(far_issuers.iter().copied()).collect();
        Self { home, pairs, far }
    }

    fn meet(&mut self) {
        for consumer in self.home.consumers.clone() {
            for provider in self.home.providers.clone() {
                self.home.world.dial(consumer, provider);
            }
        }
        self.home.world.run_for(5_000);
    }

    /// Has the first so many customers do a job each, and gives all a minute.
    #[track_caller]
    fn round(&mut self, customers: usize) {
        let submit = |home: &mut Home, number: usize, (consumer, provider): (usize, usize)| {
            let ignored = home.providers.iter().find(|other| **other != provider).expect("two");
            let mut spec = spec(MODEL, 400, 30, 255);
            spec.constraints.ignore = Box::new([home.world.hosts[*ignored].id]);
            // A provider does four jobs at once: the ninth comes when they are done.
            home.submit(if number < 8 { 0 } else { 20_000 }, consumer, spec)
        };
        let pairs = self.pairs[..customers].iter().enumerate();
        let jobs: Vec<JobId> = pairs.map(|(number, pair)| submit(&mut self.home, number, *pair)).collect();
        self.home.world.run_for(60_000);
        let failed = jobs.iter().find(|job| !self.home.world.is_done(**job));
        assert!(failed.is_none(), "{:?}", failed.map(|job| &self.home.world.jobs[job].outcome));
    }

    /// Who keeps which receipts, for either provider.
    fn kept(&self) -> Vec<BTreeSet<(usize, RecordId)>> {
        self.home.providers.iter().map(|provider| kept_by(&self.home.world, *provider)).collect()
    }

    /// Both sides of every channel and its three mirrors hold one receipt.
    #[track_caller]
    fn agrees(&self) {
        let world = &self.home.world;
        for (provider, kept) in self.home.providers.iter().zip(self.kept()) {
            let views = world.channels(*provider);
            assert_eq!(views.len(), self.pairs.iter().filter(|(_, payee)| payee == provider).count());
            for view in &views {
                let payer = self.pairs.iter().find(|(payer, _)| world.hosts[*payer].id == view.partner);
                let other = world.channels(payer.expect("one of ours").0);
                assert!(other.iter().any(|side| (side.channel, side.head) == (view.channel, view.head)));
                assert_eq!(kept.iter().filter(|(_, receipt)| *receipt == view.head).count(), 3);
            }
            assert_eq!(kept.len(), 3 * views.len(), "nobody keeps an older one");
        }
    }

    /// All issuers have the same balances, and everybody knows its own.
    #[track_caller]
    fn balances(&self) {
        let world = &self.home.world;
        let books = |issuer: usize| {
            let books = world.node(issuer).and_then(Node::books).expect("an issuer");
            world
                .hosts
                .iter()
                .map(|host| books.balance(host.config.owner.account()))
                .map(|balance| (balance.available(), balance.held))
                .collect::<Vec<_>>()
        };
        let first = books(0);
        for issuer in 1..world.issuers() {
            assert_eq!(books(issuer), first, "issuer {issuer}");
        }
        let own = world.hosts.iter().filter_map(|host| Some(host.node.as_ref()?.balance()));
        let own: Vec<_> = own.map(|balance| (balance.available(), balance.held)).collect();
        assert_eq!(own, first);
    }
}

/// Cuts a network in two for an epoch, with traffic on both sides, and heals it.
#[expect(
    clippy::print_stdout,
    reason = "says how much went over the wire, to whoever runs it with `--nocapture`"
)]
#[track_caller]
fn agrees_after_a_cut(issuers: usize, far_issuers: &[usize]) {
    let mut halves = Halves::new(issuers, far_issuers);
    halves.meet();
    halves.round(8);
    halves.home.world.run_for(70_000);
    let epoch = |home: &Home| home.world.hosts[0].config.manifest.epoch(home.world.now);
    let before = epoch(&halves.home);
    halves.home.world.part(&halves.far);
    for _ in 0..8 {
        halves.home.world.run_for(7 * 60_000);
        halves.round(9);
    }
    assert!(epoch(&halves.home) > before);
    let kept = halves.kept();
    let world = &halves.home.world;
    let (bytes, copies) = (reconciled(world), world.copies);
    let carried = ["keep", "fact", "redeem"].map(|name| sent(world, name));

    halves.home.world.reunite();
    halves.home.world.run_for(5_000);
    halves.meet();
    halves.home.world.run_for(65_000);

    halves.agrees();
    halves.balances();
    let world = &halves.home.world;
    let lacked: usize = halves.kept().iter().zip(&kept).map(|(now, then)| now.difference(then).count()).sum();
    let copies = world.copies - copies;
    assert!(lacked > 0 && copies == lacked as u64, "{copies} copies were sent, {lacked} were lacking");
    let parts = ["keep", "fact", "redeem"].map(|name| sent(world, name));
    let parts: Vec<u64> = parts.iter().zip(carried).map(|(now, then)| now - then).collect();
    let (bytes, difference) = (reconciled(world) - bytes, parts.iter().sum::<u64>());
    let peers = world.hosts.len() as u64;
    println!(
        "{lacked} copies lacked; copies, facts, redemptions of {parts:?} bytes; {bytes} bytes among {peers}"
    );
    assert!(bytes <= 2 * difference + 1024 * peers, "{bytes} for {difference}");
    halves.home.settles();
}

#[test]
fn a_network_that_was_cut_in_two_for_an_epoch_agrees_again_at_little_cost() {
    agrees_after_a_cut(1, &[]);
}

#[test]
fn a_network_of_four_issuers_cut_in_two_with_a_quorum_on_one_side_agrees_again_at_little_cost() {
    agrees_after_a_cut(4, &[3]);
}
