//! Driver, queues and offloads of an interface, by the ethtool ioctl.
//!
//! The ioctl works in this thread's network namespace; `/sys` would show another one.

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const GDRVINFO: u32 = 0x03;
const GCHANNELS: u32 = 0x3c;
const GSTATS: u32 = 0x1d;
const GSSET_INFO: u32 = 0x37;
const GSTRINGS: u32 = 0x1b;
const GFEATURES: u32 = 0x3a;
/// ETH_SS_STATS.
const STATISTICS: u32 = 1;
/// ETH_SS_FEATURES.
const FEATURES: u32 = 4;
/// ETH_GSTRING_LEN.
const NAME: usize = 32;

/// The queues of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Receive queues in use, combined ones included.
    pub receive: u32,
    /// The maximum number of queues.
    pub maximum: u32,
    /// Whether the queues are combined (receive and transmit), as in `ethtool -L IF combined N`.
    pub combined: bool,
}

/// Runs one ethtool command; the buffer's first word is the command.
fn ask(interface: &str, buffer: &mut [u32]) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    // SAFETY: the kernel reads the command from the buffer and writes what that command's struct
    // holds, for which each caller has made room.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Returns the name of an interface's driver.
///
/// # Errors
/// When there is no such interface, or its driver does not tell.
pub fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: 196 bytes, the driver's name after the command.
    let mut buffer = [0; 49];
    buffer[0] = GDRVINFO;
    ask(interface, &mut buffer)?;
    Ok(text(&bytes(&buffer[1..9])))
}

/// Returns an interface's queues.
///
/// # Errors
/// When there is no such interface, or its driver does not tell.
pub fn channels(interface: &str) -> io::Result<Channels> {
    // struct ethtool_channels: the maximum of rx, tx, other and combined, then those in use.
    let mut buffer = [0; 9];
    buffer[0] = GCHANNELS;
    ask(interface, &mut buffer)?;
    let [_, most_rx, _, _, most_combined, rx, _, _, combined] = buffer;
    Ok(Channels {
        receive: rx + combined,
        maximum: most_rx.max(most_combined),
        combined: most_combined > 0,
    })
}

/// Returns the names of an interface's active offloads, as in `ethtool -k`.
///
/// # Errors
/// When there is no such interface, or the kernel does not tell.
pub fn offloads(interface: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info, followed by one count.
    let mut info = [0; 5];
    info[0] = GSSET_INFO;
    info[2] = 1 << FEATURES;
    ask(interface, &mut info)?;
    let count = (info[4] as usize).min(1_024);
    let mut names = vec![0; 3 + count * NAME / 4];
    (names[0], names[1], names[2]) = (GSTRINGS, FEATURES, count as u32);
    ask(interface, &mut names)?;
    let names = bytes(&names[3..]);
    // Blocks of 32 features: available, requested, active, never changed.
    let blocks = count.div_ceil(32);
    let mut states = vec![0; 2 + blocks * 4];
    (states[0], states[1]) = (GFEATURES, blocks as u32);
    ask(interface, &mut states)?;
    let is_on = |index: &usize| states[2 + index / 32 * 4 + 2] & (1 << (index % 32)) != 0;
    let on = (0..count).filter(is_on).map(|index| text(&names[index * NAME..][..NAME]));
    Ok(on.filter(|name| !name.is_empty()).collect())
}

/// Returns an interface's driver statistics, as in `ethtool -S`.
///
/// # Errors
/// When there is no such interface, or its driver has none.
pub fn statistics(interface: &str) -> io::Result<Vec<(String, u64)>> {
    let mut info = [0; 5];
    info[0] = GSSET_INFO;
    info[2] = 1 << STATISTICS;
    ask(interface, &mut info)?;
    let count = (info[4] as usize).min(16_384);
    let mut names = vec![0; 3 + count * NAME / 4];
    (names[0], names[1], names[2]) = (GSTRINGS, STATISTICS, count as u32);
    ask(interface, &mut names)?;
    let names = bytes(&names[3..]);
    // struct ethtool_stats: the command, the count, and 64-bit values.
    let mut values = vec![0; 2 + 2 * count];
    (values[0], values[1]) = (GSTATS, count as u32);
    ask(interface, &mut values)?;
    let values = bytes(&values[2..]);
    let (values, _) = values.as_chunks::<8>();
    let names = names.chunks_exact(NAME).map(text);
    Ok(names.zip(values.iter().map(|value| u64::from_ne_bytes(*value))).collect())
}

/// Returns how many frames of XDP programs the driver dropped instead of transmitting them; `None`
/// if it does not count them.
///
/// # Errors
/// As [`statistics`].
pub fn xdp_transmit_drops(interface: &str) -> io::Result<Option<u64>> {
    let mut drops = statistics(interface)?
        .into_iter()
        .filter(|(name, _)| is_xdp_transmit_drop(name))
        .map(|(_, count)| count);
    Ok(drops.next().map(|first| drops.fold(first, u64::saturating_add)))
}

/// Returns whether a counter is about frames that XDP_TX or XDP_REDIRECT lost in the driver.
///
/// Drivers choose the names: `rx_queue_0_xdp_tx_errors` and `tx_queue_0_xdp_xmit_errors` (veth),
/// `rx0_xdp_tx_drops` (virtio_net), `tx0_xdp_full` (mlx5), `queue_0_tx_xdp_short_linearize` is none.
fn is_xdp_transmit_drop(name: &str) -> bool {
    let is_transmit = name.contains("tx") || name.contains("xmit");
    let is_loss = ["err", "drop", "full"].iter().any(|word| name.contains(word));
    name.contains("xdp") && is_transmit && is_loss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_offloads_are_read() {
        let on = offloads("lo").unwrap();
        assert!(on.iter().any(|name| name == "loopback"), "{on:?}");
        assert!(offloads("no-such").is_err() && channels("lo").is_err());
        assert!(driver("an-interface-name-that-is-too-long").is_err());
        assert!(statistics("no-such").is_err());
    }

    #[test]
    fn transmit_drops_are_told_apart_from_verdicts() {
        for (name, is_drop) in [
            ("rx_queue_0_xdp_tx_errors", true),
            ("tx_queue_0_xdp_xmit_errors", true),
            ("rx0_xdp_tx_drops", true),
            ("tx0_xdp_full", true),
            ("rx_queue_0_xdp_drops", false),
            ("rx_queue_0_drops", false),
            ("tx_errors", false),
            ("tx_queue_0_xdp_xmit", false),
        ] {
            assert_eq!(is_xdp_transmit_drop(name), is_drop, "{name}");
        }
        assert!(statistics("lo").is_err());
    }
}
