//! A script of frames, lost and corrupted frames, ticks, changes and disconnects for both ends
//! together. Neither may panic, and the queue of outputs stays bounded.
#![no_main]

use std::collections::VecDeque;

use edge_proto::frame::{Entry, GapReason};
use edge_proto::hash::Hash32;
use edge_proto::key::{Key, Kind};
use edge_proto::session::{
    BlobInput, BlobOutput, CallInput, CallOpen, CallOutput, CallResult, Cloud, CloudConfig,
    CloudInput, CloudOutput, CloudRecordsInput, FetchInput, LinkInput, LinkOutput, Node,
    NodeConfig, NodeInput, NodeOutput, NodeRecordsInput, NodeRecordsOutput, StateInput,
    StateOutput,
};
use libfuzzer_sys::fuzz_target;

const OUTPUTS_MAX: usize = 512;
const FLYING_MAX: usize = 256;

struct Ends {
    node: Node,
    cloud: Cloud,
    up: VecDeque<Vec<u8>>,
    down: VecDeque<Vec<u8>>,
    /// End of the last stream that was given to the sink.
    sink: Option<([u8; 8], u8, u64)>,
}

/// Answers of a caller to the outputs that both ends have.
macro_rules! answer {
    ($output:expr, $way:expr, $own:ident => $rest:expr, $end:ident) => {
        match $output {
            $end::Link(LinkOutput::Send(frame)) => {
                if $way.len() < FLYING_MAX {
                    $way.push_back(frame);
                }
                None
            }
            $end::State(StateOutput::Apply { ticket, .. }) => {
                let refused = Vec::new();
                Some(StateInput::Applied { ticket, refused }.into())
            }
            $end::Blob(BlobOutput::Wanted { sha256, len }) => {
                let bytes = len / 2;
                Some(BlobInput::Have { sha256, bytes }.into())
            }
            $end::Blob(BlobOutput::Piece {
                sha256,
                offset,
                bytes,
            }) => {
                let bytes = offset + bytes.len() as u32;
                Some(BlobInput::Have { sha256, bytes }.into())
            }
            // Some are taken at once, some never.
            $end::Call(CallOutput::Data { id, bytes, .. }) if id % 4 != 0 => {
                let bytes = bytes.len() as u32;
                Some(CallInput::Taken { id, bytes }.into())
            }
            $own => $rest,
        }
    };
}

impl Ends {
    fn node<'a>(&mut self, now: u64, input: impl Into<NodeInput<'a>>) {
        let mut inputs = VecDeque::from([input.into()]);
        let mut outputs = 0;
        while let Some(input) = inputs.pop_front() {
            self.node.handle(now, input);
            while let Some(output) = self.node.poll() {
                outputs += 1;
                assert!(outputs < OUTPUTS_MAX);
                let answer = answer!(output, self.up, own => at_node(own), NodeOutput);
                inputs.extend(answer);
            }
        }
    }

    fn cloud<'a>(&mut self, now: u64, input: impl Into<CloudInput<'a>>) {
        let mut inputs = VecDeque::from([input.into()]);
        let mut outputs = 0;
        while let Some(input) = inputs.pop_front() {
            self.cloud.handle(now, input);
            while let Some(output) = self.cloud.poll() {
                outputs += 1;
                assert!(outputs < OUTPUTS_MAX);
                let sink = &mut self.sink;
                let answer = answer!(output, self.down, own => at_cloud(own, sink), CloudOutput);
                inputs.extend(answer);
            }
        }
    }

    /// Inputs that both ends have.
    fn either<'a, I>(&mut self, to_node: bool, now: u64, input: I)
    where
        I: Into<NodeInput<'a>> + Into<CloudInput<'a>>,
    {
        match to_node {
            true => self.node(now, input),
            false => self.cloud(now, input),
        }
    }
}

fn at_node(output: NodeOutput) -> Option<NodeInput<'static>> {
    let NodeOutput::Records(NodeRecordsOutput::Wanted { class, from, .. }) = output else {
        return None;
    };
    let record = Entry::Record {
        unix_ms: from,
        bytes: vec![class; from as usize % 4097],
    };
    let gap = Entry::Gap {
        count: 1 + from % 3,
        reason: GapReason::Quota,
    };
    let read = NodeRecordsInput::Read {
        class,
        first: from,
        entries: if from % 5 == 0 {
            vec![gap]
        } else {
            vec![record]
        },
    };
    Some(read.into())
}

fn at_cloud(
    output: CloudOutput,
    sink: &mut Option<([u8; 8], u8, u64)>,
) -> Option<CloudInput<'static>> {
    match output {
        CloudOutput::Records(records) => {
            let (incarnation, class, first) = (records.incarnation, records.class, records.first);
            let entries = records.entries.iter();
            let end = entries.fold(first, |end, entry| end + entry.count());
            if let Some((_, _, next)) = sink.filter(|sink| (sink.0, sink.1) == (incarnation, class))
            {
                assert_eq!(next + records.forgotten, first, "left out, or twice");
            }
            *sink = Some((incarnation, class, end));
            // Some are durable at once, some never.
            let ticket = records.ticket;
            (ticket % 4 != 0).then(|| CloudRecordsInput::Durable { ticket }.into())
        }
        CloudOutput::BlobRead {
            sha256,
            offset,
            bytes_max,
        } => {
            let here = sha256.0[0] != 3;
            let bytes = vec![7; if here { bytes_max as usize } else { 0 }];
            Some(CloudInput::BlobData {
                sha256,
                offset,
                bytes,
            })
        }
        _ => None,
    }
}

fuzz_target!(|script: &[u8]| {
    let agent = String::new();
    let mut ends = Ends {
        node: Node::new(
            NodeConfig {
                kinds: u32::MAX,
                agent,
            },
            1,
        ),
        cloud: Cloud::new(CloudConfig { epoch: 1 }, 2),
        up: VecDeque::new(),
        down: VecDeque::new(),
        sink: None,
    };
    let mut now = 0;
    let mut script = script.iter().copied();
    while let (Some(act), Some(argument)) = (script.next(), script.next()) {
        let to_node = act & 0x80 != 0;
        let key = |kind| Key::Name(kind, String::new(), argument.to_string());
        let kind = if to_node {
            Kind::DeviceStatus
        } else {
            Kind::ConfigMap
        };
        match act & 0x7f {
            0..8 => ends.either(to_node, now, LinkInput::TransportUp),
            8..12 => ends.either(to_node, now, LinkInput::TransportDown),
            12..20 => {
                now += u64::from(argument) * 1000;
                ends.either(to_node, now, LinkInput::Tick);
            }
            20..40 => {
                let payload = vec![argument; usize::from(argument) * 40].into();
                let put = StateInput::Put {
                    key: key(kind),
                    payload,
                };
                ends.either(to_node, now, put);
            }
            40..42 => ends.either(to_node, now, StateInput::Delete { key: key(kind) }),
            42..44 => {
                let end = now / 1000 + u64::from(argument);
                let ready = NodeRecordsInput::Ready {
                    class: argument & 15,
                    incarnation: [argument >> 6; 8],
                    held: 1 + u64::from(argument & 48),
                    end,
                };
                ends.node(now, ready);
            }
            44..48 => {
                let (id, method, args) = (u32::from(argument), 1, Vec::new());
                ends.cloud(now, CallOpen { id, method, args });
            }
            48..51 => {
                let (id, bytes) = (
                    u32::from(argument & 15),
                    vec![0; usize::from(argument) * 64],
                );
                let end = argument & 16 != 0;
                ends.either(to_node, now, CallInput::Data { id, bytes, end });
            }
            51 => {
                let (id, code, reason) = (u32::from(argument & 15), 0, String::new());
                ends.node(now, CallResult { id, code, reason });
            }
            52 => {
                let id = u32::from(argument);
                ends.either(to_node, now, CallInput::Cancel { id });
            }
            53 => {
                let (id, kind, bytes) = (u32::from(argument & 15), argument, vec![0; 4]);
                ends.either(to_node, now, CallInput::Control { id, kind, bytes });
            }
            54..56 => {
                let (id, bytes) = (u32::from(argument & 15), u32::from(argument) * 64);
                ends.either(to_node, now, CallInput::Taken { id, bytes });
            }
            56..60 => {
                // Raw bytes of the script as a frame.
                let frame: Vec<u8> = script.by_ref().take(usize::from(argument)).collect();
                ends.either(to_node, now, LinkInput::Frame(&frame));
            }
            60 => {
                let (sha256, len) = (Hash32([argument & 3; 32]), u32::from(argument) * 999);
                ends.node(now, FetchInput::Start { sha256, len });
            }
            61 => {
                let sha256 = Hash32([argument & 3; 32]);
                ends.node(now, FetchInput::Cancel { sha256 });
            }
            62..64 => drop(if to_node {
                ends.down.pop_front()
            } else {
                ends.up.pop_front()
            }),
            act => {
                let lane = if to_node {
                    &mut ends.down
                } else {
                    &mut ends.up
                };
                if let Some(mut frame) = lane.pop_front() {
                    if act >= 120 {
                        let place = usize::from(argument) % frame.len();
                        frame[place] ^= act;
                    }
                    if act >= 112 {
                        lane.push_back(frame.clone());
                    }
                    ends.either(to_node, now, LinkInput::Frame(&frame));
                }
            }
        }
    }
});
