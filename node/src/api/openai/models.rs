//! The models that the mesh offers now, and at what price.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json as Answer;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::Refusal;
use crate::api::Api;
use crate::api::views::{Money, ProviderView};
use crate::command::Command;
use crate::exit::{Failure, FailureKind};
use crate::models::catalogue;

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Model>,
}

/// One model, with what the mesh knows of it as additions to the API.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    /// Always 0: nobody in the mesh knows when a model was made.
    created: u64,
    owned_by: &'static str,
    /// Tokens of prompt and answer together, at the provider that takes most.
    context_length: u32,
    sharemesh: Offers,
}

/// What providers of a model offer together.
#[derive(Debug, Serialize, ToSchema)]
struct Offers {
    model_id: String,
    /// What it makes: `text` or `embedding`.
    kind: String,
    providers: usize,
    free_slots: u32,
    /// Per million tokens of prompts.
    input_price: Range,
    /// Per million tokens of answers.
    output_price: Range,
    /// Measured speed of the fastest, in tokens per second.
    tokens_per_s: f64,
    quantisations: BTreeSet<String>,
    licences: BTreeSet<String>,
    /// Where providers say that they are; not all do.
    regions: BTreeSet<String>,
    /// What providers say that they are.
    classes: BTreeSet<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Range {
    min: Money,
    max: Money,
}

/// Lists the models that the mesh offers now.
#[utoipa::path(get, path = "/models", tag = "openai", responses((status = 200, body = List)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Answer<List>, Refusal> {
    let offers = api.commands.ask(|reply| Command::Providers { model: None, reply }).await?;
    Ok(Answer(List { object: "list", data: models(&offers) }))
}

/// Shows a model that the mesh offers now.
#[utoipa::path(
    get,
    path = "/models/{*id}",
    tag = "openai",
    params(("id" = String, Path, description = "The model's name or id.")),
    responses((status = 200, body = Model))
)]
pub(super) async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Answer<Model>, Refusal> {
    let wanted = id.clone();
    let offers = api.commands.ask(|reply| Command::Providers { model: Some(wanted), reply }).await?;
    let name = catalogue::find(&id).map_or(id.as_str(), |entry| &entry.name);
    let found = models(&offers).into_iter().find(|model| model.id == name || model.sharemesh.model_id == id);
    let unknown = || {
        let name: String = id.chars().take(256).collect();
        let words = format!("the model `{name}` is not offered now: `GET /v1/models` lists those that are");
        Failure::new(FailureKind::UnknownModel, words).in_param("model")
    };
    Ok(Answer(found.ok_or_else(unknown)?))
}

/// Returns the models of all offers by name, or by id where several models have one name.
fn models(offers: &[ProviderView]) -> Vec<Model> {
    let mut by_id: BTreeMap<(&str, &str), Vec<&ProviderView>> = BTreeMap::new();
    for offer in offers {
        by_id.entry((&offer.model, &offer.model_id)).or_default().push(offer);
    }
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    by_id.keys().for_each(|(name, _)| *named.entry(name).or_default() += 1);
    let id = |name: &str, id: &str| if named.get(name) == Some(&1) { name.to_owned() } else { id.to_owned() };
    by_id.iter().map(|((name, model), offers)| model_of(id(name, model), model, offers)).collect()
}

fn model_of(id: String, model: &str, offers: &[&ProviderView]) -> Model {
    let range = |price: fn(&ProviderView) -> &Money| {
        let prices = || offers.iter().map(|offer| price(offer).nano);
        Range { min: prices().min().unwrap_or(0).into(), max: prices().max().unwrap_or(0).into() }
    };
    let fastest = offers.iter().map(|offer| offer.tokens_per_s_milli).max().unwrap_or(0);
    Model {
        id,
        object: "model",
        created: 0,
        owned_by: "sharemesh",
        context_length: offers.iter().map(|offer| offer.context).max().unwrap_or(0),
        sharemesh: Offers {
            model_id: model.to_owned(),
            kind: offers.first().map(|offer| offer.kind.clone()).unwrap_or_default(),
            providers: offers.len(),
            free_slots: offers.iter().map(|offer| offer.slots.saturating_sub(offer.busy)).sum(),
            input_price: range(|offer| &offer.price.input_per_million),
            output_price: range(|offer| &offer.price.output_per_million),
            tokens_per_s: f64::from(u32::try_from(fastest).unwrap_or(u32::MAX)) / 1000.0,
            quantisations: offers.iter().map(|offer| offer.quantisation.clone()).collect(),
            licences: offers.iter().map(|offer| offer.licence.clone()).collect(),
            regions: offers.iter().filter_map(|offer| offer.region.clone()).collect(),
            classes: offers.iter().map(|offer| offer.class.clone()).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(model: &str, id: &str, nano: u64) -> ProviderView {
        let mut offer =
            ProviderView { model: model.to_owned(), model_id: id.to_owned(), ..ProviderView::default() };
        offer.price.output_per_million = nano.into();
        offer
    }

    #[test]
    fn providers_of_one_model_are_one_entry_and_models_of_one_name_are_told_apart() {
        let offers = [offer("a", "1", 5), offer("a", "1", 3), offer("b", "2", 1), offer("b", "3", 1)];

        let models = models(&offers);

        let ids: Vec<_> = models.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(ids, ["a", "2", "3"]);
        assert_eq!(models[0].sharemesh.providers, 2);
        let Range { min, max } = &models[0].sharemesh.output_price;
        assert_eq!((min.nano, max.nano), (3, 5));
    }
}
