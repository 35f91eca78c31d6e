//! Compares containers with simple models of them, over random requests.

use super::testing::{Answer, Body, Desk, Dice, number, number_in};
use crate::manager::protocol::{Fields, Kind, ObjectId, Operation as O, Status};

const ROUNDS: u64 = 30;
const STEPS: u64 = 400;

/// Runs a test with several seeds.
fn rounds(test: impl Fn(&mut Dice, u64)) {
    for seed in 0..number_in("EXECUTOR_ROUNDS").unwrap_or(ROUNDS) {
        test(&mut Dice(seed), seed);
    }
}

/// Returns a text that is often the same as an earlier one.
fn any_text(dice: &mut Dice) -> String {
    format!("text {}", dice.below(40))
}

fn body(texts: &[String]) -> Body {
    texts.iter().fold(Body::new(), |body, text| body.value(text))
}

/// Returns a few texts.
fn any_texts(dice: &mut Dice) -> Vec<String> {
    (0..dice.below(6)).map(|_| any_text(dice)).collect()
}

/// Reads all pages. Between two of them, `change` may change the container.
fn pages(
    desk: &mut Desk,
    object: ObjectId,
    bytes_max: u64,
    mut change: impl FnMut(&mut Desk),
) -> Vec<String> {
    let client = super::ClientId(1);
    let (mut cursor, mut items) = (0, Vec::new());
    loop {
        let answer = desk.ask(client, O::Page, object, number(cursor).number(bytes_max));
        items.extend(answer.texts().into_iter().map(str::to_owned));
        cursor = answer.done();
        if cursor == 0 {
            return items;
        }
        change(desk);
    }
}

#[test]
fn a_map_is_like_a_list_of_pairs() {
    rounds(|dice, seed| {
        let (mut desk, a, _) = Desk::with_two();
        let map = desk.create(a, Kind::Map, Body::new());
        let mut model = Vec::<(String, String)>::new();
        let insert = |model: &mut Vec<(String, String)>, key: &str, value: &str| match model
            .iter_mut()
            .find(|(known, _)| known == key)
        {
            Some((_, place)) => Some(std::mem::replace(place, value.to_owned())),
            None => {
                model.push((key.to_owned(), value.to_owned()));
                None
            }
        };
        let one = |answer: &Answer| {
            assert!(matches!(answer.status, Status::Done | Status::Missing));
            answer.texts().first().map(|text| (*text).to_owned())
        };
        for _ in 0..STEPS {
            let (key, value) = (any_text(dice), any_text(dice));
            let at = model.iter().position(|(known, _)| *known == key);
            match dice.below(9) {
                0..3 => {
                    let asked = Body::new().bytes(&key).value(&value);
                    let previous = desk.ask(a, O::MapInsert, map, asked);
                    assert_eq!(one(&previous), insert(&mut model, &key, &value), "{seed}");
                }
                3..5 => {
                    let removed = desk.ask(a, O::MapRemove, map, Body::new().bytes(&key));
                    assert_eq!(one(&removed), at.map(|at| model.remove(at).1), "{seed}");
                }
                5 => {
                    let got = desk.ask(a, O::MapGet, map, Body::new().bytes(&key));
                    assert_eq!(one(&got), at.map(|at| model[at].1.clone()), "{seed}");
                }
                6 => {
                    let popped = desk.ask(a, O::MapPop, map, Body::new());
                    assert_eq!(one(&popped), model.pop().map(|(key, _)| key), "{seed}");
                }
                7 => {
                    let texts = any_texts(dice);
                    let mut asked = Body::new();
                    for text in texts {
                        asked = asked.bytes(&text).value(&value);
                        insert(&mut model, &text, &value);
                    }
                    desk.ask(a, O::MapExtend, map, asked).done();
                }
                _ if dice.percent(10) => {
                    desk.ask(a, O::Clear, map, Body::new()).done();
                    model.clear();
                }
                _ => {
                    let items: Vec<_> =
                        model.iter().flat_map(|(key, value)| [&**key, &**value]).collect();
                    let snapshot = desk.ask(a, O::Snapshot, map, Body::new());
                    assert_eq!(snapshot.texts(), items, "{seed}");
                    let bytes_max = dice.below(100);
                    assert_eq!(pages(&mut desk, map, bytes_max, |_| {}), items, "{seed}");
                }
            }
            let len = desk.ask(a, O::Len, map, Body::new()).done();
            assert_eq!(len, model.len() as u64, "{seed}");
        }
    });
}

#[test]
fn a_list_is_like_a_vec() {
    rounds(|dice, seed| {
        let (mut desk, a, _) = Desk::with_two();
        let mut model = any_texts(dice);
        let mut initial = number(0);
        initial.0.extend(body(&model).0);
        let list = desk.create(a, Kind::List, initial);
        for _ in 0..STEPS {
            let (text, texts) = (any_text(dice), any_texts(dice));
            let len = model.len() as u64;
            let (start, end) = (dice.below(len + 1), dice.below(len + 2));
            let index = start as usize;
            match dice.below(12) {
                0 => {
                    desk.ask(a, O::ListExtend, list, body(&texts)).done();
                    model.extend(texts);
                }
                1 => {
                    desk.ask(a, O::ListInsert, list, number(start).value(&text)).done();
                    model.insert(index, text);
                }
                2 => {
                    let removed = desk.ask(a, O::ListRemove, list, number(start));
                    assert_eq!(removed.status == Status::Done, start < len, "{seed}");
                    if start < len {
                        assert_eq!(removed.texts(), [model.remove(index)], "{seed}");
                    }
                }
                3 => {
                    let set = desk.ask(a, O::ListSet, list, number(start).value(&text));
                    assert_eq!(set.status == Status::Done, start < len, "{seed}");
                    if start < len {
                        let previous = std::mem::replace(&mut model[index], text);
                        assert_eq!(set.texts(), [previous], "{seed}");
                    }
                }
                4 => {
                    let range = desk.ask(a, O::ListRange, list, number(start).number(end));
                    match model.get(index..end as usize) {
                        Some(items) => assert_eq!(range.texts(), items, "{seed}"),
                        None => assert_eq!(range.status, Status::Missing, "{seed}"),
                    }
                }
                5 => {
                    let mut asked = number(start).number(end);
                    asked.0.extend(body(&texts).0);
                    let spliced = desk.ask(a, O::ListSplice, list, asked);
                    if start <= end && end <= len {
                        spliced.done();
                        model.splice(index..end as usize, texts);
                    } else {
                        assert_eq!(spliced.status, Status::Missing, "{seed}");
                    }
                }
                6 => {
                    let asked = Body::new().value(&text).number(start).number(end);
                    let found = desk.ask(a, O::ListFind, list, asked);
                    let found = (found.status == Status::Done).then_some(found.number);
                    let there = (start..end.min(len)).find(|at| model[*at as usize] == text);
                    assert_eq!(found, there, "{seed}");
                }
                7 => {
                    let count = desk.ask(a, O::ListCount, list, Body::new().value(&text)).done();
                    let there = model.iter().filter(|item| **item == text).count();
                    assert_eq!(count, there as u64, "{seed}");
                }
                8 => {
                    desk.ask(a, O::ListReverse, list, Body::new()).done();
                    model.reverse();
                }
                9 if dice.percent(20) => {
                    desk.ask(a, O::Clear, list, Body::new()).done();
                    model.clear();
                }
                _ => {
                    let snapshot = desk.ask(a, O::Snapshot, list, Body::new());
                    assert_eq!(snapshot.texts(), model, "{seed}");
                    let bytes_max = dice.below(100);
                    assert_eq!(pages(&mut desk, list, bytes_max, |_| {}), model, "{seed}");
                }
            }
        }
    });
}

#[test]
fn a_set_is_like_a_list_without_repetitions() {
    rounds(|dice, seed| {
        let (mut desk, a, _) = Desk::with_two();
        let set = desk.create(a, Kind::Set, Body::new());
        let mut model = Vec::<String>::new();
        for _ in 0..STEPS {
            let (text, texts) = (any_text(dice), any_texts(dice));
            let one = Body::new().value(&text);
            let at = model.iter().position(|known| *known == text);
            match dice.below(10) {
                0..2 => {
                    let inserted = desk.ask(a, O::SetInsert, set, one).done();
                    assert_eq!(inserted == 1, at.is_none(), "{seed}");
                    if at.is_none() {
                        model.push(text);
                    }
                }
                2 => {
                    let removed = desk.ask(a, O::SetRemove, set, one).done();
                    assert_eq!(removed == 1, at.is_some(), "{seed}");
                    at.map(|at| model.remove(at));
                }
                3 => {
                    let there = desk.ask(a, O::SetContains, set, one).done();
                    assert_eq!(there == 1, at.is_some(), "{seed}");
                }
                4 => {
                    desk.ask(a, O::SetUnion, set, body(&texts)).done();
                    for text in texts {
                        if !model.contains(&text) {
                            model.push(text);
                        }
                    }
                }
                5 => {
                    desk.ask(a, O::SetSubtract, set, body(&texts)).done();
                    model.retain(|known| !texts.contains(known));
                }
                6 if dice.percent(20) => {
                    desk.ask(a, O::SetIntersect, set, body(&texts)).done();
                    model.retain(|known| texts.contains(known));
                }
                7 => {
                    desk.ask(a, O::SetToggle, set, body(&texts)).done();
                    let mut distinct = texts;
                    let mut seen = std::collections::HashSet::new();
                    distinct.retain(|text| seen.insert(text.clone()));
                    for text in distinct {
                        match model.iter().position(|known| *known == text) {
                            Some(at) => drop(model.remove(at)),
                            None => model.push(text),
                        }
                    }
                }
                8 => {
                    let mut distinct = texts;
                    distinct.sort();
                    distinct.dedup();
                    let count = desk.ask(a, O::SetCount, set, body(&distinct));
                    let there = distinct.iter().filter(|text| model.contains(text)).count();
                    assert_eq!(count.done(), there as u64, "{seed}");
                    let len = Fields::new(&count.body).number().unwrap();
                    assert_eq!(len, model.len() as u64, "{seed}");
                }
                _ => {
                    let snapshot = desk.ask(a, O::Snapshot, set, Body::new());
                    assert_eq!(snapshot.texts(), model, "{seed}");
                    let bytes_max = dice.below(100);
                    assert_eq!(pages(&mut desk, set, bytes_max, |_| {}), model, "{seed}");
                }
            }
        }
    });
}

#[test]
fn an_entry_that_is_there_all_the_time_is_on_exactly_one_page() {
    rounds(|dice, seed| {
        for kind in [Kind::Map, Kind::Set] {
            let (mut desk, a, _) = Desk::with_two();
            let object = desk.create(a, kind, Body::new());
            let entry = |text: &str| match kind {
                Kind::Map => Body::new().bytes(text).value(""),
                _ => Body::new().value(text),
            };
            let (add, remove) = match kind {
                Kind::Map => (O::MapInsert, O::MapRemove),
                _ => (O::SetInsert, O::SetRemove),
            };
            for at in 0..60 {
                desk.ask(a, add, object, entry(&format!("entry {at}")));
            }
            // These come and go. The others stay.
            let mut seen = pages(&mut desk, object, 60, |desk| {
                for _ in 0..20 {
                    let text = format!("entry {}", dice.below(60) / 2 * 2);
                    let operation = if dice.percent(60) { remove } else { add };
                    let entry = match operation {
                        O::MapRemove => Body::new().bytes(&text),
                        _ => entry(&text),
                    };
                    desk.ask(a, operation, object, entry);
                }
            });
            seen.retain(|text| !text.is_empty());
            for at in (1..60).step_by(2) {
                let text = format!("entry {at}");
                let count = seen.iter().filter(|known| **known == text).count();
                assert_eq!(count, 1, "{text} in round {seed} of a {kind:?}: {seen:?}");
            }
        }
    });
}
