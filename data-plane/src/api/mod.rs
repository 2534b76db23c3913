//! The public API: which path leads where. Everything that reaches a provider goes through [`crate::pipeline`]; what tenants read of
//! their own usage is [`account`].

pub mod account;
pub mod models;
pub mod reply;

use std::rc::Rc;

use http::header::HOST;
use http::{HeaderMap, Method, Request, Version};
use hyper::body::Incoming;
use tollway_shared::fault::Fault;

use self::account::Noun;
use crate::pipeline::{self, Arrival};
use crate::plane::Plane;
use reply::Reply;

/// Answers one request.
pub async fn route(plane: &Rc<Plane>, request: Request<Incoming>) -> Reply {
    if let Some(fault) = wrong_host(&request) {
        return refused(plane, &fault);
    }
    let path = request.uri().path();
    let Some(rest) = path
        .strip_prefix("/v1/")
        .or_else(|| path.strip_prefix("/api/v1/"))
    else {
        return not_found(plane, &request);
    };
    let get = request.method() == Method::GET;
    match rest {
        "chat/completions" if request.method() == Method::POST => pipeline::handle(plane, request).await,
        "chat/completions" => not_allowed(plane, &request, "POST"),
        "models" if get => models::list(plane, request.headers()),
        "models" => not_allowed(plane, &request, "GET"),
        "generation" if get => account::read(plane, request, Noun::Generation).await,
        "credits" if get => account::read(plane, request, Noun::Credits).await,
        "key" | "auth/key" if get => account::read(plane, request, Noun::Key).await,
        "activity" if get => account::read(plane, request, Noun::Activity).await,
        "analytics/meta" if get => account::read(plane, request, Noun::AnalyticsMeta).await,
        "analytics/query" if request.method() == Method::POST => {
            account::read(plane, request, Noun::Analytics).await
        }
        "analytics/query" => account::refused(plane, &wrong_method(&request, "POST")),
        "generation" | "credits" | "key" | "auth/key" | "activity" | "analytics/meta" => {
            account::refused(plane, &wrong_method(&request, "GET"))
        }
        _ => match rest.strip_prefix("models/") {
            Some(slug) if get => models::one(plane, request.headers(), slug),
            Some(_) => not_allowed(plane, &request, "GET"),
            None => not_found(plane, &request),
        },
    }
}

/// What a fault shows of a request's line.
fn short(text: &str) -> String {
    text.chars().take(256).collect()
}

/// Proxies that read one `Host` and hand on another are how requests reach what they should not. HTTP/1.1 wants exactly one (RFC 9112,
/// section 3.2); 1.0 may leave it out.
fn wrong_host(request: &Request<Incoming>) -> Option<Fault> {
    let detail = match request.headers().get_all(HOST).iter().count() {
        1 => return None,
        0 if request.version() <= Version::HTTP_10 => return None,
        0 => "is missing; HTTP/1.1 needs this header",
        _ => "occurs more than once; send this header once",
    };
    Some(Fault::InvalidField {
        field: "host".into(),
        detail: detail.into(),
    })
}

fn refused(plane: &Rc<Plane>, fault: &Fault) -> Reply {
    let id = Arrival::new(&plane.dice).request_id;
    reply::fault(fault, Some(&id), HeaderMap::new())
}

fn not_found(plane: &Rc<Plane>, request: &Request<Incoming>) -> Reply {
    let fault = Fault::RouteNotFound {
        method: short(request.method().as_str()),
        path: short(request.uri().path()),
    };
    refused(plane, &fault)
}

fn wrong_method(request: &Request<Incoming>, allow: &'static str) -> Fault {
    Fault::MethodNotAllowed {
        method: short(request.method().as_str()),
        path: short(request.uri().path()),
        allow,
    }
}

fn not_allowed(plane: &Rc<Plane>, request: &Request<Incoming>, allow: &'static str) -> Reply {
    let mut reply = refused(plane, &wrong_method(request, allow));
    reply::text(reply.headers_mut(), "allow", allow);
    reply
}
