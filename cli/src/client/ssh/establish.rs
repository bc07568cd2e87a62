//! `underpass ssh establish`

use std::io::Write;

use anyhow::bail;
use clap::ValueEnum;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::{args::Common, terminal};

/// Arguments of `ssh establish`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The organisation; may be left out where there is only one
    #[arg(value_name = "ORG", conflicts_with = "org")]
    named: Option<String>,
    /// One of the two alone
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// End an overlap now: what the older authority signed is refused from then on
    #[arg(long)]
    retire: bool,
    /// Show the authorities and change nothing
    #[arg(long, conflicts_with_all = ["retire", "only", "yes"])]
    status: bool,
    /// Do it without being asked
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

/// What an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Users' certificates, which instances trust
    User,
    /// Instances' certificates, which clients trust
    Host,
}

#[derive(Debug, Deserialize, Serialize)]
struct Authorities {
    authorities: Vec<Authority>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Authority {
    kind: Kind,
    public_key: String,
    fingerprint: String,
    created: u64,
    signs: bool,
    signs_from: u64,
    retires: Option<u64>,
}

/// Shows, says what will happen, asks, and does it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut scope = args.common.scope.clone();
    scope.org.org = args.named.clone().or(scope.org.org);
    let (api, org) = scope.open().await?;
    let path = format!("/api/v1/orgs/{org}/ssh/authorities");
    let now: Authorities = api.get(&path).await?;
    if args.status {
        return show(&org, &now, args.common.json);
    }
    if !args.common.json {
        eprint_lines(&now.lines());
        eprint_lines(&plan(args.only, args.retire));
    }
    if !args.yes {
        let question = if args.retire {
            "End the overlap now?"
        } else {
            "Rotate now?"
        };
        confirm(question)?;
    }
    let verb = if args.retire { "retire" } else { "rotate" };
    let body = json!({ "only": args.only });
    let done: Authorities = api
        .call(Method::POST, &format!("{path}/{verb}"), &body)
        .await?;
    show(&org, &done, args.common.json)
}

fn show(org: &str, all: &Authorities, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let said = json!({ "org": org, "authorities": all.authorities });
        println!("{said}");
        return Ok(());
    }
    all.lines().iter().for_each(|line| println!("{line}"));
    Ok(())
}

impl Authorities {
    fn lines(&self) -> Vec<String> {
        let line = |ca: &Authority| {
            let kind = match ca.kind {
                Kind::User => "users",
                Kind::Host => "hosts",
            };
            let state = match (ca.signs, ca.retires) {
                (true, None) => "signs".to_owned(),
                (true, Some(end)) => format!("signs, retired on {}", date(end)),
                (false, Some(end)) => format!("trusted until {}", date(end)),
                (false, None) => format!("told, signs from {}", date(ca.signs_from)),
            };
            format!("{kind}  {}  {state}", ca.fingerprint)
        };
        self.authorities.iter().map(line).collect()
    }
}

/// What will happen, in words.
fn plan(only: Option<Kind>, retire: bool) -> Vec<String> {
    let concerns = |kind| only.is_none_or(|only| only == kind);
    let mut lines = vec![String::new()];
    if retire {
        lines.push(
            "The older CA is forgotten now: what it signed is refused, whatever time it has left."
                .into(),
        );
        if concerns(Kind::User) {
            lines
                .push("  users: certificates of before the rotation have to be issued anew".into());
        }
        if concerns(Kind::Host) {
            lines.push("  hosts: instances present a new certificate within seconds; files that `ssh issue` wrote before the rotation do not know it".into());
        }
        return lines;
    }
    lines.push(
        "Another CA is made, and both are trusted for a while. Nothing is interrupted.".into(),
    );
    if concerns(Kind::User) {
        lines.push("  users: the new one signs from now on; the older one is trusted until the last certificate of it has ended, in 3 days".into());
    }
    if concerns(Kind::Host) {
        lines.push("  hosts: the new one is told now and signs in 3 days, when every file that `ssh issue` wrote names it; the older one is trusted for 30 days more".into());
    }
    lines
}

fn eprint_lines(lines: &[String]) {
    lines.iter().for_each(|line| eprintln!("{line}"));
}

fn confirm(question: &str) -> anyhow::Result<()> {
    if !terminal::is_interactive() {
        bail!("nobody is there to be asked\nhint: --yes, when you are sure");
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    if matches!(line.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    bail!("nothing was changed");
}

/// A day and minute of the calendar, in UTC (the days of a date, by Howard Hinnant's
/// `civil_from_days`).
fn date(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3600, seconds / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (unix, shown) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_800_000_000, "2027-01-15 08:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(unix), shown);
        }
    }
}
