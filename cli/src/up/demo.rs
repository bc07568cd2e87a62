//! `up --demo`: an organisation with two apps and three instances in two regions.
//!
//! Each instance is a WireGuard peer in user mode with an SSH server on port 22, in this process.
//! Its shells run as the user who started it: whoever can log in is that user.

use std::{fmt::Write, sync::Arc, time::Duration};

use anyhow::Context;
use carrier::Transport;
use control::{Org, Store};
use hallpass::{Cached, DnsTrust, Host, HostIdentity, Users};
use ssh_key::private::Ed25519Keypair;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tunnel::PrivateKey;
use wire::PublicKey;

use crate::{
    data_dir::DataDir,
    up::{
        now, random,
        report::{App, Instance},
    },
};

/// The demo's organisation.
pub(crate) const ORG: &str = "demo";

/// App and region of each instance.
const INSTANCES: [(&str, &str); 3] = [("web", "iad"), ("web", "lhr"), ("worker", "lhr")];

/// What `up` reports of the demo.
pub(crate) struct Demo {
    pub(crate) org: String,
    pub(crate) apps: Vec<App>,
    user: String,
}

impl Demo {
    /// The lines below those of `up` itself.
    pub(crate) fn as_text(&self) -> String {
        let mut text = format!(
            "\n  Organisation `{}`. Every shell below runs as {} on this machine.\n\n",
            self.org, self.user
        );
        for app in &self.apps {
            for instance in &app.instances {
                let (
                    name,
                    Instance {
                        id,
                        region,
                        address,
                    },
                ) = (&app.name, instance);
                let _ = writeln!(
                    text,
                    "  {name:<8} {id}  {region}  {address}  {name}.internal"
                );
            }
        }
        text
    }
}

/// Makes what is missing in the store, starts the instances, and returns when each of them answers.
pub(crate) async fn start(
    dir: &DataDir,
    store: &Arc<Store>,
    uplink: Uplink,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<Demo> {
    let orgs = store.orgs()?;
    let org = match orgs.into_iter().find(|org| org.name == ORG) {
        Some(org) => org,
        None => store.create_org(ORG, now())?,
    };
    let mut instances = Vec::new();
    for (number, (app, region)) in INSTANCES.into_iter().enumerate() {
        let machine = Machine {
            key: PrivateKey::from_bytes(*dir.secret(&format!("demo-{number}.wireguard"), random)?),
            host_key: dir.secret(&format!("demo-{number}.host"), random)?,
            uplink: uplink.clone(),
        };
        let instance = enrol(store, &org, app, region, machine.key.public())?;
        let (ready, started) = tokio::sync::oneshot::channel();
        tasks.spawn(supervise(
            machine,
            Arc::clone(store),
            instance.id.clone(),
            ready,
            stop.clone(),
        ));
        instances.push((instance, started));
    }
    let mut apps: Vec<App> = Vec::new();
    for (instance, started) in instances {
        started
            .await
            .ok()
            .with_context(|| format!("instance {} did not start", instance.id))??;
        let entry = Instance {
            id: instance.id,
            region: instance.region,
            address: instance.address.address().to_string(),
        };
        match apps.iter_mut().find(|app| app.name == instance.app) {
            Some(app) => app.instances.push(entry),
            None => apps.push(App {
                name: instance.app,
                instances: vec![entry],
            }),
        }
    }
    let uid = nix::unistd::geteuid();
    let user = nix::unistd::User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name);
    Ok(Demo {
        org: org.name,
        apps,
        user,
    })
}

/// The instance with this key in the store, made if it is not there.
fn enrol(
    store: &Store,
    org: &Org,
    app: &str,
    region: &str,
    key: PublicKey,
) -> anyhow::Result<control::Instance> {
    let apps = store.apps(org.id)?;
    let mut known = apps.iter().flat_map(|app| &app.instances);
    if let Some(instance) = known.find(|instance| instance.key == key) {
        return Ok(instance.clone());
    }
    if !apps.iter().any(|known| known.name == app) {
        store.create_app(org.id, app, now())?;
    }
    Ok(store.add_instance(org.id, app, region, key, true, now())?)
}

/// The gateway that the instances join by.
#[derive(Clone)]
pub(crate) struct Uplink {
    pub(crate) gateway: gateway::Handle,
    pub(crate) target: relay::GatewayTarget,
}

/// What makes an instance: its keys, and where its gateway is.
struct Machine {
    key: PrivateKey,
    host_key: zeroize::Zeroizing<[u8; 32]>,
    uplink: Uplink,
}

/// How soon a change of an instance's state in the store is followed.
const LOOK: Duration = Duration::from_millis(500);

/// A login asks the DNS at most this often who may log in.
const TRUST_KEPT: Duration = Duration::from_secs(5);

/// Runs an instance while the store says that it is started. `ready` hears of the first start.
async fn supervise(
    machine: Machine,
    store: Arc<Store>,
    id: String,
    ready: tokio::sync::oneshot::Sender<anyhow::Result<()>>,
    stop: CancellationToken,
) {
    let mut ready = Some(ready);
    let mut running: Option<Running> = None;
    while !stop.is_cancelled() {
        let wanted = store.instance(&id).is_ok_and(|instance| instance.started);
        match (wanted, running.take()) {
            (true, None) => match machine.start(&store, &id, &stop).await {
                Ok(started) => running = Some(started),
                Err(error) => match ready.take() {
                    Some(ready) => {
                        let _gone = ready.send(Err(error));
                        return;
                    }
                    None => tracing::warn!(instance = %id, "cannot start: {error:#}"),
                },
            },
            (false, Some(running)) => {
                running.stop().await;
                // Whoever connects now is told so at once, not after the gateway's own doubts.
                machine.uplink.gateway.revoke(machine.key.public()).await;
            }
            (true, Some(kept)) => {
                if let Err(error) = kept.renew(&store, &id) {
                    tracing::warn!(instance = %id, "the host certificate is not renewed: {error:#}");
                }
                running = Some(kept);
            }
            (false, None) => {}
        }
        if let Some(ready) = ready.take() {
            let _gone = ready.send(Ok(()));
        }
        let _stopped = stop.run_until_cancelled(tokio::time::sleep(LOOK)).await;
    }
    if let Some(running) = running {
        running.stop().await;
    }
}

/// A started instance.
struct Running {
    stop: CancellationToken,
    host: Host,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    network: carrier::Handle,
}

impl Running {
    /// Takes the next host certificate when it is time.
    fn renew(&self, store: &Store, id: &str) -> anyhow::Result<()> {
        let held = self.host.identity();
        if let Some(next) = store.renew_host_certificate(id, held.certificate(), now())? {
            tracing::info!(instance = %id, serial = next.serial(), "a new host certificate");
            self.host.renew(next)?;
        }
        Ok(())
    }

    async fn stop(self) {
        self.stop.cancel();
        let _ended = self.server.await;
        self.network.close().await;
    }
}

impl Machine {
    /// Joins the network as a WireGuard peer in user mode and serves SSH there.
    async fn start(
        &self,
        store: &Store,
        id: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<Running> {
        let instance = store.instance(id)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)?;
        let network = carrier::start(
            tunnel::Config {
                private_key: self.key.clone(),
                peer: self.uplink.target.public_key,
                preshared: None,
                addresses: vec![instance.address.address()],
                dns: Some(sixpn::INSTANCE_DNS),
                mtu: 1420,
                keepalive: Some(15),
                seed: u64::from_le_bytes(seed),
            },
            Transport::Udp {
                endpoint: self.uplink.target.endpoint,
            },
        )
        .await?;
        network
            .ready()
            .await
            .with_context(|| format!("instance {id} cannot reach its gateway"))?;
        let listener = network.listen(22)?;
        let pair = Ed25519Keypair::from_seed(&self.host_key);
        let host_key = ssh_key::PrivateKey::new(pair.into(), id)?;
        let certificate =
            store.sign_host_certificate(id, &host_key.public_key().to_openssh()?, now())?;
        let host = Host::from(HostIdentity::new(host_key, certificate)?);
        let mut config = hallpass::Config::new(host.clone(), Users::Current);
        config.environment = environment(&instance);
        let trust = Arc::new(Cached::new(DnsTrust::new(network.clone()), TRUST_KEPT));
        let stop = stop.child_token();
        let serve = hallpass::serve(Arc::new(config), trust, listener, stop.clone());
        Ok(Running {
            host,
            server: tokio::spawn(serve),
            stop,
            network,
        })
    }
}

/// What a program finds on an instance: this process's own environment, and where it runs.
fn environment(instance: &control::Instance) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = std::env::vars()
        .filter(|(name, _)| !name.starts_with("UNDERPASS_"))
        .collect();
    let own = [
        ("UNDERPASS_APP", instance.app.clone()),
        ("UNDERPASS_REGION", instance.region.clone()),
        ("UNDERPASS_INSTANCE", instance.id.clone()),
        (
            "UNDERPASS_PRIVATE_IP",
            instance.address.address().to_string(),
        ),
    ];
    all.extend(own.map(|(name, value)| (name.to_owned(), value)));
    all
}
