//! Transmits frames by the driver's XDP path (`ndo_xdp_xmit`), as the director's own program does. A
//! program of four instructions redirects each frame to an interface.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// The frame is processed as a received one, and really transmitted.
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
const BPF_FUNC_REDIRECT: i32 = 23;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The head of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program: u32,
    verdict: u32,
    input_size: u32,
    output_size: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
    context_input_size: u32,
    context_output_size: u32,
    context_input: u64,
    context_output: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Sends frames; keeps one program for each interface.
#[derive(Debug, Default)]
pub(super) struct XdpSender {
    programs: HashMap<u32, OwnedFd>,
}

impl XdpSender {
    /// Transmits `frame` out of the interface with this index.
    ///
    /// # Errors
    /// When the kernel refuses, for instance one before 5.18.
    pub(super) fn send(&mut self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let program = match self.programs.entry(interface) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(load(interface)?),
        };
        let mut attributes = RunAttributes {
            program: program.as_raw_fd() as u32,
            input_size: frame.len() as u32,
            input: frame.as_ptr() as u64,
            repeat: 1,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size: 1,
            ..RunAttributes::default()
        };
        // SAFETY: the attributes are those of this command, and the frame outlives the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attributes,
                size_of::<RunAttributes>(),
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Loads `return bpf_redirect(interface, 0)`.
fn load(interface: u32) -> io::Result<OwnedFd> {
    let instruction =
        |code, registers, immediate| Instruction { code, registers, offset: 0, immediate };
    let instructions = [
        instruction(0xb7, 1, interface as i32),
        instruction(0xb7, 2, 0),
        instruction(0x85, 0, BPF_FUNC_REDIRECT),
        instruction(0x95, 0, 0),
    ];
    let mut attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        name: *b"glb_probe_send\0\0",
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes are those of this command, and what they point to outlives the call.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw mut attributes,
            size_of::<LoadAttributes>(),
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
