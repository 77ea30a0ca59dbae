//! Models of text and models of vectors: neither is asked for the other's work, and vectors are paid by what is read.

use protocol::advert::{Advert, Incentive, ProviderClass};
use protocol::job::{Constraints, JobSpec, TEMPLATE_TOKENS_MAX};
use protocol::keys::Scheme;
use protocol::message::Message;
use protocol::model::Modality;
use protocol::node::Effect;
use protocol::price::{Price, Usage};
use protocol::router::{Gate, Router};
use protocol::scheduler::Refusal;
use protocol::signed::{Role, Verified, sign};
use protocol::time::Time;

use crate::common::{domain, signer};
use crate::provider::{
    ISSUER, NOW, PAYER, PROVIDER, id, offer, opening, provider_after, receive, spec, terms,
};

fn vectors(count: u32) -> JobSpec {
    let mut spec = spec();
    spec.input.modality = Modality::Embedding;
    JobSpec { max_tokens: count, ..spec }
}

fn advert(modality: Modality) -> Verified<Advert> {
    let mut offer = offer(domain());
    offer.modality = modality;
    offer.context_tokens = 256;
    let advert = Advert {
        node: id(PROVIDER),
        name: String::new(),
        account: signer(PROVIDER + 50).public().into(),
        sequence: 1,
        class: ProviderClass::Community,
        region: String::new(),
        devices: Vec::new(),
        models: vec![offer],
        incentive: Incentive::Rewards,
        version: String::new(),
        valid_to: Time(60_000),
    };
    let signed = sign(advert, domain(), Role::Node, &signer(PROVIDER)).signed();
    signed.verify(domain(), Scheme::Simulated).expect("its own")
}

fn gate(modality: Modality, spec: &JobSpec) -> Option<Gate> {
    let mut router = Router::default();
    assert!(router.learn(advert(modality), |_| true, NOW));
    router.rank(spec, domain(), |_| true, NOW)[0].gate
}

#[test]
fn a_job_is_routed_to_models_of_its_kind_only() {
    let text = JobSpec { max_tokens: 100, ..spec() };

    assert_eq!(gate(Modality::Text, &text), None);
    assert_eq!(gate(Modality::Embedding, &text), Some(Gate::NotServed));
    assert_eq!(gate(Modality::Text, &vectors(1)), Some(Gate::NotServed));
    // A context is that of one text, and there may be more texts than tokens in it.
    assert_eq!(gate(Modality::Embedding, &vectors(2_048)), None);
    assert_eq!(gate(Modality::Text, &JobSpec { max_tokens: 2_048, ..text.clone() }), Some(Gate::Context));
    // What does not fit anywhere is said to be too long, whatever it may cost.
    let constraints = Constraints { price_max: Some(0), ..Constraints::default() };
    let poor = JobSpec { constraints, ..text };
    assert_eq!(gate(Modality::Text, &poor), Some(Gate::Price));
    assert_eq!(gate(Modality::Text, &JobSpec { max_tokens: 2_048, ..poor }), Some(Gate::Context));
}

#[test]
fn a_provider_refuses_a_job_of_another_kind_than_the_model() {
    let mut node = provider_after(&[]);
    let terms = terms(&mut node);
    let (channel, opening) = opening(terms, &[signer(ISSUER)]);
    let job = protocol::ids::JobId([1; 16]);

    let submit = Message::Submit { job, spec: vectors(1), channel: Some(channel), opening: Some(opening) };
    let effects = receive(&mut node, PAYER, &submit);

    let is_refusal = |effect: &Effect| {
        matches!(effect, Effect::Send(_, Message::Refused { refusal: Refusal::BadRequest, .. }))
    };
    assert!(effects.iter().any(is_refusal), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Run { .. })));
}

#[test]
fn the_special_tokens_of_every_text_are_believed_and_no_vector_has_a_price_of_its_own() {
    let bytes = spec().input.bytes;
    assert_eq!(vectors(10).tokens_in_max(), bytes + 2 * 10);
    // However long a text is, no more of it is read than a context.
    let mut long = vectors(2);
    long.input.bytes = 4 << 20;
    assert_eq!(long.tokens_in_max(), 2 * 2_048);
    assert_eq!(spec().tokens_in_max(), bytes + TEMPLATE_TOKENS_MAX);

    let price = Price { call: 0, input: 1_000_000_000, output: 0 };
    assert_eq!(price.cost(&Usage::of_job(500, 1)), price.cost(&Usage::of_job(500, 2_048)));
}
