use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::identity::registry::Registry;
use crate::identity::token::{TokenError, TokenStore};
use crate::nodes::TokenSpec;

const OPTIONS: Options = Options {
    force: false,
    keep_tokens: false,
    grace_s: 3_600,
};
const FORCE: Options = Options {
    force: true,
    ..OPTIONS
};

/// A data folder with a CA, the node `old` and a token of two uses, as of the time 1000.
struct Cloud {
    folder: tempfile::TempDir,
    token: (String, String),
}

impl Cloud {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(folder.path()).unwrap();
        let tokens = TokenStore::open(folder.path()).unwrap();
        let token = tokens
            .create(ca.der(), &TokenSpec::plain(2, 10_000), 1_000)
            .unwrap();
        let mut parts = token.split('.').skip(1).map(str::to_owned);
        let token = (parts.next().unwrap(), parts.next().unwrap());
        let cloud = Self { folder, token };
        cloud.join("old", 900);
        cloud
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn registry(&self) -> Registry {
        Registry::open(self.path(), 1_000).unwrap()
    }

    fn join(&self, name: &str, joined_unix_s: u64) {
        let enrolment = Enrolment {
            serial: format!("{name}-{joined_unix_s}"),
            joined_unix_s,
            ..Enrolment::default()
        };
        self.registry().add(name, enrolment).unwrap();
    }

    fn spend(&self, unix_s: u64) -> Result<(), TokenError> {
        let tokens = TokenStore::open(self.path()).unwrap();
        tokens.spend(&self.token.0, &self.token.1, unix_s)
    }

    fn backup(&self) -> Backup {
        let file = self.path().join("backup");
        Backup::of(self.path(), 1_100)
            .unwrap()
            .write(&file)
            .unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let backup = Backup::read(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        backup
    }

    /// Restores the backup on another machine.
    fn elsewhere(&self, backup: &Backup, options: Options) -> (Self, Report) {
        let folder = tempfile::tempdir().unwrap();
        let report = restore(backup, folder.path(), options, 2_000).unwrap();
        let token = self.token.clone();
        (Self { folder, token }, report)
    }
}

#[test]
fn a_token_does_not_come_back_to_life_on_another_machine() {
    let cloud = Cloud::new();
    let backup = cloud.backup();
    cloud.spend(1_200).unwrap();
    cloud.spend(1_200).unwrap();
    let (restored, report) = cloud.elsewhere(&backup, OPTIONS);
    assert_eq!(report.tokens_void, [cloud.token.0.as_str()]);
    assert_eq!(report.tokens_valid, 0);
    assert!(matches!(restored.spend(2_000), Err(TokenError::Invalid)));
    // With --keep-tokens the tokens of the backup stay valid.
    let vouched = Options {
        keep_tokens: true,
        ..OPTIONS
    };
    let (restored, report) = cloud.elsewhere(&backup, vouched);
    assert_eq!(report.tokens_valid, 1);
    restored.spend(2_000).unwrap();
}

#[test]
fn the_folder_remembers_what_happened_after_the_backup() {
    let cloud = Cloud::new();
    let backup = cloud.backup();
    cloud.spend(1_200).unwrap();
    cloud.join("new", 1_200);
    cloud.registry().revoke("old", 1_200).unwrap();
    let report = restore(&backup, cloud.path(), FORCE, 2_000).unwrap();
    assert_eq!(report.nodes_kept, ["new"]);
    assert_eq!(report.revoked, ["old"]);
    assert_eq!((report.tokens_void.len(), report.tokens_valid), (0, 1));
    assert!(report.all_known);
    assert!(cloud.registry().grace(2_000).is_none(), "nobody is missing");
    assert!(cloud.registry().find("old").unwrap().revoked);
    cloud.spend(2_000).unwrap();
    assert!(matches!(cloud.spend(2_000), Err(TokenError::Used)));
    // The replaced content can be restored.
    let before = Backup::read(&report.replaced.unwrap()).unwrap();
    assert!(Contents::of(&before).unwrap().state.grace.is_none());
}

/// Goal: the folder's state survives an interrupted restore. Method: the marker of a restore
/// exists, alone and after each of its steps.
#[test]
fn a_repeated_restore_remembers_what_the_folder_knew() {
    for cut in 0..3 {
        let cloud = Cloud::new();
        let backup = cloud.backup();
        cloud.spend(1_200).unwrap();
        cloud.spend(1_200).unwrap();
        cloud.join("new", 1_200);
        cloud.registry().revoke("old", 1_200).unwrap();
        let first = Contents::of(&backup).unwrap();
        std::fs::write(cloud.path().join(RESTORING), b"").unwrap();
        // The progress of the restore: the CA is the same, then its tokens, then its nodes.
        let options = Options {
            keep_tokens: true,
            ..FORCE
        };
        if cut > 0 {
            let live = Live::of(cloud.path(), &first).unwrap();
            let (mut written, mut report) = (first.tokens, Report::default());
            tokens(&mut written, Some(&live), options, 2_000, &mut report);
            let bytes = serde_json::to_vec(&written).unwrap();
            std::fs::write(cloud.path().join(TOKENS), bytes).unwrap();
        }
        if cut > 1 {
            let live = Live::of(cloud.path(), &Contents::of(&backup).unwrap()).unwrap();
            let (mut written, mut report) = (first.state, Report::default());
            registry(&mut written, Some(&live), options, 2_000, &mut report);
            std::fs::write(cloud.path().join(NODES), journal::whole(&written).unwrap()).unwrap();
        }
        let report = restore(&backup, cloud.path(), options, 2_000).unwrap();
        assert!(report.replaced.is_none());
        assert_eq!(report.revoked, ["old"], "cut {cut}");
        assert!(cloud.registry().find("new").is_some(), "cut {cut}");
        assert!(cloud.registry().grace(2_000).is_none(), "cut {cut}");
        let used = cloud.spend(2_000);
        assert!(matches!(used, Err(TokenError::Used)), "cut {cut}");
    }
}

/// Goal: a backup of a running edge-cloud is as good as one of a stopped one. Method: files with lines
/// of changes, as they are while it runs.
#[test]
fn changes_since_a_file_was_written_as_a_whole_are_in_the_backup() {
    const PUT: &str = r#"[{"put":{"id":{"kind":"ConfigMap","namespace":"default","name":"lane"},
        "origin":{"file":"lane.yaml","document":1},"payload":"AAAA","template":null}}]"#;
    let cloud = Cloud::new();
    let accepted = format!("[]\n{}\n", PUT.replace('\n', ""));
    std::fs::write(cloud.path().join(ACCEPTED), accepted).unwrap();
    let node = r#"[{"node":["old",{"labels":{},"arch":"","pods_max":1}]}]"#;
    let placement = format!("{}\n{node}\n", r#"{"nodes":{},"pods":[]}"#);
    std::fs::write(cloud.path().join(PLACEMENT), placement).unwrap();
    let keyless = Backup::of(cloud.path(), 1_100).unwrap();
    let refused = restore(&keyless, &cloud.path().join("other"), OPTIONS, 2_000);
    assert!(matches!(refused, Err(BackupError::Content(POD_KEY, _))));
    pod_key::open(cloud.path()).unwrap();
    let registry = cloud.registry();
    registry.revoke("old", 1_000).unwrap();
    let (restored, report) = cloud.elsewhere(&cloud.backup(), OPTIONS);
    assert_eq!(report.revoked, ["old"]);
    let key = |cloud: &Cloud| std::fs::read(cloud.path().join(POD_KEY)).unwrap();
    assert_eq!(key(&restored), key(&cloud));
    let (_, manifests, memory) = saved::Saved::load(restored.path());
    assert_eq!(manifests.objects.len(), 1);
    assert!(memory.nodes.contains_key("old"));
    assert_eq!(memory.restored.unreported, ["old".to_owned()].into());
    assert!(memory.restored.settling && memory.restored.awaits_source);
}

/// Goal: a folder that is older than the backup is not used as a proof.
#[test]
fn a_folder_that_is_older_than_the_backup_does_not_know_what_came_after_it() {
    let cloud = Cloud::new();
    let before = cloud.backup();
    cloud.registry();
    let backup = cloud.backup();
    let (old, _) = cloud.elsewhere(&before, OPTIONS);
    for (name, text) in &before.files {
        std::fs::write(old.path().join(name), STANDARD.decode(text).unwrap()).unwrap();
    }
    let report = restore(&backup, old.path(), FORCE, 2_000).unwrap();
    assert!(!report.all_known);
    assert_eq!(report.tokens_void, [cloud.token.0.as_str()]);
    let grace = old.registry().grace(2_000).unwrap();
    assert_eq!(grace.issued_from_unix_s, 1_100);
}

#[test]
fn nothing_of_another_ca_is_taken_over_when_a_restore_is_cut_off() {
    let (cloud, other) = (Cloud::new(), Cloud::new());
    let backup = other.backup();
    let contents = Contents::of(&backup).unwrap();
    contents.begin(cloud.path()).unwrap();
    let report = restore(&backup, cloud.path(), FORCE, 2_000).unwrap();
    assert!(matches!(cloud.spend(2_000), Err(TokenError::Invalid)));
    assert_eq!(report.nodes, 1);
}

#[test]
fn a_folder_that_cannot_be_read_is_not_replaced() {
    let cloud = Cloud::new();
    let backup = cloud.backup();
    std::fs::create_dir(cloud.path().join(ACCEPTED)).unwrap();
    let nodes = std::fs::read(cloud.path().join(NODES)).unwrap();
    let failed = restore(&backup, cloud.path(), FORCE, 2_000);
    assert!(matches!(failed, Err(BackupError::File { .. })));
    assert_eq!(std::fs::read(cloud.path().join(NODES)).unwrap(), nodes);
}

#[test]
fn the_epoch_leads_and_the_grace_is_recorded() {
    let cloud = Cloud::new();
    let backup = cloud.backup();
    let (restored, report) = cloud.elsewhere(&backup, OPTIONS);
    assert_eq!(report.grace_until_unix_s, 5_600);
    assert!(restored.registry().epoch() > 2_000 + EPOCH_LEAD_S);
    let grace = restored.registry().grace(2_000).unwrap();
    assert_eq!(grace.issued_from_unix_s, 1_100);
    // Nothing was placed yet: there was no key, and serve needs one from now on.
    assert!(restored.path().join(POD_KEY).exists());
    // A second restore from a backup of the first one still waits for the same nodes.
    let second = restored.backup();
    let (restored, _) = cloud.elsewhere(&second, OPTIONS);
    let grace = restored.registry().grace(2_000).unwrap();
    assert_eq!(grace.issued_from_unix_s, 1_100);
}

#[test]
fn nothing_is_touched_without_force_or_while_serving_or_before_its_time() {
    let cloud = Cloud::new();
    let backup = cloud.backup();
    let try_again = |options, unix_s| restore(&backup, cloud.path(), options, unix_s);
    assert!(matches!(
        try_again(OPTIONS, 2_000),
        Err(BackupError::NotEmpty(_))
    ));
    assert!(matches!(try_again(FORCE, 1_099), Err(BackupError::Clock)));
    let lock = File::create(cloud.path().join(LOCK)).unwrap();
    lock.lock().unwrap();
    assert!(matches!(
        try_again(FORCE, 2_000),
        Err(BackupError::Running(_))
    ));
    drop(lock);
    std::fs::write(cloud.path().join(RESTORING), b"").unwrap();
    let cut_off = Backup::of(cloud.path(), 2_000);
    assert!(matches!(cut_off, Err(BackupError::Unfinished(_))));
    assert!(try_again(FORCE, 2_000).unwrap().replaced.is_none());
    assert!(Backup::of(cloud.path(), 2_000).is_ok());
}

#[test]
fn a_damaged_or_a_foreign_file_is_refused() {
    let cloud = Cloud::new();
    let file = cloud.path().join("backup");
    Backup::of(cloud.path(), 1_100)
        .unwrap()
        .write(&file)
        .unwrap();
    let whole = std::fs::read(&file).unwrap();
    for index in [0, 20, 30, 100, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[index] ^= 1;
        assert!(Backup::parse(&bytes).is_err(), "{index}");
    }
    for cut in [0, 10, 90, whole.len() - 1] {
        assert!(Backup::parse(&whole[..cut]).is_err(), "{cut}");
    }
    let text = String::from_utf8(whole).unwrap();
    let newer = text.replacen("backup 1 ", "backup 2 ", 1);
    assert!(matches!(
        Backup::parse(newer.as_bytes()),
        Err(BackupError::Format)
    ));
    // Valid, but the key is another CA's.
    let mut mixed = Backup::parse(text.as_bytes()).unwrap();
    let other = Cloud::new().backup();
    mixed
        .files
        .insert(CA_KEY.to_owned(), other.files[CA_KEY].clone());
    let folder = tempfile::tempdir().unwrap();
    let refused = restore(&mixed, folder.path(), OPTIONS, 2_000);
    assert!(matches!(refused, Err(BackupError::Content(CA_KEY, _))));
    assert!(!folder.path().join(NODES).exists());
}

/// Goal: a rollover only goes forward, whatever is restored over it: a retired CA is not restored,
/// and a new one is not lost while the folder has it. Method: a backup from each step, over the folder
/// at a later one, and on another machine.
#[test]
fn a_restore_takes_no_step_of_a_rollover_back() {
    let cloud = Cloud::new();
    let path = cloud.path();
    let cas = || Authorities::open(path).unwrap();
    let given = |data: &Path| Authorities::open(data).unwrap().given();
    let first = cloud.backup();
    let before = cas().given();
    cas().rotate(1_150, true).unwrap().write(path).unwrap();
    let both = cas().given();
    let second = cloud.backup();

    // While both exist, and then when the old one is retired.
    let kept = restore(&first, path, FORCE, 2_000).unwrap();
    assert!(kept.cas_kept && kept.nodes == 1);
    assert_eq!(given(path), both);
    cas().retire(2_100).unwrap().write(path).unwrap();
    let last = cas().given();
    for backup in [&first, &second] {
        let kept = restore(backup, path, FORCE, 2_200).unwrap();
        assert!(kept.cas_kept && kept.nodes == 1);
        assert_eq!(given(path), last);
    }
    // On another machine there is only the backup.
    for (backup, expected) in [(&first, &before), (&second, &both)] {
        let (restored, report) = cloud.elsewhere(backup, OPTIONS);
        assert!(!report.cas_kept);
        assert_eq!(given(restored.path()), *expected);
        // A newer backup replaces an older folder.
        let report = restore(&second, restored.path(), FORCE, 2_300).unwrap();
        assert!(!report.cas_kept);
        assert_eq!(given(restored.path()), both);
    }
}
