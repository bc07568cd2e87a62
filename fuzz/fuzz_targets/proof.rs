#![no_main]
//! See `underpass_fuzz::relay::proof`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::relay::proof(data));
