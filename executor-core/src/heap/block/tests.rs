//! Tests of blocks: what a peer may write and send.

use rustix::fs::{SealFlags, fcntl_add_seals};

use super::*;
use crate::os::file;

fn any(_: BlockKind, _: Access, _: usize) -> bool {
    true
}

fn open(block: &Block, offset: u64, len: u64) -> Result<Block, &'static str> {
    Block::open(Arc::clone(&block.inner.segment), offset, len, any, None)
}

/// Acts as if a handle were sent to another process.
fn send(block: &Block) {
    block.inner.segment.note_sent(block.inner.offset);
}

#[test]
fn a_place_that_is_made_up_is_refused() {
    let block = Block::allocate(BlockKind::Value, 40).unwrap();
    let _next = Block::allocate(BlockKind::Value, 40).unwrap();
    let (offset, len) = (block.inner.offset as u64, 40);
    assert!(open(&block, offset, len).is_err(), "nobody has got a handle of it");
    send(&block);
    assert!(open(&block, offset, len).unwrap() == block);
    let end = block.inner.segment.len() as u64;
    for (offset, len) in [
        (0, 40),
        (offset + 1, 40),
        (offset, 41),
        (offset, 0),
        (offset + 64, 4000),
        (end, 40),
        (end - 64, 64),
        (offset, u64::MAX),
        (u64::MAX, 40),
        (u64::MAX - 63, 64),
    ] {
        assert!(open(&block, offset, len).is_err(), "{len} at {offset}");
    }
    // Another process may write another kind there. What this process has noted about the block
    // does not change.
    block.header().kind.store(BlockKind::Lock as u32, Ordering::Relaxed);
    assert!(matches!(open(&block, offset, len), Err("it overlaps another object")));
    block.header().kind.store(BlockKind::Value as u32, Ordering::Relaxed);
    block.header().access.store(Access::of::<u8>().0, Ordering::Relaxed);
    assert!(matches!(open(&block, offset, len), Err("it overlaps another object")));
    block.header().access.store(Access::BY_KIND.0, Ordering::Relaxed);
    let lock = Block::allocate(BlockKind::Lock, 8).unwrap();
    let under = Block::open(Arc::clone(&block.inner.segment), offset, len, any, Some(&lock));
    assert!(under.is_err(), "with another lock than here");
}

/// Runs a test of this file in a process of its own, because it needs the heap to itself.
fn alone(name: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("heap::block::tests::{name}"), "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}{why}", output.status);
}

const KINDS: [BlockKind; 4] =
    [BlockKind::Value, BlockKind::RawValue, BlockKind::Array, BlockKind::RawArray];
const LENS: [usize; 4] = [8, 40, 100, 1_000];

/// What a process can do that received one object of a segment: write to the segment, and send
/// places.
struct Peer {
    random: u64,
}

impl Peer {
    /// Returns a number below `end`, by xorshift.
    fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % end as u64) as usize
    }

    fn any<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Writes a header that looks like the header of an object.
    fn write_header(&mut self, segment: &Segment, offset: usize) {
        // SAFETY: within the mapping, aligned to `LINE`, and atomics.
        let header = unsafe { segment.at().add(offset).cast::<BlockHeader>().as_ref() };
        header.kind.store(self.any(&KINDS) as u32, Ordering::Relaxed);
        header.access.store(0, Ordering::Relaxed);
        header.len.store(self.any(&LENS) as u64, Ordering::Relaxed);
    }

    /// Returns an offset in the segment, usually one where an object is, was, or will be next.
    fn place(&mut self, segment: &Segment, near: &[usize]) -> usize {
        let anywhere = LINE + self.below(segment.len() / LINE - 2) * LINE;
        match near.is_empty() || self.below(4) == 0 {
            true => anywhere,
            false => (self.any(near) + self.below(3) * LINE).min(anywhere.max(segment.len() / 2)),
        }
    }
}

/// Asserts that any two handles are of the same object, or of memory that does not overlap.
fn assert_apart(held: &[Block]) {
    let mut held: Vec<_> = held.iter().map(|block| &*block.inner).collect();
    held.sort_by_key(|inner| (inner.segment.inode(), inner.offset));
    for pair in held.windows(2) {
        let (one, other) = (pair[0], pair[1]);
        let same = (one.offset, one.len, one.kind) == (other.offset, other.len, other.kind);
        let before = one.segment.inode() != other.segment.inode()
            || one.offset + HEADER_BYTES + one.len <= other.offset;
        assert!(
            same || before,
            "{:?} of {} at {} and {:?} of {} at {}",
            one.kind,
            one.len,
            one.offset,
            other.kind,
            other.len,
            other.offset
        );
    }
}

#[test]
fn whatever_a_peer_writes_and_sends_no_two_objects_of_a_process_overlap() {
    alone("objects_beside_a_peer_that_makes_up_handles");
}

#[test]
#[ignore = "run by the test above"]
fn objects_beside_a_peer_that_makes_up_handles() {
    for seed in 1..=60_u64 {
        let mut peer = Peer { random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
        let first = Block::allocate(BlockKind::Value, 8).unwrap();
        let segment = Arc::clone(&first.inner.segment);
        let mut near = vec![first.inner.offset];
        let mut held = vec![first];
        for _ in 0..300 {
            match peer.below(6) {
                0 | 1 => {
                    let block = Block::allocate(peer.any(&KINDS), peer.any(&LENS)).unwrap();
                    near.push(block.inner.offset);
                    let body = block.bytes(0, block.len());
                    // SAFETY: within the block, and nothing writes to it during the comparison.
                    let body = unsafe { std::slice::from_raw_parts(body.as_ptr(), block.len()) };
                    assert!(body.iter().all(|byte| *byte == 0), "not zeroed");
                    held.push(block);
                }
                2 => {
                    let at = peer.below(held.len());
                    if held.len() > 1 {
                        held.swap_remove(at);
                    }
                }
                3 => send(&held[peer.below(held.len())]),
                4 => {
                    let offset = peer.place(&segment, &near);
                    peer.write_header(&segment, offset);
                }
                _ => {
                    let (offset, len) = (peer.place(&segment, &near), peer.any(&LENS));
                    held.extend(Block::open(
                        Arc::clone(&segment),
                        offset as u64,
                        len as u64,
                        any,
                        None,
                    ));
                }
            }
            assert_apart(&held);
        }
    }
}

#[test]
fn a_made_up_handle_beside_threads_that_make_and_drop_objects_overlaps_none() {
    alone("threads_that_make_and_drop_objects_beside_made_up_handles");
}

#[test]
#[ignore = "run by the test above"]
fn threads_that_make_and_drop_objects_beside_made_up_handles() {
    for seed in 1..=20_u64 {
        let first = Block::allocate(BlockKind::Value, 8).unwrap();
        let segment = Arc::clone(&first.inner.segment);
        let (mut kept, received) = std::thread::scope(|scope| {
            let makes = |seed: u64| {
                let mut choice = Peer { random: seed };
                let mut kept = Vec::new();
                for _ in 0..400 {
                    let block = Block::allocate(choice.any(&KINDS), 40).unwrap();
                    if choice.below(20) == 0 {
                        kept.push(block);
                    }
                }
                kept
            };
            let makers = [seed, seed + 1_000].map(|seed| scope.spawn(move || makes(seed)));
            let forges = scope.spawn(|| {
                let mut peer = Peer { random: seed + 2_000 };
                let mut received = Vec::new();
                for _ in 0..20_000 {
                    let offset = LINE + peer.below(segment.len() / LINE - 2) * LINE;
                    received.extend(Block::open(
                        Arc::clone(&segment),
                        offset as u64,
                        40,
                        any,
                        None,
                    ));
                }
                received
            });
            let kept: Vec<_> = makers.into_iter().flat_map(|maker| maker.join().unwrap()).collect();
            (kept, forges.join().unwrap())
        });
        kept.extend(received);
        assert_apart(&kept);
    }
}

#[test]
fn a_block_that_lies_across_a_made_up_one_is_not_given_out() {
    let block = Block::allocate(BlockKind::Value, 40).unwrap();
    let segment = &block.inner.segment;
    let free = segment.len() - 64;
    segment.note_received(free, 64, || Ok(7)).unwrap();
    for _ in 0..2_000 {
        let other = Block::allocate(BlockKind::Value, 40).unwrap();
        send(&other);
        assert!(!Arc::ptr_eq(&other.inner.segment, segment) || other.inner.offset != free);
    }
}

#[test]
fn an_object_that_looks_like_a_made_up_one_is_made_elsewhere() {
    let block = Block::allocate(BlockKind::Value, 40).unwrap();
    let segment = &block.inner.segment;
    // Made-up handles that look like the object that is allocated next. They are everywhere,
    // because other tests allocate objects, too.
    let tag = tag(BlockKind::RawArray, Access::BY_KIND, None);
    let made_up: Vec<_> = (LINE..segment.len() - LINE)
        .step_by(LINE)
        .filter(|offset| segment.note_received(*offset, with_header(48), || Ok(tag)).is_ok())
        .collect();
    for _ in 0..made_up.len() + 10 {
        let made = Block::allocate(BlockKind::RawArray, 48).unwrap();
        send(&made);
        let offset = made.inner.offset;
        assert!(
            !Arc::ptr_eq(&made.inner.segment, segment) || !made_up.contains(&offset),
            "{offset}"
        );
    }
}

#[test]
fn memory_that_could_shrink_is_not_taken_for_sealed_because_it_is_mapped_already() {
    let file = || file::anonymous("x").unwrap();
    let named = Block::allocate_in(file(), BlockKind::Memory, 64).unwrap();
    let again = || Arc::new(named.descriptor().try_clone().unwrap());
    let by_name = |file| OwnFile::check(file).and_then(Segment::open_named);
    rustix::fs::fchmod(named.descriptor(), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    assert!(by_name(again()).is_ok());
    let error = Segment::open(again()).err().unwrap();
    assert!(error.to_string().contains("could shrink"), "{error}");
    let sealed = Block::allocate(BlockKind::Value, 40).unwrap();
    assert!(Segment::open(Arc::new(sealed.descriptor().try_clone().unwrap())).is_ok());
}

#[test]
fn small_memory_in_a_file_stays_what_it_is_when_its_maker_has_no_handle_left() {
    let block = Block::allocate_in(file::anonymous("x").unwrap(), BlockKind::Memory, 64).unwrap();
    let file = block.descriptor().try_clone().unwrap();
    rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    drop(block);
    let file = OwnFile::check(Arc::new(file)).unwrap();
    assert!(Block::open_file(file, &[BlockKind::Memory], |len| len == 64).is_ok());
}

#[test]
fn memory_of_another_version_is_refused_with_both_versions() {
    let block = Block::allocate(BlockKind::Value, 40).unwrap();
    // A copy of the file. It has the same content, but this process does not know it yet.
    let file = file::anonymous("x").unwrap();
    let segment = &block.inner.segment;
    // SAFETY: within the mapping. An object of another test may change meanwhile, but any bytes
    // will do here.
    let mut bytes = unsafe { std::slice::from_raw_parts(segment.at().as_ptr(), 4096) }.to_vec();
    // The version comes after the magic number.
    bytes[8..12].copy_from_slice(&77_u32.to_ne_bytes());
    file::write_at(&file, &bytes, 0).unwrap();
    let open = |file: OwnedFd| {
        rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).unwrap();
        OwnFile::check(Arc::new(file)).and_then(Segment::open_named).err().unwrap()
    };
    let error = open(file);
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("another version of this library (layout 77."), "{error}");
    let file = file::anonymous("x").unwrap();
    bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    bytes[0] = b'x';
    file::write_at(&file, &bytes, 0).unwrap();
    let error = open(file);
    assert!(error.to_string().contains("no memory of this library"), "{error}");
}

#[test]
#[expect(clippy::print_stdout, reason = "says what is not run")]
fn a_file_that_another_user_could_make_shorter_is_refused() {
    use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
    let check = |mode, owner: Option<u32>| {
        let file = file::anonymous("x").unwrap();
        fchmod(&file, Mode::from_raw_mode(mode)).unwrap();
        if let Some(owner) = owner {
            fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).unwrap();
        }
        OwnFile::check(Arc::new(file)).map(drop).map_err(|error| error.to_string())
    };
    let refused = Err("another user could make it shorter".to_owned());
    assert_eq!(check(0o600, None), Ok(()));
    assert_eq!(check(0o1600, None), Ok(()), "persistent");
    assert_eq!(check(0o620, None), refused);
    assert_eq!(check(0o602, None), refused);
    if rustix::process::geteuid().is_root() {
        assert_eq!(check(0o600, Some(65534)), refused);
    } else {
        println!("not run: only root can give a file to another user");
    }
    let folder = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    assert!(OwnFile::check(Arc::new(folder)).unwrap_err().to_string().contains("no file"));
}

#[test]
fn other_files_are_refused() {
    let file = |len: u64, seals| {
        let file = file::anonymous("x").unwrap();
        file::set_len(&file, len).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        Segment::open(Arc::new(file))
    };
    assert!(file(8192, SealFlags::empty()).is_err(), "it could shrink");
    assert!(file(0, SealFlags::SHRINK).is_err());
    assert!(file(8192, SealFlags::SHRINK).is_err(), "nothing of ours");
    assert!(file(8192, SealFlags::SHRINK | SealFlags::WRITE).is_err());
    let (socket, _other) = crate::os::socket::pair().unwrap();
    assert!(Segment::open(Arc::new(socket)).is_err());
    assert!(Segment::open(Arc::new(tempfile::tempfile().unwrap().into())).is_err());
}

#[test]
fn a_segment_that_is_received_again_is_the_same_one() {
    let block = Block::allocate(BlockKind::Value, 40).unwrap();
    let again = Segment::open(Arc::new(block.descriptor().try_clone().unwrap())).unwrap();
    assert!(Arc::ptr_eq(&again, &block.inner.segment));
    let large = Block::allocate(BlockKind::Array, 1 << 20).unwrap();
    let file = Arc::new(large.descriptor().try_clone().unwrap());
    drop(large);
    // It is mapped again, because this process had no handle left.
    let segment = Segment::open(file).unwrap();
    assert!(segment.len() > 1 << 20);
}
