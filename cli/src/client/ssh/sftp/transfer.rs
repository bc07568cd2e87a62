//! Files and directories from one side to the other.
//!
//! What the other side says is not believed further than its bytes: a name in a listing makes a file
//! in the directory it was listed for or nothing, links are neither followed nor made, and a tree
//! has bounds.

use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use russh_sftp::{client::SftpSession, protocol::OpenFlags};
use tokio::{
    fs::{self, File, OpenOptions},
    io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt},
};

use super::{
    PIECE, explain, is_name, printable,
    progress::{Progress, now},
};
use crate::client::ssh::beside;

/// Directories within directories.
const MAX_DEPTH: usize = 64;

/// Files and directories of one tree.
const MAX_ENTRIES: u64 = 1_000_000;

/// How to copy.
pub(super) struct Transfer<'a> {
    sftp: &'a SftpSession,
    resume: bool,
    overwrite: bool,
}

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Files that are whole now, by this or by an earlier try.
    pub(super) files: u64,
    /// Bytes that were copied.
    pub(super) bytes: u64,
    /// Bytes that were there from an earlier try.
    pub(super) resumed_at: u64,
    /// Links and devices that were left out, and names that lead away.
    pub(super) skipped: u64,
    pub(super) elapsed: Duration,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(sftp: &'a SftpSession, resume: bool, overwrite: bool) -> Transfer<'a> {
        Transfer {
            sftp,
            resume,
            overwrite,
        }
    }

    /// Fetches a file, or with `recursive` a directory.
    pub(super) async fn get(
        &self,
        remote: &str,
        local: &Path,
        recursive: bool,
    ) -> anyhow::Result<Copied> {
        let started = now();
        let mut copied = Copied::default();
        let meta = self.sftp.metadata(remote).await;
        let meta = meta.map_err(|error| explain(remote, &error))?;
        if meta.file_type().is_dir() {
            ensure!(
                recursive,
                "{} is a directory\nhint: -R takes it with all that is in it",
                printable(remote)
            );
            self.get_tree(remote, local, &mut copied).await?;
        } else {
            self.get_file(remote, local, meta.len(), &mut copied)
                .await?;
        }
        copied.elapsed = started.elapsed();
        Ok(copied)
    }

    async fn get_tree(
        &self,
        remote: &str,
        local: &Path,
        copied: &mut Copied,
    ) -> anyhow::Result<()> {
        let mut waiting = vec![(remote.trim_end_matches('/').to_owned(), local.to_owned(), 0)];
        let mut seen = 0;
        while let Some((remote, local, depth)) = waiting.pop() {
            match fs::create_dir(&local).await {
                Err(_) if local.is_dir() => {}
                made => made.with_context(|| format!("cannot make {}", local.display()))?,
            }
            let listed = if remote.is_empty() { "/" } else { &remote };
            let entries = self.sftp.read_dir(listed).await;
            for entry in entries.map_err(|error| explain(listed, &error))? {
                let (name, meta) = (entry.file_name(), entry.metadata());
                seen += 1;
                ensure!(
                    seen <= MAX_ENTRIES && depth < MAX_DEPTH,
                    "{} has more than {MAX_ENTRIES} entries, or more than {MAX_DEPTH} levels\nhint: fetch its parts",
                    printable(listed)
                );
                let path = format!("{remote}/{name}");
                // Not `is_regular`, which holds for links too.
                let kind = meta.file_type();
                if !is_name(&name) || !(kind.is_dir() || kind.is_file()) {
                    eprintln!("left out: {}", printable(&path));
                    copied.skipped += 1;
                    continue;
                }
                let local = local.join(&name);
                if kind.is_dir() {
                    waiting.push((path, local, depth + 1));
                } else {
                    self.get_file(&path, &local, meta.len(), copied).await?;
                }
            }
        }
        Ok(())
    }

    async fn get_file(
        &self,
        remote: &str,
        local: &Path,
        size: u64,
        copied: &mut Copied,
    ) -> anyhow::Result<()> {
        if let Ok(there) = fs::metadata(local).await {
            if self.resume && there.is_file() && there.len() == size {
                copied.files += 1;
                copied.resumed_at += size;
                return Ok(());
            }
            ensure!(
                self.overwrite,
                "{} exists already\nhint: name another file, or say --overwrite",
                local.display()
            );
        }
        let mut from = self.sftp.open(remote).await;
        let from = from.as_mut().map_err(|error| explain(remote, error))?;
        let part = beside(local, ".part");
        let shown = part.display();
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(!self.resume);
        let mut to = options
            .open(&part)
            .await
            .with_context(|| format!("cannot write {shown}"))?;
        let at = to.metadata().await?.len();
        ensure!(
            at <= size,
            "{shown} is longer than {} there\nhint: it is of another file: leave out --resume",
            printable(remote)
        );
        if at > 0 {
            to.seek(SeekFrom::Start(at)).await?;
            from.seek(SeekFrom::Start(at)).await?;
        }
        let broke_off = || {
            format!(
                "{} was not fetched whole\nhint: go on with --resume",
                printable(remote)
            )
        };
        let bytes = copy(from, &mut to, Progress::new(remote, at, size))
            .await
            .with_context(broke_off)?;
        // A file of /proc has no length and something in it; one that is shorter than it was said
        // to be is not the file that was asked for.
        ensure!(
            at + bytes >= size,
            "{} became shorter while it was fetched\nhint: fetch it again without --resume",
            printable(remote)
        );
        to.sync_all().await?;
        fs::rename(&part, local)
            .await
            .with_context(|| format!("cannot write {}", local.display()))?;
        copied.files += 1;
        copied.bytes += bytes;
        copied.resumed_at += at;
        Ok(())
    }

    /// Sends a file, or with `recursive` a directory. A directory there takes a file under its own
    /// name, and what is in a directory: so the same words go on with what broke off.
    pub(super) async fn put(
        &self,
        local: &Path,
        remote: &str,
        recursive: bool,
    ) -> anyhow::Result<Copied> {
        let started = now();
        let shown = local.display();
        let mut copied = Copied::default();
        let meta = fs::metadata(local)
            .await
            .with_context(|| format!("cannot read {shown}"))?;
        if meta.is_dir() {
            ensure!(
                recursive,
                "{shown} is a directory\nhint: -R takes it with all that is in it"
            );
            self.put_tree(local, remote, &mut copied).await?;
        } else {
            ensure!(
                meta.is_file(),
                "{shown} is no file\nhint: underpass ssh console -C 'cat > FILE' < {shown}"
            );
            let there = self.sftp.metadata(remote).await.ok();
            let remote = match (&there, local.file_name().and_then(|name| name.to_str())) {
                (Some(there), Some(name)) if there.file_type().is_dir() => {
                    format!("{}/{name}", remote.trim_end_matches('/'))
                }
                _ => remote.to_owned(),
            };
            self.put_file(local, &remote, &mut copied).await?;
        }
        copied.elapsed = started.elapsed();
        Ok(copied)
    }

    async fn put_tree(
        &self,
        local: &Path,
        remote: &str,
        copied: &mut Copied,
    ) -> anyhow::Result<()> {
        let mut waiting: Vec<(PathBuf, String)> = vec![(local.to_owned(), remote.to_owned())];
        while let Some((local, remote)) = waiting.pop() {
            let made = self.sftp.create_dir(&remote).await;
            if let Err(error) = made {
                let there = self.sftp.metadata(&remote).await;
                if !there.is_ok_and(|there| there.file_type().is_dir()) {
                    return Err(explain(&remote, &error));
                }
            }
            let mut entries = fs::read_dir(&local)
                .await
                .with_context(|| format!("cannot read {}", local.display()))?;
            while let Some(entry) = entries.next_entry().await? {
                let (path, kind) = (entry.path(), entry.file_type().await?);
                let name = entry.file_name();
                let Some(name) = name.to_str().filter(|_| kind.is_dir() || kind.is_file()) else {
                    eprintln!("left out: {}", printable(&path.to_string_lossy()));
                    copied.skipped += 1;
                    continue;
                };
                let remote = format!("{}/{name}", remote.trim_end_matches('/'));
                if kind.is_dir() {
                    waiting.push((path, remote));
                } else {
                    self.put_file(&path, &remote, copied).await?;
                }
            }
        }
        Ok(())
    }

    async fn put_file(
        &self,
        local: &Path,
        remote: &str,
        copied: &mut Copied,
    ) -> anyhow::Result<()> {
        let shown = local.display();
        let mut from = File::open(local)
            .await
            .with_context(|| format!("cannot read {shown}"))?;
        let size = from.metadata().await?.len();
        let at = match (self.resume, self.sftp.metadata(remote).await) {
            (true, Ok(there)) => there.len(),
            _ => 0,
        };
        ensure!(
            at <= size,
            "{} is longer there than here\nhint: it is another file: leave out --resume",
            printable(remote)
        );
        if at == size && at > 0 {
            copied.files += 1;
            copied.resumed_at += at;
            return Ok(());
        }
        let mut flags = OpenFlags::CREATE | OpenFlags::WRITE;
        if at == 0 {
            flags |= OpenFlags::TRUNCATE;
        }
        let to = self.sftp.open_with_flags(remote, flags).await;
        let mut to = to.map_err(|error| explain(remote, &error))?;
        if at > 0 {
            to.seek(SeekFrom::Start(at)).await?;
            from.seek(SeekFrom::Start(at)).await?;
        }
        let sent = async {
            let bytes = copy(
                &mut from,
                &mut to,
                Progress::new(&shown.to_string(), at, size),
            )
            .await?;
            to.close().await?;
            anyhow::Ok(bytes)
        };
        let bytes = sent.await.map_err(|error| {
            anyhow!("{shown} was not sent whole: {error:#}\nhint: go on with --resume")
        })?;
        copied.files += 1;
        copied.bytes += bytes;
        copied.resumed_at += at;
        Ok(())
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut progress: Progress,
) -> std::io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut copied = 0;
    loop {
        let n = from.read(&mut piece).await?;
        if n == 0 {
            break;
        }
        to.write_all(&piece[..n]).await?;
        progress.add(n);
        copied += n as u64;
    }
    to.flush().await?;
    progress.end();
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use russh_sftp::protocol::{
        Attrs, Data, File, FileAttributes, Handle, Name, StatusCode, Version,
    };

    use super::*;

    /// A server that means harm: its listing names what lies elsewhere, without end and in circles.
    #[derive(Default)]
    struct Hostile {
        listed: bool,
        names: Vec<&'static str>,
        links: bool,
        deep: bool,
    }

    fn directory() -> FileAttributes {
        FileAttributes {
            permissions: Some(0o040_755),
            ..FileAttributes::empty()
        }
    }

    fn file() -> FileAttributes {
        FileAttributes {
            permissions: Some(0o100_644),
            size: Some(4),
            ..FileAttributes::empty()
        }
    }

    impl russh_sftp::server::Handler for Hostile {
        type Error = StatusCode;

        fn unimplemented(&self) -> StatusCode {
            StatusCode::OpUnsupported
        }

        async fn init(
            &mut self,
            _: u32,
            _: std::collections::HashMap<String, String>,
        ) -> Result<Version, StatusCode> {
            Ok(Version::new())
        }

        async fn stat(&mut self, id: u32, _: String) -> Result<Attrs, StatusCode> {
            let attrs = directory();
            Ok(Attrs { id, attrs })
        }

        async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, StatusCode> {
            self.listed = false;
            Ok(Handle { id, handle: path })
        }

        async fn readdir(&mut self, id: u32, _: String) -> Result<Name, StatusCode> {
            if std::mem::replace(&mut self.listed, true) {
                return Err(StatusCode::Eof);
            }
            let kind = match (self.deep, self.links) {
                (true, _) => directory(),
                (_, true) => FileAttributes {
                    permissions: Some(0o120_777),
                    ..file()
                },
                _ => file(),
            };
            let files = self.names.iter().map(|name| File::new(*name, kind.clone()));
            let files = files.collect();
            Ok(Name { id, files })
        }

        async fn close(
            &mut self,
            id: u32,
            _: String,
        ) -> Result<russh_sftp::protocol::Status, StatusCode> {
            Ok(russh_sftp::protocol::Status {
                id,
                status_code: StatusCode::Ok,
                error_message: String::new(),
                language_tag: String::new(),
            })
        }

        async fn open(
            &mut self,
            id: u32,
            path: String,
            _: OpenFlags,
            _: FileAttributes,
        ) -> Result<Handle, StatusCode> {
            Ok(Handle { id, handle: path })
        }

        async fn fstat(&mut self, id: u32, _: String) -> Result<Attrs, StatusCode> {
            Ok(Attrs { id, attrs: file() })
        }

        async fn read(
            &mut self,
            id: u32,
            _: String,
            offset: u64,
            _: u32,
        ) -> Result<Data, StatusCode> {
            let data = b"evil".get(usize::try_from(offset).unwrap_or(4)..);
            match data {
                Some(data) if !data.is_empty() => Ok(Data {
                    id,
                    data: data.to_vec(),
                }),
                _ => Err(StatusCode::Eof),
            }
        }
    }

    async fn fetch(hostile: Hostile, into: &Path) -> anyhow::Result<Copied> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        russh_sftp::server::run(theirs, hostile).await;
        let sftp = SftpSession::new(ours).await.unwrap();
        Transfer::new(&sftp, false, true)
            .get("/srv", into, true)
            .await
    }

    #[tokio::test]
    async fn a_hostile_server_stays_in_the_directory() {
        let outside = tempfile::tempdir().unwrap();
        let into = outside.path().join("into");
        let names = vec![
            "../evil",
            "..",
            "",
            "/tmp/evil",
            "a/../../evil",
            "x\0y",
            "good",
        ];
        let hostile = Hostile {
            names,
            ..Hostile::default()
        };
        let copied = fetch(hostile, &into).await.unwrap();
        assert_eq!((copied.files, copied.bytes), (1, 4));
        assert_eq!(std::fs::read(into.join("good")).unwrap(), b"evil");
        let beside = |path: &Path| std::fs::read_dir(path).unwrap().count();
        assert_eq!((beside(outside.path()), beside(&into)), (1, 1));

        let links = Hostile {
            names: vec!["link"],
            links: true,
            ..Hostile::default()
        };
        let copied = fetch(links, &into).await.unwrap();
        assert_eq!((copied.files, copied.skipped), (0, 1));

        let endless = Hostile {
            names: vec!["d"],
            deep: true,
            ..Hostile::default()
        };
        let error = fetch(endless, &into).await.unwrap_err().to_string();
        assert!(error.contains("64 levels\nhint: "), "{error}");
    }
}
