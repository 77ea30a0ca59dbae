//! Connections, cuts, crashes and starts.

use protocol::advert::Device as Hardware;
use protocol::ids::JobId;
use protocol::node::{EngineEvent, EngineFault, Input, Node, OwnerCommand};
use protocol::record::Record;

use crate::checks::Always;
use crate::devices::digest_of;
use crate::network::gossip::Topic;

use super::{Fault, KEEP_MS, Outcome, STREAM_SILENCE_MS, What, World};

impl World {
    pub(super) fn connect(&mut self, host: usize, peer: usize) {
        if self.hosts[host].node.is_none() || self.hosts[peer].node.is_none() {
            return;
        }
        if self.network.link(host, peer).is_none() && !self.admits(host, peer) {
            return;
        }
        let Some(link) = self.network.connect(host, peer) else { return };
        self.links(host, peer);
        for (one, other) in [(host, peer), (peer, host)] {
            let node = self.hosts[other].id;
            if self.hosts[one].up.insert(other, link).is_some() {
                self.handle(one, Input::PeerDown(node), &[]);
            }
            self.handle(one, Input::PeerUp(node), &[]);
        }
    }

    pub(super) fn down(&mut self, host: usize, peer: usize, link: u64) {
        if self.hosts[host].up.get(&peer) == Some(&link) {
            self.hosts[host].up.remove(&peer);
            let node = self.hosts[peer].id;
            self.handle(host, Input::PeerDown(node), &[]);
        }
    }

    /// Parts `some` from all others: their connections are gone, and none comes about until [`World::reunite`].
    pub fn part(&mut self, some: &[usize]) {
        self.network.part(some);
        for one in some {
            for other in (0..self.hosts.len()).filter(|other| !some.contains(other)) {
                self.cut(*one, other);
            }
        }
    }

    /// Ends what [`World::part`] began.
    pub fn reunite(&mut self) {
        self.network.part(&[]);
    }

    pub(super) fn cut(&mut self, one: usize, other: usize) {
        let Some(link) = self.network.cut(one, other) else { return };
        self.unlinks(one, other);
        for (host, peer) in [(one, other), (other, one)] {
            self.schedule(host, STREAM_SILENCE_MS, What::Down { peer, link });
            self.break_streams(host, peer);
        }
    }

    /// Every stream that `host` has with `peer` will be found silent.
    pub(super) fn break_streams(&mut self, host: usize, peer: usize) {
        let attached = self.hosts[host].attached.iter().filter(|(_, attached)| attached.provider == peer);
        let mut jobs: Vec<JobId> = attached.map(|(job, _)| *job).collect();
        let served = self.streams.iter().filter(|((_, at), stream)| *at == host && stream.requester == peer);
        jobs.extend(served.map(|((job, _), _)| *job));
        for job in jobs {
            self.schedule(host, STREAM_SILENCE_MS, What::Broken { job, partner: peer });
        }
    }

    pub(super) fn keep(&mut self, host: usize) {
        self.schedule(host, KEEP_MS, What::Keep);
        if self.hosts[host].node.is_none() {
            return;
        }
        let payees = self.node(host).map(Node::payees).unwrap_or_default();
        let payees: Vec<usize> = payees.into_iter().filter_map(|payee| self.host_of(payee)).collect();
        for partner in (0..self.issuers()).chain(payees) {
            if partner != host && self.network.link(host, partner).is_none() {
                self.dial(host, partner);
            }
        }
    }

    pub(super) fn befall(&mut self, host: usize, fault: Fault) {
        match fault {
            Fault::Crash => self.crash(host),
            Fault::CrashAtRecord { durable, restart_ms } => {
                self.hosts[host].doomed = Some((durable, restart_ms));
            }
            Fault::Clock(ms) => self.hosts[host].clock_ms += ms,
            Fault::LoseDisk => {
                self.crash(host);
                self.hosts[host].journal.clear();
                self.hosts[host].lost = true;
                self.hosts[host].lost_history = true;
            }
            Fault::OldCopy(lines) => {
                self.crash(host);
                self.hosts[host].journal.truncate(lines);
            }
            Fault::Restart => self.start(host),
            Fault::Recover => {
                self.hosts[host].lost = true;
                self.start(host);
            }
            Fault::Cut(peer) => self.cut(host, peer),
            Fault::Engine => self.break_engine(host),
        }
    }

    /// The engine says that it is ready, unless its owner wants it to rest.
    pub(super) fn readies(&mut self, host: usize) {
        let Some(offer) = self.hosts[host].offer.clone().filter(|_| !self.hosts[host].resting) else {
            return;
        };
        let device = Hardware {
            kind: "cpu".to_owned(),
            name: "simulated".to_owned(),
            memory_bytes: 1 << 34,
            backend: "simulated".to_owned(),
        };
        self.input_in(50, host, Input::Engine(EngineEvent::Ready { offer, device }));
    }

    /// The owner of a machine lets its engine serve, or takes it back.
    pub(super) fn serves(&mut self, host: usize, serves: bool) {
        self.hosts[host].resting = !serves;
        if serves {
            self.readies(host);
        } else if let Some(offer) = &self.hosts[host].offer {
            let model = offer.model;
            self.handle(host, Input::Engine(EngineEvent::Lost(model)), &[]);
        }
    }

    pub(super) fn break_engine(&mut self, host: usize) {
        let jobs: Vec<JobId> =
            self.streams.keys().filter(|(_, at)| *at == host).map(|(job, _)| *job).collect();
        for job in jobs {
            let Some(run) = self.hosts[host].device.abort(job) else { continue };
            self.stream(host, job, run.tokens, true);
            self.streams.remove(&(job, host));
            let fault = EngineFault::Broken("out of memory".to_owned());
            let digest = digest_of(job, run.tokens);
            let event = EngineEvent::Failed { job, tokens_out: run.tokens, digest, fault };
            self.input_in(0, host, Input::Engine(event));
        }
    }

    /// A crash that waits for the next record does not come any more.
    pub(crate) fn spare(&mut self, host: usize) {
        self.hosts[host].doomed = None;
    }

    /// The process dies at the record that it is writing, if that was to be: before the record is durable, or just after.
    /// Says whether it died.
    pub(super) fn dies_at_record(&mut self, host: usize, record: &Record) -> bool {
        let Some((durable, restart_ms)) = self.hosts[host].doomed.take() else { return false };
        if durable {
            self.write(host, record, 0);
        }
        self.crash(host);
        if let Some(ms) = restart_ms {
            self.schedule(host, ms, What::Fault(Fault::Restart));
        }
        true
    }

    pub(super) fn crash(&mut self, host: usize) {
        if self.hosts[host].node.take().is_none() {
            return;
        }
        let now = self.now;
        let partners = self.network.partners(host);
        for peer in partners {
            if let Some(link) = self.network.cut(host, peer) {
                self.schedule(peer, STREAM_SILENCE_MS, What::Down { peer: host, link });
                self.break_streams(peer, host);
            }
        }
        self.forgets(host);
        self.streams.retain(|(_, at), _| *at != host);
        let here = &mut self.hosts[host];
        here.incarnation += 1;
        here.armed = None;
        here.held_until = now;
        here.waiting.clear();
        here.waits = false;
        here.doomed = None;
        here.journal.retain(|(durable, _)| *durable <= now);
        here.ballots.retain(|(durable, _)| *durable <= now);
        here.device.reset();
        here.up.clear();
        here.subscribed.clear();
        here.attached.clear();
        // What was noted last may be forgotten, of jobs under way and of those just over.
        for ((requester, provider), delivered) in &mut self.delivered {
            if *requester == host || *provider == host {
                delivered.interrupted += 1;
            }
        }
        for tracked in self.jobs.values_mut().filter(|job| job.host == host && job.outcome.is_none()) {
            tracked.outcome = Some((now, Outcome::OwnerGone));
        }
    }

    pub(super) fn start(&mut self, host: usize) {
        if self.hosts[host].node.is_some() {
            return;
        }
        let lines = self.hosts[host].journal.iter().map(|(_, line)| Record::from_bytes(line));
        let records: Result<Vec<Record>, _> = lines.collect();
        let (now, clock) = (self.now, self.clock(host));
        let node = records.map_err(|error| error.to_string()).and_then(|records| {
            let config = self.hosts[host].config.clone();
            Node::new(config, self.seeds.next_u64(), &records, clock).map_err(|error| error.to_string())
        });
        match node {
            Ok(node) => {
                self.hosts[host].node = Some(node);
                self.read_reference(host);
                self.always(Always::JournalsRead, true, String::new);
            }
            Err(error) => {
                self.always(Always::JournalsRead, false, || {
                    format!("{now}: host {host} cannot start with its journal: {error}")
                });
                return;
            }
        }
        self.listens(host, Topic::Books);
        self.readies(host);
        let admitted = self.node(host).is_some_and(Node::is_admitted);
        if let Some(secret) = self.hosts[host].secret.filter(|_| !admitted) {
            self.input_in(1, host, Input::Owner(OwnerCommand::Join { secret }));
        }
        if std::mem::take(&mut self.hosts[host].lost) {
            self.handle(host, Input::Owner(OwnerCommand::Recover), &[]);
        }
        self.arm(host);
    }
}
