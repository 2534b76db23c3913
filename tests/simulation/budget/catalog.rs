//! What there is before the first step: a provider, two models at three endpoints, the tenants, the nodes.

use tollway_proto::command::{Admin, Command, Entry, InitCluster, JoinKind, JoinToken, NodeRecord, Role};
use tollway_shared::catalog::{AuthScheme, Dialect, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::cost::Prices;
use tollway_shared::ids::{
    AdminId, ApiKeyId, ClusterId, EndpointId, ModelId, NodeId, OrganizationId, PriceId, ProjectId,
    ProviderId, Region, TeamId,
};
use tollway_shared::labels::Labels;
use tollway_shared::money::Price;
use tollway_shared::seal::{Sealed, sha256};
use tollway_shared::tenant::{ApiKey, Organization, Project, Team, TenantPath};
use tollway_shared::time::UnixMillis;

use super::plan::{KEYS, NODES, Plan};

/// Endpoints, and what they charge per token at first: nano-dollars for the prompt, and for the answer.
pub(crate) const ENDPOINTS: [(i64, i64); 3] = [(1_000, 4_000), (1_500, 5_000), (500, 2_000)];

pub(crate) fn provider() -> ProviderId {
    ProviderId::trusted("p")
}

/// Whose a key is.
pub(crate) fn path(key: usize) -> TenantPath {
    let in_team = key < KEYS / 2;
    TenantPath {
        organization: OrganizationId::trusted("o"),
        team: in_team.then(|| TeamId::trusted("t")),
        project: ProjectId::trusted(if in_team { "j0" } else { "j1" }),
        key: ApiKeyId::trusted(format!("k{key}")),
    }
}

pub(crate) fn node(n: usize) -> NodeId {
    NodeId::trusted(format!("n{n}"))
}

/// A version of an endpoint's price.
pub(crate) fn price(endpoint: usize, version: u32, from: UnixMillis, (input, output): (i64, i64)) -> Command {
    Command::AddPrice(PriceVersion {
        id: PriceId::trusted(format!("price-{endpoint}-{version}")),
        endpoint: EndpointId::trusted(format!("p/e{endpoint}")),
        effective_from: from,
        prices: Prices::flat(Price(input * 1_000_000), Price(output * 1_000_000)),
    })
}

/// The first entries of the log.
pub(crate) fn entries(plan: &Plan) -> Vec<Entry> {
    let at = plan.begin.plus_ms(-1_000);
    let mut commands = fixed(at);
    for (number, first) in ENDPOINTS.iter().enumerate() {
        let model = ModelId::trusted(if number < 2 { "sim/m0" } else { "sim/m1" });
        commands.push(Command::PutEndpoint(Endpoint {
            id: EndpointId::trusted(format!("p/e{number}")),
            model,
            provider: provider(),
            upstream_model: "m".into(),
            region: None,
            max_output_tokens: None,
            rank: 0,
            on_disconnect: None,
            enabled: true,
        }));
        commands.push(price(number, 0, UnixMillis(0), *first));
    }
    for key in 0..KEYS {
        let path = path(key);
        commands.push(Command::CreateKey(ApiKey {
            id: path.key.clone(),
            project: path.project,
            name: "key".into(),
            digest: sha256(path.key.as_str().as_bytes()),
            pepper_version: 1,
            last4: "wxyz".into(),
            models: vec![],
            created_at: at,
            expires_at: None,
            revoked_at: None,
            rotated_from: None,
            labels: Labels::new(),
        }));
    }
    for n in 0..NODES {
        let digest = [n as u8; 32];
        commands.push(Command::CreateJoinToken(JoinToken {
            digest,
            kind: JoinKind::Node(Region::trusted("eu")),
            expires_at: at.plus_ms(60_000),
        }));
        commands.push(Command::Join {
            token: digest,
            node: Some(NodeRecord {
                id: node(n),
                region: Region::trusted("eu"),
                joined_at: at,
            }),
        });
    }
    for budget in &plan.budgets {
        let window = budget.terms.cycle.span(at).ok();
        let mut put: tollway_proto::command::PutBudget = budget.clone().into();
        put.window = window;
        commands.push(Command::PutBudget(put));
    }
    let entry = |command| Entry {
        at,
        actor: "root".into(),
        idempotency: None,
        if_revision: None,
        command,
    };
    commands.into_iter().map(entry).collect()
}

fn fixed(at: UnixMillis) -> Vec<Command> {
    let admin = Admin {
        id: AdminId::trusted("root"),
        name: "root".into(),
        role: Role::Owner,
        digest: [9; 32],
        pepper_version: 1,
        last4: "root".into(),
        created_at: at,
    };
    let authority_key = Sealed {
        nonce: [0; 12],
        ciphertext: vec![1, 2, 3],
    };
    let model = |id: &str| {
        Command::PutModel(Model {
            id: ModelId::trusted(id),
            name: "M".into(),
            description: String::new(),
            context_tokens: 8_192,
            created_at: at,
        })
    };
    let project = |id: &str, team: Option<&str>| {
        Command::PutProject(Project {
            id: ProjectId::trusted(id),
            organization: OrganizationId::trusted("o"),
            team: team.map(TeamId::trusted),
            name: id.into(),
            enabled: true,
            labels: Labels::new(),
        })
    };
    vec![
        Command::InitCluster(InitCluster {
            cluster: ClusterId::trusted("simulation"),
            authority_pem: "pem".into(),
            authority_key,
            admin,
        }),
        Command::PutProvider(Provider {
            id: provider(),
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
        model("sim/m0"),
        model("sim/m1"),
        Command::PutOrganization(Organization {
            id: OrganizationId::trusted("o"),
            name: "O".into(),
            enabled: true,
            adjustment_bps: 0,
        }),
        Command::PutTeam(Team {
            id: TeamId::trusted("t"),
            organization: OrganizationId::trusted("o"),
            name: "T".into(),
        }),
        project("j0", Some("t")),
        project("j1", None),
    ]
}
