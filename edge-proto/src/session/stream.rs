//! Streams: numbered records from the node's outbox to the cloud's sink, go-back-N.
//!
//! Neither end keeps records. The node's end reads them from the outbox when it sends
//! them, again for each repeat; the cloud's end passes them on and counts their bytes until the
//! sink has stored them. An acknowledgement always means: durable in the sink.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::opening::Repeat;
use super::sender::send;
use super::{CloudOutput, LinkOutput, NodeOutput, NodeRecordsOutput, RecordsOutput};
use crate::Millis;
use crate::frame::{Entry, Frame, Incarnation, SessionId, end_of};
use crate::limits::{
    CLASSES_MAX, FRAME_BYTES_MAX, RECORD_ENTRIES_MAX, RECORDS_BYTES_MAX, STREAM_FRAMES_MAX,
    STREAM_PENDING_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX,
};

/// Bytes of a records frame around its entries.
const FRAME_HEADER_BYTES: usize = FRAME_BYTES_MAX - RECORDS_BYTES_MAX;

/// One class at the node's end: `held <= sent <= end`.
#[derive(Debug)]
struct Class {
    number: u8,
    incarnation: Incarnation,
    /// All earlier numbers are acknowledged.
    held: u64,
    /// All earlier numbers were sent in this session.
    sent: u64,
    /// Number of the outbox's next record.
    end: u64,
    /// The cloud is to be informed of the outbox and its numbers even if there is nothing to send, and
    /// has not answered yet.
    announce: bool,
    /// The outbox cannot be read.
    stalled: bool,
    /// Sent again from `held` since `held` last advanced or the cloud was last asked.
    gone_back: bool,
    repeat: Repeat,
}

/// A frame that was sent and not yet acknowledged.
#[derive(Debug)]
struct Flight {
    class: u8,
    end: u64,
    bytes: usize,
}

/// The node's half. At most [`CLASSES_MAX`] classes, the lowest number first.
#[derive(Debug, Default)]
pub(super) struct StreamSender {
    classes: Vec<Class>,
    /// At most [`STREAM_FRAMES_MAX`], and one more for each class.
    flights: Vec<Flight>,
    /// Class and first number of the read that the outbox has not answered.
    reading: Option<(u8, u64)>,
    /// Epoch of the last session.
    epoch: u64,
}

impl StreamSender {
    /// Handles what the outbox contains.
    pub(super) fn handle_ready(
        &mut self,
        number: u8,
        incarnation: Incarnation,
        (held, end): (u64, u64),
    ) {
        if usize::from(number) >= CLASSES_MAX || held == 0 || held > end {
            return;
        }
        let place = self.classes.partition_point(|class| class.number < number);
        let known = self.classes.get_mut(place);
        if let Some(class) =
            known.filter(|class| class.number == number && class.incarnation == incarnation)
        {
            class.end = class.end.max(end);
            class.held = class.held.max(held);
            class.sent = class.sent.max(class.held);
            class.stalled = false;
            return;
        }
        self.classes.retain(|class| class.number != number);
        self.clear_flights(number);
        let class = Class {
            number,
            incarnation,
            held,
            sent: held,
            end,
            announce: true,
            stalled: false,
            gone_back: false,
            repeat: Repeat::new(),
        };
        self.classes.insert(place, class);
    }

    /// A session opens. A cloud with another epoch may have been restored from a backup, so our
    /// numbers are announced to it.
    pub(super) fn open(&mut self, epoch: u64) {
        self.close();
        let other = core::mem::replace(&mut self.epoch, epoch) != epoch;
        for class in &mut self.classes {
            class.announce |= other && class.end > 1;
            class.stalled = false;
        }
    }

    /// The session has ended: unacknowledged records are sent again in the next one.
    pub(super) fn close(&mut self) {
        self.flights.clear();
        self.reading = None;
        for class in &mut self.classes {
            class.sent = class.held;
            class.gone_back = false;
            class.repeat.reset();
        }
    }

    pub(super) fn deadline(&self) -> Option<Millis> {
        self.classes
            .iter()
            .filter_map(|class| class.repeat.at)
            .min()
    }

    /// For each class without an answer for too long, asks whether the cloud has received what was sent.
    pub(super) fn tick(&mut self, now: Millis, session: SessionId, out: &mut VecDeque<NodeOutput>) {
        for class in &mut self.classes {
            if class.repeat.is_due(now) {
                class.gone_back = false;
                class.repeat.arm(now);
                send(out, &records(session, class, class.sent, Vec::new()));
            }
        }
    }

    pub(super) fn handle_ack(
        &mut self,
        now: Millis,
        (incarnation, number): (Incarnation, u8),
        (next, missing): (u64, bool),
        out: &mut VecDeque<NodeOutput>,
    ) {
        let mut classes = self.classes.iter_mut();
        let Some(class) =
            classes.find(|class| class.number == number && class.incarnation == incarnation)
        else {
            return;
        };
        if next > class.end {
            let class = number;
            out.push_back(NodeRecordsOutput::Ahead { class, next }.into());
            return;
        }
        class.announce &= missing;
        self.flights
            .retain(|flight| flight.class != number || flight.end > next);
        if next > class.held {
            class.held = next;
            class.sent = class.sent.max(next);
            class.gone_back = false;
            class.repeat.reset();
            let class = number;
            out.push_back(NodeRecordsOutput::Acked { class, next }.into());
        }
        if missing && !class.gone_back && class.sent > class.held {
            class.gone_back = true;
            class.sent = class.held;
            self.clear_flights(number);
        }
        self.arm(now, number);
    }

    fn clear_flights(&mut self, number: u8) {
        self.flights.retain(|flight| flight.class != number);
        self.reading.take_if(|(class, _)| *class == number);
    }

    /// A repeat is due exactly while records of the class are in flight.
    fn arm(&mut self, now: Millis, number: u8) {
        let in_flight = is_in_flight(&self.flights, number);
        let mut classes = self.classes.iter_mut();
        if let Some(class) = classes.find(|class| class.number == number) {
            match (in_flight, class.repeat.at) {
                (true, None) => class.repeat.arm(now),
                (true, Some(_)) => {}
                // The delay stays as it is after going back: a lossy link is not loaded further.
                (false, _) => class.repeat.at = None,
            }
        }
    }

    /// Handles the answer of the outbox to a read.
    pub(super) fn handle_read(
        &mut self,
        now: Millis,
        session: SessionId,
        (number, first, mut entries): (u8, u64, Vec<Entry>),
        out: &mut VecDeque<NodeOutput>,
    ) {
        if self.reading != Some((number, first)) {
            return;
        }
        self.reading = None;
        let mut classes = self.classes.iter_mut();
        let Some(class) = classes.find(|class| class.number == number && class.sent == first)
        else {
            return;
        };
        let mut bytes_left = RECORDS_BYTES_MAX;
        let fitting = entries.iter().take(RECORD_ENTRIES_MAX).take_while(|entry| {
            let fits = entry.bytes_max() <= bytes_left;
            bytes_left = bytes_left.saturating_sub(entry.bytes_max());
            fits
        });
        entries.truncate(fitting.count());
        match end_of(first, &entries) {
            Some(end) if end > first && end <= class.end => {
                let frame = records(session, class, first, entries);
                class.sent = end;
                self.launch(now, number, end, &frame, out);
            }
            _ => class.stalled = true,
        }
    }

    fn launch(
        &mut self,
        now: Millis,
        number: u8,
        end: u64,
        frame: &Frame,
        out: &mut VecDeque<NodeOutput>,
    ) {
        let frame = frame.encode();
        let flight = Flight {
            class: number,
            end,
            bytes: frame.len(),
        };
        out.push_back(LinkOutput::Send(frame).into());
        self.flights.push(flight);
        self.arm(now, number);
    }

    /// Announces outboxes, and requests what can be sent from the outbox: one read at a
    /// time, the lowest class first.
    pub(super) fn pump(&mut self, now: Millis, session: SessionId, out: &mut VecDeque<NodeOutput>) {
        // An outbox that was never written to is announced by its first class only.
        let flights = &self.flights;
        let announced = |(place, class): (usize, &Class)| {
            let quiet = class.sent == class.end && !is_in_flight(flights, class.number);
            let due = class.announce && quiet && (place == 0 || class.end > 1);
            due.then(|| {
                let frame = records(session, class, class.sent, Vec::new());
                (class.number, class.sent, frame)
            })
        };
        let classes = self.classes.iter().enumerate();
        let frames: Vec<_> = classes.filter_map(announced).collect();
        for (number, end, frame) in frames {
            self.launch(now, number, end, &frame, out);
        }
        if self.reading.is_some() {
            return;
        }
        let in_flight: usize = self.flights.iter().map(|flight| flight.bytes).sum();
        let window_open = in_flight + FRAME_BYTES_MAX <= STREAM_WINDOW_BYTES
            && self.flights.len() < STREAM_FRAMES_MAX;
        let next = self.classes.iter().find(|class| {
            let idle = || {
                !self
                    .flights
                    .iter()
                    .any(|flight| flight.class == class.number)
            };
            class.sent < class.end && !class.stalled && (window_open || idle())
        });
        if let Some(class) = next {
            self.reading = Some((class.number, class.sent));
            let wanted = NodeRecordsOutput::Wanted {
                class: class.number,
                from: class.sent,
                bytes_max: RECORDS_BYTES_MAX,
            };
            out.push_back(wanted.into());
        }
    }
}

fn is_in_flight(flights: &[Flight], class: u8) -> bool {
    flights.iter().any(|flight| flight.class == class)
}

const fn records(session: SessionId, class: &Class, first: u64, entries: Vec<Entry>) -> Frame {
    Frame::Records {
        session,
        incarnation: class.incarnation,
        class: class.number,
        held: class.held,
        first,
        entries,
    }
}

/// One stream at the cloud's end: `durable <= received`.
#[derive(Debug)]
struct Stream {
    incarnation: Incarnation,
    class: u8,
    /// All earlier numbers were passed to the sink.
    received: u64,
    /// All earlier numbers are durable in the sink.
    durable: u64,
    /// The sink has stored that the stream exists.
    stored: bool,
    /// Records that were received again, since the last `take_repeated`.
    repeated: u64,
}

/// Records that the sink has not answered yet.
#[derive(Debug)]
struct Pending {
    ticket: u32,
    incarnation: Incarnation,
    class: u8,
    end: u64,
    bytes: usize,
    done: bool,
}

impl Pending {
    fn is_of(&self, stream: &Stream) -> bool {
        self.class == stream.class && self.incarnation == stream.incarnation
    }
}

/// The cloud's half. At most [`STREAMS_MAX`] streams and [`STREAM_PENDING_BYTES_MAX`] bytes that
/// wait for the sink.
#[derive(Debug, Default)]
pub(super) struct StreamReceiver {
    /// In the order of their first frame.
    streams: Vec<Stream>,
    pending: Vec<Pending>,
    ticket: u32,
}

impl StreamReceiver {
    pub(super) fn restore(&mut self, incarnation: Incarnation, class: u8, next: u64) -> bool {
        let fits = self.streams.len() < STREAMS_MAX;
        let valid = usize::from(class) < CLASSES_MAX && next > 0;
        if fits && valid {
            self.streams.push(Stream {
                incarnation,
                class,
                received: next,
                durable: next,
                stored: true,
                repeated: 0,
            });
        }
        fits && valid
    }

    /// Index of the stream, which is added if it is not known.
    fn place(&mut self, incarnation: Incarnation, class: u8) -> usize {
        let known = |stream: &Stream| stream.class == class && stream.incarnation == incarnation;
        if let Some(place) = self.streams.iter().position(known) {
            return place;
        }
        if self.streams.len() >= STREAMS_MAX {
            let pending = &self.pending;
            let idle = |stream: &Stream| !pending.iter().any(|pending| pending.is_of(stream));
            let oldest = self.streams.iter().position(idle).unwrap_or(0);
            self.streams.remove(oldest);
        }
        self.streams.push(Stream {
            incarnation,
            class,
            received: 1,
            durable: 1,
            stored: false,
            repeated: 0,
        });
        self.streams.len() - 1
    }

    /// Handles a frame with records; its numbers are within the caps.
    pub(super) fn handle_records(
        &mut self,
        session: SessionId,
        (incarnation, class): (Incarnation, u8),
        (held, first): (u64, u64),
        mut entries: Vec<Entry>,
        out: &mut VecDeque<CloudOutput>,
    ) {
        let Some(end) = end_of(first, &entries) else {
            return;
        };
        let place = self.place(incarnation, class);
        let Some(stream) = self.streams.get_mut(place) else {
            return;
        };
        let next = stream.received.max(held);
        if first > next {
            acknowledge(session, stream, true, out);
            return;
        }
        let forgotten = next - stream.received;
        let came = count_records(&entries);
        let fresh = !stream.stored && !self.pending.iter().any(|pending| pending.is_of(stream));
        if end <= next && forgotten == 0 && !fresh {
            stream.repeated = stream.repeated.saturating_add(came);
            // While the sink works on them, its own acknowledgement follows.
            if end <= stream.durable {
                acknowledge(session, stream, false, out);
            }
            return;
        }
        skip(&mut entries, next - first);
        let again = came.saturating_sub(count_records(&entries));
        stream.repeated = stream.repeated.saturating_add(again);
        let waiting: usize = self.pending.iter().map(|pending| pending.bytes).sum();
        let bytes = entries.iter().map(Entry::bytes_max).sum::<usize>() + FRAME_HEADER_BYTES;
        if waiting + bytes > STREAM_PENDING_BYTES_MAX {
            return;
        }
        self.ticket = self.ticket.wrapping_add(1);
        let ticket = self.ticket;
        stream.received = end.max(next);
        self.pending.push(Pending {
            ticket,
            incarnation,
            class,
            end: stream.received,
            bytes,
            done: false,
        });
        let records = RecordsOutput {
            ticket,
            incarnation,
            class,
            first: next,
            held,
            forgotten,
            entries,
        };
        out.push_back(records.into());
    }

    /// The sink has stored the records of this ticket. Acknowledges the numbers that are durable without a
    /// hole.
    pub(super) fn handle_durable(
        &mut self,
        session: Option<SessionId>,
        ticket: u32,
        out: &mut VecDeque<CloudOutput>,
    ) {
        let mut pending = self.pending.iter_mut();
        let Some(done) = pending.find(|pending| pending.ticket == ticket) else {
            return;
        };
        done.done = true;
        let (incarnation, class) = (done.incarnation, done.class);
        let place = self.place(incarnation, class);
        let Some(stream) = self.streams.get_mut(place) else {
            return;
        };
        let mut all = true;
        let mut moved = false;
        self.pending.retain(|pending| {
            all &= !pending.is_of(stream) || pending.done;
            let settled = all && pending.is_of(stream);
            if settled {
                moved = true;
                stream.durable = pending.end;
            }
            !settled
        });
        stream.stored |= moved;
        if let (true, Some(session)) = (moved, session) {
            acknowledge(session, stream, false, out);
        }
    }

    /// See `Cloud::take_repeated`.
    pub(super) fn take_repeated(&mut self) -> Option<(Incarnation, u8, u64)> {
        let stream = self.streams.iter_mut().find(|stream| stream.repeated > 0)?;
        let repeated = core::mem::take(&mut stream.repeated);
        Some((stream.incarnation, stream.class, repeated))
    }

    /// The sink cannot store them: everything after the last durable record will be received again.
    pub(super) fn handle_failed(&mut self, ticket: u32) {
        let mut pending = self.pending.iter();
        let Some(failed) = pending.find(|pending| pending.ticket == ticket) else {
            return;
        };
        for stream in &mut self.streams {
            if failed.is_of(stream) {
                stream.received = stream.durable;
            }
        }
        let (incarnation, class) = (failed.incarnation, failed.class);
        self.pending
            .retain(|pending| pending.class != class || pending.incarnation != incarnation);
    }
}

fn acknowledge(
    session: SessionId,
    stream: &Stream,
    missing: bool,
    out: &mut VecDeque<CloudOutput>,
) {
    let frame = Frame::RecordsAck {
        session,
        incarnation: stream.incarnation,
        class: stream.class,
        next: stream.durable,
        missing,
    };
    send(out, &frame);
}

fn count_records(entries: &[Entry]) -> u64 {
    let records = entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Record { .. }));
    u64::try_from(records.count()).unwrap_or(u64::MAX)
}

/// Removes the first `count` numbers; a gap is shortened.
fn skip(entries: &mut Vec<Entry>, mut count: u64) {
    entries.retain_mut(|entry| {
        let known = entry.count().min(count);
        count -= known;
        if let Entry::Gap { count, .. } = entry {
            *count -= known;
            return *count > 0;
        }
        known == 0
    });
}
