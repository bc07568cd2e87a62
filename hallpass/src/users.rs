//! As whom a session runs: the files `passwd` and `group`, read by hand.
//!
//! An image need not have a C library, nor these files.

use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

/// As whom sessions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// As the user of this process, whatever the login name: for a server without privileges.
    Current,
    /// As the user that the login name says: a name of `/etc/passwd`, or a number. `root` and
    /// `fly` are the superuser where the file does not say otherwise. Needs the superuser to
    /// switch to anybody else.
    System,
}

/// A user to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: Option<PathBuf>,
    /// Whom to become; `None` stays the user of this process.
    pub(crate) switch: Option<Switch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAccount {
    #[error("there is no user {0:?} in /etc/passwd")]
    Unknown(String),
    #[error("running as {0:?} needs a server that runs as root")]
    NotRoot(String),
}

impl Users {
    /// The account for a login name, as of now.
    pub(crate) fn account(self, login: &str) -> Result<Account, NoAccount> {
        let read = |path: &str| {
            std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let passwd = read("/etc/passwd").unwrap_or_default();
        let group = read("/etc/group").unwrap_or_default();
        let home = std::env::var_os("HOME").map(PathBuf::from);
        self.resolve(login, &passwd, &group, nix::unistd::geteuid(), home)
    }

    fn resolve(
        self,
        login: &str,
        passwd: &str,
        group: &str,
        me: Uid,
        my_home: Option<PathBuf>,
    ) -> Result<Account, NoAccount> {
        let entries = || passwd.lines().filter_map(Entry::parse);
        match self {
            Users::Current => {
                let entry = entries().find(|entry| entry.uid == me.as_raw());
                let name = entry
                    .as_ref()
                    .map_or_else(|| me.to_string(), |entry| entry.name.to_owned());
                let home = my_home.or_else(|| entry.as_ref().map(|entry| entry.home.into()));
                Ok(Account {
                    name,
                    home: home.unwrap_or_else(|| "/".into()),
                    shell: entry.and_then(|entry| entry.shell()),
                    switch: None,
                })
            }
            Users::System => {
                let number = login.parse::<u32>().ok();
                let entry = entries()
                    .find(|entry| entry.name == login)
                    .or_else(|| entries().find(|entry| Some(entry.uid) == number))
                    .or_else(|| entries().find(|entry| entry.uid == 0 && is_superuser(login)));
                let mut account = match (&entry, number) {
                    (Some(entry), _) => Account {
                        name: entry.name.to_owned(),
                        home: entry.home.into(),
                        shell: entry.shell(),
                        switch: Some(Switch {
                            uid: Uid::from_raw(entry.uid),
                            gid: Gid::from_raw(entry.gid),
                            groups: groups(group, entry.name, entry.gid),
                        }),
                    },
                    (None, Some(number)) => bare(login, number),
                    (None, None) if is_superuser(login) => bare("root", 0),
                    (None, None) => return Err(NoAccount::Unknown(login.to_owned())),
                };
                let uid = account.switch.as_ref().map(|switch| switch.uid);
                if uid == Some(me) {
                    account.switch = None;
                } else if !me.is_root() {
                    return Err(NoAccount::NotRoot(login.to_owned()));
                }
                if account.home.as_os_str().is_empty() {
                    account.home = "/".into();
                }
                Ok(account)
            }
        }
    }
}

impl Account {
    /// The shell to run: the account's own where it is there, `/bin/sh` otherwise. The error lists
    /// what was looked for.
    pub(crate) fn shell(&self) -> Result<PathBuf, String> {
        self.shell_or(Path::new("/bin/sh"))
    }

    fn shell_or(&self, default: &Path) -> Result<PathBuf, String> {
        let candidates = self.shell.as_deref().into_iter().chain([default]);
        let mut missing = Vec::new();
        for candidate in candidates {
            if nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok() {
                return Ok(candidate.to_owned());
            }
            if !missing.contains(&candidate) {
                missing.push(candidate);
            }
        }
        let missing: Vec<_> = missing
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Err(missing.join(" or "))
    }
}

fn is_superuser(login: &str) -> bool {
    matches!(login, "root" | "fly")
}

fn bare(name: &str, id: u32) -> Account {
    let gid = Gid::from_raw(id);
    let home = if id == 0 && Path::new("/root").is_dir() {
        "/root"
    } else {
        "/"
    };
    Account {
        name: name.to_owned(),
        home: home.into(),
        shell: None,
        switch: Some(Switch {
            uid: Uid::from_raw(id),
            gid,
            groups: vec![gid],
        }),
    }
}

fn groups(file: &str, name: &str, primary: u32) -> Vec<Gid> {
    let mut groups = vec![Gid::from_raw(primary)];
    for line in file.lines() {
        let fields: Vec<_> = line.split(':').collect();
        let [_, _, gid, members] = fields[..] else {
            continue;
        };
        let Ok(gid) = gid.parse::<u32>() else {
            continue;
        };
        let gid = Gid::from_raw(gid);
        if members.split(',').any(|member| member == name)
            && !groups.contains(&gid)
            && groups.len() < 64
        {
            groups.push(gid);
        }
    }
    groups
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Entry<'a>> {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let plain = !name.is_empty() && !name.starts_with(['+', '-', '#']);
        plain.then_some(())?;
        Some(Entry {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
            shell,
        })
    }

    fn shell(&self) -> Option<PathBuf> {
        (!self.shell.is_empty()).then(|| self.shell.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/bash
broken line
app:x:1000:1001::/app:/bin/ash
bare:x:1002:1002:::
+nis::::::
";
    const GROUP: &str = "root:x:0:\nlog:x:7:app,other\nbad:x:y:app\napp:x:1001:app\n";

    fn resolve(login: &str, passwd: &str, me: u32) -> Result<Account, NoAccount> {
        Users::System.resolve(login, passwd, GROUP, Uid::from_raw(me), None)
    }

    #[test]
    fn by_name_and_number() {
        let app = resolve("app", PASSWD, 0).unwrap();
        assert_eq!(app.home, Path::new("/app"));
        assert_eq!(app.shell.as_deref(), Some(Path::new("/bin/ash")));
        let switch = app.switch.clone().unwrap();
        assert_eq!((switch.uid.as_raw(), switch.gid.as_raw()), (1000, 1001));
        assert_eq!(
            switch
                .groups
                .iter()
                .map(|gid| gid.as_raw())
                .collect::<Vec<_>>(),
            [1001, 7]
        );
        assert_eq!(resolve("1000", PASSWD, 0).unwrap(), app);
        assert_eq!(resolve("bare", PASSWD, 0).unwrap().home, Path::new("/"));
        assert_eq!(resolve("bare", PASSWD, 0).unwrap().shell, None);

        let number = resolve("4711", PASSWD, 0).unwrap();
        assert_eq!(number.switch.unwrap().uid.as_raw(), 4711);
    }

    #[test]
    fn the_superuser() {
        for login in ["root", "fly"] {
            let account = resolve(login, PASSWD, 0).unwrap();
            assert_eq!((account.name.as_str(), account.switch), ("root", None));
            assert_eq!(account.shell.as_deref(), Some(Path::new("/bin/bash")));
            assert_eq!(resolve(login, "", 0).unwrap().switch, None);
        }
    }

    #[test]
    fn the_shell_that_is_there() {
        let account = |shell: &str| Account {
            shell: Some(shell.into()),
            ..bare("app", 1)
        };
        let (sh, none) = (Path::new("/bin/sh"), Path::new("/no/sh"));
        assert_eq!(account("/bin/sh").shell_or(none).as_deref(), Ok(sh));
        assert_eq!(account("/no/ash").shell_or(sh).as_deref(), Ok(sh));
        assert_eq!(
            account("/no/ash").shell_or(none).unwrap_err(),
            "/no/ash or /no/sh"
        );
        assert_eq!(account("/no/sh").shell_or(none).unwrap_err(), "/no/sh");
    }

    #[test]
    fn nobody_else() {
        for login in ["mallory", "+nis", "", "-1", "broken line"] {
            let unknown = NoAccount::Unknown(login.to_owned());
            assert_eq!(resolve(login, PASSWD, 0), Err(unknown), "{login}");
        }
        assert_eq!(
            resolve("app", PASSWD, 7),
            Err(NoAccount::NotRoot("app".to_owned()))
        );
        assert_eq!(resolve("app", PASSWD, 1000).unwrap().switch, None);
    }

    #[test]
    fn whoever_this_is() {
        let home = Some(PathBuf::from("/srv"));
        let account = Users::Current.resolve("root", PASSWD, GROUP, Uid::from_raw(1000), home);
        let account = account.unwrap();
        assert_eq!((account.name.as_str(), account.switch), ("app", None));
        assert_eq!(account.home, Path::new("/srv"));
        let stranger = Users::Current
            .resolve("root", "", "", Uid::from_raw(9), None)
            .unwrap();
        assert_eq!(
            (stranger.name.as_str(), stranger.home.as_path()),
            ("9", Path::new("/"))
        );
    }
}
