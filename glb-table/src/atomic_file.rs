//! Replaces files atomically: a reader sees the old file or the new one, also after a crash.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Largest number of symbolic links that the kernel follows (path_resolution(7)).
const MAX_LINKS: u8 = 40;

/// Replaces a file by writing a temporary file beside it, syncing it and renaming it. Owner and mode
/// of the old file stay. If `path` is a symbolic link, its target is replaced.
///
/// # Errors
/// When the kernel refuses an operation; the old file is then unchanged.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A table holds keys, so only its owner may read it.
    replace_or_create(path, bytes, 0o600)
}

/// Like [`replace`]; a new file gets this mode.
///
/// # Errors
/// When the kernel refuses an operation; the old file is then unchanged.
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
    // The umask applies to the mode at creation, not here.
    file.as_file().set_permissions(permissions)?;
    if let Some(old) = old {
        use std::os::unix::fs::MetadataExt;
        // Only root can change the owner; other users own the old file already.
        drop(std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid())));
    }
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

/// Follows symbolic links to the file that [`replace`] would replace. The file need not exist.
///
/// # Errors
/// When the links form a loop.
pub fn resolve_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    let mut links = 0;
    while let Ok(target) = fs::read_link(&path) {
        links += 1;
        if links > MAX_LINKS {
            return Err(io::Error::other("too many levels of symbolic links"));
        }
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Ok(path)
}

/// Removes the temporary files that killed processes left beside `path`, and returns their names. No
/// other process may replace the file at the same time.
///
/// # Errors
/// When the folder cannot be read or a file cannot be removed.
pub fn remove_temporary_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = resolve_links(path)?;
    let prefix = prefix(&path);
    let is_temporary = |name: &OsStr| {
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
        if is_temporary(&entry.file_name()) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

/// The end of a temporary file's name. The name is `.NAME-RANDOM.new`.
const SUFFIX: &str = ".new";
/// Number of random letters and digits before the suffix.
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
    fn replacing_through_a_link_replaces_its_target() {
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
        // A loop of links is an error.
        symlink("ring", at("ring")).unwrap();
        assert!(replace(&at("ring"), b"x").is_err());
    }

    #[test]
    fn only_temporary_files_of_this_file_are_removed() {
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

    #[test]
    fn temporary_files_as_tempfile_names_them_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        let mut builder = tempfile::Builder::new();
        let prefix = prefix(&path);
        builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(RANDOM);
        let (_, left) = builder.tempfile_in(folder.path()).unwrap().keep().unwrap();
        assert_eq!(remove_temporary_files(&path).unwrap(), [left]);
    }
}
