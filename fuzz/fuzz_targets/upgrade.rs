#![no_main]
//! See `underpass_fuzz::relay::upgrade`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::relay::upgrade(data));
