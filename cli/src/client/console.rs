//! `underpass console`

use http::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{
    api::{Api, origin},
    client::args::{System, SystemArg},
    up,
};

/// Print a fresh URL of the browser console. It works once, for ten minutes.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  underpass console\n  underpass console --url https://up.example.com --json"
)]
pub(crate) struct Args {
    #[command(flatten)]
    system: SystemArg,
    /// Print {"console_url": ...}
    #[arg(long)]
    json: bool,
}

/// What control answers to one who is logged in and wants another login.
#[derive(Deserialize)]
struct Made {
    token: String,
}

/// Makes a login token and prints the URL that carries it in its fragment.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let url = match args.system.find()? {
        System::Local(dir) => {
            let running = dir.running()?;
            console_url(&running.url, &up::local_login_token(&dir)?)
        }
        System::Remote(url, _) => {
            let api = Api::open(&args.system).await?;
            let made: Made = api
                .call(Method::POST, "/api/v1/login-tokens", &json!({}))
                .await?;
            console_url(&origin(&url), &made.token)
        }
    };
    if args.json {
        println!("{}", json!({ "console_url": url }));
    } else {
        println!("{url}");
    }
    Ok(())
}

/// The URL that logs a browser in. Fragments are sent to no server; the page erases it at once.
pub(crate) fn console_url(url: &str, token: &str) -> String {
    format!("{url}/#token={token}")
}
