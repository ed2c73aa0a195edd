//! [`SortedMap`] and [`SortedSet`]: replacements of `BTreeMap` and `BTreeSet` in one sorted vector.
//!
//! The code of a B-tree is generated again for each pair of types and costs the agent about 134 KB on
//! x86_64; a binary search and a move of the later entries cost a tenth of it. An insertion or removal
//! moves up to the whole vector, so these are for collections that `limits.rs` bounds to some thousands of
//! entries. [`Extend`] and [`FromIterator`] sort once: use them to add many entries in any order.
//! With equal keys the last one counts, as in `BTreeMap`.

use alloc::vec::{self, Vec};
use core::borrow::Borrow;
use core::fmt;
use core::iter::FusedIterator;
use core::marker::PhantomData;
use core::slice;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// A map in the order of its keys.
#[derive(Clone, PartialEq, Eq)]
pub struct SortedMap<K, V> {
    /// Ascending by key, each key once.
    entries: Vec<(K, V)>,
}

impl<K, V> SortedMap<K, V> {
    /// An empty map; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes all entries and frees their memory.
    pub fn clear(&mut self) {
        self.entries = Vec::new();
    }

    /// Entries, keys ascending.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter(self.entries.iter())
    }

    /// Entries, keys ascending, with values to change.
    pub fn iter_mut(&mut self) -> IterMut<'_, K, V> {
        IterMut(self.entries.iter_mut())
    }

    /// Keys, ascending.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator + Clone {
        self.entries.iter().map(|(key, _)| key)
    }

    /// Values in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + ExactSizeIterator + Clone {
        self.entries.iter().map(|(_, value)| value)
    }

    /// Values to change, in the order of their keys.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut V> + ExactSizeIterator {
        self.entries.iter_mut().map(|(_, value)| value)
    }

    /// The entry with the lowest key.
    #[must_use]
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// The entry with the highest key.
    #[must_use]
    pub fn last_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next_back()
    }

    /// Removes and returns the entry with the lowest key; moves all others.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        (!self.entries.is_empty()).then(|| self.entries.remove(0))
    }

    /// Removes and returns the entry with the highest key.
    pub fn pop_last(&mut self) -> Option<(K, V)> {
        self.entries.pop()
    }

    /// Removes the entries for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain_mut(|(key, value)| keep(key, value));
    }
}

impl<K: Ord, V> SortedMap<K, V> {
    /// Index of `key`, or the index at which to insert it.
    fn search<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.entries
            .binary_search_by(|(other, _)| other.borrow().cmp(key))
    }

    /// The value under `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (_, value) = self.entries.get(self.search(key).ok()?)?;
        Some(value)
    }

    /// The value under `key`, to change.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let index = self.search(key).ok()?;
        let (_, value) = self.entries.get_mut(index)?;
        Some(value)
    }

    /// Whether there is an entry under `key`.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.search(key).is_ok()
    }

    /// Puts `value` under `key`; returns the previous value.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.search(&key) {
            Ok(index) => {
                let (_, old) = self.entries.get_mut(index)?;
                Some(core::mem::replace(old, value))
            }
            Err(index) => {
                self.entries.insert(index, (key, value));
                None
            }
        }
    }

    /// Removes the entry under `key`; returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.remove_entry(key).map(|(_, value)| value)
    }

    /// Removes and returns the entry under `key`.
    pub fn remove_entry<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
    {
        let index = self.search(key).ok()?;
        Some(self.entries.remove(index))
    }

    /// The place of `key`, occupied or vacant.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        Entry { map: self, key }
    }

    /// Restores the order after entries were appended; of equal keys the last one stays.
    fn sort(&mut self) {
        // The sort is stable, so the last of equal keys is still the last.
        self.entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        self.entries.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                core::mem::swap(later, kept);
            }
            same
        });
    }
}

/// The place of a key in a [`SortedMap`].
pub struct Entry<'a, K, V> {
    map: &'a mut SortedMap<K, V>,
    key: K,
}

impl<'a, K: Ord, V> Entry<'a, K, V> {
    /// The value there; `make` creates it if there is none.
    pub fn or_insert_with(self, make: impl FnOnce() -> V) -> &'a mut V {
        let index = match self.map.search(&self.key) {
            Ok(index) => index,
            Err(index) => {
                self.map.entries.insert(index, (self.key, make()));
                index
            }
        };
        #[expect(
            clippy::indexing_slicing,
            reason = "found or filled just now; there is no value to return instead"
        )]
        &mut self.map.entries[index].1
    }

    /// The value there; the default is inserted if there is none.
    pub fn or_default(self) -> &'a mut V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SortedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Ord, V> Extend<(K, V)> for SortedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        let mut sorted = true;
        for (key, value) in entries {
            sorted &= self.entries.last().is_none_or(|(last, _)| *last < key);
            self.entries.push((key, value));
        }
        if !sorted {
            self.sort();
        }
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for SortedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<K, V> IntoIterator for SortedMap<K, V> {
    type Item = (K, V);
    type IntoIter = vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<'a, K, V> IntoIterator for &'a SortedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, K, V> IntoIterator for &'a mut SortedMap<K, V> {
    type Item = (&'a K, &'a mut V);
    type IntoIter = IterMut<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

/// Entries of a [`SortedMap`], keys ascending.
pub struct Iter<'a, K, V>(slice::Iter<'a, (K, V)>);

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<K, V> DoubleEndedIterator for Iter<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|(key, value)| (key, value))
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, K, V> {}
impl<K, V> FusedIterator for Iter<'_, K, V> {}

/// Entries of a [`SortedMap`], keys ascending, with values to change.
pub struct IterMut<'a, K, V>(slice::IterMut<'a, (K, V)>);

impl<'a, K, V> Iterator for IterMut<'a, K, V> {
    type Item = (&'a K, &'a mut V);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (&*key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<K, V> ExactSizeIterator for IterMut<'_, K, V> {}
impl<K, V> FusedIterator for IterMut<'_, K, V> {}

impl<K: Serialize, V: Serialize> Serialize for SortedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for SortedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

struct MapVisitor<K, V>(PhantomData<(K, V)>);

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for MapVisitor<K, V> {
    type Value = SortedMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        // The announced length is not trusted: it reserves no memory.
        let mut map = SortedMap::new();
        let mut sorted = true;
        while let Some((key, value)) = access.next_entry()? {
            sorted &= map.entries.last().is_none_or(|(last, _)| *last < key);
            map.entries.push((key, value));
        }
        if !sorted {
            map.sort();
        }
        Ok(map)
    }
}

/// A set in ascending order.
#[derive(Clone, PartialEq, Eq)]
pub struct SortedSet<T> {
    map: SortedMap<T, ()>,
}

impl<T> SortedSet<T> {
    /// An empty set; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            map: SortedMap::new(),
        }
    }

    /// Number of members.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no member.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Members, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> + ExactSizeIterator + Clone {
        self.map.keys()
    }
}

impl<T: Ord> SortedSet<T> {
    /// Whether `member` is in the set.
    pub fn contains<Q: Ord + ?Sized>(&self, member: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.map.contains_key(member)
    }

    /// Adds a member; returns false if it was there already.
    pub fn insert(&mut self, member: T) -> bool {
        self.map.insert(member, ()).is_none()
    }

    /// Removes a member; returns whether it was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, member: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.map.remove(member).is_some()
    }
}

impl<T> Default for SortedSet<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for SortedSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<T: Ord> Extend<T> for SortedSet<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, members: I) {
        self.map
            .extend(members.into_iter().map(|member| (member, ())));
    }
}

impl<T: Ord> FromIterator<T> for SortedSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut set = Self::new();
        set.extend(members);
        set
    }
}

impl<T> IntoIterator for SortedSet<T> {
    type Item = T;
    type IntoIter = core::iter::Map<vec::IntoIter<(T, ())>, fn((T, ())) -> T>;

    fn into_iter(self) -> Self::IntoIter {
        self.map.into_iter().map(|(member, ())| member)
    }
}

impl<'a, T> IntoIterator for &'a SortedSet<T> {
    type Item = &'a T;
    type IntoIter = core::iter::Map<Iter<'a, T, ()>, fn((&'a T, &'a ())) -> &'a T>;

    fn into_iter(self) -> Self::IntoIter {
        self.map.iter().map(|(member, ())| member)
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u16),
        Entry(u8, u16),
        Remove(u8),
        Change(u8, u16),
        Extend(Vec<(u8, u16)>),
        Retain(u8),
        PopFirst,
        PopLast,
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let many = proptest::collection::vec(any::<(u8, u16)>(), 0..20);
        prop_oneof![
            8 => any::<(u8, u16)>().prop_map(|(key, value)| Step::Insert(key, value)),
            4 => any::<(u8, u16)>().prop_map(|(key, value)| Step::Entry(key, value)),
            4 => any::<u8>().prop_map(Step::Remove),
            2 => any::<(u8, u16)>().prop_map(|(key, value)| Step::Change(key, value)),
            2 => many.prop_map(Step::Extend),
            1 => (1..9_u8).prop_map(Step::Retain),
            1 => Just(Step::PopFirst),
            1 => Just(Step::PopLast),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// Goal: a caller cannot distinguish these from `BTreeMap`. Method: the same random
        /// steps on both, compared after each.
        #[test]
        fn a_map_does_what_a_b_tree_does(steps in proptest::collection::vec(step(), 0..80)) {
            let mut ours = SortedMap::new();
            let mut reference = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        prop_assert_eq!(ours.insert(key, value), reference.insert(key, value));
                    }
                    Step::Entry(key, value) => prop_assert_eq!(
                        ours.entry(key).or_insert_with(|| value),
                        reference.entry(key).or_insert_with(|| value)
                    ),
                    Step::Remove(key) => {
                        prop_assert_eq!(ours.remove_entry(&key), reference.remove_entry(&key));
                    }
                    Step::Change(key, value) => {
                        if let Some(old) = ours.get_mut(&key) { *old = value }
                        if let Some(old) = reference.get_mut(&key) { *old = value }
                        prop_assert_eq!(ours.contains_key(&key), reference.contains_key(&key));
                    }
                    Step::Extend(many) => {
                        ours.extend(many.clone());
                        reference.extend(many);
                    }
                    Step::Retain(of) => {
                        ours.retain(|key, value| { *value ^= 1; key % of != 0 });
                        reference.retain(|key, value| { *value ^= 1; key % of != 0 });
                    }
                    Step::PopFirst => prop_assert_eq!(ours.pop_first(), reference.pop_first()),
                    Step::PopLast => prop_assert_eq!(ours.pop_last(), reference.pop_last()),
                    Step::Clear => {
                        ours.clear();
                        reference.clear();
                    }
                }
                prop_assert!(ours.iter().eq(reference.iter()));
                prop_assert!(ours.iter().rev().eq(reference.iter().rev()));
                prop_assert!(ours.iter_mut().eq(reference.iter_mut()));
                prop_assert!(ours.keys().eq(reference.keys()));
                prop_assert!(ours.values().eq(reference.values()));
                prop_assert!(ours.values_mut().eq(reference.values_mut()));
                prop_assert_eq!(ours.first_key_value(), reference.first_key_value());
                prop_assert_eq!(ours.last_key_value(), reference.last_key_value());
                prop_assert_eq!((ours.len(), ours.is_empty()), (reference.len(), reference.is_empty()));
            }
            prop_assert_eq!(alloc::format!("{ours:?}"), alloc::format!("{reference:?}"));
            prop_assert!(ours.into_iter().eq(reference));
        }

        /// Entries in any order and with repeated keys; the encoding on the wire and in files is the same.
        #[test]
        fn a_map_is_collected_encoded_and_decoded_as_a_b_tree_is(
            entries in proptest::collection::vec(any::<(u8, u16)>(), 0..200),
        ) {
            let ours: SortedMap<u8, u16> = entries.iter().copied().collect();
            let reference: BTreeMap<u8, u16> = entries.iter().copied().collect();
            prop_assert!(ours.iter().eq(reference.iter()));
            let bytes = crate::encode(&ours);
            prop_assert_eq!(&bytes, &crate::encode(&reference));
            prop_assert_eq!(postcard::from_bytes::<SortedMap<u8, u16>>(&bytes), Ok(ours));
            // Only our own writers keep the order.
            let bytes = crate::encode(&entries);
            let decoded: SortedMap<u8, u16> = postcard::from_bytes(&bytes).unwrap();
            prop_assert!(decoded.iter().eq(reference.iter()));
        }

        #[test]
        fn a_set_does_what_a_b_tree_does(
            first in proptest::collection::vec(any::<u8>(), 0..40),
            then in proptest::collection::vec(any::<(bool, u8)>(), 0..40),
            last in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut ours: SortedSet<u8> = first.iter().copied().collect();
            let mut reference: BTreeSet<u8> = first.iter().copied().collect();
            for (add, member) in then {
                prop_assert_eq!(ours.contains(&member), reference.contains(&member));
                if add {
                    prop_assert_eq!(ours.insert(member), reference.insert(member));
                } else {
                    prop_assert_eq!(ours.remove(&member), reference.remove(&member));
                }
                prop_assert_eq!((ours.len(), ours.is_empty()), (reference.len(), reference.is_empty()));
            }
            ours.extend(last.clone());
            reference.extend(last);
            prop_assert!(ours.iter().eq(&reference));
            prop_assert!((&ours).into_iter().eq(&reference));
            prop_assert_eq!(alloc::format!("{ours:?}"), alloc::format!("{reference:?}"));
            prop_assert!(ours.into_iter().eq(reference));
        }
    }

    /// A length over the number of the bytes that follow reserves no memory.
    #[test]
    fn a_length_that_promises_too_much_is_an_error() {
        let bytes = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 1, 1];
        assert!(postcard::from_bytes::<SortedMap<u8, u8>>(&bytes).is_err());
    }
}
