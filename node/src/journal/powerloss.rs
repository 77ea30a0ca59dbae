//! A disk that loses power: what was not synced is lost, torn or reordered at every operation of the journal.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, SegmentFile};
use super::pruning::Verdict;
use super::pruning::tests::ByFirstByte;
use super::segment::{self, Head};
use super::{GENESIS, History, Journal, JournalError, Options, Position, Urgency, recover};

/// The unit that reaches the disk whole, small so that records span many.
const SECTOR: usize = 32;

/// What the disk claims to do and does not, to prove that the test would notice.
#[derive(Clone, Copy, Debug, Default)]
struct Lies {
    file_sync: bool,
    directory_sync: bool,
    rewrite: bool,
}

/// What happens at the operation that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Power,
    /// The process is killed; the page cache lives on.
    Kill,
    /// The kernel reports an error, takes the pages for clean, and nobody knows what reached the disk.
    Sync,
    Full,
}

struct Prng(u64);

impl Prng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

enum Pending {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

/// A file as processes see it and as the disk has it.
#[derive(Default)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

struct State {
    prng: Prng,
    lies: Lies,
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    operations: usize,
    failure: Failure,
    fails_at: usize,
    has_failed: bool,
}

#[derive(Clone)]
struct SimulatedDisk(Arc<Mutex<State>>);

struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
    at: usize,
    ignored: usize,
}

impl State {
    /// Counts an operation; says whether it is the one that fails, and fails all after it.
    fn step(&mut self) -> io::Result<bool> {
        if self.has_failed {
            return Err(io::Error::other("simulated: the process is gone"));
        }
        self.operations += 1;
        self.has_failed = self.operations == self.fails_at;
        Ok(self.has_failed)
    }

    fn write(&mut self, file: usize, at: usize, bytes: &[u8]) {
        let file = &mut self.files[file];
        place(&mut file.seen, at, bytes, 0);
        file.pending.push(Pending::Write { at, bytes: bytes.to_vec() });
    }

    /// Writes back dirty pages, and no others.
    fn persist(&mut self, file: usize) {
        if self.lies.file_sync {
            return;
        }
        let file = &mut self.files[file];
        for pending in std::mem::take(&mut file.pending) {
            match pending {
                Pending::Length(length) => file.durable.resize(length, 0),
                Pending::Write { at, bytes } => place(&mut file.durable, at, &bytes, 0),
            }
        }
    }

    /// Lets any part of what is pending reach the disk, in any order.
    fn persist_some(&mut self, file: usize) {
        let chance = self.prng.below(5);
        let filler = if self.prng.below(2) == 0 { 0 } else { self.prng.next() as u8 };
        let file = &mut self.files[file];
        for pending in std::mem::take(&mut file.pending) {
            match pending {
                Pending::Length(length) if self.prng.below(4) < chance => file.durable.resize(length, filler),
                Pending::Length(_) => {}
                Pending::Write { mut at, bytes } => {
                    for sector in bytes.chunks(SECTOR) {
                        if self.prng.below(4) < chance {
                            place(&mut file.durable, at, sector, filler);
                        }
                        at += sector.len();
                    }
                }
            }
        }
    }

    fn lose_power(&mut self) {
        for file in 0..self.files.len() {
            self.persist_some(file);
            let file = &mut self.files[file];
            file.seen.clone_from(&file.durable);
        }
        let mut names = self.durable_names.clone();
        for (name, file) in &self.names {
            if self.prng.below(2) == 0 {
                names.insert(name.clone(), *file);
            }
        }
        let removed: Vec<String> =
            names.keys().filter(|name| !self.names.contains_key(*name)).cloned().collect();
        for name in removed {
            if self.prng.below(2) == 0 {
                names.remove(&name);
            }
        }
        self.durable_names.clone_from(&names);
        self.names = names;
    }
}

fn place(contents: &mut Vec<u8>, at: usize, bytes: &[u8], filler: u8) {
    let end = at + bytes.len();
    if contents.len() < end {
        contents.resize(end, filler);
    }
    contents[at..end].copy_from_slice(bytes);
}

impl SimulatedDisk {
    fn new(seed: u64, lies: Lies) -> Self {
        Self(Arc::new(Mutex::new(State {
            prng: Prng(seed),
            lies,
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            operations: 0,
            failure: Failure::Power,
            fails_at: 0,
            has_failed: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn arm(&self, failure: Failure, operations: usize) {
        let mut state = self.state();
        state.failure = failure;
        state.fails_at = state.operations + operations;
        state.has_failed = false;
    }
}

impl Disk for SimulatedDisk {
    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn read(&self, name: &str, limit: u64, contents: &mut Vec<u8>) -> io::Result<()> {
        let state = self.state();
        let file = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let seen = &state.files[file].seen;
        contents.clear();
        contents.extend_from_slice(&seen[..seen.len().min(limit as usize)]);
        Ok(())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        let mut state = self.state();
        let fails = state.step()?;
        let file = state.files.len();
        state.files.push(File::default());
        assert!(state.names.insert(name.to_owned(), file).is_none(), "{name} exists");
        if fails {
            return Err(io::Error::other("simulated"));
        }
        Ok(Box::new(SimulatedFile { disk: self.clone(), file, at: 0, ignored: 0 }))
    }

    fn open_at(&self, name: &str, length: u64, at: u64) -> io::Result<Box<dyn SegmentFile>> {
        let mut state = self.state();
        let fails = state.step()?;
        let file = state.names[name];
        state.files[file].seen.resize(length as usize, 0);
        state.files[file].pending.push(Pending::Length(length as usize));
        if fails {
            return Err(io::Error::other("simulated"));
        }
        let ignored = if state.lies.rewrite { (length - at) as usize } else { 0 };
        Ok(Box::new(SimulatedFile { disk: self.clone(), file, at: at as usize, ignored }))
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let fails = state.step()?;
        let file = state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        if fails { Err(io::Error::other("simulated")) } else { Ok(()) }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let fails = state.step()?;
        state.names.remove(name);
        if fails { Err(io::Error::other("simulated")) } else { Ok(()) }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.step()? {
            return Err(io::Error::other("simulated"));
        }
        if !state.lies.directory_sync {
            state.durable_names = state.names.clone();
        }
        Ok(())
    }
}

impl SegmentFile for SimulatedFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let fails = state.step()?;
        let written = match state.failure {
            Failure::Full if fails => state.prng.below(bytes.len() + 1),
            Failure::Kill if fails => state.prng.below(bytes.len() + 1),
            Failure::Full | Failure::Kill | Failure::Power | Failure::Sync => bytes.len(),
        };
        let ignored = self.ignored.min(written);
        state.write(self.file, self.at + ignored, &bytes[ignored..written]);
        self.at += written;
        self.ignored -= ignored;
        if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        let fails = state.step()?;
        if !fails {
            state.persist(self.file);
            return Ok(());
        }
        if state.failure == Failure::Sync {
            state.persist_some(self.file);
        }
        Err(io::Error::other("simulated: input/output error"))
    }
}

/// A node and what the world knows of it.
struct World {
    prng: Prng,
    disk: SimulatedDisk,
    /// All records that a node appended and no recovery has dropped.
    history: Vec<Vec<u8>>,
    /// Up to where nodes have begun to prune, one time after the other.
    prunings: Vec<usize>,
    /// How many of them the world was told to be durable.
    acknowledged: usize,
    crashes: usize,
}

impl World {
    fn new(seed: u64, lies: Lies) -> Self {
        let disk = SimulatedDisk::new(!seed, lies);
        Self {
            prng: Prng(seed),
            disk,
            history: Vec::new(),
            prunings: Vec::new(),
            acknowledged: 0,
            crashes: 0,
        }
    }

    /// Opens the journal, compares it with the history, and commits batches until something fails.
    fn live(&mut self) -> Result<(), String> {
        let options = Options { segment_bytes: 700, ..Options::default() };
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let mut records = Vec::new();
        let note =
            &mut |at: Position, _: &Head, record: &[u8]| records.push((at.0 as usize, record.to_vec()));
        let opened = recover(&disk, options, note);
        let (mut writer, recovered) = match opened {
            Ok(opened) => opened,
            Err(JournalError::Io { .. }) if self.disk.state().has_failed => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let (count, acknowledged) = (recovered.position.0 as usize, self.acknowledged);
        if count < acknowledged {
            return Err(format!("{count} records are left of {acknowledged} acknowledged"));
        }
        if count > self.history.len() {
            return Err(format!("{count} records came back that were not written so"));
        }
        self.history.truncate(count);
        self.compare(&records)?;
        self.is_pruned_at_its_end(&disk)?;
        // The node acts on what it finds, so that counts as acknowledged.
        self.acknowledged = count;

        let mut position = recovered.position;
        let mut head = recovered.head;
        for _ in 0..20 {
            let frames = self.batch(&mut position, &mut head);
            if writer.commit(&frames, position, head).is_err() {
                return Ok(());
            }
            self.acknowledged = self.history.len();
            if writer.mark().is_err() {
                return Ok(());
            }
            if self.prng.below(8) == 0 && !self.prunes(&disk)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Prunes beside the writer; says whether that was done.
    fn prunes(&mut self, disk: &Arc<dyn Disk>) -> Result<bool, String> {
        let mut pruner = ByFirstByte::default();
        let done = History { disk: disk.clone() }.prune(Position(self.acknowledged as u64), &mut pruner);
        self.prunings.push(pruner.until.0 as usize);
        match done {
            Ok(_) => Ok(true),
            Err(JournalError::Io { .. }) if self.disk.state().has_failed => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Each record is there as it was written, or as it was pruned where that was begun.
    fn compare(&self, records: &[(usize, Vec<u8>)]) -> Result<(), String> {
        let mut found = records.iter().peekable();
        for (at, written) in (1..).zip(&self.history) {
            let found = found.next_if(|(position, _)| *position == at).map(|(_, record)| record);
            let pruned = match ByFirstByte::of(written) {
                Verdict::Keep => Some(written.clone()),
                Verdict::Replace(sum) => Some(sum),
                Verdict::Drop => None,
            };
            let is_whole = found == Some(written);
            let is_pruned = self.prunings.iter().any(|until| at <= *until) && found == pruned.as_ref();
            if !is_whole && !is_pruned {
                return Err(format!("record {at} came back otherwise than it was written"));
            }
        }
        if found.next().is_some() { Err("records came back in a wrong place".to_owned()) } else { Ok(()) }
    }

    /// Whatever was interrupted: behind a segment that was pruned, every other one is of which anything was to be dropped
    /// when the first pruning that saw it began.
    fn is_pruned_at_its_end(&self, disk: &Arc<dyn Disk>) -> Result<(), String> {
        let history = History { disk: disk.clone() };
        let headers = history.headers_behind(Position::default()).map_err(|error| error.to_string())?;
        let mut reach = 0;
        for pair in headers.windows(2) {
            let end = pair[1].first.0 as usize - 1;
            let mut records = (pair[0].first.0 as usize..=end).map(|at| &self.history[at - 1]);
            let is_dropped = records.any(|record| ByFirstByte::of(record) != Verdict::Keep);
            if pair[0].is_pruned {
                reach = reach.max(*self.prunings.iter().find(|until| end <= **until).unwrap_or(&0));
            } else if is_dropped && end <= reach {
                return Err(format!("segment {} is whole behind one that is not", pair[0].segment));
            }
        }
        Ok(())
    }

    fn batch(&mut self, position: &mut Position, head: &mut Head) -> Vec<u8> {
        let mut frames = Vec::new();
        for _ in 0..1 + self.prng.below(4) {
            let record: Vec<u8> = (0..self.prng.below(120)).map(|_| self.prng.next() as u8).collect();
            *position = Position(position.0 + 1);
            *head = segment::chain(head, &record);
            segment::encode_record(&record, &mut frames);
            self.history.push(record);
        }
        frames
    }

    fn fail(&mut self) {
        let mut state = self.disk.state();
        self.crashes += usize::from(state.has_failed);
        // A failed sync or a full disk ends the process; the power may go with it.
        let loses_power = match state.failure {
            Failure::Power => true,
            Failure::Kill => false,
            Failure::Sync | Failure::Full => self.prng.below(2) == 0,
        };
        if loses_power {
            state.lose_power();
        }
    }
}

/// Lets a node live and fail six times; returns how many failures struck.
fn check(seed: u64, lies: Lies) -> Result<usize, String> {
    let mut world = World::new(seed, lies);
    for life in 0..6 {
        let failure = match world.prng.below(6) {
            0 => Failure::Kill,
            1 => Failure::Sync,
            2 => Failure::Full,
            _ => Failure::Power,
        };
        // The first life fails at each of its operations in turn.
        let operations = if life == 0 { 1 + seed as usize % 80 } else { 1 + world.prng.below(40) };
        world.disk.arm(failure, operations);
        world.live().map_err(|what| format!("seed {seed}, life {life}: {what}"))?;
        world.fail();
    }
    world.disk.arm(Failure::Power, usize::MAX / 2);
    world.live().map_err(|what| format!("seed {seed}, last life: {what}"))?;
    Ok(world.crashes)
}

#[test]
fn no_crash_loses_doubles_resurrects_or_reorders_a_record() {
    let crashes: usize = (0..1200).map(|seed| check(seed, Lies::default()).unwrap()).sum();

    assert!(crashes >= 4000, "only {crashes} failures struck");
}

#[test]
fn the_thread_reports_only_what_outlives_a_crash() {
    for seed in 0..100 {
        let mut world = World::new(seed, Lies::default());
        for life in 0..4 {
            let operations = 5 + world.prng.below(40);
            world.disk.arm(Failure::Power, operations);
            let disk = Arc::new(world.disk.clone());
            let options = Options { segment_bytes: 700, ..Options::default() };
            let mut records = Vec::new();
            let note = |_, _: &Head, record: &[u8]| records.push(record.to_vec());
            if let Ok((mut journal, _)) = Journal::open_on(disk, options, note) {
                assert!(records.len() >= world.acknowledged, "seed {seed}, life {life}");
                assert_eq!(world.history[..records.len()], records, "seed {seed}, life {life}");
                world.history = records;
                for _ in 0..200 {
                    let record = world.prng.next().to_le_bytes();
                    if journal.append(&[record], Urgency::Now).is_err() {
                        break;
                    }
                    world.history.push(record.to_vec());
                    std::thread::yield_now();
                }
                // Ends with the error of the failure; what was reported before it is what counts.
                let _ = journal.finish();
                world.acknowledged = journal.durable.borrow().0 as usize;
            }
            world.disk.state().lose_power();
        }
    }
}

#[test]
fn a_disk_that_lies_is_noticed() {
    let notices = |lies| (0..800).any(|seed| check(seed, lies).is_err());

    assert!(notices(Lies { file_sync: true, ..Lies::default() }));
    assert!(notices(Lies { directory_sync: true, ..Lies::default() }));
    assert!(notices(Lies { rewrite: true, ..Lies::default() }));
}

#[test]
fn the_head_of_an_empty_journal_is_the_genesis() {
    let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new(1, Lies::default()));

    let (_, recovered) = recover(&disk, Options::default(), &mut |_, _, _| ()).unwrap();

    assert_eq!(recovered.head, GENESIS);
}
