//! A small state for tests: one provider, model, endpoint and price; one organization, project and key.

use tollway_proto::command::{
    Admin, Command, Entry, InitCluster, Outcome, PutBudget, RecordSpend, Role, Spent, UsageCell, UsageSums,
};
use tollway_shared::budget::terms::Terms;
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::catalog::{AuthScheme, Credential, Dialect, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::cost::Prices;
use tollway_shared::ids::*;
use tollway_shared::labels::Labels;
use tollway_shared::money::{NanoUsd, Price};
use tollway_shared::seal::Sealed;
use tollway_shared::tenant::{ApiKey, Organization, Project, TenantPath};
use tollway_shared::time::{Period, UnixMillis};
use tollway_shared::tokens::TokenCounts;

use super::{State, apply};

/// 2026-11-22T12:00:00Z.
pub(crate) const NOON: UnixMillis = UnixMillis(1_795_348_800_000);

/// Applies one command at the next index, as `root` at [`NOON`].
pub(crate) fn run(state: &mut State, command: Command) -> Outcome {
    run_at(state, NOON, command)
}

/// The same at another time.
pub(crate) fn run_at(state: &mut State, at: UnixMillis, command: Command) -> Outcome {
    let entry = Entry {
        at,
        actor: "root".into(),
        idempotency: None,
        if_revision: None,
        command,
    };
    let index = state.applied + 1;
    apply(state, index, &entry).outcome
}

/// What makes the sample state.
pub(crate) fn commands() -> Vec<Command> {
    let sealed = Sealed {
        nonce: [0; 12],
        ciphertext: vec![1, 2, 3],
    };
    let admin = Admin {
        id: AdminId::trusted("root"),
        name: "root".into(),
        role: Role::Owner,
        digest: [9; 32],
        pepper_version: 1,
        last4: "abcd".into(),
        created_at: NOON,
    };
    let cluster = ClusterId::trusted("c1");
    vec![
        Command::InitCluster(InitCluster {
            cluster,
            authority_pem: "pem".into(),
            authority_key: sealed.clone(),
            admin,
        }),
        Command::PutProvider(provider("https://api.example.com/v1")),
        Command::PutCredential(Credential {
            id: CredentialId::trusted("main"),
            provider: ProviderId::trusted("p"),
            version: 1,
            owner: None,
            regions: vec![],
            sealed,
            created_at: NOON,
        }),
        Command::PutModel(Model {
            id: ModelId::trusted("a/m"),
            name: "M".into(),
            description: String::new(),
            context_tokens: 8192,
            created_at: NOON,
        }),
        Command::PutEndpoint(Endpoint {
            id: EndpointId::trusted("p/a/m"),
            model: ModelId::trusted("a/m"),
            provider: ProviderId::trusted("p"),
            upstream_model: "m".into(),
            region: None,
            max_output_tokens: None,
            on_disconnect: None,
            rank: 0,
            enabled: true,
        }),
        Command::AddPrice(price("p1", 1, UnixMillis(0))),
        Command::PutOrganization(Organization {
            id: OrganizationId::trusted("o"),
            name: "O".into(),
            enabled: true,
            adjustment_bps: 0,
        }),
        Command::PutProject(Project {
            id: ProjectId::trusted("j"),
            organization: OrganizationId::trusted("o"),
            team: None,
            name: "J".into(),
            enabled: true,
            labels: Labels::new(),
        }),
        Command::CreateKey(api_key("k", 1)),
    ]
}

/// The sample state.
pub(crate) fn catalog() -> State {
    let mut state = State::default();
    for command in commands() {
        let name = command.name();
        let outcome = run(&mut state, command);
        assert!(matches!(outcome, Outcome::Done(_)), "{name}: {outcome:?}");
    }
    state
}

pub(crate) fn provider(base_url: &str) -> Provider {
    Provider {
        id: ProviderId::trusted("p"),
        name: "P".into(),
        dialect: Dialect::OpenAi,
        base_url: base_url.into(),
        auth: AuthScheme::Bearer,
        private_network: false,
        stream_usage: true,
        output_cap: None,
        bills_after_cancel: false,
        on_disconnect: None,
        connect_timeout_ms: 1000,
        first_byte_timeout_ms: 1000,
        idle_timeout_ms: 1000,
        enabled: true,
    }
}

pub(crate) fn price(id: &str, dollars: i64, effective_from: UnixMillis) -> PriceVersion {
    PriceVersion {
        id: PriceId::trusted(id),
        endpoint: EndpointId::trusted("p/a/m"),
        effective_from,
        prices: Prices::flat(Price(dollars * 1_000_000_000), Price(dollars * 2_000_000_000)),
    }
}

pub(crate) fn api_key(id: &str, digest: u8) -> ApiKey {
    ApiKey {
        id: ApiKeyId::trusted(id),
        project: ProjectId::trusted("j"),
        name: id.into(),
        digest: [digest; 32],
        pepper_version: 1,
        last4: "wxyz".into(),
        models: vec![],
        created_at: NOON,
        expires_at: None,
        revoked_at: None,
        rotated_from: None,
        labels: Labels::new(),
    }
}

/// A hard monthly budget of organization `o`, in the window around [`NOON`].
pub(crate) fn budget(limit: i64) -> PutBudget {
    budget_for(limit, Period::Monthly)
}

/// The same for another period.
pub(crate) fn budget_for(limit: i64, period: Period) -> PutBudget {
    let terms = Terms {
        cycle: period.into(),
        ..Terms::money(NanoUsd(limit))
    };
    put_budget(Budget {
        id: BudgetId::trusted("b"),
        scope: BudgetScope::Organization(OrganizationId::trusted("o")),
        model: None,
        terms,
    })
}

/// Puts in what the leader would at [`NOON`].
pub(crate) fn put_budget(budget: Budget) -> PutBudget {
    PutBudget {
        window: budget.terms.cycle.span(NOON).ok(),
        budget,
    }
}

/// A stretch of one request that cost `cost` nano-dollars.
pub(crate) fn spend(from: i64, to: i64, cost: i64) -> RecordSpend {
    let path = TenantPath {
        organization: OrganizationId::trusted("o"),
        team: None,
        project: ProjectId::trusted("j"),
        key: ApiKeyId::trusted("k"),
    };
    let cell = UsageCell {
        day: NOON.day(),
        path,
        model: ModelId::trusted("a/m"),
        provider: ProviderId::trusted("p"),
    };
    let tokens = TokenCounts {
        input: 3,
        output: 4,
        ..TokenCounts::default()
    };
    let sums = UsageSums {
        requests: 1,
        served: 1,
        estimated: 0,
        tokens,
        cost: NanoUsd(cost),
        billed: NanoUsd(cost),
        ..UsageSums::default()
    };
    RecordSpend {
        partition: 0,
        from,
        to,
        sums: vec![Spent {
            cell,
            revision: Revision(u64::MAX), // admitted under whatever there is
            sums,
        }],
        writers: vec![(WriterId(1), to as u64)],
    }
}
