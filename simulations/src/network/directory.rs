//! The directory as libp2p's Kademlia keeps it: who knows whom, who keeps which records, and how a key is looked up.
//!
//! Keys are the first 64 bits of a hash: no two of a hundred thousand nodes share so many, and only the order of
//! distances counts.

use std::collections::{BTreeMap, BTreeSet};

use protocol::time::Time;

/// Entries of a bucket, and nodes that keep a record.
pub const K: usize = 20;

/// Questions of one path that are under way at once, and paths of a lookup that share nobody.
const ALPHA: usize = 3;

/// How long a record counts.
const RECORD_MS: u64 = 2 * 3_600_000;

/// Keys of which a node keeps records.
const KEYS_MAX: usize = 16 * 1024;

/// A place among all keys.
pub type Key = u64;

/// What one node knows of the directory.
#[derive(Debug, Clone, Default)]
struct Shelf {
    /// Nodes by the length of what their keys have in common with its own.
    buckets: BTreeMap<u32, Vec<usize>>,
    records: BTreeMap<Key, Vec<(usize, Time)>>,
    /// Keys that it provides itself.
    provided: BTreeSet<Key>,
}

/// The directory of a whole network.
#[derive(Debug, Default)]
pub struct Directory {
    keys: Vec<Key>,
    shelves: Vec<Shelf>,
}

impl Directory {
    /// Returns the place of something by its name.
    #[must_use]
    pub fn key_of(name: &[u8]) -> Key {
        let hash = blake3::hash(name);
        hash.as_bytes().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
    }

    /// Makes room for a host, which knows nobody yet.
    pub fn add(&mut self, name: &[u8]) {
        self.keys.push(Self::key_of(name));
        self.shelves.push(Shelf::default());
    }

    /// Forgets all that a host knew.
    pub fn forget(&mut self, host: usize) {
        self.shelves[host] = Shelf::default();
    }

    /// Returns how many others a host knows.
    #[must_use]
    pub fn known(&self, host: usize) -> usize {
        self.shelves[host].buckets.values().map(Vec::len).sum()
    }

    /// Enters a node that a host is connected with; says whether it was not known. In a full bucket it takes the place of
    /// the first that is connected no more.
    pub fn enter(&mut self, host: usize, other: usize, is_connected: impl Fn(usize) -> bool) -> bool {
        let common = (self.keys[host] ^ self.keys[other]).leading_zeros();
        let bucket = self.shelves[host].buckets.entry(common).or_default();
        if bucket.contains(&other) {
            return false;
        }
        if bucket.len() < K {
            bucket.push(other);
            return true;
        }
        let gone = bucket.iter().position(|entry| !is_connected(*entry));
        gone.map(|place| bucket[place] = other).is_some()
    }

    /// Returns whom a host knows nearest to a key, nearest first.
    #[must_use]
    pub fn nearest(&self, host: usize, key: Key, except: usize) -> Vec<usize> {
        let others = self.shelves[host].buckets.values().flatten().copied().filter(|other| *other != except);
        self.nearest_of(others.collect(), key)
    }

    /// Returns those of some that are nearest to a key, nearest first.
    #[must_use]
    pub fn nearest_of(&self, mut some: Vec<usize>, key: Key) -> Vec<usize> {
        let distance = |other: &usize| self.keys[*other] ^ key;
        if some.len() > K {
            some.select_nth_unstable_by_key(K, distance);
            some.truncate(K);
        }
        some.sort_unstable_by_key(distance);
        some
    }

    /// Returns who provides a key by what a host keeps.
    #[must_use]
    pub fn providers(&self, host: usize, key: Key, now: Time) -> Vec<usize> {
        let records = self.shelves[host].records.get(&key).into_iter().flatten();
        records.filter(|(_, until)| *until > now).map(|(provider, _)| *provider).collect()
    }

    /// Has a host keep a record, if it has room: those that came first stay.
    pub fn keep(&mut self, host: usize, key: Key, provider: usize, now: Time) {
        let records = &mut self.shelves[host].records;
        if records.len() >= KEYS_MAX && !records.contains_key(&key) {
            return;
        }
        let providers = records.entry(key).or_default();
        providers.retain(|(other, until)| *other != provider && *until > now);
        if providers.len() < K {
            providers.push((provider, now.plus_ms(RECORD_MS)));
        }
    }

    /// Notes that a host provides a key; says whether it is the first.
    pub fn provides(&mut self, host: usize, key: Key) -> bool {
        let provided = &mut self.shelves[host].provided;
        provided.insert(key) && provided.len() == 1
    }

    /// Returns the keys that a host provides.
    #[must_use]
    pub fn provided(&self, host: usize) -> Vec<Key> {
        self.shelves[host].provided.iter().copied().collect()
    }

    /// Returns a key for each bucket that a host refreshes: all beyond its nearest neighbour's, drawn by `draw`.
    #[must_use]
    pub fn refreshed(&self, host: usize, mut draw: impl FnMut() -> u64) -> Vec<Key> {
        let nearest = self.shelves[host].buckets.iter().rev().find(|(_, bucket)| !bucket.is_empty());
        let common = nearest.map_or(0, |(common, _)| *common);
        let own = self.keys[host];
        let within = |common: u32, drawn: u64| {
            let flipped = own ^ (1 << (63 - common));
            let tail = u64::MAX.checked_shr(common + 1).unwrap_or(0);
            flipped & !tail | drawn & tail
        };
        (0..common.min(63)).rev().map(|common| within(common, draw())).collect()
    }

    /// Returns the key of a host.
    #[must_use]
    pub fn key(&self, host: usize) -> Key {
        self.keys[host]
    }

    /// Begins a lookup.
    #[must_use]
    pub fn walk(&self, host: usize, key: Key) -> Walk {
        let known = self.nearest(host, key, host);
        let peers = known.iter().map(|peer| (self.keys[*peer] ^ key, (*peer, Stage::New))).collect();
        let path = Path { peers, ms: 0 };
        Walk { key, host, paths: vec![path; ALPHA], asked: BTreeMap::new() }
    }

    /// Gives a lookup what somebody answered, or that nobody did.
    pub fn answered(&self, walk: &mut Walk, step: Step, closer: Option<&[usize]>) {
        let stage = if closer.is_some() { Stage::Answered } else { Stage::Failed };
        walk.asked.insert(step.peer, stage);
        let (key, me) = (walk.key, walk.host);
        let path = &mut walk.paths[step.path];
        path.peers.insert(self.keys[step.peer] ^ key, (step.peer, stage));
        for peer in closer.into_iter().flatten().filter(|peer| **peer != me) {
            path.peers.entry(self.keys[*peer] ^ key).or_insert((*peer, Stage::New));
        }
    }
}

/// A lookup: three paths towards a key of which none asks whom another has asked.
#[derive(Debug)]
pub struct Walk {
    key: Key,
    host: usize,
    paths: Vec<Path>,
    asked: BTreeMap<usize, Stage>,
}

#[derive(Debug, Clone)]
struct Path {
    /// Those known of, by their distance.
    peers: BTreeMap<u64, (usize, Stage)>,
    ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Answered,
    Failed,
}

/// A question of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    path: usize,
    /// Who is asked.
    pub peer: usize,
    /// When, in milliseconds since the lookup began.
    pub after_ms: u64,
}

impl Walk {
    /// Returns the next questions, which are asked at once; none when the lookup is over.
    pub fn ask(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for place in 0..self.paths.len() {
            let after_ms = self.paths[place].ms;
            for peer in self.paths[place].next(&self.asked) {
                // Whom another path asks counts as answered here, and tells this one nothing.
                if self.asked.insert(peer, Stage::Answered).is_none() {
                    steps.push(Step { path: place, peer, after_ms });
                }
            }
        }
        steps
    }

    /// Notes how long the slowest answer to the questions of a path took.
    pub fn took(&mut self, step: Step, ms: u64) {
        let path = &mut self.paths[step.path];
        path.ms = path.ms.max(step.after_ms + ms);
    }

    /// Returns how long it all took.
    #[must_use]
    pub fn ms(&self) -> u64 {
        self.paths.iter().map(|path| path.ms).max().unwrap_or(0)
    }

    /// Returns those that answered.
    #[must_use]
    pub fn answering(&self) -> Vec<usize> {
        let answered = self.asked.iter().filter(|(_, stage)| **stage == Stage::Answered);
        answered.map(|(peer, _)| *peer).collect()
    }
}

impl Path {
    /// Returns whom to ask next: of the nearest that may answer, the first that were not asked.
    fn next(&mut self, asked: &BTreeMap<usize, Stage>) -> Vec<usize> {
        for (peer, stage) in self.peers.values_mut().filter(|(_, stage)| *stage == Stage::New) {
            *stage = asked.get(peer).copied().unwrap_or(Stage::New);
        }
        let near = self.peers.values().filter(|(_, stage)| *stage != Stage::Failed).take(K);
        near.filter(|(_, stage)| *stage == Stage::New).map(|(peer, _)| *peer).take(ALPHA).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everybody_knows_some(count: usize) -> Directory {
        let mut directory = Directory::default();
        (0..count).for_each(|host| directory.add(&host.to_be_bytes()));
        for host in 0..count {
            (0..count).filter(|other| *other != host).for_each(|other| {
                directory.enter(host, other, |_| true);
            });
        }
        directory
    }

    fn walked(directory: &Directory, from: usize, key: Key, dead: &[usize]) -> (Vec<usize>, usize) {
        let mut walk = directory.walk(from, key);
        let mut asked = 0;
        loop {
            let steps = walk.ask();
            if steps.is_empty() {
                break;
            }
            for step in steps {
                asked += 1;
                let closer = (!dead.contains(&step.peer)).then(|| directory.nearest(step.peer, key, from));
                directory.answered(&mut walk, step, closer.as_deref());
                walk.took(step, 10);
            }
        }
        (directory.nearest_of(walk.answering(), key), asked)
    }

    #[test]
    fn a_lookup_finds_the_nearest_of_a_thousand_and_asks_few() {
        let directory = everybody_knows_some(1_000);
        let key = Directory::key_of(b"a model");
        let all = directory.nearest_of((1..1_000).collect(), key);

        let (found, asked) = walked(&directory, 0, key, &[]);

        assert_eq!(found, all);
        assert!((20..=60).contains(&asked), "asked {asked}");
    }

    #[test]
    fn a_lookup_goes_around_those_that_do_not_answer() {
        let directory = everybody_knows_some(300);
        let key = Directory::key_of(b"a model");
        let all = directory.nearest_of((1..300).collect(), key);

        let (found, _) = walked(&directory, 0, key, &all[..5]);

        assert!(all[5..].iter().all(|near| found.contains(near)));
        assert!(all[..5].iter().all(|dead| !found.contains(dead)));
    }

    #[test]
    fn a_full_bucket_keeps_whoever_is_connected() {
        let mut directory = Directory::default();
        (0..400_usize).for_each(|host| directory.add(&host.to_be_bytes()));
        let far: Vec<usize> = (1..400)
            .filter(|other| (directory.key(0) ^ directory.key(*other)).leading_zeros() == 0)
            .collect();
        far.iter().take(K).for_each(|other| assert!(directory.enter(0, *other, |_| true)));

        assert!(!directory.enter(0, far[K], |_| true));
        assert!(directory.enter(0, far[K], |other| other != far[3]));
        assert_eq!(directory.known(0), K);
    }

    #[test]
    fn records_are_bounded_and_end() {
        let mut directory = Directory::default();
        (0..50_usize).for_each(|host| directory.add(&host.to_be_bytes()));
        (1..50).for_each(|provider| directory.keep(0, 7, provider, Time(0)));

        assert_eq!(directory.providers(0, 7, Time(1)), (1..=K).collect::<Vec<_>>());
        assert!(directory.providers(0, 7, Time(RECORD_MS)).is_empty());
    }

    #[test]
    fn a_refreshed_key_is_in_its_bucket() {
        let directory = everybody_knows_some(100);

        let keys = directory.refreshed(3, || u64::MAX);

        let common = keys.iter().map(|key| (key ^ directory.key(3)).leading_zeros());
        assert!(common.clone().rev().eq(0..u32::try_from(keys.len()).unwrap()), "{common:?}");
        assert!(keys.len() > 4);
    }
}
