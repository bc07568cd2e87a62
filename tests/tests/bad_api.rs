//! Bad input at the door: tokens, sessions, hosts, origins and bodies that are not what they
//! should be. Each gets one clear answer, and the system goes on.

use tests::{
    client::Client,
    system::{Setup, System},
    warp::Warp,
};

fn login(system: &System, token: &str) -> tests::system::Reply {
    let body = serde_json::json!({ "token": token }).to_string();
    system.api("POST", "/api/v1/login", None, Some(&body))
}

#[test]
fn a_login_token_works_once_and_for_ten_minutes() {
    let clock = Warp::new();
    let system = Setup {
        clock: Some(&clock),
        ..Setup::default()
    }
    .start();
    let token = system.login_token(&system.ready.console_url);
    let reply = login(&system, &token);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let session = reply.json["session"]
        .as_str()
        .expect("a session")
        .to_owned();
    assert_eq!(reply.json["orgs"][0]["name"], system.ready.org.as_str());

    login(&system, &token).refuses(401, "token_used");
    let mut forged = token.clone();
    forged.replace_range(..4, "AAAA");
    login(&system, &forged).refuses(401, "token_unknown");
    login(&system, "").refuses(401, "token_unknown");
    login(&system, "\u{0}\u{1f600}").refuses(401, "token_unknown");

    let old = system.login_token(&system.console());
    clock.set(9 * 60);
    // Nine minutes are fine for another one of that age.
    let younger = system.login_token(&system.console());
    clock.set(11 * 60);
    login(&system, &old).refuses(401, "token_expired");
    clock.set(0);
    assert_eq!(login(&system, &younger).status, 200);

    // Of many callers with one token at the same moment, one gets a session.
    let contested = system.login_token(&system.console());
    let won = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| login(&system, &contested).status))
            .collect();
        tries
            .into_iter()
            .filter_map(|attempt| attempt.join().ok())
            .filter(|s| *s == 200)
            .count()
    });
    assert_eq!(won, 1);

    // The first session still works, and no other does.
    let orgs = |bearer| system.api("GET", "/api/v1/orgs", bearer, None);
    assert_eq!(orgs(Some(&session)).status, 200);
    orgs(None).refuses(401, "session_missing");
    orgs(Some("AAAA")).refuses(401, "session_unknown");
    orgs(Some(&token)).refuses(401, "session_unknown");
    clock.set(400 * 24 * 3600);
    orgs(Some(&session)).refuses(401, "session_expired");
}

#[test]
fn foreign_hosts_origins_and_bodies_are_refused() {
    let system = System::start();
    let session = system.session();
    let bearer = Some(session.as_str());
    let ask = |path: &str, more: &[&str]| system.api_with("GET", path, bearer, None, more);

    // DNS rebinding: a name of somebody else's that leads here.
    for path in ["/", "/api/v1/orgs", "/v1/tunnel/local"] {
        for host in [
            "Host: evil.example",
            "Host: evil.example:8443",
            "Host: 127.0.0.1.evil.example",
        ] {
            ask(path, &["--header", host]).refuses(421, "host_refused");
        }
    }
    let refused = ask(
        "/api/v1/orgs",
        &["--header", "Origin: https://evil.example"],
    );
    refused.refuses(403, "origin_refused");

    let org = &system.ready.org;
    ask(&format!("/api/v1/orgs/{org}x/apps"), &[]).refuses(404, "org_unknown");
    ask("/api/v1/nothing", &[]).refuses(404, "not_found");
    let post = |path: &str, body: &str| system.api("POST", path, bearer, Some(body));
    let peers = format!("/api/v1/orgs/{org}/peers");
    post(&peers, r#"{"public_key":"AAAA"}"#).refuses(400, "public_key_invalid");
    let certificates = format!("/api/v1/orgs/{org}/ssh/certificates");
    for (key, code) in [
        ("nonsense", "key_unreadable"),
        ("ssh-rsa AAAA", "key_refused"),
    ] {
        post(&certificates, &format!(r#"{{"public_key":"{key}"}}"#)).refuses(400, code);
    }
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJoTVFBFLEJiAvqQmWcSJXCK09Z5JeI+q+C4SCAkA7ig";
    let body = |more: &str| format!("{{\"public_key\":\"{key}\",{more}}}");
    post(&certificates, &body("\"hours\":73")).refuses(400, "hours_out_of_range");
    post(&certificates, &body("\"principals\":[]")).refuses(400, "principals_invalid");
    post(&certificates, &body("\"peer\":\"fdaa::3\"")).refuses(404, "peer_unknown");
    for body in [
        "",
        "{",
        "[]",
        "null",
        r#"{"public_key":7}"#,
        &"x".repeat(2_000_000),
    ] {
        let reply = post(&peers, body);
        assert!(
            (400..500).contains(&reply.status),
            "{}: {}",
            reply.status,
            reply.body
        );
        assert!(reply.json["error"]["code"].is_string(), "{}", reply.body);
        assert!(reply.json["error"]["hint"].is_string(), "{}", reply.body);
    }
    // A key that is somebody's already, by way of another organisation.
    system.underpass(&["orgs", "create", "rival"]).ok();
    let rival = system.session();
    let stolen = serde_json::json!({ "public_key": key_of(&system, &session) }).to_string();
    system
        .api(
            "POST",
            "/api/v1/orgs/rival/peers",
            Some(&rival),
            Some(&stolen),
        )
        .refuses(409, "key_taken");

    assert_eq!(ask("/api/v1/orgs", &[]).status, 200);
    Client::lease(&system, &session);
}

fn key_of(system: &System, session: &str) -> String {
    Client::lease(system, session).key.public().to_string()
}

#[test]
fn commands_say_what_to_do() {
    let system = System::start();
    let fails = |arguments: &[&str], wanted: &str| {
        let output = system.underpass(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output}");
        assert!(output.stderr.contains(wanted), "{arguments:?}: {output}");
        assert!(output.stderr.contains("hint: "), "{arguments:?}: {output}");
        assert!(!output.stderr.contains("panicked"), "{output}");
    };
    let files = tempfile::tempdir().expect("a directory");
    let file = files.path().join("x.conf").display().to_string();
    fails(
        &["wireguard", "create", "--org", "nobody", "x", &file],
        "no such organisation",
    );
    fails(
        &[
            "wireguard",
            "create",
            "--org",
            &system.ready.org,
            "not a name",
            &file,
        ],
        "name",
    );
    fails(
        &["wireguard", "remove", "--org", &system.ready.org, "nobody"],
        "no such peer",
    );
    fails(&["instances", "stop", "nothing"], "no such instance");
    fails(&["orgs", "create", &system.ready.org], "taken");
    system
        .underpass(&[
            "wireguard",
            "create",
            "--org",
            &system.ready.org,
            "x",
            &file,
        ])
        .ok();
    fails(
        &[
            "wireguard",
            "create",
            "--org",
            &system.ready.org,
            "y",
            &file,
        ],
        "exists already",
    );
    fails(
        &["wireguard", "create", "--org", &system.ready.org, "x", "-"],
        "taken",
    );
    let empty = files.path().join("none").display().to_string();
    fails(&["console", "--data-dir", &empty], "underpass up");
    let directory = system.data_dir().display().to_string();
    fails(
        &[
            "up",
            "--demo",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &directory,
        ],
        "another",
    );
    let public = files.path().join("public");
    std::fs::create_dir(&public).expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&public, mode).expect("its mode");
    let public = public.display().to_string();
    fails(
        &[
            "up",
            "--demo",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &public,
        ],
        "open to others",
    );
}

#[test]
fn up_stops_cleanly() {
    let mut system = System::start();
    assert!(system.is_running());
    let started = tests::clock::now();
    let status = system.stop().expect("an exit status");
    assert!(status.success(), "{status}");
    assert!(
        started.elapsed().as_secs_f64() < 2.0,
        "SIGTERM is followed, SIGKILL not needed"
    );
    assert!(
        !system.data_dir().join("up.json").exists(),
        "nothing points to it any more"
    );
}

/// The page's files are in the binary: no path leads to a file of the machine, whatever it is made of.
#[test]
fn no_path_leads_out_of_the_page() {
    let system = Setup::default().start();
    let fetch = |path: &str| system.api_with("GET", path, None, None, &["--path-as-is"]);
    let page = fetch("/");
    assert_eq!(page.status, 200, "{}", page.body);
    let up = "/..".repeat(12);
    let targets = (0..32).map(|fd| format!("proc/self/fd/{fd}"));
    let targets = targets.chain(["etc/mtab", "etc/passwd", "proc/self/environ"].map(String::from));
    for target in targets {
        for path in [
            format!("{up}/{target}"),
            format!("/assets{up}/{target}"),
            format!("//{target}"),
            format!("/{}/{target}", "%2e%2e/".repeat(12)),
        ] {
            let reply = fetch(&path);
            assert_eq!(reply.status, 404, "{path}: {}", reply.body);
        }
    }
}
