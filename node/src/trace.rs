//! Which request is being answered, by the name that it has in the logs of every node that works for it.
//!
//! The name is the trace id of W3C's `traceparent`, the client's own if it sends one, and says nothing else.

use std::time::Duration;

use axum::http::HeaderMap;
use protocol::job::Trace;

tokio::task_local! {
    static CURRENT: Trace;
}

/// Returns the name of the request that this task answers; zeros where it answers none.
#[must_use]
pub fn current() -> Trace {
    CURRENT.try_with(|trace| *trace).unwrap_or_default()
}

/// Answers a request under its name.
pub async fn within<T>(trace: Trace, answer: impl Future<Output = T>) -> T {
    CURRENT.scope(trace, answer).await
}

/// Returns the name that a request brings, or a new one.
#[must_use]
pub fn of(headers: &HeaderMap) -> Trace {
    let brought = headers.get("traceparent").and_then(|header| header.to_str().ok()).and_then(parse);
    brought.unwrap_or_else(|| Trace(crate::command::new_job()))
}

/// Returns a time in milliseconds, for the log.
#[must_use]
pub fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the trace id of a `traceparent`: `VERSION-TRACE-PARENT-FLAGS`, in small hexadecimal letters, neither id zero.
/// Later versions than 00 may have more behind another dash.
fn parse(header: &str) -> Option<Trace> {
    let mut parts = header.splitn(5, '-');
    let [version, trace, parent, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let bytes = |part: &str, count: usize| {
        let bytes = data_encoding::HEXLOWER.decode(part.as_bytes()).ok();
        bytes.filter(|bytes| bytes.len() == count)
    };
    let version = bytes(version, 1)?;
    let is_known = version[0] != 0xff && (version[0] != 0 || parts.next().is_none());
    let is_set = |bytes: &Vec<u8>| bytes.iter().any(|byte| *byte != 0);
    let (trace, _) = (bytes(trace, 16).filter(is_set)?, bytes(parent, 8).filter(is_set)?);
    bytes(flags, 1).filter(|_| is_known)?;
    trace.try_into().ok().map(Trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sound_traceparent_names_a_request() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parsed = |header: &str| parse(header).map(|trace| trace.to_string());

        assert_eq!(parsed(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        assert_eq!(parsed(&format!("cc-{trace}-00f067aa0ba902b7-01-more")).as_deref(), Some(trace));
        for wrong in [
            String::new(),
            format!("00-{trace}-00f067aa0ba902b7"),
            format!("00-{trace}-00f067aa0ba902b7-01-more"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{trace}ab-00f067aa0ba902b7-01"),
            format!("00-{trace}-00f067aa0ba902b7-canary"),
        ] {
            assert_eq!(parsed(&wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_request_has_its_name_and_others_have_none() {
        let named = within(Trace([7; 16]), async { current() }).await;

        assert_eq!((named, current()), (Trace([7; 16]), Trace::default()));
    }
}
