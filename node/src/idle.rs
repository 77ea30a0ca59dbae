//! A time in which nothing happens.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Ends once nothing has happened for so long. Whatever happens only sets a time, and the timer is looked at when it has run
/// out: one that is set anew for each token costs more than the token.
#[derive(Debug)]
pub(crate) struct Idle {
    most: Duration,
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    /// Begins to wait for so long a time.
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, last: Instant::now(), timer: Box::pin(sleep(most)) }
    }

    /// Notes that something happens.
    pub(crate) fn end(&mut self) {
        self.last = Instant::now();
    }

    /// Waits until nothing has happened for so long. Cancel safe.
    pub(crate) async fn over(&mut self) {
        poll_fn(|cx| self.poll_over(cx)).await;
    }

    /// Is ready once nothing has happened for so long.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.last + self.most;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_over_so_long_after_the_last_thing_that_happened_and_not_before() {
        let most = Duration::from_millis(40);
        let begun = Instant::now();
        let mut idle = Idle::new(most);
        for _ in 0..4 {
            tokio::time::sleep(most / 2).await;
            idle.end();
        }
        idle.over().await;
        assert!(begun.elapsed() >= most / 2 * 4 + most);
        idle.end();
        let again = Instant::now();
        idle.over().await;
        assert!(again.elapsed() >= most, "and again");
    }
}
