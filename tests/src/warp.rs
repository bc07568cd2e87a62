//! A wall clock that a test can move under a running process.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use crate::command::run;

/// The clock of the processes that [`Warp::apply`] was called for.
#[derive(Debug)]
pub struct Warp {
    directory: TempDir,
}

impl Warp {
    /// Builds the shim with the C compiler of the system.
    ///
    /// # Panics
    /// Without one.
    pub fn new() -> Warp {
        let warp = Warp {
            directory: tempfile::tempdir().expect("a directory"),
        };
        let source = warp.directory.path().join("warp.c");
        fs::write(&source, include_str!("warp.c")).expect("the source");
        let mut compile = Command::new("cc");
        compile
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(warp.library())
            .arg(source)
            .arg("-ldl");
        run(compile, b"", Duration::from_secs(60)).ok();
        warp.set(0);
        warp
    }

    /// Lets `command` run by this clock.
    pub fn apply(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", self.library())
            .env("UNDERPASS_WARP", self.offset());
    }

    /// Moves the clock to that many seconds after (or before) the real one.
    pub fn set(&self, seconds: i64) {
        // Whole or not at all: the process may look at any moment.
        let draft = self.directory.path().join("draft");
        fs::write(&draft, seconds.to_string()).expect("the offset");
        fs::rename(draft, self.offset()).expect("the offset");
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("warp.so")
    }

    fn offset(&self) -> PathBuf {
        self.directory.path().join("offset")
    }
}

impl Default for Warp {
    fn default() -> Warp {
        Warp::new()
    }
}
