//! What is fuzzed. Each target takes any bytes and panics when a promise is broken.
//!
//! The targets lie in two files without a dependency on libFuzzer, so that `wire` and `relay`
//! replay the committed corpora as ordinary tests. See `README.md` here for how to run them.

// Its own name, as its own tests know it.
extern crate wire as underpass_wire;

pub mod relay;
pub mod wire;
