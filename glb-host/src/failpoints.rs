//! Failpoints: places at which a test kills a daemon or makes a step fail.
//!
//! They exist in debug builds only; a release build contains none of them.

use std::{borrow::Cow, io};

/// Names the file with the instruction, for instance `kill swapped 0`, `fail swap 1` or `refuse
/// load`.
#[cfg(debug_assertions)]
pub const VARIABLE: &str = "GLB_FAULT_FILE";

/// Names the release that the daemon reports instead of its own.
#[cfg(debug_assertions)]
pub const RELEASE: &str = "GLB_FAULT_RELEASE";

/// Returns the release that a test asks for, or the daemon's `own`.
#[must_use]
pub fn release(own: &str) -> String {
    #[cfg(debug_assertions)]
    if let Ok(other) = std::env::var(RELEASE) {
        return other;
    }
    own.to_owned()
}

/// Passes the failpoint of this name: dies, fails, waits, or does nothing.
///
/// # Errors
/// When a test asks for it.
pub fn point(name: &str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(file) = std::env::var_os(VARIABLE) {
        let wish = std::fs::read_to_string(&file).unwrap_or_default();
        match wish.trim().split_once(' ') {
            Some(("kill", wanted)) if wanted == name => {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
            }
            Some(("fail", wanted)) if wanted == name => {
                return Err(io::Error::other(format!("a test wants `{name}` to fail")));
            }
            Some(("wait", wanted)) if wanted == name => {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
            // Waits as long as the test wants.
            Some(("hold", wanted)) if wanted == name => {
                while std::fs::read_to_string(&file).is_ok_and(|now| now == wish) {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
            _ => {}
        }
    }
    let _ = name;
    Ok(())
}

/// Returns the object to load. On `refuse load`, every `exit` becomes a jump to itself, which the
/// verifier rejects.
#[must_use]
pub fn object(object: &[u8]) -> Cow<'_, [u8]> {
    #[cfg(debug_assertions)]
    if let Some(file) = std::env::var_os(VARIABLE)
        && std::fs::read_to_string(file).is_ok_and(|wish| wish.trim() == "refuse load")
    {
        const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
        const JUMP_TO_ITSELF: [u8; 8] = [0x05, 0, 0xff, 0xff, 0, 0, 0, 0];
        let mut object = object.to_owned();
        for instruction in object.as_chunks_mut::<8>().0 {
            if *instruction == EXIT {
                *instruction = JUMP_TO_ITSELF;
            }
        }
        return Cow::Owned(object);
    }
    Cow::Borrowed(object)
}
