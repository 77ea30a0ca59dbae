//! What is to be done when, ordered by time.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::time::Time;

/// Keys with one deadline each.
#[derive(Debug, Clone)]
pub struct Deadlines<K> {
    by_key: BTreeMap<K, Time>,
    by_time: BTreeSet<(Time, K)>,
}

impl<K: Ord + Clone> Default for Deadlines<K> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Deadlines<K> {
    /// Sets the deadline of `key`, in place of an earlier one.
    pub fn set(&mut self, key: K, at: Time) {
        self.clear(&key);
        self.by_key.insert(key.clone(), at);
        self.by_time.insert((at, key));
    }

    /// Sets the deadline of `key`, unless it has an earlier one.
    pub fn set_earlier(&mut self, key: K, at: Time) {
        if self.by_key.get(&key).is_none_or(|present| *present > at) {
            self.set(key, at);
        }
    }

    /// Says whether `key` has a deadline.
    pub fn is_set(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// Takes the deadline of `key` away, if it has one.
    pub fn clear(&mut self, key: &K) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    /// Returns the first deadline and its key.
    #[must_use]
    pub fn next(&self) -> Option<(Time, &K)> {
        self.by_time.first().map(|(at, key)| (*at, key))
    }

    /// Takes out one key whose time has come.
    pub fn expire(&mut self, now: Time) -> Option<K> {
        let (at, key) = self.by_time.first().cloned()?;
        if at > now {
            return None;
        }
        self.clear(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_expire_in_order_and_once() {
        let mut deadlines = Deadlines::default();
        deadlines.set('a', Time(30));
        deadlines.set('b', Time(20));
        deadlines.set('a', Time(10));

        assert_eq!(deadlines.next(), Some((Time(10), &'a')));
        assert_eq!(deadlines.expire(Time(9)), None);
        assert_eq!(deadlines.expire(Time(25)), Some('a'));
        assert_eq!(deadlines.expire(Time(25)), Some('b'));
        assert_eq!(deadlines.expire(Time(25)), None);
    }
}
