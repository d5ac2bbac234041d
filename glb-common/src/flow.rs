//! Flows and IP addresses.

/// A flow from a client to a VIP, with addresses of one family. Ports are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// The client.
    pub source: A,
    /// The VIP.
    pub destination: A,
    /// The client's port.
    pub source_port: u16,
    /// The VIP's port.
    pub destination_port: u16,
    /// IP protocol: 6, 17, 1 or 58.
    pub protocol: u8,
}

/// A flow of either family, in a form that BPF programs can pass to each other. Both ports of an echo
/// request are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FiveTuple {
    /// The client, as `crate::hash::Address::words`.
    pub source: [u64; 2],
    /// The VIP.
    pub destination: [u64; 2],
    /// The client's port.
    pub source_port: u16,
    /// The VIP's port.
    pub destination_port: u16,
    /// IP protocol: 6, 17, 1 or 58.
    pub protocol: u8,
    /// IP version: 4 or 6.
    pub family: u8,
    /// Zero.
    pub padding: u16,
}

impl FiveTuple {
    /// A flow from `source` to `destination` without ports.
    #[inline(always)]
    #[must_use]
    pub fn new<A: Address>(source: A, destination: A, protocol: u8) -> Self {
        Self {
            source: source.words(),
            destination: destination.words(),
            protocol,
            family: A::FAMILY,
            ..Self::default()
        }
    }
}

/// An IPv4 or IPv6 address.
pub trait Address: Copy + PartialEq {
    /// IP version: 4 or 6.
    const FAMILY: u8;

    /// The address's bytes as two little-endian words. An IPv4 address is in the second.
    fn words(&self) -> [u64; 2];
}

/// An IPv4 address: its four bytes as a little-endian number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4(u32);

/// An IPv6 address: its sixteen bytes as two little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6([u64; 2]);

impl V4 {
    /// The address with these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(bytes))
    }

    /// The address's bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }
}

impl V4 {
    /// The address whose four bytes are this little-endian number.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }
}

impl V6 {
    /// The address whose bytes are these two little-endian words.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// The address with these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        ])
    }

    /// The address's bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.0[0].to_le_bytes();
        let [i, j, k, l, m, n, o, p] = self.0[1].to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

impl Address for V4 {
    const FAMILY: u8 = 4;

    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        [0, self.0 as u64]
    }
}

impl Address for V6 {
    const FAMILY: u8 = 6;

    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        self.0
    }
}

const _: () = assert!(size_of::<FiveTuple>() == 40);
