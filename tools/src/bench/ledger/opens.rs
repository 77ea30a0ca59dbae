//! Channels opened per second: by the issuer of a network that has one, and by four of which a quorum must agree.
//!
//! Every message is read and checked as it arrives from a network, and no answer leaves before what it states is on the
//! disk; the network in between is left out. Each account has one step on its way.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use node::journal::{Journal, Options, Urgency};
use protocol::ids::{Digest, DomainId};
use protocol::keys::{Scheme, Signer};
use protocol::ledger::issuer::Issuer;
use protocol::ledger::quorum::{Answers, Certificate, Fact};
use protocol::ledger::records::{AccountOp, Deposit, Epoch, Recorded, Source, Terms, Vote};
use protocol::ledger::witness::Witness;
use protocol::manifest::{self, Manifest};
use protocol::message::{Checked, Message, Wire};
use protocol::record::Record;
use protocol::signed::{Role, Verified, sign};
use serde::Serialize;
use tempfile::TempDir;

use super::super::cluster::folder;
use super::rates::{home, per_s};
use super::records::{Payer, terms};

/// Accounts that open channels at the same time.
const ACCOUNTS: usize = 64;

const NOW: Epoch = Epoch(0);

/// Channels opened per second.
#[derive(Debug, Serialize)]
pub(super) struct Opens {
    /// By the issuer of a network that has one.
    pub(super) n1: f64,
    /// By the issuers of a network that has four, all of them and the owners on this machine.
    pub(super) n4: f64,
    #[serde(skip)]
    pub(super) opened: usize,
}

pub(super) async fn measure(rounds: usize) -> Result<Opens> {
    let opened = rounds * ACCOUNTS;
    Ok(Opens { n1: one(rounds).await?, n4: four(rounds).await?, opened })
}

/// A step with the terms it names.
type Step = (Verified<AccountOp>, Verified<Terms>);

/// Returns what each account opens, in rounds, and what it has been given before.
fn steps(manifest: &Manifest, rounds: usize) -> (Vec<Vec<Step>>, Vec<Deposit>) {
    let payee = Signer::from_seed([3; 32]);
    let mut payers: Vec<_> = (0..ACCOUNTS).map(Payer::new).collect();
    let terms: Vec<_> =
        payers.iter().map(|payer| terms(manifest, &payee, payee.public().into(), payer.id())).collect();
    let amount = manifest.grant_budget / (2 * ACCOUNTS as u64);
    let deposits = payers.iter().map(|payer| {
        let (account, epoch, source) = (payer.id(), NOW, Source::Budget);
        Deposit { reference: Digest(payer.id().0), account, amount, epoch, source }
    });
    let deposits = deposits.collect();
    let mut round = || {
        let each = payers.iter_mut().zip(&terms);
        each.map(|(payer, terms)| (payer.open(terms, manifest.domain()), terms.clone())).collect()
    };
    ((0..rounds).map(|_| round()).collect(), deposits)
}

fn asking((op, terms): &Step) -> Vec<u8> {
    Message::<Wire>::Step { op: op.signed(), terms: Some(terms.signed()) }.to_bytes()
}

async fn one(rounds: usize) -> Result<f64> {
    let (manifest, signer) = home();
    let domain = manifest.domain();
    let mut books = Issuer::new(manifest.clone());
    let (steps, deposits) = steps(&manifest, rounds);
    for deposit in &deposits {
        books.deposit(deposit)?;
    }
    let asked: Vec<Vec<_>> = steps.iter().map(|round| round.iter().map(asking).collect()).collect();
    let folder = folder()?;
    let (mut journal, _) = Journal::open(&folder.path().join("journal"), Options::default(), |_, _, _| {})?;
    let begun = Instant::now();
    for round in &asked {
        for bytes in round {
            let Message::Step { op, terms } = Message::check(bytes, domain, Scheme::Strict)? else {
                anyhow::bail!("another message was read")
            };
            let terms = terms.context("an opening has terms")?;
            books.apply(&op, Some(&terms), NOW)?;
            let vote =
                Vote { op: op.id(), account: op.account, sequence: op.sequence, epoch: NOW, settled: None };
            black_box(sign(vote, domain, Role::Issuer, &signer));
            black_box(sign(Recorded { op: op.id(), epoch: NOW }, domain, Role::Issuer, &signer));
            let record = Record::Stepped { op: op.signed(), terms: Some(terms.signed()), epoch: NOW };
            journal.append(&[record.to_bytes()], Urgency::Now)?;
        }
        // No answer leaves, and no account takes its next step, before this one is durable.
        while journal.committed().await? < journal.position() {}
    }
    Ok(per_s(rounds * ACCOUNTS, begun.elapsed()))
}

async fn four(rounds: usize) -> Result<f64> {
    let (manifest, signers) = of_four();
    let domain = manifest.domain();
    let (steps, deposits) = steps(&manifest, rounds);
    let mut offices = Vec::new();
    for signer in &signers {
        offices.push(Office::open(&manifest, signer, &signers, &deposits)?);
    }
    let asked: Vec<Vec<_>> = steps.iter().map(|round| round.iter().map(asking).collect()).collect();

    let begun = Instant::now();
    for (steps, asked) in steps.iter().zip(asked) {
        let mut answers = vec![Answers::default(); ACCOUNTS];
        let (mut certificates, mut committed) = (Vec::new(), 0);
        let (next, votes) = ask_all(offices, &asked, domain).await?;
        for (account, vote) in votes {
            let Message::Voted { vote, .. } = vote else { anyhow::bail!("no vote") };
            let key = vote.signer(Role::Issuer).context("an issuer votes")?;
            // The certificate leaves when the quorum is there; the last vote is not waited for.
            let was_certified = answers[account].is_certified(&manifest);
            answers[account].voted(key, vote);
            if !was_certified && answers[account].is_certified(&manifest) {
                let (op, terms) = steps[account].clone();
                let certificate = Certificate { op, terms: Some(terms), votes: answers[account].votes() };
                certificates.push(Message::Fact(Fact::Step(certificate)).to_wire().to_bytes());
            }
        }
        ensure!(certificates.len() == ACCOUNTS, "{} steps were certified", certificates.len());
        let (next, recorded) = ask_all(next, &certificates, domain).await?;
        for (account, recorded) in recorded {
            let Message::Recorded { recorded, .. } = recorded else { anyhow::bail!("no recording") };
            let key = recorded.signer(Role::Issuer).context("an issuer records")?;
            let was_committed = answers[account].is_committed(&manifest);
            answers[account].recorded(key, recorded);
            committed += usize::from(!was_committed && answers[account].is_committed(&manifest));
        }
        ensure!(committed == ACCOUNTS, "{committed} channels were committed");
        offices = next;
    }
    Ok(per_s(rounds * ACCOUNTS, begun.elapsed()))
}

/// Returns the manifest of a network of four issuers, and their keys.
fn of_four() -> (Manifest, Vec<Signer>) {
    let signers: Vec<_> = (0..4).map(|number| Signer::from_seed([10 + number; 32])).collect();
    let issuer = |signer: &Signer| manifest::Issuer {
        key: signer.public(),
        node: signer.derive(b"node").public().into(),
    };
    let issuers = signers.iter().map(issuer).collect();
    (Manifest { issuers, quorum: 3, ..home().0 }, signers)
}

/// An issuer of several with its journal.
struct Office {
    witness: Witness,
    journal: Journal,
    domain: DomainId,
    _folder: TempDir,
}

impl Office {
    fn open(manifest: &Manifest, signer: &Signer, signers: &[Signer], deposits: &[Deposit]) -> Result<Self> {
        let domain = manifest.domain();
        let mut witness = Witness::new(manifest.clone(), signer.clone());
        for deposit in deposits {
            let first = sign(deposit.clone(), domain, Role::Issuer, &signers[0]);
            let agreed = signers[1..]
                .iter()
                .fold(first, |deposit, signer| deposit.signed_also_by(domain, Role::Issuer, signer));
            witness.enter(&agreed)?;
        }
        let folder = folder()?;
        let (journal, _) = Journal::open(&folder.path().join("journal"), Options::default(), |_, _, _| {})?;
        Ok(Self { witness, journal, domain, _folder: folder })
    }

    /// Takes messages; answers when all that follows from them is on the disk.
    async fn take(&mut self, messages: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let mut answers = Vec::with_capacity(messages.len());
        for bytes in messages {
            let (answer, record) = self.judge(Message::check(bytes, self.domain, Scheme::Strict)?)?;
            let record = record.context("every one is new")?;
            self.journal.append(&[record.to_bytes()], Urgency::Now)?;
            answers.push(answer.to_wire().to_bytes());
        }
        while self.journal.committed().await? < self.journal.position() {}
        Ok(answers)
    }

    fn judge(&mut self, message: Message<Checked>) -> Result<(Message<Checked>, Option<Record>)> {
        let witness = &mut self.witness;
        if let Message::Step { op, terms } = message {
            let (vote, record) = witness.vote(&op, terms.as_ref(), NOW)?;
            return Ok((Message::Voted { vote, balance: witness.books.balance(op.account) }, record));
        }
        let Message::Fact(Fact::Step(certificate)) = message else {
            anyhow::bail!("another message was read")
        };
        let (recorded, record) = witness.certify(&certificate, NOW)?;
        let balance = witness.books.balance(certificate.op.account);
        Ok((Message::Recorded { recorded, balance }, record))
    }
}

/// Brings messages to all issuers at once; returns what they answer, as their owners have checked it, with its place
/// among the messages.
async fn ask_all(
    offices: Vec<Office>,
    messages: &[Vec<u8>],
    domain: DomainId,
) -> Result<(Vec<Office>, Vec<(usize, Message<Checked>)>)> {
    let asked = offices.into_iter().map(|mut office| {
        let messages = messages.to_vec();
        tokio::spawn(async move {
            let answers = office.take(&messages).await?;
            let check = |answer: &Vec<u8>| Message::check(answer, domain, Scheme::Strict);
            let checked = answers.iter().map(check).collect::<Result<Vec<_>, _>>()?;
            anyhow::Ok((office, checked))
        })
    });
    let (mut offices, mut answers) = (Vec::new(), Vec::new());
    for done in futures::future::join_all(asked).await {
        let (office, checked) = done??;
        offices.push(office);
        answers.extend(checked.into_iter().enumerate());
    }
    Ok((offices, answers))
}
