//! One node and what it is told: rules that need no network to be seen.

mod accounts;
mod books;
mod committing;
mod issuers;
mod orders;

use alloc::vec;

use super::*;
use crate::ids::RecordId;
use crate::job::{Constraints, Failure, Input as Prompt, JobEvent, Sampling, Trace};
use crate::keys::Scheme;
use crate::ledger::issuer::{Balance, IssuerError};
use crate::ledger::records::{AccountOp, OpBody, OpenChannel, Receipt, Recorded, Terms};
use crate::licence::open_licence;
use crate::manifest::Admission;
use crate::message::{Heads, Opening};
use crate::model::Modality;
use crate::price::{Price, Usage};
use crate::router::Gate;
use crate::scheduler::Refusal;

const START: Time = Time(1_800_000_000_000);
const MODEL: ModelId = ModelId([7; 32]);
const DEAR: Price = Price { call: 0, input: 1_000_000_000, output: 1_000_000_000 };

#[test]
fn a_job_that_is_cancelled_before_it_is_placed_fails_as_cancelled() {
    let mut node = consumer();
    node.told(START, Input::Submitted(job(1), spec()));

    let out = node.told(START.plus_ms(5), Input::Cancelled(job(1)));

    assert_eq!(failures(&out), [Failure::Cancelled]);
    assert_eq!(node.node.jobs().count(), 0);
}

#[test]
fn offers_of_a_cancelled_job_are_given_back() {
    let mut node = consumer();
    node.has_credits();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    let out = node.told(START, Input::Submitted(job(1), spec()));
    assert_eq!(sent(&out), ["ask"]);

    let out = node.told(START.plus_ms(5), Input::Cancelled(job(1)));

    assert_eq!((sent(&out), failures(&out)), (vec!["cancel"], vec![Failure::Cancelled]));
}

#[test]
fn a_provider_that_offers_late_is_taken_if_there_is_no_other() {
    let mut node = consumer();
    node.has_credits();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    node.told(START, Input::Submitted(job(1), spec()));

    let due = node.told(START.plus_ms(250), Input::Wake);
    let offered =
        node.hears(START.plus_ms(900), &PROVIDER, Message::Offer { job: job(1), terms: terms(DEAR) });

    assert_eq!((failures(&due), failures(&offered)), (vec![], vec![]));
    assert_eq!(node.node.jobs().count(), 1);
    node.told(START.plus_ms(2_000), Input::Wake);
    assert_eq!(node.node.jobs().count(), 1, "it waits for its channel now");
}

#[test]
fn a_provider_that_never_answers_is_given_up() {
    let mut node = consumer();
    node.has_credits();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    node.told(START, Input::Submitted(job(1), spec()));

    node.told(START.plus_ms(250), Input::Wake);
    let out = node.told(START.plus_ms(2_000), Input::Wake);

    let failed = failures(&out);
    let [Failure::NoProvider(considered)] = failed.as_slice() else { panic!("{out:?}") };
    assert_eq!(considered[0].gate, Some(Gate::NoAnswer));
}

#[test]
fn a_job_without_room_for_its_channel_fails_with_all_that_wait_and_nothing_is_signed_until_somebody_asks() {
    let mut node = consumer();
    node.has_credits();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    let asks = |node: &mut Told, now: Time, tag: u8| {
        node.told(now, Input::Submitted(job(tag), spec()));
        node.hears(now, &PROVIDER, Message::Offer { job: job(tag), terms: terms(DEAR) })
    };
    let signed = |out: &[Effect]| {
        out.iter().find_map(|effect| match effect {
            Effect::Send(_, Message::Step { op, .. }) => {
                Some(op.clone().verify(manifest().domain(), Scheme::Strict).expect("signed"))
            }
            _ => None,
        })
    };
    let first = signed(&asks(&mut node, START, 1)).expect("a channel is to be opened");
    assert_eq!(signed(&asks(&mut node, START, 2)), None, "one step at a time");
    let error = IssuerError::TooManySteps { made: 9 };
    let balance = node.node.balance();

    let out = node.hears(START, &ISSUER, Message::StepRefused { op: first.id(), error, balance });
    assert_eq!(failures(&out), vec![Failure::TooManySteps(error); 2]);
    assert_eq!(signed(&out), None);
    for seconds in [6, 12] {
        assert_eq!(signed(&node.told(START.plus_ms(seconds * 1_000), Input::Wake)), None);
    }
    let next = signed(&asks(&mut node, START.plus_ms(12_000), 3)).expect("the wallet is free");
    assert_eq!((next.sequence, next.previous), (first.sequence, first.previous));
}

#[test]
fn a_message_of_a_peer_that_is_gone_brings_no_peer_back() {
    let mut node = consumer();
    node.greeted_by(START, &ISSUER, None);
    node.told(START, Input::PeerDown(ISSUER.id()));

    let device = ISSUER.device(Epoch(1));
    node.hears(
        START,
        &ISSUER,
        Message::Hello { device, lineage: None, membership: None, advert: None, asks: true },
    );

    assert_eq!(node.node.peers().count(), 0);
    assert!(!node.node.reaches_issuer());
}

#[test]
fn a_job_that_nobody_pays_for_is_given_up_soon_and_one_that_generates_never() {
    let mut node = provider(DEAR);
    let channel = node.opens_channel();
    for tag in [1, 2] {
        let submit = Message::Submit { job: job(tag), spec: spec(), channel: Some(channel), opening: None };
        assert!(grants(&node.hears(START, &CONSUMER, submit)).contains(&if tag == 1 { 64 } else { 0 }));
        node.told(START, Input::Engine(EngineEvent::Prepared { job: job(tag), tokens_in: 10 }));
    }

    // The first one generates slowly, and the second one is behind it.
    let out = node.told(START.plus_ms(3_600_000), Input::Wake);
    assert_eq!(aborted(&out), []);

    let now = START.plus_ms(3_600_000);
    node.told(now, Input::Engine(EngineEvent::Waiting { job: job(1), tokens_out: 64 }));
    let mut ended = aborted(&node.told(now.plus_ms(19_000), Input::Wake));
    assert_eq!(ended, []);
    ended.extend(aborted(&node.told(now.plus_ms(41_000), Input::Wake)));
    assert_eq!(ended, [job(1), job(2)]);
}

#[test]
fn a_job_whose_every_token_is_granted_has_all_the_time_it_needs() {
    let mut node = provider(Price::default());
    let submit = Message::Submit { job: job(1), spec: spec(), channel: None, opening: None };
    node.hears(START, &CONSUMER, submit);
    node.told(START, Input::Engine(EngineEvent::Prepared { job: job(1), tokens_in: 10 }));

    assert_eq!(aborted(&node.told(START.plus_ms(3_600_000), Input::Wake)), []);
}

#[test]
fn a_delegation_is_signed_again_before_it_ends_and_one_that_ended_counts_no_more() {
    let mut node = consumer();
    node.greeted_by(START, &ISSUER, None);
    let epoch_ms = manifest().epoch_ms;
    let expires = |out: &[Effect]| {
        out.iter().find_map(|effect| match effect {
            Effect::Send(to, Message::Hello { device, asks, .. }) if *to == ISSUER.id() => {
                let device = device.clone().verify(manifest().domain(), Scheme::Strict).expect("signed");
                Some((device.expires, *asks))
            }
            _ => None,
        })
    };

    let renewed = node.told(START.plus_ms(5 * epoch_ms), Input::Wake);
    assert_eq!(expires(&renewed), Some((Epoch(5 + records::VALIDITY_EPOCHS_MAX), false)));
    assert!(node.node.reaches_issuer());

    let asked = node.told(START.plus_ms(8 * epoch_ms), Input::Wake);
    assert_eq!(expires(&asked).map(|(_, asks)| asks), Some(true));
    assert!(!node.node.reaches_issuer());
}

#[test]
fn a_flood_of_strangers_adverts_leaves_those_of_connected_providers() {
    let mut node = consumer();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));

    for tag in 0..1100_u64 {
        let mut seed = [9; 32];
        seed[..8].copy_from_slice(&tag.to_be_bytes());
        let stranger = Signer::from_seed(seed);
        node.told(START, Input::Heard(advert_by(&stranger, 1, START.plus_ms(119_000), DEAR)));
    }

    assert_eq!(node.node.providers(START).count(), crate::router::ADVERTS_MAX);
    assert!(node.node.providers(START).any(|advert| advert.node == PROVIDER.id()));
}

#[test]
fn an_advert_that_would_outlive_three_renewals_is_neither_learned_nor_passed_on() {
    let mut node = consumer();
    let hasty = advert_by(&PROVIDER.node(), 40_000, START.plus_ms(121_000), DEAR);
    let lasting = advert_by(&PROVIDER.node(), 1, START.plus_ms(121_000), DEAR);
    let honest = advert(&PROVIDER, 1, START, DEAR);

    // The first one's node may have a clock of its own; the second one contradicts itself.
    assert_eq!(node.node.hears(&hasty, START), Heard::Ignored);
    assert_eq!(node.node.hears(&lasting, START), Heard::Refused(Offence::BadAdvert));
    assert_eq!(node.node.hears(&honest, START), Heard::News);
    for advert in [hasty, lasting] {
        assert_eq!(penalties(&node.told(START, Input::Heard(advert))), []);
    }
    assert_eq!(node.node.providers(START).count(), 0);
}

#[test]
fn an_advert_that_no_honest_node_says_is_held_against_whoever_says_it() {
    let mut node = consumer();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    let mut check = |advert: Verified<Advert>, expected: &[Offence]| {
        let out = node.hears(START.plus_ms(5_000), &PROVIDER, Message::Advert(advert));
        assert_eq!(penalties(&out), expected);
    };
    let at = |ms: u64| advert(&PROVIDER, ms, START.plus_ms(ms), DEAR);

    check(at(5_000), &[]);
    // Overtaken, or by a clock that is wrong.
    check(at(2_000), &[]);
    check(at(4_000_000), &[]);
    // Said before, and old.
    check(at(4_000_000), &[Offence::BadAdvert]);
    check(at(3_939_000), &[Offence::BadAdvert]);
    check(at(3_941_000), &[]);
    // Somebody else's, and one that lives too long.
    check(advert(&ISSUER, 4_000_001, START, DEAR), &[Offence::BadAdvert]);
    check(advert_by(&PROVIDER.node(), 4_100_000, START.plus_ms(4_221_000), DEAR), &[Offence::BadAdvert]);
    check(at(4_100_000), &[]);
}

#[test]
fn a_provider_that_was_started_again_with_its_clock_set_back_is_not_punished() {
    let mut node = consumer();
    let hour = 3_600_000;
    node.greeted_by(START, &PROVIDER, None);
    node.hears(START, &PROVIDER, Message::Advert(advert(&PROVIDER, hour, START.plus_ms(hour), DEAR)));

    let mut out = node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 0, START, DEAR)));
    for minutes in 1..10 {
        let now = START.plus_ms(minutes * 60_000);
        let news = advert(&PROVIDER, minutes * 60_000, now, DEAR);
        out.extend(node.hears(now, &PROVIDER, Message::Advert(news)));
    }

    assert_eq!(penalties(&out), []);
}

#[test]
fn receipts_shown_again_and_again_are_answered_a_few_times() {
    let mut node = provider(DEAR);
    let channel = node.opens_channel();
    node.is_paid(channel);

    let answers = |node: &mut Told, now: Time| {
        let times = (0..20).map(|_| {
            sent(&node.hears(now, &CONSUMER, Message::Heads(Heads::pages(Vec::new()).remove(0)))).len()
        });
        times.sum::<usize>()
    };
    assert_eq!(answers(&mut node, START), 4);
    assert_eq!(answers(&mut node, START.plus_ms(6_000)), 4);
}

#[test]
fn the_directory_has_eight_nodes_dialled_at_most() {
    let mut node = consumer();
    let named = (0..100).map(|tag| NodeId([tag; 32])).collect();

    let out = node.told(START, Input::Found(MODEL, named));

    assert_eq!(out.iter().filter(|effect| matches!(effect, Effect::Dial(_))).count(), 8);
}

#[test]
fn an_offer_above_the_advertised_price_is_turned_down() {
    let cheap = Price { call: 0, input: 1, output: 1 };
    let mut node = consumer();
    node.has_credits();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, cheap)));
    node.told(START, Input::Submitted(job(1), spec()));

    let out = node.hears(START, &PROVIDER, Message::Offer { job: job(1), terms: terms(DEAR) });

    let failed = failures(&out);
    let [Failure::NoProvider(considered)] = failed.as_slice() else { panic!("{out:?}") };
    assert_eq!(considered[0].gate, Some(Gate::Price));
}

#[test]
fn an_offer_with_another_markup_than_the_job_has_is_turned_down() {
    let mut node = consumer();
    node.has_credits();
    let free = Price::default();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, free)));
    node.told(START, Input::Submitted(job(1), spec()));
    let markup = Some(records::Markup { builder: PROVIDER.account(), bps: 3_000 });
    let offered = Terms { markup, ..Terms::clone(&terms(free)) };
    let offered = sign(offered, manifest().domain(), Role::Node, &PROVIDER.node());

    let out = node.hears(START, &PROVIDER, Message::Offer { job: job(1), terms: offered });

    assert_eq!(penalties(&out), [Offence::WrongSigner]);
    assert!(!sent(&out).contains(&"submit"), "{out:?}");
}

#[test]
fn a_provider_offers_terms_with_the_markup_that_is_asked_for_and_the_network_allows() {
    let mut node = provider(DEAR);
    let account = CONSUMER.account();
    let asked = |node: &mut Told, tag, bps| {
        let markup = Some(records::Markup { builder: signer(80).public().into(), bps });
        let ask = Message::Ask { job: job(tag), model: MODEL, account, markup };
        let out = node.hears(START, &CONSUMER, ask);
        out.iter().find_map(|effect| match effect {
            Effect::Send(_, Message::Offer { terms, .. }) => {
                Some(terms.peek_in(manifest().domain()).expect("terms").0.markup == markup)
            }
            Effect::Send(_, Message::Refused { refusal: Refusal::BadRequest, .. }) => Some(false),
            _ => None,
        })
    };
    assert_eq!((asked(&mut node, 1, 3_000), asked(&mut node, 2, 3_001)), (Some(true), Some(false)));
}

#[test]
fn whoever_wants_a_job_is_told_the_price_of_the_terms() {
    let mut node = consumer();
    node.has_credits();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    node.told(START, Input::Submitted(job(1), spec()));

    let free = Price::default();
    let out = node.hears(START, &PROVIDER, Message::Offer { job: job(1), terms: terms(free) });

    let chosen = out.iter().find_map(|effect| match effect {
        Effect::Tell(_, JobEvent::Chosen { considered, .. }) => Some(considered[0].price),
        _ => None,
    });
    assert_eq!(chosen, Some(0));
}

#[test]
fn a_provider_that_is_being_dialled_is_waited_for() {
    let mut node = consumer();
    node.has_credits();
    node.told(START, Input::Submitted(job(1), spec()));

    let heard = node.told(START.plus_ms(10), Input::Heard(advert(&PROVIDER, 1, START, DEAR)));
    assert!(heard.contains(&Effect::Dial(PROVIDER.id())));
    assert_eq!(failures(&node.told(START.plus_ms(100), Input::Wake)), []);
    node.greeted_by(START.plus_ms(2_000), &PROVIDER, None);
    let out = node.told(START.plus_ms(2_050), Input::Wake);

    assert!(sent(&out).contains(&"ask"), "{out:?}");
}

#[test]
fn a_full_provider_is_told_of_at_once_and_others_are_looked_for_meanwhile() {
    let (free, full) = (Price::default(), Refusal::Busy { retry_ms: 500 });
    for is_placed in [false, true] {
        let mut node = consumer();
        node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, free)));
        let refused = |node: &mut Told, tag: u8| {
            node.told(START, Input::Submitted(job(tag), spec()));
            if is_placed {
                let out = node.hears(START, &PROVIDER, Message::Offer { job: job(tag), terms: terms(free) });
                assert_eq!(sent(&out), ["submit"]);
            }
            node.hears(START, &PROVIDER, Message::Refused { job: job(tag), refusal: full })
        };

        let first = refused(&mut node, 1);
        let second = refused(&mut node, 2);

        let looked_for = |out: &[Effect]| out.contains(&Effect::Lookup(MODEL));
        assert!(looked_for(&first) && !looked_for(&second), "{first:?} {second:?}");
        for out in [first, second] {
            let failed = failures(&out);
            let [Failure::NoProvider(considered)] = failed.as_slice() else { panic!("{out:?}") };
            assert_eq!(considered[0].gate, Some(Gate::Refused(full)));
        }
    }
}

#[test]
fn a_provider_that_lost_one_job_of_two_and_goes_on_with_the_other_is_asked_by_a_third() {
    let mut node = consumer();
    let free = Price::default();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, free)));
    for tag in [1, 2] {
        node.told(START, Input::Submitted(job(tag), spec()));
        node.hears(START, &PROVIDER, Message::Offer { job: job(tag), terms: terms(free) });
        let accepted = records::Accepted { job: job(tag), tokens_in: 10, start: START };
        let accepted = sign(accepted, manifest().domain(), Role::Node, &PROVIDER.node());
        node.hears(START, &PROVIDER, Message::Accepted(accepted));
    }
    node.told(START, Input::StreamLost { job: job(1), tokens: 0, digest: Digest::ZERO });
    let submitted = node.told(START.plus_ms(10), Input::Submitted(job(3), spec()));

    node.told(START.plus_ms(500), Input::Progress { job: job(2), tokens: 1 });
    let out = node.told(START.plus_ms(600), Input::Wake);

    let asks = |out: &[Effect]| {
        out.iter().any(
            |effect| matches!(effect, Effect::Send(_, Message::Ask { job: asked, .. }) if *asked == job(3)),
        )
    };
    assert!(!asks(&submitted), "it may be down");
    assert!(asks(&out), "it is not: {out:?}");
}

#[test]
fn adverts_do_not_postpone_the_end_of_a_search() {
    let mut node = consumer();
    node.told(START, Input::Submitted(job(1), spec()));

    for tag in 0..100_u8 {
        let now = START.plus_ms(40 * u64::from(tag));
        let news = advert(&Somebody(100 + tag, 50), 1, now, DEAR);
        node.told(now, Input::Heard(news.clone()));
        node.greeted_by(now, &Somebody(100 + tag, 50), Some(news));
        node.told(now, Input::PeerDown(Somebody(100 + tag, 50).id()));
        assert_eq!(failures(&node.told(now, Input::Wake)), []);
    }
    let out = node.told(START.plus_ms(5_000), Input::Wake);

    assert!(matches!(failures(&out).as_slice(), [Failure::NoProvider(_)]));
}

#[test]
fn a_job_that_makes_no_progress_is_failed_and_cancelled_at_its_provider() {
    for (tokens, patience) in [(0, 130_000), (10, 60_000)] {
        let mut node = consumer();
        node.has_credits();
        node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, Price::default())));
        node.told(START, Input::Submitted(job(1), spec()));
        node.hears(START, &PROVIDER, Message::Offer { job: job(1), terms: terms(Price::default()) });
        let accepted = records::Accepted { job: job(1), tokens_in: 10, start: START };
        let accepted = sign(accepted, manifest().domain(), Role::Node, &PROVIDER.node());
        node.hears(START, &PROVIDER, Message::Accepted(accepted));
        node.told(START, Input::Progress { job: job(1), tokens });

        let patient = node.told(START.plus_ms(patience - 12_000), Input::Wake);
        let out = node.told(START.plus_ms(patience), Input::Wake);

        assert_eq!(failures(&patient), []);
        assert_eq!(failures(&out), [Failure::TimedOut]);
        assert!(sent(&out).contains(&"cancel"));
    }
}

#[test]
fn a_provider_that_takes_back_what_it_began_is_paid_for_what_came_and_the_job_is_accounted_for() {
    let too_long = Message::Refused {
        job: job(1),
        refusal: Refusal::PromptTooLong { tokens: 9, context: 8, text: None },
    };
    let full = Message::Refused { job: job(1), refusal: Refusal::Busy { retry_ms: 1 } };
    let counted = records::Accepted { job: job(1), tokens_in: u32::MAX, start: START };
    let counted = Message::Accepted(sign(counted, manifest().domain(), Role::Node, &PROVIDER.node()));
    for back in [too_long, full, counted] {
        let mut node = consumer();
        node.has_credits();
        node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
        node.told(START, Input::Submitted(job(1), spec()));
        let out = node.hears(START, &PROVIDER, Message::Offer { job: job(1), terms: terms(DEAR) });
        node.commits(&out);
        node.told(START, Input::Progress { job: job(1), tokens: 10 });

        let out = node.hears(START, &PROVIDER, back);

        let account = out.iter().find_map(|effect| match effect {
            Effect::Tell(_, JobEvent::Failed { failure: Failure::Misbehaved(_), account }) => account.clone(),
            _ => None,
        });
        let account = account.expect("what was delivered and paid");
        assert_eq!((account.record.usage.tokens_out, account.price), (10, 10 * 1_000));
        assert_eq!(penalties(&out), [Offence::BadCount]);
    }
}

#[test]
fn what_was_paid_ahead_to_a_provider_that_is_lost_is_told() {
    let mut node = consumer();
    node.has_credits();
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    node.told(START, Input::Submitted(job(1), spec()));
    let out = node.hears(START, &PROVIDER, Message::Offer { job: job(1), terms: terms(DEAR) });
    node.commits(&out);
    let accepted = records::Accepted { job: job(1), tokens_in: 10, start: START };
    let accepted = sign(accepted, manifest().domain(), Role::Node, &PROVIDER.node());
    node.hears(START, &PROVIDER, Message::Accepted(accepted));
    node.told(START, Input::Progress { job: job(1), tokens: 10 });

    let out = node.told(START, Input::StreamLost { job: job(1), tokens: 10, digest: Digest::ZERO });

    let account = out.iter().find_map(|effect| match effect {
        Effect::Tell(_, JobEvent::Failed { account, .. }) => account.clone(),
        _ => None,
    });
    let account = account.expect("what was delivered and paid");
    assert_eq!((account.price, account.ahead), (20 * 1_000, 64 * 1_000));
}

#[test]
fn an_own_engine_that_fails_in_mid_answer_leaves_an_account_that_costs_nothing() {
    for tokens_out in [0, 3] {
        let mut node = provider(DEAR);
        node.told(START, Input::Submitted(job(1), spec()));
        node.told(START, Input::Engine(EngineEvent::Prepared { job: job(1), tokens_in: 10 }));

        let (digest, fault) = (Digest::ZERO, EngineFault::Broken("it is gone".into()));
        let out =
            node.told(START, Input::Engine(EngineEvent::Failed { job: job(1), tokens_out, digest, fault }));

        let account = out.iter().find_map(|effect| match effect {
            Effect::Tell(_, JobEvent::Failed { account, .. }) => Some(account.clone()),
            _ => None,
        });
        let counted =
            account.expect("it failed").map(|account| (account.record.usage.tokens_out, account.price));
        assert_eq!(counted, (tokens_out > 0).then_some((3, 0)));
    }
}

#[test]
fn an_open_join_without_a_ticket_leaves_nothing_behind() {
    let mut node = node(ISSUER, Some(signer(1)));
    node.greeted_by(START, &CONSUMER, None);

    for secret in 0..10 {
        let out = node.hears(START, &CONSUMER, Message::Join { secret: [secret; 16] });
        assert_eq!(sent(&out), ["joined"]);
        assert!(!out.iter().any(|effect| matches!(effect, Effect::Record(_))));
    }
}

#[test]
fn whoever_is_no_member_asks_again_to_join_and_asks_nobody_to_work_before() {
    let mut node = consumer();
    node.node.config.manifest.admission = Admission::Ticket;
    node.greeted_by(START, &PROVIDER, Some(advert(&PROVIDER, 1, START, DEAR)));
    node.greeted_by(START, &ISSUER, None);
    let asked = node.told(START, Input::Owner(OwnerCommand::Join { secret: [1; 16] }));
    assert_eq!(sent(&asked), ["join"]);

    let submitted = node.told(START.plus_ms(5), Input::Submitted(job(1), spec()));
    assert_eq!(failures(&submitted), [Failure::NotAdmitted]);
    assert_eq!(sent(&submitted), Vec::<&str>::new());

    let due = node.told(START.plus_ms(6_000), Input::Wake);
    assert!(sent(&due).contains(&"join"), "{due:?}");
}

#[test]
fn one_connection_speaks_for_one_account() {
    let mut node = node(ISSUER, Some(signer(1)));
    node.greeted_by(START, &CONSUMER, None);

    let device = Somebody(CONSUMER.0, 77).device(Epoch(1));
    let out = node.hears(
        START,
        &CONSUMER,
        Message::Hello { device, lineage: None, membership: None, advert: None, asks: false },
    );

    assert_eq!(out, [Effect::Penalise(CONSUMER.id(), Offence::WrongSigner)]);
    assert!(node.node.peers().all(|peer| peer.account.is_none()));
}

#[test]
fn a_refused_step_stays_refused_on_its_connection() {
    let mut node = node(ISSUER, Some(signer(1)));
    node.greeted_by(START, &CONSUMER, None);
    let (account, previous, body) = (CONSUMER.account(), RecordId::NONE, OpBody::Expire(ChannelId([1; 32])));
    let op = AccountOp { account, sequence: 0, previous, epoch: Epoch(0), body };
    let op = sign(op, manifest().domain(), Role::Owner, &signer(CONSUMER.1));

    for _ in 0..2 {
        let out = node.hears(START, &CONSUMER, Message::Step { op: op.clone(), terms: None });
        assert_eq!(sent(&out), ["step_refused"]);
    }
}

/// A node under test.
struct Told {
    node: Node,
}

/// Somebody else: the seeds of the keys of its node and its account.
struct Somebody(u8, u8);

const ISSUER: Somebody = Somebody(2, 40);
const CONSUMER: Somebody = Somebody(4, 3);
const PROVIDER: Somebody = Somebody(5, 50);

impl Somebody {
    fn node(&self) -> Signer {
        signer(self.0)
    }

    fn id(&self) -> NodeId {
        self.node().public().into()
    }

    fn account(&self) -> AccountId {
        signer(self.1).public().into()
    }

    fn device(&self, expires: Epoch) -> Verified<records::Device> {
        let rights = records::Rights { serve: true, spend: true };
        let device =
            records::Device { account: self.account(), node: self.id(), rights, version: 1, expires };
        sign(device, manifest().domain(), Role::Owner, &signer(self.1))
    }
}

impl Told {
    fn told(&mut self, now: Time, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.node.handle(now, input, &mut out);
        out
    }

    fn hears(&mut self, now: Time, from: &Somebody, message: Message<Checked>) -> Vec<Effect> {
        self.told(now, Input::Received(from.id(), message))
    }

    fn greeted_by(&mut self, now: Time, peer: &Somebody, advert: Option<Verified<Advert>>) -> Vec<Effect> {
        self.told(now, Input::PeerUp(peer.id()));
        let device = peer.device(manifest().epoch(now).plus(records::VALIDITY_EPOCHS_MAX));
        self.hears(now, peer, Message::Hello { device, lineage: None, membership: None, advert, asks: false })
    }

    /// As provider: has the consumer ask, open a channel and show it.
    fn opens_channel(&mut self) -> ChannelId {
        let ask = Message::Ask { job: job(99), model: MODEL, account: CONSUMER.account(), markup: None };
        let out = self.hears(START, &CONSUMER, ask);
        let terms = out.iter().find_map(|effect| match effect {
            Effect::Send(_, Message::Offer { terms, .. }) => Some(terms.clone()),
            _ => None,
        });
        self.hears(START, &CONSUMER, Message::Cancel { job: job(99) });
        let domain = manifest().domain();
        let terms = terms.and_then(|terms| terms.verify(domain, Scheme::Strict).ok()).expect("an offer");
        let open = OpenChannel {
            payee: self.node.id(),
            terms: terms.id(),
            cap: 1_000_000_000_000,
            expires: Epoch(6),
            payer: CONSUMER.id(),
            payer_key: signer(70).public(),
        };
        let op = AccountOp {
            account: CONSUMER.account(),
            sequence: 0,
            previous: RecordId::NONE,
            epoch: Epoch(0),
            body: OpBody::OpenChannel(open),
        };
        let op = sign(op, domain, Role::Owner, &signer(CONSUMER.1));
        let recorded = Recorded { op: op.id(), epoch: Epoch(0) };
        let recorded = vec![sign(recorded, domain, Role::Issuer, &signer(1))];
        let channel = op.id().into();
        self.node.on_opening(CONSUMER.id(), Opening { op, terms, recorded }, START, &mut Vec::new());
        channel
    }

    /// As provider: holds a receipt of the consumer.
    fn is_paid(&mut self, channel: ChannelId) {
        let (amount, usage, jobs) = (1, Usage::default(), Digest::ZERO);
        let receipt = Receipt { channel, sequence: 1, amount, usage, jobs, epoch: Epoch(0) };
        let receipt = sign(receipt, manifest().domain(), Role::Payer, &signer(70));
        let out = self.hears(START, &CONSUMER, Message::Pay { receipt, allowances: Vec::new() });
        assert_eq!(sent(&out), ["co_signed"]);
    }

    /// Has the issuer record the step that was just signed.
    fn commits(&mut self, out: &[Effect]) {
        let op = out.iter().find_map(|effect| match effect {
            Effect::Send(_, Message::Step { op, .. }) => Some(op.clone()),
            _ => None,
        });
        let op = op.expect("a step").verify(manifest().domain(), Scheme::Strict).expect("signed");
        let recorded =
            sign(Recorded { op: op.id(), epoch: Epoch(0) }, manifest().domain(), Role::Issuer, &signer(1));
        let balance = Balance { cash: 1_000_000_000_000, earned: 0, held: 0, as_of: 2 };
        self.hears(START, &ISSUER, Message::Recorded { recorded, balance });
    }

    fn has_credits(&mut self) {
        self.greeted_by(START, &ISSUER, None);
        let balance = Balance { cash: 1_000_000_000_000, earned: 0, held: 0, as_of: 1 };
        let account = self.node.account();
        let state = Message::AccountState { account, next: 0, head: RecordId::NONE, balance };
        self.hears(START, &ISSUER, state);
    }
}

fn signer(seed: u8) -> Signer {
    Signer::from_seed([seed; 32])
}

fn manifest() -> Manifest {
    let home = Manifest::home("tests".into(), START, &signer(1), ISSUER.id());
    Manifest { admission: Admission::Open, ..home }
}

fn node(seeds: Somebody, issuer: Option<Signer>) -> Told {
    node_of(manifest(), seeds, issuer)
}

fn node_of(manifest: Manifest, seeds: Somebody, issuer: Option<Signer>) -> Told {
    node_with(manifest, seeds, issuer, &[])
}

/// Returns a node that comes back with a journal.
fn node_with(manifest: Manifest, seeds: Somebody, issuer: Option<Signer>, journal: &[Record]) -> Told {
    let config = Config {
        manifest,
        node: seeds.node(),
        owner: signer(seeds.1).into(),
        issuer,
        name: String::new(),
        incentive: Incentive::Exchange,
        class: ProviderClass::Community,
        region: String::new(),
        version: String::new(),
        builders: BTreeMap::new(),
    };
    Told { node: Node::new(config, 1, journal, START).expect("its own journal") }
}

fn consumer() -> Told {
    node(CONSUMER, None)
}

fn job(tag: u8) -> JobId {
    JobId([tag; 16])
}

pub(super) fn spec() -> JobSpec {
    JobSpec {
        model: MODEL,
        input: Prompt { digest: Digest::ZERO, bytes: 100, modality: Modality::Text },
        sampling: Sampling {
            temperature_milli: 0,
            top_p_milli: 1000,
            top_k: 0,
            repetition_penalty_milli: 1000,
            seed: 1,
        },
        max_tokens: 256,
        constraints: Constraints::default(),
        markup: None,
        trace: Trace::default(),
    }
}

fn offer(price: Price) -> ModelOffer {
    ModelOffer {
        model: MODEL,
        name: "m".into(),
        modality: Modality::Text,
        licence: open_licence(MODEL, manifest().domain()),
        price,
        context_tokens: 8192,
        slots: 2,
        busy: 0,
        decode_milli: 100_000,
        prefill_milli: 1_000_000,
        quantisation: String::new(),
        weights: Digest::ZERO,
    }
}

fn advert(of: &Somebody, after_ms: u64, now: Time, price: Price) -> Verified<Advert> {
    advert_by(&of.node(), after_ms, now.plus_ms(90_000), price)
}

/// Returns an advert whose author's clock is `after_ms` past the start.
fn advert_by(node: &Signer, after_ms: u64, valid_to: Time, price: Price) -> Verified<Advert> {
    let advert = Advert {
        node: node.public().into(),
        name: String::new(),
        account: PROVIDER.account(),
        sequence: START.plus_ms(after_ms).0,
        class: ProviderClass::Community,
        region: String::new(),
        devices: Vec::new(),
        models: vec![offer(price)],
        incentive: Incentive::Exchange,
        version: String::new(),
        valid_to,
    };
    sign(advert, manifest().domain(), Role::Node, node)
}

fn provider(price: Price) -> Told {
    let mut provider = node(PROVIDER, None);
    let device = Device { kind: "cpu".into(), name: String::new(), memory_bytes: 0, backend: String::new() };
    provider.told(START, Input::Engine(EngineEvent::Ready { offer: offer(price), device }));
    provider.greeted_by(START, &CONSUMER, None);
    provider
}

fn penalties(out: &[Effect]) -> Vec<Offence> {
    let offence = |effect: &Effect| match effect {
        Effect::Penalise(_, offence) => Some(*offence),
        _ => None,
    };
    out.iter().filter_map(offence).collect()
}

fn grants(out: &[Effect]) -> Vec<u32> {
    let up_to = |effect: &Effect| match effect {
        Effect::Run { up_to, .. } | Effect::Grant { up_to, .. } => Some(*up_to),
        _ => None,
    };
    out.iter().filter_map(up_to).collect()
}

fn aborted(out: &[Effect]) -> Vec<JobId> {
    let job = |effect: &Effect| match effect {
        Effect::Abort(job) => Some(*job),
        _ => None,
    };
    out.iter().filter_map(job).collect()
}

fn terms(price: Price) -> Verified<Terms> {
    let terms = Terms {
        payee: PROVIDER.id(),
        payee_account: PROVIDER.account(),
        payee_key: signer(60).public(),
        payer_account: CONSUMER.account(),
        model: MODEL,
        licence: open_licence(MODEL, manifest().domain()),
        incentive: Incentive::Exchange,
        price,
        markup: None,
        split: Terms::standard_split(&manifest(), Modality::Text, PROVIDER.account()),
        valid_to: Epoch(7),
    };
    sign(terms, manifest().domain(), Role::Node, &PROVIDER.node())
}

fn sent(out: &[Effect]) -> Vec<&'static str> {
    let name = |effect: &Effect| match effect {
        Effect::Send(_, message) => Some(message.name()),
        _ => None,
    };
    out.iter().filter_map(name).collect()
}

fn failures(out: &[Effect]) -> Vec<Failure> {
    let failure = |effect: &Effect| match effect {
        Effect::Tell(_, JobEvent::Failed { failure, .. }) => Some(failure.clone()),
        _ => None,
    };
    out.iter().filter_map(failure).collect()
}
