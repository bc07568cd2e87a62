//! The relay's soak over the optimised product: [`tests::soak`], for five minutes.
//!
//! `--seconds N` is another time, `--seed N` the randomness of another run; `UNDERPASS_BIN` is the
//! binary, which `cargo xtask bench relay-soak` builds. One line of JSON on stdout with `--json`.

fn main() -> std::process::ExitCode {
    tests::soak::command(300)
}
