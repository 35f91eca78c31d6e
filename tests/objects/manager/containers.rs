//! Lists, maps, sets, values, arrays and namespaces.

use std::collections::{BTreeMap, HashMap, HashSet};

use executor::{
    manager::{Any, Array, Dict, List, Manager, ManagerError, Namespace, Set, Value},
    prelude::*,
};
use serde::{Deserialize, Serialize};

use super::{Done, start};
use crate::support::{rounds, watchdog};

#[task]
fn fill(dict: Dict<Any, Any>, list: List<i32>) -> Done {
    dict.insert(&1.into(), &"1".into())?;
    dict.insert(&"2".into(), &2.into())?;
    dict.insert(&0.25.into(), &Any::None)?;
    list.push(&666)
}

#[test]
fn se06_a_child_changes_a_dict_of_mixed_types_and_a_list_and_the_parent_sees_it() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let (dict, list) = (manager.dict([]).unwrap(), manager.list([]).unwrap());
    start(fill::task(dict.clone(), list.clone())).join().unwrap();
    let expected = [(1.into(), "1".into()), ("2".into(), 2.into()), (0.25.into(), Any::None)];
    assert_eq!(dict.snapshot().unwrap(), expected);
    assert_eq!(format!("{:?}", dict.snapshot().unwrap()), r#"[(1, "1"), ("2", 2), (0.25, None)]"#);
    assert_eq!(list.snapshot().unwrap(), [666]);
}

#[task]
fn push(list: List<i32>, item: i32) -> Done {
    list.push(&item)
}

#[test]
fn mg01_a_list_behaves_like_a_vec_and_nested_lists_show_later_changes() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list(0..5).unwrap();
    list.extend([5, 6]).unwrap();
    assert_eq!(list.snapshot().unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    // Slices.
    assert_eq!(list.range(2..4).unwrap().unwrap(), [2, 3]);
    assert_eq!(list.range(7..7).unwrap().unwrap(), [0; 0]);
    assert_eq!(list.range(0..7).unwrap().unwrap(), list.snapshot().unwrap());
    #[expect(clippy::reversed_empty_ranges, reason = "a mistake that the list has to notice")]
    let reversed = list.range(4..2).unwrap();
    assert_eq!((reversed, list.range(5..8).unwrap()), (None, None));
    // Multiplied and concatenated: Python's `*=` and `+=`.
    list.extend(list.snapshot().unwrap()).unwrap();
    assert_eq!(list.len().unwrap(), 14);
    assert_eq!((list.count(&3).unwrap(), list.position(&3).unwrap()), (2, Some(3)));
    assert!(list.splice(7..14, [7]).unwrap());
    assert!(!list.splice(7..9, [7]).unwrap());
    assert_eq!(list.snapshot().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
    list.reverse().unwrap();
    assert_eq!((list.pop().unwrap(), list.remove(0).unwrap()), (Some(0), Some(7)));
    assert_eq!((list.remove(6).unwrap(), list.remove(usize::MAX).unwrap()), (None, None));
    assert!(list.remove_item(&3).unwrap() && !list.remove_item(&3).unwrap());
    list.sort_by_key(|item| (item % 2, *item)).unwrap();
    assert_eq!(list.snapshot().unwrap(), [2, 4, 6, 1, 5]);
    list.retain(|item| *item != 4).unwrap();
    list.sort().unwrap();
    assert_eq!(list.snapshot().unwrap(), [1, 2, 5, 6]);
    // Nested: the inner list is shared, not copied.
    let inner = manager.list([1]).unwrap();
    let outer = manager.list([inner.clone(), inner.clone()]).unwrap();
    start(push::task(outer.get(0).unwrap().unwrap(), 2)).join().unwrap();
    inner.push(&3).unwrap();
    for item in &outer {
        let item = item.unwrap();
        assert_eq!(item, inner);
        assert_eq!(item.snapshot().unwrap(), [1, 2, 3]);
    }
    let twice = manager.list([outer.clone()]).unwrap();
    outer.push(&manager.list([9]).unwrap()).unwrap();
    let deep = twice.get(0).unwrap().unwrap().get(2).unwrap().unwrap();
    assert_eq!(deep.snapshot().unwrap(), [9]);
}

/// A generator of numbers that looks random and is the same for the same seed.
struct Random(u64);

impl Random {
    fn seeded(what: &str) -> Self {
        let seed = std::env::var("EXECUTOR_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64)
        });
        println!("{what}: EXECUTOR_SEED={seed}");
        Random(seed | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

#[test]
fn a_list_changed_at_random_is_always_equal_to_a_vec() {
    let _watchdog = watchdog();
    let mut random = Random::seeded("a list");
    let manager = Manager::start().unwrap();
    let (list, mut vec) = (manager.list::<u8>([]).unwrap(), Vec::new());
    for _ in 0..rounds() {
        let (item, len) = (random.below(5) as u8, vec.len());
        let (a, b) = (random.below(len + 2), random.below(len + 2));
        match random.below(11) {
            0 | 1 => {
                list.push(&item).unwrap();
                vec.push(item);
            }
            2 => {
                assert_eq!(list.insert(a, &item).unwrap(), a <= len);
                if a <= len {
                    vec.insert(a, item);
                }
            }
            3 => {
                assert_eq!(list.remove(a).unwrap(), (a < len).then(|| vec.remove(a)));
            }
            4 => {
                let place = vec.get_mut(a).map(|place| std::mem::replace(place, item));
                assert_eq!(list.set(a, &item).unwrap(), place);
            }
            5 => {
                let (start, end) = (a.min(b), a.max(b));
                let items = vec![item; random.below(4)];
                assert_eq!(list.splice(start..end, items.clone()).unwrap(), end <= len);
                if end <= len {
                    vec.splice(start..end, items);
                }
            }
            6 => {
                list.sort().unwrap();
                vec.sort_unstable();
            }
            7 => {
                list.reverse().unwrap();
                vec.reverse();
            }
            8 => {
                let at = vec.iter().position(|other| *other == item);
                assert_eq!(list.position(&item).unwrap(), at);
                assert_eq!(list.remove_item(&item).unwrap(), at.is_some());
                at.map(|at| vec.remove(at));
            }
            9 => {
                list.retain(|other| *other != item).unwrap();
                vec.retain(|other| *other != item);
            }
            _ => assert_eq!(list.pop().unwrap(), vec.pop()),
        }
        assert_eq!(list.snapshot().unwrap(), vec);
        assert_eq!(list.iter().collect::<Result<Vec<_>, _>>().unwrap(), vec);
        assert_eq!(list.count(&item).unwrap(), vec.iter().filter(|o| **o == item).count());
        assert_eq!(list.is_empty().unwrap(), vec.is_empty());
    }
}

#[test]
fn mg02_an_iteration_sees_what_changes_behind_its_page_and_stays_exhausted() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    // Each item fills a page.
    let item = |byte: u8| serde_bytes::ByteBuf::from(vec![byte; 70_000]);
    let list = manager.list([1, 2, 3].map(item)).unwrap();
    let mut items = list.iter();
    assert_eq!(items.next().unwrap().unwrap(), item(1));
    list.set(1, &item(20)).unwrap();
    list.push(&item(4)).unwrap();
    assert_eq!(items.next().unwrap().unwrap(), item(20));
    assert_eq!([items.next(), items.next()].map(|i| i.unwrap().unwrap()), [item(3), item(4)]);
    assert!(items.next().is_none());
    list.push(&item(5)).unwrap();
    assert!(items.next().is_none() && items.next().is_none());
    // What changes before the first item is asked for is seen as well.
    let numbers = manager.list([1, 2]).unwrap();
    let mut items = numbers.iter();
    numbers.set(0, &10).unwrap();
    assert_eq!(items.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), [10, 2]);
}

#[test]
fn mg04_copy_keys_values_and_items_of_a_dict_are_right() {
    let manager = Manager::start().unwrap();
    let dict = manager.dict::<u32, String>([]).unwrap();
    let text = |key: u32| char::from_u32(key).unwrap().to_string();
    for key in 65..70 {
        assert_eq!(dict.insert(&key, text(key).as_str()).unwrap(), None);
    }
    let entries: Vec<_> = (65..70).map(|key| (key, text(key))).collect();
    assert_eq!(dict.snapshot().unwrap(), entries);
    assert_eq!(dict.keys().unwrap(), (65..70).collect::<Vec<_>>());
    assert_eq!(dict.values().unwrap(), ["A", "B", "C", "D", "E"]);
    assert_eq!(dict.iter().collect::<Result<Vec<_>, _>>().unwrap(), entries);
    assert_eq!((dict.len().unwrap(), dict.is_empty().unwrap()), (5, false));
    assert!(dict.contains_key(&66).unwrap() && !dict.contains_key(&99).unwrap());
    let many = dict.get_many(&[69, 1, 65]).unwrap();
    assert_eq!(many, [Some("E".to_owned()), None, Some("A".to_owned())]);
    // A key that is set again keeps its place; one that was removed comes to the end.
    assert_eq!(dict.insert(&66, "b").unwrap().as_deref(), Some("B"));
    assert_eq!(dict.remove(&65).unwrap().as_deref(), Some("A"));
    assert_eq!((dict.remove(&65).unwrap(), dict.get(&65).unwrap()), (None, None));
    dict.extend([(65, "a".to_owned()), (65, "aa".to_owned())]).unwrap();
    assert_eq!(dict.keys().unwrap(), [66, 67, 68, 69, 65]);
    assert_eq!(dict.get_or_insert(&65, "x").unwrap(), "aa");
    assert_eq!(dict.get_or_insert(&70, "F").unwrap(), "F");
    assert_eq!(dict.entry(71).or_insert_with(|| "G".to_owned()).unwrap(), "G");
    assert_eq!(dict.pop().unwrap(), Some((71, "G".to_owned())));
    assert_eq!(dict.pop().unwrap(), Some((70, "F".to_owned())));
    dict.clear().unwrap();
    assert_eq!((dict.pop().unwrap(), dict.snapshot().unwrap()), (None, vec![]));
}

#[test]
fn mg05_an_iteration_of_a_dict_that_is_cleared_ends_without_an_error() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    // One page: what it has fetched is still yielded.
    let small = manager.dict([(1, 'a'), (2, 'b')]).unwrap();
    let mut entries = small.iter();
    assert_eq!(entries.next().unwrap().unwrap(), (1, 'a'));
    small.clear().unwrap();
    assert_eq!(entries.next().unwrap().unwrap(), (2, 'b'));
    assert!(entries.next().is_none());
    // Several pages: the iteration ends after the first, and sees what was inserted since then at
    // most once.
    let large = manager.dict((0..50_000_u32).map(|key| (key, key))).unwrap();
    let mut entries = large.iter();
    assert_eq!(entries.next().unwrap().unwrap(), (0, 0));
    large.clear().unwrap();
    large.extend([(1_000_000, 1), (1_000_001, 2)]).unwrap();
    let rest: Vec<_> = entries.map(|entry| entry.unwrap().0).collect();
    assert!(rest.len() < 49_000, "it has not ended: {}", rest.len());
    assert_eq!(rest.iter().collect::<HashSet<_>>().len(), rest.len(), "each key once");
}

#[test]
fn an_iteration_yields_what_stays_exactly_once_whatever_changes() {
    let _watchdog = watchdog();
    let mut random = Random::seeded("iterations");
    let manager = Manager::start().unwrap();
    let count = 30_000_u64;
    let dict = manager.dict((0..count).map(|key| (key, key))).unwrap();
    let set = manager.set(0..count).unwrap();
    let mut stays: HashSet<u64> = (0..count).collect();
    let (mut keys, mut items) = (Vec::new(), Vec::new());
    let (mut of_dict, mut of_set) = (dict.iter(), set.iter());
    loop {
        let (key, item) = (of_dict.next(), of_set.next());
        if key.is_none() && item.is_none() {
            break;
        }
        keys.extend(key.map(|entry| entry.unwrap().0));
        items.extend(item.map(Result::unwrap));
        if keys.len() % 100 == 0 && keys.len() < count as usize / 2 {
            let (gone, new) = (random.below(count as usize) as u64, count + keys.len() as u64);
            if stays.remove(&gone) {
                dict.remove(&gone).unwrap();
                set.remove(&gone).unwrap();
            }
            dict.insert(&new, &new).unwrap();
            set.insert(&new).unwrap();
        }
    }
    for seen in [keys, items] {
        let distinct: HashSet<u64> = seen.iter().copied().collect();
        assert_eq!(distinct.len(), seen.len(), "each at most once");
        assert!(stays.is_subset(&distinct), "those that stay at least once");
    }
}

#[test]
fn mg08_a_namespace_has_the_fields_that_were_set_and_not_removed() {
    let manager = Manager::start().unwrap();
    let space = manager.namespace().unwrap();
    space.set("name", &Any::from("Bob")).unwrap();
    space.set("job", &Any::from("Builder")).unwrap();
    space.set("_hidden", &Any::from("hidden")).unwrap();
    assert!(space.contains("name").unwrap() && !space.contains("other").unwrap());
    assert!(space.remove("job").unwrap() && !space.remove("job").unwrap());
    assert_eq!(space.get::<Any>("job").unwrap(), None);
    assert_eq!(space.names().unwrap(), ["name", "_hidden"]);
    let fields = space.snapshot().unwrap();
    assert_eq!(format!("{fields:?}"), r#"[("name", "Bob"), ("_hidden", "hidden")]"#);
    // The handle itself names the object and none of its fields.
    let debug = format!("{space:?}");
    assert!(debug.starts_with("Namespace(") && !debug.contains("Bob"), "{debug}");
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Point {
    x: i32,
    name: String,
}

#[task]
fn work_on_all(
    list: List<u32>,
    dict: Dict<String, Vec<u32>>,
    value: Value<Point>,
    array: Array<f64>,
    space: Namespace,
) -> Done {
    list.push(&2)?;
    list.extend([3, 4])?;
    list.remove(0)?;
    dict.insert("a", &vec![1, 2])?;
    dict.remove("gone")?;
    let mut point = value.get()?;
    point.x += 1;
    value.set(&point)?;
    for index in 0..array.len()? {
        let item = array.get(index)?.expect("it is there");
        array.set(index, &(item * 2.0))?;
    }
    space.set("x", &1_u8)?;
    space.set("y", &vec![2.5])?;
    space.remove("gone").map(drop)
}

#[test]
fn mg20_the_parent_sees_exactly_what_a_child_did_to_every_container() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([1]).unwrap();
    let dict = manager.dict([("gone".to_owned(), vec![])]).unwrap();
    let value = manager.value(Point { x: 1, name: "p".to_owned() }).unwrap();
    let array = manager.array([1.0, 2.0, 3.0]).unwrap();
    let space = manager.namespace().unwrap();
    space.set("gone", &0).unwrap();
    let task =
        work_on_all::task(list.clone(), dict.clone(), value.clone(), array.clone(), space.clone());
    start(task).join().unwrap();
    assert_eq!(list.snapshot().unwrap(), [2, 3, 4]);
    assert_eq!(dict.snapshot().unwrap(), [("a".to_owned(), vec![1, 2])]);
    assert_eq!(value.get().unwrap(), Point { x: 2, name: "p".to_owned() });
    assert_eq!(value.swap(&Point { x: 0, name: String::new() }).unwrap().x, 2);
    assert_eq!(array.snapshot().unwrap(), [2.0, 4.0, 6.0]);
    assert_eq!(array.range(1..3).unwrap().unwrap(), [4.0, 6.0]);
    assert!(array.write(1, vec![0.5, 0.25]).unwrap() && !array.write(2, vec![1.0, 1.0]).unwrap());
    assert_eq!(array.snapshot().unwrap(), [2.0, 0.5, 0.25]);
    assert_eq!((array.get(3).unwrap(), array.set(3, &1.0).unwrap()), (None, None));
    assert_eq!(space.names().unwrap(), ["x", "y"]);
    assert_eq!(space.get::<u8>("x").unwrap(), Some(1));
    assert_eq!(space.get::<Vec<f64>>("y").unwrap(), Some(vec![2.5]));
}

#[test]
fn mg21_a_set_behaves_like_a_hash_set() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let set = manager.set(["a", "b", "c", "a"].map(str::to_owned)).unwrap();
    let plain = |items: &[&str]| -> HashSet<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    };
    assert_eq!((set.len().unwrap(), set.to_hash_set().unwrap()), (3, plain(&["a", "b", "c"])));
    assert!(set.contains("a").unwrap() && !set.contains("x").unwrap());
    assert!(set.insert("d").unwrap() && !set.insert("d").unwrap());
    assert!(set.remove("d").unwrap() && !set.remove("d").unwrap());
    let own = plain(&["a", "b", "c"]);
    for other in
        [&["a", "b"][..], &["a", "b", "c"], &["a", "x"], &["x"], &[], &["a", "b", "c", "d"]]
    {
        let other = plain(other);
        assert_eq!(set.is_disjoint(&other).unwrap(), own.is_disjoint(&other), "{other:?}");
        assert_eq!(set.is_subset(&other).unwrap(), own.is_subset(&other), "{other:?}");
        assert_eq!(set.is_superset(&other).unwrap(), own.is_superset(&other), "{other:?}");
        assert_eq!(set.union(&other).unwrap(), &own | &other);
        assert_eq!(set.intersection(&other).unwrap(), &own & &other);
        assert_eq!(set.difference(&other).unwrap(), &own - &other);
        assert_eq!(set.symmetric_difference(&other).unwrap(), &own ^ &other);
        // The same in place, each on a set of its own.
        let copy = || manager.set(own.clone()).unwrap();
        let changed = |change: fn(&Set<String>, HashSet<String>) -> Done| {
            let copy = copy();
            change(&copy, other.clone()).unwrap();
            copy.to_hash_set().unwrap()
        };
        assert_eq!(changed(|set, other| set.extend(other)), &own | &other);
        assert_eq!(changed(|set, other| set.retain_all(other)), &own & &other);
        assert_eq!(changed(|set, other| set.remove_all(other)), &own - &other);
        assert_eq!(changed(|set, other| set.toggle_all(other)), &own ^ &other);
    }
    assert_eq!(set.iter().collect::<Result<HashSet<_>, _>>().unwrap(), own);
    let mut popped = HashSet::new();
    while let Some(item) = set.pop().unwrap() {
        assert!(popped.insert(item));
    }
    assert_eq!((popped, set.is_empty().unwrap()), (own, true));
    set.insert("z").unwrap();
    set.clear().unwrap();
    assert_eq!(set.snapshot().unwrap(), [""; 0]);
}

#[test]
fn values_of_all_sizes_come_back_equal() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let sizes =
        [0, 1, 7, 63, 64, 65, 4_095, 4_096, 65_535, 65_536, 65_537, 131_072, 262_144, 262_145];
    let sizes = sizes.into_iter().chain([1 << 20, 20 << 20]);
    let dict = manager.dict::<usize, serde_bytes::ByteBuf>([]).unwrap();
    let queue = manager.queue::<serde_bytes::ByteBuf>(None).unwrap();
    let mut expected = HashMap::new();
    for size in sizes {
        let bytes: Vec<u8> = (0..size).map(|at| (at * 31 + size) as u8).collect();
        let bytes = serde_bytes::ByteBuf::from(bytes);
        dict.insert(&size, &bytes).unwrap();
        queue.put(&bytes).unwrap();
        assert!(dict.get(&size).unwrap().unwrap() == bytes, "{size}");
        assert!(queue.get().unwrap() == bytes, "{size}");
        expected.insert(size, bytes);
    }
    for entry in &dict {
        let (size, bytes) = entry.unwrap();
        assert!(expected.remove(&size).unwrap() == bytes, "{size}");
    }
    assert!(expected.is_empty());
}

#[test]
fn a_value_without_bytes_is_not_taken_for_none() {
    let manager = Manager::start().unwrap();
    let dict = manager.dict([((), ())]).unwrap();
    assert_eq!((dict.get(&()).unwrap(), dict.len().unwrap()), (Some(()), 1));
    assert_eq!((dict.remove(&()).unwrap(), dict.get(&()).unwrap()), (Some(()), None));
    let list = manager.list([None, Some(())]).unwrap();
    assert_eq!((list.get(0).unwrap(), list.get(2).unwrap()), (Some(None), None));
    assert_eq!(list.pop().unwrap(), Some(Some(())));
    let queue = manager.queue(None).unwrap();
    queue.put(&()).unwrap();
    assert_eq!((queue.try_get().unwrap(), queue.try_get().unwrap()), (Some(()), None));
}

const MILLION: u32 = 1_000_000;

/// Returns the peak of this process's own memory since `reset_peak`, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

/// Lets the peak begin anew, if the kernel can do that. Without it the peak still grows when much
/// is read at once.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Iterates a list and a dict. Returns by how much the memory of this process has grown meanwhile,
/// and by how much when it read them as a whole.
#[task]
fn iterate(list: List<u32>, dict: Dict<u32, u32>) -> Result<[usize; 2], ManagerError> {
    // The connection and the first page need memory that stays.
    assert_eq!(list.iter().take(10).count() + dict.iter().take(10).count(), 20);
    reset_peak();
    let before = peak();
    assert!(list.iter().map(Result::unwrap).eq(0..MILLION));
    assert!(dict.iter().map(Result::unwrap).eq((0..MILLION).map(|key| (key, !key))));
    let in_pages = peak() - before;
    assert_eq!((list.snapshot()?.len(), dict.snapshot()?.len()), (1_000_000, 1_000_000));
    Ok([in_pages, peak() - before])
}

#[test]
fn a_million_entries_are_iterated_in_pages() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list(0..MILLION).unwrap();
    let dict = manager.dict((0..MILLION).map(|key| (key, !key))).unwrap();
    // In a process of its own: the memory of this one is that of other tests as well.
    let child = start(iterate::task(list.clone(), dict.clone()));
    let [in_pages, whole] = child.join().unwrap();
    assert!(whole > 10 << 20 && in_pages < whole / 8, "{in_pages} of {whole} bytes");
    assert_eq!((list.len().unwrap(), dict.len().unwrap()), (1_000_000, 1_000_000));
}

#[derive(Debug, Serialize, Deserialize)]
struct Other(BTreeMap<String, String>);

#[test]
fn a_value_of_another_type_is_an_error_that_names_the_expected_type() {
    let manager = Manager::start().unwrap();
    let space = manager.namespace().unwrap();
    space.set("n", "some text").unwrap();
    let error = space.get::<Other>("n").unwrap_err();
    assert!(matches!(error, ManagerError::Decode(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("what a manager has stored cannot be read: as a "), "{text}");
    assert!(text.contains("Other"), "{text}");
    assert!(text.contains("probably stored as another type, through another handle"), "{text}");
    assert_eq!(space.get::<String>("n").unwrap().unwrap(), "some text", "it is still there");
}

#[task]
fn read_as_texts(list: List<String>) -> Result<Vec<String>, ManagerError> {
    list.snapshot()
}

#[test]
fn a_process_that_takes_a_handle_for_another_type_gets_a_decode_error() {
    let _watchdog = watchdog();
    let manager = Manager::start().unwrap();
    let list = manager.list([u64::MAX, 1]).unwrap();
    // A handle says nothing of its types where it is stored: only values that are read do.
    let space = manager.namespace().unwrap();
    space.set("list", &list).unwrap();
    let texts = space.get::<List<String>>("list").unwrap().unwrap();
    assert!(matches!(texts.snapshot(), Err(ManagerError::Decode(_))));
    let failed = start(read_as_texts::task(texts)).join().unwrap_err();
    assert!(matches!(failed, TaskError::Failed(_)), "{failed:?}");
    assert!(failed.to_string().contains("cannot be read"), "{failed}");
    // An object of another kind.
    let dict = space.get::<Dict<u8, u8>>("list").unwrap().unwrap();
    let error = dict.get(&1).unwrap_err();
    assert!(matches!(error, ManagerError::Protocol(_)), "{error:?}");
    assert_eq!(list.snapshot().unwrap(), [u64::MAX, 1]);
}
