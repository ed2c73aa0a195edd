//! The agent's link, certificates and flash at its interface: inputs, outputs, deadlines.
#![cfg(test)]

use edge_core::calls::Answer;
use edge_core::flash::{Counters, Subsystem};
use edge_core::limits::WEAR_MS;
use edge_core::reconnect::DELAY_MS_MAX;
use edge_core::renewal::{Time, Validity};
use edge_core::{
    Agent, AgentConfig, Certificate, CertificateInput, Input, Output, UplinkInput, UplinkOutput,
};
use edge_proto::call::METHOD_RENEW;

const DAY_S: u64 = 86_400;
const FIRST: Validity = Validity {
    issued_unix_s: 1_800_000_000,
    not_after: 1_800_000_000 + 90 * DAY_S,
};
const SECOND: Validity = Validity {
    issued_unix_s: FIRST.issued_unix_s + 70 * DAY_S,
    not_after: FIRST.not_after + 70 * DAY_S,
};

fn agent(flash_bytes_per_day: Option<u64>) -> Agent {
    let mut agent = Agent::new(AgentConfig {
        flash_bytes_per_day,
        ..AgentConfig::default()
    });
    handle(&mut agent, 0, Input::Tick);
    agent
}

/// Outputs except reports and lines for the log.
fn handle(agent: &mut Agent, now: u64, input: Input) -> Vec<Output> {
    agent.handle(now, input);
    let outputs = std::iter::from_fn(|| agent.poll());
    let asked = outputs.filter(|one| !matches!(one, Output::Event(_) | Output::Report(..)));
    asked.collect()
}

fn uplink(agent: &mut Agent, now: u64, input: UplinkInput) -> Vec<Output> {
    handle(agent, now, Input::Uplink(input))
}

fn connect(with: Certificate) -> Vec<Output> {
    vec![Output::Uplink(UplinkOutput::Connect(with))]
}

fn identity(old: Option<Validity>) -> UplinkInput {
    UplinkInput::Identity {
        node: "gate".into(),
        seed: 7,
        new: old.map_or(FIRST, |_| SECOND),
        old,
    }
}

fn down(refused: bool) -> UplinkInput {
    UplinkInput::Down {
        reason: "closed".into(),
        refused,
    }
}

/// The connection attempt that is due next.
fn next_attempt(agent: &mut Agent, now: &mut u64) -> Vec<Output> {
    *now = agent.deadline().unwrap_or(*now);
    handle(agent, *now, Input::Tick)
}

#[test]
fn a_connection_is_tried_at_once_and_again_after_each_loss() {
    let mut agent = agent(None);
    assert_eq!(agent.deadline(), None, "no identity, no attempt");
    assert_eq!(
        uplink(&mut agent, 5, identity(None)),
        connect(Certificate::New)
    );
    let mut now = 5;
    for _ in 0..20 {
        assert_eq!(uplink(&mut agent, now, down(false)), []);
        assert_eq!(agent.link_error(), "closed");
        let before = now;
        assert_eq!(
            next_attempt(&mut agent, &mut now),
            connect(Certificate::New)
        );
        assert!(now > before && now <= before + DELAY_MS_MAX);
    }
    uplink(&mut agent, now, UplinkInput::Up);
    assert!(agent.link_error().contains("not answered yet"));
    uplink(&mut agent, now, UplinkInput::Live);
    assert_eq!((agent.link_error(), agent.is_live()), ("", true));
}

/// Goal: a node that may join by itself tries until it has joined, with growing delays, one attempt at a
/// time. Method: the shell answers with failures, whose reason is shown, and then with an identity.
#[test]
fn a_join_is_tried_at_once_again_after_each_failure_and_not_after_its_success() {
    let join = [Output::Uplink(UplinkOutput::Join)];
    let mut agent = agent(None);
    let may_join = UplinkInput::MayJoin { seed: 7 };
    assert_eq!(uplink(&mut agent, 5, may_join), join);
    assert_eq!(agent.deadline(), None, "one attempt at a time");
    let mut now = 5;
    for _ in 0..20 {
        let failed = UplinkInput::NotJoined("no answer".into());
        assert_eq!(uplink(&mut agent, now, failed), []);
        assert_eq!(agent.link_error(), "no answer");
        let before = now;
        assert_eq!(next_attempt(&mut agent, &mut now), join);
        assert!(now > before && now <= before + DELAY_MS_MAX);
    }
    assert_eq!(
        uplink(&mut agent, now, identity(None)),
        connect(Certificate::New)
    );
    uplink(&mut agent, now, down(false));
    assert_eq!(
        next_attempt(&mut agent, &mut now),
        connect(Certificate::New)
    );
}

#[test]
fn a_join_whose_identity_is_of_no_use_is_not_repeated() {
    let mut agent = agent(None);
    uplink(&mut agent, 0, UplinkInput::MayJoin { seed: 7 });
    uplink(&mut agent, 0, UplinkInput::Unlinked("no cloud".into()));
    assert_eq!(agent.deadline(), None);
    assert_eq!(agent.link_error(), "no cloud");
}

/// Goal: a renewed certificate goes through its trial: the link is opened again with it, and only a
/// session over it deletes the old one.
#[test]
fn a_renewed_certificate_is_tried_and_then_kept() {
    let mut agent = agent(None);
    uplink(&mut agent, 0, identity(None));
    uplink(&mut agent, 0, UplinkInput::Up);
    uplink(&mut agent, 0, UplinkInput::Live);
    let unix_s = FIRST.issued_unix_s + 59 * DAY_S;
    let asked = handle(&mut agent, 0, Input::CloudTime(unix_s));
    assert_eq!(asked, [Output::Uplink(UplinkOutput::ConfirmTime(unix_s))]);
    let confirmed = true;
    handle(&mut agent, 0, Input::Time(Time { unix_s, confirmed }));
    // Two thirds of its lifetime plus up to a tenth, without a request of the cloud.
    let at = agent.deadline().unwrap();
    assert!((DAY_S * 1000..=11 * DAY_S * 1000).contains(&at), "{at}");
    let renew = [Output::Uplink(UplinkOutput::Renew)];
    assert_eq!(handle(&mut agent, at, Input::Tick), renew);
    let unix_s = SECOND.issued_unix_s;
    let renewed = CertificateInput::Renewed {
        new: SECOND,
        unix_s,
    };
    let asked = handle(&mut agent, at, Input::Certificate(renewed));
    let wanted = [UplinkOutput::ConfirmTime(unix_s), UplinkOutput::Close];
    assert_eq!(asked, wanted.map(Output::Uplink));
    assert_eq!(proven(&mut agent, at), 0);
    uplink(&mut agent, at, UplinkInput::NotLive);
    uplink(&mut agent, at, down(false));
    let mut now = at;
    assert_eq!(
        next_attempt(&mut agent, &mut now),
        connect(Certificate::New)
    );
    uplink(&mut agent, now, UplinkInput::Up);
    let forget = [Output::Uplink(UplinkOutput::DropOldCertificate)];
    assert_eq!(uplink(&mut agent, now, UplinkInput::Live), forget);
    assert_eq!(proven(&mut agent, now), SECOND.not_after);
    // A call without arguments asks for a renewal at once.
    agent.call(now, METHOD_RENEW, &[]).unwrap();
    let asked: Vec<Output> = std::iter::from_fn(|| agent.poll()).collect();
    assert!(asked.contains(&Output::Uplink(UplinkOutput::Renew)));
}

/// The end of the certificate that the session lives with, as a call is answered.
fn proven(agent: &mut Agent, now: u64) -> u64 {
    match agent.call(now, METHOD_RENEW, &[0]) {
        Ok(Answer::Bytes(bytes)) => u64::from_le_bytes(bytes.try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_certificate_that_is_refused_gives_way_to_the_old_one() {
    let mut agent = agent(None);
    let mut now = 0;
    assert_eq!(
        uplink(&mut agent, now, identity(Some(FIRST))),
        connect(Certificate::New)
    );
    uplink(&mut agent, now, down(true));
    assert_eq!(
        next_attempt(&mut agent, &mut now),
        connect(Certificate::Old)
    );
    uplink(&mut agent, now, UplinkInput::Up);
    let restore = [Output::Uplink(UplinkOutput::RestoreOldCertificate)];
    assert_eq!(uplink(&mut agent, now, UplinkInput::Live), restore);
    let (not_after, _, error) = agent.certificate();
    assert_eq!(not_after, FIRST.not_after);
    assert!(error.contains("refused"), "{error}");
    let status = agent.node_status();
    let mut conditions = status.conditions.iter();
    let expiring = conditions.find(|one| one.name == "CertificateExpiring");
    assert!(expiring.unwrap().message.contains("not renewed"));
}

/// Goal: a cloud whose clock is after the expiry of this node's certificate does not lock it out.
#[test]
fn a_time_after_the_end_of_the_certificate_is_not_believed() {
    let mut agent = agent(None);
    uplink(&mut agent, 0, identity(None));
    for (unix_s, believed) in [(FIRST.not_after - 1, true), (FIRST.not_after, false)] {
        let asked = handle(&mut agent, 0, Input::CloudTime(unix_s));
        let confirm = Output::Uplink(UplinkOutput::ConfirmTime(unix_s));
        assert_eq!(asked.contains(&confirm), believed, "{unix_s}");
    }
}

#[test]
fn the_cloud_may_ask_for_a_renewal_and_a_failed_one_waits() {
    let mut agent = agent(None);
    uplink(&mut agent, 0, identity(None));
    uplink(&mut agent, 0, UplinkInput::Up);
    let wanted = || Input::Certificate(CertificateInput::Wanted);
    let renew = [Output::Uplink(UplinkOutput::Renew)];
    assert_eq!(handle(&mut agent, 0, wanted()), renew);
    assert_eq!(handle(&mut agent, 0, wanted()), [], "one attempt at a time");
    let failed = CertificateInput::NotRenewed {
        reason: "no route".into(),
        refused: false,
    };
    assert_eq!(handle(&mut agent, 0, Input::Certificate(failed)), []);
    assert_eq!(handle(&mut agent, 0, wanted()), []);
    let at = agent.deadline().unwrap();
    assert!(at > 0);
    assert_eq!(handle(&mut agent, at, Input::Tick), renew);
}

#[test]
fn the_flash_is_watched_and_its_wear_is_read_once_a_day() {
    let mut agent = agent(Some(1_000));
    let written = |bytes: u64| {
        let mut counters = Counters::default();
        counters[Subsystem::Images as usize].bytes = bytes;
        Input::Flash(counters)
    };
    assert_eq!(handle(&mut agent, 1, written(10)), [Output::ReadWear]);
    assert_eq!(handle(&mut agent, 2, written(900)), []);
    let over = |over| [Output::FlashOverBudget(over)];
    assert_eq!(handle(&mut agent, 3, written(2_000)), over(true));
    let at_risk = |agent: &Agent| {
        let status = agent.node_status();
        let mut conditions = status.conditions.into_iter();
        conditions.any(|one| one.name == "FlashBudgetAtRisk" && one.holds)
    };
    assert!(at_risk(&agent));
    // The day ends without another write: the timer of the hour clears the risk.
    let mut now = 3;
    while at_risk(&agent) {
        now = agent.deadline().unwrap();
        handle(&mut agent, now, Input::Tick);
        assert!(agent.deadline().is_none_or(|at| at > now));
    }
    assert_eq!(now, WEAR_MS);
    // The wear is read again even if nothing was written.
    assert_eq!(agent.deadline(), Some(now + 1));
    assert_eq!(handle(&mut agent, now + 1, Input::Tick), [Output::ReadWear]);
    assert_eq!(agent.deadline(), Some(now + 1 + WEAR_MS));
    assert_eq!(handle(&mut agent, now + 1, written(2_000)), []);
    handle(&mut agent, now + 1, Input::FlashWorn("mmcblk0".into()));
    let worn = agent.node_status().conditions;
    assert!(worn.iter().any(|one| one.name == "FlashWorn" && one.holds));
}
