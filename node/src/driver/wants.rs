//! Keeps a job to providers whose adverts say what its client insists on.

use std::sync::Arc;

use protocol::ids::ModelId;
use protocol::node::MarkupError;

use crate::api::views::{CandidateView, ProviderView};
use crate::command::{JobRequest, Wants};
use crate::exit::{Failure, FailureKind};

use super::Driver;

impl Driver {
    /// Names those that may serve a job, if it insists on anything; an error if there are none.
    pub(super) fn narrow(&self, request: &mut Arc<JobRequest>, model: ModelId) -> Result<(), Failure> {
        if request.wants == Wants::default() {
            return Ok(());
        }
        let all = self.providers_of(model);
        let may = |view: &&ProviderView| request.only.is_empty() || request.only.contains(&view.node);
        let Matching { fitting, fast } = matching(&request.wants, all.iter().filter(may));
        if fitting.is_empty() {
            let words = format!(
                "no provider of `{}` says of itself what `provider` asks for (quantizations, regions, class): \
                 `sharemesh providers --json` shows what they say",
                request.model
            );
            return Err(Failure::new(FailureKind::NoProvider, words).in_param("provider"));
        }
        let request = Arc::make_mut(request);
        request.only = fitting;
        request.order.extend(fast);
        Ok(())
    }

    fn providers_of(&self, model: ModelId) -> Vec<ProviderView> {
        let id = model.to_string();
        self.providers(None).into_iter().filter(|view| view.model_id == id).collect()
    }

    /// Names what a request wants of those candidates that do not say it of themselves.
    pub(super) fn name_unfit(&self, request: &JobRequest, model: ModelId, candidates: &mut [CandidateView]) {
        if request.wants == Wants::default() {
            return;
        }
        let views = self.providers_of(model);
        for candidate in candidates {
            let view = views.iter().find(|view| view.node == candidate.node);
            if let Some(missing) = view.and_then(|view| missing(&request.wants, view)) {
                candidate.chosen = false;
                missing.clone_into(&mut candidate.reason);
            }
        }
    }
}

impl Driver {
    /// Refuses a markup that the network, or this node's owner, does not allow.
    pub(super) fn check_builder(&self, request: &JobRequest) -> Result<(), Failure> {
        let Some(markup) = request.markup else { return Ok(()) };
        self.node.check_markup(&markup).map_err(|error| match error {
            MarkupError::TooHigh { most } => {
                let words = format!("`builder.markup_bps` is {}, and may be {most} at most", markup.bps);
                Failure::usage(words).in_param("builder.markup_bps")
            }
            MarkupError::NotAllowed => Failure::usage(
                "`builder.account` is not one that this node's owner lets its account pay: start the node with \
                 `--builder ACCOUNT`, or leave `builder` out",
            )
            .in_param("builder.account"),
            MarkupError::Own => {
                Failure::usage("`builder.account` is the account that pays: leave `builder` out")
                    .in_param("builder.account")
            }
        })
    }
}

/// Nodes that say what is wanted.
#[derive(Debug, PartialEq)]
struct Matching {
    fitting: Vec<String>,
    /// Those of them that are as fast as is wished; the others may serve when these cannot.
    fast: Vec<String>,
}

fn matching<'a>(wants: &Wants, views: impl Iterator<Item = &'a ProviderView>) -> Matching {
    let fitting: Vec<&ProviderView> = views.filter(|view| missing(wants, view).is_none()).collect();
    let is_fast =
        |view: &&&ProviderView| wants.speed_milli.is_some_and(|speed| view.tokens_per_s_milli >= speed);
    let fast = fitting.iter().filter(is_fast).map(|view| view.node.clone()).collect();
    Matching { fitting: fitting.iter().map(|view| view.node.clone()).collect(), fast }
}

/// Returns the first thing that is wanted of a provider and that it does not say of itself.
fn missing(wants: &Wants, view: &ProviderView) -> Option<&'static str> {
    let one_of =
        |list: &[String], is: &dyn Fn(&str) -> bool| list.is_empty() || list.iter().any(|wanted| is(wanted));
    let region = view.region.as_deref().unwrap_or_default();
    if !one_of(&wants.quantisations, &|wanted| wanted.eq_ignore_ascii_case(&view.quantisation)) {
        return Some("quantization");
    }
    if !one_of(&wants.regions, &|wanted| is_within(region, wanted)) {
        return Some("region");
    }
    wants.class.as_ref().is_some_and(|class| *class != view.class).then_some("class")
}

/// Says whether a region is another one or a part of it, as `DE-BY` is of `DE`.
fn is_within(region: &str, wanted: &str) -> bool {
    let (Some(begin), rest) = (region.get(..wanted.len()), region.get(wanted.len()..).unwrap_or_default())
    else {
        return false;
    };
    begin.eq_ignore_ascii_case(wanted) && (rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(node: &str, quantisation: &str, region: &str, speed: u64) -> ProviderView {
        ProviderView {
            node: node.to_owned(),
            quantisation: quantisation.to_owned(),
            region: Some(region.to_owned()).filter(|region| !region.is_empty()),
            class: "community".to_owned(),
            tokens_per_s_milli: speed * 1_000,
            ..ProviderView::default()
        }
    }

    #[test]
    fn only_those_serve_whose_adverts_say_what_is_wanted() {
        let views = [view("a", "Q4_K_M", "eu", 10), view("b", "F16", "", 40), view("c", "Q4_K_M", "us", 30)];
        let found = |wants: Wants| {
            let Matching { fitting, fast } = matching(&wants, views.iter());
            [fitting.concat(), fast.concat()].join(" ")
        };
        let list = |text: &str| vec![text.to_owned()];

        assert_eq!(found(Wants { quantisations: list("q4_k_m"), ..Wants::default() }), "ac ");
        assert_eq!(found(Wants { regions: list("EU"), ..Wants::default() }), "a ");
        assert_eq!(found(Wants { class: Some("company".to_owned()), ..Wants::default() }), " ");
        assert_eq!(found(Wants { speed_milli: Some(20_000), ..Wants::default() }), "abc bc");
        assert_eq!(found(Wants { speed_milli: Some(90_000), ..Wants::default() }), "abc ", "it is a wish");
        let slow = Wants { regions: list("eu"), speed_milli: Some(20_000), ..Wants::default() };
        assert_eq!(found(slow), "a ", "what is insisted on comes first");
    }

    #[test]
    fn what_a_provider_does_not_say_of_itself_has_a_name() {
        let view = view("a", "Q4_K_M", "DE-BY", 10);
        let list = |text: &str| vec![text.to_owned()];
        let missing = |wants: Wants| missing(&wants, &view);

        assert_eq!(missing(Wants { quantisations: list("F16"), ..Wants::default() }), Some("quantization"));
        assert_eq!(missing(Wants { regions: list("eu"), ..Wants::default() }), Some("region"));
        assert_eq!(missing(Wants { class: Some("company".to_owned()), ..Wants::default() }), Some("class"));
        for region in ["de", "de-by"] {
            assert_eq!(missing(Wants { regions: list(region), ..Wants::default() }), None, "{region}");
        }
        for region in ["d", "de-b", "de-by-x"] {
            assert_eq!(
                missing(Wants { regions: list(region), ..Wants::default() }),
                Some("region"),
                "{region}"
            );
        }
    }
}
