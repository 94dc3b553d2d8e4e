//! Votes of configurations that count for more than the store that gave them.

use crate::network::{Answer, Letter};
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::raft::{Command, RegisterStore, command, peer_request};
use rdb_server::transport::TransportError;
use std::collections::{BTreeMap, BTreeSet};

/// What stores told the cluster that they are and declare, by their ids.
#[derive(Default)]
pub(super) struct Told(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    told: BTreeMap<u32, RegisterStore>,
    /// Whose letter counts for another store, and is answered as if it had never arrived: it is sent again.
    forged: BTreeSet<u32>,
}

fn registration(letter: &Letter) -> Option<RegisterStore> {
    let peer_request::Body::Propose(propose) = &letter.body else {
        return None;
    };
    match Command::decode(propose.command.clone()).ok()?.kind? {
        command::Kind::RegisterStore(register) => Some(register),
        _ => None,
    }
}

impl Told {
    /// A changed declaration counts for another store first.
    pub(super) fn request(&self, letter: &mut Letter) -> Option<()> {
        let register = registration(letter)?;
        let id = register.member.as_ref()?.store_id;
        let mut heard = self.0.lock();
        let heard = &mut *heard;
        let before = heard.told.insert(id, register.clone())?;
        if before.declared == register.declared {
            return None;
        }
        let mut others = heard.told.values();
        let other = others.find(|other| other.declared != register.declared)?;
        let forged = RegisterStore {
            declared: register.declared,
            ..other.clone()
        };
        let command = Command {
            kind: Some(command::Kind::RegisterStore(forged)),
        };
        if let peer_request::Body::Propose(propose) = &mut letter.body {
            propose.command = command.encode_to_vec().into();
        }
        heard.forged.insert(u32::from(letter.from.get()));
        Some(())
    }

    pub(super) fn answer(&self, letter: &Letter, answer: &mut Answer) {
        let from = u32::from(letter.from.get());
        if registration(letter).is_some() && self.0.lock().forged.remove(&from) {
            *answer = Err(TransportError::Unreachable {
                to: letter.to,
                why: "it was counted for another store".to_owned(),
            });
        }
    }
}
