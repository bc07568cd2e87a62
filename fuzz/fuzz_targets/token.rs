#![no_main]
//! See `underpass_fuzz::wire::tokens`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::wire::tokens(data));
