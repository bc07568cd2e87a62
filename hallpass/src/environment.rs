//! The variables of a session.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Variables that a session starts with, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// The variables of the entry point, without those that no session should have.
    pub(crate) fn of_entry_point(variables: &[(String, String)]) -> Environment {
        let mut environment = Environment::default();
        for (name, value) in variables {
            let kept =
                is_plain(name) && !name.starts_with("LD_") && !AGENT.contains(&name.as_str());
            if kept && !value.contains('\0') {
                environment.0.insert(name.clone(), value.into());
            }
        }
        environment
    }

    /// Sets a variable that this server makes.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.insert(name.to_owned(), value.into());
    }

    pub(crate) fn set_default(&mut self, name: &str, value: &str) {
        self.0
            .entry(name.to_owned())
            .or_insert_with(|| value.into());
    }

    /// Whether a variable says what characters are (POSIX.1-2017 section 8.2).
    pub(crate) fn names_characters(&self) -> bool {
        let said = |name| self.0.get(name).is_some_and(|value| !value.is_empty());
        ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().any(said)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &OsString)> {
        self.0.iter()
    }
}

/// Whether a client may set this variable: language and terminal, nothing else.
pub(crate) fn is_for_clients(name: &str, value: &str) -> bool {
    let named = matches!(name, "LANG" | "TERM" | "COLORTERM")
        || (name.starts_with("LC_") && is_plain(name));
    named && name.len() <= 64 && value.len() <= 1024 && !value.contains('\0')
}

/// A session's agent is its client's, or there is none.
const AGENT: [&str; 2] = ["SSH_AUTH_SOCK", "SSH_AGENT_PID"];

fn is_plain(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.bytes().next().is_some_and(letter)
        && name
            .bytes()
            .all(|byte| letter(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_inherits() {
        let given = [
            ("PATH", "/bin"),
            ("_X1", ""),
            ("LD_PRELOAD", "/x.so"),
            ("LD_LIBRARY_PATH", "/x"),
            ("SSH_AUTH_SOCK", "/x"),
            ("BAD-NAME", "1"),
            ("1X", "1"),
            ("", "1"),
            ("A=B", "1"),
            ("NUL", "a\0b"),
            ("é", "1"),
        ];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = Environment::of_entry_point(&given);
        let names: Vec<_> = environment.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["PATH", "_X1"]);
    }

    #[test]
    fn what_a_client_may_set() {
        for name in ["LANG", "LC_ALL", "LC_X1", "TERM", "COLORTERM"] {
            assert!(is_for_clients(name, "C.UTF-8"), "{name}");
        }
        for name in [
            "PATH",
            "LD_PRELOAD",
            "LC_A=B",
            "LC_A-B",
            "BASH_ENV",
            "lang",
            "LC",
            "",
        ] {
            assert!(!is_for_clients(name, "x"), "{name}");
        }
        assert!(!is_for_clients("LANG", "a\0b"));
        assert!(!is_for_clients("LANG", &"x".repeat(1025)));
    }
}
