//! When a payer gives a channel up, and what it cannot open: the same at every issuer, whenever word comes to it.

use protocol::ids::ChannelId;
use protocol::ledger::issuer::IssuerError;
use protocol::ledger::quorum::Certificate;
use protocol::ledger::records::{AccountOp, Epoch, OpBody, Vote};
use protocol::message::Checked;
use protocol::signed::{Role, Verified, sign};

use crate::network::{DEPOSIT, Honest, domain, issuer_signer, manifest, opening, payer, signer, terms};

/// Returns a step with the votes of three issuers.
fn certificate(op: &Verified<AccountOp>) -> Certificate<Checked> {
    let vote =
        Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None };
    let by = |place| sign(vote.clone(), domain(), Role::Issuer, &issuer_signer(place));
    let terms = matches!(op.body, OpBody::OpenChannel(_)).then(terms);
    Certificate { op: op.clone(), terms, votes: [0, 1, 2].map(by).into() }
}

fn gives_up(last: &Verified<AccountOp>, channel: ChannelId) -> Verified<AccountOp> {
    let (sequence, previous) = (last.sequence + 1, last.id());
    let body = OpBody::Expire(channel);
    let op = AccountOp { account: payer(), sequence, previous, epoch: Epoch(0), body };
    sign(op, domain(), Role::Owner, &signer(1))
}

/// Says whether the channel's time is over in an epoch, grace included.
fn is_over(issuer: &Honest, epoch: u32) -> bool {
    !issuer.witness.clone().promise_expired(Epoch(epoch)).is_empty()
}

#[test]
fn a_channel_given_up_expires_by_the_steps_own_epoch_and_not_by_a_vote_or_the_day_word_comes() {
    let mut issuer = Honest::new(0);
    let opening = opening(DEPOSIT / 2);
    issuer.witness.certify(&certificate(&opening), Epoch(0)).expect("by a quorum");
    assert!(!is_over(&issuer, 5) && is_over(&issuer, 6), "its last epoch is 2, and grace is 3");

    let step = gives_up(&opening, opening.id().into());
    issuer.witness.vote(&step, None, Epoch(0)).expect("within the rules");
    assert!(!is_over(&issuer, 5), "a vote alone ends nothing");
    issuer.witness.certify(&certificate(&step), Epoch(1)).expect("by a quorum");
    assert!(!is_over(&issuer, 4) && is_over(&issuer, 5), "the step is of epoch 0: the last one is 1");

    let again = gives_up(&step, opening.id().into());
    let refused = issuer.witness.vote(&again, None, Epoch(0)).map(drop);
    assert_eq!(refused, Err(IssuerError::Closed));
    issuer.witness.certify(&certificate(&again), Epoch(1)).expect("a quorum may see it otherwise");
    assert!(is_over(&issuer, 5), "it expires no later for that");
}

#[test]
fn a_channel_beyond_what_an_account_has_is_refused_with_both_amounts() {
    let mut issuer = Honest::new(0);
    let fee = manifest().open_fee;
    let all = opening(DEPOSIT - fee);
    let more = opening(DEPOSIT - fee + 1);

    let refused = issuer.witness.vote(&more, Some(&terms()), Epoch(0)).map(drop);
    assert_eq!(refused, Err(IssuerError::NotEnough { needed: DEPOSIT + 1, available: DEPOSIT }));
    assert!(issuer.witness.vote(&all, Some(&terms()), Epoch(0)).is_ok());
}
