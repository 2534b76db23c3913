//! Who asks, and whether they may.
//!
//! Which roles a route allows stands at its handler, in the `security` of its OpenAPI operation; this table is read from the
//! document, so what is documented is what is enforced. A route that states nothing is closed, but for the few that the document
//! leaves out because they are for machines: those are named by the module that serves them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::command::{Admin, Role};
use tollway_shared::ids::AdminId;
use tollway_shared::key_text::{self, KeyKind};
use tollway_shared::seal;

use super::Api;
use super::fault::Fault;
use crate::state;

/// The pepper under which new keys are digested.
pub const PEPPER_VERSION: u32 = 1;
/// The name of the security scheme in the OpenAPI document.
pub(crate) const SCHEME: &str = "admin_key";

/// The admin behind a request.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub(crate) id: AdminId,
}

/// What a route allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody: the route authenticates in another way, or tells nothing.
    Public,
    /// Admins of these roles.
    Roles(Vec<Role>),
}

/// Every route's access, by path template and method.
#[derive(Debug, Default)]
pub(crate) struct AccessTable(BTreeMap<(String, Method), Access>);

impl AccessTable {
    /// Reads the table from the paths of an OpenAPI document, as the router knows them.
    ///
    /// - `open`: paths outside the document that anybody may read.
    pub(crate) fn of_document(document: &Value, open: &[&str]) -> Self {
        let mut table: BTreeMap<_, _> = open
            .iter()
            .map(|path| (((*path).to_owned(), Method::GET), Access::Public))
            .collect();
        for (path, operations) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in operations.as_object().into_iter().flatten() {
                let Ok(method) = method.to_uppercase().parse::<Method>() else {
                    continue;
                };
                if let Some(access) = access(operation) {
                    table.insert((path.clone(), method), access);
                }
            }
        }
        Self(table)
    }

    fn find(&self, path: &str, method: &Method) -> Option<&Access> {
        let method = if method == Method::HEAD {
            Method::GET
        } else {
            method.clone()
        };
        self.0.get(&(path.to_owned(), method))
    }
}

/// `security: []` or a requirement without names is public; absent security is closed.
fn access(operation: &Value) -> Option<Access> {
    let requirements = operation.get("security")?.as_array()?;
    let Some(roles) = requirements.iter().find_map(|one| one.get(SCHEME)) else {
        return Some(Access::Public);
    };
    let roles = roles
        .as_array()?
        .iter()
        .filter_map(|name| role(name.as_str()?))
        .collect();
    Some(Access::Roles(roles))
}

pub(crate) fn role(name: &str) -> Option<Role> {
    serde_json::from_value(Value::from(name)).ok()
}

/// Lets a request through to its handler, with its [`Principal`], or refuses it. Wraps every handler, and handlers only.
pub(crate) async fn check(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let access = route.and_then(|path| api.access.find(path.as_str(), request.method()));
    let roles = match access {
        Some(Access::Public) => return next.run(request).await,
        Some(Access::Roles(roles)) => roles.clone(),
        None => {
            tracing::error!(method = %request.method(), path = request.uri().path(), "a route that states no access was asked for");
            let detail =
                "this route does not say who may call it, so nobody may; its omission is a fault of ours";
            return Fault::new(ProblemCode::Internal, detail).into_response();
        }
    };
    match api.principal(request.method(), request.headers()).await {
        Err(fault) => fault.into_response(),
        Ok(admin) if !roles.contains(&admin.role) => forbidden(&admin, &roles).into_response(),
        Ok(admin) => {
            request.extensions_mut().insert(Principal { id: admin.id });
            next.run(request).await
        }
    }
}

fn forbidden(admin: &Admin, roles: &[Role]) -> Fault {
    let name = |role: &Role| {
        let json = serde_json::to_value(role).expect("a role is a word");
        json.as_str().unwrap_or_default().to_owned()
    };
    let allowed: Vec<String> = roles.iter().map(name).collect();
    let detail = format!(
        "admin `{}` has role `{}`; this needs one of: {}",
        admin.id,
        name(&admin.role),
        allowed.join(", ")
    );
    Fault::new(ProblemCode::Forbidden, detail)
}

impl Api {
    /// The admin whose key the request carries. A write is decided on the newest state: this replica may lag behind the removal of
    /// an admin. A read of a known key goes on, and looks again in the state it reads; an unknown key may have been made a moment
    /// ago at another replica, so that one waits for the newest state too.
    async fn principal(&self, method: &Method, headers: &HeaderMap) -> Result<Admin, Fault> {
        let text = bearer(headers)?;
        if method.is_safe()
            && let Some(admin) = self.admin_of(text)
        {
            return Ok(admin);
        }
        self.newest().await?;
        self.admin_of(text).ok_or_else(|| {
            Fault::new(
                ProblemCode::Unauthenticated,
                "this admin key is unknown or was removed",
            )
        })
    }

    fn admin_of(&self, text: &str) -> Option<Admin> {
        admin_of(&self.state(), &self.root, text)
    }
}

fn admin_of(state: &state::State, root: &seal::Key, text: &str) -> Option<Admin> {
    let mut digests: BTreeMap<u32, [u8; 32]> = BTreeMap::new();
    state
        .admins
        .values()
        .find(|kept| {
            let version = kept.value.pepper_version;
            let digest = digests
                .entry(version)
                .or_insert_with(|| seal::key_digest(&seal::pepper(root, version), text));
            // What a comparison's time may tell is about the digest under a secret pepper, not about the key.
            *digest == kept.value.digest
        })
        .map(|kept| kept.value.clone())
}

fn bearer(headers: &HeaderMap) -> Result<&str, Fault> {
    let missing = || {
        Fault::at(
            ProblemCode::Unauthenticated,
            "Authorization",
            "send an admin key: `Authorization: Bearer ak-tw-v1-…`",
        )
    };
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let text = value.to_str().map_err(|_| missing())?;
    let (scheme, key) = text.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    let key = key.trim();
    if !key_text::is_well_formed(KeyKind::Admin, key) {
        return Err(Fault::at(
            ProblemCode::Unauthenticated,
            "Authorization",
            "this is not an admin key: admin keys start with `ak-tw-v1-` and carry a checksum",
        ));
    }
    Ok(key)
}
