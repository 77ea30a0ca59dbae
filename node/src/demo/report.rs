//! What the demo says at the end, and whether it holds.

use serde::Serialize;

use crate::api::views::{BalanceView, BooksView, CandidateView, JobAccount, JobView, Money, SplitView};
use crate::cli::run::{self, Answer};
use crate::cli::terminal::facts;
use crate::exit::Failure;

/// What each node's own store says it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Balances {
    pub(super) issuer: BalanceView,
    pub(super) provider: BalanceView,
    pub(super) consumer: BalanceView,
}

/// What `demo --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    text: String,
    model: String,
    job: String,
    provider: String,
    provider_name: String,
    why: String,
    candidates: Vec<CandidateView>,
    tokens_in: u32,
    tokens_out: u32,
    ttft_ms: u64,
    tokens_per_s: f64,
    finish: String,
    price: Money,
    split: Vec<SplitView>,
    receipt_consumer: Option<String>,
    receipt_provider: Option<String>,
    before: Balances,
    after: Balances,
    conserved: bool,
    /// The sums, and what does not add up.
    conservation: Vec<String>,
    #[serde(skip)]
    account: JobAccount,
}

impl Report {
    pub(super) fn new(
        answer: &Answer,
        account: JobAccount,
        at_consumer: JobView,
        at_provider: JobView,
        before: Balances,
        after: Balances,
    ) -> Self {
        let (conserved, conservation) = conserved(&after);
        Self {
            text: answer.text.clone(),
            model: account.model.clone(),
            job: account.job.clone(),
            provider: account.provider.clone(),
            provider_name: account.provider_name.clone(),
            why: account.why.clone(),
            candidates: answer.candidates.clone(),
            tokens_in: account.tokens_in,
            tokens_out: account.tokens_out,
            ttft_ms: account.ttft_ms,
            tokens_per_s: account.tokens_per_s,
            finish: account.finish.clone(),
            price: account.price.clone(),
            split: account.split.clone(),
            receipt_consumer: at_consumer.receipt,
            receipt_provider: at_provider.receipt,
            before,
            after,
            conserved,
            conservation,
            account,
        }
    }

    /// Returns the report as people read it.
    pub(super) fn describe(&self) -> String {
        let balance = |before: &BalanceView, after: &BalanceView| {
            format!("{} before, {} after", before.available.credits, after.available)
        };
        let account = JobAccount { receipt: None, ..self.account.clone() };
        let own = facts(&[
            ("receipt", self.describe_receipts()),
            ("issuer", balance(&self.before.issuer, &self.after.issuer)),
            ("provider", balance(&self.before.provider, &self.after.provider)),
            ("consumer", balance(&self.before.consumer, &self.after.consumer)),
            ("sums", self.conservation.join("; ")),
        ]);
        let conserved = if self.conserved { "yes" } else { "NO" };
        format!("{}\n{own}credits conserved: {conserved}", run::describe(&account))
    }

    fn describe_receipts(&self) -> String {
        match (&self.receipt_consumer, &self.receipt_provider) {
            (Some(one), Some(other)) if one == other => format!("{one} in both ledgers"),
            (one, other) => {
                let text = |id: &Option<String>| id.clone().unwrap_or_else(|| "none".to_owned());
                format!("consumer has {}, provider has {}", text(one), text(other))
            }
        }
    }

    /// Fails if the ledgers disagree.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.receipt_consumer.is_none() || self.receipt_consumer != self.receipt_provider {
            return Err(Failure::internal(
                "the two ledgers do not hold the same receipt: please report this",
            ));
        }
        if !self.conserved {
            return Err(Failure::internal("credits were not conserved: please report this"));
        }
        Ok(())
    }
}

/// Adds up twice: the issuer's books, and what the parties themselves say they have.
fn conserved(balances: &Balances) -> (bool, Vec<String>) {
    let Some(books) = &balances.issuer.books else {
        return (false, vec!["the issuer showed no books".to_owned()]);
    };
    let in_circulation = i128::from(books.deposited.nano) - i128::from(books.withdrawn.nano);
    let booked: i128 = books.accounts.iter().map(|book| sum(&[&book.cash, &book.earned, &book.held])).sum();
    let parties = [&balances.issuer, &balances.provider, &balances.consumer];
    let own = own_sum(&parties, books);

    let mut lines = vec![
        format!("issuer's books {} of {} in circulation", credits(booked), credits(in_circulation)),
        format!("parties' own {}", credits(own)),
    ];
    let mut holds = books.conserved && booked == in_circulation && own == in_circulation;
    for party in parties {
        let booked = books.accounts.iter().find(|book| book.account == party.account);
        let booked = booked.map_or(0, |book| sum(&[&book.cash, &book.earned]));
        if booked != sum(&[&party.available]) {
            holds = false;
            lines.push(format!(
                "{} has {} but is booked {}",
                party.account,
                party.available,
                credits(booked)
            ));
        }
    }
    (holds, lines)
}

/// What the parties have by their own stores, and what belongs to nobody here: the pools and the network.
fn own_sum(parties: &[&BalanceView], books: &BooksView) -> i128 {
    let is_party = |account: &str| parties.iter().any(|party| party.account == account);
    let own: i128 = parties.iter().map(|party| sum(&[&party.available])).sum();
    let others = books.accounts.iter().filter(|book| !is_party(&book.account));
    let others: i128 = others.map(|book| sum(&[&book.cash, &book.earned, &book.held])).sum();
    // A channel that is still open is escrowed whole at the issuer, whatever was signed inside it.
    let held: i128 =
        books.accounts.iter().filter(|book| is_party(&book.account)).map(|book| sum(&[&book.held])).sum();
    own + others + held
}

fn sum(amounts: &[&Money]) -> i128 {
    amounts.iter().map(|amount| i128::from(amount.nano)).sum()
}

fn credits(nano: i128) -> String {
    let sign = if nano < 0 { "-" } else { "" };
    let nano = u64::try_from(nano.unsigned_abs()).unwrap_or(u64::MAX);
    format!("{sign}{}", Money::from_nano(nano).credits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::views::BookView;

    fn party(account: &str, nano: u64) -> BalanceView {
        BalanceView {
            account: account.to_owned(),
            available: nano.into(),
            cash: nano.into(),
            ..BalanceView::default()
        }
    }

    fn book(account: &str, nano: u64, held: u64) -> BookView {
        BookView { account: account.to_owned(), cash: nano.into(), held: held.into(), ..BookView::default() }
    }

    /// 100 deposited for the consumer, of which 10 were paid: 9 to the provider, 1 to the pool.
    fn balances() -> Balances {
        let books = BooksView {
            deposited: 100.into(),
            available: 100.into(),
            conserved: true,
            accounts: vec![book("c", 90, 0), book("p", 9, 0), book("pool", 1, 0)],
            ..BooksView::default()
        };
        Balances {
            issuer: BalanceView { books: Some(books), ..party("i", 0) },
            provider: party("p", 9),
            consumer: party("c", 90),
        }
    }

    #[test]
    fn sums_that_agree_are_conserved() {
        assert!(conserved(&balances()).0);
    }

    #[test]
    fn what_is_escrowed_in_an_open_channel_is_not_lost() {
        let mut balances = balances();
        balances.consumer = party("c", 60);
        if let Some(books) = &mut balances.issuer.books {
            books.accounts[0] = book("c", 60, 30);
        }

        assert!(conserved(&balances).0);
    }

    #[test]
    fn a_party_that_says_something_else_than_the_books_is_found() {
        let mut balances = balances();
        balances.provider = party("p", 10);

        let (holds, lines) = conserved(&balances);

        assert!(!holds);
        assert!(lines.iter().any(|line| line.contains("p has")), "{lines:?}");
    }

    #[test]
    fn books_that_do_not_add_up_are_found() {
        let mut balances = balances();
        if let Some(books) = &mut balances.issuer.books {
            books.accounts[2] = book("pool", 2, 0);
        }

        assert!(!conserved(&balances).0);
    }

    #[test]
    fn two_ledgers_without_the_same_receipt_fail_the_demo() {
        let report = |one: Option<&str>, other: Option<&str>| {
            let job = |id: Option<&str>| JobView { receipt: id.map(str::to_owned), ..JobView::default() };
            let account = JobAccount::default();
            Report::new(&Answer::default(), account, job(one), job(other), balances(), balances())
        };

        assert!(report(Some("a"), Some("a")).check().is_ok());
        assert!(report(Some("a"), Some("b")).check().is_err());
        assert!(report(None, None).check().is_err());
    }
}
