//! What must hold when everybody has settled: channels, credits, statements, checkpoints.

mod money;

use std::collections::BTreeMap;

use protocol::ids::RecordId;
use protocol::ledger::records::OpBody;
use protocol::message::News;
use protocol::node::{ChannelView, Node, OwnLeaf};
use protocol::record::Record;
use protocol::signed::Verified;

use crate::world::World;

use super::healed::HONEST_UNPENALISED;
use super::{Invariant, Tally};

pub(super) const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "channels_closed",
        sentence: "A channel that was settled is closed, and what it held has returned, or does so after its grace; a \
                   payee may still know one after it, to learn its end, on which nothing is left to be paid.",
        check: channels_are_closed,
    },
    Invariant {
        name: "deposits_are_there",
        sentence: "All that accounts hold is all that was deposited and not withdrawn.",
        check: money::deposits_are_there,
    },
    Invariant {
        name: "issuers_agree",
        sentence: "Honest issuers hold the same of every account, as far as it can be spent.",
        check: money::issuers_agree,
    },
    Invariant {
        name: "balances_known",
        sentence: "Every node knows what the issuers' books say of its account.",
        check: money::balances_are_known,
    },
    Invariant {
        name: "payments_noted",
        sentence: "Whoever was paid has the payment in its journal, once; nobody has one that was not made.",
        check: payments_are_noted,
    },
    Invariant {
        name: "statements_explain",
        sentence: "The lines of an account's journals add up to what the books say of it.",
        check: money::statements_explain_balances,
    },
    Invariant {
        name: "withdrawals_known",
        sentence: "Every issuer's operator knows where to pay every withdrawal.",
        check: withdrawals_are_known,
    },
    Invariant {
        name: "paid_once",
        sentence: "The price of a job that is done is the price of what arrived, once.",
        check: money::no_job_is_paid_twice,
    },
    Invariant {
        name: "losses_bounded",
        sentence: "Nobody loses more than one window and a prompt to a partner for each interruption; to one that never \
                   pays, a first window of 64 tokens and a prompt for each channel.",
        check: money::losses_are_bounded,
    },
    Invariant {
        name: "nothing_long_free",
        sentence: "Whoever never pays gets at most a first window of 64 tokens from each provider that takes its job.",
        check: money::nothing_long_is_free,
    },
    HONEST_UNPENALISED,
    Invariant {
        name: "checkpoints_hold",
        sentence: "Every node has the issuers' newest checkpoint; it proves its account; nothing was found wrong.",
        check: checkpoints_hold,
    },
];

fn channels_are_closed(world: &World, tally: &mut Tally) {
    let in_grace = world.channels_in_grace();
    for (place, host) in world.hosts.iter().enumerate().filter(|(_, host)| !host.adversary) {
        for view in host.node.iter().flat_map(Node::channels) {
            let asks = |view: &ChannelView| world.is_over(view) && view.unredeemed == 0;
            let waits = if view.paying { in_grace.contains(&view.channel) } else { asks(&view) };
            tally.check(world.is_adversary(view.partner) || waits, || {
                format!("host {place} still has {view:?}")
            });
        }
    }
    for (issuer, books) in world.books() {
        let mut at_risk = std::collections::BTreeSet::new();
        for (channel, payer, payee) in world.opened_channels() {
            let with_adversary = world.hosts[payer].adversary || world.hosts[payee].adversary;
            // A payee takes no notice of a channel that it hears of after its last epoch, and of one whose payer lost its
            // disk before it was used nobody knows: such a one is over after its grace.
            let waits = in_grace.contains(&channel) || world.is_forgotten(channel, payer, payee);
            if with_adversary || waits {
                at_risk.insert(world.hosts[payer].config.owner.account());
                continue;
            }
            // A channel that a checkpoint stated as ended is forgotten when grace is over.
            let may_be_forgotten = books.channel(channel).is_none() && forgets(world);
            let closed = books.channel(channel).is_some_and(|(_, closed)| closed);
            tally.check(may_be_forgotten || closed, || {
                format!("channel {channel:?} of {payer} to {payee} is open at issuer {issuer}")
            });
        }
        for (account, balance) in books.balances().filter(|(account, _)| !at_risk.contains(account)) {
            tally.check(balance.held == 0, || {
                format!("account {account:?} still has {} nano-credits held at issuer {issuer}", balance.held)
            });
        }
    }
}

/// Says whether so many epochs have ended that the issuer may have forgotten channels that ended in one of the first.
fn forgets(world: &World) -> bool {
    let Some(issuer) = world.node(0) else { return false };
    let ended = issuer.books_view().newest.map_or(0, |newest| newest.epoch.0);
    ended > issuer.manifest().grace_epochs
}

fn payments_are_noted(world: &World, tally: &mut Tally) {
    let mut made: BTreeMap<_, Vec<RecordId>> = BTreeMap::new();
    for op in world.steps() {
        if let OpBody::Pay { to, .. } = op.body {
            made.entry(to).or_default().push(op.id());
        }
    }
    made.values_mut().for_each(|steps| steps.sort_unstable());
    for (place, host) in world.hosts.iter().enumerate().filter(|(place, host)| *place != 0 && !host.lies) {
        let whole = !host.lost_history && !host.adversary;
        let Some(account) = host.node.as_ref().filter(|_| whole).map(Node::account) else {
            continue;
        };
        let mut noted: Vec<RecordId> = world.records(place).filter_map(|line| payment(world, line)).collect();
        noted.sort_unstable();
        let due = made.get(&account).cloned().unwrap_or_default();
        tally.check(noted == due, || format!("host {place} was paid {due:?} and has noted {noted:?}"));
    }
}

fn payment(world: &World, line: Record) -> Option<RecordId> {
    let Record::Noticed(News::Step(certificate)) = line else { return None };
    let (op, id, _) = certificate.op.peek_in(world.domain())?;
    matches!(op.body, OpBody::Pay { .. }).then_some(id)
}

fn withdrawals_are_known(world: &World, tally: &mut Tally) {
    for (issuer, books) in world.books() {
        let honest = |account| world.owner_of(account).is_none_or(|host| !world.hosts[host].adversary);
        for (id, request) in books.withdrawals().filter(|(_, request)| honest(request.account)) {
            let known = world.node(issuer).is_some_and(|node| node.payout_text(request.payout).is_some());
            tally.check(known, || format!("issuer {issuer} does not know where to pay {id:?}"));
        }
    }
}

fn checkpoints_hold(world: &World, tally: &mut Tally) {
    let issued = world.node(0).and_then(|issuer| issuer.books_view().newest.cloned());
    let Some(issued) = issued else { return };
    let totals = issued.check_totals();
    tally.check(totals.is_ok(), || format!("the checkpoint of epoch {}: {totals:?}", issued.epoch.0));
    for (place, host) in world.hosts.iter().enumerate().filter(|(_, host)| !host.adversary || host.lies) {
        let Some(node) = &host.node else { continue };
        let books = node.books_view();
        tally.check(books.newest.map(Verified::id) == Some(issued.id()), || {
            let newest = books.newest.map(|newest| newest.epoch);
            format!("host {place} knows the checkpoint of {newest:?}, the issuer {:?}", issued.epoch)
        });
        let as_of =
            if world.issuers() == 1 { node.balance().as_of } else { world.booked(node.account()).as_of };
        let is_there = matches!(books.own, Some(OwnLeaf::Proved | OwnLeaf::Included));
        tally.check(is_there == (as_of > 0) && (is_there || books.own == Some(OwnLeaf::Absent)), || {
            format!("the account of host {place} is {:?} in the checkpoint", books.own)
        });
        tally.check(books.findings.is_empty(), || format!("host {place} found: {:?}", books.findings));
        // A proof against an account is right where its owner is an adversary.
        let proofs = books.equivocations.iter().filter(|proof| !world.is_about_adversary(proof));
        let proofs: Vec<String> = proofs.map(|proof| format!("{proof:?}")).collect();
        tally.check(proofs.is_empty(), || format!("host {place} holds {}", proofs.join(", ")));
    }
}
