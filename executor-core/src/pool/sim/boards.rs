//! The claim words of the workers, as the pool reads them.

use super::*;

/// The pool's view of the boards. A worker without a link has begun nothing.
pub(super) struct Boards<'a>(pub(super) &'a BTreeMap<WorkerId, Process>);

impl Boards<'_> {
    pub(super) fn linked(&self, worker: WorkerId) -> Option<&Process> {
        self.0.get(&worker).filter(|process| process.linked)
    }
}

impl Claims for Boards<'_> {
    fn begun(&self, worker: WorkerId, seq: u32) -> Begun {
        let Some(process) = self.linked(worker) else { return Begun::No };
        let words = process.words.borrow();
        match words.sent.get(&seq) {
            Some((Word::Begun(item) | Word::Last(item), ..)) => Begun::Yes(*item, words.began),
            _ => Begun::No,
        }
    }

    fn take_back(&self, worker: WorkerId, seq: u32, first: u32) -> bool {
        let Some(process) = self.linked(worker) else { return true };
        let mut words = process.words.borrow_mut();
        let Words { sent, holding, .. } = &mut *words;
        match sent.get_mut(&seq) {
            Some((word, base, items)) if *word == Word::Offered(first) => {
                *word = Word::Taken;
                let taken: Vec<_> = ids(*base, *items).collect();
                holding.retain(|held| !taken.contains(held));
                true
            }
            _ => false,
        }
    }

    fn take_rest(&self, worker: WorkerId, seq: u32) -> Option<u32> {
        let mut words = self.linked(worker)?.words.borrow_mut();
        let Words { sent, holding, .. } = &mut *words;
        let (word, base, items) = sent.get_mut(&seq)?;
        match *word {
            Word::Begun(at) => {
                *word = Word::Last(at);
                let taken: Vec<_> =
                    ids(*base, Items { first: at + 1, count: items.count }).collect();
                holding.retain(|held| !taken.contains(held));
                Some(at)
            }
            Word::Last(at) => Some(at),
            Word::Offered(_) | Word::Taken => None,
        }
    }

    fn taken_in(&self, worker: WorkerId) -> u64 {
        self.linked(worker).map_or(0, |process| process.taken_in)
    }
}
