//! Versions of the output that another program or person wrote. They are saved beside the output
//! before the checker overwrites them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use glb_table::{Format, atomic_file, write_mark};

/// Most saved versions; a further one replaces the last.
const MAX_COPIES: usize = 9;

/// Returns whether a text of the output's file is the checker's own.
pub(super) fn is_own(output: &Path, text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    write_mark::read(Format::of_path(output), &text).is_some_and(|mark| mark.intact)
}

/// Returns whether a text of the output's file has a mark, intact or not.
pub(super) fn has_mark(output: &Path, text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    write_mark::read(Format::of_path(output), &text).is_some()
}

/// Saves the table that was in use before the checker; returns the copy's path.
pub(super) fn save_original(output: &Path, text: &[u8], mode: u32) -> io::Result<PathBuf> {
    let mut path = output.as_os_str().to_owned();
    path.push(".original");
    let path = PathBuf::from(path);
    atomic_file::replace_or_create(&path, text, mode)?;
    Ok(path)
}

/// Saves a version and returns the copy's path. A version that is saved already is not saved twice.
pub(super) fn save(output: &Path, text: &[u8], mode: u32) -> io::Result<PathBuf> {
    for path in paths(output) {
        match fs::read(&path) {
            Ok(old) if old == text => return Ok(path),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                atomic_file::replace_or_create(&path, text, mode)?;
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    let last = path(output, MAX_COPIES);
    atomic_file::replace_or_create(&last, text, mode)?;
    Ok(last)
}

/// Returns the saved versions of the output. The operator removes them.
pub(crate) fn copies(output: &Path) -> Vec<PathBuf> {
    paths(output).filter(|path| path.exists()).collect()
}

fn paths(output: &Path) -> impl Iterator<Item = PathBuf> {
    (1..=MAX_COPIES).map(|number| path(output, number))
}

fn path(output: &Path, number: usize) -> PathBuf {
    let mut path = output.as_os_str().to_owned();
    path.push(format!(".overwritten-{number}"));
    path.into()
}
