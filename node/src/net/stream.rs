//! A job's stream: frames of bytes in both directions, and how one is opened.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

use super::{
    PeerKey,
    jobs::Open,
    limits::{FRAME_MAX, OPEN_TIMEOUT},
};

/// Attempts to open a stream: a connection may close just as it is chosen, twice in a row hardly ever.
const ATTEMPTS_MAX: usize = 3;
/// A length before each frame, little endian.
const HEAD: usize = 4;
/// Room for what is read at once: some packets. Without it a read takes 64 bytes, which is a token.
const READ: usize = 8 * 1024;
/// Bounds the first frame, which names a job.
const GREETING_MAX: usize = 64;

/// Why a stream cannot be read on: the other end announced a frame larger than any.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a frame of {0} bytes")]
pub struct Oversized(usize);

/// Frames to and from the other end of a job. Dropping it tells the other end.
#[derive(Debug)]
pub struct JobStream {
    receiver: JobReceiver,
    sender: JobSender,
}

#[derive(Debug)]
pub struct JobReceiver {
    io: ReadHalf<Compat<libp2p::Stream>>,
    buffer: BytesMut,
    /// What is read goes through here: a buffer that is not the stream's own is set to zeros before each read.
    room: Box<[u8]>,
    _slot: Arc<Slot>,
}

#[derive(Debug)]
pub struct JobSender {
    io: WriteHalf<Compat<libp2p::Stream>>,
    unsent: BytesMut,
    _slot: Arc<Slot>,
}

impl JobStream {
    pub(super) fn new(stream: libp2p::Stream, slot: Slot) -> Self {
        let (read, write) = tokio::io::split(stream.compat());
        let slot = Arc::new(slot);
        Self {
            receiver: JobReceiver {
                io: read,
                buffer: BytesMut::new(),
                room: Box::default(),
                _slot: slot.clone(),
            },
            sender: JobSender { io: write, unsent: BytesMut::new(), _slot: slot },
        }
    }

    /// Returns the next frame, or nothing when the other end is done. Cancel safe.
    pub async fn recv(&mut self) -> io::Result<Option<Bytes>> {
        self.receiver.recv().await
    }

    /// Returns the first frame of a stream that anybody may have opened: it is short, and room is made for no more.
    pub async fn greeting(&mut self) -> io::Result<Option<Bytes>> {
        self.receiver.recv_within(GREETING_MAX).await
    }

    /// Sends one frame of at most `FRAME_MAX` bytes. What a cancelled call left is sent by the next one.
    pub async fn send(&mut self, frame: Bytes) -> io::Result<()> {
        self.sender.send(frame).await
    }

    pub fn split(self) -> (JobReceiver, JobSender) {
        (self.receiver, self.sender)
    }
}

impl JobReceiver {
    /// Returns the next frame, or nothing when the other end is done. Cancel safe.
    pub async fn recv(&mut self) -> io::Result<Option<Bytes>> {
        self.recv_within(FRAME_MAX).await
    }

    async fn recv_within(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer, most)? {
                return Ok(Some(frame));
            }
            if self.room.len() < READ.min(most) {
                self.room = vec![0; READ.min(most)].into();
            }
            let read = self.io.read(&mut self.room).await?;
            self.buffer.extend_from_slice(&self.room[..read]);
            if read == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Returns the next frame if all of it was read with those before it.
    pub fn arrived(&mut self) -> io::Result<Option<Bytes>> {
        take_frame(&mut self.buffer, FRAME_MAX)
    }
}

impl JobSender {
    /// Sends one frame of at most `FRAME_MAX` bytes. What a cancelled call left is sent by the next one.
    pub async fn send(&mut self, frame: Bytes) -> io::Result<()> {
        self.feed(&frame)?;
        self.flush().await
    }

    /// Puts one frame of at most `FRAME_MAX` bytes behind those that the next [`JobSender::flush`] sends.
    pub fn feed(&mut self, frame: &[u8]) -> io::Result<()> {
        if frame.len() > FRAME_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} bytes in a frame", frame.len()),
            ));
        }
        self.unsent.put_u32_le(u32::try_from(frame.len()).expect("FRAME_MAX fits"));
        self.unsent.put_slice(frame);
        Ok(())
    }

    /// Returns how many bytes wait to be sent.
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Sends what waits. What a cancelled call left is sent by the next one.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.unsent.has_remaining() {
            if self.io.write_buf(&mut self.unsent).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        // A token is worth nothing until it arrives: every frame leaves at once.
        self.io.flush().await
    }

    /// Says that no more frames come; the other end then receives nothing, and may still send.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }
}

fn take_frame(buffer: &mut BytesMut, most: usize) -> io::Result<Option<Bytes>> {
    let Some(head) = buffer.first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*head) as usize;
    if length > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, Oversized(length)));
    }
    if buffer.len() < HEAD + length {
        buffer.reserve(HEAD + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEAD);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// A place among the job streams open with a peer; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slot {
    pub(super) fn take(taken: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let place = taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < max).then_some(n + 1));
        place.is_ok().then(|| Self(taken.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Opens job streams, from any task.
#[derive(Clone, Debug)]
pub struct StreamOpener {
    pub(super) requests: mpsc::Sender<Open>,
}

impl StreamOpener {
    /// Opens a stream to `peer`, dialing it if needed. The other end hears of the stream at once, but may still
    /// refuse it: then the first `recv` fails.
    pub async fn open(&self, peer: PeerKey) -> Result<JobStream> {
        match tokio::time::timeout(OPEN_TIMEOUT, self.open_patiently(peer)).await {
            Ok(opened) => opened,
            Err(_) => bail!("no job stream to {peer} within {} s", OPEN_TIMEOUT.as_secs()),
        }
    }

    async fn open_patiently(&self, peer: PeerKey) -> Result<JobStream> {
        for _ in 0..ATTEMPTS_MAX {
            let (reply, answer) = oneshot::channel();
            self.requests.send(Open { peer, reply }).await.context("the network is shut down")?;
            match answer.await {
                Ok(Ok((stream, slot))) => {
                    let mut stream = JobStream::new(stream, slot);
                    // The protocol's name waits for the first write; flushed, the other end sees the stream now.
                    stream.sender.io.flush().await.with_context(|| format!("open a job stream to {peer}"))?;
                    return Ok(stream);
                }
                Ok(Err(reason)) => bail!("no job stream to {peer}: {reason}"),
                Err(_) => tracing::debug!(?peer, "Connection closed while a job stream was opened"),
            }
        }
        bail!("no job stream to {peer}: its connections keep closing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(frames: &[&[u8]]) -> BytesMut {
        let mut buffer = BytesMut::new();
        for frame in frames {
            buffer.put_u32_le(frame.len() as u32);
            buffer.put_slice(frame);
        }
        buffer
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let sent = framed(&[b"one", b"", b"three"]);
        let mut buffer = BytesMut::new();
        let mut received = Vec::new();

        for byte in sent {
            buffer.put_u8(byte);
            while let Some(frame) = take_frame(&mut buffer, FRAME_MAX).unwrap() {
                received.push(frame);
            }
        }

        assert_eq!(received, [&b"one"[..], b"", b"three"]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let mut buffer = BytesMut::new();
        buffer.put_u32_le(FRAME_MAX as u32 + 1);

        assert_eq!(take_frame(&mut buffer, FRAME_MAX).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut greeting = framed(&[&[0; GREETING_MAX + 1]]);
        assert!(take_frame(&mut greeting.clone(), FRAME_MAX).unwrap().is_some());
        assert_eq!(take_frame(&mut greeting, GREETING_MAX).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_dropped_slot_is_free_again() {
        let taken = Arc::default();
        let first = Slot::take(&taken, 2).unwrap();
        let _second = Slot::take(&taken, 2).unwrap();
        assert!(Slot::take(&taken, 2).is_none());

        drop(first);

        assert!(Slot::take(&taken, 2).is_some());
    }
}
