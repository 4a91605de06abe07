#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringlog_fuzz::fuzz_targets::record::record(data));
