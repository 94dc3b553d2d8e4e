//! Does nothing. It is here because Cargo ignores `[build-dependencies]` of a package without a
//! build script; Cargo.toml says what they are for.

fn main() {
    // Without this line Cargo would run the script again whenever any file of the package changes.
    println!("cargo::rerun-if-changed=build.rs");
}
