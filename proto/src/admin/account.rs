//! Accounts of organizations, transfers, fees, and what payment systems send.

use serde::{Deserialize, Serialize};
use tollway_shared::bill;
use tollway_shared::credit as stored;
use tollway_shared::money::NanoUsd;
use utoipa::ToSchema;

use super::text::{self, SecretText, mirror};

mirror! {
    /// An account of an organization.
    AccountName = stored::AccountName {
        /// What the organization may use up; below zero it owes. Usage takes from it.
        Available "available",
        /// What its requests were billed.
        RevenueUsage "revenue_usage",
        /// Fees.
        RevenueFee "revenue_fee",
        /// What its requests cost at list price, where providers bill the operator.
        CostProvider "cost_provider",
        /// The same as a debt to providers.
        OwedProvider "owed_provider",
        /// Credit that was given away, negative.
        Promo "promo",
        /// Money that went back.
        Refunds "refunds",
        /// Money that came in, negative.
        CashReceived "cash_received",
        /// Corrections by people, the other way round.
        Adjustments "adjustments",
    }
}

mirror! {
    /// How credits are paid for.
    PayMethod = stored::PayMethod {
        /// By card.
        Card "card",
        /// In a crypto currency.
        Crypto "crypto",
        /// By bank transfer, on an invoice.
        Invoice "invoice",
        /// Not at all: it is given.
        Promo "promo",
    }
}

/// An amount on an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leg {
    /// Which account.
    pub account: AccountName,
    /// US dollars; in a transfer, what is added, or taken when negative.
    pub amount: text::Usd,
}

/// What an organization is held to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BillingMode {
    /// Nothing: its account only counts.
    #[default]
    Unlimited,
    /// What it has bought.
    Prepaid,
    /// `credit_line` below zero.
    Postpaid,
}

/// Ask the payment system for more when little is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoTopUp {
    /// When less than this is available, US dollars.
    pub threshold: text::Usd,
    /// So much, US dollars.
    pub amount: text::Usd,
}

/// How an organization pays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Billing {
    /// What it is held to; default: `unlimited`.
    #[serde(default)]
    pub mode: BillingMode,
    /// How far below zero a postpaid organization may go, US dollars; for no other.
    #[serde(default)]
    pub credit_line: Option<text::Usd>,
    /// Announce it when less than this is available, US dollars.
    #[serde(default)]
    pub low_balance: Option<text::Usd>,
    /// Announce it when the payment system should buy more.
    #[serde(default)]
    pub auto_top_up: Option<AutoTopUp>,
}

impl Billing {
    /// The stored form, or the field that does not fit the mode.
    pub fn into_stored(self) -> Result<stored::Billing, (&'static str, &'static str)> {
        let mode = match (self.mode, self.credit_line) {
            (BillingMode::Unlimited, None) => stored::BillingMode::Unlimited,
            (BillingMode::Prepaid, None) => stored::BillingMode::Prepaid,
            (BillingMode::Postpaid, Some(line)) => stored::BillingMode::Postpaid { credit_line: line.0 },
            (BillingMode::Postpaid, None) => return Err(("credit_line", "is missing: `postpaid` needs it")),
            (_, Some(_)) => return Err(("credit_line", "is only for `postpaid`")),
        };
        Ok(stored::Billing {
            mode,
            low_balance: self.low_balance.map(|amount| amount.0),
            auto_top_up: self.auto_top_up.map(|rule| stored::AutoTopUp {
                threshold: rule.threshold.0,
                amount: rule.amount.0,
            }),
        })
    }
}

impl From<stored::Billing> for Billing {
    fn from(billing: stored::Billing) -> Self {
        let stored::Billing {
            mode,
            low_balance,
            auto_top_up,
        } = billing;
        let (mode, credit_line) = match mode {
            stored::BillingMode::Unlimited => (BillingMode::Unlimited, None),
            stored::BillingMode::Prepaid => (BillingMode::Prepaid, None),
            stored::BillingMode::Postpaid { credit_line } => {
                (BillingMode::Postpaid, Some(credit_line.into()))
            }
        };
        Self {
            mode,
            credit_line,
            low_balance: low_balance.map(Into::into),
            auto_top_up: auto_top_up.map(|rule| AutoTopUp {
                threshold: rule.threshold.into(),
                amount: rule.amount.into(),
            }),
        }
    }
}

/// Usage of a day that is not over: in the balances, and in no transfer yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenUsage {
    /// The UTC day on which it was recorded.
    pub day: text::Day,
    /// What was billed, US dollars.
    pub billed: text::Usd,
    /// Fees on own credentials, US dollars.
    pub fee: text::Usd,
    /// What it cost at list price, where providers bill the operator, US dollars.
    pub cost: text::Usd,
}

/// The account of an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// Whose.
    pub organization: text::OrganizationId,
    /// How it pays.
    pub billing: Billing,
    /// Bought and given less used and taken back, US dollars; below zero it owes.
    pub available: text::Usd,
    /// Of that with nodes, or used and not recorded yet, US dollars; 0 for an organization that is held to nothing.
    pub held: text::Usd,
    /// The part of `held` that leases of nodes have settled and the ledger has not counted, US dollars: seconds of traffic, and what nodes
    /// left that are gone for good.
    pub uncounted: text::Usd,
    /// What can still be promised to requests, US dollars: `available` and the credit line less `held`; null where nothing limits it.
    pub spendable: Option<text::Usd>,
    /// Bought in all, US dollars, without what was given and less what went back; never below zero.
    pub bought: text::Usd,
    /// Every account that ever moved. They sum to zero.
    pub balances: Vec<Leg>,
    /// Usage that is in `balances` and in no transfer yet.
    pub open_usage: Option<OpenUsage>,
    /// How many transfers there have been.
    pub transfers: u64,
    /// The hash of the newest.
    pub head: String,
}

/// Stranded credit to free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreditRelease {
    /// How much of `uncounted`, US dollars.
    pub amount: text::Usd,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// Why money moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferKind {
    /// Credit was bought or given.
    TopUp,
    /// Money went back.
    Refund,
    /// Somebody corrected something.
    Adjustment,
    /// What was used on a day.
    Usage,
}

/// One transfer between accounts of an organization. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Transfer {
    /// `organization/sequence`.
    pub id: String,
    /// Dense per organization, from 1.
    pub sequence: u64,
    /// When it was made.
    pub at: text::Instant,
    /// Why.
    pub kind: TransferKind,
    /// How credit was paid for.
    pub method: Option<PayMethod>,
    /// What moved; sums to zero.
    pub legs: Vec<Leg>,
    /// The payment's own id, or one of ours.
    pub reference: String,
    /// Why, for people.
    pub reason: String,
    /// Who.
    pub actor: String,
    /// The hash of the transfer before, hex.
    pub previous: String,
    /// Its own hash, hex.
    pub hash: String,
}

/// Credit to buy or give. What is paid is `amount` and the fee on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TopUp {
    /// How much credit, US dollars.
    pub amount: text::Usd,
    /// How it is paid for.
    pub method: PayMethod,
    /// The payment's own id: the same one again moves nothing. Default: one is made.
    #[serde(default)]
    pub reference: Option<String>,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// Money to give back, or to correct.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreditChange {
    /// How much, US dollars. Of an adjustment: what is added, or taken away when negative.
    pub amount: text::Usd,
    /// The same one again moves nothing. Default: one is made.
    #[serde(default)]
    pub reference: Option<String>,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// A fee on buying credits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeeRule {
    /// Hundredths of a percent of the amount; rounded up to a billionth of a dollar.
    pub bps: u32,
    /// The least, US dollars.
    pub least: text::Usd,
}

/// How many requests for free models an organization has per UTC day. Those that no provider served do not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FreeQuota {
    /// At first; 0: as many as it likes.
    pub per_day: u32,
    /// Once it has bought enough; 0: as many as it likes.
    pub per_day_bought: u32,
    /// What is enough, US dollars.
    pub bought: text::Usd,
}

/// What using own credentials costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ByokFee {
    /// Hundredths of a percent of the list price; rounded up to a billionth of a dollar.
    pub bps: u32,
    /// So many requests are free per organization and UTC month; without `free_list`, which holds where both are given.
    #[serde(default)]
    pub free_requests: Option<u64>,
    /// So much at list price is free per organization and UTC month, US dollars.
    #[serde(default)]
    pub free_list: Option<text::Usd>,
}

/// What buying credits costs on top of them. What is given costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fees {
    /// By card.
    pub card: FeeRule,
    /// In a crypto currency.
    pub crypto: FeeRule,
    /// On an invoice.
    pub invoice: FeeRule,
    /// Free models: those whose id ends in `:free`.
    pub free: FreeQuota,
    /// Own credentials.
    pub byok: ByokFee,
}

impl From<FeeRule> for stored::FeeRule {
    fn from(rule: FeeRule) -> Self {
        let FeeRule { bps, least } = rule;
        Self { bps, least: least.0 }
    }
}

impl From<stored::FeeRule> for FeeRule {
    fn from(rule: stored::FeeRule) -> Self {
        let stored::FeeRule { bps, least } = rule;
        Self {
            bps,
            least: least.into(),
        }
    }
}

impl Fees {
    /// The first field that cannot be, and why.
    pub fn unsound(&self) -> Option<(&'static str, String)> {
        let negative = |amount: NanoUsd| amount < NanoUsd::ZERO;
        let least = |name, rule: &FeeRule| {
            let wrong = negative(rule.least.0) || rule.least.0 > stored::MOVE_MAX;
            wrong.then(|| {
                let most = stored::MOVE_MAX;
                (name, format!("must not be negative, and at most {most} dollars"))
            })
        };
        let bps = |name, bps: u32| {
            let wrong = bps > stored::FEE_BPS_MAX;
            wrong.then(|| {
                let most = stored::FEE_BPS_MAX;
                (name, format!("must be at most {most}, hundredths of a percent"))
            })
        };
        let paid = |name, amount: NanoUsd| {
            let wrong = negative(amount);
            wrong.then(|| (name, "must not be negative".to_owned()))
        };
        bps("card.bps", self.card.bps)
            .or_else(|| least("card.least", &self.card))
            .or_else(|| bps("crypto.bps", self.crypto.bps))
            .or_else(|| least("crypto.least", &self.crypto))
            .or_else(|| bps("invoice.bps", self.invoice.bps))
            .or_else(|| least("invoice.least", &self.invoice))
            .or_else(|| paid("free.bought", self.free.bought.0))
            .or_else(|| bps("byok.bps", self.byok.bps))
            .or_else(|| paid("byok.free_list", self.byok.free_list.as_ref()?.0))
    }
}

impl From<Fees> for stored::Fees {
    fn from(fees: Fees) -> Self {
        let Fees {
            card,
            crypto,
            invoice,
            free,
            byok,
        } = fees;
        Self {
            card: card.into(),
            crypto: crypto.into(),
            invoice: invoice.into(),
            free: stored::FreeQuota {
                per_day: free.per_day,
                per_day_bought: free.per_day_bought,
                bought: free.bought.0,
            },
            byok: bill::ByokFee {
                bps: byok.bps,
                free: match byok.free_list {
                    Some(list) => bill::Allowance::ListPrice(list.0),
                    None => bill::Allowance::Requests(byok.free_requests.unwrap_or(0)),
                },
            },
        }
    }
}

impl From<stored::Fees> for Fees {
    fn from(fees: stored::Fees) -> Self {
        let stored::Fees {
            card,
            crypto,
            invoice,
            free,
            byok,
        } = fees;
        Self {
            card: card.into(),
            crypto: crypto.into(),
            invoice: invoice.into(),
            free: FreeQuota {
                per_day: free.per_day,
                per_day_bought: free.per_day_bought,
                bought: free.bought.into(),
            },
            byok: match byok.free {
                bill::Allowance::Requests(free) => ByokFee {
                    bps: byok.bps,
                    free_requests: Some(free),
                    free_list: None,
                },
                bill::Allowance::ListPrice(free) => ByokFee {
                    bps: byok.bps,
                    free_requests: None,
                    free_list: Some(free.into()),
                },
            },
        }
    }
}

/// Whose payments are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PaymentSecrets {
    /// Secrets of Standard Webhooks, `whsec_` and base64, at most 4; none: no payment is believed. Never shown again.
    pub secrets: Vec<SecretText>,
}

/// How many senders of payments are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaymentSenders {
    /// Secrets in force.
    pub secrets: usize,
}

/// What a payment system tells, signed as Standard Webhooks say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaymentEvent {
    /// `payment.succeeded` or `payment.refunded`; others are taken and ignored.
    #[serde(rename = "type")]
    pub kind: String,
    /// What was paid: of an event that is not ignored, a `Payment`.
    #[serde(default)]
    pub data: serde_json::Value,
}

/// A payment, or one that was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Payment {
    /// Whose.
    pub organization: text::OrganizationId,
    /// How much credit, US dollars; of what was given back at most what is left of the payment; the fee that the sender took on top is booked by our own rule.
    pub amount: text::Usd,
    /// How it was paid; default: `card`.
    #[serde(default)]
    pub method: Option<PayMethod>,
    /// `USD`, in any case; others are refused. Default: `USD`.
    #[serde(default)]
    pub currency: Option<String>,
    /// The payment's own id: the same payment again moves nothing. Default: the message's id. Of what was given back: of which payment.
    #[serde(default)]
    pub reference: Option<String>,
    /// Of what was given back, its own id: the same one again moves nothing. Default: the message's id, as one payment may be given
    /// back in parts.
    #[serde(default)]
    pub refund: Option<String>,
}

/// What came of a payment's message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PaymentTaken {
    /// Its transfer, `organization/sequence`; null when the message was ignored.
    pub transfer: Option<String>,
}
