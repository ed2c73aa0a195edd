//! The key of the pods' UIDs in the data folder, made at the first start. See [`crate::placement`].

use std::io;
use std::path::Path;

use crate::durable::replace;
use crate::identity::ca::random;
use crate::placement::{KEY_BYTES, PodIds};

/// File with the key in the data folder.
pub const POD_KEY: &str = "pods.key";

/// Reads the key, or makes one.
///
/// # Errors
/// Those of the file system; a file of another length is one, too.
pub fn open(data: &Path) -> io::Result<PodIds> {
    let path = data.join(POD_KEY);
    let at =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match std::fs::read(&path) {
        Ok(bytes) => parse(&bytes).map(|key| PodIds::new(&key)).map_err(at),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = make().map_err(at)?;
            replace(&path, &key).map_err(at)?;
            Ok(PodIds::new(&key))
        }
        Err(error) => Err(at(error)),
    }
}

/// A new key.
///
/// # Errors
/// The system gives no random numbers.
pub(crate) fn make() -> io::Result<[u8; KEY_BYTES]> {
    random().ok_or_else(|| io::Error::other("no random numbers"))
}

/// The key in the bytes of the file.
///
/// # Errors
/// They are no key.
pub(crate) fn parse(bytes: &[u8]) -> io::Result<[u8; KEY_BYTES]> {
    let wrong = |_| io::Error::other(format!("is damaged: it is not {KEY_BYTES} bytes long"));
    bytes.try_into().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stays_and_a_damaged_one_is_refused() {
        let data = tempfile::tempdir().unwrap();
        open(data.path()).unwrap();
        let path = data.path().join(POD_KEY);
        let key = std::fs::read(&path).unwrap();
        open(data.path()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), key);
        std::fs::write(&path, b"short").unwrap();
        let error = open(data.path()).unwrap_err().to_string();
        assert!(error.contains("pods.key: is damaged"), "{error}");
    }
}
