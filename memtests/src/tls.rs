//! What a proxy can observe of a TLS 1.3 connection without decrypting it.

/// Content type of records with encrypted data.
const APPLICATION_DATA: u8 = 23;
const HEADER_BYTES: usize = 5;

/// Counts the encrypted records of one direction, however its bytes are divided into reads.
#[derive(Debug, Default)]
pub struct Records {
    header: Vec<u8>,
    /// Missing bytes of the present record.
    left: usize,
    begun: u32,
}

impl Records {
    /// Adds the next bytes; returns how many encrypted records have begun. For a client without a
    /// certificate the first one ends the handshake, and the second one is its request.
    pub fn feed(&mut self, mut bytes: &[u8]) -> u32 {
        while !bytes.is_empty() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            let count = (HEADER_BYTES - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if let [kind, _, _, high, low] = self.header[..] {
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.begun += u32::from(kind == APPLICATION_DATA);
                self.header.clear();
            }
        }
        self.begun
    }
}

#[cfg(test)]
mod tests {
    use super::Records;

    #[test]
    fn encrypted_records_are_counted_however_they_are_cut() {
        let hello = [22, 3, 1, 0, 3, 23, 23, 23];
        let change = [20, 3, 3, 0, 1, 1];
        let data = [23, 3, 3, 0, 2, 9, 9];
        let all = [&hello[..], &change, &data, &data].concat();
        for size in 1..=all.len() {
            let mut records = Records::default();
            let counts: Vec<u32> = all.chunks(size).map(|part| records.feed(part)).collect();
            assert_eq!(counts.last(), Some(&2), "reads of {size} bytes");
        }
    }
}
