//! The format of one segment file: a header, then frames of records and marks, and how they are read back.
//!
//! ```text
//! header  magic 8 | version u32 | segment u64 | first position u64 | head 32 | crc32c u32        64 bytes
//! frame   length u32 | crc32c(length, bytes) u32 | bytes                                         little endian
//! mark    a frame whose length has the top bit set: segment u64 | offset u64 | position u64 | head 32
//! bridge  the same and then the head that the next segment goes on from                       last frame of a pruned one
//! ```
//!
//! A segment that was pruned (version 2) is written at once and replaces the whole one: it begins where that began and
//! ends where that ended, each record has its position (u64) before it, and some positions are missing.
//!
//! A mark is written right after each commit. It says: all before me was durable when I was written. That
//! tells what a crash may tear (behind the last mark) from what must be whole (before any mark), and it lets
//! reopening compare counts and the hash chain at each commit.

use std::io::{self, BufRead};

use super::Position;

/// The BLAKE3 hash chain after a record: `head[n] = blake3(head[n - 1] | record[n])`.
pub type Head = [u8; 32];

/// The head before the first record.
pub const GENESIS: Head = [0; 32];

/// Bounds one record: what the largest message of the protocol can become, several times over.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// The format of a segment that is written from front to back.
pub const VERSION: u32 = 1;

/// The format of a segment that was pruned: the newest that this code knows.
pub const PRUNED_VERSION: u32 = 2;

/// Bytes of a header. Magic, version and checksum stay where they are in every later version.
pub const HEADER_BYTES: usize = 64;

/// Bytes of a frame around its content.
pub const FRAME_BYTES: usize = 8;

const MAGIC: &[u8; 8] = b"sharejnl";
const MARK: u32 = 1 << 31;
const MARK_BYTES: usize = 56;
const BRIDGE_BYTES: usize = MARK_BYTES + 32;
const POSITION_BYTES: usize = 8;
const CONTENT_BYTES_MAX: usize = RECORD_BYTES_MAX + POSITION_BYTES;

/// Returns the chain's head after `record`.
pub fn chain(head: &Head, record: &[u8]) -> Head {
    let mut joined = [0; 1024];
    // Nearly all are as short, and a start hashes all of them: in one piece it takes less.
    if let Some(both) = joined.get_mut(..head.len() + record.len()) {
        both[..head.len()].copy_from_slice(head);
        both[head.len()..].copy_from_slice(record);
        return blake3::hash(both).into();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(head);
    hasher.update(record);
    hasher.finalize().into()
}

/// Returns the file name of a segment.
pub fn name(segment: u64) -> String {
    format!("{segment:08}.seg")
}

/// Returns the number in a segment's file name, or nothing for other files.
pub fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let number = digits.parse().ok()?;
    (self::name(number) == *name).then_some(number)
}

/// The first bytes of a segment: where in the journal it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub segment: u64,
    /// The position of the first record in this segment.
    pub first: Position,
    /// The chain's head before that record.
    pub head: Head,
    /// Whether records are missing that were not needed any more.
    pub is_pruned: bool,
}

/// Why a header cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum HeaderFault {
    Damaged,
    Newer(u32),
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        let version = if self.is_pruned { PRUNED_VERSION } else { VERSION };
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.segment.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[28..60].copy_from_slice(&self.head);
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn decode(file: &[u8]) -> Result<Self, HeaderFault> {
        let bytes = file.get(..HEADER_BYTES).ok_or(HeaderFault::Damaged)?;
        if bytes[..8] != *MAGIC || u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(HeaderFault::Damaged);
        }
        let version = u32_at(bytes, 8);
        let is_pruned = match version {
            VERSION => false,
            PRUNED_VERSION => true,
            newer => return Err(HeaderFault::Newer(newer)),
        };
        let head = bytes[28..60].try_into().expect("32 bytes");
        Ok(Self { segment: u64_at(bytes, 12), first: Position(u64_at(bytes, 20)), head, is_pruned })
    }

    /// Returns the header of a segment in which all records are.
    pub const fn whole(segment: u64, first: Position, head: Head) -> Self {
        Self { segment, first, head, is_pruned: false }
    }

    /// Says whether the segment stands where `next` says, whatever was pruned of it.
    pub fn continues(&self, next: &Self) -> bool {
        *self == Self { is_pruned: self.is_pruned, ..*next }
    }

    /// Returns where a record stands that follows the one at `before`, and its bytes.
    fn place<'a>(&self, before: Position, content: &'a [u8]) -> Option<(Position, &'a [u8])> {
        if !self.is_pruned {
            return Some((Position(before.0 + 1), content));
        }
        let (position, record) = content.split_first_chunk()?;
        let position = Position(u64::from_le_bytes(*position));
        (position > before).then_some((position, record))
    }
}

/// Appends a record's frame.
pub fn encode_record(record: &[u8], out: &mut Vec<u8>) {
    assert!(record.len() <= RECORD_BYTES_MAX, "the journal checks lengths before it encodes");
    encode_frame(record.len() as u32, record, out);
}

/// Appends the frame of a record in a pruned segment; returns the chain's head after it.
pub fn encode_pruned(head: &Head, position: Position, record: &[u8], out: &mut Vec<u8>) -> Head {
    let content = [&position.0.to_le_bytes(), record].concat();
    encode_frame(content.len() as u32, &content, out);
    chain(head, &content)
}

/// Returns the end of a pruned segment at `offset`: what stood there ended with the record at `position`, and the next
/// segment goes on from `onward`.
pub fn encode_bridge(segment: u64, offset: u64, position: Position, head: &Head, onward: &Head) -> Vec<u8> {
    let content = [mark_content(segment, offset, position, head).as_slice(), onward].concat();
    let mut frame = Vec::with_capacity(FRAME_BYTES + BRIDGE_BYTES);
    encode_frame(MARK | BRIDGE_BYTES as u32, &content, &mut frame);
    frame
}

/// Returns the mark that stands at `offset` of `segment`, after the record at `position`.
pub fn encode_mark(segment: u64, offset: u64, position: Position, head: &Head) -> Vec<u8> {
    let content = mark_content(segment, offset, position, head);
    let mut frame = Vec::with_capacity(FRAME_BYTES + MARK_BYTES);
    encode_frame(MARK | MARK_BYTES as u32, &content, &mut frame);
    frame
}

fn mark_content(segment: u64, offset: u64, position: Position, head: &Head) -> Vec<u8> {
    let mut content = Vec::with_capacity(BRIDGE_BYTES);
    content.extend_from_slice(&segment.to_le_bytes());
    content.extend_from_slice(&offset.to_le_bytes());
    content.extend_from_slice(&position.0.to_le_bytes());
    content.extend_from_slice(head);
    content
}

fn encode_frame(length: u32, content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum(length, content).to_le_bytes());
    out.extend_from_slice(content);
}

// With the length in it, so that a run of zeros is not an endless row of valid empty records.
fn checksum(length: u32, content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), content)
}

/// What reading a segment from front to back found.
#[derive(Debug)]
pub struct Scan {
    /// The last whole record, and the chain's head after it.
    pub position: Position,
    pub head: Head,
    /// Where the whole frames end.
    pub end: usize,
    /// Where the last mark begins: what it attests ends there, and nothing attests the mark itself. 0 without
    /// one, since then not even the header is known to be durable.
    pub attested: usize,
    /// Whether that mark is the last frame.
    pub ends_marked: bool,
    pub fault: Option<Fault>,
}

/// What stands where a whole frame should.
#[derive(Debug)]
pub enum Fault {
    /// Not a whole frame; a crash leaves this at the end of the last segment.
    Torn,
    /// A whole frame that contradicts the records before it; no crash leaves this.
    Contradiction,
}

/// Reads all frames and calls back with each record, its position and the chain's head after it.
pub fn scan(header: &Header, file: &[u8], each: &mut dyn FnMut(Position, &Head, &[u8])) -> Scan {
    let mut scan = Scan {
        position: Position(header.first.0 - 1),
        head: header.head,
        end: HEADER_BYTES,
        attested: 0,
        ends_marked: false,
        fault: None,
    };
    let mut is_bridged = false;
    while scan.end < file.len() && scan.fault.is_none() {
        let Some((frame, length)) = read_frame(&file[scan.end..]).filter(|_| !is_bridged) else {
            scan.fault = Some(Fault::Torn);
            break;
        };
        let read = match frame {
            Frame::Record(content) => scan.record(header, content, each),
            Frame::Mark(mark) => scan.mark(header, mark),
            Frame::Bridge(bridge) => {
                is_bridged = true;
                scan.bridge(header, bridge)
            }
        };
        match read {
            Ok(()) => scan.end += length,
            Err(fault) => scan.fault = Some(fault),
        }
    }
    if header.is_pruned && !is_bridged {
        scan.fault.get_or_insert(Fault::Torn);
    }
    scan
}

impl Scan {
    fn record(
        &mut self,
        header: &Header,
        content: &[u8],
        each: &mut dyn FnMut(Position, &Head, &[u8]),
    ) -> Result<(), Fault> {
        let (position, record) = header.place(self.position, content).ok_or(Fault::Contradiction)?;
        self.position = position;
        self.head = chain(&self.head, content);
        self.ends_marked = false;
        each(position, &self.head, record);
        Ok(())
    }

    fn mark(&mut self, header: &Header, mark: &[u8]) -> Result<(), Fault> {
        if !is_at_home(mark, header, self.end) || header.is_pruned {
            return Err(Fault::Torn);
        }
        if *mark != mark_content(header.segment, self.end as u64, self.position, &self.head) {
            return Err(Fault::Contradiction);
        }
        self.attested = self.end;
        self.ends_marked = true;
        Ok(())
    }

    fn bridge(&mut self, header: &Header, bridge: &[u8]) -> Result<(), Fault> {
        let (mark, onward) = bridge.split_at(MARK_BYTES);
        let position = Position(u64_at(mark, 16));
        let is_own = *mark == mark_content(header.segment, self.end as u64, position, &self.head);
        if !header.is_pruned || !is_own || position < self.position {
            return Err(Fault::Contradiction);
        }
        self.position = position;
        self.head = onward.try_into().map_err(|_| Fault::Contradiction)?;
        Ok(())
    }
}

/// How much of a record [`skim`] shows: enough to tell its kind.
const SKIMMED_BYTES: usize = 16;

/// Calls back with the first bytes of the records of a segment as their lengths tell them, whatever their checksums are.
pub fn skim(mut file: impl BufRead, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let (mut header, mut start, mut content) = ([0; HEADER_BYTES], [0; FRAME_BYTES], [0; SKIMMED_BYTES]);
    let mut is_more = take(&mut file, &mut header)?;
    let before = if u32_at(&header, 8) == PRUNED_VERSION { POSITION_BYTES } else { 0 };
    while is_more && take(&mut file, &mut start)? {
        let word = u32_at(&start, 0);
        let length = (word & !MARK) as usize;
        if length > CONTENT_BYTES_MAX {
            break;
        }
        let shown = &mut content[..length.min(SKIMMED_BYTES)];
        is_more = take(&mut file, shown)? && skip(&mut file, length - shown.len())?;
        if is_more && word & MARK == 0 {
            each(shown.get(before..).unwrap_or_default());
        }
    }
    Ok(())
}

fn take(file: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

fn skip(file: &mut impl BufRead, mut bytes: usize) -> io::Result<bool> {
    while bytes > 0 {
        let ready = file.fill_buf()?.len().min(bytes);
        if ready == 0 {
            return Ok(false);
        }
        file.consume(ready);
        bytes -= ready;
    }
    Ok(true)
}

/// Returns the place of the first mark after byte `from`: proof that what stands before it was durable once.
pub fn find_mark(header: &Header, file: &[u8], from: usize) -> Option<usize> {
    (from..file.len()).find(|&offset| match read_frame(&file[offset..]) {
        Some((Frame::Mark(mark), _)) => is_at_home(mark, header, offset),
        Some((Frame::Record(_) | Frame::Bridge(_), _)) | None => false,
    })
}

// A mark elsewhere is an old block that a crash brought back, and proves nothing about this place.
fn is_at_home(mark: &[u8], header: &Header, offset: usize) -> bool {
    u64_at(mark, 0) == header.segment && u64_at(mark, 8) == offset as u64
}

enum Frame<'a> {
    Record(&'a [u8]),
    Mark(&'a [u8]),
    Bridge(&'a [u8]),
}

fn read_frame(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    if bytes.len() < FRAME_BYTES {
        return None;
    }
    let word = u32_at(bytes, 0);
    let length = (word & !MARK) as usize;
    let is_mark = word & MARK != 0;
    if length > CONTENT_BYTES_MAX || is_mark && ![MARK_BYTES, BRIDGE_BYTES].contains(&length) {
        return None;
    }
    let content = bytes.get(FRAME_BYTES..FRAME_BYTES + length)?;
    if u32_at(bytes, 4) != checksum(word, content) {
        return None;
    }
    let frame = match (is_mark, length) {
        (false, _) => Frame::Record(content),
        (true, MARK_BYTES) => Frame::Mark(content),
        (true, _) => Frame::Bridge(content),
    };
    Some((frame, FRAME_BYTES + length))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
