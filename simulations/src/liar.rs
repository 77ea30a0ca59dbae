//! An issuer that lies: it votes for whatever it is asked, records what it does not hold, names balances at will, tells
//! of credits that never entered, and has seen twice what other operators have.

use protocol::agreeing::Agreeing;
use protocol::books::{BooksMessage, LeafKind, Leaves};
use protocol::ids::{AccountId, Digest, DomainId, RecordId};
use protocol::keys::Signer;
use protocol::ledger::agreement::{Ballot, Phase};
use protocol::ledger::checkpoint::{AccountLeaf, Checkpoint};
use protocol::ledger::issuer::Balance;
use protocol::ledger::merkle::{SumRoot, Sums};
use protocol::ledger::quorum::Fact;
use protocol::ledger::records::{CloseVote, Deposit, Epoch, Recorded, RedeemAck, Source, Vote};
use protocol::message::{Checked, Message, News};
use protocol::signed::{Role, Signable, Verified, sign};

/// What it says of every account.
pub const RICH: Balance = Balance { cash: u64::MAX / 4, earned: 0, held: 0, as_of: u64::MAX / 4 };

/// Returns what it answers a node of `account`; nothing where it does as its program says.
#[must_use]
pub fn answer(
    signer: &Signer,
    domain: DomainId,
    account: AccountId,
    message: &Message<Checked>,
) -> Option<Message<Checked>> {
    let answer = if let Message::Step { op, .. } = message {
        let vote =
            Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: Epoch(0), settled: None };
        Message::Voted { vote: by(signer, domain, vote), balance: RICH }
    } else if let Message::Fact(Fact::Step(certificate)) = message {
        let recorded = Recorded { op: certificate.op.id(), epoch: Epoch(0) };
        Message::Recorded { recorded: by(signer, domain, recorded), balance: RICH }
    } else if let Message::Redeem { receipt, .. } = message {
        let (channel, amount) = (receipt.channel, u64::MAX / 4);
        let ack = RedeemAck { channel, amount, closed: true, epoch: Epoch(0) };
        Message::Redeemed(by(signer, domain, ack))
    } else if let Message::CloseVoted(vote) = message {
        let less = CloseVote { amount: vote.amount / 2, ..CloseVote::clone(vote) };
        Message::CloseVoted(by(signer, domain, less))
    } else if let Message::FactsQuery(since) = message {
        Message::Facts { first: *since, names: vec![RecordId([0xee; 32])] }
    } else if let Message::Agreeing(message) = message {
        Message::Agreeing(about_checkpoint(signer, domain, message)?)
    } else if let Message::Books(BooksMessage::PageQuery(name)) = message {
        Message::Books(BooksMessage::Page(*name, of_nobody(name.kind)))
    } else if let Message::Deposit(deposit) = message {
        let more = Deposit { amount: deposit.amount.saturating_mul(2), ..Deposit::clone(deposit) };
        Message::Deposit(by(signer, domain, more))
    } else if let Message::Noticed(known) = message {
        let (reference, epoch, source) = (Digest(known.0), Epoch(0), Source::Outside);
        let deposit = Deposit { reference, account, amount: u64::MAX / 4, epoch, source };
        Message::Notice(News::Deposit(by(signer, domain, deposit)))
    } else {
        return None;
    };
    Some(answer)
}

/// Votes for whatever anybody votes for, twice, and proposes in every round a checkpoint that no facts lead to.
fn about_checkpoint(
    signer: &Signer,
    domain: DomainId,
    message: &Agreeing<Checked>,
) -> Option<Agreeing<Checked>> {
    match message {
        Agreeing::Ballot(ballot) => {
            let commit = Ballot { phase: Phase::Commit, ..Ballot::clone(ballot) };
            Some(Agreeing::Ballot(by(signer, domain, commit)))
        }
        Agreeing::Round { previous, round } => {
            let root = SumRoot { hash: Digest([9; 32]), count: 1, sums: Sums::default() };
            let checkpoint = Checkpoint {
                epoch: Epoch(0),
                previous: *previous,
                accounts: root,
                channels: root,
                deposited: 0,
                withdrawn: 0,
                facts: Digest([round.to_be_bytes()[3]; 32]),
            };
            Some(Agreeing::Proposal { round: *round, checkpoint: Box::new(checkpoint), prepares: Vec::new() })
        }
        Agreeing::NamesQuery { facts, from } => {
            Some(Agreeing::Names { facts: *facts, from: *from, names: vec![RecordId([0xee; 32])] })
        }
        Agreeing::Proposal { .. } | Agreeing::Names { .. } | Agreeing::Signed(_) | Agreeing::Locked(_) => {
            None
        }
    }
}

/// Returns the leaves of books in which one account has everything.
fn of_nobody(kind: LeafKind) -> Leaves {
    match kind {
        LeafKind::Accounts => {
            let leaf = AccountLeaf {
                account: AccountId([1; 32]),
                cash: RICH.cash,
                earned: 0,
                held: 0,
                steps: 0,
                head: RecordId::NONE,
            };
            Leaves::Accounts(vec![leaf], None)
        }
        LeafKind::Channels => Leaves::Channels(Vec::new(), None),
    }
}

fn by<T: Signable>(signer: &Signer, domain: DomainId, record: T) -> Verified<T> {
    sign(record, domain, Role::Issuer, signer)
}
