#![no_main]
//! See `underpass_fuzz::wire::kinds`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::wire::kinds(data));
