//! The OpenAPI document, made from the handlers, and the page that shows it.
//!
//! Owns what holds for every route: parameters that many have, and the refusals that any may give. The document
//! that is stored under `specs/` is this one, and a test says so; `make openapi` writes it anew.

use super::Gateway;
use super::problem::{Document, MEDIA_TYPE};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder, Schema, response};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi};

/// All of `/v1`. The probes speak text, to machines that know them, and are not in it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "FlareDB",
        description = "A distributed key-value store where every namespace chooses strong or eventual consistency. \
            Values are raw bodies, keys percent-encoded bytes, numbers of 64 bits decimal text. Refusals are \
            `application/problem+json` with the reasons of the gRPC interface.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    paths(
        super::kv::get,
        super::kv::put,
        super::kv::delete,
        super::listing::list,
        super::namespaces::list,
        super::namespaces::create,
        super::namespaces::describe,
        super::namespaces::replace,
        super::namespaces::change,
        super::namespaces::delete,
        super::namespaces::replication,
        super::modes::show,
        super::modes::switch,
        super::modes::cancel,
        super::conflicts::list,
        super::conflicts::restore,
        super::cluster::show,
    ),
    components(schemas(Document)),
    modifiers(&Common),
    tags(
        (name = "kv", description = "Keys and values"),
        (name = "namespaces", description = "Namespaces, their policies, and who holds what of them"),
        (name = "modes", description = "Strong or eventual, switched while they are used"),
        (name = "conflicts", description = "Eventual writes that lost"),
        (name = "cluster", description = "Stores and regions"),
    )
)]
pub(super) struct Api;

/// The address names a namespace.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes a parameter, which `Call` reads")]
pub(super) struct NamespacePath {
    /// The namespace: 1 to 64 of `a-z 0-9 _ . -`, starting with a letter
    #[param(
        pattern = "^[a-z][a-z0-9_.-]{0,63}$",
        max_length = 64,
        example = "default"
    )]
    ns: String,
}

/// The address names a namespace and a key.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes parameters, which `Call` reads")]
pub(super) struct KeyPath {
    /// The namespace: 1 to 64 of `a-z 0-9 _ . -`, starting with a letter
    #[param(
        pattern = "^[a-z][a-z0-9_.-]{0,63}$",
        max_length = 64,
        example = "default"
    )]
    ns: String,
    /// The key: any bytes, percent-encoded. A slash may be written as `%2F` or as it is
    #[param(min_length = 1, max_length = 4096, example = "greeting")]
    key: String,
}

/// A write may bring an id.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes a header, which `Call` reads")]
pub(super) struct RequestIdHeader {
    /// Makes a repeat safe: at most 64 bytes; UUIDs of version 7 are best
    #[param(rename = "FlareDB-Request-Id", pattern = "^[!-~]{0,64}$")]
    request_id: Option<String>,
}

/// A request may belong to a session.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes a header, which `Call` reads")]
pub(super) struct SessionHeader {
    /// What an earlier answer's header of that name held, unread: this request sees at least what that one saw
    #[param(rename = "FlareDB-Session")]
    session: Option<String>,
}

/// What any route may answer instead.
pub(super) struct Refusals;

/// Status and what it means.
const REFUSALS: [(u16, &str); 11] = [
    (400, "INVALID_ARGUMENT: `field` says what is wrong"),
    (
        408,
        "The body did not arrive within `consistency.request_timeout`",
    ),
    (
        409,
        "The state of the namespace or the cluster is against it: WRONG_MODE, ALREADY_EXISTS, SWITCH_IN_PROGRESS, CLOCK_SKEW, ...",
    ),
    (
        414,
        "The address is longer than 65534 bytes; this comes without a body",
    ),
    (429, "OVERLOADED or QUOTA_EXCEEDED"),
    (
        431,
        "The headers are too long or too many; this comes without a body",
    ),
    (500, "CORRUPTION, or a defect"),
    (501, "UNIMPLEMENTED in this version"),
    (
        503,
        "Not now: NO_QUORUM, NOT_READY, MODE_SWITCHING, ... `Retry-After` comes only where a repeat is safe",
    ),
    (504, "DEADLINE_EXCEEDED"),
    (507, "NO_SPACE: the disk is full"),
];

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<response::Response>> {
        let refusals = REFUSALS.into_iter().map(|(status, _)| {
            let reference = Ref::from_response_name(format!("Refusal{status}"));
            (status.to_string(), RefOr::Ref(reference))
        });
        refusals.collect()
    }
}

/// What the macros cannot say.
struct Common;

impl Modify for Common {
    fn modify(&self, api: &mut openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        for (status, meaning) in REFUSALS {
            let mut response = ResponseBuilder::new().description(meaning);
            // What the HTTP library refuses before any of this sees it.
            if !matches!(status, 414 | 431) {
                let schema = Ref::from_schema_name("Problem");
                let content = ContentBuilder::new().schema(Some(schema)).build();
                response = response.content(MEDIA_TYPE, content);
            }
            let responses = &mut components.responses;
            responses.insert(format!("Refusal{status}"), RefOr::T(response.build()));
        }
        let operations = api.paths.paths.values_mut().flat_map(|item| {
            [
                &mut item.get,
                &mut item.put,
                &mut item.post,
                &mut item.patch,
                &mut item.delete,
            ]
        });
        let parameters = operations
            .flatten()
            .flat_map(|operation| operation.parameters.iter_mut().flatten());
        for parameter in parameters {
            // A parameter that is optional is left out; there is no null in an address or a header.
            if let RefOr::T(parameter) = parameter
                && let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema
                && let SchemaType::Array(types) = &object.schema_type
                && let Some(one) = types.iter().find(|one| **one != Type::Null)
            {
                object.schema_type = SchemaType::Type(one.clone());
            }
        }
    }
}

/// The document.
pub(super) fn text() -> String {
    // Nothing in it can fail to be JSON; a document that is not there is found by the first who looks.
    let mut text = Api::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// `/openapi.json`.
pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text()).into_response()
}

/// `/docs`: one page that holds all that it needs, so it works without the internet, too.
pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        // It runs its own script and asks this store, and nothing else.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    (headers, include_str!("docs.html")).into_response()
}

impl Gateway {
    /// What `/openapi.json` answers.
    pub fn openapi() -> String {
        text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const STORED: &str = "../specs/003-kvs-consistency/contracts/openapi.json";

    #[test]
    fn the_stored_document_is_the_one_that_the_code_makes() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(STORED);
        if std::env::var_os("WRITE_OPENAPI").is_some() {
            std::fs::write(&path, text()).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == text(),
            "specs/003-kvs-consistency/contracts/openapi.json is not what the code makes: run `make openapi`"
        );
    }

    /// A namespace can be deleted under any request, also one that would create it.
    #[test]
    fn every_route_of_a_namespace_says_that_it_may_not_be_there() {
        let document: serde_json::Value = serde_json::from_str(&text()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for (path, methods) in paths.iter().filter(|(path, _)| path.contains("{ns}")) {
            for (method, operation) in methods.as_object().unwrap() {
                let answers = &operation["responses"];
                assert!(answers["404"].is_object(), "{method} {path}");
            }
        }
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document: serde_json::Value = serde_json::from_str(&text()).unwrap();
        fn references(value: &serde_json::Value, found: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(fields) => {
                    for (name, value) in fields {
                        if let ("$ref", Some(to)) = (name.as_str(), value.as_str()) {
                            found.push(to.to_owned());
                        }
                        references(value, found);
                    }
                }
                serde_json::Value::Array(items) => {
                    items.iter().for_each(|item| references(item, found));
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
