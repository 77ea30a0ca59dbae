//! What must hold, whatever happens: each a function that says in words where it does not.

use std::collections::BTreeMap;

use protocol::ids::{AccountId, RecordId};
use protocol::ledger::issuer::Balance;
use protocol::ledger::records::OpBody;
use protocol::message::News;
use protocol::node::{ChannelView, Node, OwnLeaf};
use protocol::price::{Price, Usage};
use protocol::record::Record;
use protocol::signed::Verified;
use protocol::statement::Statement;
use protocol::time::Time;

use crate::world::{Outcome, World};

/// Inputs of one host in a second of virtual time that no sane traffic reaches.
pub const INPUTS_PER_SECOND_MAX: u64 = 2_000;

/// How long a job may take in all: five minutes are far beyond the longest answer and every timeout together.
pub const JOB_MS_MAX: u64 = 5 * 60 * 1000;

/// Tokens by which payment may ever run ahead of delivery, or delivery ahead of payment, in one interrupted job.
const WINDOW_TOKENS: u64 = 4096;

/// What is checked after every step of a node.
#[must_use]
pub fn after_step(node: &Node, host: usize, now: Time) -> Vec<String> {
    match node.books() {
        Some(books) if !books.is_conserved() => {
            vec![format!("{now}: the books of host {host} hold other credits than were deposited")]
        }
        Some(_) | None => Vec::new(),
    }
}

/// What is checked when the network has healed and every job is over, before anything is settled.
#[must_use]
pub fn when_healed(world: &World) -> Vec<String> {
    [jobs_end(world), nothing_stays(world), heads_agree(world), nobody_honest_is_penalised(world)].concat()
}

/// What is checked when everybody has settled.
#[must_use]
pub fn when_settled(world: &World, deposited: u128, price: &Price) -> Vec<String> {
    [
        channels_are_closed(world),
        deposits_are_there(world, deposited),
        issuers_agree(world),
        balances_are_known(world),
        payments_are_noted(world),
        withdrawals_are_known(world),
        statements_explain_balances(world),
        no_job_is_paid_twice(world),
        losses_are_bounded(world, price),
        nobody_honest_is_penalised(world),
        checkpoints_hold(world),
    ]
    .concat()
}

/// Every job ends, with a word to its owner, in bounded time.
fn jobs_end(world: &World) -> Vec<String> {
    let open = world.jobs.iter().filter_map(|(id, job)| match &job.outcome {
        None => Some(format!("job {id:?} of host {} never ended", job.host)),
        Some((at, _)) if at.since_ms(job.submitted) > JOB_MS_MAX => {
            Some(format!("job {id:?} of host {} took {} ms", job.host, at.since_ms(job.submitted)))
        }
        Some(_) => None,
    });
    open.collect()
}

/// No node keeps a job, a slot or a peer beyond its end.
fn nothing_stays(world: &World) -> Vec<String> {
    let mut findings = Vec::new();
    for (place, host) in world.hosts.iter().enumerate() {
        let Some(node) = &host.node else { continue };
        let (jobs, serving, running) = (node.jobs().count(), node.serving_count(), host.device.load());
        if (jobs, serving, running) != (0, 0, 0) {
            findings.push(format!(
                "host {place} still has {jobs} jobs of its own, {serving} served, {running} in its engine"
            ));
        }
        if node.peers().count() > world.hosts.len() {
            findings.push(format!("host {place} has {} peers", node.peers().count()));
        }
        if node.served().any(|(_, busy, _)| busy != 0) {
            findings.push(format!("host {place} has slots taken by nobody"));
        }
        if node.channels().iter().any(|channel| channel.busy) {
            findings.push(format!("host {place} has a busy channel without a job"));
        }
    }
    findings
}

/// Payer and payee hold the same newest receipt of every channel between them.
fn heads_agree(world: &World) -> Vec<String> {
    let mut heads: BTreeMap<_, Vec<ChannelView>> = BTreeMap::new();
    for host in &world.hosts {
        for view in host.node.iter().flat_map(Node::channels) {
            heads.entry(view.channel).or_default().push(view);
        }
    }
    let differ = |views: &Vec<ChannelView>| match views.as_slice() {
        [one, other] => one.head != other.head,
        [only] => only.head != RecordId::NONE && !only.closing,
        _ => true,
    };
    let describe = |views: &[ChannelView]| -> Vec<String> {
        views
            .iter()
            .map(|v| format!("{} {} {:?}", if v.paying { "payer" } else { "payee" }, v.paid, v.head))
            .collect()
    };
    let disagreeing = heads.iter().filter(|(_, views)| differ(views));
    disagreeing.map(|(id, views)| format!("channel {id:?}: {}", describe(views).join(", "))).collect()
}

/// A channel that was settled is closed, and what it held has returned.
fn channels_are_closed(world: &World) -> Vec<String> {
    let mut findings = Vec::new();
    for (place, host) in world.hosts.iter().enumerate() {
        for view in host.node.iter().flat_map(Node::channels) {
            findings.push(format!("host {place} still has {view:?}"));
        }
    }
    for (issuer, books) in world.books() {
        for (channel, payer, payee) in world.opened_channels() {
            // A channel that a checkpoint stated as ended is forgotten when grace is over.
            let may_be_forgotten = books.channel(channel).is_none() && forgets(world);
            if !may_be_forgotten && books.channel(channel).is_none_or(|(_, closed)| !closed) {
                findings
                    .push(format!("channel {channel:?} of {payer} to {payee} is open at issuer {issuer}"));
            }
        }
        for (account, balance) in books.balances().filter(|(_, balance)| balance.held != 0) {
            findings.push(format!(
                "account {account:?} still has {} nano-credits held at issuer {issuer}",
                balance.held
            ));
        }
    }
    findings
}

/// Says whether so many epochs have ended that the issuer may have forgotten channels that ended in one of the first.
fn forgets(world: &World) -> bool {
    let Some(issuer) = world.node(0) else { return false };
    let ended = issuer.books_view().newest.map_or(0, |newest| newest.epoch.0);
    ended > issuer.manifest().grace_epochs
}

/// All that accounts hold is all that was deposited.
fn deposits_are_there(world: &World, deposited: u128) -> Vec<String> {
    let sum =
        |balance: Balance| u128::from(balance.cash) + u128::from(balance.earned) + u128::from(balance.held);
    let mut findings = Vec::new();
    for (issuer, books) in world.books() {
        let held: u128 = books.balances().map(|(_, balance)| sum(balance)).sum();
        if held + books.withdrawn() != deposited || books.deposited() != deposited {
            findings.push(format!(
                "issuer {issuer}: {held} nano-credits are held, {} withdrawn, {} booked, {deposited} deposited",
                books.withdrawn(),
                books.deposited()
            ));
        }
    }
    if world.books().next().is_none() { vec!["no issuer".to_owned()] } else { findings }
}

/// Honest issuers hold the same of every account, as far as it can be spent.
fn issuers_agree(world: &World) -> Vec<String> {
    let Some((first, books)) = world.books().next() else { return Vec::new() };
    let mut findings = Vec::new();
    for (account, balance) in books.balances() {
        for (other, theirs) in world.books().map(|(place, books)| (place, books.balance(account))) {
            if (balance.available(), balance.held) != (theirs.available(), theirs.held) {
                findings.push(format!(
                    "issuer {first} books {balance:?} for {account:?}, issuer {other} {theirs:?}"
                ));
            }
        }
    }
    findings
}

/// Every node knows what the issuer's books say of its account.
fn balances_are_known(world: &World) -> Vec<String> {
    let mut findings = Vec::new();
    for (place, host) in world.hosts.iter().enumerate() {
        let Some(node) = host.node.as_ref().filter(|_| place >= world.issuers()) else { continue };
        let (known, booked) = (node.balance(), world.booked(node.account()));
        // Out of which bucket a hold came may differ between issuers; what can be spent may not.
        let same = if world.issuers() == 1 {
            (Balance { as_of: 0, ..known }) == (Balance { as_of: 0, ..booked })
        } else {
            (known.available(), known.held) == (booked.available(), booked.held)
        };
        if !same {
            findings.push(format!(
                "host {place} believes to hold {:?}, the books say {booked:?}",
                node.balance()
            ));
        }
    }
    findings
}

/// Whoever was paid has the payment in its journal, once; and nobody has one that was not made.
fn payments_are_noted(world: &World) -> Vec<String> {
    let mut made = BTreeMap::new();
    for op in world.steps() {
        if let OpBody::Pay { to, .. } = op.body {
            made.insert(op.id(), to);
        }
    }
    let mut findings = Vec::new();
    for (place, host) in world.hosts.iter().enumerate().filter(|(place, host)| *place != 0 && !host.lies) {
        let Some(account) = host.node.as_ref().map(Node::account) else { continue };
        let mut noted: Vec<RecordId> = world.records(place).filter_map(|line| payment(world, line)).collect();
        noted.sort_unstable();
        let due: Vec<RecordId> = made.iter().filter(|(_, to)| **to == account).map(|(id, _)| *id).collect();
        if noted != due {
            findings.push(format!("host {place} was paid {due:?} and has noted {noted:?}"));
        }
    }
    findings
}

fn payment(world: &World, line: Record) -> Option<RecordId> {
    let Record::Noticed(News::Step(certificate)) = line else { return None };
    let (op, id, _) = certificate.op.peek_in(world.domain())?;
    matches!(op.body, OpBody::Pay { .. }).then_some(id)
}

/// The lines of the journals of an account's nodes add up to what the issuer's books say of it.
fn statements_explain_balances(world: &World) -> Vec<String> {
    let mut sums: BTreeMap<AccountId, i128> = BTreeMap::new();
    for (place, host) in world.hosts.iter().enumerate().filter(|(place, host)| *place != 0 && !host.lies) {
        let Some(node) = &host.node else { continue };
        let mut statement = Statement::new(node.manifest(), node.id(), node.account());
        world.records(place).for_each(|record| statement.take(&record));
        let lines = statement.finish();
        let sum = lines.iter().fold(0, |sum, line| sum + i128::from(line.credit) - i128::from(line.debit));
        *sums.entry(node.account()).or_default() += sum;
    }
    let differs = |(account, sum): (AccountId, i128)| {
        let Balance { cash, earned, held, .. } = world.booked(account);
        let booked = i128::from(cash) + i128::from(earned) + i128::from(held);
        (sum != booked)
            .then(|| format!("the statements of account {account} add up to {sum}, it has {booked}"))
    };
    sums.into_iter().filter_map(differs).collect()
}

/// Every issuer's operator knows where to pay every withdrawal.
fn withdrawals_are_known(world: &World) -> Vec<String> {
    let requests =
        world.books().flat_map(|(issuer, books)| books.withdrawals().map(move |one| (issuer, one)));
    let knows = |issuer, payout| world.node(issuer).is_some_and(|node| node.payout_text(payout).is_some());
    let unknown = requests.filter(|(issuer, (_, request))| !knows(*issuer, request.payout));
    unknown.map(|(issuer, (id, _))| format!("issuer {issuer} does not know where to pay {id:?}")).collect()
}

/// The price of a job that is done is the price of what arrived, once.
fn no_job_is_paid_twice(world: &World) -> Vec<String> {
    let mut findings = Vec::new();
    for (id, job) in &world.jobs {
        let Some((_, Outcome::Done(account))) = &job.outcome else { continue };
        let usage = account.record.usage;
        if usage.calls > 1 || usage.tokens_out != u64::from(job.tokens) {
            findings
                .push(format!("job {id:?} delivered {} tokens and was accounted as {usage:?}", job.tokens));
        }
        let cost = account.record.price.cost(&usage).unwrap_or(u64::MAX);
        // Costs are rounded up once over the channel, so one job's part may be a nano-credit less.
        if account.payee.is_some() && account.price.abs_diff(cost) > 1 {
            findings.push(format!("job {id:?} costs {cost} and was billed {}", account.price));
        }
    }
    findings
}

/// Nobody loses more than one window and a prompt to a partner for each job in which the two were cut apart.
fn losses_are_bounded(world: &World, price: &Price) -> Vec<String> {
    let Some((_, books)) = world.books().next() else { return Vec::new() };
    let mut paid: BTreeMap<(usize, usize), (u64, u64)> = BTreeMap::new();
    let mut forgotten = false;
    for (channel, payer, payee) in world.opened_channels() {
        let entry = paid.entry((payer, payee)).or_default();
        entry.0 += books.channel(channel).map_or(0, |(redeemed, _)| redeemed);
        entry.1 += 1;
        forgotten |= books.channel(channel).is_none();
    }
    if forgotten && forgets(world) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for ((payer, payee), (amount, channels)) in paid {
        let delivered = world.delivered.get(&(payer, payee)).copied().unwrap_or_default();
        let due = price.cost(&delivered.usage).unwrap_or(u64::MAX);
        let window = Usage { calls: 1, tokens_in: 1024, tokens_out: WINDOW_TOKENS, compute: 0 };
        let bound = price.cost(&window).unwrap_or(u64::MAX).saturating_mul(delivered.interrupted) + channels;
        if amount.abs_diff(due) > bound {
            findings.push(format!(
                "host {payer} paid host {payee} {amount} for {due}, over {} interruptions",
                delivered.interrupted
            ));
        }
    }
    findings
}

/// Every node follows the issuer's checkpoints; its own account is proved in the newest one, and nothing was found wrong.
fn checkpoints_hold(world: &World) -> Vec<String> {
    let mut findings = Vec::new();
    let issued = world.node(0).and_then(|issuer| issuer.books_view().newest.cloned());
    let Some(issued) = issued else { return findings };
    if let Err(error) = issued.check_totals() {
        findings.push(format!("the checkpoint of epoch {}: {error}", issued.epoch.0));
    }
    for (place, host) in world.hosts.iter().enumerate() {
        let Some(node) = &host.node else { continue };
        let books = node.books_view();
        let newest = books.newest.map(|newest| newest.epoch);
        if books.newest.map(Verified::id) != Some(issued.id()) {
            findings.push(format!(
                "host {place} knows the checkpoint of {newest:?}, the issuer {:?}",
                issued.epoch
            ));
        }
        let holds = if world.issuers() == 1 {
            node.balance().as_of > 0
        } else {
            world.booked(node.account()).as_of > 0
        };
        let is_there = matches!(books.own, Some(OwnLeaf::Proved | OwnLeaf::Included));
        if is_there != holds || (!is_there && books.own != Some(OwnLeaf::Absent)) {
            findings.push(format!("the account of host {place} is {:?} in the checkpoint", books.own));
        }
        findings.extend(books.findings.iter().map(|finding| format!("host {place} found: {finding}")));
        findings.extend(books.equivocations.iter().map(|proof| format!("host {place} holds {proof:?}")));
    }
    findings
}

/// No honest node counts an offence against another honest one.
fn nobody_honest_is_penalised(world: &World) -> Vec<String> {
    let mut findings = Vec::new();
    for (place, host) in world.hosts.iter().enumerate().filter(|(_, host)| !host.adversary) {
        for (by, offence) in host.penalties.iter().filter(|(by, _)| !world.hosts[*by].lies) {
            findings.push(format!("host {by} penalised host {place}, which is honest: {offence:?}"));
        }
    }
    findings
}
