//! Gossip as libp2p's gossipsub spreads it: for each topic a mesh of few neighbours that pass everything on at once, and
//! offers of what was heard lately to some of the others, by whom whoever missed it gets it all the same.
//!
//! What is published is spread at once through the mesh as it is then, with the time that each way takes: a mesh changes
//! once a second and a message is everywhere before that. Scores are not kept: whoever breaks the rules is shut out by
//! the nodes themselves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use protocol::ids::ModelId;
use protocol::prng::Prng;
use protocol::time::Time;

use super::wire::{self, Kind, Traffic};

/// Neighbours that a node wants in the mesh of a topic, at least and at most.
const MESH: usize = 6;
const MESH_MIN: usize = 4;
const MESH_MAX: usize = 12;

/// Neighbours outside of the mesh to whom what was heard is offered: so many, or a quarter of them.
const LAZY: usize = 6;

/// How long what was heard is offered: three heartbeats.
const OFFERED_MS: u64 = 3_000;

/// How long a node that was turned away does not come back.
const BACKOFF_MS: u64 = 60_000;

/// What nodes listen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// News about the books, for everybody.
    Books,
    /// The adverts of a model.
    Model(ModelId),
}

impl Topic {
    /// Returns the bytes of its name on the wire.
    const fn bytes(self) -> usize {
        match self {
            Self::Books => wire::topic("checkpoints".len()),
            Self::Model(_) => wire::topic("model/".len() + 64),
        }
    }
}

/// What a node does with what it heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Passes it on, and takes it.
    Accept,
    /// Takes it, and does not pass it on.
    Keep,
    /// Neither.
    Ignore,
    /// Neither, and holds it against whoever passed it on.
    Reject,
}

/// Something published, on its way.
#[derive(Debug)]
pub struct Published<P> {
    /// What it is.
    pub payload: P,
    /// Its topic.
    pub topic: Topic,
    author: usize,
    bytes: usize,
    at: Time,
    /// One bit for each host: who has seen it.
    seen: Vec<u64>,
    /// Who passes it on.
    holders: Vec<usize>,
}

impl<P> Published<P> {
    /// Returns whether a host sees it for the first time, and notes that it has.
    fn sees(&mut self, host: usize) -> bool {
        if self.seen.len() <= host / 64 {
            self.seen.resize(host / 64 + 1, 0);
        }
        let bit = 1 << (host % 64);
        let is_new = self.seen[host / 64] & bit == 0;
        self.seen[host / 64] |= bit;
        is_new
    }

    fn has_seen(&self, host: usize) -> bool {
        self.seen.get(host / 64).is_some_and(|bits| bits & (1 << (host % 64)) != 0)
    }
}

/// What came of a message at a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Who heard it.
    pub host: usize,
    /// Who passed it on.
    pub from: usize,
    /// After how many milliseconds.
    pub ms: u64,
    /// What became of it there.
    pub verdict: Verdict,
}

/// What surrounds the mesh: how long a way takes, what a host thinks of a message, what is counted.
pub trait Around<P> {
    /// Returns how long a message takes from one host to another.
    fn delay(&mut self, from: usize, to: usize) -> u64;
    /// Returns what a host does with it.
    fn judge(&mut self, host: usize, from: usize, payload: &P) -> Verdict;
    /// Returns the hosts that one is connected with.
    fn partners(&self, host: usize) -> Vec<usize>;
    /// Returns where what a host sends is counted.
    fn traffic(&mut self, host: usize) -> &mut Traffic;
}

#[derive(Debug, Default)]
struct Subject {
    members: Vec<bool>,
    mesh: Vec<Vec<usize>>,
    /// Who does not come back to whom, until when.
    backoff: BTreeMap<(usize, usize), Time>,
}

impl Subject {
    fn has(&self, host: usize) -> bool {
        self.members.get(host).copied().unwrap_or(false)
    }

    fn neighbours(&self, host: usize) -> &[usize] {
        self.mesh.get(host).map_or(&[], Vec::as_slice)
    }

    fn drop(&mut self, one: usize, other: usize) {
        for (host, peer) in [(one, other), (other, one)] {
            if let Some(mesh) = self.mesh.get_mut(host) {
                mesh.retain(|neighbour| *neighbour != peer);
            }
        }
    }

    fn backs_off(&self, one: usize, other: usize, now: Time) -> bool {
        self.backoff.get(&(one.min(other), one.max(other))).is_some_and(|until| *until > now)
    }
}

/// The meshes of all topics.
#[derive(Debug)]
pub struct Gossip<P> {
    subjects: BTreeMap<Topic, Subject>,
    recent: VecDeque<Published<P>>,
    prng: Prng,
}

impl<P> Gossip<P> {
    /// Returns a network in which nobody listens.
    #[must_use]
    pub const fn new(prng: Prng) -> Self {
        Self { subjects: BTreeMap::new(), recent: VecDeque::new(), prng }
    }

    /// Says whether a host listens to a topic.
    #[must_use]
    pub fn is_member(&self, topic: Topic, host: usize) -> bool {
        self.subjects.get(&topic).is_some_and(|subject| subject.has(host))
    }

    /// Has a host listen; all that it is connected with are told.
    pub fn join(&mut self, topic: Topic, host: usize, around: &mut impl Around<P>) {
        let subject = self.subjects.entry(topic).or_default();
        if subject.has(host) {
            return;
        }
        let room = subject.members.len().max(host + 1);
        subject.members.resize(room, false);
        subject.mesh.resize_with(room, Vec::new);
        subject.members[host] = true;
        let told = around.partners(host).len();
        around.traffic(host).add_many(Kind::Gossip, told, wire::subscription(topic.bytes()));
    }

    /// Has a host, which is gone, listen to nothing.
    pub fn leave(&mut self, host: usize) {
        for subject in self.subjects.values_mut().filter(|subject| subject.has(host)) {
            subject.members[host] = false;
            for neighbour in std::mem::take(&mut subject.mesh[host]) {
                subject.mesh[neighbour].retain(|other| *other != host);
            }
        }
    }

    /// Notes that two hosts are connected: each opens a stream, and says to what it listens.
    pub fn link(&mut self, one: usize, other: usize, around: &mut impl Around<P>) {
        for host in [one, other] {
            let topics = self.subjects.iter().filter(|(_, subject)| subject.has(host));
            let words: usize = topics.map(|(topic, _)| wire::subscription(topic.bytes())).sum();
            around.traffic(host).add(Kind::Gossip, wire::GOSSIP_STREAM + words);
        }
    }

    /// Notes that two hosts are connected no more.
    pub fn unlink(&mut self, one: usize, other: usize) {
        self.subjects.values_mut().for_each(|subject| subject.drop(one, other));
    }

    /// Says whether two hosts are neighbours in any mesh, which keeps their connection.
    #[must_use]
    pub fn are_neighbours(&self, one: usize, other: usize) -> bool {
        self.subjects.values().any(|subject| subject.neighbours(one).contains(&other))
    }

    /// Publishes something to all listeners that its author is connected with; returns who heard it and when.
    pub fn publish(
        &mut self,
        author: usize,
        topic: Topic,
        (payload, bytes): (P, usize),
        now: Time,
        around: &mut impl Around<P>,
    ) -> Vec<Heard> {
        let partners = around.partners(author);
        let to: Vec<usize> = partners.into_iter().filter(|peer| self.is_member(topic, *peer)).collect();
        let mut published =
            Published { payload, topic, author, bytes, at: now, seen: Vec::new(), holders: vec![author] };
        published.sees(author);
        let ways = to.into_iter().map(|peer| (author, peer)).collect();
        let heard = self.spread(&mut published, ways, around);
        while self.recent.front().is_some_and(|old| now.since_ms(old.at) > OFFERED_MS) {
            self.recent.pop_front();
        }
        self.recent.push_back(published);
        heard
    }

    /// Lets a message go its ways, and on from whoever accepts it.
    fn spread(
        &self,
        published: &mut Published<P>,
        ways: Vec<(usize, usize)>,
        around: &mut impl Around<P>,
    ) -> Vec<Heard> {
        let mut heard = Vec::new();
        let mut under_way = BinaryHeap::new();
        let bytes = wire::published(published.topic.bytes(), published.bytes);
        let send = |under_way: &mut BinaryHeap<_>, around: &mut dyn Around<P>, ms, from, to| {
            around.traffic(from).add(Kind::Gossip, bytes);
            under_way.push(Reverse((ms + around.delay(from, to), to, from)));
        };
        for (from, to) in ways {
            send(&mut under_way, around, 0, from, to);
        }
        while let Some(Reverse((ms, host, from))) = under_way.pop() {
            if !published.sees(host) {
                continue;
            }
            let verdict = around.judge(host, from, &published.payload);
            heard.push(Heard { host, from, ms, verdict });
            if verdict != Verdict::Accept {
                continue;
            }
            published.holders.push(host);
            let neighbours = self.subjects.get(&published.topic).map_or(&[][..], |on| on.neighbours(host));
            for neighbour in neighbours.iter().filter(|one| **one != from && **one != published.author) {
                send(&mut under_way, around, ms, host, *neighbour);
            }
        }
        heard
    }

    /// Tends every mesh, and offers what was heard lately; returns, with their payloads, those whom an offer helped.
    pub fn beat(&mut self, now: Time, around: &mut impl Around<P>) -> Vec<(Heard, P)>
    where
        P: Clone,
    {
        let mut subjects = std::mem::take(&mut self.subjects);
        for (topic, subject) in &mut subjects {
            subject.backoff.retain(|_, until| *until > now);
            for host in 0..subject.members.len() {
                if subject.members[host] {
                    tend(*topic, subject, host, now, &mut self.prng, around);
                }
            }
        }
        self.subjects = subjects;
        let mut recent = std::mem::take(&mut self.recent);
        recent.retain(|published| now.since_ms(published.at) <= OFFERED_MS);
        let late = self.offer(&mut recent, around);
        self.recent = recent;
        late
    }

    /// Has everybody who holds something offer it to some that are not in its mesh.
    fn offer(&mut self, recent: &mut VecDeque<Published<P>>, around: &mut impl Around<P>) -> Vec<(Heard, P)>
    where
        P: Clone,
    {
        let mut holding: BTreeMap<(Topic, usize), Vec<usize>> = BTreeMap::new();
        for (place, published) in recent.iter().enumerate() {
            for holder in published.holders.iter().filter(|holder| self.is_member(published.topic, **holder))
            {
                holding.entry((published.topic, *holder)).or_default().push(place);
            }
        }
        let mut late = Vec::new();
        for ((topic, host), places) in holding {
            for peer in self.offered_to(topic, host, around) {
                around.traffic(host).add(Kind::Gossip, wire::offered(topic.bytes(), places.len()));
                let missed: Vec<usize> =
                    places.iter().copied().filter(|place| !recent[*place].has_seen(peer)).collect();
                if missed.is_empty() {
                    continue;
                }
                around.traffic(peer).add(Kind::Gossip, wire::wanted(missed.len()));
                for place in missed {
                    let heard = self.spread(&mut recent[place], vec![(host, peer)], around);
                    late.extend(heard.into_iter().map(|heard| (heard, recent[place].payload.clone())));
                }
            }
        }
        late
    }

    fn offered_to(&mut self, topic: Topic, host: usize, around: &impl Around<P>) -> Vec<usize> {
        let Some(subject) = self.subjects.get(&topic) else { return Vec::new() };
        let outside = |peer: &usize| subject.has(*peer) && !subject.neighbours(host).contains(peer);
        let mut peers: Vec<usize> = around.partners(host).into_iter().filter(outside).collect();
        let count = LAZY.max(peers.len() / 4).min(peers.len());
        draw(&mut peers, count, &mut self.prng);
        peers.truncate(count);
        peers
    }
}

/// Brings some of a list, drawn at random, to its beginning.
fn draw(list: &mut [usize], count: usize, prng: &mut Prng) {
    for place in 0..count.min(list.len()) {
        let other = usize::try_from(prng.below((list.len() - place) as u64)).unwrap_or(0);
        list.swap(place, place + other);
    }
}

/// Fills the mesh of a host that has too few neighbours, and thins one that has too many.
fn tend<P>(
    topic: Topic,
    subject: &mut Subject,
    host: usize,
    now: Time,
    prng: &mut Prng,
    around: &mut impl Around<P>,
) {
    let count = subject.mesh[host].len();
    if count < MESH_MIN {
        let fits = |peer: &usize| {
            subject.has(*peer) && !subject.mesh[host].contains(peer) && !subject.backs_off(host, *peer, now)
        };
        let mut peers: Vec<usize> = around.partners(host).into_iter().filter(fits).collect();
        draw(&mut peers, MESH - count, prng);
        peers.truncate(MESH - count);
        for peer in peers {
            around.traffic(host).add(Kind::Gossip, wire::graft(topic.bytes()));
            if subject.mesh[peer].len() < MESH_MAX {
                subject.mesh[host].push(peer);
                subject.mesh[peer].push(host);
            } else {
                around.traffic(peer).add(Kind::Gossip, wire::prune(topic.bytes()));
                subject.backoff.insert((host.min(peer), host.max(peer)), now.plus_ms(BACKOFF_MS));
            }
        }
    } else if count > MESH_MAX {
        let mut peers = subject.mesh[host].clone();
        draw(&mut peers, count - MESH, prng);
        for peer in peers.into_iter().take(count - MESH) {
            around.traffic(host).add(Kind::Gossip, wire::prune(topic.bytes()));
            subject.drop(host, peer);
            subject.backoff.insert((host.min(peer), host.max(peer)), now.plus_ms(BACKOFF_MS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every host is connected with the ten behind it and the ten before it.
    struct Ring {
        traffic: Vec<Traffic>,
        refuses: Option<usize>,
    }

    impl Around<()> for Ring {
        fn delay(&mut self, _: usize, _: usize) -> u64 {
            10
        }

        fn judge(&mut self, host: usize, _: usize, (): &()) -> Verdict {
            if self.refuses == Some(host) { Verdict::Reject } else { Verdict::Accept }
        }

        fn partners(&self, host: usize) -> Vec<usize> {
            let count = self.traffic.len();
            (1..=10).flat_map(|step| [(host + step) % count, (host + count - step) % count]).collect()
        }

        fn traffic(&mut self, host: usize) -> &mut Traffic {
            &mut self.traffic[host]
        }
    }

    fn ring(count: usize) -> (Gossip<()>, Ring) {
        let mut around = Ring { traffic: vec![Traffic::default(); count], refuses: None };
        let mut gossip = Gossip::new(Prng::new(1));
        (0..count).for_each(|host| gossip.join(Topic::Books, host, &mut around));
        for second in 0..10 {
            assert!(gossip.beat(Time(second * 1000), &mut around).is_empty());
        }
        (gossip, around)
    }

    #[test]
    fn everybody_has_few_neighbours_and_hears_what_is_published_once() {
        let (mut gossip, mut around) = ring(200);
        let mesh = &gossip.subjects[&Topic::Books].mesh;
        assert!(mesh.iter().all(|neighbours| (MESH_MIN..=MESH_MAX).contains(&neighbours.len())));
        let before: u64 = around.traffic.iter().map(|traffic| traffic.count(Kind::Gossip)).sum();

        let heard = gossip.publish(0, Topic::Books, ((), 500), Time(10_000), &mut around);

        let mut hosts: Vec<usize> = heard.iter().map(|heard| heard.host).collect();
        hosts.sort_unstable();
        assert_eq!(hosts, (1..200).collect::<Vec<_>>());
        let after: u64 = around.traffic.iter().map(|traffic| traffic.count(Kind::Gossip)).sum();
        assert!((199..200 * MESH_MAX as u64).contains(&(after - before)));
    }

    #[test]
    fn what_a_neighbour_refuses_goes_no_further_through_it() {
        let (mut gossip, mut around) = ring(30);
        around.refuses = Some(5);

        let heard = gossip.publish(0, Topic::Books, ((), 500), Time(10_000), &mut around);

        let refused: Vec<_> = heard.iter().filter(|heard| heard.verdict == Verdict::Reject).collect();
        assert_eq!(refused.iter().map(|heard| heard.host).collect::<Vec<_>>(), [5]);
        assert!(heard.iter().all(|heard| heard.from != 5));
    }

    #[test]
    fn whoever_the_mesh_misses_gets_it_by_an_offer() {
        let (mut gossip, mut around) = ring(60);
        // Nobody has this one in its mesh.
        let alone = 30;
        let neighbours = gossip.subjects[&Topic::Books].mesh[alone].clone();
        neighbours.iter().for_each(|peer| gossip.unlink(alone, *peer));
        let heard = gossip.publish(0, Topic::Books, ((), 500), Time(10_000), &mut around);
        assert!(heard.iter().all(|heard| heard.host != alone));

        let late: Vec<usize> =
            gossip.beat(Time(11_000), &mut around).iter().map(|(heard, ())| heard.host).collect();

        assert_eq!(late, [alone]);
    }

    #[test]
    fn whoever_leaves_is_nobody_s_neighbour() {
        let (mut gossip, _) = ring(30);

        gossip.leave(7);

        assert!((0..30).all(|host| !gossip.are_neighbours(host, 7)));
        assert!(!gossip.is_member(Topic::Books, 7));
    }
}
