//! Trees of accounts, their proofs, and the log from which checkpoints are computed again.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::ids::{AccountId, ChannelId, Digest, NodeId, RecordId};
use protocol::ledger::checkpoint::{AccountLeaf, ChannelLeaf};
use protocol::ledger::epoch_log::{EpochLog, PAGE_MAX};
use protocol::ledger::issuer::Snapshot;
use protocol::ledger::merkle::{RootBuilder, SumRoot, Tree};
use protocol::ledger::records::Epoch;

use crate::common::cases;

fn leaf(tag: u16, cash: u64) -> AccountLeaf {
    let mut account = [0; 32];
    account[..2].copy_from_slice(&tag.to_be_bytes());
    AccountLeaf { account: AccountId(account), cash, earned: 3, held: 5, steps: 0, head: RecordId::NONE }
}

fn channel(tag: u16, cash: u64) -> ChannelLeaf {
    let mut channel = [0; 32];
    channel[..2].copy_from_slice(&tag.to_be_bytes());
    ChannelLeaf {
        channel: ChannelId(channel),
        payer: AccountId([1; 32]),
        payee: NodeId([2; 32]),
        cap: 10,
        redeemed: 0,
        expires: Epoch(3),
        cash,
        earned: 0,
    }
}

type State = BTreeMap<u16, u64>;

fn accounts(state: &State) -> Vec<AccountLeaf> {
    state.iter().map(|(tag, cash)| leaf(*tag, *cash)).collect()
}

fn snapshot(state: &State) -> Snapshot {
    Snapshot {
        accounts: accounts(state),
        changes: vec![7; state.len()],
        channels: state.iter().map(|(tag, cash)| channel(*tag, *cash)).collect(),
    }
}

fn state() -> impl Strategy<Value = State> {
    prop::collection::btree_map(any::<u16>(), any::<u64>(), 1..70)
}

fn computed(leaves: &[AccountLeaf]) -> SumRoot {
    let mut builder = RootBuilder::new::<AccountLeaf>();
    leaves.iter().for_each(|leaf| builder.push(leaf).expect("sorted"));
    builder.finish().expect("within bounds")
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_leaf_proves_and_the_root_sums_them_all(state in state()) {
        let leaves = accounts(&state);
        let tree = Tree::new(leaves.clone()).expect("sorted");
        let root = tree.root();
        let cash: u128 = state.values().map(|cash| u128::from(*cash)).sum();
        prop_assert_eq!((root.count, root.sums.cash), (leaves.len() as u64, cash));
        prop_assert_eq!((root.sums.earned, root.sums.held), (3 * u128::from(root.count), 5 * u128::from(root.count)));
        prop_assert_eq!(computed(&leaves), root);
        for leaf in &leaves {
            let proof = tree.prove(leaf.account.0).expect("there");
            prop_assert_eq!(&proof.leaf, leaf);
            prop_assert_eq!(proof.verify(&root), Ok(()));
        }
        prop_assert_eq!(tree.prove([0xff; 32]), None);
    }

    #[test]
    fn whatever_is_altered_proves_nothing(state in state(), which in any::<prop::sample::Index>(), how in 0..11_u8, at in any::<prop::sample::Index>()) {
        let leaves = accounts(&state);
        let tree = Tree::new(leaves.clone()).expect("sorted");
        let mut root = tree.root();
        let mut proof = tree.prove(leaves[which.index(leaves.len())].account.0).expect("there");
        let length = proof.siblings.len();
        let sibling = at.index(length.max(1));
        match how {
            0 => proof.leaf.cash ^= 1,
            1 => proof.leaf.account.0[at.index(32)] ^= 1,
            2 => proof.leaf.steps += 1,
            3 => proof.leaf.head.0[at.index(32)] ^= 1,
            4 => proof.index ^= 1,
            5 if length > 0 => proof.siblings[sibling].hash.0[0] ^= 1,
            6 if length > 0 => proof.siblings[sibling].sums.cash ^= 1,
            // Moved from one bucket to another: the total stays.
            7 if length > 0 && proof.siblings[sibling].sums.cash > 0 => {
                proof.siblings[sibling].sums.cash -= 1;
                proof.siblings[sibling].sums.earned += 1;
            }
            8 if length > 0 => _ = proof.siblings.remove(sibling),
            9 => root.count += 1,
            _ => root.sums.held += 1,
        }
        prop_assert!(proof.verify(&root).is_err());
    }

    #[test]
    fn every_epoch_that_is_kept_can_be_computed_again(
        states in prop::collection::vec(state(), 1..6),
        kept in 1..5_usize,
    ) {
        let mut log = EpochLog::new(kept);
        let mut roots = Vec::new();
        for (epoch, state) in (0..).map(Epoch).zip(&states) {
            roots.push((epoch, log.push(epoch, snapshot(state)).expect("within bounds")));
        }
        let first = states.len().saturating_sub(kept);
        prop_assert_eq!(log.epochs().collect::<Vec<_>>(), roots[first..].iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>());
        for (epoch, (root, _)) in &roots[..first] {
            prop_assert!(log.accounts(*epoch, None).is_none(), "{:?}", root);
        }
        for ((epoch, (root, _)), state) in roots[first..].iter().zip(&states[first..]) {
            let page = log.accounts(*epoch, None).expect("kept");
            prop_assert_eq!(page.next, None);
            prop_assert_eq!(&page.leaves, &accounts(state));
            prop_assert_eq!(computed(&page.leaves), *root);
            prop_assert_eq!(log.channels(*epoch, None).expect("kept").leaves.len(), state.len());
        }
    }
}

#[test]
fn a_large_epoch_comes_in_pages_that_fit_a_message() {
    let first: State = (0..1500).map(|tag| (tag * 3, 1)).collect();
    let mut second = first.clone();
    second.retain(|tag, _| tag % 9 != 0);
    second.extend((0..1500).map(|tag| (tag * 7 + 1, u64::MAX)));
    let mut log = EpochLog::new(8);
    for (epoch, state) in [&first, &second].into_iter().enumerate() {
        log.push(Epoch(epoch as u32), snapshot(state)).expect("within bounds");
    }

    for (epoch, state) in [&first, &second].into_iter().enumerate() {
        let (mut leaves, mut after) = (Vec::new(), None);
        loop {
            let page = log.accounts(Epoch(epoch as u32), after).expect("kept");
            assert!(page.leaves.len() <= PAGE_MAX);
            leaves.extend(page.leaves);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(leaves, accounts(state));
    }
    let largest = ChannelLeaf {
        cap: u64::MAX,
        redeemed: u64::MAX,
        expires: Epoch(u32::MAX),
        cash: u64::MAX,
        earned: u64::MAX,
        ..channel(1, 1)
    };
    let bytes = protocol::encoding::encode(&vec![largest; PAGE_MAX]).len();
    assert!(bytes + 100 <= protocol::message::MESSAGE_BYTES_MAX, "{bytes}");
    assert_ne!(Digest::ZERO, Tree::new(accounts(&first)).expect("sorted").root().hash);
}
