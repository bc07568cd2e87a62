//! A server on loopback, and clients that nobody here wrote: OpenSSH's `ssh`, `scp` and `sftp`,
//! rsync, PuTTY's `plink`; and this project's own client.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod binary;
mod denials;
mod own;
mod shell;
mod transfer;
mod world;
