//! Random values of every kind that is signed or sent: one encoding, one meaning, and nothing else passes for it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::Config;
use protocol::advert::{Advert, Device as Hardware, Incentive, ModelOffer, ProviderClass};
use protocol::encoding::{decode, encode};
use protocol::ids::{AccountId, ChannelId, Digest, DomainId, JobId, ModelId, NodeId, RecordId};
use protocol::keys::{PublicKey, Scheme, Signer};
use protocol::ledger::account::Inception;
use protocol::ledger::agreement::{Ballot, Phase};
use protocol::ledger::checkpoint::Checkpoint;
use protocol::ledger::merkle::{SumRoot, Sums};
use protocol::ledger::records::{
    Accepted, AccountOp, Claim, CloseVote, Deposit, Device, Epoch, Final, Markup, Membership, OpBody,
    OpenChannel, Receipt, Recorded, RedeemAck, Rights, SPLIT_LINES_MAX, Source, SplitLine, SplitRole, Terms,
    Vote, WithdrawalPaid,
};
use protocol::licence::{Licence, LicenceKind, Scope};
use protocol::manifest::Manifest;
use protocol::message::{Message, Wire};
use protocol::model::Modality;
use protocol::price::{Price, Usage};
use protocol::record::Record;
use protocol::signed::{Attestation, Role, Signable, Signed, sign};
use protocol::ticket::Ticket;
use protocol::time::Time;

use crate::kinds::signable_types;
use crate::samples;

const ROLES: [Role; 6] = [Role::Owner, Role::Node, Role::Payer, Role::Payee, Role::Issuer, Role::Root];

/// Enough to find what is rare, few enough for every change; `PROPTEST_CASES` asks for more.
pub(crate) fn cases() -> Config {
    let asked = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { 2_000 };
    Config { cases, failure_persistence: None, ..asked }
}

fn strict() -> Signer {
    Signer::from_seed([3; 32])
}

fn bytes32() -> impl Strategy<Value = [u8; 32]> {
    any::<[u8; 32]>()
}

fn price() -> impl Strategy<Value = Price> {
    any::<(u64, u64, u64)>().prop_map(|(call, input, output)| Price { call, input, output })
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<(u64, u64, u64, u64)>().prop_map(|(calls, tokens_in, tokens_out, compute)| Usage {
        calls,
        tokens_in,
        tokens_out,
        compute,
    })
}

fn device() -> impl Strategy<Value = Device> {
    (bytes32(), bytes32(), any::<(bool, bool, u32, u32)>()).prop_map(
        |(account, node, (serve, spend, version, expires))| Device {
            account: AccountId(account),
            node: NodeId(node),
            rights: Rights { serve, spend },
            version,
            expires: Epoch(expires),
        },
    )
}

fn membership() -> impl Strategy<Value = Membership> {
    (bytes32(), bytes32(), any::<u32>()).prop_map(|(node, account, epoch)| Membership {
        node: NodeId(node),
        account: AccountId(account),
        epoch: Epoch(epoch),
    })
}

fn deposit() -> impl Strategy<Value = Deposit> {
    (bytes32(), bytes32(), any::<(u64, u32)>()).prop_map(|(reference, account, (amount, epoch))| Deposit {
        source: if amount % 2 == 0 { Source::Budget } else { Source::Outside },
        reference: Digest(reference),
        account: AccountId(account),
        amount,
        epoch: Epoch(epoch),
    })
}

fn inception() -> impl Strategy<Value = Inception> {
    (bytes32(), bytes32()).prop_map(|(key, next)| Inception { key: PublicKey(key), next: Digest(next) })
}

fn account_op() -> impl Strategy<Value = AccountOp> {
    let body = prop_oneof![
        bytes32().prop_map(|channel| OpBody::Expire(ChannelId(channel))),
        (bytes32(), bytes32(), bytes32(), bytes32(), any::<(u64, u32)>()).prop_map(
            |(payee, terms, payer, payer_key, (cap, expires))| OpBody::OpenChannel(OpenChannel {
                payee: NodeId(payee),
                terms: RecordId(terms),
                cap,
                expires: Epoch(expires),
                payer: NodeId(payer),
                payer_key: PublicKey(payer_key),
            })
        ),
        (bytes32(), any::<u64>()).prop_map(|(to, amount)| OpBody::Pay { to: AccountId(to), amount }),
        (bytes32(), any::<u64>())
            .prop_map(|(payout, amount)| OpBody::Withdraw { amount, payout: Digest(payout) }),
        Just(OpBody::Noop),
        inception().prop_map(OpBody::Inception),
        inception().prop_map(OpBody::Rotate),
    ];
    (bytes32(), bytes32(), any::<(u64, u32)>(), body).prop_map(
        |(account, previous, (sequence, epoch), body)| AccountOp {
            account: AccountId(account),
            sequence,
            previous: RecordId(previous),
            epoch: Epoch(epoch),
            body,
        },
    )
}

fn close_vote() -> impl Strategy<Value = CloseVote> {
    (bytes32(), any::<(u64, u32)>()).prop_map(|(channel, (amount, epoch))| CloseVote {
        channel: ChannelId(channel),
        amount,
        epoch: Epoch(epoch),
    })
}

fn withdrawal_paid() -> impl Strategy<Value = WithdrawalPaid> {
    (bytes32(), ".{0,60}", any::<u32>()).prop_map(|(step, reference, epoch)| WithdrawalPaid {
        step: RecordId(step),
        reference,
        epoch: Epoch(epoch),
    })
}

fn vote() -> impl Strategy<Value = Vote> {
    let numbers = any::<(u64, u32, Option<u32>)>();
    (bytes32(), bytes32(), numbers).prop_map(|(op, account, (sequence, epoch, settled))| Vote {
        op: RecordId(op),
        account: AccountId(account),
        sequence,
        epoch: Epoch(epoch),
        settled: settled.map(Epoch),
    })
}

fn recorded() -> impl Strategy<Value = Recorded> {
    (bytes32(), any::<u32>()).prop_map(|(op, epoch)| Recorded { op: RecordId(op), epoch: Epoch(epoch) })
}

fn receipt() -> impl Strategy<Value = Receipt> {
    (bytes32(), bytes32(), usage(), any::<(u64, u64, u32)>()).prop_map(
        |(channel, jobs, usage, (sequence, amount, epoch))| Receipt {
            channel: ChannelId(channel),
            sequence,
            amount,
            usage,
            jobs: Digest(jobs),
            epoch: Epoch(epoch),
        },
    )
}

fn closing() -> impl Strategy<Value = Final> {
    (bytes32(), prop::option::of(bytes32()), any::<u64>()).prop_map(|(channel, receipt, amount)| Final {
        channel: ChannelId(channel),
        amount,
        receipt: receipt.map(RecordId),
    })
}

fn redeem_ack() -> impl Strategy<Value = RedeemAck> {
    (bytes32(), any::<(u64, bool, u32)>()).prop_map(|(channel, (amount, closed, epoch))| RedeemAck {
        channel: ChannelId(channel),
        amount,
        closed,
        epoch: Epoch(epoch),
    })
}

fn claim() -> impl Strategy<Value = Claim> {
    (bytes32(), bytes32(), any::<u64>()).prop_map(|(channel, receipt, amount)| Claim {
        channel: ChannelId(channel),
        receipt: RecordId(receipt),
        amount,
    })
}

fn ballot() -> impl Strategy<Value = Ballot> {
    (bytes32(), any::<u32>(), any::<bool>(), bytes32()).prop_map(|(previous, round, commits, checkpoint)| {
        let phase = if commits { Phase::Commit } else { Phase::Prepare };
        Ballot { previous: RecordId(previous), round, phase, checkpoint: RecordId(checkpoint) }
    })
}

fn accepted() -> impl Strategy<Value = Accepted> {
    any::<([u8; 16], u32, u64)>().prop_map(|(job, tokens_in, start)| Accepted {
        job: JobId(job),
        tokens_in,
        start: Time(start),
    })
}

fn terms() -> impl Strategy<Value = Terms> {
    let markup = prop::option::of((bytes32(), any::<u16>()))
        .prop_map(|markup| markup.map(|(builder, bps)| Markup { builder: AccountId(builder), bps }));
    let role = prop::sample::select(vec![SplitRole::Provider, SplitRole::Pool, SplitRole::Network]);
    let line = (role, bytes32(), any::<u16>()).prop_map(|(role, account, bps)| SplitLine {
        role,
        account: AccountId(account),
        bps,
    });
    let split = prop::collection::vec(line, 0..=SPLIT_LINES_MAX);
    (any::<[[u8; 32]; 5]>(), any::<(bool, u32)>(), markup, split, price()).prop_map(
        |([payee, account, key, payer, model], (exchange, valid_to), markup, split, price)| Terms {
            payee: NodeId(payee),
            payee_account: AccountId(account),
            payee_key: PublicKey(key),
            payer_account: AccountId(payer),
            model: ModelId(model),
            licence: RecordId(model),
            incentive: if exchange { Incentive::Exchange } else { Incentive::Rewards },
            price,
            markup,
            split,
            valid_to: Epoch(valid_to),
        },
    )
}

fn advert() -> impl Strategy<Value = Advert> {
    let offer = (bytes32(), "[a-z]{0,20}", price(), any::<(u32, u64)>(), 0..9_u16, 0..9_u16).prop_map(
        |(model, name, price, (context_tokens, decode_milli), slots, busy)| ModelOffer {
            model: ModelId(model),
            name,
            modality: Modality::Text,
            licence: RecordId(model),
            price,
            context_tokens,
            slots,
            busy: busy.min(slots),
            decode_milli,
            prefill_milli: decode_milli / 2,
            quantisation: "q4".to_owned(),
            weights: Digest(model),
        },
    );
    let hardware = "[a-z]{0,20}".prop_map(|name| Hardware {
        kind: "cpu".to_owned(),
        name,
        memory_bytes: 1 << 33,
        backend: "candle".to_owned(),
    });
    let models = prop::collection::vec(offer, 0..4);
    (bytes32(), any::<(u64, u64)>(), models, prop::collection::vec(hardware, 0..3)).prop_map(
        |(node, (sequence, valid_to), models, devices)| Advert {
            node: NodeId(node),
            account: AccountId(node),
            name: "a provider".to_owned(),
            sequence,
            class: ProviderClass::Community,
            region: "DE".to_owned(),
            devices,
            models,
            incentive: Incentive::Rewards,
            version: "0.1.0".to_owned(),
            valid_to: Time(valid_to),
        },
    )
}

fn licence() -> impl Strategy<Value = Licence> {
    let scope = prop_oneof![Just(Scope::Community), Just(Scope::Company), Just(Scope::Both)];
    (bytes32(), scope).prop_map(|(model, scope)| Licence {
        model: ModelId(model),
        kind: LicenceKind::Open,
        scope,
    })
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let sums = || any::<(u128, u128, u128)>().prop_map(|(cash, earned, held)| Sums { cash, earned, held });
    let root = || {
        (bytes32(), 0..1_000_000_u64, sums()).prop_map(|(hash, count, sums)| SumRoot {
            hash: Digest(hash),
            count,
            sums,
        })
    };
    (any::<u32>(), bytes32(), root(), root(), any::<(u128, u128)>(), bytes32()).prop_map(
        |(epoch, previous, accounts, channels, (deposited, withdrawn), facts)| Checkpoint {
            epoch: Epoch(epoch),
            previous: RecordId(previous),
            accounts,
            channels,
            deposited,
            withdrawn,
            facts: Digest(facts),
        },
    )
}

fn manifest() -> impl Strategy<Value = Manifest> {
    ("[a-z]{0,30}", any::<u64>(), bytes32(), any::<u64>()).prop_map(|(name, created, node, budget)| {
        Manifest { grant_budget: budget, ..Manifest::home(name, Time(created), &strict(), NodeId(node)) }
    })
}

/// Takes one value through everything that must hold for every signed type.
fn check<T: Signable>(value: &T, role: Role, bit: usize) -> Result<(), TestCaseError> {
    let signed = sign(value.clone(), samples::DOMAIN, role, &strict()).signed();
    let bytes = encode(&signed);
    prop_assert_eq!(
        encode(value).len() <= T::BYTES_MAX,
        true,
        "{} has {} bytes",
        T::TAG,
        encode(value).len()
    );

    let again: Signed<T> = decode(&bytes, 1 << 16).expect("our own encoding");
    let read = again.clone().verify(samples::DOMAIN, Scheme::Strict).expect("our own signature");
    prop_assert_eq!(&*read, value);
    prop_assert_eq!(encode(&read.signed()), bytes.clone());

    prop_assert!(again.verify(DomainId([1; 32]), Scheme::Strict).is_err(), "another network's");
    flipped::<T>(&bytes, bit)?;
    other_role::<T>(&bytes, role)?;
    as_other::<T, Recorded>(&bytes)?;
    as_other::<T, Deposit>(&bytes)?;
    as_other::<T, Final>(&bytes)
}

fn flipped<T: Signable>(bytes: &[u8], bit: usize) -> Result<(), TestCaseError> {
    let mut bytes = bytes.to_vec();
    let bit = bit % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    let read =
        decode::<Signed<T>>(&bytes, 1 << 16).map(|signed| signed.verify(samples::DOMAIN, Scheme::Strict));
    prop_assert!(!matches!(read, Ok(Ok(_))), "bit {bit} of {} can be flipped", T::TAG);
    Ok(())
}

fn other_role<T: Signable>(bytes: &[u8], role: Role) -> Result<(), TestCaseError> {
    let (body, mut attestations): (Vec<u8>, Vec<Attestation>) =
        decode(bytes, 1 << 16).expect("the same fields");
    for other in ROLES.into_iter().filter(|other| *other != role) {
        attestations[0].role = other;
        let signed: Signed<T> = decode(&encode(&(&body, &attestations)), 1 << 16).expect("the same fields");
        prop_assert!(
            signed.verify(samples::DOMAIN, Scheme::Strict).is_err(),
            "{role:?} passes for {other:?}"
        );
    }
    Ok(())
}

fn as_other<T: Signable, U: Signable>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if T::TAG == U::TAG {
        return Ok(());
    }
    let read =
        decode::<Signed<U>>(bytes, 1 << 16).map(|signed| signed.verify(samples::DOMAIN, Scheme::Strict));
    prop_assert!(!matches!(read, Ok(Ok(_))), "{} passes for {}", T::TAG, U::TAG);
    Ok(())
}

macro_rules! every_type {
    ($($test:ident: $strategy:expr;)*) => {
        #[test]
        fn every_signed_type_has_random_values() {
            let drawn = BTreeSet::from([$(type_drawn(&$strategy)),*]);
            assert_eq!(drawn, signable_types());
        }

        proptest! {
            // As many in all over the types: real signatures take their time.
            #![proptest_config(ProptestConfig { cases: cases().cases / 14, ..cases() })]
            $(
                #[test]
                fn $test(value in $strategy, role in prop::sample::select(&ROLES[..]), bit in any::<prop::sample::Index>()) {
                    check(&value, role, bit.index(1 << 16))?;
                }
            )*
        }
    };
}

fn type_drawn<S: Strategy>(_: &S) -> String {
    let path = std::any::type_name::<S::Value>();
    path.rsplit("::").next().expect("a path has an end").to_owned()
}

every_type! {
    a_device_has_one_meaning: device();
    a_membership_has_one_meaning: membership();
    a_deposit_has_one_meaning: deposit();
    an_account_op_has_one_meaning: account_op();
    a_vote_has_one_meaning: vote();
    a_vote_for_an_end_has_one_meaning: close_vote();
    a_payout_has_one_meaning: withdrawal_paid();
    a_recorded_has_one_meaning: recorded();
    a_receipt_has_one_meaning: receipt();
    a_final_has_one_meaning: closing();
    a_redeem_ack_has_one_meaning: redeem_ack();
    an_accepted_has_one_meaning: accepted();
    terms_have_one_meaning: terms();
    an_advert_has_one_meaning: advert();
    a_licence_has_one_meaning: licence();
    a_manifest_has_one_meaning: manifest();
    a_checkpoint_has_one_meaning: checkpoint();
    a_claim_has_one_meaning: claim();
    a_ballot_has_one_meaning: ballot();
}

/// Messages and lines that are whole, to be damaged.
fn whole() -> impl Strategy<Value = Vec<u8>> {
    let sign =
        |record: Receipt| sign(record, samples::DOMAIN, Role::Payer, &Signer::simulated([4; 32])).signed();
    prop_oneof![
        (receipt(), claim()).prop_map(move |(receipt, claim)| {
            let claim =
                protocol::signed::sign(claim, samples::DOMAIN, Role::Payee, &Signer::simulated([5; 32]));
            Message::<Wire>::Redeem { receipt: sign(receipt), claim: claim.signed() }.to_bytes()
        }),
        (receipt(), any::<[u8; 16]>(), any::<u32>()).prop_map(move |(receipt, job, up_to)| {
            Message::<Wire>::Pay { receipt: sign(receipt), allowances: vec![(JobId(job), up_to)] }.to_bytes()
        }),
        receipt().prop_map(move |receipt| Record::Receipt(sign(receipt)).to_bytes()),
        (receipt(), any::<u64>()).prop_map(move |(receipt, amount)| Record::PaidOut {
            receipt: sign(receipt),
            amount
        }
        .to_bytes()),
    ]
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn arbitrary_bytes_are_refused_or_are_what_they_say(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(message) = Message::check(&bytes, samples::DOMAIN, Scheme::Simulated) {
            prop_assert_eq!(message.to_wire().to_bytes(), bytes.clone());
        }
        if let Ok(record) = Record::from_bytes(&bytes) {
            prop_assert_eq!(record.to_bytes(), bytes);
        }
    }

    #[test]
    fn damaged_messages_and_lines_are_refused_or_are_what_they_say(
        whole in whole(), at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = whole;
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut.index(3));
        if let Ok(message) = Message::check(&bytes, samples::DOMAIN, Scheme::Simulated) {
            prop_assert_eq!(message.to_wire().to_bytes(), bytes.clone());
        }
        if let Ok(record) = Record::from_bytes(&bytes) {
            prop_assert_eq!(record.to_bytes(), bytes);
        }
    }

    #[test]
    fn arbitrary_text_is_no_ticket(text in "(sharemesh1)?[a-z2-7]{0,300}", other in any::<String>()) {
        prop_assert!(Ticket::from_text(&text).is_err());
        prop_assert!(Ticket::from_text(&other).is_err());
    }
}
