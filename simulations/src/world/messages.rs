//! What hosts say to each other: sent, delayed, lost, spread, checked as a shell checks it.

use std::rc::Rc;

use protocol::agreeing::Agreeing;
use protocol::ids::{JobId, NodeId, RecordId};
use protocol::keys::Scheme;
use protocol::message::{Checked, Message, Wire};
use protocol::node::Input;
use protocol::time::Time;

use crate::checks::Always;
use crate::liar;
use crate::network::gossip::Topic;
use crate::network::wire::{self, Kind};

use super::mesh::Gossiped;
use super::{SEND_TIMEOUT_MS, What, World};

impl World {
    /// A vote for a checkpoint leaves only when it is on disk.
    pub(super) fn check_ballot(&mut self, host: usize, message: &Message<Wire>) {
        let Message::Agreeing(Agreeing::Ballot(ballot)) = message else { return };
        let Some((_, id, _)) = ballot.peek_in(self.domain).filter(|_| !self.hosts[host].lies) else { return };
        let on_disk = |(durable, written): &(Time, RecordId)| *durable <= self.now && *written == id;
        let (now, written) = (self.now, self.hosts[host].ballots.iter().any(on_disk));
        self.always(Always::VotesOnDisk, written, || {
            format!("{now}: host {host} votes before it is on its disk")
        });
    }

    pub(super) fn send(&mut self, from: usize, to: NodeId, message: &Message<Wire>) {
        let Some(to) = self.host_of(to) else { return };
        if self.hosts[from].silent.contains(message.name()) {
            return;
        }
        let haggled = self.haggled(from, message);
        let message = haggled.as_ref().unwrap_or(message);
        self.check_ballot(from, message);
        self.check_ask(from, to, message);
        let greeting = matches!(message, Message::Hello { .. });
        let carried = match self.network.link(from, to) {
            // A greeting is the opening of a connection, which stands or falls with it.
            Some(link) if greeting => Some((link, self.network.delay(from, to))),
            Some(link) => self.network.carry(from, to).map(|delay| (link, delay)),
            None => None,
        };
        match carried {
            Some((link, delay)) => {
                let bytes = message.to_bytes();
                if let Message::Keep(entries) = message {
                    self.copies += entries.len() as u64;
                }
                let sent = self.sent.entry(message.name()).or_default();
                *sent = (sent.0 + 1, sent.1 + bytes.len() as u64);
                self.count_message(from, to, bytes.len());
                self.replays(from, to, &bytes);
                // A shell sends these once at most.
                let once = greeting || matches!(message, Message::Submit { .. } | Message::Advert(_));
                if !once && self.network.duplicates() {
                    let again = self.network.delay(from, to);
                    self.schedule(to, again, What::Deliver { from, link, bytes: bytes.clone() });
                }
                self.schedule(to, delay, What::Deliver { from, link, bytes });
            }
            None => self.fail_send(from, to, message.job()),
        }
    }

    /// Counts a message, and where that is modelled what its stream and its acknowledgement take.
    fn count_message(&mut self, from: usize, to: usize, bytes: usize) {
        if self.mesh.is_none() {
            return self.traffic[from].add(Kind::Messages, bytes);
        }
        self.network.touch(from, to, self.now);
        self.traffic[from].add(Kind::Messages, wire::message(bytes));
        self.traffic[to].add(Kind::Messages, wire::ACKNOWLEDGEMENT);
    }

    pub(super) fn fail_send(&mut self, from: usize, to: usize, job: Option<JobId>) {
        if let Some(job) = job {
            let to = self.hosts[to].id;
            self.input_in(SEND_TIMEOUT_MS, from, Input::SendFailed(to, job));
        }
    }

    pub(super) fn deliver(&mut self, host: usize, from: usize, link: u64, bytes: &[u8]) {
        let checked = Message::check(bytes, self.domain, Scheme::Simulated);
        if self.network.link(from, host) != Some(link) {
            if let Ok(message) = checked {
                self.fail_send(from, host, message.job());
            }
            return;
        }
        match checked {
            Ok(message) => {
                let (now, same) = (self.now, message.to_wire().to_bytes() == bytes);
                self.always(Always::OneEncoding, same, || {
                    format!("{now}: a message has two encodings: {message:?}")
                });
                self.always(Always::MessagesCheck, true, String::new);
                if self.hosts[host].lies && self.lie(host, from, &message) {
                    return;
                }
                self.replays(host, from, bytes);
                let from = self.hosts[from].id;
                self.handle(host, Input::Received(from, message), bytes);
            }
            Err(error) => {
                let (now, forgiven) = (self.now, self.hosts[from].adversary);
                self.always(Always::MessagesCheck, forgiven, || {
                    format!("{now}: host {from} sent what does not check: {error}")
                });
            }
        }
    }

    /// Answers as a lying issuer; says whether that was all the answer.
    pub(super) fn lie(&mut self, host: usize, from: usize, message: &Message<Checked>) -> bool {
        let Some(signer) = self.hosts[host].config.issuer.clone() else { return false };
        let to = self.hosts[from].id;
        let account = self.hosts[from].config.owner.account();
        let Some(lie) = liar::answer(&signer, self.domain, account, message) else { return false };
        self.send(host, to, &lie.to_wire());
        true
    }

    pub(super) fn spread(&mut self, from: usize, bytes: &[u8]) {
        if self.mesh.is_some() {
            let Ok(Message::Books(message)) = Message::check(bytes, self.domain, Scheme::Simulated) else {
                return;
            };
            let payload = Gossiped::Books(Rc::new((bytes.to_vec(), message)));
            return self.gossips(from, Topic::Books, &payload, bytes.len());
        }
        self.traffic[from].add(Kind::Gossip, bytes.len());
        for host in (0..self.hosts.len()).filter(|host| *host != from) {
            if let Some(delay) = self.network.carry(from, host) {
                self.schedule(host, 2 * delay, What::Spread(bytes.to_vec()));
            }
        }
    }
}
