//! The sending end of the push, as one replica's service drives it: the real view of a region and the real session.

use std::collections::BTreeSet;
use std::sync::Arc;

use tollway_control::publish::build::Builder;
use tollway_control::publish::session::{Send, SessionCore};
use tollway_control::state::{State, view};
use tollway_proto::push::encode_resource;
use tollway_proto::push::v1::control_message::Message;
use tollway_proto::push::v1::{ControlMessage, FullBegin, FullChunk, FullEnd, Hello};
use tollway_shared::ids::{Region, Revision};
use tollway_shared::seal::{Key, sha256};
use tollway_shared::snapshot::{ResourceKey, StateHash};

/// Resources per chunk: few, so that a stream breaks in between now and then.
const CHUNK_RESOURCES: usize = 5;

/// One stream to one node.
pub(crate) struct Session {
    pub(crate) core: SessionCore,
    builder: Builder,
    region: Region,
}

impl Session {
    /// A stream to a node that said hello to a replica in `state`.
    pub(crate) fn new(hello: &Hello, state: Arc<State>) -> Self {
        Self {
            core: SessionCore::new(hello),
            builder: Builder::new(Key::new([7; 32]), state),
            region: Region::trusted(hello.region.as_str()),
        }
    }

    /// What to send now that the replica is in `state`.
    pub(crate) fn turn(
        &mut self,
        state: Arc<State>,
        changes_since: impl Fn(Revision) -> Option<(Revision, BTreeSet<ResourceKey>)>,
    ) -> Vec<ControlMessage> {
        let (built, newest) = (self.builder.revision(), state.revision);
        if built != newest {
            let changes = changes_since(built).filter(|(known, _)| *known >= newest && newest > built);
            self.builder.update(state, changes.as_ref().map(|(_, keys)| keys));
        }
        let view = self.builder.region(&self.region);
        let send = self.core.turn(&view, changes_since);
        let mut messages = Vec::new();
        for one in send {
            match one {
                Send::Stop(stop) => messages.push(message(Message::Stop(stop))),
                Send::Delta(delta) => messages.push(message(Message::Delta(delta))),
                Send::Full(nonce) => {
                    messages.push(message(Message::FullBegin(FullBegin {
                        revision: view.revision.0,
                        nonce,
                        resources: view.len() as u64,
                    })));
                    let mut after = None;
                    while let Some((chunk, last)) = view.chunk(nonce, after.as_ref()) {
                        messages.extend(chunk.resources.chunks(CHUNK_RESOURCES).map(|resources| {
                            message(Message::FullChunk(FullChunk {
                                nonce,
                                resources: resources.to_vec(),
                            }))
                        }));
                        after = Some(last);
                    }
                    messages.push(message(Message::FullEnd(FullEnd {
                        nonce,
                        hash: view.hash().to_bytes().to_vec().into(),
                    })));
                }
            }
        }
        messages
    }
}

fn message(message: Message) -> ControlMessage {
    ControlMessage {
        message: Some(message),
    }
}

/// The hash of what nodes see of a state, counted anew.
pub(crate) fn hash_of(state: &State) -> StateHash {
    view::all(state).fold(StateHash::default(), |mut hash, resource| {
        hash.add(&sha256(&encode_resource(&resource)));
        hash
    })
}
