//! What an NBD export name stands for: `/<VDI uuid>?session_id=<session>` (xapi-streams.md §3.1).

use std::ops::Range;
use std::sync::{Arc, Weak};

use disks::{BlockRead, DiskError, Resolve, View};

use crate::pool::{Plug, Pool};

/// The disks of a pool, to whoever has a session.
pub(crate) struct ExportNames(Weak<Pool>);

impl ExportNames {
    /// Of that pool. The pool owns its servers, so they do not own it.
    pub fn of(pool: &Arc<Pool>) -> Self {
        Self(Arc::downgrade(pool))
    }
}

impl Resolve for ExportNames {
    fn resolve(&self, export: &str) -> Option<Arc<dyn BlockRead>> {
        let pool = self.0.upgrade()?;
        let (uuid, query) = export.trim_start_matches('/').split_once('?')?;
        let session = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "session_id")?.1;
        if !pool.sessions.is_open(&session) {
            return None;
        }
        let vdi = pool.db.with(|store| {
            let vdi = store.by_uuid("VDI", uuid).ok()?;
            for vbd in store.refs("VDI", &vdi, "VBDs").ok()? {
                let attached = store.flag("VBD", &vbd, "currently_attached").ok()?;
                if attached && !pool.is_control_domain(&store.text("VBD", &vbd, "VM").ok()?) {
                    return None;
                }
            }
            (store.text("VDI", &vdi, "type").ok()? != "cbt_metadata").then_some(vdi)
        })?;
        Some(Arc::new(Attached { view: pool.shelf.view(&vdi).ok()?, _plug: pool.plug(&vdi, true).ok()? }))
    }
}

/// A disk that is attached to the control domain for as long as a connection reads it.
struct Attached {
    view: View,
    _plug: Plug,
}

impl BlockRead for Attached {
    fn size(&self) -> u64 {
        self.view.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.view.read_at(offset, buffer)
    }

    fn allocated(&self) -> Result<Vec<Range<u64>>, DiskError> {
        self.view.allocated()
    }
}
