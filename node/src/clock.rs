//! The only reader of system clocks: one time, Unix milliseconds that never run backward.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unix time at start plus the monotonic time since, so that a stepped system clock moves nothing.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start_ms: u64,
    start: Instant,
}

impl Clock {
    /// Reads the system clock once.
    ///
    /// A journal knows the time of its last record: give it as `not_before_ms`, so that a clock that was set back
    /// between two runs does not make time run backward.
    #[must_use]
    pub fn start(not_before_ms: u64) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start_ms: millis(since_epoch).max(not_before_ms), start: Instant::now() }
    }

    /// Returns Unix milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.start_ms.saturating_add(self.elapsed_ms())
    }

    /// Returns milliseconds since the start.
    #[must_use]
    pub fn elapsed_ms(&self) -> u64 {
        millis(self.start.elapsed())
    }

    /// Returns how long it is until `at_ms`; nothing if it has passed, and never more than a day, so that a far
    /// deadline cannot overflow a timer.
    #[must_use]
    pub fn until(&self, at_ms: u64) -> Duration {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        // Rounded up: waking a fraction of a millisecond early would only wake again at once.
        let elapsed = self.start.elapsed();
        let target = Duration::from_millis(at_ms.saturating_sub(self.start_ms));
        target.saturating_sub(elapsed).min(DAY)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_behind_what_was_recorded() {
        let far = 4_000_000_000_000;

        let clock = Clock::start(far);

        assert!(clock.now_ms() >= far);
        assert!(clock.now_ms() <= clock.now_ms());
    }

    #[test]
    fn a_passed_deadline_needs_no_wait_and_a_far_one_is_bounded() {
        let clock = Clock::start(0);

        assert_eq!(clock.until(0), Duration::ZERO);
        assert_eq!(clock.until(u64::MAX), Duration::from_secs(24 * 60 * 60));
        assert!(clock.until(clock.now_ms() + 1_000) > Duration::from_millis(900));
    }
}
