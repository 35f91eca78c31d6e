//! Runs every target over the corpus, and then over mutations of the corpus.
//!
//! - `EXECUTOR_FUZZ_SECONDS`: total time in seconds. The default is two.
//! - `EXECUTOR_SEED`: the seed of the random numbers. It is printed. The default is different each
//!   time.
//! - `EXECUTOR_FUZZ_FILE`: runs this one input. The target is the name of its folder, or the part
//!   of its name before a dash.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{BOARD, TARGETS, Target};
use crate::{
    error::Failure,
    id::{Fingerprint, FnId, TaskId},
    os::signals::Signals,
    wire::{
        codec::Codec,
        frame::{FromWorker, Header, Order, Reply, ToWorker},
        handshake::{
            self, ErrorHook, Hello, Identity, Role, Setup, Transport, WorkerPlace, WorkerSetup,
        },
    },
};

/// An allocator that counts how much memory each thread has, and the most that it had.
struct Counting;

thread_local! {
    static HAS: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // The counters do not exist any more in a thread that ends.
    let _ = HAS.try_with(|has| {
        has.set(has.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(has.get())));
    });
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A random number generator: xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() >> 8) as usize % end.max(1)
    }
}

const INPUT_BYTES_MAX: usize = 4096;

fn mutate(dice: &mut Dice, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(input.len() + 1);
        let width = [1, 2, 4, 8][dice.below(4)];
        match dice.below(9) {
            0 if at < input.len() => input[at] ^= 1 << dice.below(8),
            1 if at < input.len() => input[at] = dice.roll() as u8,
            // The bytes may be a length.
            2 | 3 if at + width <= input.len() => {
                let values = [
                    0,
                    1,
                    u64::MAX,
                    1 << 31,
                    1 << 63,
                    0x7f,
                    0xffff,
                    input.len() as u64,
                    dice.roll(),
                ];
                let value = values[dice.below(values.len())];
                let bytes =
                    if dice.below(4) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
                input[at..at + width].copy_from_slice(&bytes[..width]);
            }
            4 => input.truncate(at),
            5 => drop(input.drain(at..(at + dice.below(16)).min(input.len()))),
            6 => {
                let again = input[at..(at + dice.below(64)).min(input.len())].to_vec();
                input.splice(at..at, again);
            }
            7 => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.insert(at, dice.roll() as u8),
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = home().join("corpus").join(target.name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    // The order of the entries in a folder is not defined. A seed should mean the same on every
    // machine.
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a file of the corpus")).collect()
}

/// Runs one input. If it fails, writes the input to a file.
fn try_one(target: &Target, input: &[u8]) {
    let before = HAS.get();
    PEAK.set(before);
    let run = catch_unwind(|| (target.run)(input));
    let (took, may) = ((PEAK.get() - before) as usize, (target.bytes_max)(input.len()));
    if run.is_ok() && took <= may {
        return;
    }
    let file = std::env::temp_dir().join(format!(
        "{}-{:x}",
        target.name,
        FnId::of(&format!("{input:?}")).0
    ));
    let kept = fs::write(&file, input);
    let how =
        format!("EXECUTOR_FUZZ_FILE={} cargo test -p executor-core --lib fuzz", file.display());
    panic!(
        "target {}: took {took} bytes of {may}, {run:?}; again by `{how}` ({kept:?})",
        target.name
    );
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn targets() -> impl Iterator<Item = Target> {
    TARGETS.iter().copied().chain([BOARD])
}

#[test]
#[expect(clippy::print_stdout, reason = "the seed, and what `--nocapture` asks for")]
fn every_decoder_holds_against_the_corpus_and_its_mutations() {
    if let Some(file) = std::env::var_os("EXECUTOR_FUZZ_FILE").map(PathBuf::from) {
        let folder = file.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        let matches = |target: &Target| {
            folder == Some(target.name) || name.split('-').next() == Some(target.name)
        };
        let target = targets().find(matches).expect("a target of this name");
        return try_one(&target, &fs::read(&file).expect("the input"));
    }
    let seed = number("EXECUTOR_SEED").unwrap_or_else(|| crate::os::clock::now_nanos() | 1);
    println!("EXECUTOR_SEED={seed}");
    let seconds = number("EXECUTOR_FUZZ_SECONDS").unwrap_or(2);
    let each = Duration::from_secs(seconds) / (TARGETS.len() as u32 + 1);
    for target in targets() {
        let corpus = corpus(&target);
        assert!(!corpus.is_empty());
        corpus.iter().for_each(|input| try_one(&target, input));
        let (mut dice, mut runs, start) = (Dice(seed), 0_u64, Instant::now());
        while start.elapsed() < each {
            for _ in 0..16 {
                let mut input = corpus[dice.below(corpus.len())].clone();
                mutate(&mut dice, &mut input, &corpus);
                try_one(&target, &input);
                runs += 1;
            }
        }
        let rate = runs as f64 / start.elapsed().as_secs_f64();
        println!(
            "{:>12}: {:>3} files, {runs:>9} runs, {rate:>9.0} a second",
            target.name,
            corpus.len()
        );
    }
}

// ---- the corpus -----------------------------------------------------------------------------

fn message(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat()
}

fn encoded(codec: Codec, which: u8, value: &impl Serialize) -> Vec<u8> {
    let mut out = crate::wire::buffer::Buffer::new();
    codec.encode(value, &mut out).expect("it can be encoded");
    [&[which], out.bytes()].concat()
}

/// Returns the seeds of a target: real messages of every kind, and edge cases.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let task = TaskId::from_raw(7);
    let order = |order, length: u64, payload: &[u8]| {
        let header = ToWorker { seq: 3, task, length, ..ToWorker::new(order) };
        [&header.to_bytes()[..], payload].concat()
    };
    let frame = |reply, length: u64, payload: &[u8]| {
        let header = FromWorker { task, length, ..FromWorker::new(reply) };
        [&header.to_bytes()[..], payload].concat()
    };
    let orders = [Order::Init, Order::Run, Order::Stop];
    let replies = [Reply::Ready, Reply::Done, Reply::Failed, Reply::Panicked, Reply::Credit];
    let nested = |marker: &[u8]| [&[23][..], &marker.repeat(600)].concat();
    let random = (1..9_u64).map(|seed| {
        let mut dice = Dice(seed * 77);
        (0..40 * seed).map(|_| dice.roll() as u8).collect::<Vec<u8>>()
    });
    let mut out: Vec<Vec<u8>> = match target {
        "frame" => {
            let mut out: Vec<_> = orders.map(|kind| message(&order(kind, 3, b"abc"))).into();
            out.extend(replies.map(|kind| message(&frame(kind, 3, b"abc"))));
            out.push(message(
                &[order(Order::Stop, 0, b""), order(Order::Run, 30, &[1; 30])].concat(),
            ));
            let whole = frame(Reply::Done, 100, &[9; 100]);
            out.push(
                [message(&whole[..70]), message(&whole[70..100]), message(&whole[100..])].concat(),
            );
            out.push(message(
                &[frame(Reply::Done, 0, b""), frame(Reply::Failed, 30, &[1; 30])].concat(),
            ));
            let lengths = [0, 1, 4, u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 40];
            out.extend(lengths.map(|length| {
                [message(&frame(Reply::Done, length, b"abc")), message(b"def")].concat()
            }));
            out.extend([message(&whole[..39]), message(b""), vec![1]]);
            out
        }
        "setup" => [Transport::Ring, Transport::Ipc]
            .into_iter()
            .flat_map(|transport| [0_usize, 1, 5].map(|args| (transport, args)))
            .map(|(transport, args)| {
                let args = (0..args).map(|at| vec![b'a'; at * 9].into()).collect();
                let directory = (transport == Transport::Ipc).then(|| b"/tmp/x".to_vec().into());
                let (stack_bytes, depth, stdin) = (Some(1 << 20), 1, true);
                let place = WorkerPlace {
                    index: 3,
                    pool: Some("tiles".into()),
                    slot: directory.is_some().then(|| "cuda:0".into()),
                    cpus: directory.is_some().then(|| vec![0, 1]),
                    nice: Some(-5),
                };
                let several_cpus = true;
                let worker = WorkerSetup {
                    nonce: 1,
                    stack_bytes,
                    several_cpus,
                    transport,
                    directory,
                    place,
                    restraints: Default::default(),
                    stdin,
                    control_group: false,
                    crash_report: true,
                    error_hook: Some(ErrorHook { function: FnId(7), codec: Codec::MessagePack }),
                };
                let identity = Identity {
                    depth,
                    args,
                    name: "PoolWorker-1".into(),
                    path: vec![1],
                    daemon: true,
                    worker: true,
                    parent: Some(("MainProcess".into(), 2)),
                    key: vec![7; 32].into(),
                    start_method: Some(0),
                    log_level: None,
                };
                let signals = Signals::default();
                handshake::to_bytes(&Setup {
                    parent: 2,
                    identity,
                    signals,
                    role: Role::Worker(Box::new(worker)),
                })
            })
            .chain([vec![], vec![1], vec![1, 0, 0, 0], vec![9, 9, 9, 9, 9]])
            .collect(),
        "hello" => [None, Some("name".to_owned())]
            .map(|server| {
                handshake::to_bytes(&Hello {
                    nonce: 7,
                    tasks: Fingerprint { hash: 1, count: 2 },
                    server,
                })
            })
            .into_iter()
            .chain([vec![], vec![1], vec![1, 0, 0, 0], [&[1, 0, 0, 0][..], &[0xff; 30]].concat()])
            .chain([[&[0xff; 4][..], b"\x02no"].concat(), [&[0xff; 4][..], &[0xff; 30]].concat()])
            .collect(),
        "failure" => {
            let failure = Failure {
                message: "boom".into(),
                type_name: "u64".into(),
                location: Some("a.rs:1:2".into()),
                backtrace: Some("0: main".into()),
                sources: vec!["one".into(), "two".into()],
                during: Some("while it slept".into()),
                value: Some((Codec::Postcard, vec![5, 5].into())),
            };
            let messagepack = Failure {
                value: Some((Codec::MessagePack, b"\x93\xa1a\xa1b\xa1c".to_vec().into())),
                ..failure.clone()
            };
            let list = Failure {
                type_name: std::any::type_name::<Vec<String>>().into(),
                ..messagepack.clone()
            };
            let all = [Failure::default(), failure, messagepack, list];
            let whole = all.map(|failure| ::postcard::to_stdvec(&failure).expect("plain data"));
            let cut = whole.clone().map(|bytes| bytes[..bytes.len() / 2].to_vec());
            whole.into_iter().chain(cut).chain([vec![0xff; 12], vec![]]).collect()
        }
        "items" => [(0, 0), (1, 0), (3, 2), (3, 9), (u32::MAX, u32::MAX), (1 << 30, 1)]
            .into_iter()
            .flat_map(|(count, item): (u32, u32)| {
                [[2_u32, 3, 6], [6, 2, 6], [u32::MAX, 0, 1]].map(|ends| {
                    let ends: Vec<u8> = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
                    [&item.to_le_bytes()[..], &count.to_le_bytes(), &ends, b"abcdef"].concat()
                })
            })
            .collect(),
        "postcard" | "messagepack" => {
            let codec = if target == "postcard" { Codec::Postcard } else { Codec::MessagePack };
            let mut out = vec![
                encoded(codec, 0, &7_u8),
                encoded(codec, 1, &(1_u16, -2_i16, 3_u32, -4_i32)),
                encoded(codec, 2, &(u64::MAX, i64::MIN, u128::MAX, i128::MIN)),
                encoded(codec, 3, &(1.5_f32, f64::NAN, true, '🦀')),
                encoded(codec, 4, &"text"),
                encoded(codec, 5, &"borrowed"),
                encoded(codec, 6, &serde_bytes::Bytes::new(b"bytes")),
                encoded(codec, 8, &[1_u8, 200, 3]),
                encoded(codec, 9, &[vec![1_u64, 1 << 60], vec![]]),
                encoded(codec, 10, &["a", "bc"]),
                encoded(codec, 11, &Some(1_u32)),
                encoded(codec, 12, &std::collections::BTreeMap::from([(1_u64, "one")])),
                encoded(codec, 17, &[1_u16; 7]),
                encoded(codec, 18, &Err::<u8, _>("no")),
                encoded(codec, 19, &("a", ["b", "c"])),
                encoded(codec, 20, &Duration::new(1, 2)),
                encoded(codec, 22, &()),
                nested(&[20, 1, 0]),
                nested(&[0x91]),
                nested(&[0xdd, 0, 0, 0xff, 0xff]),
                nested(&[20, 0xff, 0xff, 3, 0]),
                nested(&[23, 0, 1, 1, b'x']),
            ];
            out.extend(super::codecs::seeds(codec));
            for which in [6, 8, 9, 12, 13, 16, 23] {
                for kind in [15, 16, 20, 22] {
                    out.push([&[which, kind][..], &[0xff; 9], &[1]].concat());
                }
                out.push(vec![which, 0xdd, 0xff, 0xff, 0xff, 0xff]);
                out.push(vec![which, 0xdf, 0xff, 0xff, 0xff, 0xff]);
            }
            out
        }
        "requests" => crate::manager::fuzzed::request_seeds(),
        "replies" => crate::manager::fuzzed::reply_seeds(),
        "meeting" => crate::manager::fuzzed::meeting_seeds(),
        #[cfg(feature = "tls")]
        "way" => crate::manager::fuzzed::way_seeds(),
        "place" => vec![
            // A head in the first free line: written, opened, dropped, opened again.
            vec![3, 1, 4, 40, 0, 0, 8, 0, 3, 1, 4, 40, 0, 3, 3, 1, 4, 40, 0, 2, 3, 1, 4, 40, 0, 3],
            // Two objects that overlap.
            vec![
                3, 1, 4, 200, 0, 0, 8, 0, 3, 2, 4, 40, 0, 0, 1, 0, 3, 1, 4, 200, 0, 3, 3, 2, 4, 40,
                0, 3,
            ],
            vec![0, 0, 0, 0, 3, 2, 64, 2, 0, 3, 1, 63, 1, 63, 3],
        ],
        "ring" => vec![
            // Publish, drain.
            vec![0, 4, 1, 2, 3, 4, 8],
            [&[0, 43][..], &frame(Reply::Done, 3, b"abc"), &[8, 8]].concat(),
            [&[0, 60][..], &frame(Reply::Done, 40, &[1; 20]), &[0, 20], &[1; 20], &[8]].concat(),
            // A header with a length, parts, the end.
            vec![2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 255, 255, 0, 30, 7, 7, 7, 8, 7, 8, 8],
            // Overwritten words: first the position, then the contents; at once, and in the middle
            // of a message.
            vec![0, 4, 1, 2, 3, 4, 3, 0, 0, 0, 8, 8],
            vec![3, 0, 0, 5, 0, 64, 3, 4, 0, 0, 8, 8],
            vec![5, 2, 0, 0, 0, 5, 3, 4, 1, 0, 0, 200, 1, 1, 1, 1, 8, 8],
            // Sends until the ring is full, with an impossible position.
            vec![
                6, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 6, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 3, 6, 0,
                0, 6, 255, 255, 8,
            ],
        ],
        "message" => {
            // The same form as in `ipc/message.rs`: a mark, kind, descriptors, number, length.
            let head = |kind: u8, len: u64| {
                [&[b'x', b'q', kind, 0, 9, 0, 0, 0][..], &len.to_le_bytes()].concat()
            };
            let whole = [head(2, 5), b"bytes".to_vec()].concat();
            let mut out = Vec::new();
            for way in [[0, 3], [1, 3], [0, 0], [1, 1]] {
                let with = |pieces: &[&[u8]]| {
                    let pieces = pieces.iter().flat_map(|piece| message(piece));
                    way.iter().copied().chain(pieces).collect::<Vec<u8>>()
                };
                out.push(with(&[&whole, &whole]));
                out.push(with(&[&whole[..7], &whole[7..18], &whole[18..]]));
                out.push(with(&[&head(2, u64::MAX), &[7; 100], &head(3, 0)]));
                out.push(with(&[&[head(1, 100), vec![1; 100]].concat(), &head(4, 0)]));
                out.push(with(&[b"GET / HTTP/1.1\r\n\r\n"]));
            }
            out
        }
        "handshake" => {
            let said = |kind: u8, bytes: &[u8]| [&[kind, bytes.len() as u8][..], bytes].concat();
            let hello = said(0, b"");
            vec![
                hello.repeat(5),
                [hello.clone(), said(2, &[1; 64])].concat(),
                [said(1, &[7; 32]), said(3, &[1; 32])].concat(),
                [hello.clone(), said(1, &[7; 32]), said(4, b"")].concat(),
                [said(2, &[0; 64]), hello, said(2, &[0; 65])].concat(),
            ]
        }
        "queue" => {
            // The kind of the queue, then puts, gets and the operations between them.
            let ways = [
                vec![0, 3, b'a', b'b', b'c', 3, 0, 12, 13],
                vec![2, 0, 0, 2, 9, 0, 3, 1, 12, 13],
                [[0, 1].repeat(20), [3, 1].repeat(20), vec![12; 12]].concat(),
                vec![6, 1, 7, 0, 1, 200, 1, 2, 3, 3, 0, 15, 3, 0],
                vec![0, 10, 0, 0, 3, 255, 3, 0, 0, 1, 3],
            ];
            [0, 1, 4, 5, 8, 9, 16]
                .into_iter()
                .flat_map(|kind| ways.clone().map(|way| [&[kind][..], &way].concat()))
                .collect()
        }
        "board" => vec![vec![0; 64], vec![0xff; 64], (0..=255).collect()],
        _ => vec![vec![], vec![0; 100], vec![0xff; 300], (0..=255).collect()],
    };
    out.extend(random);
    out
}

/// Checks that the committed files contain what [`seeds`] makes. There may be more files: inputs
/// that once failed.
#[test]
fn the_corpus_is_there() {
    let renew = std::env::var_os("EXECUTOR_FUZZ_RENEW").is_some();
    for target in targets() {
        let folder = home().join("corpus").join(target.name);
        for (at, input) in seeds(target.name).into_iter().enumerate() {
            let file = folder.join(format!("seed-{at:02}"));
            if renew {
                fs::create_dir_all(&folder).expect("a folder");
                fs::write(&file, &input).expect("a file");
            }
            assert!(
                fs::read(&file).is_ok_and(|there| there == input),
                "{}: EXECUTOR_FUZZ_RENEW=1",
                file.display()
            );
        }
    }
}

#[test]
fn what_is_kept_of_a_message_at_any_depth_is_a_multiple_of_the_message() {
    const ELEMENTS: usize = 50_000;
    let of = |head: &[u8], each: &[u8]| {
        [head, &(ELEMENTS as u32).to_be_bytes(), &each.repeat(ELEMENTS)].concat()
    };
    for inner in
        [of(&[0xdd], &[1]), of(&[0xdf], &[0xa0, 1]), of(&[0xc6], &[1]), of(&[0xdd], &[0x90])]
    {
        for around in [&b"\x91"[..], b"\x81\xa1k"] {
            for depth in [0, 1, 5, 30, 120] {
                let bytes = [&around.repeat(depth)[..], &inner].concat();
                let before = HAS.get();
                PEAK.set(before);
                let read = Codec::MessagePack.decode::<super::codecs::Any>(&bytes);
                let peak = (PEAK.get() - before) as usize;
                match read {
                    Ok(_) => assert!(depth < 30, "{depth}"),
                    Err(error) => {
                        assert!(depth > 5 && error.message.contains("memory"), "{depth}: {error}");
                    }
                }
                assert!(peak < 1024 * bytes.len(), "{depth}: {peak} for {}", bytes.len());
            }
        }
    }
}
