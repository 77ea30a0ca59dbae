//! What a node counts and measures, by name, in the text format of Prometheus.
//!
//! Names, labels and buckets of the first kind are OpenTelemetry's for HTTP servers and generative models, where they exist.
//! Labels are routes, names of models and of kinds of failure: never anything that a client wrote into a prompt, and of no
//! label can anybody make many values.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Label, counter, describe_counter, describe_histogram, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use protocol::ids::ModelId;

use crate::api::views::{JobAccount, StatusView};
use crate::exit::FailureKind;
use crate::models::catalogue;

const HTTP_SECONDS: &str = "http_server_request_duration_seconds";
const ANSWER_SECONDS: &str = "gen_ai_server_request_duration_seconds";
const FIRST_TOKEN_SECONDS: &str = "gen_ai_server_time_to_first_token_seconds";
const TOKEN_SECONDS: &str = "gen_ai_server_time_per_output_token_seconds";
const TOKEN_USAGE: &str = "gen_ai_client_token_usage";
const JOBS: &str = "sharemesh_jobs_total";
const TOKENS: &str = "sharemesh_tokens_total";
const SPENT: &str = "sharemesh_spent_nanocredits_total";

const HTTP_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const ANSWER_BUCKETS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN_BUCKETS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const TOKEN_BUCKETS: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

const USAGE_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Bounds the models that are told apart: every histogram has a line for each bucket of each.
const MODELS_MAX: usize = 64;

/// What stands for the models beyond, for those that nobody serves, and for methods that are none.
pub const OTHER: &str = "_OTHER";

/// How often measurements are put into their buckets, so that they do not pile up while nobody asks.
pub const UPKEEP: Duration = Duration::from_secs(5);

/// The counts and measurements of one node since its start.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    models: Arc<Mutex<BTreeSet<String>>>,
}

/// What a model is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Answers a chat.
    Chat,
    /// Goes on with a text.
    TextCompletion,
    /// Makes vectors.
    Embeddings,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
        }
    }
}

/// One answer, whoever and however many worked on it.
#[derive(Clone, Debug)]
pub struct Answered<'a> {
    /// What was asked for.
    pub operation: Operation,
    /// The model, if anybody serves it; a name that is a client's own is none.
    pub model: Option<&'a str>,
    /// Why it failed, if it did.
    pub error: Option<FailureKind>,
    /// Until its end.
    pub took: Duration,
    /// Until its first part came.
    pub first: Option<Duration>,
    /// What was delivered, if that is known.
    pub account: Option<&'a JobAccount>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Metrics(..)")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets: [(&str, &[f64]); 5] = [
            (HTTP_SECONDS, &HTTP_BUCKETS),
            (ANSWER_SECONDS, &ANSWER_BUCKETS),
            (FIRST_TOKEN_SECONDS, &FIRST_TOKEN_BUCKETS),
            (TOKEN_SECONDS, &TOKEN_BUCKETS),
            (TOKEN_USAGE, &USAGE_BUCKETS),
        ];
        let builder = buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
            let set = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets);
            set.expect("there are buckets")
        });
        let metrics = Self { recorder: Arc::new(builder.build_recorder()), models: Arc::default() };
        metrics.record(describe);
        metrics
    }
}

fn describe() {
    describe_histogram!(HTTP_SECONDS, "Time to the head of an answer of the local API.");
    describe_histogram!(ANSWER_SECONDS, "Time to the end of an answer of a model.");
    describe_histogram!(FIRST_TOKEN_SECONDS, "Time to the first token of an answer of a model.");
    describe_histogram!(TOKEN_SECONDS, "Time for each token after the first.");
    describe_histogram!(TOKEN_USAGE, "Tokens of an answer of a model, and of its prompt.");
    describe_counter!(JOBS, "Jobs that this node submitted, by how they ended.");
    describe_counter!(TOKENS, "Tokens of the jobs that this node submitted and that were answered.");
    describe_counter!(SPENT, "Price of the jobs that this node submitted, in nano-credits.");
}

impl Metrics {
    fn record<T>(&self, measure: impl FnOnce() -> T) -> T {
        with_local_recorder(&*self.recorder, measure)
    }

    /// Notes that a request to the API was answered; `route` is a pattern, not a path.
    pub fn answered(&self, route: &str, method: &str, status: u16, took: Duration) {
        let labels = [
            ("http_route", route.to_owned()),
            ("http_request_method", method.to_owned()),
            ("http_response_status_code", status.to_string()),
        ];
        self.record(|| histogram!(HTTP_SECONDS, &labels).record(took.as_secs_f64()));
    }

    /// Notes what came of a job of ours.
    pub fn job_done(&self, account: &JobAccount) {
        self.record(|| counter!(JOBS, "outcome" => account.finish.clone()).increment(1));
        self.spent(account);
    }

    /// Measures an answer that ended, well or not.
    pub fn model_answered(&self, answered: &Answered<'_>) {
        let Answered { operation, model, error, took, first, account } = answered;
        let labels = vec![
            Label::from_static_parts("gen_ai_operation_name", operation.name()),
            Label::from_static_parts("gen_ai_provider_name", "sharemesh"),
            Label::new(
                "gen_ai_request_model",
                model.map_or_else(|| OTHER.to_owned(), |name| self.label(name)),
            ),
        ];
        let with =
            |name, value| labels.iter().cloned().chain([Label::from_static_parts(name, value)]).collect();
        let ended: Vec<Label> = error.map_or_else(|| labels.clone(), |kind| with("error_type", kind.name()));
        self.record(|| {
            histogram!(ANSWER_SECONDS, ended.iter()).record(took.as_secs_f64());
            if let Some(account) = account {
                let tokens: [Vec<Label>; 2] =
                    [with("gen_ai_token_type", "input"), with("gen_ai_token_type", "output")];
                histogram!(TOKEN_USAGE, tokens[0].iter()).record(account.tokens_in);
                histogram!(TOKEN_USAGE, tokens[1].iter()).record(account.tokens_out);
            }
            // Those that failed are left out, as the conventions say.
            let (Some(first), None) = (first, error) else { return };
            histogram!(FIRST_TOKEN_SECONDS, labels.iter()).record(first.as_secs_f64());
            let after_first = account.and_then(|account| account.tokens_out.checked_sub(1)).unwrap_or(0);
            if after_first > 0 {
                let seconds = took.saturating_sub(*first).as_secs_f64() / f64::from(after_first);
                histogram!(TOKEN_SECONDS, labels.iter()).record(seconds);
            }
        });
    }

    /// Returns the name under which a model is measured: one for all its names and writings.
    fn label(&self, model: &str) -> String {
        // Of the letters of an id each can be large or small.
        let id = model.parse::<ModelId>().map(|id| id.to_string());
        let model = id.as_deref().unwrap_or(model);
        let name = catalogue::find(model).map_or(model, |entry| &entry.name);
        let mut models = self.models.lock().expect("nothing panics while it holds the names");
        if models.contains(name) || models.len() < MODELS_MAX && models.insert(name.to_owned()) {
            name.to_owned()
        } else {
            OTHER.to_owned()
        }
    }

    /// Notes that a job of ours failed, and what was paid for it until then.
    pub fn job_failed(&self, kind: FailureKind, account: Option<&JobAccount>) {
        self.record(|| counter!(JOBS, "outcome" => kind.name()).increment(1));
        if let Some(account) = account {
            self.spent(account);
        }
    }

    fn spent(&self, account: &JobAccount) {
        self.record(|| {
            counter!(TOKENS, "direction" => "in").increment(account.tokens_in.into());
            counter!(TOKENS, "direction" => "out").increment(account.tokens_out.into());
            counter!(SPENT).increment(account.price.nano);
        });
    }

    /// Puts measurements into their buckets.
    pub fn keep_up(&self) {
        self.recorder.handle().run_upkeep();
    }

    /// Returns everything as text: what was counted, and how the node is now.
    #[must_use]
    pub fn render(&self, status: &StatusView) -> String {
        // Of models that are served no longer nothing is left.
        let now = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&now, || describe_now(status));
        self.recorder.handle().render() + &now.handle().render()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn describe_now(status: &StatusView) {
    gauge!("sharemesh_build_info", "version" => status.version.clone()).set(1.0);
    gauge!("sharemesh_ready").set(if status.ready { 1.0 } else { 0.0 });
    gauge!("sharemesh_uptime_seconds").set(Duration::from_millis(status.uptime_ms).as_secs_f64());
    gauge!("sharemesh_peers").set(status.peers);
    gauge!("sharemesh_jobs_serving").set(status.jobs_serving);
    gauge!("sharemesh_jobs_submitted").set(status.jobs_submitted);
    gauge!("sharemesh_available_nanocredits").set(status.available.nano as f64);
    for model in &status.models {
        let labels = [("model", model.name.clone())];
        gauge!("sharemesh_model_ready", &labels).set(if model.state == "ready" { 1.0 } else { 0.0 });
        gauge!("sharemesh_model_slots", &labels).set(model.slots);
        gauge!("sharemesh_model_slots_busy", &labels).set(model.busy);
        counter!("sharemesh_model_restarts_total", &labels).absolute(model.restarts.into());
    }
    for (offence, count) in &status.offences {
        counter!("sharemesh_offences_total", "offence" => offence.clone()).absolute(*count);
    }
    for traffic in &status.traffic {
        for (direction, bytes) in [("sent", traffic.sent), ("received", traffic.received)] {
            let labels = [("kind", traffic.kind.clone()), ("direction", direction.to_owned())];
            counter!("sharemesh_mesh_bytes_total", &labels).absolute(bytes);
        }
        counter!("sharemesh_mesh_streams_total", "kind" => traffic.kind.clone()).absolute(traffic.streams);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::views::{ServedModelView, TrafficView};

    #[test]
    fn what_was_counted_and_how_the_node_is_are_said_in_one_text() {
        let metrics = Metrics::default();
        let account = JobAccount {
            model: "m".to_owned(),
            tokens_in: 3,
            tokens_out: 5,
            price: 7.into(),
            finish: "stop".to_owned(),
            ..JobAccount::default()
        };
        metrics.job_done(&account);
        metrics.job_failed(FailureKind::Busy, None);
        let answered = Answered {
            operation: Operation::Chat,
            model: Some("m"),
            error: None,
            took: Duration::from_millis(450),
            first: Some(Duration::from_millis(50)),
            account: Some(&account),
        };
        metrics.model_answered(&answered);
        let failed =
            Answered { model: None, account: None, error: Some(FailureKind::NoProvider), ..answered };
        metrics.model_answered(&failed);
        metrics.answered("/v1/models", "GET", 200, Duration::from_millis(30));
        let model = ServedModelView { name: "own".to_owned(), slots: 4, ..ServedModelView::default() };
        let gossip = TrafficView { kind: "gossip".to_owned(), sent: 5, received: 6, streams: 1 };
        let status =
            StatusView { ready: true, models: vec![model], traffic: vec![gossip], ..StatusView::default() };

        let text = metrics.render(&status);

        for line in [
            "# TYPE gen_ai_server_time_to_first_token_seconds histogram",
            r#"gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_operation_name="chat",gen_ai_provider_name="sharemesh",gen_ai_request_model="m",le="0.06"} 1"#,
            r#"gen_ai_server_time_per_output_token_seconds_sum{gen_ai_operation_name="chat",gen_ai_provider_name="sharemesh",gen_ai_request_model="m"} 0.1"#,
            r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="sharemesh",gen_ai_request_model="m"} 1"#,
            r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="sharemesh",gen_ai_request_model="_OTHER",error_type="no_provider"} 1"#,
            r#"gen_ai_client_token_usage_bucket{gen_ai_operation_name="chat",gen_ai_provider_name="sharemesh",gen_ai_request_model="m",gen_ai_token_type="input",le="4"} 1"#,
            r#"gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="sharemesh",gen_ai_request_model="m",gen_ai_token_type="output"} 5"#,
            r#"sharemesh_jobs_total{outcome="stop"} 1"#,
            r#"sharemesh_jobs_total{outcome="busy"} 1"#,
            r#"sharemesh_tokens_total{direction="out"} 5"#,
            "sharemesh_spent_nanocredits_total 7",
            r#"http_server_request_duration_seconds_count{http_route="/v1/models",http_request_method="GET",http_response_status_code="200"} 1"#,
            "sharemesh_ready 1",
            r#"sharemesh_mesh_bytes_total{kind="gossip",direction="received"} 6"#,
            r#"sharemesh_model_slots{model="own"} 4"#,
            r#"sharemesh_model_ready{model="own"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!metrics.render(&StatusView::default()).contains("own"), "a model that is gone");
    }

    #[test]
    fn models_that_are_told_apart_are_few_whatever_clients_call_them() {
        let metrics = Metrics::default();
        for name in ["smollm2-135m", "SmolLM2", "smollm2-135M-instruct"] {
            assert_eq!(metrics.label(name), "smollm2-135m");
        }
        let names: BTreeSet<String> = (0..1_000).map(|number| metrics.label(&format!("m{number}"))).collect();
        assert_eq!(names.len(), MODELS_MAX, "those that are known, and one for the rest");
        assert!(names.contains(OTHER));
        assert_eq!(metrics.label("m5"), "m5");
    }

    #[test]
    fn an_id_of_a_model_is_one_model_in_large_letters_and_small() {
        let (metrics, id) = (Metrics::default(), "ab".repeat(32));
        for writing in [id.clone(), id.to_uppercase(), id.replacen('a', "A", 7)] {
            assert_eq!(metrics.label(&writing), id);
        }
    }
}
