//! What a journal keeps, and what damage is refused.

use std::fs;

use tempfile::TempDir;

use super::*;

const SMALL: Options = Options { segment_bytes: 1000, patience: PATIENCE };

fn record(number: u64) -> Vec<u8> {
    format!("record {number} {}", "x".repeat((number % 50) as usize)).into_bytes()
}

fn open(folder: &TempDir, options: Options) -> Result<(Journal, Recovered, Vec<Vec<u8>>), JournalError> {
    let mut records = Vec::new();
    let (journal, recovered) =
        Journal::open(folder.path(), options, |_, _, record| records.push(record.to_vec()))?;
    Ok((journal, recovered, records))
}

/// Commits records one by one, so that each has its own mark, and closes.
fn fill(folder: &TempDir, options: Options, count: u64) {
    let disk: Arc<dyn Disk> = Arc::new(Directory::open(folder.path()).unwrap());
    let (mut writer, recovered) = recover(&disk, options, &mut |_, _, _| ()).unwrap();
    let mut head = recovered.head;
    for number in 1..=count {
        let mut frames = Vec::new();
        segment::encode_record(&record(number), &mut frames);
        head = segment::chain(&head, &record(number));
        writer.commit(&frames, Position(number), head).unwrap();
        writer.mark().unwrap();
    }
    writer.sync().unwrap();
}

fn file(folder: &TempDir, segment: u64) -> PathBuf {
    folder.path().join(segment::name(segment))
}

fn refusal_of(folder: &TempDir) -> String {
    match open(folder, SMALL) {
        Ok((_, recovered, _)) => panic!("opened: {recovered:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_closed_journal_opens_with_all_its_records_in_order() {
    let folder = TempDir::new().unwrap();
    let (mut journal, ..) = open(&folder, SMALL).unwrap();
    for number in 1..=100 {
        let position = journal.append(&[record(number)], Urgency::Soon).unwrap();
        assert_eq!(position, Position(number));
    }
    let head = journal.head();
    assert_eq!(journal.close().unwrap(), Position(100));

    let (_journal, recovered, records) = open(&folder, SMALL).unwrap();

    assert_eq!(records, (1..=100).map(record).collect::<Vec<_>>());
    assert_eq!((recovered.position, recovered.head, recovered.torn_bytes), (Position(100), head, 0));
}

#[test]
fn a_head_is_the_hash_of_head_and_record_whatever_the_records_length() {
    for length in [0, 1, 991, 992, 993, 5000] {
        let record = vec![7; length];
        let joined = [GENESIS.as_slice(), &record].concat();
        assert_eq!(segment::chain(&GENESIS, &record), *blake3::hash(&joined).as_bytes());
    }
}

#[test]
fn a_look_ahead_shows_how_all_records_begin_and_none_that_is_torn() {
    let folder = TempDir::new().unwrap();
    fill(&folder, SMALL, 100);
    let newest = (1..).map(|segment| file(&folder, segment)).take_while(|path| path.exists()).last().unwrap();
    let mut torn = Vec::new();
    segment::encode_record(b"record 101 was not written to its end", &mut torn);
    let mut contents = fs::read(&newest).unwrap();
    contents.extend_from_slice(&torn[..torn.len() - 1]);
    fs::write(&newest, contents).unwrap();

    let mut seen = Vec::new();
    peek(folder.path(), |record| seen.push(record.to_vec())).unwrap();

    let begins = |number| record(number).into_iter().take(16).collect::<Vec<_>>();
    assert_eq!(seen, (1..=100).map(begins).collect::<Vec<_>>());
}

#[test]
fn segments_are_closed_at_their_size_and_follow_each_other() {
    let folder = TempDir::new().unwrap();
    fill(&folder, SMALL, 100);

    let (_journal, recovered, records) = open(&folder, SMALL).unwrap();

    assert!(recovered.segments > 5, "{} segments", recovered.segments);
    assert_eq!(records.len(), 100);
    assert!(fs::metadata(file(&folder, 1)).unwrap().len() < 1300);
}

#[test]
fn a_torn_tail_is_cut_at_every_byte_of_the_last_record() {
    let folder = TempDir::new().unwrap();
    fill(&folder, Options::default(), 5);
    let before = fs::read(file(&folder, 1)).unwrap();
    let mut whole = before.clone();
    segment::encode_record(&record(6), &mut whole);

    for length in before.len()..whole.len() {
        fs::write(file(&folder, 1), &whole[..length]).unwrap();
        let (journal, recovered, records) = open(&folder, Options::default()).unwrap();
        assert_eq!(records.len(), 5);
        assert_eq!(recovered.torn_bytes, (length - before.len()) as u64);
        journal.close().unwrap();
        assert_eq!(fs::read(file(&folder, 1)).unwrap(), before);
    }

    fs::write(file(&folder, 1), &whole).unwrap();
    assert_eq!(open(&folder, Options::default()).unwrap().2.len(), 6);
}

#[test]
fn any_flipped_bit_is_refused_with_its_place_and_changes_nothing() {
    let folder = TempDir::new().unwrap();
    fill(&folder, SMALL, 30);
    let last_mark = FRAME_BYTES + 56;
    for segment in 1..=2 {
        let whole = fs::read(file(&folder, segment)).unwrap();
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << (place % 8);
            fs::write(file(&folder, segment), &flipped).unwrap();
            let refusal = refusal_of(&folder);
            assert!(refusal.contains(&segment::name(segment)), "{refusal}");
            assert_eq!(fs::read(file(&folder, segment)).unwrap(), flipped);
        }
        fs::write(file(&folder, segment), &whole).unwrap();
    }

    // In the last segment all is refused but the mark at its end, behind which nothing ever was promised.
    let (_, recovered, _) = open(&folder, SMALL).unwrap();
    let last = file(&folder, recovered.segments);
    let whole = fs::read(&last).unwrap();
    for place in 0..whole.len() - last_mark {
        let mut flipped = whole.clone();
        flipped[place] ^= 1 << (place % 8);
        fs::write(&last, &flipped).unwrap();
        assert!(refusal_of(&folder).contains("damaged at byte"));
    }
}

#[test]
fn damage_is_named_by_file_offset_and_record() {
    let folder = TempDir::new().unwrap();
    fill(&folder, Options::default(), 3);
    let mut contents = fs::read(file(&folder, 1)).unwrap();
    let second = HEADER_BYTES + FRAME_BYTES + record(1).len() + FRAME_BYTES + 56;
    contents[second + FRAME_BYTES + 2] ^= 4;
    fs::write(file(&folder, 1), &contents).unwrap();

    let refusal = refusal_of(&folder);

    assert!(refusal.contains(&format!("byte {second} of")), "{refusal}");
    assert!(refusal.contains("00000001.seg, record 2:"), "{refusal}");
}

#[test]
fn a_record_exchanged_for_another_whole_one_is_refused() {
    let folder = TempDir::new().unwrap();
    fill(&folder, Options::default(), 3);
    let mut contents = fs::read(file(&folder, 1)).unwrap();
    let mut forged = record(1);
    forged[0] ^= 1;
    let mut frame = Vec::new();
    segment::encode_record(&forged, &mut frame);
    contents[HEADER_BYTES..HEADER_BYTES + frame.len()].copy_from_slice(&frame);
    fs::write(file(&folder, 1), &contents).unwrap();

    assert!(refusal_of(&folder).contains("do not have the count or the hashes"));
}

#[test]
fn what_opening_found_behind_the_last_mark_may_not_be_torn_later() {
    let folder = TempDir::new().unwrap();
    fill(&folder, Options::default(), 1);
    let mut contents = fs::read(file(&folder, 1)).unwrap();
    segment::encode_record(&record(2), &mut contents);
    fs::write(file(&folder, 1), &contents).unwrap();
    open(&folder, Options::default()).unwrap().0.close().unwrap();

    let mut marked = fs::read(file(&folder, 1)).unwrap();
    marked[contents.len() - 1] ^= 1;
    fs::write(file(&folder, 1), &marked).unwrap();

    assert!(refusal_of(&folder).contains("record 2:"));
}

#[test]
fn a_missing_or_shortened_segment_is_refused() {
    let folder = TempDir::new().unwrap();
    fill(&folder, SMALL, 60);
    let second = fs::read(file(&folder, 2)).unwrap();

    fs::remove_file(file(&folder, 2)).unwrap();
    assert!(refusal_of(&folder).contains("lacks"));

    // Cut between two frames, so that only counts and chain can tell.
    let frames_end = second.len() - (FRAME_BYTES + 56);
    fs::write(file(&folder, 2), &second[..frames_end]).unwrap();
    let (header, mut ends) = (Header::decode(&second).unwrap(), Vec::new());
    let mut length = HEADER_BYTES;
    segment::scan(&header, &second, &mut |_, _, record| {
        length += FRAME_BYTES + record.len();
        ends.push(length);
        length += FRAME_BYTES + 56;
    });
    fs::write(file(&folder, 2), &second[..ends[2]]).unwrap();
    assert!(refusal_of(&folder).contains("does not continue the segment before"));

    fs::remove_file(file(&folder, 1)).unwrap();
    assert!(refusal_of(&folder).contains("lacks"));
}

#[test]
fn a_newer_format_is_refused() {
    let folder = TempDir::new().unwrap();
    fill(&folder, SMALL, 3);
    let mut contents = fs::read(file(&folder, 1)).unwrap();
    contents[8] = 3;
    let checksum = crc32c::crc32c(&contents[..60]).to_le_bytes();
    contents[60..64].copy_from_slice(&checksum);
    fs::write(file(&folder, 1), &contents).unwrap();

    assert!(refusal_of(&folder).contains("has journal format 3; this program reads 2"));
}

#[test]
fn records_that_do_not_fit_are_refused_and_change_nothing() {
    let folder = TempDir::new().unwrap();
    let options = Options { patience: Duration::from_secs(60), ..Options::default() };
    let (mut journal, ..) = open(&folder, options).unwrap();
    let head = journal.head();

    let too_long = vec![0; RECORD_BYTES_MAX + 1];
    assert_eq!(journal.append(&[too_long], Urgency::Now), Err(Refused::TooLong(RECORD_BYTES_MAX + 1)));
    let many = vec![vec![0; RECORD_BYTES_MAX]; 9];
    assert_eq!(journal.append(&many, Urgency::Now), Err(Refused::Full));

    assert_eq!((journal.position(), journal.head()), (Position(0), head));
    assert_eq!(journal.append(&many[..3], Urgency::Soon), Ok(Position(3)));
    assert_eq!(journal.close().unwrap(), Position(3));
}

#[test]
fn history_replays_any_part_and_knows_every_head() {
    let folder = TempDir::new().unwrap();
    fill(&folder, SMALL, 60);
    let mut heads = vec![GENESIS];
    let (journal, _) = Journal::open(folder.path(), SMALL, |_, head, _| heads.push(*head)).unwrap();
    let history = journal.history();

    for (position, head) in heads.iter().enumerate() {
        assert_eq!(history.head_at(Position(position as u64)).unwrap(), Some(*head), "{position}");
    }
    assert_eq!(history.head_at(Position(61)).unwrap(), None);
    for (after, until) in [(0, 60), (0, 0), (17, 43), (59, 60), (60, 60)] {
        let mut found = Vec::new();
        let note = |position: Position, _: &Head, record: &[u8]| found.push((position.0, record.to_vec()));
        history.replay(Position(after), Position(until), note).unwrap();
        let expected: Vec<_> = (after + 1..=until).map(|number| (number, record(number))).collect();
        assert_eq!(found, expected);
    }
    assert!(history.replay(Position(3), Position(61), |_, _, _| ()).is_err());
}

#[tokio::test]
async fn what_gathers_while_the_disk_is_busy_shares_one_sync() {
    let disk = Arc::new(CountingDisk::default());
    let (mut journal, _) = Journal::open_on(disk.clone(), Options::default(), |_, _, _| ()).unwrap();
    let opening = disk.syncs();

    // The disk stands still at the first record until a thousand more wait.
    disk.hold();
    journal.append(&[record(1)], Urgency::Now).unwrap();
    disk.wait_until_held().await;
    for number in 2..=1001 {
        journal.append(&[record(number)], Urgency::Now).unwrap();
    }
    disk.release();
    while journal.committed().await.unwrap() < Position(1001) {}

    assert_eq!(disk.syncs() - opening, 2);
}

#[tokio::test]
async fn an_urgent_record_takes_patient_ones_along_and_those_alone_wait() {
    let disk = Arc::new(CountingDisk::default());
    let options = Options { patience: Duration::from_secs(3600), ..Options::default() };
    let (mut journal, _) = Journal::open_on(disk.clone(), options, |_, _, _| ()).unwrap();
    let opening = disk.syncs();

    for number in 1..=10 {
        journal.append(&[record(number)], Urgency::Soon).unwrap();
    }
    tokio::time::timeout(Duration::from_millis(20), journal.committed()).await.unwrap_err();
    assert_eq!(disk.syncs(), opening);
    journal.append(&[record(11)], Urgency::Now).unwrap();

    assert_eq!(journal.committed().await.unwrap(), Position(11));
    assert_eq!(disk.syncs() - opening, 1);
}

#[tokio::test]
async fn patient_records_are_durable_without_an_urgent_one() {
    let folder = TempDir::new().unwrap();
    let (mut journal, ..) = open(&folder, Options::default()).unwrap();

    journal.append(&[record(1)], Urgency::Soon).unwrap();

    assert_eq!(journal.committed().await.unwrap(), Position(1));
}

#[tokio::test]
async fn a_failing_disk_is_reported_once_and_nothing_is_taken_after_it() {
    let disk = Arc::new(CountingDisk::default());
    let (mut journal, _) = Journal::open_on(disk.clone(), Options::default(), |_, _, _| ()).unwrap();
    journal.append(&[record(1)], Urgency::Now).unwrap();
    assert_eq!(journal.committed().await.unwrap(), Position(1));

    disk.fail();
    journal.append(&[record(2)], Urgency::Now).unwrap();
    let error = journal.committed().await.unwrap_err().to_string();

    assert!(error.contains("00000001.seg"), "{error}");
    assert_eq!(journal.append(&[record(3)], Urgency::Now), Err(Refused::Stopped));
    tokio::time::timeout(Duration::from_millis(10), journal.committed()).await.unwrap_err();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_an_error_and_keeps_what_was_committed() {
    // A small disk needs a mount, so the test runs itself again inside a mount namespace.
    if let Ok(path) = std::env::var("SMALL_DISK") {
        return fill_disk(Path::new(&path)).await;
    }
    let folder = TempDir::new().unwrap();
    let script = r#"mount -t tmpfs -o size=256k tmpfs "$1" || exit 77
        SMALL_DISK="$1" exec "$0" --exact "$2""#;
    let ran = std::process::Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(folder.path())
        .arg("journal::tests::a_full_disk_is_an_error_and_keeps_what_was_committed")
        .output();
    match ran {
        Ok(output) if output.status.success() || output.status.code() == Some(101) => {
            let words = String::from_utf8_lossy(&output.stdout);
            assert!(words.contains("1 passed"), "{words}");
        }
        Ok(_) | Err(_) => println!("skipped: no mount namespaces here"),
    }
}

async fn fill_disk(folder: &Path) {
    let options = Options { segment_bytes: 20_000, ..Options::default() };
    let (mut journal, _) = Journal::open(folder, options, |_, _, _| ()).unwrap();
    let mut durable = Position(0);
    let error = loop {
        let _ = journal.append(&[vec![7; 1000]], Urgency::Now);
        match journal.committed().await {
            Ok(position) => durable = position,
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("No space left"), "{error}");
    assert!(durable > Position(200), "{durable} records");
    assert_eq!(journal.append(&[[7]], Urgency::Now), Err(Refused::Stopped));
    drop(journal);

    // There is no room for another record, but a shorter one fits once the torn one is cut.
    let (mut journal, recovered) = Journal::open(folder, options, |_, _, _| ()).unwrap();
    assert!(recovered.position >= durable);
    journal.append(&[[7]], Urgency::Now).unwrap();
    assert_eq!(journal.committed().await.unwrap(), Position(recovered.position.0 + 1));
}

/// Prints how near the journal comes to the disk itself: `cargo test -p node --release -- --ignored --nocapture throughput`.
#[tokio::test]
#[ignore = "a measurement"]
async fn throughput_beside_raw_append_and_fdatasync() {
    const RECORD_BYTES: usize = 300;
    for batch in [1, 10, 100, 1000] {
        let rounds = 100;
        let folder = tempfile::tempdir_in(".").unwrap();
        let mut raw = fs::File::create(folder.path().join("raw")).unwrap();
        let bytes = vec![7; (RECORD_BYTES + FRAME_BYTES) * batch];
        let (mut journal, _) =
            Journal::open(&folder.path().join("journal"), Options::default(), |_, _, _| ()).unwrap();
        let records = vec![vec![7; RECORD_BYTES]; batch];
        let (mut raw_time, mut journal_time) = (Duration::ZERO, Duration::ZERO);
        // Turn about, so that both meet the same disk.
        for _ in 0..rounds {
            let start = tokio::time::Instant::now();
            io::Write::write_all(&mut raw, &bytes).unwrap();
            raw.sync_data().unwrap();
            raw_time += start.elapsed();

            let start = tokio::time::Instant::now();
            let position = journal.append(&records, Urgency::Now).unwrap();
            while journal.committed().await.unwrap() < position {}
            journal_time += start.elapsed();
        }
        let rate = |time: Duration| (rounds * batch) as f64 / time.as_secs_f64();
        println!(
            "batches of {batch:4}: raw {:9.0} records/s, journal {:9.0} records/s, {:.2} of raw",
            rate(raw_time),
            rate(journal_time),
            rate(journal_time) / rate(raw_time)
        );
    }

    let folder = tempfile::tempdir_in(".").unwrap();
    let (mut journal, _) = Journal::open(folder.path(), Options::default(), |_, _, _| ()).unwrap();
    let count = 100_000;
    let record = [vec![7; RECORD_BYTES]];
    let start = tokio::time::Instant::now();
    for _ in 0..count {
        while journal.append(&record, Urgency::Soon).is_err() {
            journal.committed().await.unwrap();
        }
    }
    journal.close().unwrap();
    println!("{count} records one by one, committed in groups: {:?}", start.elapsed());
    let start = tokio::time::Instant::now();
    let (_journal, recovered) = Journal::open(folder.path(), Options::default(), |_, _, _| ()).unwrap();
    println!("opened again with {} records in {:?}", recovered.position, start.elapsed());
}

/// A disk in memory that counts syncs and stands still or fails on demand.
#[derive(Default)]
struct CountingDisk {
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    state: std::sync::Mutex<ControlState>,
    changed: std::sync::Condvar,
}

#[derive(Default)]
struct ControlState {
    syncs: usize,
    held: bool,
    waiting: bool,
    fails: bool,
}

struct CountingFile(Arc<Control>);

impl CountingDisk {
    fn syncs(&self) -> usize {
        self.control.state.lock().unwrap().syncs
    }

    fn hold(&self) {
        self.control.state.lock().unwrap().held = true;
    }

    fn fail(&self) {
        self.control.state.lock().unwrap().fails = true;
    }

    async fn wait_until_held(&self) {
        while !self.control.state.lock().unwrap().waiting {
            tokio::task::yield_now().await;
        }
    }

    fn release(&self) {
        self.control.state.lock().unwrap().held = false;
        self.control.changed.notify_all();
    }
}

impl Disk for CountingDisk {
    fn path(&self) -> &Path {
        Path::new("counting")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn read(&self, _: &str, _: u64, _: &mut Vec<u8>) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn create(&self, _: &str) -> io::Result<Box<dyn disk::SegmentFile>> {
        Ok(Box::new(CountingFile(self.control.clone())))
    }

    fn open_at(&self, _: &str, _: u64, _: u64) -> io::Result<Box<dyn disk::SegmentFile>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

impl disk::SegmentFile for CountingFile {
    fn write_all(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.0.state.lock().unwrap();
        state.waiting = state.held;
        state = self.0.changed.wait_while(state, |state| state.held).unwrap();
        state.waiting = false;
        state.syncs += 1;
        if state.fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}
