#![no_main]
//! See `underpass_fuzz::wire::records`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::wire::records(data));
