//! What must hold when all faults are over and every job has ended.

use std::collections::BTreeMap;

use protocol::ids::RecordId;
use protocol::job::Failure;
use protocol::node::{ChannelView, Node};

use crate::world::{Outcome, World};

use super::{Invariant, JOB_MS_MAX, Tally};

pub(super) const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "everybody_joined",
        sentence: "Whoever has a ticket is a member, whatever happened while it joined.",
        check: everybody_joined,
    },
    Invariant {
        name: "jobs_end",
        sentence: "Every job ends, with a word to its owner, in bounded time.",
        check: jobs_end,
    },
    Invariant {
        name: "nothing_stays",
        sentence: "No node keeps a job, a slot, a stream or a peer beyond its end.",
        check: nothing_stays,
    },
    Invariant {
        name: "heads_agree",
        sentence: "Payer and payee hold the same newest receipt of every channel that both know; after its grace a payee \
                   may know one alone, to learn its end, and what it has earned on it is paid.",
        check: heads_agree,
    },
    Invariant {
        name: "claims_paid",
        sentence: "What an honest payee had earned is paid out a minute and a half after everybody met again.",
        check: claims_are_paid,
    },
    HONEST_UNPENALISED,
];

/// Checked at last while everything is healed.
pub(super) const SERVED: Invariant = Invariant {
    name: "served_when_healed",
    sentence: "Whoever then wants a small job done, and has the credits, gets it done; unless somebody serves who cheats.",
    check: whoever_asks_is_served,
};

/// Checked when healed and again when settled.
pub(super) const HONEST_UNPENALISED: Invariant = Invariant {
    name: "honest_unpenalised",
    sentence: "No honest node counts an offence against another honest one.",
    check: nobody_honest_is_penalised,
};

fn everybody_joined(world: &World, tally: &mut Tally) {
    for place in (world.issuers()..world.hosts.len()).filter(|place| !world.hosts[*place].adversary) {
        tally.check(world.is_joined(place), || format!("host {place} is no member"));
    }
}

fn jobs_end(world: &World, tally: &mut Tally) {
    for (id, job) in &world.jobs {
        let took = job.outcome.as_ref().map(|(at, _)| at.since_ms(job.submitted));
        tally.check(took.is_some_and(|ms| ms <= JOB_MS_MAX), || match took {
            None => format!("job {id:?} of host {} never ended", job.host),
            Some(ms) => format!("job {id:?} of host {} took {ms} ms", job.host),
        });
    }
}

fn nothing_stays(world: &World, tally: &mut Tally) {
    for (place, host) in world.hosts.iter().enumerate() {
        let Some(node) = &host.node else { continue };
        let (jobs, serving, running) = (node.jobs().count(), node.serving_count(), host.device.load());
        tally.check((jobs, serving, running) == (0, 0, 0), || {
            format!(
                "host {place} still has {jobs} jobs of its own, {serving} served, {running} in its engine"
            )
        });
        tally.check(node.peers().count() <= world.hosts.len(), || {
            format!("host {place} has {} peers", node.peers().count())
        });
        tally.check(node.served().all(|(_, busy, _)| busy == 0), || {
            format!("host {place} has slots taken by nobody")
        });
        tally.check(node.channels().iter().all(|channel| !channel.busy), || {
            format!("host {place} has a busy channel without a job")
        });
    }
}

fn heads_agree(world: &World, tally: &mut Tally) {
    let mut heads: BTreeMap<_, Vec<ChannelView>> = BTreeMap::new();
    for host in &world.hosts {
        for view in host.node.iter().flat_map(Node::channels) {
            let with_adversary = host.adversary || world.is_adversary(view.partner);
            if !with_adversary {
                heads.entry(view.channel).or_default().push(view);
            }
        }
    }
    for (id, views) in &heads {
        let agree = match views.as_slice() {
            [one, other] => one.head == other.head,
            [only] => {
                let asks = !only.paying && world.is_over(only) && only.unredeemed == 0;
                only.head == RecordId::NONE || only.closing || asks
            }
            _ => false,
        };
        tally.check(agree, || format!("channel {id:?}: {}", describe(views)));
    }
}

fn describe(views: &[ChannelView]) -> String {
    let side = |view: &ChannelView| if view.paying { "payer" } else { "payee" };
    let views = views.iter().map(|view| format!("{} {} {:?}", side(view), view.paid, view.head));
    views.collect::<Vec<_>>().join(", ")
}

fn nobody_honest_is_penalised(world: &World, tally: &mut Tally) {
    for (place, host) in world.hosts.iter().enumerate().filter(|(_, host)| !host.adversary) {
        let by_honest = |(by, _): &&(usize, _)| !world.hosts[*by].adversary;
        let charged: Vec<_> = host.penalties.iter().filter(by_honest).collect();
        tally.check(charged.is_empty(), || {
            format!("host {place}, which is honest, was penalised (by whom, for what): {charged:?}")
        });
    }
}

fn claims_are_paid(world: &World, tally: &mut Tally) {
    for (place, host) in world.hosts.iter().enumerate().filter(|(_, host)| !host.adversary) {
        for view in host.node.iter().flat_map(Node::channels) {
            if !view.paying && !world.is_adversary(view.partner) {
                tally.check(view.unredeemed == 0, || format!("host {place} waits to be paid: {view:?}"));
            }
        }
    }
}

fn whoever_asks_is_served(world: &World, tally: &mut Tally) {
    for (id, job) in world.jobs.iter().filter(|(id, _)| world.probes.contains(*id)) {
        let served = match &job.outcome {
            Some((_, Outcome::Done(_) | Outcome::Failed(Failure::NotEnoughCredits { .. }, _))) => true,
            Some((_, Outcome::Failed(..) | Outcome::OwnerGone)) | None => false,
        };
        tally.check(served, || format!("job {id:?} of host {}: {:?}", job.host, job.outcome));
    }
}
