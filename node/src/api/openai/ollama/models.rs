//! What the mesh offers, as Ollama lists what is on a disk.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use serde_json::{Value, json};

use super::super::described::OllamaShowRequest;
use super::super::fields::Fields;
use super::super::{Body as Given, Refusal};
use super::answer::time;
use crate::api::Api;
use crate::api::views::ProviderView;
use crate::command::Command;
use crate::exit::{Failure, FailureKind};
use crate::models::catalogue;

/// Lists the models that are offered now: all of them can be asked at once.
#[utoipa::path(get, path = "/tags", tag = "ollama", responses((status = 200, body = Object)))]
pub(super) async fn tags(State(api): State<Api>) -> Result<Json<Value>, Refusal> {
    let now = i64::try_from(api.clock.now_ms()).unwrap_or(i64::MAX);
    let models = listed(&api, None).await?;
    let tag = |(name, offer): &(String, ProviderView)| {
        json!({
            "name": name, "model": name, "modified_at": time(now), "size": 0, "digest": offer.model_id,
            "details": details(offer),
        })
    };
    Ok(Json(json!({"models": models.iter().map(tag).collect::<Vec<_>>()})))
}

/// Lists them as running, which they are, until the adverts of their providers end.
#[utoipa::path(get, path = "/ps", tag = "ollama", responses((status = 200, body = Object)))]
pub(super) async fn running(State(api): State<Api>) -> Result<Json<Value>, Refusal> {
    let models = listed(&api, None).await?;
    let running = |(name, offer): &(String, ProviderView)| {
        let expires = i64::try_from(offer.expires_ms).unwrap_or(i64::MAX);
        json!({
            "name": name, "model": name, "size": 0, "size_vram": 0, "digest": offer.model_id,
            "details": details(offer), "expires_at": time(expires), "context_length": offer.context,
        })
    };
    Ok(Json(json!({"models": models.iter().map(running).collect::<Vec<_>>()})))
}

/// Describes one model.
#[utoipa::path(
    post,
    path = "/show",
    tag = "ollama",
    request_body = OllamaShowRequest,
    responses((status = 200, body = Object))
)]
pub(super) async fn show(State(api): State<Api>, body: Given) -> Result<Json<Value>, Refusal> {
    let body: Bytes = body?;
    let mut fields = Fields::read(&body)?;
    let named = fields.take::<String>("model")?.or(fields.take("name")?).unwrap_or_default();
    let wanted = named.strip_suffix(":latest").unwrap_or(&named).to_owned();
    let models = listed(&api, Some(wanted.clone())).await?;
    let known = catalogue::find(&wanted).map_or(wanted.as_str(), |entry| &entry.name);
    let found = models.iter().find(|(name, offer)| name == known || offer.model_id == wanted);
    let unknown = || {
        let name: String = named.chars().take(256).collect();
        Failure::new(
            FailureKind::UnknownModel,
            format!("model '{name}' not found: `/api/tags` lists what is offered"),
        )
    };
    let (name, offer) = found.ok_or_else(unknown)?;
    Ok(Json(json!({
        "modelfile": format!("FROM {name}\n"),
        "parameters": "",
        "template": "",
        "license": offer.licence,
        "details": details(offer),
        "model_info": {"general.basename": name, "general.context_length": offer.context},
        "capabilities": if offer.kind == "embedding" { vec!["embedding"] } else { vec!["completion", "tools"] },
    })))
}

fn details(offer: &ProviderView) -> Value {
    json!({
        "parent_model": "", "format": "gguf", "family": "", "families": [], "parameter_size": "",
        "quantization_level": offer.quantisation,
    })
}

/// Returns an offer of each model, by the name under which it can be asked: its own, or its id where several have one name.
async fn listed(api: &Api, model: Option<String>) -> Result<Vec<(String, ProviderView)>, Failure> {
    let mut offers = api.commands.ask(|reply| Command::Providers { model, reply }).await?;
    offers.sort_by(|left, right| (&left.model, &left.model_id).cmp(&(&right.model, &right.model_id)));
    offers.dedup_by(|later, first| later.model_id == first.model_id);
    let is_alone = |name: &str| offers.iter().filter(|offer| offer.model == name).count() == 1;
    let name = |offer: &ProviderView| {
        if is_alone(&offer.model) { offer.model.clone() } else { offer.model_id.clone() }
    };
    Ok(offers.iter().map(|offer| (name(offer), offer.clone())).collect())
}
