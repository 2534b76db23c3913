//! Commands on the cluster itself: its beginning, admins, join tokens, nodes, behaviour version.

use tollway_proto::command::{
    Admin, InitCluster, JoinKind, JoinToken, NodeRecord, Refusal, RefusalCode, Role,
};
use tollway_shared::ids::{AdminId, NodeId, ReplicaId};

use super::{ClusterInfo, State, Step, VERSION, audit, not_found, refuse};

pub(super) fn init(state: &mut State, step: &mut Step<'_>, init: &InitCluster) -> Result<(), Refusal> {
    if let Some(cluster) = &state.cluster {
        let detail = format!("this cluster exists already; its id is `{}`", cluster.id);
        return Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail,
        });
    }
    step.put(&mut state.admins, init.admin.id.clone(), init.admin.clone())?;
    step.audit = Some(audit::Touched {
        target: init.cluster.to_string(),
        before: None,
        after: None,
    });
    state.cluster = Some(ClusterInfo {
        id: init.cluster.clone(),
        authority_pem: init.authority_pem.clone(),
        authority_key: init.authority_key.clone(),
        created_at: step.entry.at,
    });
    state.last_replica = 1; // the one that makes the cluster
    state.version = VERSION;
    // An empty catalog is a revision too: a node of a new cluster has something to serve, and is ready.
    state.revision = step.revision;
    Ok(())
}

pub(super) fn create_admin(state: &mut State, step: &mut Step<'_>, admin: &Admin) -> Result<(), Refusal> {
    if state.admins.contains_key(&admin.id) {
        return Err(refuse(
            RefusalCode::Conflict,
            "id",
            format!("admin `{}` exists", admin.id),
        ));
    }
    step.put(&mut state.admins, admin.id.clone(), admin.clone())
}

pub(super) fn remove_admin(state: &mut State, step: &mut Step<'_>, id: &AdminId) -> Result<(), Refusal> {
    let owners = state
        .admins
        .values()
        .filter(|kept| kept.value.role == Role::Owner)
        .count();
    let is_owner = state
        .admins
        .get(id)
        .is_some_and(|kept| kept.value.role == Role::Owner);
    if is_owner && owners == 1 {
        let detail = format!("admin `{id}` is the last owner; make another one first");
        return Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail,
        });
    }
    step.take(&mut state.admins, id, "admin").map(drop)
}

pub(super) fn create_join_token(
    state: &mut State,
    step: &mut Step<'_>,
    token: &JoinToken,
) -> Result<(), Refusal> {
    let now = step.entry.at;
    if token.expires_at <= now {
        return Err(refuse(
            RefusalCode::Invalid,
            "expires_at",
            "must be in the future",
        ));
    }
    let expired: Vec<_> = state
        .join_tokens
        .values()
        .filter(|token| token.expires_at <= now)
        .map(|token| token.digest)
        .collect();
    expired
        .iter()
        .for_each(|digest| drop(state.join_tokens.remove(digest)));
    state.join_tokens.insert(token.digest, token.clone());
    let target = match &token.kind {
        JoinKind::Replica => "a replica".to_owned(),
        JoinKind::Node(region) => format!("a node in {region}"),
    };
    step.audit = Some(audit::Touched {
        target,
        before: None,
        after: None,
    });
    Ok(())
}

pub(super) fn join(
    state: &mut State,
    step: &mut Step<'_>,
    digest: &[u8; 32],
    node: Option<&NodeRecord>,
) -> Result<(), Refusal> {
    let forbidden = |detail: &str| refuse(RefusalCode::Forbidden, "token", detail);
    let Some(token) = state.join_tokens.get(digest).cloned() else {
        return Err(forbidden("is unknown or was used; ask for a new one"));
    };
    if token.expires_at <= step.entry.at {
        return Err(forbidden("has expired; ask for a new one"));
    }
    let target = match (&token.kind, node) {
        (JoinKind::Replica, None) => {
            state.last_replica += 1;
            step.replica = Some(ReplicaId(state.last_replica));
            format!("replica {}", state.last_replica)
        }
        (JoinKind::Node(region), Some(node)) => {
            if node.region != *region {
                return Err(forbidden(&format!("is for region `{region}`")));
            }
            if state.nodes.contains_key(&node.id) {
                return Err(refuse(
                    RefusalCode::Conflict,
                    "node",
                    format!("node `{}` exists; remove it first", node.id),
                ));
            }
            state.nodes.insert(node.id.clone(), node.clone());
            format!("node {}", node.id)
        }
        (JoinKind::Replica, Some(_)) => return Err(forbidden("lets a replica in, not a node")),
        (JoinKind::Node(_), None) => return Err(forbidden("lets a node in, not a replica")),
    };
    state.join_tokens.remove(digest);
    step.audit = Some(audit::Touched {
        target,
        before: None,
        after: None,
    });
    Ok(())
}

pub(super) fn remove_node(state: &mut State, step: &mut Step<'_>, id: &NodeId) -> Result<(), Refusal> {
    if state.nodes.remove(id).is_none() {
        return Err(not_found("node", id));
    }
    state.books.remove_node(id, state.now);
    step.audit = Some(audit::Touched {
        target: id.to_string(),
        before: None,
        after: None,
    });
    Ok(())
}

pub(super) fn set_version(state: &mut State, step: &mut Step<'_>, version: u32) -> Result<(), Refusal> {
    if version < state.version {
        return Err(refuse(
            RefusalCode::Invalid,
            "version",
            format!("may not go back from {}", state.version),
        ));
    }
    step.audit = Some(audit::Touched {
        target: "cluster".into(),
        before: Some(state.version.to_string()),
        after: Some(version.to_string()),
    });
    state.version = version;
    Ok(())
}

/// The members themselves are the log's; this is what outlives them: who may not come back, and who wanted it so.
pub(super) fn remove_replica(state: &mut State, step: &mut Step<'_>, id: ReplicaId) -> Result<(), Refusal> {
    note(state, step, id)?;
    state.removed_replicas.insert(id);
    Ok(())
}

/// Leaves nothing but the audit record.
pub(super) fn note(state: &State, step: &mut Step<'_>, id: ReplicaId) -> Result<(), Refusal> {
    if !(1..=state.last_replica).contains(&id.0) {
        return Err(not_found("replica", id));
    }
    step.audit = Some(audit::Touched {
        target: format!("replica {id}"),
        before: None,
        after: None,
    });
    Ok(())
}
