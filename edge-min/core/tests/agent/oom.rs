//! Ends for want of memory: who is named, and until when.

use super::*;

fn end(board: &mut Board, code: Option<i32>) {
    board.running.clear();
    board.tell(Input::Exited {
        uid: UID,
        container: "main".into(),
        code,
        oom: true,
    });
    board.settle();
}

/// Goal: `OOMKilled` is to be seen while the container waits for its restart and after it, until a run
/// ends in another way. Method: a container that is killed twice and then ends by itself.
#[test]
fn an_end_for_want_of_memory_is_told_until_the_next_end() {
    let mut board = Board::new();
    board.put(&pod(1, RestartPolicy::Always));
    board.settle();
    end(&mut board, Some(137));
    let main = board.status(UID).unwrap().containers[0].clone();
    assert!(matches!(main.state, ContainerState::Running { .. }));
    assert!(main.last_oom);
    end(&mut board, Some(137));
    let main = board.status(UID).unwrap().containers[0].clone();
    let ContainerState::Waiting { reason, message } = &main.state else {
        panic!("{main:?}");
    };
    assert_eq!(reason, "CrashLoopBackOff");
    assert!(message.contains("OOMKilled"), "{message}");
    board.advance(1);
    end(&mut board, Some(1));
    let main = board.status(UID).unwrap().containers[0].clone();
    assert!(!main.last_oom);
    let ContainerState::Waiting { message, .. } = &main.state else {
        panic!("{main:?}");
    };
    assert_eq!(message, "");
}

/// Goal: only a container that the kernel ended for want of memory is named. Method: the OOM killer has
/// struck in its cgroup, and it ended in each way.
#[test]
fn a_container_that_gets_over_a_killed_child_is_not_named() {
    for (code, named) in [
        (Some(137), "OOMKilled"),
        (None, "OOMKilled"),
        (Some(0), "Completed"),
        (Some(1), "Error"),
    ] {
        let mut board = Board::new();
        board.put(&pod(1, RestartPolicy::Never));
        board.settle();
        end(&mut board, code);
        let main = board.status(UID).unwrap().containers[0].clone();
        let ContainerState::Terminated { reason, .. } = &main.state else {
            panic!("{main:?}");
        };
        assert_eq!(reason, named);
        assert_eq!(main.last_oom, named == "OOMKilled");
    }
}
