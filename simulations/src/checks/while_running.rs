//! What must hold at any moment of a run, whatever is broken just then.

use protocol::ledger::issuer::CHANNELS_PER_ACCOUNT_MAX;
use protocol::node::Node;

use crate::world::World;

use super::{Invariant, Tally};

/// Jobs of its own that a node has in flight.
const OWN_JOBS_MAX: usize = 256;

pub(super) const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "channels_within_caps",
        sentence: "No channel pays more than its cap, and its payer redeems no more than was paid.",
        check: channels_within_caps,
    },
    Invariant {
        name: "queues_bounded",
        sentence: "No node has more jobs of its own, more jobs served or more channels than its limits allow.",
        check: queues_bounded,
    },
];

fn nodes(world: &World) -> impl Iterator<Item = (usize, &Node)> {
    (0..world.hosts.len()).filter_map(|place| Some((place, world.node(place)?)))
}

fn channels_within_caps(world: &World, tally: &mut Tally) {
    for (place, node) in nodes(world) {
        for view in node.channels() {
            let holds = view.paid <= view.cap && (view.paying || view.unredeemed <= view.paid);
            tally.check(holds, || format!("{}: host {place} has {view:?}", world.now));
        }
    }
}

fn queues_bounded(world: &World, tally: &mut Tally) {
    for (place, node) in nodes(world) {
        let (jobs, serving) = (node.jobs().count(), node.serving_count());
        let slots: usize = node.served().map(|(offer, _, _)| usize::from(offer.slots)).sum();
        let paying = node.channels().iter().filter(|view| view.paying && !view.closing).count();
        let holds = jobs <= OWN_JOBS_MAX && serving <= slots && paying <= CHANNELS_PER_ACCOUNT_MAX;
        tally.check(holds, || {
            format!(
                "{}: host {place} has {jobs} jobs, {serving} of {slots} served, {paying} channels",
                world.now
            )
        });
    }
}
