//! Named memory and named lists: how long they live, which files the library leaves alone, and what
//! other users can do.

use std::{
    ffi::CStr,
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
};

use executor::{Process, Queue, ShareableList, SharedMemory, SharedMemoryScope, pipe, prelude::*};

use crate::support::{self, LONG, named_file, pool, watchdog};

/// Returns a name for this test. It contains the pid, because a file of an earlier run may still
/// exist.
fn name(what: &str) -> String {
    format!("named-{}-{what}", std::process::id())
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

// ---- lifetime -----------------------------------------------------------------------------------

#[test]
fn small_persistent_memory_is_intact_after_its_maker_dropped_it() {
    for size in [1, 100, 4_000, 8_000, 8_192, 100_000] {
        let name = name(&format!("persistent-{size}"));
        let memory = SharedMemory::create_named(&name, size).unwrap().persistent().unwrap();
        memory.write(0, b"x");
        let len = memory.len();
        drop(memory);
        let memory = SharedMemory::attach(&name).unwrap();
        assert_eq!((memory.len(), memory.read_to_vec()[0]), (len, b'x'), "{size}");
        memory.unlink().unwrap();
        drop(memory);
        drop(SharedMemory::create_named(&name, size).unwrap());
        assert_eq!(kind(SharedMemory::attach(&name)), io::ErrorKind::NotFound);
    }
}

#[test]
fn small_named_memory_remains_for_its_users_after_its_maker_dropped_it() {
    let _watchdog = watchdog();
    let (one, two) = (name("maker"), name("list"));
    let memory = SharedMemory::create_named(&one, 100).unwrap();
    let list = ShareableList::create_named(&two, ["a", "b"]).unwrap();
    let (other, other_list) =
        (SharedMemory::attach(&one).unwrap(), ShareableList::attach(&two).unwrap());
    other.own().unwrap();
    other.write(0, b"other");
    drop((memory, list));
    assert_eq!(&other.read_to_vec()[..5], b"other");
    assert_eq!(other_list.get(1), Some("b".into()));
    // The list's owner has ended, so its name is gone. The memory's new owner has not.
    assert_eq!(kind(ShareableList::attach(&two)), io::ErrorKind::NotFound);
    assert_eq!(SharedMemory::attach(&one).unwrap(), other);
    drop(other);
    assert_eq!(kind(SharedMemory::attach(&one)), io::ErrorKind::NotFound);
}

#[test]
fn owning_a_name_that_is_gone_is_an_error() {
    let name = name("late");
    let memory = SharedMemory::create_named(&name, 10).unwrap();
    let (late, persists) =
        (SharedMemory::attach(&name).unwrap(), SharedMemory::attach(&name).unwrap());
    drop(memory);
    assert_eq!(kind(late.own()), io::ErrorKind::NotFound);
    assert_eq!(kind(persists.persistent()), io::ErrorKind::NotFound);
    // Its users still have the memory, but the name now belongs to other memory.
    let second = SharedMemory::create_named(&name, 10).unwrap();
    late.write(0, b"first");
    assert_eq!(second.read_to_vec()[0], 0);
    assert_eq!(kind(late.unlink()), io::ErrorKind::NotFound);
    drop(late);
    assert_eq!(SharedMemory::attach(&name).unwrap(), second);
}

#[test]
fn making_a_name_that_is_gone_persistent_is_an_error() {
    let _watchdog = watchdog();
    let name = name("late-persistent");
    let owner = SharedMemory::create_named(&name, 1).unwrap();
    SharedMemory::attach(&name).unwrap().unlink().unwrap();
    assert_eq!(kind(owner.persistent()), io::ErrorKind::NotFound);
}

#[task]
fn len(memory: SharedMemory) -> (usize, Option<String>, Vec<u8>) {
    (memory.len(), memory.name(), memory.read_to_vec()[..5].to_vec())
}

#[task]
fn make(name: &str, size: usize) -> io::Result<SharedMemory> {
    let memory = SharedMemory::create_named(name, size)?;
    memory.write(0, b"child");
    Ok(memory)
}

#[task]
fn make_list(name: &str) -> io::Result<ShareableList> {
    ShareableList::create_named(name, ["child"])
}

#[test]
fn named_memory_given_away_by_its_owner_arrives() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let queue = Queue::<SharedMemory>::unbounded().unwrap();
    let (sender, receiver) = pipe::<SharedMemory, SharedMemory>().unwrap();
    for size in [100, 100_000] {
        let name = name(&format!("given-{size}"));
        let given = || {
            let memory = SharedMemory::create_named(&name, size).unwrap();
            memory.write(0, b"hello");
            memory
        };
        let arrived = |memory: SharedMemory| {
            assert!(memory.len() >= size);
            assert_eq!(
                (memory.name().as_ref(), &memory.read_to_vec()[..5]),
                (Some(&name), &b"hello"[..])
            );
            // The owner has dropped the memory, so its name is gone.
            assert_eq!(kind(SharedMemory::attach(&name)), io::ErrorKind::NotFound);
        };
        let (there, called, bytes) = pool.submit(len::task(given())).result().unwrap();
        assert!(there >= size && called.as_ref() == Some(&name) && bytes == b"hello");
        let child = Process::new(len::task(given())).start().unwrap();
        assert_eq!(child.join_timeout(LONG).unwrap().unwrap().2, b"hello");
        queue.put(given()).unwrap();
        arrived(queue.get_timeout(LONG).unwrap());
        sender.send(&given()).unwrap();
        arrived(receiver.recv_timeout(LONG).unwrap());
        let made = pool.submit(make::task(&name, size)).result().unwrap();
        assert_eq!((made.name(), &made.read_to_vec()[..5]), (Some(name.clone()), &b"child"[..]));
        // Send a second handle to memory that is still owned here.
        let memory = given();
        queue.put(memory.clone()).unwrap();
        assert_eq!(queue.get_timeout(LONG).unwrap(), memory);
        assert_eq!(SharedMemory::attach(&name).unwrap(), memory);
    }
    let list = pool.submit(make_list::task(&name("given-list"))).result().unwrap();
    assert_eq!(list.get(0), Some("child".into()));
}

#[task]
fn make_and_die(names: Vec<String>, size: usize) {
    let make = |name: &String| SharedMemory::create_named(name, size).unwrap();
    let _memories: Vec<_> = names.iter().map(make).collect();
    // SAFETY: only sends a signal to this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[test]
fn names_of_dead_owners_are_removed_as_others_are_made() {
    let _watchdog = watchdog();
    let names: Vec<_> = (0..100).map(|number| name(&format!("dead-{number}"))).collect();
    assert!(pool(1).submit(make_and_die::task(names.clone(), 1)).result().is_err());
    let left = || names.iter().filter(|name| named_file(name).is_some()).count();
    let mut made = 0;
    while left() > 0 {
        // Each creation checks two other names, chosen at random, out of about as many as there
        // are.
        assert!(made < 100_000, "{} are left", left());
        drop(SharedMemory::create_named(&name("living"), 1).unwrap());
        made += 1;
    }
}

#[test]
fn a_name_whose_owner_was_killed_can_be_reused_at_once() {
    let _watchdog = watchdog();
    let names = [name("free")];
    assert!(pool(1).submit(make_and_die::task(names.to_vec(), 1)).result().is_err());
    let memory = SharedMemory::create_named(&names[0], 1).unwrap();
    assert_eq!(SharedMemory::attach(&names[0]).unwrap(), memory);
}

/// Returns the processor time of this thread.
fn processor_time() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn making_a_name_is_not_slowed_down_by_ten_thousand_others() {
    let _watchdog = watchdog();
    let make = |what: &str| {
        let once = |round: usize| {
            let name = |number: usize| name(&format!("{what}-{round}-{number}"));
            let began = processor_time();
            let memories: Vec<_> = (0..50)
                .map(|number| SharedMemory::create_named(&name(number), 100).unwrap())
                .collect();
            let spent = processor_time() - began;
            drop(memories);
            spent
        };
        (0..10).map(once).min().unwrap()
    };
    let alone = make("alone");
    let others: Vec<_> = (0..10_000).map(|number| name(&format!("other-{number}"))).collect();
    for name in &others {
        drop(SharedMemory::create_named(name, 100).unwrap().persistent().unwrap());
    }
    let beside = make("beside");
    for name in &others {
        SharedMemory::attach(name).unwrap().unlink().unwrap();
    }
    println!("50 names: {alone:?}; beside 10,000 others: {beside:?}");
    // Checking every other name would take a hundred times as long.
    assert!(beside < alone * 4, "50 names: {alone:?}; beside 10,000 others: {beside:?}");
}

// ---- files that are not ours --------------------------------------------------------------------

#[test]
fn files_made_by_others_are_left_alone_whatever_their_name() {
    let _watchdog = watchdog();
    let mut files = Vec::new();
    for what in ["results.csv", "lock", "shared-memory"] {
        let path = format!("/dev/shm/executor.{}.{what}", std::process::id());
        fs::write(&path, "a week of work").unwrap();
        files.push(path);
    }
    // The same for files in the place of a name.
    let taken = ["text", "ours-by-the-first-word", "folder", "nothing"].map(name);
    let keeps: Vec<_> = taken
        .iter()
        .map(|name| SharedMemory::create_named(name, 100).unwrap().persistent().unwrap())
        .collect();
    let places: Vec<_> = taken.iter().map(|name| named_file(name).unwrap()).collect();
    for (keep, place) in keeps.iter().zip(&places) {
        // The note keeps the folder in existence after the name was unlinked.
        fs::write(place.with_file_name("note"), "mine").unwrap();
        keep.unlink().unwrap();
    }
    fs::write(&places[0], "a week of work").unwrap();
    fs::write(&places[1], "executor").unwrap();
    fs::create_dir(&places[2]).unwrap();
    for round in 0..200 {
        let memory = SharedMemory::create_named(&name(&format!("beside-{round}")), 10).unwrap();
        assert_eq!(SharedMemory::attach(&memory.name().unwrap()).unwrap(), memory);
    }
    SharedMemory::sweep();
    for name in &taken {
        assert_eq!(kind(SharedMemory::create_named(name, 10)), io::ErrorKind::AlreadyExists);
    }
    for name in &taken[..3] {
        assert_eq!(kind(SharedMemory::attach(name)), io::ErrorKind::InvalidData);
    }
    assert_eq!(kind(SharedMemory::attach(&taken[3])), io::ErrorKind::NotFound);
    for path in files {
        assert_eq!(fs::read_to_string(&path).unwrap(), "a week of work");
        fs::remove_file(path).unwrap();
    }
    assert_eq!(fs::read_to_string(&places[0]).unwrap(), "a week of work");
    assert_eq!(fs::read_to_string(&places[1]).unwrap(), "executor");
    for place in &places {
        fs::remove_dir_all(place.parent().unwrap()).unwrap();
        // These folders are removed only if they are empty.
        let _ = fs::remove_dir(place.ancestors().nth(2).unwrap());
        let _ = fs::remove_dir(place.ancestors().nth(3).unwrap());
    }
}

#[test]
fn a_symlink_or_a_fifo_in_the_place_of_a_name_is_not_followed() {
    let _watchdog = watchdog();
    let target = SharedMemory::create_named(&name("target"), 100).unwrap();
    for what in ["link", "pipe"] {
        let name = name(what);
        let memory = SharedMemory::create_named(&name, 100).unwrap().persistent().unwrap();
        let place = named_file(&name).unwrap();
        fs::remove_file(&place).unwrap();
        match what {
            "link" => {
                std::os::unix::fs::symlink(named_file(&target.name().unwrap()).unwrap(), &place)
                    .unwrap()
            }
            _ => rustix::fs::mknodat(
                rustix::fs::CWD,
                &place,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                0,
            )
            .unwrap(),
        }
        assert_eq!(kind(SharedMemory::attach(&name)), io::ErrorKind::InvalidData, "{what}");
        assert_eq!(kind(SharedMemory::create_named(&name, 10)), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(memory.unlink()), io::ErrorKind::NotFound);
        fs::remove_file(&place).unwrap();
        // An empty folder belongs to nobody, so the name can be used again.
        drop(SharedMemory::create_named(&name, 10).unwrap());
        assert_eq!(named_file(&name), None);
    }
}

// ---- other users --------------------------------------------------------------------------------

/// Runs an ignored test in a process with its own `/dev/shm`. Prints a message where this is not
/// permitted.
#[track_caller]
fn with_own_directory(test: &str) {
    with_directory(test, c"mode=1777");
}

/// Like [`with_own_directory`], but mounts `/dev/shm` with these options.
#[track_caller]
fn with_directory(test: &str, options: &'static CStr) {
    let mut command = Command::new("/proc/self/exe");
    let test = format!("named::{test}");
    command.args(["--exact", &test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null());
    // SAFETY: the closure makes only system calls, with strings and null pointers.
    unsafe {
        command.pre_exec(|| {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let null = std::ptr::null();
            let done = |result: libc::c_int| match result {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            };
            done(libc::unshare(libc::CLONE_NEWNS))?;
            done(libc::mount(null, c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()))?;
            done(libc::mount(
                c"tmpfs".as_ptr(),
                c"/dev/shm".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                options.as_ptr().cast(),
            ))
        });
    }
    match command.output() {
        Err(error) => println!("not run, since it takes a /dev/shm of its own: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let fine = output.status.success() && said.contains("1 passed");
            assert!(fine, "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Runs a shell script as another user.
fn stranger(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).uid(65534).gid(65534).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn entries() -> Vec<String> {
    let entry = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut entries: Vec<_> = fs::read_dir("/dev/shm").unwrap().map(entry).collect();
    entries.sort();
    entries
}

#[test]
fn names_work_although_other_users_took_the_folders_they_need() {
    with_own_directory("names_work_although_a_stranger_took_the_folders");
}

#[task]
fn attach_and_write(name: &str) -> io::Result<()> {
    SharedMemory::attach(name)?.write(0, b"child");
    Ok(())
}

#[test]
#[ignore = "run by the test above"]
fn names_work_although_a_stranger_took_the_folders() {
    let _watchdog = watchdog();
    let pool = pool(1);
    // The folder exists only while there are names in it.
    let memory = SharedMemory::create_named("prize", 100).unwrap();
    let [folder] = &entries()[..] else { panic!("{:?}", entries()) };
    let folder = format!("/dev/shm/{folder}");
    let mode = fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    let inside =
        named_file("prize").unwrap().strip_prefix(&folder).unwrap().parent().unwrap().to_owned();
    // Keep a complete copy of the file for the script below.
    fs::copy(named_file("prize").unwrap(), "/tmp/executor-named-test").unwrap();
    fs::set_permissions("/tmp/executor-named-test", fs::Permissions::from_mode(0o644)).unwrap();
    drop(memory);
    assert_eq!(entries(), [""; 0]);
    // The other user makes a writable folder that contains memory of that user, a file, a link, and
    // a thousand more folders.
    let inside = inside.display();
    stranger(&format!(
        "umask 0; mkdir -p -m 777 '{folder}/{inside}'; chmod 777 '{folder}'
         cp /tmp/executor-named-test '{folder}/{inside}/memory'; chmod 666 '{folder}/{inside}/memory'
         echo > '{folder}.1'; ln -s /tmp '{folder}.2'; mkdir -m 777 '{folder}.3' '{folder}.4'
         for i in $(seq 5 1000); do mkdir '{folder}.'$i; done"
    ));
    fs::remove_file("/tmp/executor-named-test").unwrap();
    let before = entries();
    assert_eq!(kind(SharedMemory::attach("prize")), io::ErrorKind::NotFound, "the stranger's");
    let memory = SharedMemory::create_named("prize", 100).unwrap();
    pool.submit(attach_and_write::task("prize")).result().unwrap();
    assert_eq!(&memory.read_to_vec()[..5], b"child");
    let own: Vec<_> = entries().into_iter().filter(|entry| !before.contains(entry)).collect();
    assert_eq!(own, [format!("{}.1001", folder.trim_start_matches("/dev/shm/"))]);
    // When the other user removes some of these, processes must not disagree about which folder to
    // use.
    stranger(&format!("rm -r '{folder}' '{folder}.1' '{folder}.4'"));
    let newcomer = support::pool(1);
    newcomer.submit(attach_and_write::task("prize")).result().unwrap();
    let mut scope = SharedMemoryScope::new();
    let name = scope.create(10).unwrap().name().unwrap();
    assert!(named_file(&name).unwrap().starts_with(format!("{folder}.1001")));
    drop((memory, scope));
    assert_eq!(kind(SharedMemory::attach("prize")), io::ErrorKind::NotFound);
}

#[task]
fn is_not_found(name: &str) -> bool {
    SharedMemory::attach(name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[test]
fn a_link_made_by_another_user_does_not_decide_which_memory_is_attached() {
    with_own_directory("a_link_in_a_folder_of_another_user_is_not_followed");
}

#[test]
#[ignore = "run by the test above"]
fn a_link_in_a_folder_of_another_user_is_not_followed() {
    let _watchdog = watchdog();
    let folder = only_folder();
    stranger(&format!("mkdir -m 755 '{folder}'"));
    let _memory = SharedMemory::create_named("chosen", 100).unwrap();
    let chosen = named_file("chosen").unwrap().parent().unwrap().to_owned();
    assert!(chosen.starts_with(format!("{folder}.1")), "{chosen:?}");
    // Wherever the name `asked` may be looked up, a link leads to another name of the victim.
    let chosen = chosen.display();
    stranger(&format!(
        "for a in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do for b in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do
             mkdir '{folder}/'$a$b; ln -s '{chosen}' '{folder}/'$a$b/=asked
         done; done"
    ));
    // A new worker is a process that has not chosen a folder yet.
    assert!(pool(1).submit(is_not_found::task("asked")).result().unwrap());
}

#[test]
fn folders_removed_by_other_users_do_not_split_the_names() {
    with_own_directory("names_are_found_after_other_users_removed_their_folders");
}

#[task]
fn make_persistent(name: &str) -> io::Result<()> {
    SharedMemory::create_named(name, 100)?.persistent().map(drop)
}

#[test]
#[ignore = "run by the test above"]
fn names_are_found_after_other_users_removed_their_folders() {
    let _watchdog = watchdog();
    let folder = only_folder();
    stranger(&format!(
        "mkdir '{folder}'; for i in 1 2 3 4 5 6 7 8 9; do mkdir '{folder}.'$i; done"
    ));
    let _first = SharedMemory::create_named("first", 100).unwrap();
    stranger(&format!(
        "rmdir '{folder}'; for i in 1 2 3 4 5 6 7 8 9; do rmdir '{folder}.'$i; done"
    ));
    // A new worker is a process that has not chosen a folder yet.
    let newcomer = pool(1);
    newcomer.submit(attach_and_write::task("first")).result().unwrap();
    let newcomer = pool(1);
    newcomer.submit(make_persistent::task("second")).result().unwrap();
    SharedMemory::attach("second").unwrap().unlink().unwrap();
}

/// Returns the folder that names are stored in at first. The folder no longer exists on return.
fn only_folder() -> String {
    drop(SharedMemory::create_named("for-the-folder", 1).unwrap().persistent().unwrap());
    let [folder] = &entries()[..] else { panic!("{:?}", entries()) };
    let folder = format!("/dev/shm/{folder}");
    SharedMemory::attach("for-the-folder").unwrap().unlink().unwrap();
    assert_eq!(entries(), [""; 0]);
    folder
}

#[test]
fn names_of_dead_owners_do_not_use_up_a_small_file_system() {
    with_directory(
        "names_of_dead_owners_are_removed_in_a_small_file_system",
        c"mode=1777,size=64m,nr_inodes=100",
    );
}

#[test]
#[ignore = "run by the test above"]
fn names_of_dead_owners_are_removed_in_a_small_file_system() {
    const MUCH: usize = 40 << 20;
    let _watchdog = watchdog();
    let die = |names: Vec<String>, size| {
        assert!(pool(1).submit(make_and_die::task(names, size)).result().is_err())
    };
    // As when a program crashes and starts again, twice.
    die(vec!["cache".into()], MUCH);
    die(vec!["cache".into()], MUCH);
    let memory = SharedMemory::create_named("cache", MUCH).unwrap();
    // A living owner keeps the name, and there is no room for other memory of this size.
    assert_eq!(kind(SharedMemory::create_named("cache", MUCH)), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(SharedMemory::create_named("other", MUCH)), io::ErrorKind::StorageFull);
    drop(memory);
    die(vec!["third".into()], MUCH);
    let list = ShareableList::create_named("other", [vec![1_u8; MUCH / 2]]).unwrap();
    assert_eq!(
        kind(ShareableList::create_named("other", [vec![1_u8; MUCH / 2]])),
        io::ErrorKind::AlreadyExists
    );
    drop(list);
    // Each name also takes folders, and the file system has a limited number of inodes.
    let make = |number| SharedMemory::create_named(&format!("{number}"), 1).ok();
    let most = (0..100).map_while(make).collect::<Vec<_>>().len();
    assert!((20..100).contains(&most), "{most}");
    die((0..most).map(|number| format!("{number}")).collect(), 1);
    let _memory = SharedMemory::create_named("last", 1).unwrap();
}

#[test]
fn no_file_is_left_after_all_names_are_gone() {
    with_own_directory("no_file_is_left_after_dropping_names_and_sweeping");
}

#[test]
#[ignore = "run by the test above"]
fn no_file_is_left_after_dropping_names_and_sweeping() {
    let _watchdog = watchdog();
    let names: Vec<_> = (0..50).map(|number| name(&number.to_string())).collect();
    let memories: Vec<_> =
        names.iter().map(|name| SharedMemory::create_named(name, 10).unwrap()).collect();
    assert_eq!(entries().len(), 1);
    memories[7].unlink().unwrap();
    drop(memories);
    assert_eq!(entries(), [""; 0]);
    assert!(pool(1).submit(make_and_die::task(names, 1)).result().is_err());
    assert_eq!(SharedMemory::sweep(), 50);
    assert_eq!(entries(), [""; 0]);
}
