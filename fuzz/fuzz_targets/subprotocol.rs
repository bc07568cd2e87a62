#![no_main]
//! See `underpass_fuzz::wire::offer`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| underpass_fuzz::wire::offer(data));
