//! What the compiler says about each mistake, and what it must accept.
//!
//! After a change of a message: `TRYBUILD=overwrite cargo test --test ui`, then read the difference.

#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
