//! What SFTP requests do to files.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions, ReadDir};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use russh_sftp::protocol::{
    Attrs, Data, ExtendedReply, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet,
    Status, StatusCode, Version,
};
use russh_sftp::server::StatusReply;

use super::MAX_PACKET;

pub(super) struct Files {
    home: PathBuf,
    handles: HashMap<String, Opened>,
    next: u64,
}

#[derive(Clone)]
enum Opened {
    File(Arc<File>),
    Directory {
        path: PathBuf,
        list: Arc<Mutex<ReadDir>>,
    },
}

type Reply<T> = Result<T, StatusReply>;

impl Files {
    /// Relative paths start at `home`.
    pub(super) fn new(home: PathBuf) -> Files {
        Files {
            home,
            handles: HashMap::new(),
            next: 0,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.join(path)
    }

    fn keep(&mut self, opened: Opened) -> String {
        self.next += 1;
        let handle = self.next.to_string();
        self.handles.insert(handle.clone(), opened);
        handle
    }

    fn room(&self) -> Reply<()> {
        if self.handles.len() < HANDLES {
            return Ok(());
        }
        Err(StatusCode::Failure.with_message(format!("{HANDLES} files are open already")))
    }

    fn file(&self, handle: &str) -> Reply<Arc<File>> {
        match self.handles.get(handle) {
            Some(Opened::File(file)) => Ok(Arc::clone(file)),
            _ => Err(StatusCode::Failure.with_message("no such handle")),
        }
    }
}

impl russh_sftp::server::Handler for Files {
    type Error = StatusReply;

    fn unimplemented(&self) -> StatusReply {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Reply<Version> {
        let mut version = Version::new();
        for (name, number) in EXTENSIONS {
            version
                .extensions
                .insert((*name).to_owned(), (*number).to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        flags: OpenFlags,
        attrs: FileAttributes,
    ) -> Reply<Handle> {
        self.room()?;
        let path = self.path(&filename);
        let file = blocking(move || {
            // A pipe without a peer must not hold a thread for ever.
            let mut options = OpenOptions::from(flags);
            options.custom_flags(OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits());
            options.mode(attrs.permissions.unwrap_or(0o666) & 0o7777);
            let file = options.open(path)?;
            if file.metadata()?.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok(file)
        });
        let handle = self.keep(Opened::File(Arc::new(file.await?)));
        Ok(Handle { id, handle })
    }

    async fn close(&mut self, id: u32, handle: String) -> Reply<Status> {
        match self.handles.remove(&handle) {
            Some(_) => Ok(done(id)),
            None => Err(StatusCode::Failure.with_message("no such handle")),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, len: u32) -> Reply<Data> {
        let file = self.file(&handle)?;
        let data = blocking(move || {
            let mut data = vec![0; len.min(MAX_READ) as usize];
            let length = file.read_at(&mut data, offset)?;
            data.truncate(length);
            Ok(data)
        });
        let data = data.await?;
        if data.is_empty() && len > 0 {
            Err(StatusCode::Eof.into())
        } else {
            Ok(Data { id, data })
        }
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Reply<Status> {
        let file = self.file(&handle)?;
        blocking(move || file.write_all_at(&data, offset)).await?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let path = self.path(&path);
        let metadata = blocking(move || fs::symlink_metadata(path)).await?;
        Ok(Attrs {
            id,
            attrs: attributes(&metadata),
        })
    }

    async fn stat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let path = self.path(&path);
        let metadata = blocking(move || fs::metadata(path)).await?;
        Ok(Attrs {
            id,
            attrs: attributes(&metadata),
        })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Reply<Attrs> {
        let file = self.file(&handle)?;
        let metadata = blocking(move || file.metadata()).await?;
        Ok(Attrs {
            id,
            attrs: attributes(&metadata),
        })
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Reply<Status> {
        let path = self.path(&path);
        blocking(move || set_path(&path, &attrs)).await?;
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Reply<Status> {
        let file = self.file(&handle)?;
        blocking(move || set_file(&file, &attrs)).await?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Reply<Handle> {
        self.room()?;
        let path = self.path(&path);
        let listed = path.clone();
        let list = blocking(move || fs::read_dir(listed)).await?;
        let handle = self.keep(Opened::Directory {
            path,
            list: Arc::new(Mutex::new(list)),
        });
        Ok(Handle { id, handle })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Reply<Name> {
        let Some(Opened::Directory { path, list }) = self.handles.get(&handle).cloned() else {
            return Err(StatusCode::Failure.with_message("no such handle"));
        };
        let files = blocking(move || {
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            let mut files = Vec::new();
            for entry in list.by_ref().take(BATCH) {
                let name = entry?.file_name();
                // One that is gone meanwhile is left out.
                if let Ok(metadata) = fs::symlink_metadata(path.join(&name)) {
                    files.push(Entry::new(name.to_string_lossy(), attributes(&metadata)));
                }
            }
            Ok(files)
        });
        let files = files.await?;
        if files.is_empty() {
            Err(StatusCode::Eof.into())
        } else {
            Ok(Name { id, files })
        }
    }

    async fn remove(&mut self, id: u32, filename: String) -> Reply<Status> {
        let path = self.path(&filename);
        blocking(move || fs::remove_file(path)).await?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Reply<Status> {
        let path = self.path(&path);
        let mode = attrs.permissions.unwrap_or(0o777) & 0o7777;
        blocking(move || fs::DirBuilder::new().mode(mode).create(path)).await?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Reply<Status> {
        let path = self.path(&path);
        blocking(move || fs::remove_dir(path)).await?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Reply<Name> {
        let path = self.path(&path);
        let path = blocking(move || real(&path)).await?;
        Ok(Name {
            id,
            files: vec![Entry::dummy(path.to_string_lossy())],
        })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Reply<Status> {
        let (from, to) = (self.path(&from), self.path(&to));
        blocking(move || {
            if fs::symlink_metadata(&to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        })
        .await?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Reply<Name> {
        let path = self.path(&path);
        let target = blocking(move || fs::read_link(path)).await?;
        Ok(Name {
            id,
            files: vec![Entry::dummy(target.to_string_lossy())],
        })
    }

    /// The first path is what the link says and the second is the link: OpenSSH has it the wrong
    /// way round, and every client follows it.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Reply<Status> {
        let link = self.path(&link);
        blocking(move || symlink(target, link)).await?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Reply<Packet> {
        let mut rest = data.as_slice();
        match request.as_str() {
            "posix-rename@openssh.com" => {
                let (from, to) = (
                    self.path(&string(&mut rest)?),
                    self.path(&string(&mut rest)?),
                );
                blocking(move || fs::rename(from, to)).await?;
            }
            "hardlink@openssh.com" => {
                let (from, to) = (
                    self.path(&string(&mut rest)?),
                    self.path(&string(&mut rest)?),
                );
                blocking(move || fs::hard_link(from, to)).await?;
            }
            "fsync@openssh.com" => {
                let file = self.file(&string(&mut rest)?)?;
                blocking(move || file.sync_all()).await?;
            }
            "expand-path@openssh.com" => {
                let path = string(&mut rest)?;
                let path = path
                    .strip_prefix("~/")
                    .unwrap_or(if path == "~" { "." } else { &path });
                return Ok(self.realpath(id, path.to_owned()).await?.into());
            }
            "limits@openssh.com" => {
                let limits = [
                    MAX_PACKET.into(),
                    MAX_READ.into(),
                    MAX_READ.into(),
                    HANDLES as u64,
                ];
                let data = limits
                    .iter()
                    .flat_map(|limit: &u64| limit.to_be_bytes())
                    .collect();
                return Ok(Packet::ExtendedReply(ExtendedReply { id, data }));
            }
            _ => return Err(StatusCode::OpUnsupported.into()),
        }
        Ok(done(id).into())
    }
}

/// Runs what may wait for a disk away from the tasks that must not.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Reply<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result
        .unwrap_or_else(|lost| Err(io::Error::other(lost)))
        .map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound => StatusCode::NoSuchFile,
                io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
                _ => StatusCode::Failure,
            };
            code.with_message(error.to_string())
        })
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: "Ok".to_owned(),
        language_tag: "en".to_owned(),
    }
}

fn attributes(metadata: &Metadata) -> FileAttributes {
    let seconds = |time: i64| Some(u32::try_from(time.max(0)).unwrap_or(u32::MAX));
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        user: None,
        gid: Some(metadata.gid()),
        group: None,
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
    }
}

fn time(seconds: u32) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.into())
}

fn set_file(file: &File, attrs: &FileAttributes) -> io::Result<()> {
    if let Some(size) = attrs.size {
        file.set_len(size)?;
    }
    if let (Some(uid), Some(gid)) = (attrs.uid, attrs.gid) {
        fchown(file, Some(uid), Some(gid))?;
    }
    if let Some(mode) = attrs.permissions {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    if let (Some(accessed), Some(modified)) = (attrs.atime, attrs.mtime) {
        let times = FileTimes::new()
            .set_accessed(time(accessed))
            .set_modified(time(modified));
        file.set_times(times)?;
    }
    Ok(())
}

fn set_path(path: &Path, attrs: &FileAttributes) -> io::Result<()> {
    if let Some(size) = attrs.size {
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits())
            .open(path)?;
        file.set_len(size)?;
    }
    if let (Some(uid), Some(gid)) = (attrs.uid, attrs.gid) {
        chown(path, Some(uid), Some(gid))?;
    }
    if let Some(mode) = attrs.permissions {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    if let (Some(accessed), Some(modified)) = (attrs.atime, attrs.mtime) {
        let spec = |seconds: u32| TimeSpec::new(seconds.into(), 0);
        let follow = UtimensatFlags::FollowSymlink;
        utimensat(AT_FDCWD, path, &spec(accessed), &spec(modified), follow)?;
    }
    Ok(())
}

/// The path without links and dots. The last part need not exist: a client asks where a file that
/// it is about to make will be.
fn real(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(fs::canonicalize(parent)?.join(name))
        }
        (result, ..) => result,
    }
}

/// Takes a string off the front.
fn string(rest: &mut &[u8]) -> Reply<String> {
    let take = |rest: &mut &[u8]| {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (text, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        *rest = tail;
        String::from_utf8(text.to_vec()).ok()
    };
    take(rest).ok_or_else(|| StatusCode::BadMessage.into())
}

const EXTENSIONS: &[(&str, &str)] = &[
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("limits@openssh.com", "1"),
];
/// The largest read or write: a packet, without its header.
const MAX_READ: u32 = MAX_PACKET - 1024;
const HANDLES: usize = 128;
/// Files in one answer to a listing.
const BATCH: usize = 64;
