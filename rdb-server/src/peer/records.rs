//! What a replica holds on its disk, read while snapshots may replace it.
//!
//! Owns the looks at records: each says whether what it saw may be half of two things. Whether it may be seen by
//! anybody (linearizable, live, in a session) is the caller's to judge.
//!
//! Invariant: nothing that was read while a snapshot replaced the region is given out.

use super::Peer;
use super::damage::ReadOf;
use crate::error::Error;
use crate::eventual::{layout as eventual_layout, state::load_ids};
use rdb_storage::Family;
use rdb_types::{Mode, NamespaceId, Reason, Record, Stamp};

impl Peer {
    /// What this store holds under a global key of an eventual namespace, which it goes on with while a
    /// snapshot replaces the rest of the region.
    ///
    /// # Errors
    /// A snapshot replaces this, too; the disk does not give the record, or not what was written.
    pub fn own(&self, namespace: NamespaceId, global: &[u8]) -> Result<Option<Record>, Error> {
        let before = self.own_settled(namespace)?;
        let stored = self.read(global)?;
        self.still(before)?;
        Ok(stored)
    }

    /// As [`Peer::settled`], for a namespace that is eventual.
    ///
    /// # Errors
    /// A snapshot replaces its rows right now.
    pub fn own_settled(&self, namespace: NamespaceId) -> Result<u64, Error> {
        let (installs, replaced) = self
            .cell
            .with(|summary| (summary.installs, summary.replacing.contains(&namespace)));
        if replaced {
            return Err(self.being_replaced());
        }
        Ok(installs)
    }

    /// What stands under a key of a namespace here, as its list of lost writes counts.
    ///
    /// # Errors
    /// As [`Peer::own`].
    pub fn standing(&self, namespace: NamespaceId, global: &[u8]) -> Result<Option<Record>, Error> {
        let strong = self.cell.with(|summary| {
            let state = summary.namespaces.get(&namespace);
            state.filter(|state| state.mode == Mode::Strong).cloned()
        });
        match strong {
            None => self.own(namespace, global),
            Some(state) => {
                let stored = self.stored(global)?;
                Ok(stored.filter(|record| state.counts(record)))
            }
        }
    }

    /// The stamp under which a write with this request id was applied here, in the log or beside it; `None`:
    /// none was that is still remembered.
    ///
    /// # Errors
    /// The disk does not give the row, or not what was written.
    pub fn applied_at(&self, namespace: NamespaceId, id: &[u8]) -> Result<Option<Stamp>, Error> {
        let (view, region) = (self.engine.as_ref(), self.id());
        let in_log = self.cell.with(|summary| summary.ids);
        if let Some(stamp) = in_log.applied_at(view, region, namespace, id)? {
            return Ok(Some(stamp));
        }
        let own = load_ids(region, view)?;
        Ok(own.applied_at(view, eventual_layout::beside(region), namespace, id)?)
    }

    fn read(&self, global: &[u8]) -> Result<Option<Record>, Error> {
        let stored = self.engine.get(Family::Data, global);
        let stored = self.damage.check(ReadOf::Record, stored)?;
        stored
            .map(Record::decode)
            .transpose()
            .map_err(|error| self.damage.record(ReadOf::Record, &error))
    }

    /// What this store holds under a global key of a strong namespace of this region.
    ///
    /// # Errors
    /// A snapshot replaces the region; the disk does not give the record, or not what was written.
    pub fn stored(&self, global: &[u8]) -> Result<Option<Record>, Error> {
        let installs = self.settled()?;
        let stored = self.read(global)?;
        self.still(installs)?;
        Ok(stored)
    }

    /// Begins a look at the region's rows: what [`Peer::still`] wants to know after it.
    ///
    /// # Errors
    /// A snapshot replaces them right now.
    pub fn settled(&self) -> Result<u64, Error> {
        let installs = self.cell.with(|summary| summary.installs);
        if installs.is_multiple_of(2) {
            Ok(installs)
        } else {
            Err(self.being_replaced())
        }
    }

    /// Ends a look at the region's rows.
    ///
    /// # Errors
    /// They were being replaced meanwhile: what was seen may be half of each.
    pub fn still(&self, installs: u64) -> Result<(), Error> {
        if self.cell.with(|summary| summary.installs) == installs {
            Ok(())
        } else {
            Err(self.being_replaced())
        }
    }

    fn being_replaced(&self) -> Error {
        Error::new(
            Reason::NotReady,
            format!(
                "region {} is being replaced by a snapshot here; ask another store or try again",
                self.id()
            ),
        )
        .with("region", self.id())
    }
}
