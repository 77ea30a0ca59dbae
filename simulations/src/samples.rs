//! What a world looks like from time to time, for charts.

use std::collections::BTreeMap;

use protocol::ids::{ChannelId, RecordId};
use protocol::node::Node;

use crate::home::Home;
use crate::network::wire::Traffic;
use crate::world::{Outcome, World};

/// A world at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Virtual seconds since the beginning.
    pub second: u64,
    /// Jobs wanted so far, without those with which it is seen whether jobs are done.
    pub placed: u64,
    /// Jobs done so far.
    pub done: u64,
    /// Jobs that failed so far.
    pub failed: u64,
    /// Jobs that run in engines.
    pub running: u64,
    /// Slots of machines that serve.
    pub slots: u64,
    /// Bytes of control traffic that all have sent so far.
    pub sent_bytes: u64,
    /// Channels of which payer and payee, both running, hold different newest receipts.
    pub differing: u64,
}

impl Sample {
    /// Looks at a network.
    #[must_use]
    pub fn of(home: &Home) -> Self {
        let world = &home.world;
        let jobs = || world.jobs.iter().filter(|(id, _)| !world.probes.contains(*id)).map(|(_, job)| job);
        let done = jobs().filter(|job| matches!(job.outcome, Some((_, Outcome::Done(_))))).count() as u64;
        let ended = jobs().filter(|job| job.outcome.is_some()).count() as u64;
        let serving = home.providers.iter().map(|place| &world.hosts[*place]).filter(|host| !host.resting);
        Self {
            second: world.now.since_ms(home.began) / 1000,
            placed: jobs().count() as u64,
            done,
            failed: ended - done,
            running: world.hosts.iter().map(|host| host.device.load() as u64).sum(),
            slots: serving.filter_map(|host| Some(u64::from(host.offer.as_ref()?.slots))).sum(),
            sent_bytes: world.traffic.iter().map(Traffic::total).sum(),
            differing: differing(world),
        }
    }
}

fn differing(world: &World) -> u64 {
    let mut heads: BTreeMap<ChannelId, RecordId> = BTreeMap::new();
    let mut differing = 0;
    for view in world.hosts.iter().flat_map(|host| host.node.iter().flat_map(Node::channels)) {
        if let Some(other) = heads.insert(view.channel, view.head) {
            differing += u64::from(other != view.head);
        }
    }
    differing
}
