//! Refuses connections by where they come from: one subnet of the public internet gets a share of the places.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    convert::Infallible,
    fmt,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, multiaddr::Protocol, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, THandlerOutEvent,
        ToSwarm, behaviour::ConnectionEstablished, dummy,
    },
};

use super::{jobs::is_relayed, limits::CONNECTIONS_PER_SUBNET_MAX};

#[derive(Default)]
pub(super) struct Behaviour {
    connections: BTreeMap<Subnet, usize>,
    subnets: BTreeMap<ConnectionId, Subnet>,
}

/// The first bytes of an address: a /24 of IPv4 or a /48 of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Subnet([u8; 6]);

#[derive(Debug)]
struct Crowded;

impl fmt::Display for Crowded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many connections from one subnet")
    }
}

impl std::error::Error for Crowded {}

impl Behaviour {
    fn check(&self, address: &Multiaddr) -> Result<(), ConnectionDenied> {
        let taken = subnet_of(address).and_then(|subnet| self.connections.get(&subnet));
        if taken.is_some_and(|taken| *taken >= CONNECTIONS_PER_SUBNET_MAX) {
            return Err(ConnectionDenied::new(Crowded));
        }
        Ok(())
    }

    fn on_established(&mut self, event: ConnectionEstablished) {
        // Only who comes to us is counted: whom we dial is our own choice.
        if event.endpoint.is_listener()
            && let Some(subnet) = subnet_of(event.endpoint.get_remote_address())
        {
            *self.connections.entry(subnet).or_default() += 1;
            self.subnets.insert(event.connection_id, subnet);
        }
    }

    fn on_closed(&mut self, connection: ConnectionId) {
        let Some(subnet) = self.subnets.remove(&connection) else {
            return;
        };
        if let Entry::Occupied(mut taken) = self.connections.entry(subnet) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.check(remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        // Many may have been pending at once.
        self.check(remote)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is libp2p's and non-exhaustive")]
    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// Returns the subnet that an address counts for; private and relayed ones count for none.
fn subnet_of(address: &Multiaddr) -> Option<Subnet> {
    let ip = ip_of(address).filter(|ip| !is_relayed(address) && is_public(ip))?;
    let mut prefix = [0; 6];
    match ip {
        IpAddr::V4(ip) => prefix[..3].copy_from_slice(&ip.octets()[..3]),
        IpAddr::V6(ip) => prefix.copy_from_slice(&ip.octets()[..6]),
    }
    Some(Subnet(prefix))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is libp2p's, of all protocols there are")]
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(ip.into(), IpAddr::from)),
        _ => None,
    })
}

/// Says whether an address can be reached from anywhere.
pub(super) fn is_public(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(address: &str) -> Behaviour {
        let subnet = subnet_of(&address.parse().unwrap()).unwrap();
        Behaviour { connections: [(subnet, CONNECTIONS_PER_SUBNET_MAX)].into(), subnets: BTreeMap::new() }
    }

    #[test]
    fn a_crowded_subnet_is_refused_and_others_are_not() {
        let gate = filled("/ip4/203.0.113.7/udp/4001/quic-v1");

        assert!(gate.check(&"/ip4/203.0.113.200/tcp/1".parse().unwrap()).is_err());
        assert!(gate.check(&"/ip4/203.0.114.200/tcp/1".parse().unwrap()).is_ok());
        assert!(gate.check(&"/ip4/192.168.1.2/tcp/1".parse().unwrap()).is_ok());
        assert!(
            filled("/ip6/2001:db8:1::1/udp/1").check(&"/ip6/2001:db8:1:9::1/tcp/1".parse().unwrap()).is_err()
        );
    }

    #[test]
    fn private_addresses_count_for_no_subnet() {
        for address in ["/ip4/127.0.0.1/tcp/1", "/ip4/10.1.2.3/tcp/1", "/ip6/::1/tcp/1", "/ip6/fd00::1/tcp/1"]
        {
            assert!(subnet_of(&address.parse().unwrap()).is_none(), "{address}");
        }
    }
}
