//! Chance: numbers from a seed, and how often what happens in a world.

use super::*;

/// The SplitMix64 generator: small, and the same on every platform.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    pub(super) fn permille(&mut self, n: u64) -> bool {
        self.below(1_000) < n
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub(super) fn micros(&mut self, max: u64) -> Duration {
        Duration::from_micros(self.below(max + 1))
    }
}

/// How often things happen in this seed's world, in permille of the occasions.
pub(super) struct Climate {
    pub(super) crashes: u64,
    pub(super) hangs: u64,
    pub(super) poison: u64,
    pub(super) lies: u64,
    pub(super) start_trouble: u64,
    pub(super) stops: u64,
    pub(super) initializer: bool,
    pub(super) timeouts: u64,
    pub(super) priorities: u64,
    pub(super) bound: u64,
    /// How often tasks need tokens, if the pool has any.
    pub(super) needs: u64,
    pub(super) ends: u64,
    pub(super) resizes: u64,
    /// How often the memory of a worker has grown too much after a task.
    pub(super) grows: u64,
}

impl Climate {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        Climate {
            crashes: dice.pick(&[0, 0, 20, 100, 400]),
            hangs: dice.pick(&[0, 0, 10, 50]),
            poison: dice.pick(&[0, 0, 0, 20]),
            lies: dice.pick(&[0, 0, 0, 5, 30]),
            start_trouble: dice.pick(&[0, 0, 0, 50, 300, 300]),
            stops: dice.pick(&[0, 0, 2, 10]),
            initializer: dice.permille(300),
            timeouts: dice.pick(&[0, 100, 500, 1_000]),
            priorities: dice.pick(&[0, 0, 300, 1_000]),
            bound: dice.pick(&[0, 0, 300, 1_000]),
            needs: 0,
            ends: dice.pick(&[0, 1, 3, 10]),
            resizes: dice.pick(&[0, 0, 300, 1_000]),
            grows: dice.pick(&[0, 0, 0, 20, 300]),
        }
    }

    pub(super) fn calm() -> Self {
        Climate {
            crashes: 0,
            hangs: 0,
            poison: 0,
            lies: 0,
            start_trouble: 0,
            stops: 0,
            initializer: false,
            timeouts: 0,
            priorities: 0,
            bound: 0,
            needs: 0,
            ends: 0,
            resizes: 0,
            grows: 0,
        }
    }
}
