#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    dfka_fuzz::readers::read("csv", bytes);
});
