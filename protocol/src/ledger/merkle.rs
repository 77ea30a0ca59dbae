//! A Merkle tree whose nodes carry sums: one hash commits to every leaf and to what all leaves add up to.
//!
//! Leaves are sorted by key, and no key comes twice. Neighbours are joined in pairs, level by level; the last of an odd
//! level rises as it is and is never doubled. An inner node hashes both children *with both their sums*: a node that
//! hashed only the total would let an issuer show different sums of the same children to different owners. Leaves,
//! inner nodes and roots are hashed in different domains, and the root commits to the number of leaves, so that a place
//! in the tree fixes the shape of its proof.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::encoding::encode;
use crate::ids::Digest;
use crate::mutant;

/// Most levels of a tree: more leaves than anybody can hold.
pub const DEPTH_MAX: usize = 40;

/// Nano-credits by bucket, summed over many owners.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// In `cash` buckets.
    pub cash: u128,
    /// In `earned` buckets.
    pub earned: u128,
    /// Held in open channels.
    pub held: u128,
}

/// What can stand in a tree.
pub trait SumLeaf: Serialize + Clone {
    /// Tells the leaves of one kind of tree from those of every other.
    const TREE: u8;

    /// Returns the key by which leaves are sorted.
    fn key(&self) -> [u8; 32];

    /// Returns what the leaf adds to the sums.
    fn sums(&self) -> Sums;
}

/// The root of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumRoot {
    /// Commits to the count, the sums and every leaf.
    pub hash: Digest,
    /// Leaves.
    pub count: u64,
    /// What they add up to.
    pub sums: Sums,
}

/// A place inside a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumNode {
    /// Commits to everything below.
    pub hash: Digest,
    /// What everything below adds up to.
    pub sums: Sums,
}

/// Why leaves make no tree, or a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MerkleError {
    /// A key is not above the one before it.
    #[error("the leaves are not sorted, or one comes twice")]
    Unsorted,
    /// The sums exceed what can be stated.
    #[error("the sums exceed 128 bits")]
    Overflow,
    /// More leaves than a tree can have.
    #[error("there are too many leaves")]
    TooMany,
    /// The proof is not of the length that its place in the tree asks for.
    #[error("the proof does not have the length that its place asks for")]
    Shape,
    /// The proof leads to another root.
    #[error("the proof leads to another root")]
    Root,
}

impl Sums {
    /// Returns both together, or nothing where a sum exceeds 128 bits.
    #[must_use]
    pub fn plus(self, other: Self) -> Option<Self> {
        Some(Self {
            cash: self.cash.checked_add(other.cash)?,
            earned: self.earned.checked_add(other.earned)?,
            held: self.held.checked_add(other.held)?,
        })
    }

    /// Returns all buckets together, or nothing where that exceeds 128 bits.
    #[must_use]
    pub fn total(self) -> Option<u128> {
        self.cash.checked_add(self.earned)?.checked_add(self.held)
    }

    fn write_to(self, hasher: &mut blake3::Hasher) {
        for sum in [self.cash, self.earned, self.held] {
            hasher.update(&sum.to_be_bytes());
        }
    }
}

/// Begins the hash of a node; nothing that is one kind of node can pass for another.
fn hasher(kind: &[u8], tree: u8) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sharemesh/v1/merkle-sum/").update(kind).update(&[0, tree]);
    hasher
}

fn finish(hasher: &blake3::Hasher) -> Digest {
    Digest(*hasher.finalize().as_bytes())
}

fn leaf_node<L: SumLeaf>(leaf: &L) -> SumNode {
    let mut hasher = hasher(b"leaf", L::TREE);
    hasher.update(&encode(leaf));
    SumNode { hash: finish(&hasher), sums: leaf.sums() }
}

fn join(tree: u8, left: SumNode, right: SumNode) -> Result<SumNode, MerkleError> {
    let sums = left.sums.plus(right.sums).ok_or(MerkleError::Overflow)?;
    let mut hasher = hasher(b"node", tree);
    for child in [left, right] {
        hasher.update(&child.hash.0);
        if mutant::is_in("merkle-sums-only-total") {
            continue;
        }
        child.sums.write_to(&mut hasher);
    }
    sums.write_to(&mut hasher);
    Ok(SumNode { hash: finish(&hasher), sums })
}

fn root_of(tree: u8, count: u64, top: Option<SumNode>) -> SumRoot {
    let sums = top.map(|top| top.sums).unwrap_or_default();
    let mut hasher = hasher(b"root", tree);
    hasher.update(&count.to_be_bytes());
    sums.write_to(&mut hasher);
    if let Some(top) = top {
        hasher.update(&top.hash.0);
    }
    SumRoot { hash: finish(&hasher), count, sums }
}

/// Computes a root from leaves that come one after the other; keeps no more than one node per level.
#[derive(Debug, Clone, Default)]
pub struct RootBuilder {
    tree: u8,
    count: u64,
    last: Option<[u8; 32]>,
    /// Full subtrees, the largest first, each with its number of levels.
    peaks: Vec<(u32, SumNode)>,
}

impl RootBuilder {
    /// Returns the builder of a tree without leaves.
    #[must_use]
    pub fn new<L: SumLeaf>() -> Self {
        Self { tree: L::TREE, ..Self::default() }
    }

    /// Returns how many leaves came.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Takes the next leaf.
    ///
    /// # Errors
    /// When its key is not above the last one, or the sums overflow.
    pub fn push<L: SumLeaf>(&mut self, leaf: &L) -> Result<(), MerkleError> {
        if self.last.is_some_and(|last| last >= leaf.key()) {
            return Err(MerkleError::Unsorted);
        }
        self.last = Some(leaf.key());
        self.count = self.count.checked_add(1).ok_or(MerkleError::TooMany)?;
        let (mut height, mut node) = (0_u32, leaf_node(leaf));
        while let Some((_, left)) = self.peaks.pop_if(|(level, _)| *level == height) {
            node = join(self.tree, left, node)?;
            height = height.checked_add(1).ok_or(MerkleError::TooMany)?;
        }
        self.peaks.push((height, node));
        Ok(())
    }

    /// Returns the root.
    ///
    /// # Errors
    /// When the sums overflow.
    pub fn finish(mut self) -> Result<SumRoot, MerkleError> {
        let Some((_, mut top)) = self.peaks.pop() else { return Ok(root_of(self.tree, 0, None)) };
        while let Some((_, left)) = self.peaks.pop() {
            top = join(self.tree, left, top)?;
        }
        Ok(root_of(self.tree, self.count, Some(top)))
    }
}

/// A whole tree, from which proofs are taken.
#[derive(Debug, Clone)]
pub struct Tree<L> {
    leaves: Vec<L>,
    /// Nodes by level, the leaves' first, the top's last; none without leaves.
    levels: Vec<Vec<SumNode>>,
    root: SumRoot,
}

/// Proof that a leaf stands in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof<L> {
    /// The leaf.
    pub leaf: L,
    /// Its place among the leaves.
    pub index: u64,
    /// The other child at every level where there is one, from the leaf upward.
    pub siblings: Vec<SumNode>,
}

impl<L: SumLeaf> Tree<L> {
    /// Returns the tree of `leaves`, which are sorted by key.
    ///
    /// # Errors
    /// When they are not, or the sums overflow.
    pub fn new(leaves: Vec<L>) -> Result<Self, MerkleError> {
        if leaves.windows(2).any(|pair| pair[0].key() >= pair[1].key()) {
            return Err(MerkleError::Unsorted);
        }
        let mut levels = Vec::new();
        let mut level: Vec<SumNode> = leaves.iter().map(leaf_node).collect();
        while level.len() > 1 {
            let pair = |pair: &[SumNode]| match pair {
                [left, right] => join(L::TREE, *left, *right),
                alone => Ok(alone[0]),
            };
            let above = level.chunks(2).map(pair).collect::<Result<_, _>>()?;
            levels.push(core::mem::replace(&mut level, above));
        }
        let count = u64::try_from(leaves.len()).map_err(|_| MerkleError::TooMany)?;
        let root = root_of(L::TREE, count, level.first().copied());
        levels.push(level);
        Ok(Self { leaves, levels, root })
    }

    /// Returns the root.
    #[must_use]
    pub const fn root(&self) -> SumRoot {
        self.root
    }

    /// Returns the leaves, sorted by key.
    #[must_use]
    pub fn leaves(&self) -> &[L] {
        &self.leaves
    }

    /// Returns the place of the leaf with this key.
    #[must_use]
    pub fn place(&self, key: [u8; 32]) -> Option<usize> {
        self.leaves.binary_search_by_key(&key, SumLeaf::key).ok()
    }

    /// Returns the proof of the leaf with this key, if there is one.
    #[must_use]
    pub fn prove(&self, key: [u8; 32]) -> Option<Proof<L>> {
        let place = self.place(key)?;
        let mut siblings = Vec::new();
        let mut at = place;
        for level in &self.levels {
            siblings.extend(level.get(at ^ 1).copied());
            at >>= 1;
        }
        Some(Proof { leaf: self.leaves.get(place)?.clone(), index: u64::try_from(place).ok()?, siblings })
    }
}

impl<L: SumLeaf> Proof<L> {
    /// Checks that the leaf stands in the tree of `root`, and that the sums on the way add up without overflow.
    ///
    /// # Errors
    /// Says what is wrong with the proof.
    pub fn verify(&self, root: &SumRoot) -> Result<(), MerkleError> {
        if self.siblings.len() > DEPTH_MAX || self.index >= root.count {
            return Err(MerkleError::Shape);
        }
        let (mut at, mut width) = (self.index, root.count);
        let mut node = leaf_node(&self.leaf);
        let mut siblings = self.siblings.iter().copied();
        while width > 1 {
            // The last of an odd level has no neighbour and rises as it is.
            if at ^ 1 < width {
                let sibling = siblings.next().ok_or(MerkleError::Shape)?;
                let (left, right) = if at & 1 == 0 { (node, sibling) } else { (sibling, node) };
                node = join(L::TREE, left, right)?;
            }
            at >>= 1;
            width = width.div_ceil(2);
        }
        if siblings.next().is_some() {
            return Err(MerkleError::Shape);
        }
        if root_of(L::TREE, root.count, Some(node)) == *root { Ok(()) } else { Err(MerkleError::Root) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Plain([u8; 32], u128);

    impl SumLeaf for Plain {
        const TREE: u8 = 200;

        fn key(&self) -> [u8; 32] {
            self.0
        }

        fn sums(&self) -> Sums {
            Sums { cash: self.1, ..Sums::default() }
        }
    }

    fn leaves(count: u8) -> Vec<Plain> {
        (0..count).map(|tag| Plain([tag; 32], u128::from(tag) + 1)).collect()
    }

    #[test]
    fn an_empty_tree_has_a_root_of_its_own() {
        let root = Tree::<Plain>::new(Vec::new()).expect("no leaves").root();

        assert_eq!((root.count, root.sums), (0, Sums::default()));
        assert_eq!(RootBuilder::new::<Plain>().finish(), Ok(root));
        assert_ne!(root.hash, Tree::new(leaves(1)).expect("sorted").root().hash);
    }

    #[test]
    fn leaves_out_of_order_or_repeated_make_no_tree() {
        for wrong in [[1, 0], [1, 1]] {
            let wrong: Vec<Plain> = wrong.map(|tag| Plain([tag; 32], 1)).into();
            assert_eq!(Tree::new(wrong.clone()).map(|tree| tree.root()), Err(MerkleError::Unsorted));
            let mut builder = RootBuilder::new::<Plain>();
            builder.push(&wrong[0]).expect("the first");
            assert_eq!(builder.push(&wrong[1]), Err(MerkleError::Unsorted));
        }
    }

    #[test]
    fn an_inner_node_does_not_pass_for_a_leaf() {
        // The second-preimage attack: a shorter tree whose leaves are the longer one's inner nodes.
        let tree = Tree::new(leaves(4)).expect("sorted");
        let proof = tree.prove([0; 32]).expect("there");
        let shorter = Proof { leaf: proof.leaf.clone(), index: 0, siblings: proof.siblings[1..].to_vec() };

        assert_eq!(shorter.verify(&tree.root()), Err(MerkleError::Shape));
        let root = SumRoot { count: 2, ..tree.root() };
        assert_eq!(shorter.verify(&root), Err(MerkleError::Root));
    }

    #[test]
    fn sums_cannot_be_moved_between_the_children_of_a_node() {
        // A node that commits only to the total lets an issuer move credits to another child in what it shows.
        let tree = Tree::new(leaves(4)).expect("sorted");
        let mut proof = tree.prove([0; 32]).expect("there");
        let top = proof.siblings.last_mut().expect("two levels");
        top.sums.cash -= 1;
        let root = tree.root();
        let lower = SumRoot { sums: Sums { cash: root.sums.cash - 1, ..root.sums }, ..root };

        assert_eq!(proof.verify(&root), Err(MerkleError::Root));
        assert_eq!(proof.verify(&lower), Err(MerkleError::Root));
        let one = Tree::new(leaves(2)).expect("sorted").root();
        let moved = Tree::new(Vec::from([Plain([0; 32], 2), Plain([1; 32], 1)])).expect("sorted").root();
        assert_eq!(one.sums, moved.sums);
        assert_ne!(one.hash, moved.hash);
        let node = |cash| SumNode { hash: Digest([7; 32]), sums: Sums { cash, ..Sums::default() } };
        let (even, uneven) = (join(0, node(5), node(5)), join(0, node(9), node(1)));
        assert_eq!(even.map(|node| node.sums), uneven.map(|node| node.sums));
        assert_ne!(even, uneven, "a node commits to the sums of each child, not to their total only");
    }

    #[test]
    fn sums_that_overflow_prove_nothing() {
        let tree = Tree::new(leaves(2)).expect("sorted");
        let mut proof = tree.prove([0; 32]).expect("there");
        proof.siblings[0].sums.cash = u128::MAX;

        assert_eq!(proof.verify(&tree.root()), Err(MerkleError::Overflow));
        let large = [0, 1].map(|tag| Plain([tag; 32], u128::MAX));
        assert_eq!(Tree::new(large.to_vec()).map(|tree| tree.root()), Err(MerkleError::Overflow));
    }
}
