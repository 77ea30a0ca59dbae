//! Bodies of streams, of which all that is ready is written at once: an event is worth nothing until it is sent, and a
//! write for each costs more than all the rest of it.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};

/// Bytes after which what is ready is written although there is more: what a connection holds before it writes, and a
/// stream that always has more gives way to others.
const WRITTEN_MAX: usize = 16 * 1024;

/// Marks an answer whose body gathers its parts itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gathered;

/// Has the parts of a stream that are ready together written together. An answer whose length is known is in one part.
pub(super) async fn coalesce(response: Response) -> Response {
    let is_gathered = response.extensions().get::<Gathered>().is_some();
    if is_gathered || response.body().size_hint().exact().is_some() {
        return response;
    }
    response
        .map(|body| Body::new(Coalesced { body, first: Bytes::new(), gathered: BytesMut::new(), last: None }))
}

/// A body whose parts are gathered.
struct Coalesced {
    body: Body,
    /// What is ready, if it is one part, which is not copied.
    first: Bytes,
    /// What is ready, if there are more.
    gathered: BytesMut,
    /// What came after what was gathered and is no part of it, such as an error.
    last: Option<Option<Result<Frame<Bytes>, axum::Error>>>,
}

impl Coalesced {
    /// Takes the next parts as long as they are ready; returns whether it is known what comes after them.
    fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        while self.last.is_none() && self.first.len() + self.gathered.len() < WRITTEN_MAX {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return false,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.add(data),
                    Err(other) => self.last = Some(Some(Ok(other))),
                },
                Poll::Ready(other) => self.last = Some(other),
            }
        }
        self.last.is_some()
    }

    fn add(&mut self, data: Bytes) {
        if self.first.is_empty() && self.gathered.is_empty() {
            self.first = data;
        } else {
            self.gathered.extend_from_slice(&std::mem::take(&mut self.first));
            self.gathered.extend_from_slice(&data);
        }
    }

    /// Takes what is ready.
    fn ready(&mut self) -> Bytes {
        if self.gathered.is_empty() {
            std::mem::take(&mut self.first)
        } else {
            self.gathered.split().freeze()
        }
    }
}

impl HttpBody for Coalesced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let is_last = self.gather(cx);
        let ready = self.ready();
        if !ready.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(ready))));
        }
        if !is_last {
            return Poll::Pending;
        }
        // The end stays, for a stream must not be asked again after it.
        let last = self.last.take().flatten();
        if last.is_none() {
            self.last = Some(None);
        }
        Poll::Ready(last)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.gathered.is_empty() && matches!(self.last, Some(None))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::BodyDataStream;
    use axum::response::IntoResponse as _;
    use futures::{FutureExt as _, StreamExt as _, stream};
    use tokio::sync::mpsc;

    use super::*;

    /// Returns the body, after it passed the layer.
    async fn coalesced<E: Into<axum::BoxError> + 'static>(
        parts: impl futures::Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> BodyDataStream {
        coalesce(Body::from_stream(parts).into_response()).await.into_body().into_data_stream()
    }

    #[expect(clippy::unnecessary_wraps, reason = "a body is made of results")]
    fn part(text: &'static str) -> Result<Bytes, std::io::Error> {
        Ok(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn what_is_ready_together_is_one_part_and_nothing_waits_for_what_is_not() {
        let (sender, receiver) = mpsc::channel(8);
        let parts = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let mut body = coalesced(parts).await;

        for text in ["a", "b", "c"] {
            sender.try_send(part(text)).expect("room");
        }
        assert_eq!(body.next().now_or_never().expect("ready").expect("a part").expect("good"), "abc");
        assert!(body.next().now_or_never().is_none(), "nothing is ready");
        sender.try_send(part("d")).expect("room");
        assert_eq!(body.next().await.expect("a part").expect("good"), "d");
        sender.try_send(part("e")).expect("room");
        sender.try_send(Err(std::io::ErrorKind::TimedOut.into())).expect("room");
        assert_eq!(body.next().await.expect("a part").expect("good"), "e");
        assert!(body.next().await.expect("the error").is_err(), "after what came before it");
    }

    #[tokio::test]
    async fn a_stream_that_always_has_more_is_written_in_pieces_and_nothing_is_lost() {
        let parts = (0..64_u8).map(|number| Ok::<_, std::io::Error>(Bytes::from(vec![number; 1_000])));
        let body = coalesced(stream::iter(parts)).await;

        let written: Vec<Bytes> = body.map(|part| part.expect("good")).collect().await;

        assert!(written.iter().all(|part| part.len() < WRITTEN_MAX + 1_000));
        assert!(written.len() > 3);
        let whole: Vec<u8> = (0..64_u8).flat_map(|number| vec![number; 1_000]).collect();
        assert_eq!(written.concat(), whole);
    }

    #[tokio::test]
    async fn an_answer_of_known_length_is_left_as_it_is() {
        let response = coalesce("whole".into_response()).await;

        assert_eq!(response.body().size_hint().exact(), Some(5));
    }
}
