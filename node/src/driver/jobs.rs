//! Jobs on their way: those of the owner, from request to account, and those that our engine runs.

use std::sync::Arc;

use bytes::Bytes;
use engine::frame::{FromWorker, JobError, JobKey, Output, ToWorker};
use protocol::advert::{Device, ModelOffer};
use protocol::ids::{Digest, JobId, ModelId, NodeId};
use protocol::job::{Failure as JobFailure, Finish, JobSpec};
use protocol::licence::open_licence;
use protocol::model::{Modality, ModelManifest};
use protocol::node::{EngineEvent, EngineFault, Input};
use protocol::price::Price;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::views::{CandidateView, JobEvent};
use crate::command::{JobRequest, Work};
use crate::exit::{Failure, FailureKind};
use crate::models::ServedModel;
use crate::net::PeerKey;
use crate::worker::{SendError, WorkerEvent};

use super::offences::Offence;
use super::steps::Steps;
use super::stream::{
    Delivered, Delivery, FRAMES_MAX, JobFrame, Part, StreamEvent, hash_ids, hash_vectors, receive, serve,
};
use super::{Driver, Model, body};

/// How long a provider that took a job may take to open its stream.
const ATTACH_MS: u64 = 25_000;

/// The longest that a client is told to wait for a slot: it is a stranger's word.
const BUSY_RETRY_MS_MAX: u64 = 60_000;

/// Wait suggested to whoever asks for what nobody can do now: half of what a provider that failed is left alone for.
const NOBODY_RETRY_MS: u64 = protocol::router::COOL_DOWN_MS / 2;

/// A job of the owner.
#[derive(Debug)]
pub(super) struct OwnJob {
    pub(super) request: Arc<JobRequest>,
    pub(super) model: ModelId,
    pub(super) body: Bytes,
    pub(super) events: mpsc::Sender<JobEvent>,
    /// Room for the last event, whatever else fills the queue.
    last: Option<mpsc::OwnedPermit<JobEvent>>,
    pub(super) submitted_ms: u64,
    pub(super) first_token_ms: Option<u64>,
    pub(super) why: Vec<CandidateView>,
    pub(super) attempts: u32,
    pub(super) price_max: u64,
    pub(super) text: Digest,
    pub(super) steps: Steps,
    attached: Option<Attached>,
    unwanted: bool,
}

impl OwnJob {
    /// Notes that something has arrived.
    fn began(&mut self, now_ms: u64) {
        if self.first_token_ms.is_none() {
            self.first_token_ms = Some(now_ms);
            self.steps.done("prefill", 0, now_ms);
        }
    }
}

/// The provider whose tokens we take.
#[derive(Debug)]
struct Attached {
    provider: NodeId,
    /// When its stream must be there; none once it is.
    until_ms: Option<u64>,
    detached: CancellationToken,
}

/// A job that our engine runs.
#[derive(Debug)]
pub(super) struct Serving {
    model: String,
    requester: NodeId,
    tokens: u32,
    /// Tokens that it may generate.
    up_to: u32,
    /// Tokens of the answer that another provider made before.
    resumed: u32,
    ids: blake3::Hasher,
    sink: Sink,
    steps: Steps,
}

/// Where the tokens go.
#[derive(Debug)]
enum Sink {
    Home(Box<Delivery>),
    Stream(mpsc::Sender<JobFrame>),
}

impl Driver {
    // ------------------------------------------------------------------------------------ of the owner

    /// Takes a job of the owner, once its model is known to somebody.
    pub(super) fn submit(
        &mut self,
        job: JobId,
        request: Arc<JobRequest>,
        model: ModelId,
        events: mpsc::Sender<JobEvent>,
    ) {
        let (spec, body) = match body::describe(&request, model) {
            Ok(described) => described,
            Err(failure) => {
                let _ = events.try_send(JobEvent::Failed { failure, account: None });
                return;
            }
        };
        let now_ms = self.clock.now_ms();
        let own = OwnJob {
            steps: Steps::begin("consumer", job, request.trace, now_ms),
            request,
            model,
            body,
            // Only a client that is gone has none.
            last: events.clone().try_reserve_owned().ok(),
            events,
            submitted_ms: now_ms,
            first_token_ms: None,
            why: Vec::new(),
            attempts: 0,
            price_max: 0,
            text: Digest::of(b""),
            attached: None,
            unwanted: false,
        };
        self.jobs.insert(job, own);
        self.inputs.push_back(Input::Submitted(job, spec));
    }

    pub(super) fn attach(&mut self, job: JobId, provider: NodeId) {
        let until_ms = Some(self.clock.now_ms() + ATTACH_MS);
        if let Some(own) = self.jobs.get_mut(&job) {
            own.attached = Some(Attached { provider, until_ms, detached: CancellationToken::new() });
        }
    }

    /// Takes no more tokens. The job itself stays until its last event: another provider may continue it.
    pub(super) fn detach(&mut self, job: JobId) {
        let Some(own) = self.jobs.get_mut(&job) else { return };
        if let Some(attached) = own.attached.take() {
            attached.detached.cancel();
        }
        self.detached.insert(job);
    }

    /// Ends jobs that the core has forgotten without a last event: every client gets exactly one.
    pub(super) fn end_forgotten(&mut self) {
        for job in std::mem::take(&mut self.detached) {
            if !self.jobs.contains_key(&job) || self.node.jobs().any(|(id, _)| id == job) {
                continue;
            }
            if self.durable.holds_word_on(job) {
                self.detached.insert(job);
                continue;
            }
            tracing::debug!(%job, "The core forgot a job without a last event");
            self.end_own(job, JobEvent::Failed { failure: cancelled(), account: None });
        }
    }

    /// Tells the client the last that it hears of its job, and forgets it.
    fn end_own(&mut self, job: JobId, event: JobEvent) {
        let Some(mut own) = self.jobs.remove(&job) else { return };
        if let Some(attached) = own.attached.take() {
            attached.detached.cancel();
        }
        let (failure, accounted) = match &event {
            JobEvent::Done(_) => (None, true),
            JobEvent::Failed { failure, account } => (Some(failure.clone()), account.is_some()),
            JobEvent::Chosen { .. }
            | JobEvent::Accepted { .. }
            | JobEvent::Text { .. }
            | JobEvent::Vectors { .. } => (None, false),
        };
        if let Some(last) = own.last.take() {
            last.send(event);
        }
        self.note_ended(job, own, failure, accounted);
    }

    /// Tells every client whose job is not over that the node goes down.
    pub(super) fn end_all(&mut self) {
        let failure =
            || Failure::new(FailureKind::Unavailable, "the node is going down: start it and ask again");
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end_own(job, JobEvent::Failed { failure: failure(), account: None });
        }
        self.waiting.end_submissions(&failure());
    }

    pub(super) fn on_stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Greeted { from, job, stream } => {
                let clock = self.clock;
                let events = self.stream_sender.clone();
                let Some(own) = self.jobs.get_mut(&job) else { return };
                let delivery = Delivery::of(own.events.clone(), &own.request.work);
                let expected = own.attached.as_mut().filter(|a| a.provider == from && a.until_ms.is_some());
                let Some(attached) = expected else { return };
                attached.until_ms = None;
                tokio::spawn(receive(
                    (job, from),
                    stream,
                    delivery,
                    clock,
                    attached.detached.clone(),
                    events,
                ));
            }
            StreamEvent::Progress { job, tokens, at_ms } => {
                if let Some(own) = self.jobs.get_mut(&job) {
                    own.began(at_ms);
                }
                self.inputs.push_back(Input::Progress { job, tokens });
            }
            StreamEvent::Ended { job, delivered } => {
                let Delivered { tokens, digest, text } = delivered;
                self.note_text(job, text);
                let now = self.clock.now_ms();
                if let Some(own) = self.jobs.get_mut(&job) {
                    own.steps.done("decode", tokens, now);
                }
                self.inputs.push_back(Input::StreamEnded { job, tokens, digest });
            }
            StreamEvent::Lost { job, delivered } => {
                let Delivered { tokens, digest, text } = delivered;
                self.note_text(job, text);
                self.inputs.push_back(Input::StreamLost { job, tokens, digest });
            }
            StreamEvent::Unwanted { job } => self.cancel(job),
            StreamEvent::Broke { from, offence } => self.penalise(from, Offence::Transport(offence)),
        }
    }

    fn note_text(&mut self, job: JobId, text: Digest) {
        if let Some(own) = self.jobs.get_mut(&job) {
            own.text = text;
        }
    }

    pub(super) fn cancel(&mut self, job: JobId) {
        let is_new = self.jobs.get_mut(&job).is_none_or(|own| !std::mem::replace(&mut own.unwanted, true));
        if is_new {
            self.inputs.push_back(Input::Cancelled(job));
        }
        self.waiting.cancel_submission(job);
    }

    /// A client that closed its connection wants no more.
    pub(super) fn cancel_unwanted(&mut self) {
        let gone = |own: &OwnJob| own.events.is_closed() && !own.unwanted;
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, own)| gone(own)).map(|(job, _)| *job).collect();
        for job in jobs {
            self.cancel(job);
        }
    }

    /// A provider that took a job and never opened its stream is lost.
    pub(super) fn detach_silent(&mut self) {
        let now = self.clock.now_ms();
        let me = self.node.id();
        let silent = |own: &OwnJob| {
            own.attached
                .as_ref()
                .is_some_and(|a| a.provider != me && a.until_ms.is_some_and(|until| until <= now))
        };
        let jobs: Vec<JobId> = self.jobs.iter().filter(|(_, own)| silent(own)).map(|(job, _)| *job).collect();
        for job in jobs {
            self.inputs.push_back(Input::StreamLost { job, tokens: 0, digest: Digest::ZERO });
        }
    }

    /// Tells the client what the core has to say of its job.
    pub(super) fn tell(&mut self, job: JobId, event: protocol::job::JobEvent) {
        let view = self.view_of(job, event);
        let Some(own) = self.jobs.get_mut(&job) else { return };
        let (Some(event), is_last) = view else { return };
        if is_last {
            self.end_own(job, event);
        } else {
            // The queue has room for some attempts; a client that is gone is noticed elsewhere.
            let _ = own.events.try_send(event);
        }
    }

    // ------------------------------------------------------------------------------------ of the engine

    /// Starts the worker of a model.
    pub(super) fn load(&mut self, served: ServedModel) -> Result<(), Failure> {
        let name = served.name.clone();
        self.workers.start(&name, &served.worker_options())?;
        let model = Model {
            served,
            id: None,
            info: None,
            state: "loading",
            detail: String::new(),
            pid: None,
            restarts: 0,
        };
        self.models.insert(name, model);
        Ok(())
    }

    pub(super) fn run_job(&mut self, job: JobId, requester: NodeId, spec: &JobSpec, up_to: u32) {
        let at_home = requester == self.node.id();
        let body = if at_home {
            self.jobs.get(&job).map(|own| own.body.clone())
        } else {
            // The same peer may have sent another prompt for the job since.
            let body = self.prompts.take(requester, job);
            body.filter(|body| Digest::of(body) == spec.input.digest)
        };
        let name =
            self.models.iter().find(|(_, model)| model.id == Some(spec.model)).map(|(name, _)| name.clone());
        let work = match (body, &name) {
            (Some(body), Some(_)) => body::work(spec, &body),
            (None, _) | (_, None) => Err("the prompt did not come with the job".to_owned()),
        };
        let (Ok(work), Some(model)) = (work, name) else {
            self.fail_serving(job, EngineFault::BadRequest("the prompt cannot be read".to_owned()));
            return;
        };
        let sink = if at_home {
            let events = self.jobs.get(&job).map(|own| own.events.clone());
            let Some(events) = events else {
                self.fail_serving(job, EngineFault::Broken("nobody waits for the answer".to_owned()));
                return;
            };
            Sink::Home(Box::new(Delivery::of(events, &work)))
        } else {
            let (sender, frames) = mpsc::channel(FRAMES_MAX);
            let (opener, events) = (self.net.opener(), self.stream_sender.clone());
            tokio::spawn(serve(job, PeerKey(requester.0), opener, frames, events));
            Sink::Stream(sender)
        };
        let resumed = match &work {
            Work::Generate(generate) => u32::try_from(generate.resume.len()).unwrap_or(u32::MAX),
            Work::Embed(_) => 0,
        };
        let bound = up_to.saturating_add(resumed);
        let start = ToWorker::Start { job: JobKey(job.0), request: work, up_to: bound };
        let sent = self.workers.send(&model, &start);
        let steps = Steps::begin("provider", job, spec.trace, self.clock.now_ms());
        let ids = blake3::Hasher::new();
        let serving = Serving { model, requester, tokens: 0, up_to, resumed, ids, sink, steps };
        self.serving.insert(job, serving);
        match sent {
            Ok(()) => {}
            Err(error @ SendError::TooLarge) => {
                self.fail_serving(job, EngineFault::BadRequest(error.to_string()));
            }
            Err(error) => self.fail_serving(job, EngineFault::Broken(error.to_string())),
        }
    }

    pub(super) fn grant(&mut self, job: JobId, up_to: u32) {
        let Some(serving) = self.serving.get_mut(&job) else { return };
        serving.up_to = up_to;
        let up_to = up_to.saturating_add(serving.resumed);
        self.order(job, ToWorker::Grant { job: JobKey(job.0), up_to });
    }

    pub(super) fn abort(&mut self, job: JobId) {
        self.order(job, ToWorker::Cancel { job: JobKey(job.0) });
    }

    fn order(&mut self, job: JobId, frame: ToWorker) {
        let Some(serving) = self.serving.get(&job) else { return };
        if let Err(error) = self.workers.send(&serving.model, &frame) {
            self.fail_serving(job, EngineFault::Broken(error.to_string()));
        }
    }

    /// Ends a job that the engine cannot go on with.
    fn fail_serving(&mut self, job: JobId, fault: EngineFault) {
        let serving = self.serving.remove(&job);
        let (tokens_out, digest) = serving.map_or((0, Digest::ZERO), |serving| serving.counted());
        self.inputs.push_back(Input::Engine(EngineEvent::Failed { job, tokens_out, digest, fault }));
    }

    pub(super) fn on_worker(&mut self, name: &str, event: WorkerEvent) {
        match event {
            WorkerEvent::Started { pid } => {
                self.note_model(name, "loading", String::new(), |model| model.pid = pid)
            }
            WorkerEvent::Loading { percent, what } => {
                self.note_model(name, "loading", format!("{what}, {percent} %"), |_| {});
            }
            WorkerEvent::Ready(info) => self.on_model_ready(name, *info),
            WorkerEvent::Frame(frame) => self.on_frame(frame),
            WorkerEvent::Lost { reason } => {
                tracing::warn!(model = name, %reason, "Lost a worker");
                self.on_model_lost(name, &reason.to_string());
                self.note_model(name, "restarting", reason.to_string(), |model| model.restarts += 1);
            }
            WorkerEvent::Restarting { in_ms } => {
                tracing::info!(model = name, in_ms, "Starting the worker again");
            }
            WorkerEvent::GaveUp { error } => {
                tracing::error!(model = name, %error, "A model cannot be served");
                self.on_model_lost(name, &error);
                self.note_model(name, "failed", error, |model| model.pid = None);
            }
            WorkerEvent::Stopped => {
                self.on_model_lost(name, "the model is served no longer");
                self.models.remove(name);
            }
        }
    }

    fn note_model(
        &mut self,
        name: &str,
        state: &'static str,
        detail: String,
        change: impl FnOnce(&mut Model),
    ) {
        if let Some(model) = self.models.get_mut(name) {
            model.state = state;
            model.detail = detail;
            change(model);
        }
    }

    fn on_model_ready(&mut self, name: &str, info: engine::frame::ModelInfo) {
        let domain = self.node.domain();
        let Some(model) = self.models.get_mut(name) else { return };
        if modality_of(&info) == Modality::Embedding {
            // Vectors are paid by what is read.
            model.served.price.output_nano_per_million = 0;
            if model.served.price.input_nano_per_million == 0 {
                tracing::warn!(
                    model = name,
                    "This model makes vectors, which are paid by what is read, and --price-in is 0: it works for nothing"
                );
            }
        }
        let manifest = ModelManifest {
            name: model.served.name.clone(),
            modality: modality_of(&info),
            architecture: info.architecture.clone(),
            weights: Digest(model.served.digest),
            weights_bytes: model.served.size,
            context_tokens: info.context_length,
            compute_weight: u32::try_from(info.parameters / 1_000_000).unwrap_or(u32::MAX).max(1),
        };
        let id = manifest.id();
        let price = Price {
            call: 0,
            input: model.served.price.input_nano_per_million,
            output: model.served.price.output_nano_per_million,
        };
        let slots = u16::try_from(info.slots).unwrap_or(u16::MAX);
        let offer = ModelOffer {
            model: id,
            name: manifest.name,
            modality: manifest.modality,
            licence: open_licence(id, domain),
            price,
            context_tokens: info.context_length,
            slots,
            busy: 0,
            decode_milli: info.decode_tokens_per_s_milli,
            prefill_milli: info.prefill_tokens_per_s_milli,
            quantisation: info.quantisation.clone(),
            weights: Digest(model.served.digest),
        };
        let device = Device {
            kind: clip(&info.device.kind),
            name: clip(&info.device.name),
            memory_bytes: info.device.memory_bytes,
            backend: "candle".to_owned(),
        };
        tracing::info!(model = name, device = %info.device.kind, slots, "Serving");
        model.id = Some(id);
        model.state = "ready";
        model.detail = String::new();
        model.info = Some(info);
        self.inputs.push_back(Input::Engine(EngineEvent::Ready { offer, device }));
    }

    fn on_model_lost(&mut self, name: &str, reason: &str) {
        if let Some(id) = self.models.get(name).and_then(|model| model.id) {
            self.inputs.push_back(Input::Engine(EngineEvent::Lost(id)));
        }
        let jobs: Vec<JobId> =
            self.serving.iter().filter(|(_, serving)| serving.model == name).map(|(job, _)| *job).collect();
        for job in jobs {
            self.fail_serving(job, EngineFault::Broken(reason.to_owned()));
        }
    }

    fn on_frame(&mut self, frame: FromWorker) {
        match frame {
            FromWorker::Prepared { job, tokens_in } => {
                // What another provider made is read as the prompt is, and counts as it.
                let now = self.clock.now_ms();
                let serving = self.serving.get_mut(&JobId(job.0));
                let tokens_in = serving.map_or(tokens_in, |serving| {
                    serving.steps.done("prepare", tokens_in, now);
                    tokens_in.saturating_add(serving.resumed)
                });
                self.inputs.push_back(Input::Engine(EngineEvent::Prepared { job: JobId(job.0), tokens_in }));
            }
            FromWorker::Tokens { job, index, ids, bytes, logprobs, finish } => {
                let part = Part { index, ids, bytes, logprobs: logprobs.unwrap_or_default() };
                self.on_tokens(JobId(job.0), part, finish.map(finish_of));
            }
            FromWorker::Vectors { job, index, vectors, finish } => {
                self.on_vectors(JobId(job.0), index, vectors, finish.map(finish_of));
            }
            FromWorker::Failed { job, error } => {
                let fault = match error {
                    JobError::PromptTooLong { tokens, context, text } => {
                        EngineFault::PromptTooLong { tokens, context, text }
                    }
                    JobError::BadRequest(reason) => EngineFault::BadRequest(reason),
                    JobError::BadForm(reason) => {
                        self.penalise_form(JobId(job.0));
                        EngineFault::BadRequest(reason)
                    }
                    JobError::TooManyJobs => EngineFault::Broken(JobError::TooManyJobs.to_string()),
                    JobError::Internal(reason) => EngineFault::Broken(reason),
                };
                self.fail_serving(JobId(job.0), fault);
            }
            FromWorker::Loading { .. }
            | FromWorker::Ready(_)
            | FromWorker::LoadFailed { .. }
            | FromWorker::Pong { .. } => {}
        }
    }

    /// An honest node checks what the answer shall look like before it asks anybody for it.
    fn penalise_form(&mut self, job: JobId) {
        let requester = self.serving.get(&job).map(|serving| serving.requester);
        if let Some(requester) = requester.filter(|requester| *requester != self.node.id()) {
            self.penalise(requester, Offence::BadForm);
        }
    }

    fn on_tokens(&mut self, job: JobId, part: Part, finish: Option<Finish>) {
        let now = self.clock.now_ms();
        let Some(serving) = self.serving.get_mut(&job) else { return };
        serving.makes(u32::try_from(part.ids.len()).unwrap_or(u32::MAX), now);
        hash_ids(&mut serving.ids, &part.ids);
        let sent = match &mut serving.sink {
            Sink::Home(delivery) => {
                if let Some(own) = self.jobs.get_mut(&job).filter(|_| !part.ids.is_empty()) {
                    own.began(now);
                }
                let taken = delivery.take(part);
                if let Some(own) = self.jobs.get_mut(&job) {
                    own.text = delivery.delivered().text;
                }
                taken.is_ok()
            }
            Sink::Stream(sender) => {
                let is_empty = part.ids.is_empty() && part.bytes.is_empty();
                let sent = is_empty || sender.try_send(JobFrame::Tokens(part)).is_ok();
                sent && (finish.is_none() || sender.try_send(JobFrame::End).is_ok())
            }
        };
        self.after_part(job, sent, finish);
    }

    fn on_vectors(&mut self, job: JobId, index: u32, vectors: Vec<Vec<f32>>, finish: Option<Finish>) {
        let now = self.clock.now_ms();
        let Some(serving) = self.serving.get_mut(&job) else { return };
        serving.makes(u32::try_from(vectors.len()).unwrap_or(u32::MAX), now);
        hash_vectors(&mut serving.ids, &vectors);
        let is_empty = vectors.is_empty();
        let mut numbered = (index..).zip(vectors);
        let sent = match &mut serving.sink {
            Sink::Home(delivery) => {
                if let Some(own) = self.jobs.get_mut(&job).filter(|_| !is_empty) {
                    own.began(now);
                }
                let taken = numbered.try_for_each(|(index, vector)| delivery.take_vector(index, vector));
                if let Some(own) = self.jobs.get_mut(&job) {
                    own.text = delivery.delivered().text;
                }
                taken.is_ok()
            }
            Sink::Stream(sender) => {
                let sent = numbered
                    .all(|(index, vector)| sender.try_send(JobFrame::Vector { index, vector }).is_ok());
                sent && (finish.is_none() || sender.try_send(JobFrame::End).is_ok())
            }
        };
        self.after_part(job, sent, finish);
    }

    /// Goes on with a job of which a part was handed out, or not.
    fn after_part(&mut self, job: JobId, sent: bool, finish: Option<Finish>) {
        let Some(serving) = self.serving.get(&job) else { return };
        if let Some(finish) = finish {
            let now = self.clock.now_ms();
            let Some(mut serving) = self.serving.remove(&job) else { return };
            let (tokens_out, digest) = serving.counted();
            serving.steps.done("decode", tokens_out, now);
            self.inputs.push_back(Input::Engine(EngineEvent::Finished { job, tokens_out, digest, finish }));
        } else if !sent {
            self.abort(job);
        } else if serving.tokens >= serving.up_to {
            let tokens_out = serving.tokens;
            self.inputs.push_back(Input::Engine(EngineEvent::Waiting { job, tokens_out }));
        }
    }
}

impl Serving {
    /// Notes that the engine has made so many more tokens, or vectors.
    fn makes(&mut self, count: u32, now_ms: u64) {
        if self.tokens == 0 && count > 0 {
            self.steps.done("prefill", 0, now_ms);
        }
        self.tokens = self.tokens.saturating_add(count);
    }

    fn counted(&self) -> (u32, Digest) {
        (self.tokens, Digest(*self.ids.finalize().as_bytes()))
    }
}

/// Returns the kind of a model by what it makes.
pub(super) const fn modality_of(info: &engine::frame::ModelInfo) -> Modality {
    match info.output {
        Output::Text => Modality::Text,
        Output::Vectors(_) => Modality::Embedding,
    }
}

const fn finish_of(finish: engine::frame::Finish) -> Finish {
    match finish {
        engine::frame::Finish::Stop => Finish::Stop,
        engine::frame::Finish::Length => Finish::Length,
        engine::frame::Finish::Cancelled => Finish::Cancelled,
    }
}

/// Returns what a client is told whose job was cancelled.
pub(super) fn cancelled() -> Failure {
    Failure::new(FailureKind::Cancelled, "the job was cancelled")
}

/// Cuts a name to what an advert may carry.
fn clip(text: &str) -> String {
    let mut end = text.len().min(protocol::model::NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Returns what a client is told of a failure of its job.
pub(super) fn failure_of(failure: &JobFailure, model: &str) -> Failure {
    let message = failure.to_string();
    match failure {
        JobFailure::NoProvider(considered) => {
            let busy = considered.iter().filter_map(|c| match c.gate {
                Some(protocol::router::Gate::Refused(protocol::scheduler::Refusal::Busy { retry_ms })) => {
                    Some(retry_ms)
                }
                _ => None,
            });
            match busy.min().map(|retry_ms| retry_ms.min(BUSY_RETRY_MS_MAX)) {
                Some(retry_ms) => Failure::new(
                    FailureKind::Refused,
                    format!("every provider of `{model}` is busy: try again in {retry_ms} ms"),
                )
                .because("busy")
                .retry_after(retry_ms),
                None if !considered.is_empty() && considered.iter().all(is_too_long) => Failure::new(
                    FailureKind::PromptTooLong,
                    format!(
                        "max_tokens is more than the context of any provider of `{model}` holds: ask for fewer"
                    ),
                ),
                None if !considered.is_empty() && considered.iter().all(is_refused_as_wrong) => {
                    Failure::usage(format!(
                        "every provider of `{model}` refuses the request as it is: check what it says"
                    ))
                }
                None if considered.is_empty() => Failure::new(
                    FailureKind::NoProvider,
                    format!(
                        "nobody serves `{model}` now: serve it on a node with `sharemesh up --serve {model}`"
                    ),
                )
                .retry_after(NOBODY_RETRY_MS),
                None => Failure::new(
                    FailureKind::NoProvider,
                    format!("no provider of `{model}` can be used: {}", reasons(considered)),
                )
                .retry_after(NOBODY_RETRY_MS),
            }
        }
        JobFailure::NotEnoughCredits { needed, available } => Failure::new(
            FailureKind::NoCredits,
            format!(
                "not enough credits: this job may cost {} with the channel's fee, and the account has {}; ask for \
                 fewer tokens, or for credits from the network's issuer (`sharemesh grant`)",
                crate::api::views::Money::from_nano(*needed),
                crate::api::views::Money::from_nano(*available),
            ),
        ),
        JobFailure::IssuerUnreachable => {
            Failure::new(FailureKind::Unavailable, format!("{message}: is its node up?"))
        }
        JobFailure::NotAdmitted => Failure::new(
            FailureKind::Unavailable,
            format!("{message}: is the network's issuer up, and was the ticket taken?"),
        ),
        JobFailure::IssuerRefused(_) | JobFailure::WalletRefused(_) => {
            Failure::new(FailureKind::Forbidden, message)
        }
        JobFailure::TooManySteps(_) => Failure::new(FailureKind::Busy, message),
        JobFailure::TooManyJobs => {
            Failure::new(FailureKind::Busy, format!("{message}: wait until one has ended")).retry_after(1_000)
        }
        JobFailure::NotNow(_) => {
            Failure::new(FailureKind::Unavailable, format!("{message}: try again later")).retry_after(5_000)
        }
        JobFailure::PromptTooLong { .. } => {
            Failure::new(FailureKind::PromptTooLong, format!("{message}: shorten it"))
        }
        JobFailure::ProviderLost(_) => Failure::new(
            FailureKind::ProviderLost,
            format!("{message}: only what was delivered is paid; try again"),
        ),
        JobFailure::EngineFailed(_) => Failure::new(FailureKind::WorkerLost, format!("{message}: try again")),
        JobFailure::Misbehaved(_) => Failure::new(FailureKind::ProviderLost, message),
        JobFailure::TimedOut => Failure::new(FailureKind::TimedOut, format!("{message}: try again")),
        JobFailure::BadRequest(_) => Failure::new(FailureKind::Usage, message),
        JobFailure::Cancelled => Failure::new(FailureKind::Cancelled, message),
        JobFailure::ChannelEnded => Failure::new(FailureKind::ProviderLost, format!("{message}: try again")),
    }
}

fn is_too_long(considered: &protocol::router::Considered) -> bool {
    considered.gate == Some(protocol::router::Gate::Context)
}

fn is_refused_as_wrong(considered: &protocol::router::Considered) -> bool {
    considered.gate == Some(protocol::router::Gate::Refused(protocol::scheduler::Refusal::BadRequest))
}

fn reasons(considered: &[protocol::router::Considered]) -> String {
    let words: Vec<String> = considered
        .iter()
        .take(4)
        .map(|c| {
            format!("{:?} {}", c.provider, c.gate.map_or("usable".to_owned(), super::answers::gate_name))
        })
        .collect();
    words.join("; ")
}
