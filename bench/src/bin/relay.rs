//! The relay and an honest baseline under the same load: CPU time and system calls per relayed
//! datagram, loss, delay, the highest rate, and the delay on paths of 50 and 10 Mbit/s that are
//! offered twice as much (in network namespaces). One line of JSON per measurement on stdout with
//! `--json`, a table on stderr. What is printed is the median of nine runs of 0.13 s, on a slow
//! path of three of 2 s.
//!
//! A run counts when the host has left it alone (`calm.rs`), as long as the patience lasts:
//! `--patience SECONDS` in all, 900 if it is not given, 0 for a host as it is. A line that the host
//! has disturbed says so.
//!
//! `--full` takes longer runs; `--only up/even/plain/40000/1` makes the measurements whose name
//! begins so, `--only slow/10` those of a slow path; `--relay` and `--baseline` one side alone.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use underpass_bench::{
    LOAD_CORE,
    calm::{Calm, Host},
    load::{Direction, LENGTH, Load, Plan, Sample, Sender, World, open},
    path::{Path, Place},
    pin, round,
    server::{self, Side},
};

/// Short and many: what disturbs a host comes and goes within a second.
const RUNS: usize = 9;
const RUN: Duration = Duration::from_millis(130);
/// On a slow path, a run lasts until its queue has been full and empty often, whatever the host does.
const SLOW_RUNS: usize = 3;
const SLOW_RUN: Duration = Duration::from_secs(2);
/// How long is waited for the host, and spent in runs that it disturbed, in all.
const PATIENCE: Duration = Duration::from_secs(900);
/// Rates that are tried, in thousands, to find the highest.
const LADDER: [u32; 14] = [
    30, 45, 60, 80, 100, 130, 160, 200, 250, 320, 400, 500, 630, 800,
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--serve", side, gateway, listen] => return server::run(side, gateway, listen),
        ["--in", namespace, megabits, side, ref json @ ..] => {
            return slow_in(namespace, megabits.parse()?, side, !json.is_empty());
        }
        _ => {}
    }
    let (mut json, mut full, mut prefix, mut patience) = (false, false, "", PATIENCE);
    let mut sides: &[Side] = &[Side::Relay, Side::Baseline];
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match *word {
            "--json" => json = true,
            "--full" => full = true,
            "--only" => prefix = rest.next().context("--only takes a name")?,
            "--patience" => {
                let seconds = rest.next().context("--patience takes seconds")?;
                patience = Duration::from_secs(seconds.parse()?);
            }
            "--relay" => sides = &[Side::Relay],
            "--baseline" => sides = &[Side::Baseline],
            other => {
                bail!(
                    "unknown argument {other}\n\
                    hint: --json, --full, --relay, --baseline, --only, --patience"
                )
            }
        }
    }
    pin(LOAD_CORE)?;
    let time = if full { 5 * RUN } else { RUN };
    let mut calm = Calm::new(patience)?;
    let out = Out { json };
    out.head();
    use Direction::{Down, Up};
    use Load::{Even, Flood, Paced};
    use Sender::{Gso, Plain};
    let wanted = |name: &str| name.starts_with(prefix);
    for direction in [Up, Down] {
        for (load, sender, rate, flows) in [
            (Even, Plain, 10e3, 1),
            (Even, Plain, 40e3, 1),
            (Paced, Plain, 10e3, 1),
            (Paced, Plain, 40e3, 1),
            (Paced, Plain, 100e3, 1),
            (Paced, Gso, 400e3, 1),
            (Even, Plain, 40e3, 64),
        ] {
            let plan = Plan {
                direction,
                load,
                sender,
                rate,
                time,
            };
            let (direction, load, sender) = (direction.name(), load.name(), sender.name());
            if !wanted(&format!("{direction}/{load}/{sender}/{rate}/{flows}")) {
                continue;
            }
            for side in sides {
                out.line(
                    *side,
                    plan,
                    flows,
                    load,
                    "",
                    median(*side, flows, plan, &mut calm)?,
                );
            }
            // What a wake costs is most of these.
            if (load, flows) == ("even", 1) && sides.contains(&Side::Relay) {
                let side = Side::Restless;
                out.line(
                    side,
                    plan,
                    flows,
                    load,
                    "",
                    median(side, flows, plan, &mut calm)?,
                );
            }
        }
        for sender in [Plain, Gso] {
            let plan = |load, rate| Plan {
                direction,
                load,
                sender,
                rate,
                time,
            };
            let (direction, sender) = (direction.name(), sender.name());
            if !wanted(&format!("{direction}/saturation/{sender}")) {
                continue;
            }
            for side in sides {
                let flood = plan(Flood, f64::INFINITY);
                out.line(
                    *side,
                    flood,
                    1,
                    "saturation",
                    "",
                    median(*side, 1, flood, &mut calm)?,
                );
                let highest = highest(*side, plan(Paced, 0.0), &mut calm)?;
                let at = |part| plan(Paced, highest.delivered * part);
                out.line(*side, at(1.0), 1, "paced", "highest", highest);
                out.line(
                    *side,
                    at(0.5),
                    1,
                    "paced",
                    "half",
                    median(*side, 1, at(0.5), &mut calm)?,
                );
                out.line(
                    *side,
                    at(2.0),
                    1,
                    "overload",
                    "",
                    median(*side, 1, at(2.0), &mut calm)?,
                );
            }
        }
    }
    for megabits in [50, 10] {
        if wanted(&format!("slow/{megabits}")) {
            slow(megabits, sides, json)?;
        }
    }
    Ok(())
}

/// The median of each figure over [`RUNS`] runs of a server; the host as it was at its worst.
fn median(side: Side, flows: usize, plan: Plan, calm: &mut Calm) -> anyhow::Result<Sample> {
    let (_server, mut world) = open(side, flows, &Place::loopback())?;
    let warm = Plan {
        time: Duration::from_millis(100),
        ..plan
    };
    world.run(warm)?;
    let sample = median_in(&mut world, plan, RUNS, calm)?;
    let syscalls = world.syscalls(plan)?;
    Ok(Sample { syscalls, ..sample })
}

fn median_in(
    world: &mut World,
    plan: Plan,
    runs: usize,
    calm: &mut Calm,
) -> anyhow::Result<Sample> {
    let run = |_| {
        let (sample, host) = calm.run(|| world.run(plan))?;
        Ok(Sample { host, ..sample })
    };
    let samples: Vec<Sample> = (0..runs).map(run).collect::<anyhow::Result<_>>()?;
    let of =
        |figure: fn(&Sample) -> f64| underpass_bench::median(samples.iter().map(figure).collect());
    Ok(Sample {
        offered: of(|it| it.offered),
        delivered: of(|it| it.delivered),
        loss: of(|it| it.loss),
        server_us: of(|it| it.server_us),
        client_us: of(|it| it.client_us),
        p50_ms: of(|it| it.p50_ms),
        p99_ms: of(|it| it.p99_ms),
        host: samples
            .iter()
            .map(|it| it.host)
            .fold(Host::default(), Host::worse),
        ..Sample::default()
    })
}

/// The highest rate of the ladder with a loss under 0.1 % that is also offered and delivered.
fn highest(side: Side, plan: Plan, calm: &mut Calm) -> anyhow::Result<Sample> {
    let (_server, mut world) = open(side, 1, &Place::loopback())?;
    let mut best = Sample::default();
    for thousands in LADDER {
        let rate = f64::from(thousands) * 1e3;
        let sample = median_in(&mut world, Plan { rate, ..plan }, RUNS, calm)?;
        if sample.loss < 1e-3 && sample.delivered > best.delivered {
            best = sample;
        }
        if sample.loss > 0.05 || sample.offered < rate * 0.7 {
            break;
        }
    }
    let mut rate = best.offered;
    if best.delivered == 0.0 {
        rate = 10e3;
        best = median_in(&mut world, Plan { rate, ..plan }, RUNS, calm)?;
    }
    let syscalls = world.syscalls(Plan { rate, ..plan })?;
    Ok(Sample { syscalls, ..best })
}

/// Delay on a slow path: what is offered is twice what it carries. The measurement is made by a
/// child, inside.
fn slow(megabits: u32, sides: &[Side], json: bool) -> anyhow::Result<()> {
    let path = Path::new(megabits)?;
    for side in sides {
        let status = std::process::Command::new("ip")
            .args(["netns", "exec", &path.load])
            .arg(std::env::current_exe()?)
            .args(["--in", &path.server, &megabits.to_string(), side.name()])
            .args(json.then_some("--json"))
            .status()?;
        if !status.success() {
            bail!("the measurement failed");
        }
    }
    Ok(())
}

fn slow_in(namespace: &str, megabits: u32, side: &str, json: bool) -> anyhow::Result<()> {
    pin(LOAD_CORE)?;
    let side = Side::named(side);
    let plan = Plan {
        direction: Direction::Down,
        load: Load::Even,
        sender: Sender::Plain,
        rate: 2.0 * f64::from(megabits) * 1e6 / 8.0 / LENGTH as f64,
        time: SLOW_RUN,
    };
    let (_server, mut world) = open(side, 1, &Place::throttled(namespace))?;
    // A queue that stands is what is measured.
    world.run(plan)?;
    let calm = &mut Calm::new(Duration::ZERO)?;
    let sample = median_in(&mut world, plan, SLOW_RUNS, calm)?;
    let syscalls = world.syscalls(plan)?;
    let sample = Sample { syscalls, ..sample };
    Out { json }.line(
        side,
        plan,
        1,
        "overload",
        &format!("{megabits} Mbit/s"),
        sample,
    );
    Ok(())
}

struct Out {
    json: bool,
}

impl Out {
    fn head(&self) {
        eprintln!(
            "{:<9}{:<5}{:<11}{:<11}{:<6}{:>6}{:>9}{:>10}{:>8}{:>8}{:>8}{:>7}{:>9}{:>9}{:>7}{:>6}",
            "side",
            "",
            "load",
            "",
            "sender",
            "flows",
            "rate",
            "delivered",
            "loss %",
            "us",
            "client",
            "calls",
            "p50 ms",
            "p99 ms",
            "apart",
            "call"
        );
    }

    /// `point` says where on a curve a load is, or on what path.
    fn line(&self, side: Side, plan: Plan, flows: usize, load: &str, point: &str, sample: Sample) {
        eprintln!(
            "{:<9}{:<5}{:<11}{:<11}{:<6}{:>6}{:>9.0}{:>10.0}{:>8.2}{:>8.2}{:>8.2}{:>7.2}{:>9.3}{:>9.3}{:>7.0}{:>6.2}{}",
            side.name(),
            plan.direction.name(),
            load,
            point,
            plan.sender.name(),
            flows,
            sample.offered,
            sample.delivered,
            sample.loss * 100.0,
            sample.server_us,
            sample.client_us,
            sample.syscalls,
            sample.p50_ms,
            sample.p99_ms,
            sample.host.apart_ns,
            sample.host.call_us,
            if sample.host.disturbed { " !" } else { "" }
        );
        if !self.json {
            return;
        }
        for (name, us, syscalls) in [
            (
                side.name(),
                sample.server_us,
                Some(round(sample.syscalls, 3)),
            ),
            ("client", sample.client_us, None),
        ] {
            let line = json!({
                "side": name,
                "server": side.name(),
                "direction": plan.direction.name(),
                "load": load,
                "point": point,
                "sender": plan.sender.name(),
                "flows": flows,
                "bytes": LENGTH,
                "rate": round(sample.offered, 0),
                "delivered": round(sample.delivered, 0),
                "cpu_us_per_datagram": round(us, 3),
                "syscalls_per_datagram": syscalls,
                "loss": round(sample.loss, 5),
                "p50_ms": round(sample.p50_ms, 3),
                "p99_ms": round(sample.p99_ms, 3),
                "cores_apart_ns": round(sample.host.apart_ns, 0),
                "host_call_us": round(sample.host.call_us, 2),
                "disturbed": sample.host.disturbed,
            });
            println!("{line}");
        }
    }
}
