#![no_main]
//! See `underpass_fuzz::wire::stream`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::wire::stream(data));
