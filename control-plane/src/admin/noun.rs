//! The nouns that are made, replaced, read and removed alike: one declaration each, four handlers for all.
//!
//! [`shown`] declares how a noun is read; [`replaced`] that, the bodies and commands that change it, and its four routes.

use std::ops::Bound;

use imbl::OrdMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tollway_proto::admin::text::Textual;
use tollway_proto::admin::{Page, Removed};
use tollway_proto::command::Command;
use tollway_shared::time::UnixMillis;

use super::Api;
use super::exchange::{Answer, Head, Read, Write, path_id};
use super::fault::Fault;
use super::params::{Window, wrong_param};
use crate::clock;
use crate::state::{Kept, State};

/// What a list can be filtered by.
pub(crate) struct Filter<T> {
    /// The query parameter.
    pub(crate) name: &'static str,
    /// Says what is wrong with a value that no record can have.
    pub(crate) check: fn(&str) -> Result<(), String>,
    /// A record's value.
    pub(crate) of: fn(&T) -> Option<&str>,
}

/// The check of a filter by an id.
pub(crate) fn an_id<T: Textual>(text: &str) -> Result<(), String> {
    T::read(text).map(|_| ())
}

/// How one noun is read.
pub(crate) trait Noun {
    /// Its id.
    type Id: Textual + Ord + Clone + ToString;
    /// Its record.
    type Stored: Clone + 'static;
    /// Its record as it is shown.
    type View: Serialize;
    /// What it is called in refusals.
    const NAME: &'static str;
    /// What its list can be filtered by.
    const FILTERS: &'static [Filter<Self::Stored>];

    /// Where its records are.
    fn records(state: &State) -> &OrdMap<Self::Id, Kept<Self::Stored>>;
    /// How a record is shown.
    fn view(state: &State, kept: &Kept<Self::Stored>, now: UnixMillis) -> Self::View;
}

/// A noun whose caller chooses the id, and makes, replaces and removes it.
pub(crate) trait Replaced: Noun {
    /// The body that makes or replaces it.
    type Put: DeserializeOwned + Serialize;

    /// The record that a body makes.
    fn stored(put: Self::Put, id: Self::Id, state: &State, now: UnixMillis) -> Result<Self::Stored, Fault>;
    /// The command that puts a record.
    fn put(stored: Self::Stored) -> Command;
    /// The command that removes a record.
    fn remove(id: Self::Id) -> Command;
}

/// Makes or replaces.
pub(crate) async fn put<N: Replaced>(
    api: &Api,
    id: &str,
    write: Write<N::Put>,
) -> Result<Answer<N::View>, Fault> {
    let id: N::Id = path_id("id", id)?;
    let now = clock::now();
    let stored = N::stored(write.body, id, &api.state(), now)?;
    let receipt = api.write(write.head, N::put(stored.clone())).await?;
    let kept = Kept {
        value: stored,
        revision: receipt.revision,
    };
    let state = api.after(&receipt).await;
    Ok(Answer::of(receipt.revision, N::view(&state, &kept, now)))
}

/// Reads one.
pub(crate) async fn get<N: Noun>(api: &Api, id: &str, read: Read) -> Result<Answer<N::View>, Fault> {
    let id: N::Id = path_id("id", id)?;
    let seen = read.seen(api).await?;
    let kept = N::records(&seen.state)
        .get(&id)
        .ok_or_else(|| Fault::not_found(N::NAME, id.to_string()))?;
    Ok(seen.answer(N::view(&seen.state, kept, clock::now())))
}

/// Reads a page.
pub(crate) async fn list<N: Noun>(api: &Api, mut read: Read) -> Result<Answer<Page<N::View>>, Fault> {
    let window = read.params.take_window()?;
    let mut wanted = Vec::new();
    for filter in N::FILTERS {
        if let Some(value) = read.params.take(filter.name) {
            (filter.check)(&value).map_err(|why| wrong_param(filter.name, why))?;
            wanted.push((filter.of, value));
        }
    }
    let seen = read.seen(api).await?;
    let now = clock::now();
    let (data, next) = page(
        N::records(&seen.state),
        &window,
        |kept| {
            wanted
                .iter()
                .all(|(of, value)| of(&kept.value) == Some(value.as_str()))
        },
        |_, kept| N::view(&seen.state, kept, now),
    )?;
    let revision = seen.state.revision.0;
    Ok(seen.answer(Page { data, next, revision }))
}

/// Removes.
pub(crate) async fn delete<N: Replaced>(api: &Api, id: &str, head: Head) -> Result<Answer<Removed>, Fault> {
    let id: N::Id = path_id("id", id)?;
    removed(api, head, id.to_string(), N::remove(id)).await
}

/// Proposes a removal.
pub(crate) async fn removed(
    api: &Api,
    head: Head,
    id: String,
    command: Command,
) -> Result<Answer<Removed>, Fault> {
    let receipt = api.write(head, command).await?;
    let revision = receipt.revision.0;
    Ok(Answer::of(receipt.revision, Removed { id, revision }))
}

/// A page of a map, and where the next one starts.
pub(crate) fn page<K, V, T>(
    map: &OrdMap<K, V>,
    window: &Window,
    wanted: impl Fn(&V) -> bool,
    view: impl Fn(&K, &V) -> T,
) -> Result<(Vec<T>, Option<String>), Fault>
where
    K: Textual + Ord + Clone + ToString,
    V: Clone,
{
    let start = match &window.after {
        None => Bound::Unbounded,
        Some(after) => Bound::Excluded(K::read(after).map_err(|why| wrong_param("after", why))?),
    };
    let mut rows = map
        .range((start, Bound::Unbounded))
        .filter(|(_, value)| wanted(value));
    let mut data = Vec::new();
    let mut last = None;
    for (key, value) in rows.by_ref().take(window.limit) {
        data.push(view(key, value));
        last = Some(key.to_string());
    }
    let more = rows.next().is_some();
    Ok((data, last.filter(|_| more)))
}

/// The second of its expressions where a declaration gives one, else the first.
macro_rules! own_or_given {
    ($own:expr) => {
        $own
    };
    ($own:expr, $given:expr) => {
        $given
    };
}
pub(crate) use own_or_given;

/// Declares how a noun is read. `view … = f` shows it by `f` instead of the view's own `of`.
macro_rules! shown {
    ($noun:ident in $records:ident: $name:literal, records $id:ty => $stored:ty, view $view:ty $(= $shown:path)?,
     filters [$(($filter:literal, $check:expr, $of:expr)),*]) => {
        impl $crate::admin::noun::Noun for $noun {
            type Id = $id;
            type Stored = $stored;
            type View = $view;
            const NAME: &'static str = $name;
            const FILTERS: &'static [$crate::admin::noun::Filter<$stored>] =
                &[$($crate::admin::noun::Filter { name: $filter, check: $check, of: $of }),*];

            fn records(state: &$crate::state::State) -> &imbl::OrdMap<$id, $crate::state::Kept<$stored>> {
                &state.$records
            }

            fn view(
                _state: &$crate::state::State,
                kept: &$crate::state::Kept<$stored>,
                _now: tollway_shared::time::UnixMillis,
            ) -> $view {
                $crate::admin::noun::own_or_given!(<$view>::of(&kept.value, kept.revision) $(, $shown(_state, kept, _now))?)
            }
        }
    };
}
pub(crate) use shown;

/// Declares a noun that its caller makes and replaces, with its routes: all of it stands in module `$module`, which is also
/// what its records are called in the state. `put … = f` makes the record by `f` instead of the body's own `into_stored`.
macro_rules! replaced {
    ($module:ident: $name:literal, tag $tag:literal, one $one:literal, list $list:literal,
     records $id:ty => $stored:ty, view $view:ty $(= $shown:path)?, put $put:ty $(= $made:path)?,
     commands $set:ident $unset:ident, filters [$(($filter:literal, $check:expr, $of:expr)),*]) => {
        mod $module {
            use std::sync::Arc;

            use axum::extract::{Path, State as Shared};
            use tollway_proto::admin::{Page, Removed};
            use tollway_proto::command::Command;
            use tollway_shared::time::UnixMillis;
            use utoipa_axum::router::OpenApiRouter;
            use utoipa_axum::routes;

            use super::*;
            use crate::admin::exchange::{Answer, Read, Write};
            use crate::admin::fault::Fault;
            use crate::admin::{Api, Nothing, noun};
            use crate::state::State;

            struct This;

            noun::shown!(This in $module: $name, records $id => $stored, view $view $(= $shown)?,
                filters [$(($filter, $check, $of)),*]);

            impl noun::Replaced for This {
                type Put = $put;

                fn stored(put: $put, id: $id, _state: &State, _now: UnixMillis) -> Result<$stored, Fault> {
                    noun::own_or_given!(Ok(put.into_stored(id)) $(, $made(put, id, _state, _now))?)
                }

                fn put(stored: $stored) -> Command {
                    Command::$set(stored.into())
                }

                fn remove(id: $id) -> Command {
                    Command::$unset(id)
                }
            }

            /// Lists.
            #[utoipa::path(get, path = $list, tag = $tag, params($(($filter = Option<String>, Query)),*),
                responses((status = 200, body = Page<$view>)),
                security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
            async fn list(Shared(api): Shared<Arc<Api>>, read: Read) -> Result<Answer<Page<$view>>, Fault> {
                noun::list::<This>(&api, read).await
            }

            /// Reads one.
            #[utoipa::path(get, path = $one, tag = $tag, params(("id" = String, Path)),
                responses((status = 200, body = $view)),
                security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
            async fn get(
                Shared(api): Shared<Arc<Api>>,
                Path(id): Path<String>,
                read: Read,
            ) -> Result<Answer<$view>, Fault> {
                noun::get::<This>(&api, &id, read).await
            }

            /// Makes or replaces one.
            #[utoipa::path(put, path = $one, tag = $tag, params(("id" = String, Path)), request_body = $put,
                responses((status = 200, body = $view)), security(("admin_key" = ["owner", "admin"])))]
            async fn put(
                Shared(api): Shared<Arc<Api>>,
                Path(id): Path<String>,
                write: Write<$put>,
            ) -> Result<Answer<$view>, Fault> {
                noun::put::<This>(&api, &id, write).await
            }

            /// Removes one that nothing refers to.
            #[utoipa::path(delete, path = $one, tag = $tag, params(("id" = String, Path)),
                responses((status = 200, body = Removed)), security(("admin_key" = ["owner", "admin"])))]
            async fn delete(
                Shared(api): Shared<Arc<Api>>,
                Path(id): Path<String>,
                write: Write<Nothing>,
            ) -> Result<Answer<Removed>, Fault> {
                noun::delete::<This>(&api, &id, write.head).await
            }

            /// The routes.
            pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
                OpenApiRouter::new().routes(routes!(list)).routes(routes!(get, put, delete))
            }
        }
    };
}
pub(crate) use replaced;
