//! The revision that a node routes on never goes back, across streams, replicas and restarts from its disk.

use std::collections::BTreeMap;

use tollway_shared::ids::Revision;

#[derive(Default)]
pub(crate) struct Property {
    highest: BTreeMap<usize, Revision>,
}

impl Property {
    pub(crate) fn in_force(&mut self, node: usize, revision: Revision) -> Result<(), String> {
        let before = self.highest.insert(node, revision).unwrap_or_default();
        (before <= revision)
            .then_some(())
            .ok_or_else(|| format!("node {node} went back from {before} to {revision}"))
    }
}
