//! What the simulated cluster is about: the first commands, and the commands of clients.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use tollway_control::raft::{Cluster, Proposal};
use tollway_control::state::State;
use tollway_proto::command::{Admin, Command, InitCluster, Outcome, Role};
use tollway_shared::budget::terms::Terms;
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::catalog::{AuthScheme, Dialect, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::cost::Prices;
use tollway_shared::ids::{
    AdminId, ApiKeyId, BudgetId, ClusterId, EndpointId, ModelId, OrganizationId, PriceId, ProjectId,
    ProviderId, Revision,
};
use tollway_shared::labels::Labels;
use tollway_shared::money::{NanoUsd, Price};
use tollway_shared::seal::Sealed;
use tollway_shared::snapshot::{ResourceKey, ResourceKind};
use tollway_shared::tenant::{ApiKey, Organization, Project};
use tollway_shared::time::{DAY_MS, Period};

use crate::replicas::BEGIN;
use crate::world::World;

/// Models that clients write to; each is a register whose description is the last value written.
const MODELS: u32 = 6;

/// Proposes what everything else refers to.
pub(crate) async fn seed(world: &World, cluster: &Cluster) {
    for command in first_commands() {
        let name = command.name();
        loop {
            match cluster.propose(Proposal::system(command.clone())).await {
                Ok(Outcome::Done(_)) => break,
                Ok(Outcome::Refused(refusal)) => return world.broken("heals", format!("{name}: {refusal}")),
                Err(fault) => world.trace.note(&format!("{name}: {fault}")),
            }
        }
    }
}

fn first_commands() -> Vec<Command> {
    let admin = Admin {
        id: AdminId::trusted("root"),
        name: "root".into(),
        role: Role::Owner,
        digest: [9; 32],
        pepper_version: 1,
        last4: "root".into(),
        created_at: BEGIN,
    };
    let authority_key = Sealed {
        nonce: [0; 12],
        ciphertext: vec![1, 2, 3],
    };
    vec![
        Command::InitCluster(InitCluster {
            cluster: ClusterId::trusted("simulation"),
            authority_pem: "pem".into(),
            authority_key,
            admin,
        }),
        Command::PutProvider(Provider {
            id: ProviderId::trusted("p"),
            name: "P".into(),
            dialect: Dialect::OpenAi,
            base_url: "https://api.example.com/v1".into(),
            auth: AuthScheme::Bearer,
            private_network: false,
            stream_usage: true,
            output_cap: None,
            bills_after_cancel: false,
            on_disconnect: None,
            connect_timeout_ms: 1_000,
            first_byte_timeout_ms: 1_000,
            idle_timeout_ms: 1_000,
            enabled: true,
        }),
        model(0, "first"),
        endpoint(0, 0),
        Command::PutOrganization(organization("first")),
        Command::PutProject(Project {
            id: ProjectId::trusted("j"),
            organization: OrganizationId::trusted("o"),
            team: None,
            name: "J".into(),
            enabled: true,
            labels: Labels::new(),
        }),
    ]
}

fn model(number: u32, value: &str) -> Command {
    Command::PutModel(Model {
        id: ModelId::trusted(format!("sim/m{number}")),
        name: "M".into(),
        description: value.into(),
        context_tokens: 8_192,
        created_at: BEGIN,
    })
}

fn endpoint(number: u32, rank: u32) -> Command {
    Command::PutEndpoint(Endpoint {
        id: EndpointId::trusted(format!("p/e{number}")),
        model: ModelId::trusted("sim/m0"),
        provider: ProviderId::trusted("p"),
        upstream_model: "m".into(),
        region: None,
        max_output_tokens: None,
        on_disconnect: None,
        rank,
        enabled: true,
    })
}

fn organization(name: &str) -> Organization {
    Organization {
        id: OrganizationId::trusted("o"),
        name: name.into(),
        enabled: true,
        adjustment_bps: 0,
    }
}

/// What a client may want to write. `value` is unique in the run.
pub(crate) fn command(rng: &mut ChaCha8Rng, value: &str) -> Command {
    let number = rng.random_range(0..12u32);
    match rng.random_range(0..100) {
        0..50 => model(number % MODELS, value),
        50..58 => Command::PutOrganization(organization(value)),
        58..68 => Command::AddPrice(PriceVersion {
            id: PriceId::trusted(format!("price-{number}")),
            endpoint: EndpointId::trusted("p/e0"),
            effective_from: BEGIN.plus_ms(30 * DAY_MS),
            prices: Prices::flat(Price(rng.random_range(1..1_000_000)), Price(1)),
        }),
        68..72 => Command::RemovePrice(PriceId::trusted(format!("price-{number}"))),
        72..80 => Command::CreateKey(ApiKey {
            id: ApiKeyId::trusted(format!("key-{number}")),
            project: ProjectId::trusted("j"),
            name: value.into(),
            digest: tollway_shared::seal::sha256(format!("key-{number}").as_bytes()),
            pepper_version: 1,
            last4: "wxyz".into(),
            models: vec![],
            created_at: BEGIN,
            expires_at: None,
            revoked_at: None,
            rotated_from: None,
            labels: Labels::new(),
        }),
        80..85 => Command::RevokeKey(ApiKeyId::trusted(format!("key-{number}"))),
        85..92 => {
            let terms = Terms {
                cycle: Period::Monthly.into(),
                ..Terms::money(NanoUsd(rng.random_range(100_000_000..5_000_000_000)))
            };
            let budget = Budget {
                id: BudgetId::trusted(format!("budget-{}", number % 2)),
                scope: BudgetScope::Organization(OrganizationId::trusted("o")),
                model: None,
                terms,
            };
            Command::PutBudget(budget.into())
        }
        92..97 => endpoint(1 + number % 3, rng.random_range(0..5)),
        _ => Command::RemoveEndpoint(EndpointId::trusted(format!("p/e{}", 1 + number % 3))),
    }
}

/// The record that a write makes or replaces for good, so that it can be looked for afterwards. `None` for records that other
/// commands take away again.
pub(crate) fn register(command: &Command) -> Option<ResourceKey> {
    let (kind, id) = match command {
        Command::PutModel(model) => (ResourceKind::Model, model.id.text()),
        Command::PutOrganization(organization) => (ResourceKind::Organization, organization.id.text()),
        Command::CreateKey(key) => (ResourceKind::ApiKey, key.id.text()),
        Command::PutBudget(put) => (ResourceKind::Budget, put.budget.id.text()),
        _ => return None,
    };
    Some(ResourceKey { kind, id })
}

/// When a register was last written, in `state`.
pub(crate) fn written_at(state: &State, key: &ResourceKey) -> Option<Revision> {
    let id = key.id.clone();
    match key.kind {
        ResourceKind::Model => state.models.get(&ModelId::trusted(id)).map(|kept| kept.revision),
        ResourceKind::Organization => {
            let organizations = &state.organizations;
            organizations
                .get(&OrganizationId::trusted(id))
                .map(|kept| kept.revision)
        }
        ResourceKind::ApiKey => state.keys.get(&ApiKeyId::trusted(id)).map(|kept| kept.revision),
        ResourceKind::Budget => state
            .budgets
            .get(&BudgetId::trusted(id))
            .map(|kept| kept.revision),
        _ => None,
    }
}

/// Every register that is there.
pub(crate) fn registers(state: &State) -> Vec<ResourceKey> {
    let models = state.models.keys().map(|id| (ResourceKind::Model, id.text()));
    let organizations = state
        .organizations
        .keys()
        .map(|id| (ResourceKind::Organization, id.text()));
    let keys = state.keys.keys().map(|id| (ResourceKind::ApiKey, id.text()));
    let budgets = state.budgets.keys().map(|id| (ResourceKind::Budget, id.text()));
    let all = models.chain(organizations).chain(keys).chain(budgets);
    all.map(|(kind, id)| ResourceKey { kind, id }).collect()
}
