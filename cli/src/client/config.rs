//! `underpass config`

use serde::Serialize;
use serde_json::json;

use crate::{
    credentials::Credentials,
    settings::{self, KEYS, Settings, Source},
};

/// Arguments of `config`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What to do with a setting.
#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Set a value in the file
    #[command(
        after_help = "Examples:\n  underpass config set org demo\n  underpass config set transport websockets"
    )]
    Set {
        /// url, org, app, user or transport
        key: String,
        /// What it shall be
        value: String,
    },
    /// Take a value out of the file
    #[command(after_help = "Example:\n  underpass config unset transport")]
    Unset {
        /// url, org, app, user or transport
        key: String,
    },
}

/// A value as it is shown.
#[derive(Serialize)]
struct Shown {
    key: &'static str,
    value: Option<String>,
    from: Source,
    /// The variable or the file.
    place: Option<String>,
}

/// Shows the settings, or changes one.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut settings = Settings::load()?;
    match &args.command {
        None => show(&settings, args.json),
        Some(Command::Set { key, value }) => settings.store(settings::key(key)?, Some(value)),
        Some(Command::Unset { key }) => settings.store(settings::key(key)?, None),
    }
}

fn show(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let credentials = Credentials::load(settings)?;
    let file = settings.file().display().to_string();
    let mut all: Vec<Shown> = KEYS
        .iter()
        .map(|key| {
            let (value, from) = settings.value(key);
            let place = match from {
                Source::Environment => Some(key.variable.to_owned()),
                Source::File => Some(file.clone()),
                Source::Default => None,
            };
            Shown {
                key: key.name,
                value,
                from,
                place,
            }
        })
        .collect();
    let url = settings
        .url()
        .and_then(|(url, _)| settings::origin(&url).ok());
    let login = url.and_then(|url| credentials.of(&url).cloned());
    let place = credentials.file().display().to_string();
    all.push(Shown {
        key: "session",
        value: login.as_ref().map(|_| REDACTED.to_owned()),
        from: login.as_ref().map_or(Source::Default, |_| Source::File),
        place: login.as_ref().map(|_| place.clone()),
    });
    if let Some(fingerprint) = login.and_then(|login| login.fingerprint) {
        all.push(Shown {
            key: "fingerprint",
            value: Some(fingerprint),
            from: Source::File,
            place: Some(place),
        });
    }
    if json {
        println!("{}", json!({ "file": file, "values": all }));
        return Ok(());
    }
    println!("{:<12} {:<32} FROM", "KEY", "VALUE");
    for Shown {
        key,
        value,
        from,
        place,
    } in &all
    {
        let value = value.as_deref().unwrap_or("-");
        let place = place.as_deref().unwrap_or_default();
        println!(
            "{}",
            format!("{key:<12} {value:<32} {from} {place}").trim_end()
        );
    }
    if !settings.file().exists() {
        println!("{file} is not there: `underpass config set KEY VALUE` makes it");
    }
    Ok(())
}

/// A secret that there is.
const REDACTED: &str = "(secret)";
