//! SipHash-2-4 of a table's short messages, several side by side.
//!
//! A score hashes the row's seed first and the backend's address second, so the first block is done
//! once per row, and a backend costs six rounds instead of eight.

use std::net::IpAddr;

/// `L` states side by side; LLVM makes vector instructions of loops over them.
type State<const L: usize> = [[u64; L]; 4];

/// An address as SipHash's message words, after the row's seed: for IPv4 one block that also holds
/// the message's length (12), for IPv6 two blocks and then one with the length (24).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Words {
    V4(u64),
    V6([u64; 2]),
}

impl Words {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                Self::V4(u64::from(u32::from_le_bytes(address.octets())) | 12 << 56)
            }
            IpAddr::V6(address) => {
                let word = u128::from_le_bytes(address.octets());
                Self::V6([word as u64, (word >> 64) as u64])
            }
        }
    }
}

#[inline(always)]
fn start<const L: usize>(key: [u64; 2]) -> State<L> {
    [
        [key[0] ^ 0x736f_6d65_7073_6575; L],
        [key[1] ^ 0x646f_7261_6e64_6f6d; L],
        [key[0] ^ 0x6c79_6765_6e65_7261; L],
        [key[1] ^ 0x7465_6462_7974_6573; L],
    ]
}

#[inline(always)]
fn round<const L: usize>(v: &mut State<L>) {
    let [mut v0, mut v1, mut v2, mut v3] = *v;
    for l in 0..L {
        v0[l] = v0[l].wrapping_add(v1[l]);
        v2[l] = v2[l].wrapping_add(v3[l]);
        v1[l] = v1[l].rotate_left(13) ^ v0[l];
        v3[l] = v3[l].rotate_left(16) ^ v2[l];
        v0[l] = v0[l].rotate_left(32);
        v2[l] = v2[l].wrapping_add(v1[l]);
        v0[l] = v0[l].wrapping_add(v3[l]);
        v1[l] = v1[l].rotate_left(17) ^ v2[l];
        v3[l] = v3[l].rotate_left(21) ^ v0[l];
        v2[l] = v2[l].rotate_left(32);
    }
    *v = [v0, v1, v2, v3];
}

#[inline(always)]
fn block<const L: usize>(v: &mut State<L>, word: &[u64; L]) {
    for l in 0..L {
        v[3][l] ^= word[l];
    }
    round(v);
    round(v);
    for l in 0..L {
        v[0][l] ^= word[l];
    }
}

#[inline(always)]
fn finish<const L: usize>(mut v: State<L>) -> [u64; L] {
    v[2] = v[2].map(|lane| lane ^ 0xff);
    for _ in 0..4 {
        round(&mut v);
    }
    std::array::from_fn(|l| v[0][l] ^ v[1][l] ^ v[2][l] ^ v[3][l])
}

/// `L` rows of a table with their seeds already hashed in.
#[derive(Clone, Copy)]
pub(crate) struct RowLanes<const L: usize> {
    state: State<L>,
}

impl<const L: usize> RowLanes<L> {
    #[inline(always)]
    pub(crate) fn new(seed: [u64; 2], rows: &[u32; L]) -> Self {
        let row_seeds = row_seeds(seed, rows);
        let mut state = start(seed);
        block(&mut state, &row_seeds);
        Self { state }
    }

    /// The scores of one backend in these rows: digests as big-endian numbers, lowest first.
    #[inline(always)]
    pub(crate) fn scores(&self, address: Words) -> [u64; L] {
        let mut state = self.state;
        match address {
            Words::V4(word) => block(&mut state, &[word; L]),
            Words::V6([low, high]) => {
                block(&mut state, &[low; L]);
                block(&mut state, &[high; L]);
                block(&mut state, &[24 << 56; L]);
            }
        }
        finish(state).map(u64::swap_bytes)
    }
}

/// SipHash of each row's index as four big-endian bytes, as a little-endian word of its digest.
#[inline(always)]
fn row_seeds<const L: usize>(seed: [u64; 2], rows: &[u32; L]) -> [u64; L] {
    let mut state = start(seed);
    block(&mut state, &rows.map(|row| u64::from(row.swap_bytes()) | 4 << 56));
    finish(state)
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use super::*;

    fn reference(key: [u64; 2], message: &[u8]) -> u64 {
        let mut hasher = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
        hasher.write(message);
        hasher.finish()
    }

    #[test]
    fn lanes_equal_the_siphasher_crate() {
        let mut random = 0x1234_5678_9abc_def0_u64;
        let mut next = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            random ^ random >> 29
        };
        for _ in 0..200 {
            let seed = [next(), next()];
            let rows: [u32; 8] = std::array::from_fn(|_| next() as u32 & 0xffff);
            let v4 = IpAddr::from((next() as u32).to_be_bytes());
            let v6 = IpAddr::from((u128::from(next()) << 64 | u128::from(next())).to_be_bytes());
            let lanes = RowLanes::new(seed, &rows);
            let (four, six) = (lanes.scores(Words::of(v4)), lanes.scores(Words::of(v6)));
            for (l, row) in rows.iter().enumerate() {
                let row_seed = reference(seed, &row.to_be_bytes()).to_le_bytes();
                assert_eq!(row_seeds(seed, &rows)[l].to_le_bytes(), row_seed);
                for (address, scores) in [(v4, four), (v6, six)] {
                    let mut message = row_seed.to_vec();
                    match address {
                        IpAddr::V4(address) => message.extend(address.octets()),
                        IpAddr::V6(address) => message.extend(address.octets()),
                    }
                    let digest = reference(seed, &message).to_le_bytes();
                    assert_eq!(scores[l], u64::from_be_bytes(digest));
                }
            }
        }
    }
}
