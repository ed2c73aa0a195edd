//! Certificates of nodes. The agent's core decides when to renew, which certificate to use and what time it
//! is; here are the medium that stores them, the exchange with the enrolment service and
//! that service, modelled after `edge-cloud/src/identity/enrol.rs`.

use edge_core::limits::ENROL_TIMEOUT_MS;
use edge_core::renewal::{Time, Validity};
use edge_core::{Certificate as Which, CertificateInput, Input as AgentInput, UplinkInput};
use edge_proto::limits::{RENEW_GRACE_S, RENEW_INTERVAL_S};

use crate::board::{Board, Conn};
use crate::event::{Answer as Reply, Event};
use crate::world::{START_UNIX_S, World};

/// One-way delays of an enrolment: TCP, TLS, the request.
const DELAYS: u64 = 5;

/// Serial number, key and validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) serial: u64,
    key: u64,
    issued_s: u64,
    pub(crate) end_s: u64,
}

impl Certificate {
    pub(crate) const fn life(self) -> Validity {
        Validity {
            issued_unix_s: self.issued_s,
            not_after: self.end_s,
        }
    }
}

/// The part that is on a board's medium.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) new: Certificate,
    /// The previous one, until `new` has passed its trial.
    pub(crate) old: Option<Certificate>,
    /// Key of a request whose answer may have been lost.
    next_key: Option<u64>,
}

/// The registry's state of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registered {
    current: Certificate,
    pending: Option<Certificate>,
}

impl Registered {
    pub(crate) fn lists(&self, serial: u64) -> bool {
        let pending = self.pending.is_some_and(|one| one.serial == serial);
        self.current.serial == serial || pending
    }

    /// The node has connected with its pending certificate: the previous one is refused from now on.
    fn promote(&mut self, serial: u64) {
        if let Some(next) = self.pending.take_if(|one| one.serial == serial) {
            self.current = next;
        }
    }
}

/// Answer of the enrolment service: the next certificate with its time, or whether it refuses.
type Answer = Result<(Certificate, u64), bool>;

/// An enrolment in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Enrolment {
    pub(crate) board: u32,
    boot: u32,
    proof: Certificate,
    key: u64,
}

impl Board {
    fn time(&self, now: u64) -> Option<Time> {
        let machine = self.machine.as_ref()?;
        Some(machine.time.reliable(self.local(now)))
    }

    /// The certificate for a connection.
    pub(crate) fn certificate(&self, with: Which) -> Option<Certificate> {
        let identity = self.identity?;
        let old = identity.old.filter(|_| with == Which::Old);
        Some(old.unwrap_or(identity.new))
    }

    /// The trial of the new certificate has ended: only one stays.
    pub(crate) fn keep(&mut self, keep: Which) {
        if let Some(identity) = &mut self.identity
            && let Some(old) = identity.old.take()
            && keep == Which::Old
        {
            identity.new = old;
        }
    }

    /// TLS says that the certificate of this connection is refused.
    pub(crate) fn alert(&mut self, conn: u32) {
        let trying = self.conn == Conn::Trying(conn);
        if let Some(machine) = self.machine.as_mut().filter(|_| trying) {
            machine.refused = true;
        }
    }
}

impl World {
    /// The first certificate of a node, of some age, in its registry and on its board.
    pub(crate) fn join(&mut self, node: u32) {
        let Some(life_s) = self.scenario.certificate_life_s else {
            return;
        };
        let issued_s = self.unix_s() - self.boards[node as usize].rng.below(life_s * 2 / 3);
        let first = self.issue(issued_s, 0);
        self.stored_nodes[node as usize].registered = Some(Registered {
            current: first,
            pending: None,
        });
        self.boards[node as usize].identity = Some(Identity {
            new: first,
            old: None,
            next_key: None,
        });
    }

    fn issue(&mut self, issued_s: u64, key: u64) -> Certificate {
        self.serials += 1;
        Certificate {
            serial: self.serials,
            key,
            issued_s,
            end_s: issued_s + self.scenario.certificate_life_s.unwrap_or(0),
        }
    }

    /// Whether the broker accepts this certificate: it has not expired, and was not replaced.
    pub(crate) fn admits_certificate(&mut self, node: u32, shown: Option<Certificate>) -> bool {
        let now_s = self.unix_s();
        let registered = self.stored_nodes[node as usize].registered.as_mut();
        let (Some(shown), Some(registered)) = (shown, registered) else {
            return true;
        };
        if shown.end_s < now_s {
            self.stats.expired += 1;
            return false;
        }
        let listed = registered.lists(shown.serial);
        registered.promote(shown.serial);
        listed
    }

    /// One attempt to join. The registry repeats its answer to the same key, so a lost answer
    /// costs only the attempt.
    pub(crate) fn ask_to_join(&mut self, index: usize) {
        let lost = !self.enrolment_is_open() || self.is_lost(index);
        self.stats.joins_failed += u64::from(lost);
        let failed = UplinkInput::NotJoined("no answer".to_owned());
        let (ms, answer) = match lost {
            true => (ENROL_TIMEOUT_MS, Reply::Agent(AgentInput::Uplink(failed))),
            false => (DELAYS * self.scenario.link.delay_ms, Reply::Joined),
        };
        let boot = self.boards[index].boot;
        self.plan(ms, Event::Answer(index as u32, boot, Box::new(answer)));
    }

    /// One attempt to renew.
    pub(crate) fn renew(&mut self, index: usize) {
        let board = &mut self.boards[index];
        let Some(identity) = &mut board.identity else {
            return;
        };
        let enrolment = Enrolment {
            board: index as u32,
            boot: board.boot,
            proof: identity.new,
            key: *identity.next_key.get_or_insert_with(|| board.rng.draw()),
        };
        let ms = DELAYS * self.scenario.link.delay_ms;
        match self.is_lost(index) {
            true => self.plan(ENROL_TIMEOUT_MS, Event::Enrolled(enrolment, Err(false))),
            false => self.plan(ms, Event::Enrol(enrolment)),
        }
    }

    /// Whether an exchange with the enrolment service fails.
    fn is_lost(&mut self, index: usize) -> bool {
        let loss = self.scenario.faults.loss;
        let lost = self.is_faulty() && self.boards[index].rng.chance(loss);
        lost || self.is_cut(self.boards[index].node)
    }

    /// A request has arrived at the enrolment service of some replica.
    pub(crate) fn enrol(&mut self, enrolment: Enrolment) {
        let index = enrolment.board as usize;
        let awake = |replica: &&usize| {
            let one = &self.replicas[**replica];
            one.is_up && !one.paused
        };
        let all: Vec<usize> = (0..self.replicas.len()).collect();
        let awake: Vec<usize> = all.iter().filter(awake).copied().collect();
        let chosen = awake.get(self.rng.index(awake.len())).copied();
        let answer = chosen.map_or(Err(false), |replica| self.enrolment(replica, enrolment));
        let ms = self.scenario.link.delay_ms;
        match self.is_lost(index) {
            true => self.plan(ENROL_TIMEOUT_MS, Event::Enrolled(enrolment, Err(false))),
            false => self.plan(ms, Event::Enrolled(enrolment, answer)),
        }
    }

    /// As `EnrolmentService::renew` and `Registry::renew`.
    fn enrolment(&mut self, replica: usize, enrolment: Enrolment) -> Answer {
        let Enrolment { proof, key, .. } = enrolment;
        let node = self.boards[enrolment.board as usize].node as usize;
        let ahead_s = self.replicas[replica].ahead_s;
        let unix_s = self.unix_s().saturating_add_signed(ahead_s);
        let life_s = self.scenario.certificate_life_s.unwrap_or(0);
        let next = self.issue(unix_s, key);
        let stored_node = &mut self.stored_nodes[node];
        let known = stored_node
            .registered
            .as_mut()
            .filter(|_| stored_node.revoked.is_none());
        let known = known
            .filter(|known| known.lists(proof.serial))
            .ok_or(true)?;
        if unix_s.saturating_sub(proof.end_s) > RENEW_GRACE_S {
            return Err(true);
        }
        known.promote(proof.serial);
        if known.current.serial != proof.serial {
            return Err(true);
        }
        let same = |one: &Certificate| one.key == key && unix_s < one.issued_s + life_s / 2;
        if let Some(same) = known.pending.filter(same) {
            return Ok((same, unix_s));
        }
        let last_s = known.pending.unwrap_or(known.current).issued_s;
        let age_s = unix_s.checked_sub(last_s);
        if age_s.is_some_and(|age_s| age_s < RENEW_INTERVAL_S.min(life_s / 20)) {
            return Err(true);
        }
        known.pending = Some(next);
        Ok((next, unix_s))
    }

    /// The answer is at the board, if the agent that asked still lives.
    pub(crate) fn enrolled(&mut self, enrolment: Enrolment, answer: Answer) {
        let now = self.now;
        let index = enrolment.board as usize;
        let board = &mut self.boards[index];
        let local = board.local(now);
        let (Some(machine), Some(identity)) = (&mut board.machine, &mut board.identity) else {
            return;
        };
        if board.boot != enrolment.boot {
            return;
        }
        let floor_s = machine.time.floor(local);
        let answer = answer.and_then(|(next, unix_s)| {
            let over = next.end_s <= floor_s && next.end_s <= identity.new.end_s;
            if over { Err(false) } else { Ok((next, unix_s)) }
        });
        let input = match answer {
            Err(refused) => {
                self.stats.renewals_failed += 1;
                let reason = String::new();
                CertificateInput::NotRenewed { reason, refused }
            }
            Ok((next, unix_s)) => {
                self.stats.renewals += 1;
                identity.old = Some(std::mem::replace(&mut identity.new, next));
                identity.next_key = None;
                let new = next.life();
                CertificateInput::Renewed { new, unix_s }
            }
        };
        machine.agent.handle(local, AgentInput::Certificate(input));
        self.settle_board(index);
    }

    /// Whether the clocks of all replicas are correct, and one of them answers.
    fn enrolment_is_open(&self) -> bool {
        let open = |one: &crate::cloud::Replica| one.is_up && !one.paused;
        self.replicas.iter().all(|one| one.ahead_s == 0) && self.replicas.iter().any(open)
    }

    /// A session that was opened by a replica whose clock was behind continues with that time, or
    /// without any if it was not accepted. The node then renews when its certificate is
    /// refused, at its next connection.
    fn knows_the_time(&self, index: usize) -> bool {
        let board = &self.boards[index];
        let misled = board.machine.as_ref().is_some_and(|one| one.misled);
        let time = board.time(self.now);
        time.is_none_or(|time| match time.confirmed {
            true => time.unix_s + 60 > self.unix_s(),
            false => !misled || !matches!(board.conn, Conn::Up(_)),
        })
    }

    /// No node that can be reached and knows the time continues without a certificate.
    pub(crate) fn check_certificate(&mut self, index: usize) {
        let board = &self.boards[index];
        let (Some(identity), Some(life_s)) = (board.identity, self.scenario.certificate_life_s)
        else {
            return;
        };
        let could = board.machine.is_some() && self.broker.up && self.enrolment_is_open();
        if !could || self.is_excused(board.node) || !self.knows_the_time(index) {
            return;
        }
        let ended_at = identity.new.end_s.saturating_sub(START_UNIX_S) * 1000;
        let since = ended_at
            .max(board.started_at)
            .max(self.disturbed_at)
            .max(self.cut_until(board.node));
        let without_ms = self.now.saturating_sub(since);
        if without_ms > self.scenario.starve_s * 1000 {
            let node = board.node;
            self.fail(
                node,
                format!("its certificate of {life_s} s has ended, for {without_ms} ms"),
            );
        }
    }

    /// Why a node's certificate is not in its final state.
    pub(crate) fn certificate_unsettled(&self, node: u32) -> Option<&'static str> {
        let identity = self.boards[node as usize].identity?;
        let registered = self.stored_nodes[node as usize].registered?;
        if !registered.lists(identity.new.serial) {
            return Some("its certificate is refused");
        }
        let ended = identity.new.end_s <= self.unix_s() && self.knows_the_time(node as usize);
        ended.then_some("its certificate has ended")
    }
}
