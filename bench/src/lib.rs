//! Measurements side by side. Each binary of `src/bin` is one; this library is what they share.
//!
//! A measured server is a child process, pinned to one core; what loads it runs on another core in
//! one thread that never sleeps, so that a measured delay is the server's. CPU time is the
//! kernel's account of the child, system time included.

#![expect(
    clippy::disallowed_methods,
    reason = "a measurement reads the clock: all of this drives"
)]

pub mod bulk;
pub mod calm;
pub mod client;
pub mod instance;
pub mod load;
pub mod path;
pub mod server;
pub mod syscalls;

use std::{fs, process};

use anyhow::Context;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The core of the measured server, and the core of everything else.
pub const SERVER_CORE: usize = 0;
/// See [`SERVER_CORE`].
pub const LOAD_CORE: usize = 1;

/// Pins this thread, and the threads it starts, to a core.
///
/// # Errors
/// When there is no such core.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)
        .with_context(|| format!("cannot use core {core}\nhint: this measures on two cores"))
}

/// The CPU time of a process in nanoseconds, all of its threads.
///
/// # Errors
/// When the process is gone, or the kernel keeps no such account.
pub fn cpu_nanos(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().unwrap_or_default();
        sum += first.parse::<u64>().context("schedstat is no number")?;
    }
    Ok(sum)
}

/// Resident bytes of a process.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<u64>()? * 1024)
}

/// This binary again, in another role.
///
/// # Errors
/// When the binary is gone.
pub fn myself(role: &[&str]) -> anyhow::Result<process::Command> {
    let mut command = process::Command::new(std::env::current_exe()?);
    command.args(role);
    Ok(command)
}

/// The middle one, or NaN of none.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A figure with so many digits after the point.
pub fn round(figure: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (figure * scale).round() / scale
}
