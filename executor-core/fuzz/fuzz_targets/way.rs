#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| executor_core::fuzz::way(data));
