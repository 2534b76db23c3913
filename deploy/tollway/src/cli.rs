//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::exit::EXIT_CODES;
use crate::output::Format;
use crate::up::Options;

/// Tollway: run it on this machine, and operate a cluster.
#[derive(Debug, Parser)]
#[command(name = "tollway", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the admin API is and how answers are printed.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Admin API base URLs of replicas, tried in order [default: that of `tollway up` on this machine]
    #[arg(
        long,
        global = true,
        env = "TOLLWAY_ADMIN_URL",
        value_delimiter = ',',
        value_name = "URL"
    )]
    pub(crate) url: Vec<String>,
    /// Admin key (`ak-tw-v1-…`) [default: that of `tollway up` on this machine]
    #[arg(
        long,
        global = true,
        env = "TOLLWAY_ADMIN_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) key: Option<String>,
    /// The cluster's certificate authority, a PEM file
    #[arg(long, global = true, env = "TOLLWAY_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Form of the output
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run both planes on this machine and serve until Ctrl-C
    ///
    /// Looks for OPENAI_API_KEY, ANTHROPIC_API_KEY and OPENROUTER_API_KEY in the environment and for Ollama, vLLM,
    /// llama.cpp and LM Studio on their usual local ports. When there is none, a built-in demo provider answers. Log
    /// lines go to the standard error; TOLLWAY_LOG is their filter, such as info [default: warn].
    Up(Options),
    /// Make the cluster as documents describe it; what no document names stays
    Apply {
        #[command(flatten)]
        files: Files,
        /// Show what would change and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how the cluster differs from documents; exit code 7 if it does. Secrets cannot be compared and do not count
    Diff {
        #[command(flatten)]
        files: Files,
    },
    /// Show resources: one by its id, or all of a noun
    Get {
        /// provider, credential, model, endpoint, price, organization, team, project, budget, notice, key, admin, node, incarnation
        noun: String,
        /// Only this one; a credential is named PROVIDER/ID, and all of a provider's PROVIDER/
        id: Option<String>,
    },
    /// Remove a resource
    Delete {
        /// See `get`
        noun: String,
        /// Which one; a credential is named PROVIDER/ID
        id: String,
        /// Only if it was last changed at this revision
        #[arg(long)]
        if_revision: Option<u64>,
    },
    /// API keys
    #[command(subcommand)]
    Key(Key),
    /// Budgets
    #[command(subcommand)]
    Budget(Budget),
    /// Credit of organizations
    #[command(subcommand)]
    Account(Account),
    /// Retirement notices
    #[command(subcommand)]
    Notice(Notice),
    /// Lives of nodes, and what is done about one that is gone for good
    #[command(subcommand)]
    Incarnation(Incarnation),
    /// Members of the cluster
    #[command(subcommand)]
    Cluster(Cluster),
    /// What was used and what it cost
    Usage(Usage),
    /// The audit trail
    Audit(Audit),
    /// Print a completion script for a shell
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
}

/// `tollway account …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Account {
    /// Show what an organization has, how it pays, and every account
    Show {
        /// The organization's id
        organization: String,
    },
    /// Show its newest transfers
    Transfers {
        /// The organization's id
        organization: String,
    },
    /// Buy or give credit
    TopUp {
        #[command(flatten)]
        change: Change,
        /// card, crypto, invoice or promo
        #[arg(long, default_value = "invoice")]
        method: String,
    },
    /// Give credit back that is neither spent nor with nodes
    Refund {
        #[command(flatten)]
        change: Change,
    },
    /// Correct a balance; a negative amount takes away
    Adjust {
        #[command(flatten)]
        change: Change,
    },
    /// Free credit that dead nodes left spent and the ledger will never count, on your word: `uncounted` of the account
    Release {
        /// The organization's id
        organization: String,
        /// How much, US dollars
        #[arg(long, value_name = "AMOUNT")]
        amount: String,
        /// Why, for people
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Set how an organization pays, in place of what was set before
    Billing {
        /// The organization's id
        organization: String,
        /// unlimited, prepaid or postpaid
        #[arg(long)]
        mode: String,
        /// How far below zero a postpaid one may go, US dollars
        #[arg(long, value_name = "AMOUNT")]
        credit_line: Option<String>,
        /// Announce it when less than this is left, US dollars
        #[arg(long, value_name = "AMOUNT")]
        low_balance: Option<String>,
        /// Ask the payment system for AMOUNT when less than THRESHOLD is left, US dollars
        #[arg(long, value_name = "THRESHOLD=AMOUNT")]
        auto_top_up: Option<String>,
    },
}

/// A movement of credit.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// The organization's id
    pub(crate) organization: String,
    /// How much, US dollars such as 25 or 0.50
    #[arg(long, value_name = "AMOUNT", allow_hyphen_values = true)]
    pub(crate) amount: String,
    /// The payment's own id; the same one again moves nothing
    #[arg(long)]
    pub(crate) reference: Option<String>,
    /// Why, for people
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

/// Documents to read.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// Documents in TOML or JSON; `-` is the standard input; may be repeated
    #[arg(short = 'f', long = "file", required = true, num_args = 1.., value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
}

/// `tollway key …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key; it is shown once
    Create {
        /// The project it belongs to
        #[arg(long)]
        project: String,
        /// Its public id [default: the server makes one]
        #[arg(long)]
        id: Option<String>,
        /// For people
        #[arg(long, default_value = "")]
        name: String,
        /// Only these models; may be repeated
        #[arg(long = "model", value_name = "MODEL")]
        models: Vec<String>,
        /// From when it is refused, RFC 3339
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
        /// A label for chargeback; may be repeated
        #[arg(long = "label", value_name = "NAME=VALUE")]
        labels: Vec<String>,
    },
    /// Set a key's labels for chargeback, in place of those it has
    Label {
        /// The key's id
        id: String,
        /// Its labels; none: it has none
        #[arg(value_name = "NAME=VALUE")]
        labels: Vec<String>,
    },
    /// Replace a key; the new one is shown once
    Rotate {
        /// The key's id
        id: String,
        /// How long the old one still works, in seconds
        #[arg(long, value_name = "SECONDS")]
        grace_seconds: Option<u64>,
    },
    /// Refuse a key from now on
    Revoke {
        /// The key's id
        id: String,
    },
    /// Show keys; never their text
    List {
        /// Only those of this project
        #[arg(long)]
        project: Option<String>,
    },
}

/// `tollway budget …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Budget {
    /// Make or replace a budget
    Put {
        /// Its id
        id: String,
        /// What it limits: organization=ID, team=ID, project=ID or key=ID
        #[arg(long, value_name = "LEVEL=ID")]
        scope: String,
        /// How much per period: US dollars such as 25 or 0.50, or a number of tokens or requests
        #[arg(long, value_name = "AMOUNT")]
        limit: String,
        /// money, tokens or requests
        #[arg(long, default_value = "money")]
        unit: String,
        /// Count only requests for this model
        #[arg(long)]
        model: Option<String>,
        /// daily, weekly, monthly, lifetime, or days
        #[arg(long, default_value = "monthly")]
        period: String,
        /// How many days, for --period days
        #[arg(long, value_name = "COUNT")]
        days: Option<u16>,
        /// The first day of some window, for --period days
        #[arg(long, value_name = "DAY")]
        first_day: Option<String>,
        /// Whose midnight, such as Europe/Berlin
        #[arg(long, default_value = "UTC", value_name = "ZONE")]
        time_zone: String,
        /// hard (refuse), clamp (lower the output cap) or soft (count and show)
        #[arg(long, default_value = "hard")]
        mode: String,
        /// The most that one request may cost at worst
        #[arg(long, value_name = "AMOUNT")]
        per_request_max: Option<String>,
        /// Shares of the limit to announce, in percent
        #[arg(long, value_delimiter = ',', value_name = "PERCENT")]
        thresholds: Vec<u8>,
    },
    /// Raise a budget's limit until an instant
    Raise {
        /// The budget's id
        id: String,
        /// How much more
        #[arg(long, value_name = "AMOUNT")]
        amount: String,
        /// From when it is gone, RFC 3339
        #[arg(long, value_name = "TIME")]
        until: String,
        /// Why, for people
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Show budgets and what was spent
    List,
}

/// `tollway notice …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Notice {
    /// Announce that a model goes away
    Put {
        /// The notice's id
        id: String,
        /// The model
        #[arg(long)]
        model: String,
        /// Only this endpoint of it
        #[arg(long)]
        endpoint: Option<String>,
        /// From when answers carry the warning, RFC 3339
        #[arg(long, value_name = "TIME")]
        deprecated_at: String,
        /// From when the model is refused, RFC 3339
        #[arg(long, value_name = "TIME")]
        sunset_at: Option<String>,
        /// What to use instead
        #[arg(long, value_name = "MODEL")]
        successor: Option<String>,
        /// Why, for people
        #[arg(long, default_value = "")]
        reason: String,
        /// Where to read more
        #[arg(long = "more", value_name = "URL")]
        more: Option<String>,
    },
    /// Show notices
    List,
}

/// `tollway incarnation …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Incarnation {
    /// Show lives of nodes that hold leases of budgets, or held them until lately
    List {
        /// Only those of this node
        #[arg(long)]
        node: Option<String>,
    },
    /// Declare one dead that may be cut off: it gets nothing any more, and what it has out stays charged
    Fence {
        /// Its id
        id: String,
    },
    /// Free what a fenced one has out, on your word that it spends nothing more than it reported
    Release {
        /// Its id
        id: String,
    },
}

/// `tollway cluster …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Replicas, leader, progress
    Status,
    /// Make a single-use token with which a replica or a node joins
    JoinToken {
        /// For a data-plane node of this region; without it, for a replica
        #[arg(long, value_name = "REGION")]
        node: Option<String>,
        /// How long it can be used, in seconds
        #[arg(long, value_name = "SECONDS")]
        ttl_seconds: Option<u64>,
    },
    /// Take a replica out of the cluster for good
    RemoveReplica {
        /// Its id
        id: u64,
    },
    /// Hand leadership to another replica
    Transfer,
}

/// `tollway usage`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Usage {
    #[command(subcommand)]
    pub(crate) report: Option<Report>,
    /// One or more of organization, team, project, key, user, model, endpoint, provider, region, price_version, byok, hour, day,
    /// month
    #[arg(long, value_delimiter = ',', value_name = "FIELD")]
    pub(crate) group_by: Vec<String>,
    /// First day, such as 2026-11-01, or an instant in the first hour, such as 2026-11-01T18:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Last day, or an instant in the last hour
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// Only one organization, key, model, hour, …: organization=ID; may be repeated
    #[arg(long = "where", value_name = "FIELD=VALUE")]
    pub(crate) filters: Vec<String>,
}

/// `tollway usage …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Report {
    /// Write charges as FOCUS 1.4 Cost and Usage
    Export {
        /// First day, such as 2026-11-01
        #[arg(long, value_name = "DAY")]
        from: String,
        /// Last day
        #[arg(long, value_name = "DAY")]
        to: String,
        /// csv or parquet
        #[arg(long, default_value = "csv")]
        format: String,
        /// Only this organization's
        #[arg(long)]
        organization: Option<String>,
        /// Where to [default: the standard output]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show what an organization used and owes for a month
    Invoice {
        /// The organization
        organization: String,
        /// Such as 2026-11
        month: String,
        /// Print the page to print instead
        #[arg(long)]
        html: bool,
    },
    /// Compute what a period would have cost at other prices; changes nothing
    ReRate {
        /// First day
        #[arg(long, value_name = "DAY")]
        from: String,
        /// Last day
        #[arg(long, value_name = "DAY")]
        to: String,
        /// Only this organization's
        #[arg(long)]
        organization: Option<String>,
        /// An endpoint and a price version, or its prices per million prompt and completion tokens; may be repeated
        #[arg(long = "rate", required = true, value_name = "ENDPOINT=PRICE|IN,OUT")]
        rates: Vec<String>,
    },
    /// Forecast the cost to the end of the current period
    Forecast {
        /// daily, weekly or monthly
        #[arg(long, default_value = "monthly")]
        period: String,
        /// Only one organization, team, project or key: organization=ID; may be repeated
        #[arg(long = "where", value_name = "FIELD=VALUE")]
        filters: Vec<String>,
    },
    /// Compare a provider's own account of usage with ours
    Compare {
        /// CSV with the columns provider, day, model, tokens, cost
        file: PathBuf,
    },
}

/// `tollway audit`.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Check that every record's hash matches the next record's memory of it; exit code 7 if not
    #[arg(long)]
    pub(crate) verify: bool,
    /// Only records after this sequence number
    #[arg(long)]
    pub(crate) after: Option<u64>,
    /// At most this many
    #[arg(long)]
    pub(crate) limit: Option<u32>,
    /// Only writes by this admin
    #[arg(long)]
    pub(crate) actor: Option<String>,
    /// Only this kind of write, such as key.revoke
    #[arg(long)]
    pub(crate) action: Option<String>,
    /// Only writes on this record
    #[arg(long)]
    pub(crate) target: Option<String>,
}
