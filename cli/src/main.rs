//! `underpass`: WireGuard that gets through.
//!
//! One binary holds the client commands and the server roles. Arguments become configuration here,
//! before anything is opened; what a command does lies in a module of its name.

#[macro_use]
mod output;

mod api;
mod client;
mod credentials;
mod data_dir;
mod platform;
#[cfg(server)]
mod relay_role;
mod settings;
#[cfg_attr(not(server), path = "no_server.rs")]
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings::Settings;

/// WireGuard that gets through.
///
/// Carries WireGuard over TLS WebSockets where UDP is blocked, and opens a shell on a `.internal`
/// instance from a browser tab or a terminal, end to end encrypted.
#[derive(Parser)]
#[command(name = "underpass", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole system in one process: control, relay, gateway, names and the console
    #[cfg(server)]
    Up(up::Args),
    /// Run a relay alone, for gateways that are elsewhere
    ///
    /// Several may serve one fleet behind any TCP load balancer. On SIGTERM it drains: another one
    /// that listens on the same port already takes over. On SIGHUP, and when they change, the
    /// configuration and the certificate are read again.
    #[cfg(server)]
    Relay(relay_role::Args),
    /// Print a fresh URL of the browser console
    Console(client::console::Args),
    /// List and create organisations
    #[command(subcommand)]
    Orgs(client::orgs::Command),
    /// List apps and their instances
    Apps(client::apps::Args),
    /// List instances; start and stop those of a demo
    #[command(subcommand)]
    Instances(client::instances::Command),
    /// Create, list and remove WireGuard peers
    #[command(subcommand, visible_alias = "wg")]
    Wireguard(client::wireguard::Command),
    /// Shells and commands on instances, keys and certificates for SSH
    #[command(subcommand)]
    Ssh(client::ssh::Command),
    /// Lead ports of this machine to ports inside the network
    #[command(
        after_help = "Examples:\n  underpass proxy 15432:5432 db.internal\n  underpass proxy 8080:80 8443:443 -a web\n  underpass proxy --socks 1080\n  curl --proxy socks5h://127.0.0.1:1080 http://web.internal/"
    )]
    Proxy(client::proxy::Args),
    /// Join standard input and output to a port inside the network: a ProxyCommand for ssh
    #[command(
        after_help = "Example:\n  ssh -o ProxyCommand='underpass stdio %h %p' root@web.internal"
    )]
    Stdio(client::stdio::Args),
    /// Ask the network's name server
    #[command(
        after_help = "Examples:\n  underpass dig web.internal\n  underpass dig TXT _apps.internal"
    )]
    Dig(client::dig::Args),
    /// Ask a host inside the network whether it is there
    #[command(after_help = "Example:\n  underpass ping -c 3 web.internal")]
    Ping(client::ping::Args),
    /// Carry a stock WireGuard client's UDP through the relay
    ///
    /// Any WireGuard client of this machine that has a peer here (`underpass wireguard create`)
    /// uses the port as its Endpoint. Needs no root; keys and packets stay with the client.
    #[command(
        after_help = "Examples:\n  underpass bridge --listen 127.0.0.1:51821\n  wg set wg0 peer GATEWAY_KEY endpoint 127.0.0.1:51821\n  underpass bridge --systemd > /etc/systemd/system/underpass-bridge.service"
    )]
    Bridge(client::bridge::Args),
    /// Keep tunnels for the other commands, so that each begins at once
    #[cfg(unix)]
    #[command(subcommand)]
    Agent(client::agent::Command),
    /// Say of each layer between here and an instance whether it works
    ///
    /// Ends with 0 when a shell can be had, by whichever way.
    Doctor(client::doctor::Args),
    /// Print a script that completes commands and flags in a shell
    #[command(
        after_help = "Examples:\n  underpass completions bash > ~/.local/share/bash-completion/completions/underpass\n  underpass completions zsh > ~/.zfunc/_underpass\n  underpass completions fish > ~/.config/fish/completions/underpass.fish\n  underpass completions powershell >> $PROFILE"
    )]
    Completions(client::completions::Args),
    /// Log in to a system that is not on this machine
    ///
    /// Opens the console in a browser, where a person who is signed in lets this program in; or
    /// takes a login token. The session is kept in credentials.toml beside the settings (mode
    /// 0600), and the system becomes the one that commands speak to where none runs here.
    #[command(
        after_help = "Examples:\n  underpass login https://up.example.com\n  underpass login https://up.example.com --cert-fingerprint SHA256:AB:CD:...\n  ssh host underpass console | underpass login --token -"
    )]
    Login(client::login::Args),
    /// End a session that `login` began, and forget it
    #[command(after_help = "Example:\n  underpass logout")]
    Logout(client::login::LogoutArgs),
    /// Show every setting and where it came from, or change one
    ///
    /// Flags count before the environment, the environment before the file, the file before
    /// defaults. The file is ~/.config/underpass/config.toml, or what UNDERPASS_CONFIG names.
    #[command(
        after_help = "Examples:\n  underpass config\n  underpass config set org demo\n  underpass config unset org"
    )]
    Config(client::config::Args),
}

const EXAMPLES: &str = "\
Examples:
  underpass up --demo                            everything on this machine, with a console URL
  underpass console                              a fresh URL of the console
  underpass ssh console -a web                   a shell on an instance, from this terminal
  underpass wireguard create --org demo laptop   a configuration file for any WireGuard client
  underpass ssh issue --org demo ~/.ssh/id_demo  a key and certificate for stock OpenSSH";

fn main() -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Nothing, unless a relay is configured to.
    #[cfg(server)]
    runtime.on_thread_park(relay::rest::before_park);
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => ended(Err(
            anyhow::Error::new(error).context("cannot start threads")
        )),
    }
}

async fn run() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => return ended(Err(error)),
    };
    let outcome = match cli.command {
        #[cfg(server)]
        Command::Up(args) => Box::pin(up::run(args)).await,
        #[cfg(server)]
        Command::Relay(args) => Box::pin(relay_role::run(args)).await,
        Command::Console(args) => client::console::run(args).await,
        Command::Orgs(command) => client::orgs::run(command).await,
        Command::Apps(args) => client::apps::run(args).await,
        Command::Instances(command) => client::instances::run(command).await,
        Command::Wireguard(command) => client::wireguard::run(command).await,
        Command::Dig(args) => client::dig::run(args).await,
        #[cfg(unix)]
        Command::Agent(command) => return ended(client::agent::run(command).await),
        Command::Completions(args) => client::completions::run(&args, &mut Cli::command()),
        Command::Login(args) => client::login::run(args).await,
        Command::Logout(args) => client::login::logout(args).await,
        Command::Config(args) => client::config::run(&args),
        Command::Ping(args) => return ended(client::ping::run(args).await),
        Command::Bridge(args) => return ended(client::bridge::run(args).await),
        Command::Doctor(args) => return ended(client::doctor::run(args).await),
        Command::Stdio(args) => return ended(client::stdio::run(args).await),
        Command::Proxy(args) => return ended(client::proxy::run(args).await),
        Command::Ssh(command) => return ended(client::ssh::run(command).await),
    };
    ended(outcome.map(|()| ExitCode::SUCCESS))
}

/// What was typed, with what the settings say where nothing was. Settings that cannot be read are
/// told once it is known that help was not what was wanted.
fn parse() -> anyhow::Result<Cli> {
    let mut command = Cli::command();
    let settings = Settings::load();
    if let Ok(settings) = &settings {
        command = settings.defaults_of(command);
    }
    let matches = command.get_matches();
    // These need none.
    if !matches!(matches.subcommand_name(), Some("up" | "completions")) {
        settings?;
    }
    Cli::from_arg_matches(&matches).map_err(|error| error.exit())
}

fn ended(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("underpass: {}", output::explained(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a person reads before anything else, of every command.
    #[test]
    fn help_of_every_command() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = String::new();
        add_help(&mut command, &mut text);
        insta::assert_snapshot!(text);
    }

    /// Nobody learns a command from a list of flags.
    #[test]
    fn every_command_has_an_example() {
        fn look(command: &clap::Command) {
            let subs = || {
                command
                    .get_subcommands()
                    .filter(|sub| sub.get_name() != "help")
            };
            subs().for_each(look);
            let name = command.get_bin_name().unwrap_or_default();
            let example = command.get_after_help().map(ToString::to_string);
            let shown = example.is_some_and(|text| text.contains(name));
            assert!(shown || subs().next().is_some(), "{name} has no example");
        }
        let mut command = Cli::command();
        command.build();
        look(&command);
    }

    fn add_help(command: &mut clap::Command, text: &mut String) {
        let help = command.render_long_help();
        let name = command.get_bin_name().unwrap_or("underpass");
        *text += &format!("$ {name} --help\n{help}\n");
        for sub in command
            .get_subcommands_mut()
            .filter(|sub| sub.get_name() != "help")
        {
            add_help(sub, text);
        }
    }
}
