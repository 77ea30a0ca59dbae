//! Journals that are pruned while a network lives: what nodes know, and what their statements say, stays the same.

use std::collections::BTreeMap;

use protocol::audit::Audit;
use protocol::ids::ChannelId;
use protocol::keys::Scheme;
use protocol::ledger::records::Epoch;
use protocol::node::Node;
use protocol::prng::Prng;
use protocol::record::Record;
use protocol::statement::{Kind, Line, Statement};
use simulations::home::{Home, MODEL, Setting, spec};
use simulations::network::Conditions;
use simulations::world::{Fault, World};

/// Short, so that channels end within minutes of virtual time.
const EPOCH_MS: u64 = 60_000;

fn home(seed: u64, issuers: usize) -> Home {
    let setting = Setting { issuers, consumers: 3, epoch_ms: EPOCH_MS, ..Setting::small(seed, 2) };
    Home::joined(&setting, Conditions::CALM)
}

/// Lets consumers ask, and hosts crash, for so many epochs.
fn lives(home: &mut Home, prng: &mut Prng, epochs: u64, crashes: bool) {
    for _ in 0..epochs {
        for _ in 0..1 + prng.below(3) {
            let consumer = home.consumers[prng.below(home.consumers.len() as u64) as usize];
            home.submit(prng.below(EPOCH_MS), consumer, spec(MODEL, 400, 80, 60));
        }
        let hosts = home.world.hosts.len() as u64;
        if crashes && prng.below(3) == 0 {
            let host = prng.below(hosts) as usize;
            let at = prng.below(EPOCH_MS / 2);
            home.world.fault_in(at, host, Fault::Crash);
            home.world.fault_in(at + 5_000, host, Fault::Restart);
        }
        home.world.run_for(EPOCH_MS);
    }
}

fn statement(node: &Node, records: &[Record]) -> Vec<Line> {
    let mut statement = Statement::new(node.manifest(), node.id(), node.account());
    records.iter().for_each(|record| statement.take(record));
    statement.finish()
}

type Sums = BTreeMap<(Option<ChannelId>, Epoch, Kind), (u64, u64)>;

/// What moved on each channel, and beside channels, in each epoch.
fn sums(lines: &[Line]) -> Sums {
    let mut sums = Sums::new();
    for line in lines {
        let sum = sums.entry((line.channel, line.epoch, line.kind)).or_default();
        *sum = (sum.0 + line.credit, sum.1 + line.debit);
    }
    sums
}

/// What a node that starts from these lines knows, once it has looked at the time.
fn knows(world: &World, host: usize, records: &[Record]) -> String {
    let config = world.hosts[host].config.clone();
    let mut node = Node::new(config, 7, records, world.now).expect("its own journal");
    // Channels that are over are forgotten when channels are next put in order.
    node.handle(world.now.plus_ms(10_000), protocol::node::Input::Wake, &mut Vec::new());
    let text = format!("{node:#?}");
    // How many of its own checkpoints an issuer will read is no use to anybody else, and when it has read them to nobody.
    text.lines().filter(|line| !line.trim_start().starts_with("to_replay")).collect::<Vec<_>>().join("\n")
}

/// Prunes a host's journal in several ways and compares what comes of it with the whole; returns the lines gone.
fn compare(home: &mut Home, host: usize, prng: &mut Prng) -> usize {
    let whole: Vec<Record> = home.world.records(host).collect();
    let node = home.world.node(host).expect("runs");
    let (lines, known) = (statement(node, &whole), knows(&home.world, host, &whole));
    let part = 1 + prng.below(40) as usize;
    let replaced = [prng.below(5) as usize, usize::MAX][prng.below(2) as usize];
    let gone = home.world.prune(host, prng.below(3) as u32, part, replaced);

    let pruned: Vec<Record> = home.world.records(host).collect();
    let node = home.world.node(host).expect("runs");
    assert_eq!(sums(&statement(node, &pruned)), sums(&lines), "host {host}, parts of {part}");
    let mut audit = Audit::by(node.manifest().clone(), Scheme::Simulated);
    pruned.iter().cloned().for_each(|record| audit.check(record));
    let found = audit.finish();
    assert_eq!(found.problems, Vec::<String>::new(), "host {host}, parts of {part}");
    assert!(found.checks.iter().all(|(_, holds, _)| *holds), "{:?}", found.checks);
    let again = knows(&home.world, host, &pruned);
    let differs = known.lines().zip(again.lines()).find(|(one, other)| one != other);
    assert!(known == again, "host {host} knows something else: {differs:?}");
    gone
}

#[test]
fn a_node_knows_the_same_from_a_pruned_journal() {
    let mut gone = 0;
    for seed in 0..6 {
        let mut prng = Prng::new(seed);
        let mut home = home(seed, if seed % 3 == 2 { 4 } else { 1 });
        for _ in 0..4 {
            lives(&mut home, &mut prng, 8, true);
            home.world.run_until_so(15_000, |world| world.hosts.iter().all(|host| host.node.is_some()));
            for host in 0..home.world.hosts.len() {
                for _ in 0..2 {
                    gone += compare(&mut home, host, &mut prng);
                }
            }
        }
    }
    assert!(gone > 2_000, "only {gone} lines were pruned");
}

#[test]
fn a_network_whose_nodes_prune_keeps_its_promises() {
    for seed in 10..14 {
        let mut prng = Prng::new(seed);
        let mut home = home(seed, 1);
        for _ in 0..5 {
            lives(&mut home, &mut prng, 5, true);
            for host in 0..home.world.hosts.len() {
                home.world.prune(host, 0, 20, usize::MAX);
                home.world.fault_in(0, host, Fault::Crash);
                home.world.fault_in(2_000, host, Fault::Restart);
            }
        }
        home.heal(60_000);
        home.settles();
        let findings = simulations::checks::findings(simulations::checks::WHEN_SETTLED, &home.world);
        assert_eq!((findings, home.world.findings.clone()), (vec![], vec![]), "seed {seed}");
    }
}

#[test]
fn a_journal_that_is_pruned_again_and_again_holds_what_is_open_and_sums() {
    let mut prng = Prng::new(3);
    let mut home = home(3, 1);
    lives(&mut home, &mut prng, 60, false);
    let busy = |home: &Home| home.providers.iter().map(|host| (home.world.lines(*host), *host)).max();
    let (lines, provider) = busy(&home).expect("some");
    home.world.prune(provider, 0, 20, usize::MAX);
    let once = home.world.lines(provider);
    assert!(once * 2 < lines, "{once} lines are left of {lines}");
    // The word that a copy is no longer kept goes after the copy.
    home.world.prune(provider, 0, 20, usize::MAX);
    assert_eq!(home.world.prune(provider, 0, 20, usize::MAX), 0, "nothing more to win at this time");
}
