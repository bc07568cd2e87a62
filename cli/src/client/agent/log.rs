//! What the agent writes down: the last one to two mebibytes of it.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::place::{Place, open_private};

/// A file that is longer becomes the older one.
const LIMIT: u64 = 1 << 20;

/// A follower looks this often.
const LOOK: Duration = Duration::from_millis(250);

/// The log, while it is written.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Open>>);

struct Open {
    place: Place,
    file: fs::File,
    length: u64,
    /// What the operating system and a panic say goes there too.
    is_stderr: bool,
}

impl Log {
    pub(crate) fn open(place: &Place, is_stderr: bool) -> io::Result<Log> {
        let file = open_private(&place.log())?;
        let open = Open {
            place: place.clone(),
            length: file.metadata()?.len(),
            file,
            is_stderr,
        };
        Ok(Log(Arc::new(Mutex::new(open))))
    }

    /// Takes what this program traces.
    pub(crate) fn take_traces(self) {
        let filter = EnvFilter::try_from_env("UNDERPASS_LOG")
            .unwrap_or_else(|_| EnvFilter::new("warn,underpass=info"));
        let writer = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(self);
        // One process, one log: there is none before this.
        let _ = writer.try_init();
    }
}

impl Open {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.length > LIMIT {
            fs::rename(self.place.log(), self.place.older_log())?;
            self.file = open_private(&self.place.log())?;
            self.length = 0;
            if self.is_stderr {
                nix::unistd::dup2_stderr(&self.file)?;
            }
        }
        self.file.write_all(line)?;
        self.length += line.len() as u64;
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.write(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// Prints the log, and what is added to it for as long as it is followed.
pub(crate) async fn show(place: &Place, follow: bool) -> anyhow::Result<()> {
    if let Ok(older) = fs::read(place.older_log()) {
        put(&older);
    }
    let mut shown = 0;
    let mut inode = None;
    loop {
        if let Ok(mut file) = fs::File::open(place.log()) {
            let meta = file.metadata()?;
            if inode.replace(meta.ino()) != Some(meta.ino()) {
                shown = 0;
            }
            file.seek(SeekFrom::Start(shown))?;
            let mut more = Vec::new();
            file.read_to_end(&mut more)?;
            shown += more.len() as u64;
            put(&more);
        } else if !follow {
            anyhow::bail!("no agent has written anything yet\nhint: underpass agent start");
        }
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn put(bytes: &[u8]) {
    print!("{}", String::from_utf8_lossy(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path().join("underpass")).unwrap();
        let mut log = Log::open(&place, false).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..5_000 {
            log.write_all(&line).unwrap();
        }
        for file in [place.log(), place.older_log()] {
            let length = fs::metadata(file).unwrap().len();
            assert!((1..=LIMIT + 1000).contains(&length), "{length}");
        }
    }
}
