//! Journals that are pruned while a network lives: what nodes know, and what their statements say, stays the same.

use std::collections::BTreeMap;

use protocol::audit::Audit;
use protocol::forward::Entry;
use protocol::ids::ChannelId;
use protocol::keys::Scheme;
use protocol::ledger::finding::Finding;
use protocol::ledger::records::Epoch;
use protocol::node::Node;
use protocol::prng::Prng;
use protocol::pruning::{Policy, Survey, Verdict};
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
    let (mut gone, mut brought) = (0, 0);
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
        brought += lines_of(&home, 0, |line| matches!(line, Record::Forward(_)));
    }
    assert!(gone > 2_000, "only {gone} lines were pruned");
    assert!(brought >= 4, "an issuer that is alone brought its books forward in {brought} of 4 networks");
}

fn lines_of(home: &Home, host: usize, is_one: impl Fn(&Record) -> bool) -> usize {
    home.world.records(host).filter(|line| is_one(line)).count()
}

/// Returns the bytes of all lines by which an issuer computes its books, and how many channels were brought forward.
fn books_of(home: &Home, host: usize) -> (usize, usize) {
    let lines = home.world.records(host).filter(protocol::node::is_issuers);
    lines.fold((0, 0), |(bytes, channels), line| {
        let entries = if let Record::Forward(line) = &line { line.entries.as_slice() } else { &[] };
        let more = entries.iter().filter(|entry| matches!(entry, Entry::Channel(_))).count();
        (bytes + line.to_bytes().len(), channels + more)
    })
}

/// Returns how many epochs it is since the oldest line by which an issuer computes its books.
fn epochs_kept(home: &Home, host: usize) -> u32 {
    let taken = |line: Record| if let Record::Stepped { epoch, .. } = line { Some(epoch) } else { None };
    let oldest = home.world.records(host).filter_map(taken).min().expect("some");
    home.world.node(host).expect("runs").manifest().epoch(home.world.now).0 - oldest.0
}

#[test]
fn an_issuers_journal_grows_with_its_books_and_not_with_its_history() {
    let mut prng = Prng::new(21);
    let mut home = home(21, 1);
    let mut left = Vec::new();
    for _ in 0..3 {
        lives(&mut home, &mut prng, 30, false);
        assert!(epochs_kept(&home, 0) > 25);
        home.world.prune(0, 0, 20, usize::MAX);
        // Sixteen checkpoints are kept with what led to them, and what is in the part with the one before.
        assert!(epochs_kept(&home, 0) <= 20, "{} epochs are left", epochs_kept(&home, 0));
        left.push(books_of(&home, 0));
        home.world.fault_in(0, 0, Fault::Crash);
        home.world.fault_in(2_000, 0, Fault::Restart);
        home.world.run_for(10_000);
        let findings = home.world.node(0).expect("runs").books_view().findings.to_vec();
        assert_eq!(findings, vec![], "its books are those of its checkpoints");
    }
    let ((bytes, channels), (later_bytes, later_channels)) = (left[0], left[2]);
    assert!(later_bytes < bytes * 2, "{left:?} bytes and channels after 30, 60 and 90 epochs");
    assert!(channels > 0 && later_channels < channels * 2 + 10, "{left:?}");
    home.heal(60_000);
    home.settles();
    let findings = simulations::checks::findings(simulations::checks::WHEN_SETTLED, &home.world);
    assert_eq!((findings, home.world.findings.clone()), (vec![], vec![]));
}

#[test]
fn lines_that_do_not_lead_to_their_checkpoints_stay() {
    let mut prng = Prng::new(23);
    let mut home = home(23, 1);
    lives(&mut home, &mut prng, 30, false);
    let whole: Vec<Record> = home.world.records(0).collect();
    let brought = |lines: &[Record]| {
        let node = home.world.node(0).expect("runs");
        let mut survey = Survey::new(Policy::of(node, 0, home.world.now));
        for (position, line) in (1_u64..).zip(lines) {
            survey.take(position, line);
            if position.is_multiple_of(20) {
                survey.next_part();
            }
        }
        let plan = survey.plan(lines.len() as u64);
        let replaced = (1_usize..)
            .zip(lines)
            .filter(|(position, line)| matches!(plan.verdict(*position as u64, line), Verdict::Replace(_)));
        replaced.map(|(position, _)| position).collect::<Vec<_>>()
    };
    // Without the end of a channel no checkpoint behind it states what the lines come to.
    let closed = whole.iter().position(|line| matches!(line, Record::Closed(_))).expect("some");
    let lacking = [&whole[..closed], &whole[closed + 1..]].concat();
    assert!(brought(&whole).iter().any(|position| *position > closed), "{:?}", brought(&whole));
    assert!(brought(&lacking).iter().all(|position| *position <= closed), "{:?}", brought(&lacking));
}

#[test]
fn books_brought_forward_wrongly_are_found_by_the_checkpoint_behind_them() {
    let mut prng = Prng::new(22);
    let mut home = home(22, 1);
    lives(&mut home, &mut prng, 30, false);
    home.world.prune(0, 0, 20, usize::MAX);
    let mut records: Vec<Record> = home.world.records(0).collect();
    let account = records.iter_mut().find_map(|line| {
        let Record::Forward(line) = line else { return None };
        line.entries.iter_mut().find_map(|entry| {
            if let Entry::Account(account) = entry { Some(&mut account.balance.cash) } else { None }
        })
    });
    *account.expect("brought forward") += 1;

    let config = home.world.hosts[0].config.clone();
    let node = Node::new(config, 7, &records, home.world.now).expect("it can be followed");
    assert!(matches!(node.books_view().findings[..], [Finding::Books { .. }, ..]));
    let mut audit = Audit::by(node.manifest().clone(), Scheme::Simulated);
    records.into_iter().for_each(|record| audit.check(record));
    let found = audit.finish();
    assert!(found.problems.iter().any(|problem| problem.contains("do not add up")), "{:?}", found.problems);
    assert!(found.problems.iter().any(|problem| problem.contains("the checkpoint of epoch")));
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
