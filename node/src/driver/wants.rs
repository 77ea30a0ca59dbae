//! Keeps a job to providers whose adverts say what its client insists on.

use std::sync::Arc;

use protocol::ids::ModelId;
use protocol::node::MarkupError;

use crate::api::views::ProviderView;
use crate::command::{JobRequest, Wants};
use crate::exit::{Failure, FailureKind};

use super::Driver;

impl Driver {
    /// Names those that may serve a job, if it insists on anything; an error if there are none.
    pub(super) fn narrow(&self, request: &mut Arc<JobRequest>, model: ModelId) -> Result<(), Failure> {
        if request.wants == Wants::default() {
            return Ok(());
        }
        let id = model.to_string();
        let all: Vec<ProviderView> =
            self.providers(None).into_iter().filter(|view| view.model_id == id).collect();
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
    let one_of = |list: &[String], value: &str| {
        list.is_empty() || list.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let fits = |view: &&ProviderView| {
        one_of(&wants.quantisations, &view.quantisation)
            && one_of(&wants.regions, view.region.as_deref().unwrap_or_default())
            && wants.class.as_ref().is_none_or(|class| *class == view.class)
    };
    let fitting: Vec<&ProviderView> = views.filter(fits).collect();
    let is_fast =
        |view: &&&ProviderView| wants.speed_milli.is_some_and(|speed| view.tokens_per_s_milli >= speed);
    let fast = fitting.iter().filter(is_fast).map(|view| view.node.clone()).collect();
    Matching { fitting: fitting.iter().map(|view| view.node.clone()).collect(), fast }
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
}
