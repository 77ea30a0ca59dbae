//! Which divisions of the base a network takes, and which manifests there can be.

use proptest::prelude::*;
use protocol::advert::Incentive;
use protocol::ids::AccountId;
use protocol::ledger::money::QUANTUM;
use protocol::ledger::records::{SplitLine, SplitRole, Terms, TermsError};
use protocol::licence::open_licence;
use protocol::manifest::{Manifest, PROVIDER_FLOOR_BPS_MIN};
use protocol::signed::Signable as _;

use crate::common::{MODEL, account, domain, manifest, many_cases, terms};

fn check(manifest: &Manifest, split: Vec<SplitLine>) -> Result<(), TermsError> {
    let terms = Terms { split, ..Terms::clone(&terms(2, 1, Incentive::Exchange, 0)) };
    terms.check(manifest, open_licence(MODEL, domain()))
}

fn split(manifest: &Manifest, shares: (u16, u16, u16), to: AccountId) -> Vec<SplitLine> {
    let line = |role, account, bps| SplitLine { role, account, bps };
    vec![
        line(SplitRole::Provider, to, shares.0),
        line(SplitRole::Pool, manifest.pools[0].account, shares.1),
        line(SplitRole::Network, manifest.network, shares.2),
    ]
}

proptest! {
    #![proptest_config(many_cases())]

    #[test]
    fn a_provider_gets_at_least_the_floor_whatever_a_manifest_says(
        provider in 0..=10_000_u16,
        pool in 0..3_500_u16,
        network in 0..3_500_u16,
        floor in prop_oneof![Just(7_000_u16), 0..10_000_u16],
        mends in any::<bool>(),
    ) {
        // Half of the cases add up, or the rule would hide behind the sum.
        let provider = if mends { 10_000 - pool - network } else { provider };
        let manifest =
            Manifest { pool_bps: pool, network_bps: network, provider_floor_bps: floor, ..manifest() };
        let checked = check(&manifest, split(&manifest, (provider, pool, network), account(2)));

        let whole = u64::from(provider) + u64::from(pool) + u64::from(network) == 10_000;
        let least = floor.max(PROVIDER_FLOOR_BPS_MIN);
        let expected = match (whole, provider >= least) {
            (false, _) => Err(TermsError::Sum),
            (true, false) => Err(TermsError::Floor),
            (true, true) => Ok(()),
        };
        prop_assert_eq!(checked, expected);
    }

    #[test]
    fn a_share_that_goes_elsewhere_is_refused(line in 0..3_usize, to in 100..200_u8) {
        let manifest = manifest();
        let mut split = split(&manifest, (9_200, 500, 300), account(2));
        prop_assert_eq!(check(&manifest, split.clone()), Ok(()));
        split[line].account = account(to);
        let expected = if line == 0 { TermsError::Payee } else { TermsError::Shares };
        prop_assert_eq!(check(&manifest, split), Err(expected));
    }

    #[test]
    fn a_manifest_has_fees_of_a_quantum_and_leaves_the_floor(
        open in 0..2 * QUANTUM,
        pay in 0..2 * QUANTUM,
        withdraw in 0..2 * QUANTUM,
        floor in 6_000..=9_200_u16,
    ) {
        let manifest = Manifest {
            open_fee: open,
            pay_fee: pay,
            withdraw_fee: withdraw,
            provider_floor_bps: floor,
            ..manifest()
        };
        let holds = open.min(pay).min(withdraw) >= QUANTUM && floor >= PROVIDER_FLOOR_BPS_MIN;
        prop_assert_eq!(manifest.check_bounds().is_ok(), holds);
    }
}
