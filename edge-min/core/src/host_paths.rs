//! Which paths of the board a pod may mount.

use alloc::string::String;
use alloc::vec::Vec;

/// Prefixes that hostPath volumes may use. Without any, there are no such volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPaths(Vec<String>);

impl HostPaths {
    /// The list of the board's config.
    #[must_use]
    pub const fn new(prefixes: Vec<String>) -> Self {
        Self(prefixes)
    }

    /// Whether an absolute path is one of the prefixes or below one, by whole names. One with `..` never
    /// is: where it leads is not known here.
    #[must_use]
    pub fn allow(&self, path: &str) -> bool {
        let below = |prefix: &String| {
            let mut at = names(path);
            names(prefix).all(|name| at.next() == Some(name))
        };
        path.starts_with('/') && names(path).all(|name| name != "..") && self.0.iter().any(below)
    }
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    let names = path.split('/');
    names.filter(|name| !name.is_empty() && *name != ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_a_prefix_is_allowed() {
        let list = HostPaths::new(["/srv/data/", "/dev"].map(String::from).into());
        for path in ["/srv/data", "/srv/data/a", "//srv/./data//a/", "/dev/null"] {
            assert!(list.allow(path), "{path}");
        }
        for path in [
            "",
            "/",
            "/srv",
            "/srv/database",
            "srv/data",
            "/srv/data/..",
            "/srv/data/../data",
            "/x/../dev",
        ] {
            assert!(!list.allow(path), "{path}");
        }
        assert!(!HostPaths::default().allow("/dev"));
        assert!(HostPaths::new(Vec::from(["/".into()])).allow("/any"));
    }
}
