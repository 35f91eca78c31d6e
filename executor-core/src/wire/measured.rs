//! What a worker has measured while it ran a task. It is sent in a frame of its own, in front of
//! the task's reply.

/// Bytes of the encoded form.
const BYTES: usize = 9 * 8;

/// The measurements. The times of day are those of [`clock`](crate::os::clock).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) began_nanos: u64,
    /// When the arguments were decoded.
    pub(crate) decoded_nanos: u64,
    pub(crate) ended_nanos: u64,
    pub(crate) user_micros: u64,
    pub(crate) system_micros: u64,
    /// The highest resident memory, in bytes. 0 if it is not known.
    pub(crate) peak_memory: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    /// Private memory at the end, in bytes. 0 if it is not known.
    pub(crate) private_memory: u64,
}

impl Measured {
    pub(crate) fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let numbers = [
            self.began_nanos,
            self.decoded_nanos,
            self.ended_nanos,
            self.user_micros,
            self.system_micros,
            self.peak_memory,
            self.minor_faults,
            self.major_faults,
            self.private_memory,
        ];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Returns `None` if these bytes are no measurements.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let number = |at: usize| {
            u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().expect("eight bytes"))
        };
        Some(Measured {
            began_nanos: number(0),
            decoded_nanos: number(1),
            ended_nanos: number(2),
            user_micros: number(3),
            system_micros: number(4),
            peak_memory: number(5),
            minor_faults: number(6),
            major_faults: number(7),
            private_memory: number(8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_survive_the_round_trip_and_nothing_else_is_taken_for_some() {
        let measured = Measured {
            began_nanos: 1,
            decoded_nanos: 2,
            ended_nanos: u64::MAX,
            user_micros: 3,
            system_micros: 4,
            peak_memory: 5,
            minor_faults: 6,
            major_faults: 7,
            private_memory: 8,
        };
        let bytes = measured.to_bytes();
        assert_eq!(Measured::from_bytes(&bytes), Some(measured));
        assert_eq!(Measured::from_bytes(&bytes[1..]), None);
        assert_eq!(Measured::from_bytes(&[0; BYTES + 1]), None);
    }
}
