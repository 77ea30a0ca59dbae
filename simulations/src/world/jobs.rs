//! Engines, streams and jobs, as a shell has them.

use protocol::ids::{JobId, NodeId};
use protocol::job::{Finish, JobEvent, JobSpec};
use protocol::node::{EngineEvent, Input};

use crate::checks::Always;
use crate::devices::{Step, digest_of};

use super::{Attached, Outcome, STREAM_SILENCE_MS, Stream, Tracked, What, World};

impl World {
    pub(super) fn engine_in(&mut self, ms: u64, host: usize, job: JobId) {
        let incarnation = self.hosts[host].incarnation;
        self.schedule(host, ms, What::Engine(incarnation, job));
    }

    pub(super) fn begin(&mut self, host: usize, job: JobId, requester: NodeId, spec: &JobSpec, up_to: u32) {
        let Some(to) = self.host_of(requester) else { return };
        self.hosts[host].device.run(job, requester, spec, up_to);
        let link = self.network.link(host, to);
        self.streams.insert((job, host), Stream { requester: to, link, last: self.now });
        if to != host && link.is_none() {
            self.schedule(host, STREAM_SILENCE_MS, What::Broken { job, partner: to });
        }
        self.engine_in(1, host, job);
    }

    pub(super) fn run_engine(&mut self, host: usize, job: JobId) {
        match self.hosts[host].device.step(job) {
            None => {}
            Some(Step::Counted(tokens_in, ms)) => {
                self.input_in(0, host, Input::Engine(EngineEvent::Prepared { job, tokens_in }));
                self.engine_in(ms, host, job);
            }
            Some(Step::Generated(tokens, ms)) => {
                self.stream(host, job, tokens, false);
                self.engine_in(ms, host, job);
            }
            Some(Step::Paused(tokens)) => {
                self.stream(host, job, tokens, false);
                self.input_in(0, host, Input::Engine(EngineEvent::Waiting { job, tokens_out: tokens }));
            }
            Some(Step::Done(tokens, finish)) => self.finish(host, job, tokens, finish),
        }
    }

    pub(super) fn finish(&mut self, host: usize, job: JobId, tokens_out: u32, finish: Finish) {
        self.stream(host, job, tokens_out, true);
        self.streams.remove(&(job, host));
        let digest = digest_of(job, tokens_out);
        self.input_in(0, host, Input::Engine(EngineEvent::Finished { job, tokens_out, digest, finish }));
    }

    pub(super) fn abort(&mut self, host: usize, job: JobId) {
        if let Some(run) = self.hosts[host].device.abort(job) {
            self.finish(host, job, run.tokens, Finish::Cancelled);
        }
    }

    pub(super) fn stream(&mut self, host: usize, job: JobId, tokens: u32, end: bool) {
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&(job, host)) else { return };
        let to = stream.requester;
        let delay = if to == host { 0 } else { self.network.delay(host, to) };
        stream.last = stream.last.max(now.plus_ms(delay));
        let (link, wait) = (stream.link, stream.last.since_ms(now));
        self.schedule(to, wait, What::Frame { job, provider: host, link, tokens, end });
    }

    pub(super) fn frame(
        &mut self,
        host: usize,
        job: JobId,
        provider: usize,
        link: Option<u64>,
        tokens: u32,
        end: bool,
    ) {
        if self.hosts[host].node.is_none() || (host != provider && self.network.link(host, provider) != link)
        {
            return;
        }
        let attached =
            self.hosts[host].attached.get_mut(&job).filter(|attached| attached.provider == provider);
        let Some(attached) = attached else {
            let delay = self.network.delay(host, provider);
            self.schedule(provider, delay, What::Broken { job, partner: host });
            return;
        };
        attached.tokens = tokens;
        self.count_delivery(host, provider, job, tokens);
        if end {
            self.hosts[host].attached.remove(&job);
            let digest = digest_of(job, tokens);
            self.handle(host, Input::StreamEnded { job, tokens, digest }, &[]);
        } else if tokens > 0 {
            self.handle(host, Input::Progress { job, tokens }, &[]);
        }
    }

    pub(super) fn count_delivery(&mut self, host: usize, provider: usize, job: JobId, tokens: u32) {
        let Some(tracked) = self.jobs.get_mut(&job) else { return };
        let news = u64::from(tokens.saturating_sub(tracked.tokens));
        let first = tracked.tokens == 0 && tokens > 0;
        tracked.tokens = tracked.tokens.max(tokens);
        if first {
            tracked.first_token = Some(self.now);
        }
        let prompt = crate::devices::tokens_of(tracked.spec.input.bytes);
        let usage = &mut self.delivered.entry((host, provider)).or_default().usage;
        usage.tokens_out += news;
        if first {
            usage.calls += 1;
            usage.tokens_in += u64::from(prompt);
        }
    }

    /// One end of a stream has gone: whoever is at `host` notices.
    pub(super) fn broken(&mut self, host: usize, job: JobId, partner: usize) {
        if self.hosts[host].node.is_none() {
            return;
        }
        let attached =
            self.hosts[host].attached.get(&job).copied().filter(|attached| attached.provider == partner);
        if let Some(Attached { tokens, .. }) = attached {
            self.hosts[host].attached.remove(&job);
            self.interrupted(host, partner);
            let digest = digest_of(job, tokens);
            self.handle(host, Input::StreamLost { job, tokens, digest }, &[]);
        }
        let served = self.streams.get(&(job, host)).filter(|stream| stream.requester == partner);
        if served.is_some() {
            self.interrupted(partner, host);
            let tokens = self.hosts[host].device.job(job).map_or(0, |run| run.tokens);
            let digest = digest_of(job, tokens);
            self.handle(host, Input::StreamLost { job, tokens, digest }, &[]);
        }
    }

    pub(super) fn interrupted(&mut self, requester: usize, provider: usize) {
        self.delivered.entry((requester, provider)).or_default().interrupted += 1;
    }

    pub(super) fn detach(&mut self, host: usize, job: JobId) {
        let Some(Attached { provider, .. }) = self.hosts[host].attached.remove(&job) else { return };
        if self.streams.contains_key(&(job, provider)) {
            self.interrupted(host, provider);
            let delay = self.network.delay(host, provider);
            self.schedule(provider, delay, What::Broken { job, partner: host });
        }
    }

    pub(super) fn submit(&mut self, host: usize, job: JobId, spec: JobSpec) {
        if self.hosts[host].node.is_none() {
            return;
        }
        let tracked = Tracked {
            host,
            spec: spec.clone(),
            submitted: self.now,
            provider: None,
            chosen: Vec::new(),
            tokens: 0,
            first_token: None,
            tokens_in: 0,
            cancelled: false,
            outcome: None,
        };
        self.jobs.insert(job, tracked);
        self.handle(host, Input::Submitted(job, spec), &[]);
    }

    pub(super) fn tell(&mut self, job: JobId, event: JobEvent) {
        let now = self.now;
        let Some(tracked) = self.jobs.get_mut(&job) else { return };
        let parties =
            tracked.provider.and_then(|provider| self.index.get(&provider)).map(|at| (tracked.host, *at));
        if let (JobEvent::Failed { account: Some(_), .. }, Some(parties)) = (&event, parties) {
            // The requester accounts for a failed job by its own count alone.
            self.delivered.entry(parties).or_default().interrupted += 1;
        }
        let outcome = match event {
            JobEvent::Chosen { provider, considered, .. } => {
                tracked.provider = Some(provider);
                tracked.chosen.push(provider);
                let (host, spec) = (tracked.host, tracked.spec.clone());
                self.check_considered(host, &spec, &considered);
                return;
            }
            JobEvent::Accepted { tokens_in } => {
                tracked.tokens_in = tokens_in;
                return;
            }
            JobEvent::Done(account) => Outcome::Done(account),
            JobEvent::Failed { failure, account } => Outcome::Failed(failure, account),
        };
        let before = tracked.outcome.clone();
        if before.is_none() {
            tracked.outcome = Some((now, outcome));
        }
        self.always(Always::JobsEndOnce, before.is_none(), || {
            format!("{now}: job {job:?} ended a second time, after {before:?}")
        });
    }
}
