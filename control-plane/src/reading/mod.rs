//! What tenants read of their own usage: the gRPC service `tollway.push.v1.Account`, asked by nodes on behalf of an API key.
//!
//! Nothing changes by it. A key reads the usage of its project and the credit of its organization; whose a key is says the replicated
//! state, whatever a node says.
//!
//! | file | what |
//! |---|---|
//! | [`generation`] | one request, out of the billing store |
//! | [`sums`] | sums by any fields, out of the billing store |
//! | [`credits`] | pure: an organization's credit |
//! | [`key`] | a key's budgets, quota and usage |

pub mod credits;
pub mod generation;
pub mod key;
pub mod sums;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tollway_proto::push::v1::account_server::{Account, AccountServer};
use tollway_proto::push::v1::read_reply::Answer;
use tollway_proto::push::v1::read_request::Question;
use tollway_proto::push::v1::{ReadReply, ReadRequest, ReadSource};
use tollway_shared::ids::{ApiKeyId, OrganizationId, ProjectId};
use tollway_shared::tenant::{TenantPath, line};
use tollway_shared::time::UnixMillis;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use crate::billing::{Billing, StoreFault};
use crate::identity::admit::{OnlyNodes, peer};
use crate::publish::Publisher;
use crate::state::State;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(4);

/// Answers what tenants read.
#[derive(Clone)]
pub struct Reading {
    states: watch::Receiver<Arc<State>>,
    billing: Billing,
    now: fn() -> UnixMillis,
}

/// Who reads: a key, with all that it may see.
#[derive(Debug)]
pub struct Reader {
    /// Its tenant path.
    pub path: TenantPath,
    /// The key and those that it came from by rotation, the newest first.
    pub keys: Vec<ApiKeyId>,
}

impl Reader {
    /// Finds the key. A replica that does not know it may only be behind.
    fn find(state: &State, key: &str) -> Result<Self, Status> {
        let unknown = || Status::unavailable("this replica does not know the API key; ask another one");
        let id = ApiKeyId::parse(key)
            .map_err(|_| Status::invalid_argument("`key` is not the id of an API key"))?;
        let key = &state.keys.get(&id).ok_or_else(unknown)?.value;
        let project = &state.projects.get(&key.project).ok_or_else(unknown)?.value;
        let before = |key: &ApiKeyId| {
            state
                .keys
                .get(key)
                .and_then(|kept| kept.value.rotated_from.clone())
        };
        Ok(Self {
            path: TenantPath {
                organization: project.organization.clone(),
                team: project.team.clone(),
                project: project.id.clone(),
                key: id.clone(),
            },
            keys: line(id, before).collect(),
        })
    }

    /// Its organization.
    pub fn organization(&self) -> &OrganizationId {
        &self.path.organization
    }

    /// Its project.
    pub fn project(&self) -> &ProjectId {
        &self.path.project
    }
}

impl Reading {
    /// Answers from these states and this store.
    pub fn new(states: watch::Receiver<Arc<State>>, billing: Billing, now: fn() -> UnixMillis) -> Self {
        Self { states, billing, now }
    }

    /// The service to serve on the peer port; `publisher` knows which nodes are registered.
    pub fn service(
        self,
        publisher: Publisher,
    ) -> InterceptedService<AccountServer<AccountService>, OnlyNodes> {
        let service = AccountService {
            reading: self,
            publisher,
        };
        InterceptedService::new(AccountServer::new(service), OnlyNodes)
    }

    /// Answers one question.
    pub async fn answer(&self, request: ReadRequest) -> Result<ReadReply, Status> {
        let state = self.states.borrow().clone();
        let reader = Reader::find(&state, &request.key)?;
        let question = request
            .question
            .ok_or_else(|| Status::invalid_argument("`question` is missing"))?;
        // Ahead of the answer, which may have more.
        let as_of = self.as_of();
        let answering = async {
            Ok::<_, Status>(match question {
                Question::Generation(question) => {
                    let found = generation::find(&self.billing, &reader, &question.request_id).await?;
                    (ReadSource::Billing, Answer::Generation(found))
                }
                Question::Credits(_) => (
                    ReadSource::State,
                    Answer::Credits(credits::of(&state, reader.organization())),
                ),
                Question::ThisKey(_) => {
                    let (source, found) = key::standing(&self.billing, &state, &reader, (self.now)()).await?;
                    (source, Answer::ThisKey(found))
                }
                Question::Sums(question) => {
                    let found = sums::sums(&self.billing, &reader, &question).await?;
                    (ReadSource::Billing, Answer::Sums(found))
                }
            })
        };
        let answered = tokio::time::timeout(WITHIN, answering).await;
        let (source, answer) =
            answered.map_err(|_| Status::deadline_exceeded("the answer takes too long"))??;
        Ok(ReadReply {
            source: source.into(),
            as_of: as_of.filter(|_| source == ReadSource::Billing).map(|at| at.0),
            answer: Some(answer),
        })
    }

    /// An instant of which all usage is in the store.
    fn as_of(&self) -> Option<UnixMillis> {
        let fresh = self.billing.freshness();
        let each: Option<Vec<UnixMillis>> = fresh.values().map(crate::billing::Freshness::as_of).collect();
        each?.into_iter().min()
    }
}

/// The gRPC service.
pub struct AccountService {
    reading: Reading,
    publisher: Publisher,
}

#[tonic::async_trait]
impl Account for AccountService {
    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadReply>, Status> {
        self.publisher.vouches(peer(&request)?).await?;
        self.reading.answer(request.into_inner()).await.map(Response::new)
    }
}

/// What a store's fault means to whoever asks.
pub(crate) fn unread(fault: &StoreFault) -> Status {
    match fault {
        StoreFault::Many => Status::out_of_range("that is more than one answer holds; ask for less"),
        StoreFault::Slow => {
            Status::deadline_exceeded("the billing store did not answer in time; ask for less")
        }
        fault => {
            tracing::warn!(error = %fault, "the billing store cannot be read for a tenant");
            Status::unavailable("the billing store of this replica cannot be read; ask another one")
        }
    }
}
