//! Starts that the agent cancels.

use super::*;

/// Goal: a cancelled start that failed is not the end of a pod that is wanted again. Method: the
/// pod leaves and returns between the start and its answer, which counts as a run.
#[test]
fn a_start_that_was_given_up_is_made_again_whatever_the_policy() {
    let mut board = Board::new();
    board.broken_program = true;
    let pod = pod(1, RestartPolicy::Never);
    board.put(&pod);
    let prepared = board.answers.pop_front().unwrap();
    board.tell(prepared);
    board.tell(Input::Desired(Key::pod(UID), None));
    assert_eq!(board.cancelled, [UID]);
    board.put(&pod);
    board.broken_program = false;
    board.settle();
    assert_eq!((board.starts, board.running.len()), (2, 1));
}

/// Goal: a container that leaves its pod while the pod starts does not affect the others: the shell cancels
/// starts by pod. Method: it leaves between the starts and their answers; then the pod leaves.
#[test]
fn a_container_that_leaves_its_pod_while_it_starts_is_no_reason_to_give_up_the_others() {
    let mut board = Board::new();
    let one = pod(1, RestartPolicy::Always);
    let mut two = one.clone();
    two.containers.push(Container {
        name: "side".into(),
        ..one.containers[0].clone()
    });
    board.put(&two);
    let prepared = board.answers.pop_front().unwrap();
    board.tell(prepared);
    board.put(&one);
    board.tell(Input::Tick);
    assert_eq!((board.starts, board.cancelled.len()), (2, 0));
    board.tell(Input::Desired(Key::pod(UID), None));
    assert!(board.cancelled.contains(&UID));
    board.put(&one);
    board.settle();
    let running: Vec<_> = board
        .running
        .keys()
        .map(|(_, name)| name.as_str())
        .collect();
    assert_eq!(running, ["main"]);
}

/// Goal: the starts of a pod that leaves while it starts, which may mean minutes of unpacking, are cancelled
/// once, and the pod is gone when they are answered. Method: it leaves between the start and its answer.
#[test]
fn a_pod_that_goes_while_it_starts_has_its_starts_given_up() {
    let mut board = Board::new();
    board.broken_image = true;
    board.put(&pod(1, RestartPolicy::Always));
    let prepared = board.answers.pop_front().unwrap();
    board.tell(prepared);
    assert_eq!(
        (board.starts, board.cancelled.as_slice()),
        (1, [].as_slice())
    );
    board.tell(Input::Desired(Key::pod(UID), None));
    board.tell(Input::Tick);
    assert_eq!(board.cancelled, [UID]);
    board.settle();
    assert_eq!(board.status(UID), None);
    // The next pod with this name starts like any other.
    board.broken_image = false;
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    assert_eq!(board.status(UID).unwrap().phase, Phase::Running);
    assert_eq!(board.cancelled, [UID]);
}
