//! All nodes as the controller and the API use them, over [`crate::identity`], [`crate::sessions`],
//! [`crate::records`] and [`crate::events`]. Has no state and no lock of its own.
//!
//! Operations of a single part are passed on; operations that concern several are here: a node that is
//! deleted or revoked loses its session, and a broker gets its list.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::changes::ChangeNotices;
use crate::clock::unix_s;
use crate::events::Events;
use crate::identity::authorities::Authorities;
use crate::identity::enrol::CertificateTimes;
use crate::identity::{ExternalBroker, Identity};
use crate::nodes::{
    CaAdmin, CaRetired, CaView, CallError, Calls, DesiredSets, Event, EventLog, Grants,
    LabelChange, NodeAdmin, NodeReports, NodeView, RecordReports, TokenRow, TokenSpec,
};
use crate::placement::Desired;
use crate::records::{Records, View};
use crate::sessions::Sessions;

/// All nodes of one edge-cloud.
#[derive(Clone)]
pub struct Fleet {
    /// Certificates, tokens and registry.
    pub identity: Arc<Identity>,
    /// One for each node.
    pub sessions: Arc<Sessions>,
    /// From the sessions to the sink.
    pub records: Arc<Records>,
    /// Shared by all parts.
    pub events: Arc<Events>,
}

impl Fleet {
    /// Opens the nodes stored in `data`. The caller runs [`Records::run`].
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(
        data: &Path,
        authorities: impl Into<Authorities>,
        broker: Option<ExternalBroker>,
        records: Arc<Records>,
        times: CertificateTimes,
    ) -> io::Result<Arc<Self>> {
        let events = Arc::new(Events::default());
        let identity = Identity::open(data, authorities, broker, times, Arc::clone(&events))?;
        let (known, happened) = (Arc::clone(&identity), Arc::clone(&events));
        Ok(Arc::new(Self {
            sessions: Sessions::new(known, happened, Arc::clone(&records)),
            identity,
            records,
            events,
        }))
    }
}

impl NodeReports for Fleet {
    fn subscribe(&self) -> ChangeNotices {
        self.sessions.subscribe()
    }

    fn view(&self, node: &str) -> Option<NodeView> {
        self.sessions.view(node)
    }

    fn views(&self) -> Vec<NodeView> {
        self.sessions.views()
    }
}

impl DesiredSets for Fleet {
    fn set_desired(&self, node: &str, desired: &Desired) {
        self.sessions.set_desired(node, desired);
    }
}

impl Calls for Fleet {
    fn call(
        &self,
        node: &str,
        method: u16,
        args: Vec<u8>,
    ) -> mpsc::Receiver<Result<Bytes, CallError>> {
        self.sessions.call(node, method, args)
    }
}

impl NodeAdmin for Fleet {
    async fn delete(&self, node: &str) -> Result<bool, String> {
        let found = self.identity.delete(node)?;
        let known = self.sessions.remove(node);
        if found {
            self.events.add(node, "Deleted", refused_from_now_on(known));
        }
        self.identity.keep_list();
        Ok(found)
    }

    async fn revoke(&self, node: &str) -> Result<bool, String> {
        let found = self.identity.revoke(node)?;
        if found {
            let known = self.sessions.end(node);
            self.events.add(node, "Revoked", refused_from_now_on(known));
        }
        self.identity.keep_list();
        Ok(found)
    }

    async fn approve(&self, node: &str) -> Result<bool, String> {
        let approved = |grants: &mut Grants| grants.awaits_approval = false;
        let found = self.identity.registry().grant(node, approved);
        let found = found.map_err(|error| error.to_string())?;
        if found {
            self.events
                .add(node, "Approved", "it gets pods from now on");
            self.sessions.registry_changed(node);
        }
        Ok(found)
    }

    async fn label(&self, node: &str, change: LabelChange) -> Result<bool, String> {
        let text = change.to_string();
        let labelled = |grants: &mut Grants| {
            for key in &change.remove {
                // What the board's own config says of it counts no more either.
                grants.labels.remove(key);
                grants.label_keys.remove(key);
            }
            grants.labels.extend(change.set);
        };
        let found = self.identity.registry().grant(node, labelled);
        let found = found.map_err(|error| error.to_string())?;
        if found {
            self.events.add(node, "Labelled", &text);
            self.sessions.registry_changed(node);
        }
        Ok(found)
    }

    async fn create_token(&self, spec: TokenSpec) -> Result<String, String> {
        self.identity.create_token(&spec)
    }

    fn tokens(&self) -> Vec<TokenRow> {
        self.identity.tokens().list(unix_s())
    }

    async fn revoke_token(&self, id: &str) -> Result<bool, String> {
        let found = self.identity.tokens().revoke(id);
        let found = found.map_err(|error| error.to_string())?;
        if found {
            self.events.add("", "TokenRevoked", id);
        }
        Ok(found)
    }
}

impl CaAdmin for Fleet {
    fn cas(&self) -> CaView {
        self.identity.ca_view(|node| self.sessions.is_live(node))
    }

    async fn rotate_ca(&self) -> Result<CaView, String> {
        self.identity.rotate()?;
        Ok(self.cas())
    }

    async fn retire_ca(&self, force: Option<usize>) -> Result<CaRetired, String> {
        self.identity.retire(force, |cut_off| {
            for node in cut_off {
                self.sessions.end(node);
            }
        })
    }
}

impl EventLog for Fleet {
    fn events(&self) -> Vec<Event> {
        self.events.events()
    }
}

impl RecordReports for Fleet {
    fn records(&self) -> View {
        self.records.view()
    }
}

const fn refused_from_now_on(known: bool) -> &'static str {
    if known {
        "its certificate is refused from now on"
    } else {
        "not known since the restore: it is refused if it comes"
    }
}
