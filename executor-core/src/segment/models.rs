//! Tests under a model checker of who may write to a segment: see `os/std_or_model.rs`, and
//! `CONTRIBUTING.md` for how to run them.
//!
//! A segment's memory lies in a file. In the models, the ledger's shadows stand for it.

use std::sync::Arc;

use super::store::Ledger;
use crate::{
    os::std_or_model::thread,
    transport::ring::models::{check, few},
};

#[test]
fn a_segment_is_filled_again_only_after_its_reader_has_given_it_back() {
    let readers = few(2, 5) as u8;
    check(3, move || {
        let ledger = Arc::new(Ledger::default());
        let threads: Vec<_> = (0..readers)
            .map(|number| {
                assert!(ledger.own(number));
                ledger.shadow(number).fill();
                let theirs = Arc::clone(&ledger);
                // The reader is told of the segment, copies it, and gives it back.
                thread::spawn(move || {
                    theirs.shadow(number).look();
                    theirs.release(number);
                })
            })
            .collect();
        // Take each segment again if it is free by now.
        for number in 0..readers {
            if ledger.own(number) {
                ledger.shadow(number).fill();
                ledger.release(number);
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(ledger.count(), 0);
    });
}

#[test]
fn a_segment_is_emptied_and_filled_by_one_at_a_time() {
    check(3, || {
        let ledger = Arc::new(Ledger::default());
        let theirs = Arc::clone(&ledger);
        // Like `trim`: the driver takes the segment for the moment in which it empties it.
        let driver = thread::spawn(move || {
            if theirs.own(0) {
                theirs.shadow(0).fill();
                theirs.release(0);
            }
        });
        if ledger.own(0) {
            ledger.shadow(0).fill();
            ledger.release(0);
        }
        driver.join().unwrap();
    });
}
