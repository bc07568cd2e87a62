//! `underpass doctor`

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use carrier::{CarrierError, Handle, Transport};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tunnel::{Class, RecordKind};

use crate::client::{
    apps,
    network::{self, NetworkArgs, Peer, explain},
    ssh::console,
};

/// Arguments of `doctor`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  underpass doctor\n  underpass doctor --json | jq '.findings[] | select(.ok | not)'"
)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

/// What one layer had to say.
#[derive(Serialize)]
struct Finding {
    layer: &'static str,
    ok: bool,
    ms: u64,
    detail: String,
    hint: String,
}

/// A step that says nothing for this long has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// Looks at each layer from the outside in. It fails when no way leads to a shell.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut report = Report {
        json: args.json,
        findings: Vec::new(),
    };
    Box::pin(examine(&args, &mut report)).await;
    // Either path will do.
    let way = |finding: &&Finding| finding.layer == "udp" || finding.layer == "websocket";
    let through = report.findings.iter().filter(way).any(|finding| finding.ok);
    let rest = report
        .findings
        .iter()
        .filter(|finding| !way(finding))
        .all(|finding| finding.ok);
    if args.json {
        println!(
            "{}",
            json!({ "ok": through && rest, "findings": report.findings })
        );
    }
    Ok(if through && rest {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn examine(args: &Args, report: &mut Report) {
    let peer = report.step("control", async {
        let peer = Box::pin(Peer::lease(&args.network.scope)).await?;
        let said = format!("leased {} in {}", peer.lease.address()?, peer.org);
        Ok((peer, said))
    });
    let Some(peer) = peer.await else {
        return;
    };
    let tls = outside(&peer, report).await;
    let udp = through(report, "udp", &peer, peer.udp().await).await;
    let websocket = match tls {
        Some(()) => through(report, "websocket", &peer, peer.websocket()).await,
        None => None,
    };
    // One key, one session: the last that was made.
    let handle = match (udp, websocket) {
        (Some(udp), Some(websocket)) => {
            udp.close().await;
            Some(websocket)
        }
        (udp, websocket) => udp.or(websocket),
    };
    if let Some(handle) = handle {
        Box::pin(inside(&peer, &handle, report)).await;
        handle.close().await;
    }
    peer.release().await;
}

/// DNS, TCP and TLS of the relay; behind an HTTP proxy the first two are the proxy's affair.
async fn outside(peer: &Peer, report: &mut Report) -> Option<()> {
    let (host, port) = report
        .step("relay", async {
            let url = peer.relay()?;
            let host = url.host_str().context("the relay's URL has no host")?;
            let port = url.port_or_known_default().unwrap_or(443);
            Ok(((host.to_owned(), port), url.to_string()))
        })
        .await?;
    let proxy = carrier::proxy_for(&peer.relay().ok()?);
    if let Err(_) | Ok(Some(_)) = &proxy {
        let said = async {
            let proxy = proxy.map_err(|error| explain(&error))?.unwrap_or_default();
            let reached = carrier::reach(&peer.relay()?, peer.tls()?).await;
            reached.map_err(|error| explain(&error))?;
            Ok((
                (),
                format!("{proxy} opens a way to {host}, and its certificate is trusted"),
            ))
        };
        return report.step("proxy", said).await;
    }
    let bare = host.trim_matches(['[', ']']).to_owned();
    let address = report
        .step("dns", async {
            let mut found = tokio::net::lookup_host((bare.as_str(), port)).await.map_err(|error| {
                anyhow!("{bare} cannot be resolved: {error}\nhint: check that this machine's DNS works")
            })?;
            let address = found.next().context("no address")?;
            Ok((address, format!("{bare} is {}", address.ip())))
        })
        .await?;
    let stream = report
        .step("tcp", async {
            let stream = TcpStream::connect(address).await.map_err(|error| {
                anyhow!("{address}: {error}\nhint: a firewall may block the relay's address, or the relay is down")
            })?;
            Ok((stream, address.to_string()))
        })
        .await?;
    report
        .step("tls", async {
            let name = ServerName::try_from(bare.clone())?;
            let connector = tokio_rustls::TlsConnector::from(peer.tls()?);
            let tls = connector.connect(name, stream).await;
            let tls = tls.map_err(|error| explain(&CarrierError::of_tls(&bare, &error)))?;
            let (_, session) = tls.get_ref();
            let version = session
                .protocol_version()
                .and_then(|version| version.as_str());
            Ok((
                (),
                format!("certificate trusted, {}", version.unwrap_or("TLS")),
            ))
        })
        .await
}

/// WireGuard over one path.
async fn through(
    report: &mut Report,
    layer: &'static str,
    peer: &Peer,
    transport: anyhow::Result<Transport>,
) -> Option<Handle> {
    report
        .step(layer, async {
            let handle = Box::pin(peer.start(transport?)).await?;
            match handle.ready().await {
                Ok(rtt) => {
                    let said = format!("the gateway answers in {:.1} ms", rtt.as_secs_f64() * 1e3);
                    Ok((handle, said))
                }
                Err(error) => {
                    handle.close().await;
                    Err(explain(&error))
                }
            }
        })
        .await
}

/// Names, an instance's SSH port, its certificate and ours.
async fn inside(peer: &Peer, handle: &Handle, report: &mut Report) {
    let names = report.step("names", async {
        let apps = handle.lookup("_apps.internal", RecordKind::Txt).await;
        apps.map_err(|error| explain(&error))?;
        Ok(((), format!("the name server of {} answers", peer.org)))
    });
    if names.await.is_none() {
        return;
    }
    let host = report.step("instance", async {
        let apps = apps::list(&peer.api, &peer.org).await?;
        let first = apps.iter().find_map(|app| {
            let instance = app.instances.iter().find(|instance| instance.started)?;
            Some(format!("{}.vm.{}.internal", instance.id, app.name))
        });
        let host = first.context("no instance is started\nhint: underpass apps lists them")?;
        let stream = network::connect(handle, &host, 22, Class::Interactive).await;
        let stream = stream.map_err(|error| network::explain_at(&host, &error))?;
        Ok(((host.clone(), stream), format!("{host} port 22 is open")))
    });
    let Some((host, stream)) = host.await else {
        return;
    };
    let login = report.step("ssh", async {
        let identity = console::certify(peer, "root").await?;
        let session =
            console::log_in_over(peer.lease.host_cas()?, stream, &host, "root", identity).await?;
        let principal = session.host().map(|host| host.principal().to_owned());
        session.close().await;
        Ok((
            (),
            format!(
                "host certificate of {}, login accepted",
                principal.unwrap_or_default()
            ),
        ))
    });
    login.await;
}

struct Report {
    json: bool,
    findings: Vec<Finding>,
}

impl Report {
    /// Runs a step within its time and says how it went.
    async fn step<T>(
        &mut self,
        layer: &'static str,
        step: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> Option<T> {
        let started = now();
        let result = timeout(LIMIT, step).await.unwrap_or_else(|_| {
            Err(anyhow!(
                "no answer within {} s\nhint: something drops packets on the way",
                LIMIT.as_secs()
            ))
        });
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (value, finding) = match result {
            Ok((value, detail)) => {
                let hint = String::new();
                (
                    Some(value),
                    Finding {
                        layer,
                        ok: true,
                        ms,
                        detail,
                        hint,
                    },
                )
            }
            Err(error) => {
                let text = crate::output::explained(&error);
                let (detail, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
                let (detail, hint) = (detail.to_owned(), hint.to_owned());
                (
                    None,
                    Finding {
                        layer,
                        ok: false,
                        ms,
                        detail,
                        hint,
                    },
                )
            }
        };
        if !self.json {
            let mark = if finding.ok { "ok" } else { "FAIL" };
            println!("{mark:<5} {layer:<10} {ms:>6} ms  {}", finding.detail);
            if !finding.hint.is_empty() {
                println!("{:<5} {:<10}            hint: {}", "", "", finding.hint);
            }
        }
        self.findings.push(finding);
        value
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a step takes is what is shown"
)]
fn now() -> Instant {
    Instant::now()
}
