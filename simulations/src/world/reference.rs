//! The books of an issuer that is alone beside what plain sums over its journal give, after every step of it.

use protocol::node::Effect;

use crate::checks::Always;
use crate::reference::Reference;

use super::{FEW_HOSTS, World};

impl World {
    /// Begins again with what is in the journal of an issuer that starts.
    pub(super) fn read_reference(&mut self, host: usize) {
        let config = &self.hosts[host].config;
        if config.issuer.is_none() || config.manifest.issuers.len() != 1 {
            return;
        }
        let mut reference = Reference::new(config.manifest.clone());
        self.records(host).for_each(|line| _ = reference.take(&line));
        self.reference = Some(reference);
    }

    /// Follows what an issuer writes, and compares.
    pub(super) fn compare_books(&mut self, host: usize, effects: &[Effect]) {
        if self.hosts[host].config.issuer.is_none() || self.hosts.len() > FEW_HOSTS {
            return;
        }
        let Some(reference) = &mut self.reference else { return };
        for effect in effects {
            if let Effect::Record(line) | Effect::Note(line) = effect {
                reference.take(line);
            }
        }
        let holdings = reference.holdings();
        let Some(books) = self.hosts[host].node.as_ref().and_then(|node| node.books()) else { return };
        let holds = |account| {
            let balance = books.balance(account);
            (i128::from(balance.available()), i128::from(balance.held))
        };
        let known = books.balances().map(|(account, _)| account).chain(holdings.keys().copied());
        let other = known.into_iter().find_map(|account| {
            let (booked, summed) = (holds(account), holdings.get(&account).copied().unwrap_or_default());
            (booked != (summed.available, summed.held)).then_some((account, booked, summed))
        });
        let now = self.now;
        self.always(Always::BooksFollow, other.is_none(), || {
            format!("{now}: the books of host {host} are not what it wrote: {other:?}")
        });
    }
}
