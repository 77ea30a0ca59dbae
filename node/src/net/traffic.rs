//! Counts what the streams of all connections carry, by the protocol that each stream is for.
//!
//! A stream begins with the name of its protocol, said by either end, so what an end writes first tells. Counted is what
//! streams carry; packets and their encryption come on top of it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent, SubstreamBox};

/// Bytes within which an end has named its protocol.
const HEAD_MAX: usize = 256;

/// What streams are for: its name, and what names of such protocols contain.
const KINDS: [(&str, &[&str]); 5] = [
    ("messages", &["/message/"]),
    ("jobs", &["/job/"]),
    ("gossip", &["/gossip/", "/meshsub/"]),
    ("directory", &["/kad/"]),
    ("upkeep", &["/ipfs/id/", "/ipfs/ping/"]),
];

/// Streams of other protocols, such as relays', and those that ended before they named one.
const OTHER: usize = KINDS.len();

/// Bytes that streams of one kind have carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficOf {
    /// What the streams are for.
    pub kind: &'static str,
    pub sent: u64,
    pub received: u64,
    /// Streams that were opened, by either end.
    pub streams: u64,
}

/// Bytes of all streams, by kind.
#[derive(Debug, Default)]
pub(super) struct Traffic([Counts; OTHER + 1]);

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    streams: AtomicU64,
}

impl Traffic {
    pub(super) fn all(&self) -> Vec<TrafficOf> {
        let names = KINDS.iter().map(|(name, _)| *name).chain(["other"]);
        let of = |(kind, counts): (&'static str, &Counts)| TrafficOf {
            kind,
            sent: counts.sent.load(Ordering::Relaxed),
            received: counts.received.load(Ordering::Relaxed),
            streams: counts.streams.load(Ordering::Relaxed),
        };
        names.zip(&self.0).map(of).collect()
    }

    fn add(&self, kind: usize, sent: u64, received: u64) {
        self.0[kind].sent.fetch_add(sent, Ordering::Relaxed);
        self.0[kind].received.fetch_add(received, Ordering::Relaxed);
    }
}

/// A connection whose streams are counted.
pub(super) struct Counted {
    inner: StreamMuxerBox,
    traffic: Arc<Traffic>,
}

impl Counted {
    pub(super) fn new(inner: StreamMuxerBox, traffic: Arc<Traffic>) -> Self {
        Self { inner, traffic }
    }

    fn stream(&self, inner: SubstreamBox) -> CountedStream {
        CountedStream { inner, count: Count::new(self.traffic.clone()) }
    }
}

impl StreamMuxer for Counted {
    type Substream = CountedStream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<CountedStream>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_inbound(cx))?;
        Poll::Ready(Ok(self.stream(stream)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<CountedStream>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(self.stream(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// A stream that is counted.
pub(super) struct CountedStream {
    inner: SubstreamBox,
    count: Count,
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.count.received(read);
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.count.sent(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// What one stream has carried, while it is not known what it is for.
#[derive(Debug)]
struct Count {
    traffic: Arc<Traffic>,
    kind: Option<usize>,
    head: Vec<u8>,
    sent: u64,
    received: u64,
}

impl Count {
    fn new(traffic: Arc<Traffic>) -> Self {
        Self { traffic, kind: None, head: Vec::new(), sent: 0, received: 0 }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let count = bytes.len() as u64;
        if let Some(kind) = self.kind {
            return self.traffic.add(kind, count, 0);
        }
        self.sent += count;
        let room = HEAD_MAX - self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        match kind_of(&self.head) {
            Some(kind) => self.settle(kind),
            None if self.head.len() == HEAD_MAX => self.settle(OTHER),
            None => {}
        }
    }

    fn received(&mut self, count: usize) {
        match self.kind {
            Some(kind) => self.traffic.add(kind, 0, count as u64),
            None => self.received += count as u64,
        }
    }

    fn settle(&mut self, kind: usize) {
        self.kind = Some(kind);
        self.head = Vec::new();
        self.traffic.0[kind].streams.fetch_add(1, Ordering::Relaxed);
        self.traffic.add(kind, self.sent, self.received);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if self.kind.is_none() {
            self.settle(OTHER);
        }
    }
}

/// Returns what a stream is for that begins with these bytes, once that is said.
fn kind_of(head: &[u8]) -> Option<usize> {
    let place = |part: &&str| head.windows(part.len()).position(|window| window == part.as_bytes());
    let first = |parts: &[&str]| parts.iter().filter_map(place).min();
    let kinds = KINDS.iter().enumerate();
    let named = kinds.filter_map(|(kind, (_, parts))| Some((first(parts)?, kind))).min();
    named.map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_counts_for_the_protocol_that_it_names_first() {
        let traffic = Arc::new(Traffic::default());
        let mut count = Count::new(traffic.clone());

        count.received(7);
        count.sent(b"\x13/multistream/1.0.0\n");
        assert!(traffic.all().iter().all(|of| of.received == 0), "it may still be for anything");
        count.sent(b"\x20/sharemesh/00/ka");
        count.sent(b"d/1\n a question about /job/ here");
        drop(count);

        let directory = TrafficOf { kind: "directory", sent: 69, received: 7, streams: 1 };
        assert!(traffic.all().contains(&directory), "{:?}", traffic.all());
        assert_eq!(traffic.all().iter().map(|of| of.streams).sum::<u64>(), 1);
    }

    #[test]
    fn what_names_nothing_counts_as_something_else() {
        let traffic = Arc::new(Traffic::default());
        Count::new(traffic.clone()).sent(&[0; 2 * HEAD_MAX]);

        let other = TrafficOf { kind: "other", sent: 512, received: 0, streams: 1 };
        assert_eq!(traffic.all().last(), Some(&other));
    }
}
