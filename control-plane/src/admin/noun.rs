//! The nouns that are made, replaced, read and removed alike: one description each, four handlers for all.

use std::ops::Bound;

use imbl::OrdMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tollway_proto::admin::text::Textual;
use tollway_proto::admin::{Page, Removed};
use tollway_proto::command::Command;
use tollway_shared::time::UnixMillis;

use super::Api;
use super::exchange::{Answer, Head, Read, Window, Write, path_id};
use super::fault::Fault;
use crate::clock;
use crate::state::{Kept, State};

/// A filter of a list: the parameter's name, and whether a record has its value.
pub(crate) type Filter<T> = (&'static str, fn(&T, &str) -> bool);

/// How one noun is stored and shown.
pub(crate) trait Noun {
    /// Its id.
    type Id: Textual + Ord + Clone + ToString;
    /// Its record.
    type Stored: Clone + 'static;
    /// The body that makes or replaces it.
    type Put: DeserializeOwned;
    /// Its record as it is shown.
    type View: Serialize;
    /// What it is called in refusals.
    const NAME: &'static str;
    /// What its list can be filtered by.
    const FILTERS: &'static [Filter<Self::Stored>];

    /// Where its records are.
    fn records(state: &State) -> &OrdMap<Self::Id, Kept<Self::Stored>>;
    /// The record that a body makes.
    fn stored(put: Self::Put, id: Self::Id, state: &State, now: UnixMillis) -> Self::Stored;
    /// How a record is shown.
    fn view(state: &State, kept: &Kept<Self::Stored>, now: UnixMillis) -> Self::View;
    /// The command that puts a record.
    fn put(stored: Self::Stored) -> Command;
    /// The command that removes a record.
    fn remove(id: Self::Id) -> Command;
}

/// Makes or replaces.
pub(crate) async fn put<N: Noun>(
    api: &Api,
    id: &str,
    write: Write<N::Put>,
) -> Result<Answer<N::View>, Fault> {
    let id: N::Id = path_id("id", id)?;
    let now = clock::now();
    let stored = N::stored(write.body, id, &api.cluster.state(), now);
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
    let wanted: Vec<_> = N::FILTERS
        .iter()
        .filter_map(|(name, has)| read.params.take(name).map(|value| (*has, value)))
        .collect();
    let seen = read.seen(api).await?;
    let now = clock::now();
    let (data, next) = page(
        N::records(&seen.state),
        &window,
        |kept| wanted.iter().all(|(has, value)| has(&kept.value, value)),
        |_, kept| N::view(&seen.state, kept, now),
    )?;
    let revision = seen.state.revision.0;
    Ok(seen.answer(Page { data, next, revision }))
}

/// Removes.
pub(crate) async fn delete<N: Noun>(api: &Api, id: &str, head: Head) -> Result<Answer<Removed>, Fault> {
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
        Some(after) => {
            Bound::Excluded(K::read(after).map_err(|why| super::exchange::wrong_param("after", why))?)
        }
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

/// Writes the four routes of a noun: `list` and `make` it with [`Noun`], documented for OpenAPI.
macro_rules! noun_routes {
    ($noun:ident in $module:ident, tag $tag:literal, one $one:literal, list $list:literal, roles [$($role:literal),*],
     put $put:ty, view $view:ty, filters [$($filter:literal),*]) => {
        pub(crate) mod $module {
            use super::*;
            use tollway_proto::admin::{Page, Removed};
            use utoipa_axum::router::OpenApiRouter;
            use utoipa_axum::routes;

            /// Lists.
            #[utoipa::path(get, path = $list, tag = $tag, params($(($filter = Option<String>, Query)),*),
                responses((status = 200, body = Page<$view>)),
                security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
            pub(crate) async fn list(
                axum::extract::State(api): axum::extract::State<std::sync::Arc<Api>>,
                read: Read,
            ) -> Result<Answer<Page<$view>>, Fault> {
                noun::list::<$noun>(&api, read).await
            }

            /// Reads one.
            #[utoipa::path(get, path = $one, tag = $tag, params(("id" = String, Path)),
                responses((status = 200, body = $view)),
                security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
            pub(crate) async fn get(
                axum::extract::State(api): axum::extract::State<std::sync::Arc<Api>>,
                axum::extract::Path(id): axum::extract::Path<String>,
                read: Read,
            ) -> Result<Answer<$view>, Fault> {
                noun::get::<$noun>(&api, &id, read).await
            }

            /// Makes or replaces one.
            #[utoipa::path(put, path = $one, tag = $tag, params(("id" = String, Path)), request_body = $put,
                responses((status = 200, body = $view)), security(("admin_key" = [$($role),*])))]
            pub(crate) async fn put(
                axum::extract::State(api): axum::extract::State<std::sync::Arc<Api>>,
                axum::extract::Path(id): axum::extract::Path<String>,
                write: Write<$put>,
            ) -> Result<Answer<$view>, Fault> {
                noun::put::<$noun>(&api, &id, write).await
            }

            /// Removes one that nothing refers to.
            #[utoipa::path(delete, path = $one, tag = $tag, params(("id" = String, Path)),
                responses((status = 200, body = Removed)), security(("admin_key" = [$($role),*])))]
            pub(crate) async fn delete(
                axum::extract::State(api): axum::extract::State<std::sync::Arc<Api>>,
                axum::extract::Path(id): axum::extract::Path<String>,
                write: Write<super::Nothing>,
            ) -> Result<Answer<Removed>, Fault> {
                noun::delete::<$noun>(&api, &id, write.head).await
            }

            /// The routes.
            pub(crate) fn routes() -> OpenApiRouter<std::sync::Arc<Api>> {
                OpenApiRouter::new().routes(routes!(list)).routes(routes!(get, put, delete))
            }
        }
    };
}
pub(crate) use noun_routes;
