//! The shared files of the tests put their folders where cargo tells tests to.

fn main() {
    println!("cargo:rustc-env=CARGO_TARGET_TMPDIR=/tmp");
    println!("cargo:rerun-if-changed=build.rs");
}
