//! Kernel features that the program needs, each tried by loading a program that uses it.
//!
//! A release number does not tell: distributions back-port features, and a configuration can lack them.
//! To add a feature, add its helper to [`HELPERS`].

use std::io;

/// A BPF helper that the program calls.
struct Helper {
    name: &'static str,
    /// The number in `enum bpf_func_id` of <linux/bpf.h>.
    id: i32,
    /// The first release that has it.
    since: &'static str,
}

/// The helpers of the director's program.
const HELPERS: [Helper; 5] = [
    Helper { name: "bpf_redirect", id: 23, since: "4.4" },
    Helper { name: "bpf_xdp_adjust_head", id: 44, since: "4.10" },
    Helper { name: "bpf_xdp_adjust_tail", id: 65, since: "4.18" },
    Helper { name: "bpf_xdp_get_buff_len", id: 188, since: "5.18" },
    Helper { name: "bpf_xdp_load_bytes", id: 189, since: "5.18" },
];

/// The result of trying all features.
#[derive(Debug)]
pub(super) enum Tried {
    /// The kernel has every feature.
    All,
    /// The kernel lacks these features, each with the release that brought it.
    Missing(Vec<String>),
    /// The features cannot be tried, for this reason.
    Unknown(String),
}

/// Loads a program for each feature, and removes it at once.
pub(super) fn try_all() -> Tried {
    let mut missing = Vec::new();
    for Helper { name, id, since } in HELPERS {
        match has_helper(id) {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{name} (Linux {since})")),
            Err(error) => return Tried::Unknown(error.to_string()),
        }
    }
    if missing.is_empty() { Tried::All } else { Tried::Missing(missing) }
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, with room for newer fields.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    rest: [u8; 104],
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// Whether an XDP program may call the helper. The kernel rejects an unknown helper before it checks
/// the arguments, and says so in its log.
fn has_helper(id: i32) -> io::Result<bool> {
    // call ID; exit
    let call = 0x85 | u64::from(id.cast_unsigned()) << 32;
    let instructions: [u64; 2] = [call, 0x95];
    let mut log = vec![0u8; 16 << 10];
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        rest: [0; 104],
    };
    // SAFETY: the attributes have the kernel's layout, unused fields are zero, and the instructions, the
    // license and the log outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<ProgramLoad>() as libc::c_uint,
        )
    };
    if result >= 0 {
        // SAFETY: the kernel has just returned this descriptor, and no one else has it.
        unsafe { libc::close(result as libc::c_int) };
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(libc::EPERM)
    {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
        if end == 0 {
            return Err(error);
        }
    }
    let log = String::from_utf8_lossy(&log);
    let unknown = ["invalid func", "unknown func", "cannot use helper"];
    Ok(!unknown.iter().any(|words| log.contains(words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root; as another user, the kernel does not tell.
    #[test]
    fn helpers_are_tried_one_by_one() {
        match try_all() {
            Tried::Unknown(_) => {}
            tried => {
                assert!(matches!(tried, Tried::All), "{tried:?}");
                // No kernel has a helper with this number, and XDP may not use bpf_sk_fullsock (95).
                assert!(!has_helper(1_000_000).unwrap());
                assert!(!has_helper(95).unwrap());
            }
        }
    }
}
