use super::*;
use crate::identity::ca::NODE_VALIDITY_S;
use crate::journal::{self, REWRITE_BYTES_MIN};

fn enrolment(serial: &str) -> Enrolment {
    Enrolment {
        serial: serial.to_owned(),
        ..Enrolment::default()
    }
}

/// A peer whose certificate was issued at `issued_unix_s`.
fn peer(node: &str, serial: &str, issued_unix_s: u64) -> Peer {
    Peer {
        node: node.to_owned(),
        serial: serial.to_owned(),
        issued_unix_s,
        expires_unix_s: issued_unix_s + NODE_VALIDITY_S,
    }
}

fn next(serial: &str, key: &str, issued_unix_s: u64) -> Certificate {
    Certificate {
        serial: serial.to_owned(),
        key_sha256: key.to_owned(),
        issued_unix_s,
        life_s: NODE_VALIDITY_S,
        ca_sha256: "ca".to_owned(),
        other_ca_sha256: String::new(),
    }
}

/// Goal: whatever answer is lost, the node has a valid certificate; and each serial
/// that is not valid any more is on the list for the broker.
#[test]
fn two_certificates_are_valid_until_the_node_has_come_with_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path(), 0).unwrap();
    registry.add("a", enrolment("01")).unwrap();
    let old = peer("a", "01", 0);
    let first = next("02", "k2", 1_000);
    assert_eq!(registry.renew(&old, &first, 1_000).unwrap(), first);
    // The answer was lost: the same key gets the same certificate, at once and later.
    let again = next("03", "k2", 1_001);
    assert_eq!(registry.renew(&old, &again, 1_001).unwrap(), first);
    assert!(
        admits(&registry, "a", "01"),
        "it may go on with the old one"
    );
    // The key was lost, too. Not at once, and then the one that was never used is dropped.
    let other = next("04", "k4", 1_100);
    let soon = registry.renew(&old, &other, 1_100);
    assert!(matches!(soon, Err(RegistryError::TooSoon(100))), "{soon:?}");
    let other = next("04", "k4", 1_600);
    assert_eq!(registry.renew(&old, &other, 1_600).unwrap(), other);
    assert!(!admits(&registry, "a", "02") && admits(&registry, "a", "01"));
    let registry = Registry::open(folder.path(), 2_000).unwrap();
    assert!(admits(&registry, "a", "04"));
    assert!(!admits(&registry, "a", "01"), "replaced");
    assert!(
        registry
            .renew(&old, &next("05", "k5", 9_000), 9_000)
            .is_err()
    );
    let enrolment = registry.find("a").unwrap();
    assert_eq!(enrolment.certificate(), other);
    let retired: Vec<_> = registry.retired().into_iter().map(|one| one.0).collect();
    assert_eq!(retired, ["02", "01"]);
    // Behind a broker the used certificate is not visible until the next proof.
    let third = next("06", "k6", 9_000);
    registry
        .renew(&peer("a", "04", 1_600), &third, 9_000)
        .unwrap();
    let fourth = next("07", "k7", 20_000);
    assert_eq!(
        registry
            .renew(&peer("a", "06", 9_000), &fourth, 20_000)
            .unwrap(),
        fourth
    );
    assert_eq!(registry.find("a").unwrap().serial, "06");
    assert!(registry.revoke("a", 20_000).unwrap());
    for serial in ["04", "06", "07"] {
        assert!(!admits(&registry, "a", serial), "{serial}");
        let known = registry.retired().into_iter().any(|one| one.0 == serial);
        assert!(known, "{serial}");
        let proof = peer("a", serial, 9_000);
        let refused = registry.renew(&proof, &next("08", "k8", 90_000), 90_000);
        assert!(matches!(refused, Err(RegistryError::NotKnown)), "{serial}");
    }
}

/// Goal: a node that a restore has readmitted by its name alone can renew, once its certificate is known.
#[test]
fn a_node_that_came_back_by_its_name_renews() {
    let folder = tempfile::tempdir().unwrap();
    let registry = restored(folder.path());
    assert!(registry.readmit("late", 1_000).unwrap());
    let first = next("0b", "k", 1_100);
    let renewed = registry.renew(&peer("late", "0a", 200), &first, 1_100);
    assert_eq!(renewed.unwrap(), first);
    assert!(
        registry
            .renew(&peer("late", "0c", 200), &first, 1_100)
            .is_err()
    );
    assert!(admits(&registry, "late", "0b"));
}

fn admits(registry: &Registry, node: &str, serial: &str) -> bool {
    registry.admit(&peer(node, serial, 50), 1_000).unwrap() == Admission::Known
}

/// A registry after a restore: the backup was made at 100, the grace lasts until 2000.
fn restored(folder: &Path) -> Registry {
    let mut old = enrolment("01");
    old.joined_unix_s = 40;
    old.grants.awaits_approval = true;
    let mut revoked = enrolment("02");
    revoked.joined_unix_s = 40;
    revoked.revoked = true;
    let state = State {
        epoch: 7,
        nodes: [("old".to_owned(), old), ("revoked".to_owned(), revoked)].into(),
        retired: Vec::new(),
        grace: Some(Grace {
            issued_from_unix_s: 100,
            until_unix_s: 2_000,
        }),
        deleted: BTreeMap::new(),
    };
    std::fs::write(folder.join(NODES), journal::whole(&state).unwrap()).unwrap();
    Registry::open(folder, 1_000).unwrap()
}

#[test]
fn after_a_restore_nodes_that_joined_after_the_backup_come_back_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let registry = restored(folder.path());
    let admit = |peer, unix_s| registry.admit(&peer, unix_s).unwrap();
    assert_eq!(admit(peer("old", "01", 40), 1_000), Admission::Known);
    assert_eq!(admit(peer("new", "03", 100), 1_000), Admission::Readmitted);
    assert_eq!(admit(peer("new", "03", 100), 1_000), Admission::Known);
    let registry = Registry::open(folder.path(), 1_001).unwrap();
    let admit = |peer, unix_s| registry.admit(&peer, unix_s).unwrap();
    assert_eq!(admit(peer("new", "03", 100), 3_000), Admission::Known);
    // The newer of two certificates counts, whichever connects first.
    assert_eq!(admit(peer("old", "04", 200), 1_002), Admission::Readmitted);
    assert!(registry.find("old").unwrap().grants.awaits_approval);
    assert_eq!(admit(peer("old", "01", 40), 1_003), Admission::Refused);
    assert_eq!(admit(peer("old", "05", 150), 1_003), Admission::Refused);
    assert_eq!(admit(peer("old", "04", 200), 1_003), Admission::Known);
    registry.delete("new", 1_003).unwrap();
    assert_eq!(admit(peer("new", "03", 100), 1_004), Admission::Refused);
    let rejoined = peer("new", "06", 1_004);
    assert_eq!(admit(rejoined, 1_005), Admission::Readmitted);
    registry.revoke("old", 1_003).unwrap();
    assert_eq!(admit(peer("old", "04", 200), 1_003), Admission::Refused);
}

#[test]
fn the_grace_is_for_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let registry = restored(folder.path());
    let admit = |peer, unix_s| registry.admit(&peer, unix_s).unwrap();
    // Deleted before the backup; revoked; revoked with a later certificate; too late.
    assert_eq!(admit(peer("gone", "09", 99), 1_000), Admission::Refused);
    assert_eq!(admit(peer("revoked", "02", 40), 1_000), Admission::Refused);
    assert_eq!(admit(peer("revoked", "0a", 200), 1_000), Admission::Refused);
    assert_eq!(admit(peer("late", "0b", 200), 2_000), Admission::Refused);
    assert_eq!(registry.nodes().len(), 2);
    assert!(registry.admit(&peer("a/b", "0c", 200), 1_000).is_err());
}

/// Goal: a board that joined after the backup and was stolen can be excluded before it connects.
#[test]
fn during_the_grace_a_node_that_is_not_known_can_be_revoked_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let registry = restored(folder.path());
    assert!(registry.revoke("stolen", 1_000).unwrap());
    assert!(registry.delete("gone", 1_000).unwrap());
    assert!(!registry.revoke("a/b", 1_000).unwrap());
    assert!(!registry.delete("a/b", 1_000).unwrap());
    assert!(!registry.revoke("late", 2_000).unwrap());
    assert!(!registry.delete("late", 2_000).unwrap());
    let registry = Registry::open(folder.path(), 1_001).unwrap();
    for name in ["stolen", "gone"] {
        let refused = registry.admit(&peer(name, "0d", 200), 1_002).unwrap();
        assert_eq!(refused, Admission::Refused, "{name}");
        assert!(!registry.readmit(name, 1_002).unwrap(), "{name}");
    }
    assert!(registry.retired().is_empty(), "their serials are not known");
    // A new join is not a readmission, and a revoked node has to be deleted first.
    registry.add("gone", enrolment("0e")).unwrap();
    assert!(registry.add("stolen", enrolment("0f")).is_err());
    assert!(registry.delete("stolen", 1_003).unwrap());
    registry.add("stolen", enrolment("0f")).unwrap();
}

#[test]
fn the_epoch_rises_at_each_start_even_with_the_clock_behind() {
    let folder = tempfile::tempdir().unwrap();
    for (unix_s, epoch) in [(1000, 1000), (5, 1001), (1001, 1002), (2000, 2000)] {
        let registry = Registry::open(folder.path(), unix_s).unwrap();
        assert_eq!(registry.epoch(), epoch);
    }
}

#[test]
fn only_the_listed_serial_is_admitted_until_it_is_revoked_or_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path(), 0).unwrap();
    registry.add("a", enrolment("01")).unwrap();
    registry.add("b", enrolment("02")).unwrap();
    let taken = registry.add("a", enrolment("03"));
    assert!(matches!(taken, Err(RegistryError::Taken)));
    assert!(admits(&registry, "a", "01"));
    assert!(!admits(&registry, "a", "02"));
    assert!(registry.revoke("a", 0).unwrap());
    assert!(registry.delete("b", 0).unwrap());
    assert!(!registry.delete("b", 0).unwrap());
    let registry = Registry::open(folder.path(), 0).unwrap();
    assert!(!admits(&registry, "a", "01"));
    assert!(!admits(&registry, "b", "02"));
    registry.add("b", enrolment("04")).unwrap();
    assert!(admits(&registry, "b", "04"));
    assert!(registry.knows("b") && !registry.knows("a") && !registry.knows("c"));
    assert!(registry.delete("a", 60).unwrap());
    let retired: Vec<_> = registry.retired().into_iter().map(|one| one.0).collect();
    assert_eq!(retired, ["01", "02"], "each once, also when deleted later");
}

#[test]
fn behind_a_broker_a_node_comes_back_by_name_within_the_grace_unless_deleted_or_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let registry = restored(folder.path());
    assert!(registry.readmit("late", 1_999).unwrap());
    assert!(registry.knows("late"));
    assert!(!registry.readmit("later", 2_000).unwrap(), "too late");
    for name in ["late", "old", "revoked"] {
        assert!(!registry.readmit(name, 1_000).unwrap(), "{name} is listed");
    }
    assert!(registry.delete("late", 1_500).unwrap());
    assert!(!registry.readmit("late", 1_600).unwrap());
    assert!(registry.retired().is_empty(), "its serial is not known");
    assert!(registry.delete("old", 1_500).unwrap());
    // A later restore, from a backup that was made after these two were deleted.
    let mut state = load(&folder.path().join(NODES)).unwrap();
    state.deleted.clear();
    std::fs::write(folder.path().join(NODES), journal::whole(&state).unwrap()).unwrap();
    let registry = Registry::open(folder.path(), 1_600).unwrap();
    for name in ["late", "old"] {
        assert!(
            !registry.readmit(name, 1_700).unwrap(),
            "{name} was deleted"
        );
    }
    assert_eq!(registry.retired()[0].0, "01");
}

#[test]
fn names_are_labels() {
    let longest = "a".repeat(63);
    for name in ["a", "gate-7", "0", &longest] {
        assert!(is_label(name), "{name}");
    }
    let long = "a".repeat(64);
    for name in ["", "-a", "a-", "A", "a.b", "a/b", "+", "#", "ä", &long] {
        assert!(!is_label(name), "{name}");
    }
}

/// Goal: no node is revoked by an outdated number, and a wrong number changes nothing, also
/// when no node is left to be revoked.
#[test]
fn nodes_of_another_ca_are_revoked_by_their_exact_number_only() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path(), 0).unwrap();
    for (name, ca) in [("a", "old"), ("b", "new"), ("c", "")] {
        let ca_sha256 = ca.to_owned();
        let enrolment = Enrolment {
            ca_sha256,
            ..enrolment(name)
        };
        registry.add(name, enrolment).unwrap();
    }
    let wrong = Err(vec!["a".to_owned(), "c".to_owned()]);
    for expected in [0, 1, 3] {
        assert_eq!(registry.revoke_others("new", expected).unwrap(), wrong);
    }
    assert!(registry.knows("a") && registry.retired().is_empty());
    let cut_off = registry.revoke_others("new", 2).unwrap();
    assert_eq!(cut_off, Ok(vec!["a".to_owned(), "c".to_owned()]));
    assert!(registry.knows("b") && !registry.knows("a") && !registry.knows("c"));
    assert_eq!(registry.revoke_others("new", 2).unwrap(), Err(vec![]));
    assert_eq!(registry.revoke_others("new", 0).unwrap(), Ok(vec![]));
}

/// Goal: thousands of concurrent changes do not each write everything. Method: the bytes that one change
/// adds to the file.
#[test]
fn a_change_costs_its_own_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NODES);
    let registry = Registry::open(folder.path(), 0).unwrap();
    for n in 0..1_000 {
        registry.add(&format!("gate-{n}"), enrolment("01")).unwrap();
    }
    let before = std::fs::read(&path).unwrap();
    registry.revoke("gate-7", 0).unwrap();
    let after = std::fs::read(&path).unwrap();
    assert_eq!(after[..before.len()], before);
    assert!((1..500).contains(&(after.len() - before.len())));
    // A start writes it as a whole, and so does a file that has grown.
    let registry = Registry::open(folder.path(), 0).unwrap();
    let whole = std::fs::metadata(&path).unwrap().len();
    assert!(whole < before.len() as u64);
    let mut longest = 0;
    for n in 0..REWRITE_BYTES_MIN / 10_000 + 2 {
        let (ca, other) = (format!("{n:010000}"), String::new());
        registry.joined_with("gate-8", "", (ca, other)).unwrap();
        longest = longest.max(std::fs::metadata(&path).unwrap().len());
    }
    assert!(longest > REWRITE_BYTES_MIN);
    assert!(longest < whole + REWRITE_BYTES_MIN + 10_500);
    let registry = Registry::open(folder.path(), 0).unwrap();
    assert!(!registry.knows("gate-7") && registry.knows("gate-8"));
    let last = format!("{:010000}", REWRITE_BYTES_MIN / 10_000 + 1);
    assert_eq!(registry.find("gate-8").unwrap().ca_sha256, last);
}

/// Goal: a power cut leaves all of a change or nothing of it, and other damage is an error.
#[test]
fn what_a_power_cut_left_of_the_last_change_is_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NODES);
    let registry = Registry::open(folder.path(), 0).unwrap();
    registry.add("a", enrolment("01")).unwrap();
    let before = std::fs::read(&path).unwrap();
    registry.revoke("a", 0).unwrap();
    let after = std::fs::read(&path).unwrap();
    for cut in before.len()..after.len() {
        // The end is missing, or was not written, or the end is there and the bytes before are not.
        let holes = [
            &before[..],
            &vec![0; cut + 1 - before.len()],
            &after[cut + 1..],
        ];
        let ends = [&after[..cut], &[0; 100]];
        for bytes in [after[..cut].to_vec(), ends.concat(), holes.concat()] {
            std::fs::write(&path, bytes).unwrap();
            let registry = Registry::open(folder.path(), 0).unwrap();
            assert!(registry.knows("a") && registry.retired().is_empty());
        }
    }
    let mut hurt = after;
    hurt[before.len() + 3] = b'!';
    std::fs::write(&path, &hurt).unwrap();
    assert!(Registry::open(folder.path(), 0).is_err());
    for empty in [&b""[..], b" \n"] {
        std::fs::write(&path, empty).unwrap();
        assert!(Registry::open(folder.path(), 0).is_err());
    }
    // As written before there were changes, and as an operator would.
    for text in [
        "{\"epoch\":1,\"nodes\":{}}",
        "{\n\"epoch\": 1,\n\"nodes\": {}\n}\n",
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(Registry::open(folder.path(), 0).unwrap().epoch(), 2);
    }
}

/// Goal: whatever happens to the file, the next change repairs it.
#[test]
fn a_file_that_is_not_as_it_was_left_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NODES);
    let registry = Registry::open(folder.path(), 0).unwrap();
    registry.add("a", enrolment("01")).unwrap();
    let hurts: [fn(&Path); 3] = [
        |path| std::fs::remove_file(path).unwrap(),
        |path| std::fs::write(path, "{").unwrap(),
        |path| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes.extend(b"[{\"remove\":");
            std::fs::write(path, bytes).unwrap();
        },
    ];
    for (n, hurt) in hurts.iter().enumerate() {
        hurt(&path);
        registry.add(&format!("b-{n}"), enrolment("02")).unwrap();
        let state = load(&path).unwrap();
        assert_eq!(state.nodes, registry.nodes());
    }
    // Nothing counts that is not on the medium.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(registry.add("c", enrolment("03")).is_err());
    assert!(registry.find("c").is_none());
}

/// Goal: rollovers do not fill the list of refused certificates.
#[test]
fn the_certificates_of_a_retired_ca_need_no_list() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path(), 0).unwrap();
    let (old, new) = ("a".repeat(64), "b".repeat(64));
    for (name, ca_sha256) in [("a", &old), ("b", &new), ("c", &String::new())] {
        let ca_sha256 = ca_sha256.clone();
        let enrolment = Enrolment {
            ca_sha256,
            ..enrolment(name)
        };
        registry.add(name, enrolment).unwrap();
        registry.delete(name, 0).unwrap();
    }
    registry.drop_ca(&old).unwrap();
    for registry in [registry, Registry::open(folder.path(), 0).unwrap()] {
        let listed: Vec<_> = registry.retired().into_iter().map(|one| one.0).collect();
        assert_eq!(listed, ["b", "c"]);
    }
}

/// Goal: what an operator grants a node outlives a restart and a further certificate, and wrong labels change
/// nothing.
#[test]
fn grants_are_kept_and_wrong_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path(), 1_000).unwrap();
    registry.add("gate", Enrolment::default()).unwrap();
    let set = |key: &'static str, value: &'static str| {
        move |grants: &mut Grants| {
            grants.labels.insert(key.to_owned(), value.to_owned());
        }
    };
    assert!(registry.grant("gate", set("site", "a")).unwrap());
    assert!(!registry.grant("other", set("site", "a")).unwrap());
    for (key, value) in [("", "a"), ("a b", "a"), ("site", "-"), ("site", "a\u{1b}")] {
        let refused = registry.grant("gate", set(key, value));
        assert!(
            matches!(refused, Err(RegistryError::Grants(_))),
            "{key} {value}"
        );
    }
    let registry = Registry::open(folder.path(), 1_001).unwrap();
    let labels = registry.find("gate").unwrap().grants.labels;
    assert_eq!(labels, [("site".to_owned(), "a".to_owned())].into());
}
