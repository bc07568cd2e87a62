//! The binary's settings and streams, without any server.

use std::{
    fs,
    io::pipe,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn underpass(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underpass"));
    command.args(words).env_clear().env("HOME", home);
    command
}

fn stdout(output: Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    String::from_utf8(output.stdout).expect("text")
}

/// What a command makes of an organisation that a flag, the environment and the file name.
#[test]
fn flags_count_before_the_environment_and_that_before_the_file() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    fs::create_dir(&data).expect("made");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("private");
    let set = underpass(home.path(), &["config", "set", "org", "of-file"]);
    stdout({ set }.output().expect("runs"));
    let data = data.to_str().expect("text");
    let unit = |flags: &[&str], variable: &str| {
        let words = [&["bridge", "--systemd", "--data-dir", data], flags].concat();
        let mut command = underpass(home.path(), &words);
        let text = stdout(
            command
                .env("UNDERPASS_ORG", variable)
                .output()
                .expect("runs"),
        );
        let (_, rest) = text.split_once("--org ").expect("an organisation");
        rest.lines().next().map(str::to_owned)
    };
    assert_eq!(
        unit(&["--org", "of-flag"], "of-environment").as_deref(),
        Some("of-flag")
    );
    assert_eq!(
        unit(&[], "of-environment").as_deref(),
        Some("of-environment")
    );
    assert_eq!(unit(&[], "").as_deref(), Some("of-file"));
    let shown = stdout(
        underpass(home.path(), &["config", "--json"])
            .output()
            .expect("runs"),
    );
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let org = &shown["values"][1];
    assert_eq!(
        (&org["key"], &org["value"], &org["from"]),
        (&"org".into(), &"of-file".into(), &"file".into())
    );
}

/// A reader that goes away ends the program as it ends others, without a word.
#[test]
fn a_reader_that_has_gone_is_no_panic() {
    let home = tempfile::tempdir().expect("a directory");
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let mut command = underpass(home.path(), &["config"]);
    let output = command.stdout(writer).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141));
}

/// A real shell, asked what it would complete.
#[test]
fn a_shell_completes_commands_and_flags() {
    let home = tempfile::tempdir().expect("a directory");
    let script = |shell: &str| {
        let output = underpass(home.path(), &["completions", shell]).output();
        stdout(output.expect("runs"))
    };
    let completed = |words: &str| {
        let split: Vec<&str> = words.split(' ').collect();
        let [.., before, last] = split[..] else {
            panic!("two words at least");
        };
        let ask = format!(
            "COMP_WORDS=({words}); COMP_CWORD={}; _underpass underpass {last} {before}; echo ${{COMPREPLY[@]}}",
            split.len() - 1
        );
        let output = Command::new("bash")
            .args([
                "--noprofile",
                "--norc",
                "-c",
                &(script("bash") + "\n" + &ask),
            ])
            .output();
        stdout(output.expect("runs")).trim().to_owned()
    };
    assert_eq!(completed("underpass logi"), "login");
    assert_eq!(completed("underpass ssh con"), "console config");
    assert_eq!(completed("underpass wireguard websockets ena"), "enable");
    assert_eq!(completed("underpass dig --webs"), "--websockets");
    for shell in ["zsh", "fish", "powershell"] {
        assert!(script(shell).contains("websockets"), "{shell}");
    }
}

/// What flyctl's users type where UDP is lost, and what becomes of it.
#[test]
fn websockets_are_preferred_until_they_are_not() {
    let home = tempfile::tempdir().expect("a directory");
    let run = |words: &[&str]| stdout(underpass(home.path(), words).output().expect("runs"));
    let file = home.path().join(".config/underpass/config.toml");
    let said = run(&["wireguard", "websockets", "enable"]);
    assert_eq!(said, "transport is websockets\n");
    let text = fs::read_to_string(&file).expect("written");
    assert_eq!(text, "transport = \"websockets\"\n");
    let help = run(&["ping", "--help"]);
    assert!(help.contains("[default: websockets]"), "{help}");
    assert_eq!(
        run(&["wireguard", "websockets", "disable"]),
        "transport is auto\n"
    );
    assert_eq!(fs::read_to_string(&file).expect("written"), "");
}
