//! A script of frames, lost and bent frames, ticks, changes and disconnects for both ends
//! together. Neither may panic, and the queue of outputs stays bounded.
#![no_main]

use std::collections::VecDeque;

use edge_proto::frame::{Entry, GapReason};
use edge_proto::hash::Hash32;
use edge_proto::key::{Key, Kind};
use edge_proto::session::{Cloud, CloudConfig, Node, NodeConfig, Input, Output};
use libfuzzer_sys::fuzz_target;

const OUTPUTS_MAX: usize = 512;
const FLYING_MAX: usize = 256;

struct Ends {
    node: Node,
    cloud: Cloud,
    up: VecDeque<Vec<u8>>,
    down: VecDeque<Vec<u8>>,
    /// Where the last stream handed to the sink has come.
    sink: Option<([u8; 8], u8, u64)>,
}

impl Ends {
    fn handle(&mut self, to_node: bool, now: u64, input: Input<'_>) {
        let mut inputs = VecDeque::from([input]);
        let mut outputs = 0;
        while let Some(input) = inputs.pop_front() {
            if to_node {
                self.node.handle(now, input);
            } else {
                self.cloud.handle(now, input);
            }
            loop {
                let output = if to_node {
                    self.node.poll()
                } else {
                    self.cloud.poll()
                };
                let Some(output) = output else { break };
                outputs += 1;
                assert!(outputs < OUTPUTS_MAX);
                match output {
                    Output::Send(frame) => {
                        let lane = if to_node {
                            &mut self.up
                        } else {
                            &mut self.down
                        };
                        if lane.len() < FLYING_MAX {
                            lane.push_back(frame);
                        }
                    }
                    Output::Apply { ticket, .. } => {
                        let refused = Vec::new();
                        inputs.push_back(Input::Applied { ticket, refused });
                    }
                    Output::BlobWanted { sha256, len } => {
                        inputs.push_back(Input::BlobHave {
                            sha256,
                            bytes: len / 2,
                        });
                    }
                    Output::PieceReceived {
                        sha256,
                        offset,
                        bytes,
                    } => {
                        let bytes = offset + bytes.len() as u32;
                        inputs.push_back(Input::BlobHave { sha256, bytes });
                    }
                    Output::RecordsWanted { class, from, .. } => {
                        let record = Entry::Record {
                            unix_ms: from,
                            bytes: vec![class; from as usize % 4097],
                        };
                        let gap = Entry::Gap {
                            count: 1 + from % 3,
                            reason: GapReason::Quota,
                        };
                        inputs.push_back(Input::RecordsRead {
                            class,
                            first: from,
                            entries: if from % 5 == 0 {
                                vec![gap]
                            } else {
                                vec![record]
                            },
                        });
                    }
                    Output::Records {
                        ticket,
                        incarnation,
                        class,
                        first,
                        forgotten,
                        entries,
                        ..
                    } => {
                        let end = entries.iter().fold(first, |end, entry| end + entry.count());
                        if let Some((_, _, next)) = self
                            .sink
                            .filter(|sink| (sink.0, sink.1) == (incarnation, class))
                        {
                            assert_eq!(next + forgotten, first, "left out, or twice");
                        }
                        self.sink = Some((incarnation, class, end));
                        // Some are durable at once, some never.
                        if ticket % 4 != 0 {
                            inputs.push_back(Input::RecordsDurable { ticket });
                        }
                    }
                    Output::BlobRead {
                        sha256,
                        offset,
                        bytes_max,
                    } => {
                        let here = sha256.0[0] != 3;
                        let bytes = vec![7; if here { bytes_max as usize } else { 0 }];
                        inputs.push_back(Input::BlobData {
                            sha256,
                            offset,
                            bytes,
                        });
                    }
                    _ => {}
                }
            }
        }
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
            0..8 => ends.handle(to_node, now, Input::TransportUp),
            8..12 => ends.handle(to_node, now, Input::TransportDown),
            12..20 => {
                now += u64::from(argument) * 1000;
                ends.handle(to_node, now, Input::Tick);
            }
            20..40 => {
                let payload = vec![argument; usize::from(argument) * 40].into();
                ends.handle(
                    to_node,
                    now,
                    Input::Put {
                        key: key(kind),
                        payload,
                    },
                );
            }
            40..42 => ends.handle(to_node, now, Input::Delete { key: key(kind) }),
            42..44 => {
                let end = now / 1000 + u64::from(argument);
                let ready = Input::RecordsReady {
                    class: argument & 15,
                    incarnation: [argument >> 6; 8],
                    held: 1 + u64::from(argument & 48),
                    end,
                };
                ends.handle(true, now, ready);
            }
            44..48 => {
                let (id, method, body) = (u32::from(argument), 1, Vec::new());
                ends.handle(false, now, Input::CallStart { id, method, body });
            }
            48..52 => {
                let (id, bytes) = (
                    u32::from(argument & 15),
                    vec![0; usize::from(argument) * 64],
                );
                let end = argument & 16 != 0;
                ends.handle(true, now, Input::CallAnswer { id, bytes, end });
            }
            52..54 => ends.handle(
                to_node,
                now,
                Input::CallCancel {
                    id: u32::from(argument),
                },
            ),
            54..56 => {
                let (id, bytes) = (u32::from(argument & 15), u32::from(argument) * 64);
                ends.handle(false, now, Input::CallTaken { id, bytes });
            }
            56..60 => {
                // Raw bytes of the script as a frame.
                let frame: Vec<u8> = script.by_ref().take(usize::from(argument)).collect();
                ends.handle(to_node, now, Input::Frame(&frame));
            }
            60 => {
                let (sha256, len) = (Hash32([argument & 3; 32]), u32::from(argument) * 999);
                ends.handle(true, now, Input::BlobFetch { sha256, len });
            }
            61 => {
                let sha256 = Hash32([argument & 3; 32]);
                ends.handle(true, now, Input::BlobCancel { sha256 });
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
                    ends.handle(to_node, now, Input::Frame(&frame));
                }
            }
        }
    }
});
