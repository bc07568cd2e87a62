//! A relay whose certificate is ordered from an ACME server: obtained, renewed under a transfer that
//! notices nothing, kept over a restart, and waited for.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use carrier::Trust;
use tempfile::TempDir;
use tests::{
    client::Client,
    clock::wait_for,
    command::run,
    free_port,
    pebble::{Authority, EXTERNAL_ACCOUNT, Pebble, Setup},
    relay::{self, Pace, Relay, Transfer},
    system::{System, binary},
};
use tokio::{net::TcpStream, time::sleep};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use x509_parser::parse_x509_certificate;

/// A relay's files, and where it is to listen.
struct Place {
    directory: TempDir,
    port: u16,
    authority: Authority,
    pebble: Setup,
}

const OBTAINED: &str = "certificate_orders_total{outcome=\"obtained\"}";
const FAILED: &str = "certificate_orders_total{outcome=\"failed\"}";
/// Time for an order, on a busy machine and with a refused nonce or two.
const AN_ORDER: Duration = Duration::from_secs(30);

impl Place {
    fn new() -> Place {
        let port = free_port();
        Place {
            directory: tempfile::tempdir().expect("a directory"),
            port,
            authority: Authority::new(),
            pebble: Setup::for_relay_at(port),
        }
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("acme")
    }

    /// A configuration that orders a certificate for these names.
    fn config(&self, system: &System, domains: &[&str], more: &str) -> PathBuf {
        let tls = format!(
            "[tls.acme]\n\
             domains = {domains:?}\n\
             contact = \"mailto:ops@example.com\"\n\
             directory = \"{}\"\n\
             directory_ca = \"{}\"\n\
             cache = \"{}\"\n\
             {more}\n",
            self.pebble.directory_url(),
            self.authority.certificate.display(),
            self.cache().display(),
        );
        let setup = relay::Setup::here(system, self.directory.path(), self.port);
        let tls = Some(&*tls);
        relay::Setup { tls, ..setup }.write_config()
    }

    fn start_pebble(&self) -> Pebble {
        self.pebble.start(&self.authority)
    }
}

/// What a client sees that trusts this root and asks for this name: the serial number, and for how
/// many seconds it is valid.
async fn presented(relay: &Relay, name: &'static str, root: &str) -> Result<(String, i64), String> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(root.as_bytes()).expect("PEM");
    roots.add(root).expect("a root");
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(relay.listen)
        .await
        .expect("a connection");
    let name = ServerName::try_from(name).expect("a name");
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let tls = tls.await.map_err(|error| error.to_string())?;
    let (_, connection) = tls.get_ref();
    let leaf = &connection.peer_certificates().expect("a chain")[0];
    let (_, x509) = parse_x509_certificate(leaf).expect("X.509");
    let validity = x509.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    Ok((x509.raw_serial_as_string(), life))
}

fn is_ready(relay: &Relay) -> bool {
    relay.get("/readyz") == "ready"
}

fn until_ready(relay: &Relay) {
    wait_for("a certificate", AN_ORDER, || is_ready(relay).then_some(()));
}

/// Pebble's certificates last half a minute here, so that the rule by which any certificate is
/// renewed, in the last third of its time, does so within the test.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_obtained_and_renewed_under_a_transfer() {
    let system = System::start();
    let session = system.session();
    let mut place = Place::new();
    place.pebble.validity = Duration::from_secs(30);
    place.pebble.external_account = true;
    let pebble = place.start_pebble();
    let (id, mac) = EXTERNAL_ACCOUNT;
    let key_file = place.directory.path().join("mac.key");
    fs::write(&key_file, mac).expect("written");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("private");
    let external = format!(
        "external_account = {{ id = \"{id}\", key_file = \"{}\" }}",
        key_file.display()
    );
    let config = place.config(&system, &["relay.test", "localhost"], &external);
    let mut command = Command::new(binary());
    command.env("UNDERPASS_LOG", "debug");
    let relay = Relay::run(command, &config);
    until_ready(&relay);

    let root = pebble.root();
    let first = presented(&relay, "relay.test", &root).await.expect("trust");
    assert!((29..=30).contains(&first.1), "{first:?}");
    let trust = Trust::Pem(root.clone().into_bytes());
    let url = relay.url("localhost");
    let peers = [
        Client::lease(&system, &session),
        Client::lease(&system, &session),
    ];
    let transfer = Transfer::over(&peers, |it| it.through(&url, &trust), Pace::FAST).await;
    assert_eq!(relay.metric("sessions"), 2);
    let before = relay.metric("datagrams_sent_total{direction=\"up\"}");
    let proofs = relay.metric("acme_challenges_total");
    assert!(proofs >= 2, "two names: {proofs}");

    wait_for("a renewal", Duration::from_secs(40), || {
        (relay.metric(OBTAINED) >= 2).then_some(())
    });
    let second = presented(&relay, "relay.test", &root).await.expect("trust");
    assert_ne!(first.0, second.0, "another serial number");
    sleep(Duration::from_secs(1)).await;
    // Nobody had to come back: the WebSockets are those from the beginning.
    assert_eq!(relay.metric("sessions_opened_total"), 2);
    for series in [
        "resumes_total{outcome=\"resumed\"}",
        "resumes_total{outcome=\"unknown\"}",
        "sessions_parked_total",
        "sessions_ended_total",
    ] {
        assert_eq!(relay.metric(series), 0, "{series}");
    }
    let after = relay.metric("datagrams_sent_total{direction=\"up\"}");
    let (bytes, longest) = transfer.end().await;
    assert!(bytes > 1_000_000 && after > before, "{bytes}");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    // The names were proven again, through the port that carried all of this.
    let challenges = relay.metric("acme_challenges_total");
    assert!(challenges > proofs, "{challenges}");
    assert_eq!(relay.metric("tls_failures_total{reason=\"cut\"}"), 0);
    println!(
        "renewed under a transfer of {bytes} bytes: longest pause {longest:?}, serials {} and {}, \
         {challenges} challenges, {} orders failed",
        first.0,
        second.0,
        relay.metric(FAILED)
    );

    // No key is told, whatever is logged.
    let log = relay.log.text();
    assert!(log.contains("a new certificate"), "the log is read");
    let kept = fs::read_to_string(place.cache().join("certificate.pem")).expect("a certificate");
    let account = fs::read_to_string(place.cache().join("account.json")).expect("an account");
    let account: serde_json::Value = serde_json::from_str(&account).expect("JSON");
    let account_key = account["credentials"]["key_pkcs8"].as_str().expect("a key");
    let lines = kept.lines().skip(1);
    let certificate_key = lines.take_while(|line| !line.starts_with('-'));
    let mut secrets: Vec<&str> = certificate_key.collect();
    assert!(!secrets.is_empty());
    secrets.extend([account_key, mac]);
    for secret in secrets {
        assert!(!log.contains(secret), "a key in the log");
    }
}

/// No ACME server at the start, and one that comes up; then a restart, which asks it for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_waited_for_and_outlives_a_restart() {
    let system = System::start();
    let place = Place::new();
    let config = place.config(&system, &["relay.test"], "");
    let relay = Relay::start(&config);
    relay
        .log
        .says("no certificate yet", Duration::from_secs(10));
    relay.log.says("hint: check `directory`", AN_ORDER);
    assert!(relay.metric(FAILED) >= 1);
    let status = |path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--output", "/dev/null", "--max-time", "5"]);
        curl.args(["--write-out", "%{http_code}"]);
        curl.arg(format!("http://{}{path}", relay.metrics));
        run(curl, b"", Duration::from_secs(10)).text()
    };
    assert_eq!(status("/readyz"), "503");
    assert_eq!(status("/healthz"), "200");
    let why = relay.get("/readyz");
    assert!(
        why.contains("no certificate") && why.contains("hint:"),
        "{why}"
    );
    // Whoever comes is refused, by TLS and not by silence.
    let root = fs::read_to_string(&place.authority.certificate).expect("PEM");
    let refused = presented(&relay, "relay.test", &root).await.unwrap_err();
    assert!(refused.contains("AccessDenied"), "{refused}");
    assert_eq!(
        relay.metric("tls_failures_total{reason=\"no_certificate\"}"),
        1
    );

    let pebble = place.start_pebble();
    until_ready(&relay);
    assert_eq!(status("/readyz"), "200");
    let root = pebble.root();
    let first = presented(&relay, "relay.test", &root).await.expect("trust");
    let orders = pebble.orders();
    assert!(orders >= 1, "Pebble's log is read");
    for name in ["account.json", "certificate.pem"] {
        let mode = fs::metadata(place.cache().join(name))
            .expect("kept")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let mode = fs::metadata(place.cache())
        .expect("made")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);

    relay.signal("-TERM");
    assert!(relay.ended().await.success());
    let relay = Relay::start(&config);
    assert!(is_ready(&relay), "at once");
    let again = presented(&relay, "relay.test", &root).await.expect("trust");
    assert_eq!(first, again);
    // SIGHUP reads the configuration again; a certificate that is fine is not ordered anew.
    relay.signal("-HUP");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(
        (relay.metric(OBTAINED), relay.metric(FAILED)),
        (0, 0),
        "nothing is ordered"
    );
    assert_eq!(pebble.orders(), orders);
}

/// An ACME server that cannot verify the name, and then one that does not know the account.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_acme_server_refuses_is_said_and_tried_again() {
    let system = System::start();
    let mut place = Place::new();
    place.pebble.verifies_at = free_port();
    let pebble = place.start_pebble();
    let config = place.config(&system, &["relay.test"], "");
    let relay = Relay::start(&config);
    relay.log.says("it could not verify relay.test", AN_ORDER);
    relay
        .log
        .says("hint: port 443 of each", Duration::from_secs(1));
    assert!(!is_ready(&relay));
    // It is put off by two minutes at least, unless somebody says that it is mended.
    let failed = relay.metric(FAILED);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(relay.metric(FAILED), failed);

    drop(pebble);
    place.pebble.verifies_at = place.port;
    let pebble = place.start_pebble();
    relay.signal("-HUP");
    relay.log.says("does not know our account", AN_ORDER);
    until_ready(&relay);
    let root = pebble.root();
    let first = presented(&relay, "relay.test", &root).await.expect("trust");

    // Another name, and nobody to ask: what there is is presented until there is better.
    drop(pebble);
    relay.signal("-TERM");
    assert!(relay.ended().await.success());
    let config = place.config(&system, &["relay.test", "localhost"], "");
    let relay = Relay::start(&config);
    assert!(is_ready(&relay));
    relay.log.says("the one before is kept", AN_ORDER);
    let kept = presented(&relay, "relay.test", &root).await.expect("trust");
    assert_eq!(first, kept);
    let pebble = place.start_pebble();
    wait_for("the other name", AN_ORDER * 2, || {
        (relay.metric(OBTAINED) == 1).then_some(())
    });
    presented(&relay, "localhost", &pebble.root())
        .await
        .expect("trust");
}

#[test]
fn a_cache_that_others_can_read_is_refused() {
    let system = System::start();
    let place = Place::new();
    let config = place.config(&system, &["relay.test"], "");
    let cache = place.cache();
    fs::create_dir(&cache).expect("a directory");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    };
    let refused = |hint: &str| {
        for more in [&["--check"][..], &[]] {
            let mut command = Command::new(binary());
            command.args(["relay", "--config"]).arg(&config).args(more);
            let output = run(command, b"", Duration::from_secs(10));
            assert!(!output.status.success(), "{output}");
            assert!(output.stderr.contains(hint), "{output}");
        }
    };
    for open in [0o755, 0o750, 0o701] {
        mode(&cache, open);
        refused("hint: chmod 700");
    }
    mode(&cache, 0o700);
    let account = cache.join("account.json");
    fs::write(&account, "{}").expect("written");
    mode(&account, 0o644);
    refused("hint: chmod 600");
    mode(&account, 0o600);
    let mut check = Command::new(binary());
    check.args(["relay", "--check", "--config"]).arg(&config);
    run(check, b"", Duration::from_secs(10)).ok();
}
