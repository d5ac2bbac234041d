//! Replacing a file as a whole.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, also after a crash:
/// a temporary file beside it, synced, takes its place. Mode and a symbolic link's target are kept.
///
/// # Errors
/// Whatever the kernel says; the old file is then untouched.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A table holds keys: nobody else reads a new one.
    replace_or_create(path, bytes, 0o600)
}

/// The same; a file that was not there gets this mode.
///
/// # Errors
/// Whatever the kernel says.
pub fn replace_or_create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Through a symbolic link the target is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".table-").suffix(".new");
    let old = fs::metadata(&path).ok();
    let permissions = match &old {
        Some(old) => old.permissions(),
        None => std::os::unix::fs::PermissionsExt::from_mode(mode),
    };
    builder.permissions(permissions.clone());
    let mut file = builder.tempfile_in(folder)?;
    // The creation mode goes through the umask; this one is wanted.
    file.as_file().set_permissions(permissions)?;
    if let Some(old) = old {
        use std::os::unix::fs::MetadataExt;
        // Only root can give a file away; for others the owner is themselves anyway.
        drop(std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid())));
    }
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}
