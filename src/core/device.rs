//! Device numbers as they travel: 32 bits, in the kernel's encoding.

/// A device number in 32 bits (`new_encode_dev`, include/linux/kdev_t.h), of a major number below 2^12 and a minor number
/// below 2^20.
#[must_use]
pub fn encode(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Its reverse (`new_decode_dev`): major and minor.
#[must_use]
pub fn decode(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_round_trip() {
        for (major, minor) in [(0, 0), (8, 1), (253, 0), (0xfff, 0xf_ffff), (1, 256)] {
            assert_eq!(decode(encode(major, minor)), (major, minor));
        }
    }
}
