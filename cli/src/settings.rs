//! What a person has set once for every command, and where each value came from: flags over the
//! environment over `config.toml` over defaults.
//!
//! The file holds no secret. It says where secrets are sent, so nobody else may write to it.
//! Sessions are in `credentials.toml` beside it: see [`crate::credentials`].

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail, ensure};
use serde::Serialize;
use url::Url;

use crate::platform::{self, Access};

/// A value that can be set.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name in the file.
    pub(crate) name: &'static str,
    /// The variable that goes before the file.
    pub(crate) variable: &'static str,
    /// Where neither says anything.
    pub(crate) default: &'static str,
    /// Says what would be right where a value is not.
    check: fn(&str) -> Result<(), &'static str>,
}

/// Everything that can be set.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "url",
        variable: "UNDERPASS_URL",
        default: "",
        check: is_url,
    },
    Key {
        name: "org",
        variable: "UNDERPASS_ORG",
        default: "",
        check: is_name,
    },
    Key {
        name: "app",
        variable: "UNDERPASS_APP",
        default: "",
        check: is_name,
    },
    Key {
        name: "user",
        variable: "UNDERPASS_USER",
        default: "root",
        check: is_user,
    },
    Key {
        name: "transport",
        variable: "UNDERPASS_TRANSPORT",
        default: "auto",
        check: is_transport,
    },
];

/// Names the file.
pub(crate) const FILE_VARIABLE: &str = "UNDERPASS_CONFIG";

/// A file of settings is a page at most.
const MAX_FILE: u64 = 64 * 1024;

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    file: PathBuf,
    values: BTreeMap<&'static str, String>,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// A variable.
    Environment,
    /// The file.
    File,
    /// Neither.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Environment => "environment",
            Source::File => "file",
            Source::Default => "default",
        })
    }
}

impl Settings {
    /// What the file of this user says; one that is not there says nothing.
    pub(crate) fn load() -> anyhow::Result<Settings> {
        let named = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
        let file = match named {
            Some(path) => std::path::absolute(path)?,
            None => platform::settings_home()
                .context("no place for settings\nhint: set UNDERPASS_CONFIG to a file")?
                .join("underpass")
                .join("config.toml"),
        };
        Settings::read(file)
    }

    fn read(file: PathBuf) -> anyhow::Result<Settings> {
        let values = match read_text(&file, Access::Write)? {
            Some(text) => parse(&text).with_context(|| format!("{} is wrong", file.display()))?,
            None => BTreeMap::new(),
        };
        Ok(Settings { file, values })
    }

    /// The file, which need not be there.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// What counts where no flag is given, and where it came from.
    pub(crate) fn value(&self, key: &Key) -> (Option<String>, Source) {
        let variable = std::env::var(key.variable);
        self.value_with(key, variable.ok().as_deref())
    }

    fn value_with(&self, key: &Key, variable: Option<&str>) -> (Option<String>, Source) {
        let default = || (!key.default.is_empty()).then(|| key.default.to_owned());
        if let Some(value) = variable.filter(|value| !value.is_empty()) {
            return (Some(value.to_owned()), Source::Environment);
        }
        match self.values.get(key.name) {
            Some(value) => (Some(value.clone()), Source::File),
            None => (default(), Source::Default),
        }
    }

    /// What the file alone says.
    pub(crate) fn in_file(&self, key: &Key) -> Option<&str> {
        self.values.get(key.name).map(String::as_str)
    }

    /// The API that was logged in to, or is named by the environment.
    pub(crate) fn url(&self) -> Option<(String, Source)> {
        let key = KEYS.iter().find(|key| key.name == "url")?;
        let (value, source) = self.value(key);
        Some((value?, source))
    }

    /// Sets a value in the file, or takes it out; comments and order stay.
    pub(crate) fn store(&mut self, key: &Key, value: Option<&str>) -> anyhow::Result<()> {
        if let Some(value) = value {
            check(key, value)?;
        }
        let mut wanted = self.values.clone();
        match value {
            Some(value) => wanted.insert(key.name, value.to_owned()),
            None => wanted.remove(key.name),
        };
        let text = read_text(&self.file, Access::Write)?.unwrap_or_default();
        let text = edited(&text, key.name, value);
        let shown = self.file.display();
        // A file that a person wrote may say a thing in a way that no line shows.
        ensure!(
            parse(&text).is_ok_and(|values| values == wanted),
            "{} cannot be set in {shown}\nhint: edit the file",
            key.name
        );
        if let Some(dir) = self.file.parent() {
            platform::make_private_dir(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        platform::replace_private(&self.file, text.as_bytes())?;
        self.values = wanted;
        Ok(())
    }

    /// Makes each value the default of every argument of its name: what is typed counts before it,
    /// and excludes nothing that is typed.
    pub(crate) fn defaults_of(&self, command: clap::Command) -> clap::Command {
        let names: Vec<String> = command
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        let command = names.into_iter().fold(command, |command, name| {
            command.mut_subcommand(name, |sub| self.defaults_of(sub))
        });
        command.mut_args(|arg| {
            let key = KEYS.iter().find(|key| arg.get_id() == key.name);
            let one = matches!(arg.get_action(), clap::ArgAction::Set);
            let Some(key) = key.filter(|key| one && key.name != "url") else {
                return arg;
            };
            match self.value(key) {
                // As long as the program runs, which is as long as clap wants it.
                (Some(value), Source::Environment | Source::File) => {
                    arg.default_value(&*value.leak())
                }
                _ => arg,
            }
        })
    }
}

/// The key of a name.
pub(crate) fn key(name: &str) -> anyhow::Result<&'static Key> {
    let found = KEYS.iter().find(|key| key.name == name);
    found.with_context(|| {
        let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        format!(
            "there is no setting {name}\nhint: one of {}",
            names.join(", ")
        )
    })
}

/// The text of a file that others may not have touched; none where there is none.
pub(crate) fn read_text(file: &Path, access: Access) -> anyhow::Result<Option<String>> {
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => {
            let found = found.with_context(|| format!("cannot open {}", file.display()))?;
            ensure!(
                found.is_file() && found.len() <= MAX_FILE,
                "{} is no file of settings\nhint: remove it",
                file.display()
            );
        }
    }
    platform::check_private(file, access)?;
    let text = fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Some(text))
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            1 + text[..span.start.min(text.len())].matches('\n').count()
        });
        anyhow!(
            "line {line}: {}\nhint: a line is KEY = \"VALUE\"",
            error.message()
        )
    })?;
    let mut values = BTreeMap::new();
    for (name, value) in table {
        let key = key(&name)?;
        let toml::Value::String(value) = value else {
            bail!("{name} is no text\nhint: write {name} = \"{value}\"");
        };
        check(key, &value)?;
        values.insert(key.name, value);
    }
    Ok(values)
}

fn check(key: &Key, value: &str) -> anyhow::Result<()> {
    let right = (key.check)(value);
    right.map_err(|hint| anyhow!("{} cannot be {value:?}\nhint: {hint}", key.name))
}

/// The text with one key set or taken out.
fn edited(text: &str, name: &str, value: Option<&str>) -> String {
    let line = value.map(|value| format!("{name} = {}\n", toml::Value::from(value)));
    let is_key = |line: &&str| {
        line.split_once('=')
            .is_some_and(|(key, _)| key.trim() == name)
    };
    let mut out = String::with_capacity(text.len() + 64);
    let mut placed = false;
    for old in text.split_inclusive('\n') {
        if is_key(&old) {
            out += line.as_deref().unwrap_or_default();
            placed = true;
        } else {
            out += old;
        }
    }
    if let (Some(line), false) = (line, placed) {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out += &line;
    }
    out
}

/// The origin that a text names: `https://HOST` or `https://HOST:PORT`.
pub(crate) fn origin(text: &str) -> Result<Url, &'static str> {
    const HINT: &str = "https://HOST or https://HOST:PORT, without a path";
    let url = Url::parse(text.trim()).map_err(|_| HINT)?;
    let bare = url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    (url.scheme() == "https" && url.host().is_some() && bare)
        .then_some(url)
        .ok_or(HINT)
}

fn is_url(text: &str) -> Result<(), &'static str> {
    origin(text).map(|_| ())
}

fn is_name(text: &str) -> Result<(), &'static str> {
    let shaped = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    shaped
        .then_some(())
        .ok_or("lower case letters, digits and dashes")
}

fn is_user(text: &str) -> Result<(), &'static str> {
    let shaped = (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    shaped
        .then_some(())
        .ok_or("the name of a user, such as root")
}

fn is_transport(text: &str) -> Result<(), &'static str> {
    ["auto", "udp", "websockets"]
        .contains(&text)
        .then_some(())
        .ok_or("auto, udp or websockets")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn settings(text: &str) -> anyhow::Result<Settings> {
        Ok(Settings {
            file: "config.toml".into(),
            values: parse(text)?,
        })
    }

    #[test]
    fn a_variable_counts_before_the_file_and_the_file_before_defaults() {
        let settings = settings("transport = \"udp\"").unwrap();
        let of = |name: &str, variable| settings.value_with(key(name).unwrap(), variable);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            of("transport", Some("websockets")),
            (some("websockets"), Source::Environment)
        );
        assert_eq!(of("transport", Some("")), (some("udp"), Source::File));
        assert_eq!(of("transport", None), (some("udp"), Source::File));
        assert_eq!(of("user", None), (some("root"), Source::Default));
        assert_eq!(of("org", None), (None, Source::Default));
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_its_line() {
        let of = |text: &str| format!("{:#}", settings(text).unwrap_err());
        let all: Vec<String> = [
            "orgs = \"demo\"",
            "org = 7",
            "org = \"Not A Name\"",
            "user = \"root\"\n\ntransport = \"pigeon\"",
            "url = \"http://up.example\"",
            "url = \"https://up.example/#token=uplt_x\"",
            "user = \"root\"\norg = demo",
        ]
        .map(of)
        .into();
        insta::assert_snapshot!(all.join("\n\n"));
    }

    #[test]
    fn a_line_is_changed_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/config.toml");
        let mut settings = Settings::read(file.clone()).unwrap();
        settings.store(key("org").unwrap(), Some("demo")).unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = "# mine\norg = \"old\" # and this\ntransport=\"udp\"";
        fs::write(&file, text).unwrap();
        let mut settings = Settings::read(file.clone()).unwrap();
        settings.store(key("org").unwrap(), Some("new")).unwrap();
        settings.store(key("app").unwrap(), Some("web")).unwrap();
        settings.store(key("transport").unwrap(), None).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "# mine\norg = \"new\"\napp = \"web\"\n");
        assert_eq!(Settings::read(file).unwrap(), settings);
        settings.store(key("org").unwrap(), Some("A")).unwrap_err();
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, "").unwrap();
        for (mode, good) in [(0o644, true), (0o664, false), (0o606, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let read = Settings::read(file.clone());
            assert_eq!(read.is_ok(), good, "{mode:o}: {read:?}");
            if let Err(error) = read {
                assert!(error.to_string().contains("\nhint: chmod 600 "), "{error}");
            }
        }
    }
}
