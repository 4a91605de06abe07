//! The targets, from the files that `tests/fuzz_smoke.rs` has them from too.

#[path = "../../tests/fuzz_targets/mod.rs"]
pub mod fuzz_targets;
#[path = "../../tests/store_common/mod.rs"]
mod store_common;
