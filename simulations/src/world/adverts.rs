//! What providers say of themselves, by gossip and in the directory, and who believes it.

use std::rc::Rc;

use protocol::advert::Advert;
use protocol::ids::{ModelId, NodeId};
use protocol::job::JobSpec;
use protocol::keys::Scheme;
use protocol::message::{Message, Wire};
use protocol::node::Input;
use protocol::router::Considered;
use protocol::signed::Signed;

use crate::checks::{self, Always};
use crate::network::gossip::Topic;
use crate::network::wire::Kind;

use super::mesh::Gossiped;
use super::{What, World};

/// How long an ask may wait for the disk before it leaves.
const HELD_MS: u64 = 1_000;

impl World {
    pub(super) fn publish(&mut self, from: usize, model: ModelId, advert: &Signed<Advert>) {
        self.note_advert(from, advert);
        self.hosts[from].published = Some(advert.clone());
        self.gossip(from, model, advert);
    }

    /// Lets everybody interested hear an advert who would pass it on.
    pub(super) fn gossip(&mut self, from: usize, model: ModelId, advert: &Signed<Advert>) {
        if self.mesh.is_some() {
            return self.gossip_in_mesh(from, model, advert);
        }
        let interested: Vec<usize> = (0..self.hosts.len())
            .filter(|host| *host != from && self.hosts[*host].subscribed.contains(&model))
            .collect();
        if !interested.is_empty() {
            self.traffic[from].add(Kind::Gossip, advert_bytes(advert));
        }
        // Everybody would find the same: it is checked once.
        let Ok(checked) = advert.clone().verify(self.domain, Scheme::Simulated) else { return };
        let checked = Rc::new(checked);
        for host in interested {
            if let Some(delay) = self.network.carry(from, host) {
                self.schedule(host, 2 * delay, What::Gossip(Rc::clone(&checked)));
            }
        }
    }

    fn gossip_in_mesh(&mut self, from: usize, model: ModelId, advert: &Signed<Advert>) {
        let checked = advert.clone().verify(self.domain, Scheme::Simulated);
        let payload = checked.map_or(Gossiped::Forged, |advert| Gossiped::Advert(Rc::new(advert)));
        self.gossips(from, Topic::Model(model), &payload, advert_bytes(advert));
    }

    pub(super) fn look_up(&mut self, host: usize, model: ModelId) {
        if self.mesh.is_some() {
            return self.walk_to_providers(host, model);
        }
        let known =
            self.directory.get(&model).into_iter().flatten().map(|host| self.hosts[*host].id).collect();
        let delay = 3 * self.network.delay(host, host);
        self.input_in(delay, host, Input::Found(model, known));
    }

    /// Remembers how long what a node says of itself counts.
    pub(super) fn note_advert(&mut self, host: usize, advert: &Signed<Advert>) {
        let Some((advert, _, _)) = advert.peek_in(self.domain) else { return };
        let until = &mut self.hosts[host].advertised_until;
        *until = (*until).max(Some(advert.valid_to));
    }

    /// Nobody honest asks whoever does not say that it serves.
    pub(super) fn check_ask(&mut self, from: usize, to: usize, message: &Message<Wire>) {
        if let Message::Hello { advert: Some(advert), .. } | Message::Advert(advert) = message {
            self.note_advert(from, advert);
        }
        if matches!(message, Message::Ask { .. }) && !self.hosts[from].adversary {
            let (now, until) = (self.clock(from), self.hosts[to].advertised_until);
            let holds = until.is_some_and(|until| now.since_ms(until) <= HELD_MS);
            self.always(Always::AskedServes, holds, || {
                format!("{now}: host {from} asks host {to}, whose last word counted until {until:?}")
            });
        }
    }

    /// What a node believes of others is what they say, and it never offers a job to itself.
    pub(super) fn check_considered(&mut self, host: usize, spec: &JobSpec, considered: &[Considered]) {
        let (now, me) = (self.now, self.hosts[host].id);
        let at_home = considered.len() == 1;
        let offered = !at_home && considered.iter().any(|other| other.provider == me);
        self.always(Always::NoSelfOffer, !offered, || {
            format!("{now}: host {host} considers itself for a job that it gives away")
        });
        let worst = spec.worst_usage();
        let asks = |node: NodeId| self.price_of(self.host_of(node)?)?.cost(&worst);
        let honest =
            considered.iter().filter(|other| other.provider != me && !self.is_adversary(other.provider));
        let false_one = honest.copied().find(|other| asks(other.provider) != Some(other.price));
        self.always(Always::OffersTrue, false_one.is_none(), || {
            format!("{now}: host {host} believes what was never said: {false_one:?}")
        });
    }

    pub(super) fn count_dial(&mut self, host: usize, peer: usize) {
        let (now, second) = (self.now, self.now.0 / 1000);
        let dials = &mut self.hosts[host].dials;
        if dials.0 != second {
            *dials = (second, std::collections::BTreeSet::new());
        }
        dials.1.insert(peer);
        let count = dials.1.len();
        self.always(Always::DialsBounded, count <= checks::DIALS_MAX, || {
            format!("{now}: host {host} dials {count} others in a second")
        });
    }
}

fn advert_bytes(advert: &Signed<Advert>) -> usize {
    Message::<Wire>::Advert(advert.clone()).to_bytes().len()
}
