//! Linux capabilities as bits in the kernel's numbering, which is part of its ABI.

/// Names without `CAP_`, by number.
pub const CAPABILITY_NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `ALL`, including capabilities of later kernels.
pub const CAPABILITIES_ALL: u64 = u64::MAX;

/// The default set of containerd and Docker: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID,
/// SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE and SETFCAP.
pub const CAPABILITIES_DEFAULT: u64 = 0xa804_25fb;

/// The bit of a name as Kubernetes writes it: without `CAP_`, or `ALL`.
#[must_use]
pub fn capability(name: &str) -> Option<u64> {
    if name == "ALL" {
        return Some(CAPABILITIES_ALL);
    }
    let number = CAPABILITY_NAMES.iter().position(|known| *known == name)?;
    Some(1 << number)
}

/// Capabilities of a container with these `add` and `drop` lists, in the order of containerd: `ALL` first,
/// then single ones; a capability in both lists is dropped.
#[must_use]
pub const fn granted(add: u64, drop: u64) -> u64 {
    let base = match (add, drop) {
        (CAPABILITIES_ALL, _) => CAPABILITIES_ALL,
        (_, CAPABILITIES_ALL) => 0,
        _ => CAPABILITIES_DEFAULT,
    };
    let drop = if drop == CAPABILITIES_ALL { 0 } else { drop };
    (base | add) & !drop
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_and_drop_count_as_in_containerd() {
        let bit = |name| capability(name).unwrap_or_default();
        assert_eq!(granted(0, 0), CAPABILITIES_DEFAULT);
        assert_eq!(granted(0, CAPABILITIES_ALL), 0);
        let net = bit("NET_ADMIN");
        assert_eq!(granted(net, CAPABILITIES_ALL), net);
        assert_eq!(granted(net, 0), CAPABILITIES_DEFAULT | net);
        assert_eq!(granted(CAPABILITIES_ALL, net), CAPABILITIES_ALL & !net);
        assert_eq!(granted(net, net) & net, 0);
        assert_eq!(capability("CAP_NET_ADMIN"), None);
    }

    #[test]
    fn the_default_set_is_the_documented_one() {
        let names = [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SYS_CHROOT",
            "MKNOD",
            "AUDIT_WRITE",
            "SETFCAP",
        ];
        let bits = names.iter().filter_map(|name| capability(name));
        assert_eq!(bits.fold(0, |all, bit| all | bit), CAPABILITIES_DEFAULT);
    }
}
