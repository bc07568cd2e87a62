//! The relay's soak as `cargo xtask test` runs it: [`tests::soak`], short.

fn main() -> std::process::ExitCode {
    tests::soak::command(45)
}
