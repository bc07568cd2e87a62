//! What a program without server roles says where only the owner of a data directory can help.

use anyhow::bail;
use zeroize::Zeroizing;

use crate::data_dir::DataDir;

const WHERE: &str = "this program has no server roles, and this needs them\n\
                     hint: type it where `underpass up` runs";

pub(crate) fn local_login_token(_dir: &DataDir) -> anyhow::Result<Zeroizing<String>> {
    bail!(WHERE)
}

pub(crate) fn create_org(_dir: &DataDir, _name: &str) -> anyhow::Result<String> {
    bail!(WHERE)
}

pub(crate) fn set_instance_started(
    _dir: &DataDir,
    _id: &str,
    _started: bool,
) -> anyhow::Result<()> {
    bail!(WHERE)
}
