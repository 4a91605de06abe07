//! A slab whose keys are never valid twice.
//!
//! Tasks, operations in flight and thread-owned values are all named by a [`Key`] that leaves the
//! thread: in a waker, in the kernel's `user_data`, in a handle. Invariant: a name that comes back
//! after its slot was reused finds nothing, instead of the slot's new tenant, since each key carries
//! the generation of its slot. A slot whose 32-bit generation is used up is retired, never wrapped
//! round.

/// A slot's index in the low half, its generation in the high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    /// A key that no slab ever gives out.
    pub(crate) const NONE: Key = Key(u64::MAX);

    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half is the index")]
    fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values under generational keys.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return Key::new(index, slot.generation);
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        assert!(index != u32::MAX, "more than 2^32 - 1 values in one slab");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Key::new(index, 0)
    }

    fn slot_mut(&mut self, key: Key) -> Option<&mut Slot<T>> {
        let slot = self.slots.get_mut(key.index())?;
        (u64::from(slot.generation) == key.0 >> 32).then_some(slot)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slot_mut(key)?.value.as_mut()
    }

    /// Takes the value out and ends the key.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slot_mut(key)?;
        let value = slot.value.take()?;
        slot.generation += 1;
        let reusable = slot.generation != u32::MAX;
        self.len -= 1;
        if reusable && let Ok(index) = u32::try_from(key.index()) {
            self.free.push(index);
        }
        Some(value)
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().filter_map(|slot| slot.value)
    }

    /// The keys of all values, in no order.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let occupied = self.slots.iter().enumerate().filter(|(_, slot)| slot.value.is_some());
        occupied
            .filter_map(|(index, slot)| Some(Key::new(u32::try_from(index).ok()?, slot.generation)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_does_not_find_the_slots_new_tenant() {
        let mut slab = Slab::new();
        let old = slab.insert("old");
        assert_eq!(slab.remove(old), Some("old"));
        let new = slab.insert("new");
        assert_eq!(old.index(), new.index(), "the slot is reused");
        assert_eq!(slab.remove(old), None);
        assert!(slab.get_mut(old).is_none());
        assert_eq!(slab.get_mut(new), Some(&mut "new"));
        assert_eq!(slab.remove(Key::NONE), None);
    }

    #[test]
    fn a_slot_whose_generations_are_used_up_is_retired() {
        let mut slab = Slab::new();
        let first = slab.insert(());
        slab.slots[0].generation = u32::MAX - 1;
        assert!(slab.remove(first).is_none());
        let last = Key::new(0, u32::MAX - 1);
        assert_eq!(slab.remove(last), Some(()));
        assert_eq!(slab.insert(()).index(), 1, "a new slot, not the worn one");
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.keys().len(), 1);
    }
}
