//! Query parameters: each taken by name, and what is left over refused by name.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::http::Uri;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Textual;
use tollway_proto::admin::{PAGE_ROWS, PAGE_ROWS_MAX};

use super::fault::Fault;

/// Query parameters. Each is taken by name; what is left over is refused by name.
#[derive(Debug, Default)]
pub(crate) struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads them, each at most once.
    pub(crate) fn of(uri: &Uri) -> Result<Self, Fault> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
            Fault::new(
                ProblemCode::InvalidRequest,
                format!("the query cannot be read: {error}"),
            )
        })?;
        let mut params = BTreeMap::new();
        for (name, value) in pairs {
            if params.insert(name.clone(), value).is_some() {
                return Err(wrong_param(&name, "is given twice"));
            }
        }
        Ok(Self(params))
    }

    /// A parameter as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// A parameter that has a text form.
    pub(crate) fn take_text<T: Textual>(&mut self, name: &str) -> Result<Option<T>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(text) => T::read(&text).map(Some).map_err(|why| wrong_param(name, why)),
        }
    }

    /// A parameter that is a whole number.
    pub(crate) fn take_number(&mut self, name: &str) -> Result<Option<u64>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| wrong_param(name, format!("`{text}` is not a whole number"))),
        }
    }

    /// The page that is asked for.
    pub(crate) fn take_window(&mut self) -> Result<Window, Fault> {
        let limit = self.take_number("limit")?.unwrap_or(PAGE_ROWS as u64);
        let limit = usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=PAGE_ROWS_MAX).contains(limit))
            .ok_or_else(|| wrong_param("limit", format!("must be between 1 and {PAGE_ROWS_MAX}")))?;
        Ok(Window {
            limit,
            after: self.take("after"),
        })
    }

    /// Refuses what nobody has taken.
    pub(crate) fn done(&self) -> Result<(), Fault> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(wrong_param(name, "is not a parameter of this route")),
        }
    }
}

/// A parameter that is wrong.
pub(crate) fn wrong_param(name: &str, why: impl std::fmt::Display) -> Fault {
    Fault::at(
        ProblemCode::InvalidRequest,
        name,
        format!("query parameter `{name}`: {why}"),
    )
}

/// The page of a list that is asked for.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Most rows.
    pub(crate) limit: usize,
    /// Only what comes after this id.
    pub(crate) after: Option<String>,
}
