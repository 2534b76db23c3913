//! One value of every stored shape. Their bytes are frozen; the values may only be changed together with a new frozen version.

mod catalog;

use tollway_proto::command::{
    Admin, Command, Entry, Idempotency, InitCluster, JoinKind, JoinToken, MoveCredit, NodeRecord, PutBilling,
    PutBudget, RecordSpend, ReleaseCredit, Role, Spent, UsageCell, UsageSums,
};
use tollway_proto::lease::LeaseCall;
use tollway_proto::spool::{
    Held, HeldIntent, HeldPart, OutcomeRecord, ProgressRecord, SegmentHeader, SpoolRecord,
};
use tollway_proto::usage::UsageEvent;
use tollway_shared::budget::terms::{Mode, Raise, Terms, Unit};
use tollway_shared::budget::{Budget, BudgetScope, BudgetView};
use tollway_shared::credit::{AutoTopUp, Billing, BillingMode, CreditMove, Fees, PayMethod};
use tollway_shared::ids::{
    AdminId, ApiKeyId, BudgetId, ClusterId, CredentialId, EndpointId, Incarnation, ModelId, NodeId, NoticeId,
    OrganizationId, PriceId, ProjectId, ProviderId, Region, ReplicaId, Revision, TeamId, WriterId,
};
use tollway_shared::labels::Labels;
use tollway_shared::lease::grantor::Roll;
use tollway_shared::lease::message::{Ask, ClosedLine, Closing, Epoch, Line, Report, Want};
use tollway_shared::money::NanoUsd;
use tollway_shared::notice::Notice;
use tollway_shared::seal::Sealed;
use tollway_shared::snapshot::Resource;
use tollway_shared::tenant::{ApiKey, Organization, Project, Team, TenantPath};
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;
use tollway_shared::window::{Cycle, Every, Zone};

use self::catalog::{credential, endpoint, model, price, provider};

/// 2026-11-22T12:00:00Z.
const NOON: UnixMillis = UnixMillis(1_795_348_800_000);

/// The event of the documentation.
pub(crate) const EVENT: &str = include_str!("../../proto/examples/usage-event.v1.json");

fn sealed() -> Sealed {
    Sealed {
        nonce: [5; 12],
        ciphertext: vec![1, 2, 3, 250],
    }
}

fn admin() -> Admin {
    Admin {
        id: AdminId::trusted("root"),
        name: "Root".into(),
        role: Role::Owner,
        digest: [9; 32],
        pepper_version: 1,
        last4: "abcd".into(),
        created_at: NOON,
    }
}

fn notice() -> Notice {
    Notice {
        id: NoticeId::trusted("n"),
        model: ModelId::trusted("a/m"),
        endpoint: Some(EndpointId::trusted("p/a/m")),
        deprecated_at: NOON,
        sunset_at: Some(NOON.plus_ms(1)),
        successor: Some(ModelId::trusted("a/next")),
        reason: "it is old".into(),
        url: Some("https://example.com".into()),
    }
}

fn organization() -> Organization {
    Organization {
        id: OrganizationId::trusted("o"),
        name: "O".into(),
        enabled: true,
        adjustment_bps: -250,
    }
}

fn team() -> Team {
    Team {
        id: TeamId::trusted("t"),
        organization: OrganizationId::trusted("o"),
        name: "T".into(),
    }
}

fn labels() -> Labels {
    Labels::from([("cost-center".to_owned(), "4711".to_owned())])
}

fn project() -> Project {
    Project {
        id: ProjectId::trusted("j"),
        organization: OrganizationId::trusted("o"),
        team: Some(TeamId::trusted("t")),
        name: "J".into(),
        enabled: true,
        labels: labels(),
    }
}

fn key(id: &str, digest: u8) -> ApiKey {
    ApiKey {
        id: ApiKeyId::trusted(id),
        project: ProjectId::trusted("j"),
        name: "K".into(),
        digest: [digest; 32],
        pepper_version: 1,
        last4: "wxyz".into(),
        models: vec![ModelId::trusted("a/m")],
        created_at: NOON,
        expires_at: Some(NOON.plus_ms(5)),
        revoked_at: None,
        rotated_from: None,
        labels: labels(),
    }
}

fn raise() -> Raise {
    Raise {
        amount: 1_000_000_000,
        until: NOON.plus_ms(86_400_000),
        author: AdminId::trusted("root"),
        reason: "launch".into(),
    }
}

fn budget() -> Budget {
    let cycle = Cycle {
        every: Every::Days {
            count: 14,
            from: NOON.day(),
        },
        zone: Zone::utc(),
    };
    let terms = Terms {
        cycle,
        mode: Mode::Clamp,
        per_request_max: Some(1_000_000_000),
        thresholds_percent: vec![1, 50, 90],
        standby_ppm: 20_000,
        ..Terms::money(NanoUsd(5_000_000_000))
    };
    Budget {
        id: BudgetId::trusted("b"),
        scope: BudgetScope::Team(TeamId::trusted("t")),
        model: Some(ModelId::trusted("a/m")),
        terms,
    }
}

/// What a node says about leases, one of each.
fn lease_calls() -> impl Iterator<Item = Command> {
    let (incarnation, budget, epoch) = (Incarnation(u128::MAX), BudgetId::trusted("b"), Epoch(1));
    let want = Want {
        budget: budget.clone(),
        epoch: Epoch(0),
        seen: 0,
        room: 0,
        amount: 10_000_000,
        least: 5_000_000,
        urgent: true,
        burn: 3,
    };
    let line = Line {
        budget: budget.clone(),
        epoch,
        spent: 4_000_000,
        returned: 0,
        seen: 10_000_000,
        held: 2,
        recall: 0,
    };
    let closed = ClosedLine {
        budget,
        epoch,
        spent: 5_000_000,
    };
    let calls = [
        LeaseCall::Enlist(incarnation),
        LeaseCall::Ask(Ask {
            incarnation,
            serial: 1,
            wants: vec![want],
        }),
        LeaseCall::Report(Report {
            incarnation,
            serial: 2,
            lines: vec![line],
        }),
        LeaseCall::Closing(Closing {
            incarnation: Incarnation(9),
            lines: vec![closed],
            doubtful: true,
        }),
    ];
    calls.into_iter().map(|call| Command::Lease {
        node: NodeId::trusted("node-1"),
        call,
    })
}

fn spend() -> RecordSpend {
    let cell = UsageCell {
        day: NOON.day(),
        path: TenantPath {
            organization: OrganizationId::trusted("o"),
            team: Some(TeamId::trusted("t")),
            project: ProjectId::trusted("j"),
            key: ApiKeyId::trusted("k"),
        },
        model: ModelId::trusted("a/m"),
        provider: ProviderId::trusted("p"),
    };
    let sums = UsageSums {
        requests: 2,
        served: 2,
        estimated: 1,
        tokens: TokenCounts {
            input: 300,
            input_cache_read: 20,
            input_cache_write: 10,
            input_cache_write_1h: 7,
            output: 40,
            output_reasoning: 5,
        },
        cost: NanoUsd(123_456_789),
        billed: NanoUsd(122_222_221),
        byok_requests: 1,
        byok_cost: NanoUsd(1_234_568),
        fee: NanoUsd(61_729),
    };
    RecordSpend {
        partition: 0,
        from: 0,
        to: 2,
        sums: vec![Spent {
            cell,
            revision: REVISION,
            sums,
        }],
        writers: vec![(WriterId(u128::MAX), 2)],
    }
}

/// Every command once, in an order in which the earlier ones can be applied to an empty state.
pub(crate) fn commands() -> Vec<Command> {
    let mut commands = vec![
        Command::InitCluster(InitCluster {
            cluster: ClusterId::trusted("c1"),
            authority_pem: "pem".into(),
            authority_key: sealed(),
            admin: admin(),
        }),
        Command::PutProvider(provider()),
        Command::PutCredential(credential()),
        Command::PutModel(model("a/m")),
        Command::PutEndpoint(endpoint()),
        Command::AddPrice(price("p1", UnixMillis(0))),
        Command::PutNotice(notice()),
        Command::PutOrganization(organization()),
        Command::PutTeam(team()),
        Command::PutProject(project()),
        Command::CreateKey(key("k", 1)),
        Command::PutBudget(PutBudget {
            window: budget().terms.cycle.span(NOON).ok(),
            budget: budget(),
        }),
        Command::RaiseBudget {
            budget: BudgetId::trusted("b"),
            raise: raise(),
        },
        Command::CreateAdmin(Admin {
            id: AdminId::trusted("viewer@example.com"),
            role: Role::Viewer,
            digest: [8; 32],
            ..admin()
        }),
        Command::CreateJoinToken(JoinToken {
            digest: [7; 32],
            kind: JoinKind::Node(Region::trusted("eu")),
            expires_at: NOON.plus_ms(3_600_000),
        }),
        Command::Join {
            token: [7; 32],
            node: Some(NodeRecord {
                id: NodeId::trusted("node-1"),
                region: Region::trusted("eu"),
                joined_at: NOON,
            }),
        },
        Command::PutFees(Fees::default()),
        Command::PutBilling(PutBilling {
            organization: OrganizationId::trusted("o"),
            billing: Billing {
                mode: BillingMode::Postpaid {
                    credit_line: NanoUsd(5_000_000_000),
                },
                low_balance: Some(NanoUsd(9_990_000_000)),
                auto_top_up: Some(AutoTopUp {
                    threshold: NanoUsd(1_000_000_000),
                    amount: NanoUsd(25_000_000_000),
                }),
            },
        }),
        Command::MoveCredit(MoveCredit {
            organization: OrganizationId::trusted("o"),
            made: CreditMove::TopUp {
                method: PayMethod::Card,
                amount: NanoUsd(10_000_000_000),
            },
            reference: "pay-1".into(),
            payment: None,
            reason: "first".into(),
        }),
        Command::PutPaymentSecrets(vec![sealed()]),
        Command::LabelKey {
            key: ApiKeyId::trusted("k"),
            labels: labels(),
        },
        Command::ReleaseCredit(ReleaseCredit {
            organization: OrganizationId::trusted("o"),
            amount: NanoUsd(10_000_000),
            reason: "eu-1 burned".into(),
        }),
        Command::RecordSpend(spend()),
    ];
    commands.extend(lease_calls());
    commands.extend([
        Command::RollBudgets(vec![Roll {
            budget: BudgetId::trusted("b"),
            span: budget()
                .terms
                .cycle
                .span(NOON.plus_ms(15 * 86_400_000))
                .expect("a window"),
        }]),
        Command::ClearRaises(BudgetId::trusted("other")),
        Command::FenceIncarnation(Incarnation(9)),
        Command::ReleaseIncarnation(Incarnation(9)),
        Command::ForgetIncarnations { before: NOON },
        Command::RotateKey {
            old: ApiKeyId::trusted("k"),
            old_expires_at: NOON.plus_ms(60_000),
            new: key("k2", 2),
        },
        Command::SetClusterVersion(1),
        Command::RemoveProvider(ProviderId::trusted("p")),
        Command::RemoveCredential(CredentialId::trusted("other")),
        Command::RemoveModel(ModelId::trusted("a/m")),
        Command::RemoveEndpoint(EndpointId::trusted("other")),
        Command::RemovePrice(PriceId::trusted("other")),
        Command::RemoveNotice(NoticeId::trusted("other")),
        Command::RemoveOrganization(OrganizationId::trusted("o")),
        Command::RemoveTeam(TeamId::trusted("t")),
        Command::RemoveProject(ProjectId::trusted("j")),
        Command::RevokeKey(ApiKeyId::trusted("other")),
        Command::RemoveBudget(BudgetId::trusted("other")),
        Command::RemoveAdmin(AdminId::trusted("other")),
        Command::RemoveNode(NodeId::trusted("other")),
        Command::PromoteReplica(ReplicaId(1)),
        Command::TransferLeader(ReplicaId(1)),
        Command::RemoveReplica(ReplicaId(1)),
    ]);
    commands
}

/// A command as the log has it.
pub(crate) fn entry(command: Command) -> Entry {
    let name = command.name();
    Entry {
        at: NOON,
        actor: "root".into(),
        idempotency: Some(Idempotency {
            key: name.into(),
            request: [4; 32],
            answer: Some(sealed()),
        }),
        if_revision: None,
        command,
    }
}

/// Every resource once.
pub(crate) fn resources() -> Vec<Resource> {
    let exhausted_window = budget().terms.cycle.span(NOON).ok();
    let budget = budget();
    vec![
        Resource::Provider(provider()),
        Resource::Credential(credential()),
        Resource::Model(model("a/m")),
        Resource::Endpoint(endpoint()),
        Resource::Price(price("p1", UnixMillis(0))),
        Resource::Notice(notice()),
        Resource::Organization(organization()),
        Resource::Team(team()),
        Resource::Project(project()),
        Resource::ApiKey(key("k", 1)),
        Resource::Budget(BudgetView {
            budget,
            exhausted_window,
        }),
    ]
}

/// Every spool record once, under its name.
pub(crate) fn spool() -> Vec<(&'static str, SpoolRecord)> {
    let event: UsageEvent = serde_json::from_str(EVENT).expect("the example is an event");
    let header = SegmentHeader {
        writer: event.writer,
        segment: 7,
        sequences: vec![0, 300, u64::MAX],
    };
    vec![
        ("header", SpoolRecord::Header(header)),
        ("intent", SpoolRecord::Intent(Box::new(event.clone()))),
        ("outcome", SpoolRecord::Outcome(OutcomeRecord::of(&event))),
        (
            "held",
            SpoolRecord::Held(Box::new(HeldIntent {
                event: event.clone(),
                held: Held {
                    incarnation: Incarnation(u128::MAX),
                    mark: 300,
                    parts: vec![HeldPart {
                        budget: BudgetId::trusted("b"),
                        epoch: Epoch(1),
                        unit: Unit::Money,
                        amount: 1_000_000_000,
                        model: Some(ModelId::trusted("a/m")),
                    }],
                },
            })),
        ),
        (
            "progress",
            SpoolRecord::Progress(ProgressRecord {
                request_id: event.request_id,
                tokens: event.tokens,
            }),
        ),
    ]
}

/// The revision of the sample snapshot.
pub(crate) const REVISION: Revision = Revision(918);
/// The sample cluster.
pub(crate) fn cluster() -> ClusterId {
    ClusterId::trusted("c1")
}
/// When the sample snapshot was heard of.
pub(crate) const HEARD_AT: UnixMillis = NOON;
