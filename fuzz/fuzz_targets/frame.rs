#![no_main]
//! See `underpass_fuzz::wire::frame`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::wire::frame(data));
