use edge_proto::frame::{Entry, GapReason};
use serde_json::Value;

use super::*;
use crate::records::ledger::{Batch, Incarnation, Item};

const OUTBOX: Incarnation = Incarnation([7; 8]);
const TODAY: u64 = 1_764_115_200;

fn batch(class: u8, first: u64, count: u64) -> Batch {
    let record = |number: u64| Entry::Record {
        unix_ms: number,
        bytes: format!("record {number}").into_bytes(),
    };
    Batch {
        incarnation: OUTBOX,
        class,
        first,
        held: 1,
        entries: (first..first + count).map(record).collect(),
    }
}

fn take(files: &Files, ledger: &mut Ledger, batch: Batch, unix_s: u64) -> Plan {
    let plan = ledger.plan(&[batch]);
    files.append("gate", ledger, &plan, unix_s).unwrap();
    ledger.apply(&plan);
    plan
}

/// Numbers of the records of a class in all files, in order.
fn numbers(dir: &Path, class: &str) -> Vec<u64> {
    let mut days: Vec<_> = fs::read_dir(dir.join("gate"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join(class).with_extension(ENDING))
        .filter(|path| path.exists())
        .collect();
    days.sort();
    let mut numbers = Vec::new();
    for path in days {
        for line in fs::read_to_string(path).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if line.get("unix_ms").is_some() {
                numbers.push(line["seq"].as_u64().unwrap());
            }
        }
    }
    numbers
}

fn file(dir: &Path, class: &str) -> PathBuf {
    let day = dir.join("gate").join(day_name(TODAY / 86_400));
    day.join(class).with_extension(ENDING)
}

#[test]
fn days_have_names_and_names_have_days() {
    for (days, name) in [
        (0, "1970-01-01"),
        (59, "1970-03-01"),
        (20_418, "2025-11-26"),
    ] {
        assert_eq!(day_name(days), name);
    }
    assert_eq!(day_name(DAY_MAX), "9999-12-31");
    for days in (0..DAY_MAX).step_by(7) {
        assert_eq!(day_of(&day_name(days)), Some(days));
    }
    for name in [
        "",
        "2025-11",
        "2025-11-31",
        "25-11-26",
        "2025-13-01",
        "x-y-z",
        "lost+found",
    ] {
        assert_eq!(day_of(name), None, "{name}");
    }
}

#[test]
fn a_restart_goes_on_where_the_files_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::default();
    for (round, first) in [1, 4, 7].into_iter().enumerate() {
        let files = Files::open(dir.path()).unwrap();
        let found = files.load("gate").unwrap();
        assert_eq!(found.ledger, ledger);
        assert!(found.cut.is_empty());
        take(&files, &mut ledger, batch(0, first, 3), TODAY);
        // Two of three are sent again, as after a lost acknowledgement.
        let plan = take(
            &files,
            &mut ledger,
            batch(1, first, 3),
            TODAY + round as u64,
        );
        assert_eq!(plan.items.len(), 3);
    }
    assert_eq!(numbers(dir.path(), "toll"), (1..=9).collect::<Vec<_>>());
    assert_eq!(numbers(dir.path(), "event"), (1..=9).collect::<Vec<_>>());
}

/// Goal: whatever is left of the last write, the files contain every record once after the node has
/// repeated unacknowledged ones. Method: every length that the file can have.
#[test]
fn a_torn_tail_is_cut_and_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "toll");
    let mut ledger = Ledger::default();
    let before = {
        let files = Files::open(dir.path()).unwrap();
        files.load("gate").unwrap();
        take(&files, &mut ledger, batch(0, 1, 3), TODAY);
        let before = (fs::read(&path).unwrap(), ledger.clone());
        take(&files, &mut ledger, batch(0, 4, 2), TODAY);
        before
    };
    let whole = fs::read(&path).unwrap();
    for len in before.0.len()..=whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let files = Files::open(dir.path()).unwrap();
        let found = files.load("gate").unwrap();
        let torn = len < whole.len();
        let wanted = if torn { &before.1 } else { &ledger };
        assert_eq!(&found.ledger, wanted, "{len}");
        assert_eq!(found.cut.len(), usize::from(torn && len > before.0.len()));
        let mut ledger = found.ledger;
        take(&files, &mut ledger, batch(0, 4, 2), TODAY);
        assert_eq!(numbers(dir.path(), "toll"), [1, 2, 3, 4, 5], "{len}");
    }
}

#[test]
fn a_first_write_that_was_torn_leaves_an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "toll");
    let mut ledger = Ledger::default();
    let files = Files::open(dir.path()).unwrap();
    files.load("gate").unwrap();
    take(&files, &mut ledger, batch(0, 1, 3), TODAY);
    drop(files);
    let whole = fs::read(&path).unwrap();
    let head = whole.iter().position(|byte| *byte == b'\n').unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let files = Files::open(dir.path()).unwrap();
        let found = files.load("gate").unwrap();
        assert_eq!(found.ledger, Ledger::default(), "{len}");
        let good = if len > head { head + 1 } else { 0 };
        assert_eq!(fs::metadata(&path).unwrap().len(), good as u64);
        let mut ledger = found.ledger;
        take(&files, &mut ledger, batch(0, 1, 3), TODAY);
        assert_eq!(numbers(dir.path(), "toll"), [1, 2, 3]);
    }
}

/// Goal: old days may be removed, also those with the only file of a class that is silent since.
#[test]
fn the_newest_day_alone_holds_the_whole_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::default();
    let files = Files::open(dir.path()).unwrap();
    files.load("gate").unwrap();
    take(&files, &mut ledger, batch(1, 1, 3), TODAY);
    take(&files, &mut ledger, batch(0, 1, 3), TODAY);
    take(&files, &mut ledger, batch(0, 4, 3), TODAY + 3 * 86_400);
    // A clock that is set back opens no older day again.
    take(&files, &mut ledger, batch(0, 7, 3), TODAY);
    drop(files);
    fs::remove_dir_all(file(dir.path(), "toll").parent().unwrap()).unwrap();
    let files = Files::open(dir.path()).unwrap();
    assert_eq!(files.load("gate").unwrap().ledger, ledger);
    assert_eq!(numbers(dir.path(), "toll"), [4, 5, 6, 7, 8, 9]);
}

#[test]
fn files_that_go_or_shrink_under_the_writer_do_not_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "toll");
    let mut ledger = Ledger::default();
    let files = Files::open(dir.path()).unwrap();
    files.load("gate").unwrap();
    take(&files, &mut ledger, batch(0, 1, 3), TODAY);
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    take(&files, &mut ledger, batch(0, 4, 3), TODAY);
    assert_eq!(numbers(dir.path(), "toll"), [4, 5, 6]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    take(&files, &mut ledger, batch(0, 7, 1), TODAY);
    drop(files);
    let files = Files::open(dir.path()).unwrap();
    let found = files.load("gate").unwrap();
    assert_eq!((found.ledger, found.cut), (ledger, Vec::new()));
}

/// Goal: remains of a failed write on a full disk are removed by the next write. Method: a plan of several
/// writes, of which one fails: there is a folder in place of its file.
#[test]
fn a_write_that_failed_is_made_again_and_nothing_is_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "toll");
    let mut ledger = Ledger::default();
    let files = Files::open(dir.path()).unwrap();
    files.load("gate").unwrap();
    fs::create_dir_all(&path).unwrap();
    let plan = ledger.plan(&[batch(0, 1, 3)]);
    let error = files.append("gate", &ledger, &plan, TODAY).unwrap_err();
    assert!(error.to_string().contains("toll.jsonl"), "{error}");
    fs::remove_dir(&path).unwrap();
    take(&files, &mut ledger, batch(0, 1, 3), TODAY);
    // As if a write was half done.
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"{\"node\":\"gate\",\"cl");
    fs::write(&path, torn).unwrap();
    take(&files, &mut ledger, batch(0, 4, 3), TODAY);
    assert_eq!(numbers(dir.path(), "toll"), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_large_plan_is_several_writes_and_any_of_them_may_be_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "telemetry");
    let mut ledger = Ledger::default();
    let mut large = batch(2, 1, 600);
    for entry in &mut large.entries {
        *entry = Entry::Record {
            unix_ms: 0,
            bytes: vec![0; 4_000],
        };
    }
    large.entries.push(Entry::Gap {
        count: 5,
        reason: GapReason::Expired,
    });
    let files = Files::open(dir.path()).unwrap();
    files.load("gate").unwrap();
    let plan = take(&files, &mut ledger, large, TODAY);
    assert!(matches!(
        plan.items.last(),
        Some(Item::Lost { count: 5, .. })
    ));
    drop(files);
    let whole = fs::read(&path).unwrap();
    let files = Files::open(dir.path()).unwrap();
    assert_eq!(files.load("gate").unwrap().ledger, ledger);
    drop(files);
    fs::write(&path, &whole[..whole.len() - 2]).unwrap();
    let files = Files::open(dir.path()).unwrap();
    let found = files.load("gate").unwrap();
    let kept = numbers(dir.path(), "telemetry").len() as u64;
    assert!(kept > 200 && kept < 600, "{kept}");
    assert_eq!(found.ledger.streams[&2].totals().delivered, kept);
}

#[test]
fn one_edge_cloud_for_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Files::open(dir.path()).unwrap();
    assert!(Files::open(dir.path()).is_err());
}
