//! How many steps of each account several issuers take between two checkpoints, so that nobody fills the books for all.
//!
//! Accounts cost next to nothing: a limit for each of them would bound nobody who makes many. Credits cannot be in two
//! accounts of one checkpoint. So half of the room belongs to accounts by what they held at the last checkpoint, and
//! nobody else can take it; the other half is for whoever comes first, new accounts among them.

/// Most steps that are taken between two checkpoints, give or take those under way. On average two facts more come with
/// each, what a channel has paid and how it has ended: all of them should fit one checkpoint.
pub const STEPS_MAX: u64 = 40_960;

/// The part that belongs to accounts by what they held.
pub const OWN_MAX: u64 = STEPS_MAX / 2;

/// The part for whoever comes first.
pub const COMMON_MAX: u64 = STEPS_MAX - OWN_MAX;

/// Most of the common part for one account: a mistake in one program leaves the rest to everybody else.
pub const COMMON_OF_ONE_MAX: u64 = COMMON_MAX / 8;

/// Most beginnings and rotations that are taken between two checkpoints beyond their accounts' own steps: they cost no fee,
/// so they must not use up what others pay for. As many as a checkpoint has left.
pub const KEY_STEPS_MAX: u64 = 8_192;

/// The same of one account.
pub const KEY_STEPS_OF_ONE_MAX: u64 = 4;

/// Returns how many steps are an account's own that held so many of all nano-credits at the last checkpoint.
#[must_use]
pub fn own_steps(held: u128, all: u128) -> u64 {
    let steps = held.min(all).saturating_mul(u128::from(OWN_MAX)).checked_div(all).unwrap_or(0);
    u64::try_from(steps).unwrap_or(OWN_MAX)
}

/// Says whether an account with `own` steps of its own, of which it has `made` so many, may make another, when `common`
/// steps of all accounts were beyond their own.
#[must_use]
pub const fn has_room(made: u64, own: u64, common: u64) -> bool {
    made < own || (common < COMMON_MAX && made.saturating_sub(own) < COMMON_OF_ONE_MAX)
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Accounts that make steps: what each held, how many steps are its own, and how many it has made.
    struct Crowd {
        accounts: Vec<(u64, u64)>,
        common: u64,
    }

    impl Crowd {
        fn new(held: &[u128]) -> Self {
            let all = held.iter().sum();
            Self { accounts: held.iter().map(|held| (own_steps(*held, all), 0)).collect(), common: 0 }
        }

        /// Lets an account make as many steps as it may, at most so many; returns how many.
        fn make(&mut self, place: usize, wanted: u64) -> u64 {
            let (own, made) = &mut self.accounts[place];
            let before = *made;
            while *made - before < wanted && has_room(*made, *own, self.common) {
                self.common += u64::from(made >= own);
                *made += 1;
            }
            *made - before
        }
    }

    #[test]
    fn any_number_of_accounts_without_credits_leaves_everybody_its_own_steps() {
        let mut held = vec![1_000, 3_000];
        held.resize(5_000, 0);
        let mut crowd = Crowd::new(&held);
        let taken: u64 = (2..5_000).map(|place| crowd.make(place, u64::MAX)).sum();

        assert_eq!(taken, COMMON_MAX);
        assert_eq!([0, 1].map(|place| crowd.make(place, u64::MAX)), [OWN_MAX / 4, OWN_MAX / 4 * 3]);
    }

    #[test]
    fn one_account_takes_an_eighth_of_what_is_common() {
        let mut crowd = Crowd::new(&[0, 0]);
        assert_eq!([0, 1].map(|place| crowd.make(place, u64::MAX)), [COMMON_OF_ONE_MAX; 2]);
    }

    proptest! {
        #[test]
        fn whoever_comes_first_nobody_loses_its_own_steps_and_all_of_them_fit(
            held in prop::collection::vec(0..u128::from(u64::MAX), 1..40),
            order in prop::collection::vec((any::<prop::sample::Index>(), 0..STEPS_MAX), 0..200),
        ) {
            let mut crowd = Crowd::new(&held);
            for (place, wanted) in order {
                crowd.make(place.index(held.len()), wanted);
            }
            for place in 0..held.len() {
                crowd.make(place, u64::MAX);
            }

            prop_assert!(crowd.accounts.iter().all(|(own, made)| made >= own));
            prop_assert!(crowd.accounts.iter().map(|(_, made)| made).sum::<u64>() <= STEPS_MAX);
        }
    }
}
