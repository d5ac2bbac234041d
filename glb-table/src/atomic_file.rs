//! Replacing a file as a whole.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
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
    let path = resolve_links(path)?;
    let folder = folder(&path);
    let prefix = prefix(&path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(RANDOM);
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

/// The file that a path leads to through symbolic links: it is replaced, not the link. It may not be
/// there yet.
///
/// # Errors
/// When they lead in a ring.
pub fn resolve_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    let mut links = 0;
    while let Ok(target) = fs::read_link(&path) {
        links += 1;
        if links > LINKS {
            return Err(io::Error::other("too many symbolic links, one after the other"));
        }
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Ok(path)
}

/// Removes what a process that was killed while it replaced `path` has left beside it; returns what
/// that was. Nobody may be replacing it meanwhile.
///
/// # Errors
/// Whatever the kernel says.
pub fn remove_temporary_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = resolve_links(path)?;
    let prefix = prefix(&path);
    let is_left = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        let random = name.strip_prefix(prefix.as_encoded_bytes());
        let random = random.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
        random.is_some_and(|random| {
            random.len() == RANDOM && random.iter().all(u8::is_ascii_alphanumeric)
        })
    };
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder(&path))? {
        let entry = entry?;
        if is_left(&entry.file_name()) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

/// A temporary file's name is the file's own between a dot and these.
const SUFFIX: &str = ".new";
/// So many letters and digits by chance before the suffix.
const RANDOM: usize = 6;

fn prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push("-");
    prefix
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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

    #[test]
    fn what_a_killed_one_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let others = [
            ".other.toml-abc123.new",
            ".table.toml-abc123.old",
            ".table.toml-abc.new",
            ".table.toml-abc_12.new",
            "table.toml",
            "table.toml-abc123.new",
        ];
        others.iter().for_each(|name| fs::write(at(name), "theirs").unwrap());
        fs::write(at(".table.toml-abc123.new"), "half").unwrap();
        fs::create_dir(at(".table.toml-folder.new")).unwrap();
        symlink(at("table.toml"), at("link.toml")).unwrap();
        let removed = remove_temporary_files(&at("link.toml")).unwrap();
        assert_eq!(removed, [at(".table.toml-abc123.new")]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), others.len() + 2);
        assert!(others.iter().all(|name| at(name).exists()));
    }

    /// The names that are looked for are those that are made.
    #[test]
    fn a_temporary_file_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        let mut builder = tempfile::Builder::new();
        let prefix = prefix(&path);
        builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(RANDOM);
        let (_, left) = builder.tempfile_in(folder.path()).unwrap().keep().unwrap();
        assert_eq!(remove_temporary_files(&path).unwrap(), [left]);
    }
}
