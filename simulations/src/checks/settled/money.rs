//! Credits when everybody has settled: what is held, what is known of it, what was paid for which work.

use std::collections::BTreeMap;

use protocol::ids::AccountId;
use protocol::ledger::issuer::Balance;
use protocol::ledger::money::QUANTUM;
use protocol::price::Usage;
use protocol::statement::Statement;

use crate::world::{Outcome, World};

use super::super::Tally;
use super::forgets;

/// Tokens by which payment may ever run ahead of delivery, or delivery ahead of payment, in one interrupted job.
const WINDOW_TOKENS: u64 = 4096;

/// Tokens that a provider generates on a channel before anything is paid on it.
const FIRST_WINDOW_TOKENS: u64 = 64;

/// Prompt tokens at risk in one interrupted job.
const PROMPT_TOKENS: u64 = 1024;

pub(super) fn deposits_are_there(world: &World, tally: &mut Tally) {
    let sum =
        |balance: Balance| u128::from(balance.cash) + u128::from(balance.earned) + u128::from(balance.held);
    let deposited = world.deposited;
    for (issuer, books) in world.books() {
        let held: u128 = books.balances().map(|(_, balance)| sum(balance)).sum();
        let (withdrawn, booked) = (books.withdrawn(), books.deposited());
        tally.check(held + withdrawn == deposited && booked == deposited, || {
            format!(
                "issuer {issuer}: {held} nano-credits are held, {withdrawn} withdrawn, {booked} booked, {deposited} deposited"
            )
        });
    }
    tally.check(world.books().next().is_some(), || "no issuer".to_owned());
}

pub(super) fn issuers_agree(world: &World, tally: &mut Tally) {
    let Some((first, books)) = world.books().next() else { return };
    for (account, balance) in books.balances() {
        for (other, theirs) in world.books().map(|(place, books)| (place, books.balance(account))) {
            tally.check((balance.available(), balance.held) == (theirs.available(), theirs.held), || {
                format!("issuer {first} books {balance:?} for {account:?}, issuer {other} {theirs:?}")
            });
        }
    }
}

pub(super) fn balances_are_known(world: &World, tally: &mut Tally) {
    for (place, host) in world.hosts.iter().enumerate().filter(|(_, host)| !host.adversary) {
        let Some(node) = host.node.as_ref().filter(|_| place >= world.issuers()) else { continue };
        let (known, booked) = (node.balance(), world.booked(node.account()));
        // Out of which bucket a hold came may differ between issuers; what can be spent may not.
        let same = if world.issuers() == 1 {
            (Balance { as_of: 0, ..known }) == (Balance { as_of: 0, ..booked })
        } else {
            (known.available(), known.held) == (booked.available(), booked.held)
        };
        tally.check(same, || format!("host {place} believes to hold {known:?}, the books say {booked:?}"));
    }
}

pub(super) fn statements_explain_balances(world: &World, tally: &mut Tally) {
    let mut sums: BTreeMap<AccountId, i128> = BTreeMap::new();
    for (place, host) in world.hosts.iter().enumerate().filter(|(place, host)| *place != 0 && !host.lies) {
        let Some(node) = host.node.as_ref().filter(|_| !host.lost_history && !host.adversary) else {
            continue;
        };
        let mut statement = Statement::new(node.manifest(), node.id(), node.account());
        world.records(place).for_each(|record| statement.take(&record));
        let lines = statement.finish();
        let sum = lines.iter().fold(0, |sum, line| sum + i128::from(line.credit) - i128::from(line.debit));
        *sums.entry(node.account()).or_default() += sum;
    }
    for (account, sum) in sums {
        let Balance { cash, earned, held, .. } = world.booked(account);
        let booked = i128::from(cash) + i128::from(earned) + i128::from(held);
        tally.check(sum == booked, || {
            let host = world.owner_of(account).unwrap_or_default();
            format!("the statements of host {host} add up to {sum}, it has {booked}")
        });
    }
}

pub(super) fn no_job_is_paid_twice(world: &World, tally: &mut Tally) {
    for (id, job) in &world.jobs {
        let Some((_, Outcome::Done(account))) = &job.outcome else { continue };
        let usage = account.record.usage;
        tally.check(usage.calls <= 1 && usage.tokens_out == u64::from(job.tokens), || {
            format!("job {id:?} delivered {} tokens and was accounted as {usage:?}", job.tokens)
        });
        let cost = account.record.price.cost(&usage).unwrap_or(u64::MAX);
        // Costs are rounded up once over the channel, so one job's part may be a nano-credit less; the quantum in which it
        // ends is full with another one, or was begun by one.
        let bps = u64::from(job.spec.markup_bps());
        let (least, most) = (cost / QUANTUM * bps, cost.div_ceil(QUANTUM) * bps);
        let range = (cost + least).saturating_sub(1)..=cost.saturating_add(most);
        tally.check(account.payee.is_none() || range.contains(&account.price), || {
            format!("job {id:?} costs {cost} and was billed {}", account.price)
        });
    }
}

fn never_pays(world: &World, host: usize) -> bool {
    world.hosts[host].silent.contains("pay")
}

pub(super) fn nothing_long_is_free(world: &World, tally: &mut Tally) {
    for (id, job) in world.jobs.iter().filter(|(_, job)| never_pays(world, job.host)) {
        // Each provider that was chosen gives a first window, and no more.
        let most = FIRST_WINDOW_TOKENS * job.chosen.len() as u64;
        tally.check(u64::from(job.tokens) <= most, || {
            format!("job {id:?} of host {}, which never pays, got {} tokens", job.host, job.tokens)
        });
    }
}

/// Of an adversary's own losses nobody complains.
pub(super) fn losses_are_bounded(world: &World, tally: &mut Tally) {
    let Some((_, books)) = world.books().next() else { return };
    let mut paid: BTreeMap<(usize, usize), (u64, u64)> = BTreeMap::new();
    let mut forgotten = false;
    for (channel, payer, payee) in world.opened_channels() {
        let entry = paid.entry((payer, payee)).or_default();
        entry.0 += books.channel(channel).map_or(0, |(redeemed, _)| redeemed);
        entry.1 += 1;
        forgotten |= books.channel(channel).is_none();
    }
    if forgotten && forgets(world) {
        return;
    }
    for ((payer, payee), (amount, channels)) in paid {
        let Some(price) = world.price_of(payee) else { continue };
        let delivered = world.delivered.get(&(payer, payee)).copied().unwrap_or_default();
        let due = price.cost(&delivered.usage).unwrap_or(u64::MAX);
        let window = |tokens_out| Usage { calls: 1, tokens_in: PROMPT_TOKENS, tokens_out, compute: 0 };
        // Who cheats makes no interruption that the world could count.
        let cheats = |host: usize| world.hosts[host].adversary && !world.hosts[host].haggles;
        let cheated = u64::from(cheats(payer) || cheats(payee));
        let (window, windows) = if never_pays(world, payer) {
            (window(FIRST_WINDOW_TOKENS), channels)
        } else {
            (window(WINDOW_TOKENS), delivered.interrupted.max(cheated))
        };
        let bound = price.cost(&window).unwrap_or(u64::MAX).saturating_mul(windows) + channels;
        let (lost_by_payer, lost_by_payee) = (amount.saturating_sub(due), due.saturating_sub(amount));
        let holds = (lost_by_payer <= bound || world.hosts[payer].adversary)
            && (lost_by_payee <= bound || world.hosts[payee].adversary);
        tally.check(holds, || {
            let interrupted = delivered.interrupted;
            format!("host {payer} paid host {payee} {amount} for {due}, over {interrupted} interruptions")
        });
    }
}
