//! Replacing a file as a whole.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

/// The kernel follows no more links to a file (path_resolution(7)).
const LINKS: u8 = 40;

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
    // Through a symbolic link the target is replaced, not the link; it may not be there yet.
    let mut path = path.to_owned();
    let mut links = 0;
    while let Ok(target) = fs::read_link(&path) {
        links += 1;
        if links > LINKS {
            return Err(io::Error::other("too many symbolic links, one after the other"));
        }
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_stays_a_link_also_if_its_target_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("real")).unwrap();
        symlink("real/table.toml", at("one.toml")).unwrap();
        symlink(at("one.toml"), at("two.toml")).unwrap();
        for text in ["old", "new"] {
            replace(&at("two.toml"), text.as_bytes()).unwrap();
            for name in ["two.toml", "one.toml", "real/table.toml"] {
                assert_eq!(fs::read_to_string(at(name)).unwrap(), text, "{name}");
            }
        }
        assert!(fs::symlink_metadata(at("one.toml")).unwrap().is_symlink());
        // One that leads nowhere is an error, and not for ever.
        symlink("ring", at("ring")).unwrap();
        assert!(replace(&at("ring"), b"x").is_err());
    }
}
