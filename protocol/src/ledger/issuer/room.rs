//! Room for accounts: an account that a channel will pay has its place from the opening on, and deposits have places of
//! their own.

use alloc::collections::BTreeSet;

use super::{ACCOUNTS_MAX, Account, Channel, Issuer, IssuerError, Taking};
use crate::ids::AccountId;
use crate::ledger::quorum::Certificate;
use crate::ledger::records::{OpBody, Terms};
use crate::message::Checked;
use crate::mutant;

/// To how many accounts payments and channels may bring the books. Each costs them a fee alone, for what is put into a
/// new account can be moved on to the next one; so the rest is for deposits, which issuers sign: whatever somebody pays who
/// is no issuer, a ticket, a grant or a deposit makes an account. One of several issuers that lies can fill the rest too, by
/// gifts of a nano-credit, as many as [`GIFTS_MAX`](crate::ledger::witness::GIFTS_MAX) between two checkpoints.
pub const ACCOUNTS_BY_STEPS_MAX: usize = ACCOUNTS_MAX / 4 * 3;

impl Issuer {
    /// Checks that a step may bring these accounts into the books. Whoever is in them, or will be when a channel that is
    /// open pays, has a place.
    pub(super) fn check_room(
        &self,
        accounts: impl IntoIterator<Item = AccountId>,
        taking: Taking,
    ) -> Result<(), IssuerError> {
        match taking {
            Taking::Judge | Taking::AtOnce if !mutant::is_in("deposits-without-room") => {
                self.check_places(accounts, ACCOUNTS_BY_STEPS_MAX)
            }
            Taking::Judge | Taking::AtOnce | Taking::Certified => self.check_places(accounts, ACCOUNTS_MAX),
            Taking::JudgeAgain | Taking::Again => Ok(()),
        }
    }

    /// Checks that a deposit may bring an account into the books.
    pub(super) fn check_room_for(&self, account: AccountId) -> Result<(), IssuerError> {
        self.check_places([account], ACCOUNTS_MAX)
    }

    /// Keeps a place for an account that a deposit in our own journal brings into the books: it was found when the line was
    /// written, perhaps before channels had places, and rules that came later do not hold for it.
    pub fn keep_place(&mut self, account: AccountId) {
        if !self.accounts.contains_key(&account) {
            self.awaited.insert(account);
        }
    }

    /// The same for those whom a certified step in our own journal brings into the books.
    pub fn keep_places(&mut self, certificate: &Certificate<Checked>) {
        let to = if let OpBody::Pay { to, .. } = &certificate.op.body { Some(*to) } else { None };
        let paid = certificate.terms.as_deref().into_iter().flat_map(paid_by);
        to.into_iter().chain(paid).for_each(|account| self.keep_place(account));
    }

    fn check_places(
        &self,
        accounts: impl IntoIterator<Item = AccountId>,
        most: usize,
    ) -> Result<(), IssuerError> {
        let has_place = |id: &AccountId| self.accounts.contains_key(id) || self.awaited.contains(id);
        let new: BTreeSet<AccountId> = accounts.into_iter().filter(|id| !has_place(id)).collect();
        let places = self.accounts.len().saturating_add(self.awaited.len());
        if new.is_empty() || places.saturating_add(new.len()) <= most {
            Ok(())
        } else {
            Err(IssuerError::Full)
        }
    }

    /// Returns an account, which is in the books from now on.
    pub(super) fn account_in(&mut self, id: AccountId) -> &mut Account {
        self.awaited.remove(&id);
        self.accounts.entry(id).or_default()
    }

    /// Puts an account into the books in place of the one that was there.
    pub(super) fn put_account(&mut self, id: AccountId, account: Account) {
        self.awaited.remove(&id);
        self.accounts.insert(id, account);
    }

    /// Keeps a place for every account that an open channel pays and that is not in the books yet: it comes into them when the
    /// channel pays or ends, and that must not fail.
    pub(super) fn await_accounts(&mut self, channel: &Channel) {
        if channel.closed || mutant::is_in("payees-unawaited") {
            return;
        }
        let new = channel.accounts().filter(|id| !self.accounts.contains_key(id));
        self.awaited.extend(new);
    }
}

impl Channel {
    /// Returns the accounts that it pays or returns credits to.
    pub(super) fn accounts(&self) -> impl Iterator<Item = AccountId> + '_ {
        paid_by(&self.terms).chain([self.payer])
    }
}

/// Returns the accounts that a channel on these terms pays.
pub(super) fn paid_by(terms: &Terms) -> impl Iterator<Item = AccountId> + '_ {
    let builder = terms.markup.map(|markup| markup.builder);
    terms.split.iter().map(|line| line.account).chain(builder).chain([terms.payee_account])
}
