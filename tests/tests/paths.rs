//! Streams in one direction through `proxy` while the ways to the gateway come and go. The other end
//! is a machine with a stock tunnel and the kernel's TCP.
//!
//! Who only reads has nothing unanswered, and who only writes hears nothing: either has to notice,
//! and the side whose packets were lost has to send them again before its timer would.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Stdio,
    sync::Mutex,
    thread,
    time::Duration,
};

use tests::{clock::now, command::Background, firewall::Firewall, peer::Peer, root};

/// Sends pieces to whoever connects to 9000, for the seconds it is given; takes what comes to 9001,
/// and answers the end of it by the length and the longest pause in milliseconds.
const SERVER: &str = r#"
const net = require('net');
const seconds = Number(process.argv[1]);
const down = net.createServer((socket) => {
  socket.on('error', () => {});
  let left = seconds * 50;
  const timer = setInterval(() => {
    socket.write(Buffer.alloc(25000, left));
    if (--left == 0) { clearInterval(timer); socket.end(); }
  }, 20);
});
const up = net.createServer({ allowHalfOpen: true }, (socket) => {
  let [bytes, longest, last] = [0, 0, 0];
  socket.on('error', () => {});
  socket.on('data', (data) => {
    bytes += data.length;
    const now = Date.now();
    if (last) longest = Math.max(longest, now - last);
    last = now;
  });
  socket.on('end', () => socket.end(`${bytes} ${longest}\n`));
});
down.listen(9000, '::', () => up.listen(9001, '::', () => console.log('ready')));
"#;

const SECONDS: u64 = 14;

/// Whoever pauses for this long has not noticed that its path is gone.
const LOST: Duration = Duration::from_secs(30);

struct Lab {
    lab: Firewall,
    _server: Background,
    _inner: Peer,
    _files: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        let lab = Firewall::new();
        let files = tempfile::tempdir().expect("a directory");
        let inner = lab.inner(files.path());
        let mut server = inner.namespace.command("node");
        server.args(["-e", SERVER, &SECONDS.to_string()]);
        server.stdout(Stdio::piped());
        let mut server = Background::start(server);
        let mut lines = BufReader::new(server.0.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("a line"), "ready");
        Lab {
            lab,
            _server: server,
            _inner: inner,
            _files: files,
        }
    }

    /// Carries a stream one way, lets `acts` happen at their seconds, and says the longest pause.
    fn pause(&self, way: Way, options: &[&str], acts: &[(u64, &(dyn Fn() + Sync))]) -> Duration {
        thread::scope(|scope| {
            scope.spawn(|| {
                let started = now();
                for (second, act) in acts {
                    thread::sleep(Duration::from_secs(*second).saturating_sub(started.elapsed()));
                    act();
                }
            });
            match way {
                Way::Console => self.console(options),
                Way::Down | Way::Up => self.proxy(way, options),
            }
        })
    }

    fn proxy(&self, way: Way, options: &[&str]) -> Duration {
        let mut command = self.lab.underpass(&["proxy", "--json"]);
        command.args(options);
        command.args([&format!("0:{}", way as u16), "inner._peer.internal"]);
        command.stdout(Stdio::piped());
        let mut proxy = Background::start(command);
        let mut lines = BufReader::new(proxy.0.stdout.take().expect("piped")).lines();
        let line = lines.next().expect("a line").expect("a line");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let local = json["local"].as_str().expect("an address");
        let longest = Mutex::new(Duration::ZERO);
        self.lab.client.enter(|| {
            let pause = match way {
                Way::Up => up_pause(local),
                _ => down_pause(TcpStream::connect(local).expect("the port")),
            };
            *longest.lock().expect("a mutex") = pause;
        });
        longest.into_inner().expect("a mutex")
    }

    /// An instance of the demo on the other side, whose TCP is ours.
    fn console(&self, options: &[&str]) -> Duration {
        let pieces = SECONDS * 50;
        let script = format!(
            "i=0; while [ $i -lt {pieces} ]; do head -c 25000 /dev/zero; sleep 0.02; i=$((i+1)); done"
        );
        let mut command = self
            .lab
            .underpass(&["ssh", "console", "-a", "web", "-C", &script]);
        command
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut session = Background::start(command);
        let longest = down_pause(session.0.stdout.take().expect("piped"));
        assert!(session.0.wait().expect("a status").success());
        longest
    }
}

/// Which way a stream goes, and to which port of the server.
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
enum Way {
    Down = 9000,
    Up = 9001,
    /// Down, from an instance, through SSH.
    Console = 22,
}

fn down_pause(mut stream: impl Read) -> Duration {
    let (mut total, mut longest, mut last) = (0, Duration::ZERO, None);
    let mut piece = vec![0; 65_536];
    while let n @ 1.. = stream.read(&mut piece).expect("what is sent") {
        total += n as u64;
        let now = now();
        longest = longest.max(last.replace(now).map_or(Duration::ZERO, |last| now - last));
    }
    assert_eq!(total, SECONDS * 50 * 25_000);
    longest
}

fn up_pause(address: &str) -> Duration {
    let mut stream = TcpStream::connect(address).expect("the port");
    let piece = vec![7; 25_000];
    for _ in 0..SECONDS * 50 {
        stream.write_all(&piece).expect("it is taken");
        thread::sleep(Duration::from_millis(20));
    }
    stream.shutdown(std::net::Shutdown::Write).expect("an end");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (total, longest) = answer.trim().split_once(' ').expect("two numbers");
    assert_eq!(total, (SECONDS * 50 * 25_000).to_string());
    Duration::from_millis(longest.parse().expect("a number"))
}

/// UDP is dropped for good in mid-transfer: the relay takes over.
#[test]
fn one_way_streams_outlive_the_loss_of_udp() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let drop = || lab.lab.drops("udp");
    for way in [Way::Down, Way::Up, Way::Console] {
        let pause = lab.pause(way, &[], &[(3, &drop)]);
        println!("{way:?}, UDP dropped for good: longest pause {pause:?}");
        assert!(pause < LOST, "{way:?} was not carried on by the relay");
        lab.lab.opens();
    }
}

/// Nothing passes for a while, and then everything again.
#[test]
fn one_way_streams_outlive_outages() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let drop = || ["udp", "tcp"].into_iter().for_each(|it| lab.lab.drops(it));
    let open = || lab.lab.opens();
    for way in [Way::Down, Way::Up, Way::Console] {
        for options in [["--udp"], ["--websockets"]] {
            let acts: [(u64, &(dyn Fn() + Sync)); 2] = [(3, &drop), (9, &open)];
            let pause = lab.pause(way, &options, &acts);
            println!("{way:?}, nothing passed for 6 s, {options:?}: longest pause {pause:?}");
        }
    }
}
