//! The native client behind a firewall and behind an HTTP proxy: which way packets take, and what a
//! session lives through.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use tests::{
    command::{Background, run},
    firewall::Firewall,
    noise, root,
};

/// UDP is used where it gets through and the relay where it does not, and neither changes a byte.
#[test]
fn a_command_is_a_pipe_whatever_the_firewall_drops() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let bytes = noise(50);
    for (dropped, way) in [(None, "UDP"), (Some("udp"), "WebSocket")] {
        if let Some(protocol) = dropped {
            lab.drops(protocol);
        }
        assert_eq!(lab.way(), way);
        let (started, before) = (tests::clock::now(), lab.seen_over_udp());
        let console = lab.underpass(&["ssh", "console", "-a", "web", "-C", "cat; exit 7"]);
        let output = run(console, &bytes, Duration::from_secs(120));
        let over_udp = lab.seen_over_udp() - before;
        assert_eq!(output.status.code(), Some(7), "{}", output.stderr);
        assert!(
            output.stdout == bytes,
            "{} bytes came back",
            output.stdout.len()
        );
        println!(
            "50 MiB there and back, {dropped:?} dropped, over {way}: {:.1} s, {over_udp} bytes sent by UDP",
            started.elapsed().as_secs_f64()
        );
        // All of it, or a few handshakes.
        match way {
            "UDP" => assert!(over_udp > 50 << 20, "{over_udp}"),
            _ => assert!(over_udp < 1 << 20, "{over_udp}"),
        }
    }
}

/// UDP is dropped in mid-transfer and comes back: the relay takes over, and no byte is lost.
#[test]
fn a_transfer_outlives_the_loss_of_udp() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let bytes = noise(50);
    let drop = || lab.drops("udp");
    let open = || lab.opens();
    let longest = transfer(&lab, &[], &bytes, &[(3, &drop), (18, &open)]);
    println!("UDP dropped for 15 s in mid-transfer: longest pauses {longest:?}");
    assert!(longest[0] < Duration::from_secs(10), "{longest:?}");
}

/// The relay is out of reach for ten seconds: what was on its way arrives afterwards.
#[test]
fn a_session_outlives_the_loss_of_its_websocket() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let bytes = noise(20);
    let drop = || lab.drops("tcp");
    let open = || lab.opens();
    let way = ["--websockets"];
    let longest = transfer(&lab, &way, &bytes, &[(2, &drop), (12, &open)]);
    println!("TCP to the relay cut for 10 s: longest pauses {longest:?}");
    assert!(
        longest[0] > Duration::from_secs(8),
        "never cut: {longest:?}"
    );
    assert!(longest[0] < Duration::from_secs(30), "{longest:?}");
}

/// Nothing passes for ten seconds, whichever way: so a laptop that slept looks from outside.
#[test]
fn a_session_outlives_the_loss_of_both_ways() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let bytes = noise(20);
    let drop = || ["udp", "tcp"].into_iter().for_each(|it| lab.drops(it));
    let open = || lab.opens();
    let longest = transfer(&lab, &[], &bytes, &[(2, &drop), (12, &open)]);
    println!("both ways cut for 10 s: longest pauses {longest:?}");
    assert!(
        longest[0] > Duration::from_secs(8),
        "never cut: {longest:?}"
    );
    assert!(longest[0] < Duration::from_secs(30), "{longest:?}");
}

/// Something to do when that many seconds of a transfer have passed.
type Act<'a> = (u64, &'a (dyn Fn() + Sync));

/// Sends `bytes` through `cat; exit 7` at 2.5 MB/s, lets things happen meanwhile, and expects them
/// all back. The longest pauses between two pieces that came, the longest first.
fn transfer(lab: &Firewall, options: &[&str], bytes: &[u8], acts: &[Act<'_>]) -> Vec<Duration> {
    let mut command = lab.underpass(&["ssh", "console", "-a", "web", "-C", "cat; exit 7"]);
    command
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut session = Background::start(command);
    let mut stdin = session.0.stdin.take().expect("piped");
    let mut stdout = session.0.stdout.take().expect("piped");
    let (back, mut pauses, after) = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut back, mut piece) = (Vec::new(), vec![0; 65_536]);
            let (mut pauses, mut last) = (Vec::new(), None);
            while let Ok(n @ 1..) = stdout.read(&mut piece) {
                back.extend_from_slice(&piece[..n]);
                let now = tests::clock::now();
                // Until the first comes the session is being made.
                pauses.extend(last.replace(now).map(|last| now - last));
            }
            (back, pauses, tests::clock::now())
        });
        let started = tests::clock::now();
        scope.spawn(move || {
            for (at, act) in acts {
                let at = Duration::from_secs(*at);
                thread::sleep(at.saturating_sub(started.elapsed()));
                act();
            }
        });
        for piece in bytes.chunks(256 * 1024) {
            stdin.write_all(piece).expect("the session takes its input");
            thread::sleep(Duration::from_millis(100));
        }
        drop(stdin);
        let (back, pauses, ended) = reader.join().expect("the reader");
        (back, pauses, ended - started)
    });
    let status = session.0.wait().expect("an exit status");
    assert!(
        back == bytes,
        "{} of {} bytes came back",
        back.len(),
        bytes.len()
    );
    assert_eq!(status.code(), Some(7));
    let last = acts.last().map_or(0, |(at, _)| *at);
    assert!(
        after > Duration::from_secs(last),
        "over before all had happened: {after:?}"
    );
    pauses.sort();
    pauses.reverse();
    pauses.truncate(3);
    pauses
}

/// Each line of `doctor`: the layer and whether it works.
fn doctor(command: Command) -> (Option<i32>, String) {
    let output = run(command, b"", Duration::from_secs(90));
    let json: serde_json::Value =
        serde_json::from_str(&output.text()).unwrap_or_else(|error| panic!("{error}: {output}"));
    let findings = json["findings"].as_array().expect("findings");
    let line = |finding: &serde_json::Value| {
        let ok = finding["ok"] == true;
        let hint = finding["hint"].as_str().unwrap_or_default();
        assert_eq!(
            ok,
            hint.is_empty(),
            "a failure has a hint, and nothing else: {finding}"
        );
        format!(
            "{}{} ",
            finding["layer"].as_str().unwrap_or("?"),
            if ok { "" } else { "!" }
        )
    };
    (output.status.code(), findings.iter().map(line).collect())
}

/// The path of the pings of one process follows the firewall, and `doctor` names it.
#[test]
fn the_path_follows_the_firewall_both_ways() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    let examine = || doctor(lab.underpass(&["doctor", "--json"]));
    let all = "control relay dns tcp tls udp websocket names instance ssh ";
    assert_eq!(examine(), (Some(0), all.to_owned()));
    lab.drops("udp");
    assert_eq!(examine(), (Some(0), all.replace("udp", "udp!")));
    lab.opens();

    let mut command = lab.underpass(&["ping", "-c", "30", "--json", "web.internal"]);
    command.stdout(Stdio::piped());
    let mut ping = Background::start(command);
    let lines = BufReader::new(ping.0.stdout.take().expect("piped")).lines();
    let mut seen: Vec<String> = Vec::new();
    for line in lines.map_while(Result::ok) {
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let Some(way) = json["transport"].as_str() else {
            continue;
        };
        if seen.last().is_none_or(|last| last != way) {
            seen.push(way.to_owned());
            match seen.len() {
                1 => lab.drops("udp"),
                2 => lab.opens(),
                _ => break,
            }
        }
    }
    assert_eq!(seen, ["UDP", "WebSocket", "UDP"]);
}

/// A CONNECT proxy that wants a login and says where it leads.
const PROXY: &str = r#"
const login = 'Basic ' + Buffer.from('me:s@cret').toString('base64');
require('http').createServer().on('connect', (request, client) => {
  if (request.headers['proxy-authorization'] !== login) {
    return client.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n');
  }
  console.log(request.url);
  const [host, port] = request.url.split(':');
  const relay = require('net').connect(port, host, () => {
    client.write('HTTP/1.1 200 Connection established\r\n\r\n');
    relay.pipe(client).pipe(relay);
  });
  relay.on('error', () => client.destroy());
  client.on('error', () => relay.destroy());
}).listen(3128, '0.0.0.0', () => console.log('ready'));
"#;

/// The relay is reached through the HTTP proxy that the environment names.
#[test]
fn an_http_proxy_is_passed() {
    if !root() {
        return;
    }
    let lab = Firewall::new();
    lab.drops("udp");
    let mut command = lab.server.command("node");
    command.args(["-e", PROXY]).stdout(Stdio::piped());
    let mut proxy = Background::start(command);
    let mut lines = BufReader::new(proxy.0.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("a line"), "ready");
    let ping = |proxy: &str, exceptions: &str| {
        let mut command = lab.underpass(&["ping", "-c", "1", "--websockets", "web.internal"]);
        command
            .env("HTTPS_PROXY", proxy)
            .env("NO_PROXY", exceptions);
        run(command, b"", Duration::from_secs(40))
    };
    ping("http://me:s%40cret@10.99.7.1:3128", "").ok();
    assert_eq!(
        lines.next().expect("a line").expect("a line"),
        "10.99.7.1:8443"
    );
    let output = ping("http://10.99.7.1:3128", "");
    assert!(output.stderr.contains("(proxy_login)\nhint: "), "{output}");
    let output = ping("http://10.99.7.1:3129", "");
    assert!(
        output.stderr.contains("10.99.7.1:3129 opens no way")
            && output.stderr.contains("refused the TCP connection"),
        "{output}"
    );
    ping("http://10.99.7.1:3129", "localhost, 10.99.7.1").ok();
    let mut command = lab.underpass(&["doctor", "--json"]);
    command.env("HTTPS_PROXY", "http://me:s%40cret@10.99.7.1:3128");
    let findings = "control relay proxy udp! websocket names instance ssh ";
    assert_eq!(doctor(command), (Some(0), findings.to_owned()));
}
