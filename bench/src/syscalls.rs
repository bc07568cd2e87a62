//! How many system calls a process makes, as the kernel counts them where they are entered.
//!
//! Counting makes every system call of the machine slower: it has a run of its own, and times are
//! taken without it.

use std::path::Path;

use anyhow::{Context, anyhow};
use nix::mount::{MsFlags, mount};
use perf_event::{Builder, Counter, events::Tracepoint};

/// Where the kernel says what it can count.
const TRACING: &str = "/sys/kernel/tracing";

/// Counts the system calls of a process' first thread.
pub struct Syscalls(Counter);

impl Syscalls {
    /// Counts from now on.
    ///
    /// # Errors
    /// Without root, or on a kernel without tracepoints.
    pub fn of(pid: u32) -> anyhow::Result<Syscalls> {
        if !Path::new(TRACING).join("events").exists() {
            mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount {TRACING}\nhint: counting system calls takes root and a kernel with tracefs"))?;
        }
        let id =
            std::fs::read_to_string(Path::new(TRACING).join("events/raw_syscalls/sys_enter/id"))
                .context("the kernel does not count system calls\nhint: CONFIG_FTRACE_SYSCALLS")?;
        let mut counter = Builder::new(Tracepoint::with_id(id.trim().parse()?))
            .observe_pid(i32::try_from(pid)?)
            .include_kernel()
            .build()
            .map_err(|error| {
                anyhow!("cannot count system calls: {error}\nhint: this takes root")
            })?;
        counter.enable()?;
        Ok(Syscalls(counter))
    }

    /// How many there were.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn count(&mut self) -> anyhow::Result<u64> {
        Ok(self.0.read()?)
    }
}
