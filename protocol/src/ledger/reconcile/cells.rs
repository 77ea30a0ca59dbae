//! Coded cells: what two sets do not share, from about 1.4 cells for each difference, however large the sets are.
//!
//! Every item goes by name into the first cell and into ever fewer of the later ones. A cell is the exclusive or of what
//! is in it, so what both sides hold cancels out between theirs. A cell that is left with one item gives it away; taken
//! out of its other cells it uncovers the next. More cells continue those that are there (Yang and others: "Practical
//! Rateless Set Reconciliation", SIGCOMM 2024).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::prng::Prng;

/// What an item is called in one comparison.
pub(super) type Name = [u8; 8];

/// The exclusive or of the items in it, and of a check of each: twelve bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cell {
    name: Name,
    check: [u8; 4],
}

impl Cell {
    /// Puts everything in that is in `other`, and out what was in both.
    pub(super) fn toggle(&mut self, other: &Self) {
        self.name.iter_mut().zip(other.name).for_each(|(byte, other)| *byte ^= other);
        self.check.iter_mut().zip(other.check).for_each(|(byte, other)| *byte ^= other);
    }

    /// Returns the only item in it; nothing if there is none, or several.
    fn only(&self) -> Option<Item> {
        let item = Item::new(self.name);
        (item.cell == *self && *self != Self::default()).then_some(item)
    }
}

/// An item with the cells that it is in.
#[derive(Debug, Clone)]
struct Item {
    cell: Cell,
    draws: Prng,
    at: u64,
}

impl Item {
    const fn new(name: Name) -> Self {
        let mut draws = Prng::new(u64::from_be_bytes(name));
        let [check @ .., _, _, _, _] = draws.next_u64().to_be_bytes();
        Self { cell: Cell { name, check }, draws, at: 0 }
    }
}

/// The places of its cells, without an end: it is in cell `i` with probability 1 / (1 + i / 2).
impl Iterator for Item {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let place = self.at;
        // With u uniform in (0, 1], the next place is (i + 3/2) (1 / sqrt(u) - 1) further on, rounded up.
        let root = self.draws.next_u64().isqrt().max(1);
        let scale = place.saturating_mul(2).saturating_add(3);
        let step = scale.saturating_mul((1_u64 << 32).saturating_sub(root)).div_ceil(root.saturating_mul(2));
        self.at = place.saturating_add(step.max(1));
        Some(place)
    }
}

/// Returns `count` cells of a set, from the one at `first` on.
pub(super) fn cells(names: impl Iterator<Item = Name>, first: u64, count: usize) -> Vec<Cell> {
    let mut cells = alloc::vec![Cell::default(); count];
    for name in names {
        let item = Item::new(name);
        let cell = item.cell;
        put(&mut cells, &cell, item, first);
    }
    cells
}

/// Puts an item into its cells among those given, of which the one at `first` is the first; returns where.
fn put(cells: &mut [Cell], cell: &Cell, places: impl Iterator<Item = u64>, first: u64) -> Vec<usize> {
    let end = first.saturating_add(u64::try_from(cells.len()).unwrap_or(u64::MAX));
    let mut touched = Vec::new();
    for place in places.take_while(|place| *place < end) {
        let at = place.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some((at, target)) = at.and_then(|at| Some((at, cells.get_mut(at)?))) {
            target.toggle(cell);
            touched.push(at);
        }
    }
    touched
}

/// Returns the names of all items that are in the first cells of a difference, unless there are too few cells to tell.
pub(super) fn peel(mut cells: Vec<Cell>) -> Option<BTreeSet<Name>> {
    let mut found = BTreeSet::new();
    let mut open: Vec<usize> = (0..cells.len()).collect();
    while let Some(at) = open.pop() {
        let Some(item) = cells.get(at).and_then(Cell::only) else { continue };
        let cell = item.cell;
        // Cells that no two sets make could give an item again and again.
        if !found.insert(cell.name) || found.len() > cells.len() {
            return None;
        }
        open.extend(put(&mut cells, &cell, item, 0));
    }
    cells.iter().all(|cell| *cell == Cell::default()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(numbers: core::ops::Range<u64>) -> impl Iterator<Item = Name> {
        let mut draws = Prng::new(9);
        numbers.map(move |_| draws.next_u64().to_be_bytes())
    }

    #[test]
    fn cells_give_back_what_is_in_them_once_there_are_enough() {
        for count in [1, 2, 10, 100, 1000] {
            let held: BTreeSet<Name> = names(0..count).collect();
            let enough = (1..).find_map(|cells_of_ten| {
                let all = cells(held.iter().copied(), 0, cells_of_ten * 10);
                peel(all).map(|found| (found, cells_of_ten * 10))
            });
            let (found, needed) = enough.expect("it is found sometime");
            assert_eq!(found, held);
            let most = usize::try_from(count).expect("small") * 2 + 20;
            assert!(needed <= most, "{count} items took {needed} cells");
        }
        assert_eq!(peel(cells(names(0..0), 0, 1)), Some(BTreeSet::new()));
        assert_eq!(peel(cells(names(0..2), 0, 1)), None);
    }

    #[test]
    fn later_cells_continue_earlier_ones() {
        let whole = cells(names(0..50), 0, 90);
        let parts = [cells(names(0..50), 0, 31), cells(names(0..50), 31, 59)].concat();
        assert_eq!(whole, parts);
    }

    #[test]
    fn an_item_is_in_fewer_and_fewer_cells() {
        let in_first = names(0..1000).filter(|name| Item::new(*name).next() == Some(0)).count();
        assert_eq!(in_first, 1000);
        // Of 1,000 items, 2 / (2 + 18) belong into the cell at 18.
        let in_later =
            |name: &Name| Item::new(*name).take_while(|place| *place <= 18).any(|place| place == 18);
        let in_later = names(0..1000).filter(in_later).count();
        assert!((70..=130).contains(&in_later), "{in_later}");
    }

    #[test]
    fn cells_that_no_set_makes_come_to_an_end() {
        let name = names(0..1).next().expect("one");
        let item = Item::new(name);
        // Everywhere, though it belongs into some cells only.
        assert_eq!(peel(alloc::vec![item.cell; 64]), None);
    }
}
