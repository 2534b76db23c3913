//! Reports on money: invoices, what other prices would have cost, forecasts, what providers say they delivered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::catalog::Prices;
use super::text;
use super::usage::Freshness;

/// One line of an invoice: a meter of a model in a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceLine {
    /// The project's id.
    pub project: text::ProjectId,
    /// Its name.
    pub project_name: String,
    /// The model that served.
    pub model: text::ModelId,
    /// What was counted: `input`, `input_cache_read`, `input_cache_write`, `input_cache_write_1h`, `output`, `output_reasoning`,
    /// `requests` (fixed parts); or `adjustment` for markup and discount, `byok_fee` for the fee on own credentials.
    pub meter: String,
    /// Whether it was served with the organization's own credential, so that the provider bills it.
    pub byok: bool,
    /// How many tokens, or requests; of a fee the requests with own credentials, those that were free of it included.
    pub quantity: u64,
    /// What it costs at list price, US dollars.
    pub list: text::Usd,
    /// What is owed for it, US dollars.
    pub amount: text::Usd,
}

/// What is owed, and what for, US dollars.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceTotals {
    /// Requests that reached a provider.
    pub requests: u64,
    /// Those among them whose counts are estimates.
    pub estimated: u64,
    /// All usage at list price, that with the organization's own credentials included.
    pub list: text::Usd,
    /// The part of `list` that the organization's own providers bill.
    pub byok_list: text::Usd,
    /// Markup and discount together; a discount is below zero.
    pub adjustments: text::Usd,
    /// What is owed for usage: `list` - `byok_list` + `adjustments`.
    pub usage: text::Usd,
    /// Fees on own credentials: in `lines`, and in `entries` where only the month is known of them any more.
    pub byok_fees: text::Usd,
    /// The other fees of `entries`: on credits.
    pub fees: text::Usd,
    /// `usage` + `byok_fees` + `fees`.
    pub total: text::Usd,
}

/// Money of the month that is no usage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceEntry {
    /// When.
    pub at: text::Instant,
    /// `top_up`, `refund`, `grant`, `adjustment`; `byok_fee` for fees on own credentials of which only the month is known.
    pub kind: String,
    /// The id of the transfer; of a `byok_fee`, and of a sum of transfers that are not kept, organization and month.
    pub reference: String,
    /// By how much the balance rose, US dollars; below zero it fell.
    pub amount: text::Usd,
    /// What was charged for it on top, US dollars: not from the balance.
    pub fee: text::Usd,
}

/// What an organization used and owes for a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Invoice {
    /// `organization-YYYY-MM`.
    pub id: String,
    /// The organization.
    pub organization: text::OrganizationId,
    /// Its name.
    pub organization_name: String,
    /// The month, `YYYY-MM`.
    pub month: String,
    /// Its first UTC day.
    pub from: text::Day,
    /// Its last UTC day.
    pub to: text::Day,
    /// `USD`.
    pub currency: String,
    /// Whether the month has been over for three days and all that the usage log is known to have is counted. Usage that arrives even
    /// later still counts in its own month.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// By project, model and meter.
    pub lines: Vec<InvoiceLine>,
    /// What else moved the balance: `opening_balance` + the amounts of `entries` - the amounts of `lines` = `closing_balance`, but for
    /// requests that started in one month and were counted in another: balances have them when they are counted.
    pub entries: Vec<InvoiceEntry>,
    /// Whether the first of `entries` are sums of the month by kind: there have been more transfers since than are kept. The audit trail
    /// has each. `totals` are whole all the same.
    pub entries_missing: bool,
    /// The sums.
    pub totals: InvoiceTotals,
    /// The balance of the organization's account when the month began; `null` where it is not kept.
    pub opening_balance: Option<text::Usd>,
    /// The balance when the month ended, or now.
    pub closing_balance: Option<text::Usd>,
    /// How far each partition of the usage log has been counted.
    pub freshness: Vec<Freshness>,
}

/// Other prices for an endpoint: a version that exists, or made-up ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Whose usage.
    pub endpoint: text::EndpointId,
    /// A price version, of any endpoint. Either this or `prices`.
    #[serde(default)]
    pub price: Option<text::PriceId>,
    /// Prices that nobody has to have made.
    #[serde(default)]
    pub prices: Option<Prices>,
}

/// A question: what would a period have cost at other prices?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReRate {
    /// The first UTC day.
    pub from: text::Day,
    /// The last UTC day.
    pub to: text::Day,
    /// Only this organization's usage; default: all.
    #[serde(default)]
    pub organization: Option<text::OrganizationId>,
    /// Which endpoints, at which prices; others are left out.
    pub rates: Vec<Rate>,
}

/// What one organization's usage of one endpoint would have cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReRatedRow {
    /// The organization.
    pub organization: text::OrganizationId,
    /// The model.
    pub model: text::ModelId,
    /// The endpoint.
    pub endpoint: text::EndpointId,
    /// Requests that reached a provider.
    pub requests: u64,
    /// What was charged at list price, US dollars.
    pub recorded: text::Usd,
    /// What it would have been.
    pub re_rated: text::Usd,
    /// `re_rated` - `recorded`.
    pub difference: text::Usd,
    /// How far `re_rated` may be from what the requests would have been charged, each rounded by itself: for every price that differs,
    /// half a billionth of a dollar per request and half a one per hourly sum, rounded up. What does not differ is exact.
    pub exact_to: text::Usd,
}

/// The answer: nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReRated {
    /// By organization, model and endpoint.
    pub data: Vec<ReRatedRow>,
    /// All recorded costs of these rows.
    pub recorded: text::Usd,
    /// All re-rated costs.
    pub re_rated: text::Usd,
    /// Their difference.
    pub difference: text::Usd,
    /// Sum of the rows' `exact_to`.
    pub exact_to: text::Usd,
}

/// Where spending is heading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    /// When the period began.
    pub from: text::Instant,
    /// When it ends.
    pub to: text::Instant,
    /// What was spent in it so far, at list price, US dollars.
    pub spent: text::Usd,
    /// What was spent in the `basis_seconds` before now.
    pub basis_spent: text::Usd,
    /// The time since 00:00 UTC seven days ago, or since 00:00 UTC of the first day since then that has usage: sums are kept by the day,
    /// so the first day's hours before its first usage are in it.
    pub basis_seconds: u64,
    /// `spent` + `basis_spent` × time left / `basis_seconds`, rounded down to a nano-dollar; `spent` where nothing was spent.
    pub forecast: text::Usd,
}

/// What a provider and we say of a model's day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReconciledRow {
    /// The provider.
    pub provider: String,
    /// The UTC day.
    pub day: text::Day,
    /// The model: our id, or the provider's name where no endpoint of ours has it.
    pub model: String,
    /// All tokens of all kinds, as the provider says.
    pub provider_tokens: u64,
    /// As we counted, without what tenants sent with their own credentials.
    pub our_tokens: u64,
    /// Ours less the provider's, in percent of the provider's, with two digits; `null` where the provider says zero and we do not.
    pub tokens_percent: Option<String>,
    /// What the provider bills, US dollars.
    pub provider_cost: text::Usd,
    /// What we charged at list price.
    pub our_cost: text::Usd,
    /// `our_cost` - `provider_cost`.
    pub cost_difference: text::Usd,
    /// The same in percent of the provider's.
    pub cost_percent: Option<String>,
}

/// A provider's usage beside ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reconciled {
    /// Every provider, day and model that either side has, for the providers and days that were sent.
    pub data: Vec<ReconciledRow>,
    /// The sum of all rows' token differences, each without its sign.
    pub tokens_drift: u64,
    /// The sum of all rows' cost differences, each without its sign.
    pub cost_drift: text::Usd,
}

/// Labels: for chargeback, in reports and exports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// At most 32: names of 1 to 64 of letters, digits, `.`, `_`, `-`; values of at most 128 characters.
    pub labels: BTreeMap<String, String>,
}
