//! What befalls the machines of a scenario, and when; payments and withdrawals in between.

use protocol::ids::Digest;
use protocol::node::{Order, OwnerCommand};
use protocol::price::NANO_PER_CREDIT;
use protocol::prng::Prng;

use crate::home::Home;
use crate::scenario::{Kind, Plan, Scenario};
use crate::world::Fault;

/// How long whoever leaves goes on with what it has before it settles, and then until it is gone.
const LEAVE_MS: u64 = 60_000;

/// Has somebody pay somebody, withdraw, or fill a slot, at random times from now on.
pub fn schedule_orders(home: &mut Home, scenario: &Scenario) {
    let mut prng = home.prng.child();
    for _ in 0..scenario.orders {
        order(home, &mut prng, scenario.minutes * 60_000);
    }
}

fn order(home: &mut Home, prng: &mut Prng, ms: u64) {
    let hosts = home.world.hosts.len() as u64;
    let place = |prng: &mut Prng| usize::try_from(1 + prng.below(hosts - 1)).unwrap_or(1);
    let (host, other) = (place(prng), place(prng));
    let amount = 1 + prng.below(NANO_PER_CREDIT / 20);
    let to = home.world.hosts[other].config.owner.account();
    let order = match prng.below(8) {
        0 => Order::Noop,
        1 | 2 => Order::Withdraw { amount, to: format!("account {host} at a bank") },
        _ => Order::Pay { to, amount },
    };
    let name = Digest::of(&prng.next_u64().to_be_bytes());
    home.world.command_in(prng.below(ms), host, OwnerCommand::Order(name, order));
}

/// Lets happen what the scenario plans, from now on.
pub fn schedule(home: &mut Home, scenario: &Scenario) {
    let mut prng = home.prng.child();
    for plan in &scenario.faults {
        let hosts = hosts_of(home, scenario, &plan.hosts);
        for _ in 0..plan.count {
            // Whoever leaves is gone before the healing.
            let takes = if plan.kind == Kind::Leave { 2 * LEAVE_MS } else { 0 };
            let span = (scenario.minutes * 60_000).saturating_sub(takes);
            let at = plan.at_s.map_or_else(|| prng.below(span), |at| at * 1000);
            befalls(home, plan, &hosts, at, &mut prng);
        }
    }
}

/// Returns the places that a plan names.
fn hosts_of(home: &Home, scenario: &Scenario, name: &str) -> Vec<usize> {
    let group = scenario.hosts.iter().zip(&home.groups).find(|(group, _)| group.name == name);
    match (group, name) {
        (Some((_, places)), _) => places.clone(),
        (None, "issuers") => (0..home.world.issuers()).collect(),
        (None, _) => (home.world.issuers()..home.world.hosts.len()).collect(),
    }
}

fn befalls(home: &mut Home, plan: &Plan, hosts: &[usize], at: u64, prng: &mut Prng) {
    let any =
        |prng: &mut Prng, from: &[usize]| from[usize::try_from(prng.below(from.len() as u64)).unwrap_or(0)];
    let host = any(prng, hosts);
    let lasts = plan.for_s.map(|[least, most]| 1000 * least + prng.below(1000 * (most - least) + 1));
    let world = &mut home.world;
    match plan.kind {
        Kind::Crash => world.fault_in(at, host, Fault::Crash),
        Kind::CrashAtPersist => {
            let durable = prng.below(2) == 0;
            world.fault_in(at, host, Fault::CrashAtRecord { durable, restart_ms: lasts });
            return;
        }
        Kind::LoseDisk => world.fault_in(at, host, Fault::LoseDisk),
        Kind::Leave => {
            world.hosts[host].lost_history = true;
            world.command_in(at, host, OwnerCommand::Stop);
            world.command_in(at + LEAVE_MS, host, OwnerCommand::Settle);
            world.fault_in(at + 2 * LEAVE_MS, host, Fault::Crash);
        }
        Kind::Cut => {
            let everybody: Vec<usize> = (0..world.hosts.len()).collect();
            let other = any(prng, &everybody);
            world.fault_in(at, host, Fault::Cut(other));
        }
        Kind::Engine => world.fault_in(at, host, Fault::Engine),
        Kind::Clock => {
            let ahead = i64::try_from(lasts.unwrap_or(0)).unwrap_or(0);
            world.fault_in(at, host, Fault::Clock(ahead));
            return;
        }
        Kind::Partition => {
            world.part_in(at, hosts.to_vec());
            if let Some(ms) = lasts {
                world.part_in(at + ms, Vec::new());
            }
            return;
        }
    }
    if let Some(ms) = lasts {
        let gone = if plan.kind == Kind::Leave { 2 * LEAVE_MS } else { 0 };
        world.fault_in(at + gone + ms, host, Fault::Restart);
    }
}
