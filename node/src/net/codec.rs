//! One message on its own stream: its length, the message, then a body until the end; one byte comes back.

use std::{io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    OffenceKind,
    limits::{BODY_MAX, BODY_PACE_BYTES, MESSAGE_MAX, MESSAGE_PATIENCE},
};

/// What one stream carried.
#[derive(Debug)]
pub(super) enum Request {
    Whole {
        message: Bytes,
        body: Bytes,
        room: Option<OwnedSemaphorePermit>,
    },
    /// Only read, never sent. A value and not an error, because libp2p does not report who sent what could not be read.
    Refused(OffenceKind),
    /// Only read: all peers together send more than we hold.
    NoRoom,
}

/// Whether a message was taken. It says "arrived", not "agreed".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    Taken = 1,
    Refused = 2,
}

#[derive(Clone, Debug)]
pub(super) struct Codec {
    /// Bytes that messages may still take before they are handed on.
    room: Arc<Semaphore>,
}

impl Codec {
    pub(super) fn new(room_bytes: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(room_bytes)) }
    }
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Ack;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        match read(io, Room::of(&self.room)).await {
            Ok(request) => Ok(request),
            Err(Unreadable::Offence(kind)) => Ok(Request::Refused(kind)),
            Err(Unreadable::NoRoom) => Ok(Request::NoRoom),
            Err(Unreadable::Broken(error)) => Err(error),
        }
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Ack>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut byte = [0];
        io.read_exact(&mut byte).await?;
        match byte {
            [1] => Ok(Ack::Taken),
            [2] => Ok(Ack::Refused),
            [other] => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other} is no answer"))),
        }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let Request::Whole { message, body, .. } = request else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a refused request is never sent"));
        };
        // One write for the head and the message: on a warm connection they leave in one packet.
        let mut head = Vec::with_capacity(4 + message.len());
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&message);
        io.write_all(&head).await?;
        io.write_all(&body).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, ack: Ack) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&[ack as u8]).await
    }
}

enum Unreadable {
    Offence(OffenceKind),
    NoRoom,
    Broken(io::Error),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Offence(OffenceKind::Malformed);
        }
        Self::Broken(error)
    }
}

/// What one message has taken of the bytes that all may take.
struct Room {
    all: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn of(all: &Arc<Semaphore>) -> Self {
        Self { all: all.clone(), taken: None }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Unreadable> {
        let bytes = u32::try_from(bytes).map_err(|_| Unreadable::NoRoom)?;
        let more = self.all.clone().try_acquire_many_owned(bytes).map_err(|_| Unreadable::NoRoom)?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }
}

async fn read<T: AsyncRead + Unpin>(io: &mut T, mut room: Room) -> Result<Request, Unreadable> {
    let message = within(MESSAGE_PATIENCE, read_message(io, &mut room)).await?;
    let body = read_body(io, &mut room).await?;
    Ok(Request::Whole { message, body, room: room.taken })
}

async fn read_message<T: AsyncRead + Unpin>(io: &mut T, room: &mut Room) -> Result<Bytes, Unreadable> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_MAX {
        return Err(Unreadable::Offence(OffenceKind::Oversized));
    }
    room.take(length)?;
    let mut message = vec![0; length];
    io.read_exact(&mut message).await?;
    Ok(message.into())
}

/// Reads until the end; memory grows only with what has come.
async fn read_body<T: AsyncRead + Unpin>(io: &mut T, room: &mut Room) -> Result<Bytes, Unreadable> {
    let mut body = Vec::new();
    loop {
        let mut piece = pin!(io.take(BODY_PACE_BYTES as u64));
        let read = within(MESSAGE_PATIENCE, async { Ok(piece.read_to_end(&mut body).await?) }).await?;
        room.take(read)?;
        if body.len() > BODY_MAX {
            return Err(Unreadable::Offence(OffenceKind::Oversized));
        }
        if read < BODY_PACE_BYTES {
            return Ok(body.into());
        }
    }
}

async fn within<T>(
    patience: Duration,
    read: impl Future<Output = Result<T, Unreadable>>,
) -> Result<T, Unreadable> {
    match tokio::time::timeout(patience, read).await {
        Ok(result) => result,
        Err(_) => Err(Unreadable::Offence(OffenceKind::Slow)),
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;
    use libp2p::request_response::Codec as _;

    use super::*;

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test");

    async fn check(bytes: Vec<u8>, expected: Result<(&[u8], &[u8]), OffenceKind>) {
        let mut codec = Codec::new(2 * BODY_MAX);
        let request = codec.read_request(&PROTOCOL, &mut Cursor::new(bytes)).await.unwrap();
        match (request, expected) {
            (Request::Whole { message, body, .. }, Ok(whole)) => assert_eq!((&message[..], &body[..]), whole),
            (Request::Refused(kind), Err(expected)) => assert_eq!(kind, expected),
            (request, _) => panic!("read {request:?}"),
        }
    }

    async fn written(message: impl Into<Bytes>, body: Bytes) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let request = Request::Whole { message: message.into(), body, room: None };
        Codec::new(0).write_request(&PROTOCOL, &mut out, request).await.unwrap();
        out.into_inner()
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        for body_bytes in [0, 1, BODY_PACE_BYTES - 1, BODY_PACE_BYTES, BODY_PACE_BYTES + 1, BODY_MAX] {
            let body = vec![5; body_bytes];
            check(written(b"ask".to_vec(), body.clone().into()).await, Ok((b"ask", &body))).await;
        }
        check(written(Vec::new(), Bytes::new()).await, Ok((b"", b""))).await;
    }

    #[tokio::test]
    async fn what_is_cut_short_is_malformed() {
        check(vec![], Err(OffenceKind::Malformed)).await;
        check(vec![4, 0, 0], Err(OffenceKind::Malformed)).await;
        check(vec![4, 0, 0, 0, 1, 2, 3], Err(OffenceKind::Malformed)).await;
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused() {
        check(u32::MAX.to_le_bytes().to_vec(), Err(OffenceKind::Oversized)).await;
        check(written(vec![0; MESSAGE_MAX + 1], Bytes::new()).await, Err(OffenceKind::Oversized)).await;
        check(written(Vec::new(), vec![0; BODY_MAX + 1].into()).await, Err(OffenceKind::Oversized)).await;
    }

    #[tokio::test]
    async fn all_messages_together_have_a_bound_that_frees_itself() {
        let mut codec = Codec::new(100);
        let bytes = written(vec![1; 60], Bytes::new()).await;
        let mut read = async || codec.read_request(&PROTOCOL, &mut Cursor::new(bytes.clone())).await.unwrap();

        let first = read().await;
        assert!(matches!(first, Request::Whole { .. }));
        assert!(matches!(read().await, Request::NoRoom));
        drop(first);

        assert!(matches!(read().await, Request::Whole { .. }));
    }

    #[tokio::test]
    async fn a_sender_that_stalls_is_cut_off() {
        let stalled = std::future::pending::<Result<(), Unreadable>>();

        let result = within(Duration::from_millis(1), stalled).await;

        assert!(matches!(result, Err(Unreadable::Offence(OffenceKind::Slow))));
    }
}
