//! Credits: the accounts of an organization, what a transfer between them is, and the fees on buying credits.
//!
//! Double entry: a transfer takes as much from some accounts as it adds to others, so all accounts of an organization sum to zero at
//! any time. Fees round up. What is leased to nodes is no account: it stays in [`AccountName::Available`] until it is spent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bill::{Allowance, ByokFee};
use crate::budget::terms::LIMIT_MAX;
use crate::ids::{BudgetId, ID_BYTES_MAX, OrganizationId};
use crate::money::{MoneyFault, NANO_PER_USD, NanoUsd};

/// Basis points in one.
const ONE: i128 = 10_000;
/// Largest amount of one top-up, refund or adjustment: ten million dollars. More is a slip.
pub const MOVE_MAX: NanoUsd = NanoUsd(10_000_000 * NANO_PER_USD);
/// Largest credit line.
pub const LINE_MAX: NanoUsd = NanoUsd(100_000_000 * NANO_PER_USD);
/// Highest fee on buying credits, basis points.
pub const FEE_BPS_MAX: u32 = 10_000;
/// What the ids of budgets begin with that hold an organization to its credit. Nobody else's may.
const CREDIT_PREFIX: &str = "credit.";
/// The same of its quota of free models.
const QUOTA_PREFIX: &str = "free.";
/// Longest id of an organization: with either in front, it is the id of a budget.
pub const ORGANIZATION_BYTES_MAX: usize = ID_BYTES_MAX - CREDIT_PREFIX.len();

/// An account of an organization.
///
/// The order is on disk: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountName {
    /// What the organization may use up; below zero it owes. Usage takes from it.
    Available,
    /// What its requests were billed.
    RevenueUsage,
    /// Fees.
    RevenueFee,
    /// What its requests cost at list price, where providers bill the operator.
    CostProvider,
    /// The same as a debt to providers.
    OwedProvider,
    /// Credit that was given away, negative.
    Promo,
    /// Money that went back.
    Refunds,
    /// Money that came in, negative.
    CashReceived,
    /// Corrections by people, the other way round.
    Adjustments,
}

/// What moved where: positive amounts are added to an account, negative ones taken from it.
pub type Leg = (AccountName, NanoUsd);

/// The accounts of one organization. Sums are `i128`: no number of transfers leaves their range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balances(BTreeMap<AccountName, i128>);

impl Balances {
    /// What an account holds.
    pub fn of(&self, account: AccountName) -> i128 {
        self.0.get(&account).copied().unwrap_or(0)
    }

    /// Applies a transfer's legs.
    pub fn apply(&mut self, legs: &[Leg]) {
        for (account, amount) in legs {
            let balance = self.0.entry(*account).or_default();
            *balance = balance.saturating_add(i128::from(amount.0));
        }
    }

    /// Every account that ever moved.
    pub fn each(&self) -> impl Iterator<Item = (AccountName, i128)> + '_ {
        self.0.iter().map(|(account, amount)| (*account, *amount))
    }

    /// The sum of all: zero, always.
    pub fn sum(&self) -> i128 {
        self.0.values().sum()
    }
}

/// An account's balance in the range of amounts, for what is shown and compared.
pub fn shown(balance: i128) -> NanoUsd {
    NanoUsd(i64::try_from(balance).unwrap_or(if balance < 0 { i64::MIN } else { i64::MAX }))
}

/// Whether legs take as much as they add, and move anything.
pub fn balances(legs: &[Leg]) -> bool {
    let sum: i128 = legs.iter().map(|(_, amount)| i128::from(amount.0)).sum();
    sum == 0 && legs.iter().any(|(_, amount)| *amount != NanoUsd::ZERO)
}

/// How credits are paid for.
///
/// The order is on disk: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayMethod {
    /// By card.
    Card,
    /// In a crypto currency.
    Crypto,
    /// By bank transfer, on an invoice.
    Invoice,
    /// Not at all: it is given.
    Promo,
}

impl PayMethod {
    /// Whether anybody pays.
    pub fn is_bought(self) -> bool {
        self != Self::Promo
    }
}

/// A movement of credit that somebody asks for.
///
/// The order is on disk: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreditMove {
    /// Credit is bought or given.
    TopUp {
        /// How it is paid for.
        method: PayMethod,
        /// How much credit; what is paid is this and the fee.
        amount: NanoUsd,
    },
    /// Money goes back, without the fee.
    Refund {
        /// How much.
        amount: NanoUsd,
    },
    /// A correction.
    Adjustment {
        /// How much is added; taken away when negative.
        amount: NanoUsd,
    },
    /// The payment system has given money back, or lost it to a chargeback: a fact, whatever is left of the credit.
    TakenBack {
        /// How much, without the fee.
        amount: NanoUsd,
    },
}

impl CreditMove {
    /// How much credit it is about.
    pub fn amount(&self) -> NanoUsd {
        match self {
            Self::TopUp { amount, .. }
            | Self::Refund { amount }
            | Self::Adjustment { amount }
            | Self::TakenBack { amount } => *amount,
        }
    }
}

/// A fee on buying credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeeRule {
    /// Hundredths of a percent of the amount.
    pub bps: u32,
    /// The least.
    pub least: NanoUsd,
}

impl FeeRule {
    /// The fee on an amount above zero, rounded up to a nano-dollar.
    pub fn fee(&self, amount: NanoUsd) -> Result<NanoUsd, MoneyFault> {
        let product = i128::from(amount.0) * i128::from(self.bps);
        let up = i128::from(product.rem_euclid(ONE) != 0);
        let fee = i64::try_from(product.div_euclid(ONE) + up).map_err(|_| MoneyFault::Range)?;
        Ok(NanoUsd(fee).max(self.least))
    }

    fn is_sound(&self) -> bool {
        self.bps <= FEE_BPS_MAX && (NanoUsd::ZERO..=MOVE_MAX).contains(&self.least)
    }
}

/// How many requests for free models an organization has per UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeQuota {
    /// At first; 0: no quota.
    pub per_day: u32,
    /// Once it has bought enough; 0: no quota.
    pub per_day_bought: u32,
    /// What is enough.
    pub bought: NanoUsd,
}

/// What buying credits costs on top of them, and what is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fees {
    /// By card.
    pub card: FeeRule,
    /// In a crypto currency.
    pub crypto: FeeRule,
    /// On an invoice.
    pub invoice: FeeRule,
    /// Free models.
    pub free: FreeQuota,
    /// Own credentials.
    pub byok: ByokFee,
}

impl Default for Fees {
    /// 5.5 %, at least $0.80; in a crypto currency 5 %; 50 free requests a day, 1,000 once $10 have been bought. Source: OpenRouter's
    /// price list and limits.
    fn default() -> Self {
        let usual = FeeRule {
            bps: 550,
            least: NanoUsd(800_000_000),
        };
        Self {
            card: usual,
            crypto: FeeRule {
                bps: 500,
                least: NanoUsd::ZERO,
            },
            invoice: usual,
            free: FreeQuota {
                per_day: 50,
                per_day_bought: 1_000,
                bought: NanoUsd(10 * NANO_PER_USD),
            },
            byok: ByokFee::default(),
        }
    }
}

impl Fees {
    /// The fee on an amount above zero.
    pub fn on(&self, method: PayMethod, amount: NanoUsd) -> Result<NanoUsd, MoneyFault> {
        match method {
            PayMethod::Card => self.card.fee(amount),
            PayMethod::Crypto => self.crypto.fee(amount),
            PayMethod::Invoice => self.invoice.fee(amount),
            PayMethod::Promo => Ok(NanoUsd::ZERO),
        }
    }

    /// The first rule that cannot be, if any.
    pub fn unsound(&self) -> Option<&'static str> {
        let rules = [
            ("card", &self.card),
            ("crypto", &self.crypto),
            ("invoice", &self.invoice),
        ];
        rules
            .into_iter()
            .find_map(|(name, rule)| (!rule.is_sound()).then_some(name))
            .or_else(|| (self.free.bought < NanoUsd::ZERO).then_some("free"))
            .or_else(|| {
                let negative = matches!(self.byok.free, Allowance::ListPrice(free) if free < NanoUsd::ZERO);
                (self.byok.bps > FEE_BPS_MAX || negative).then_some("byok")
            })
    }
}

/// Whether an organization is held to its credit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BillingMode {
    /// It is not: its account only counts.
    #[default]
    Unlimited,
    /// To what it has bought.
    Prepaid,
    /// To so much below zero.
    Postpaid {
        /// How much.
        credit_line: NanoUsd,
    },
}

/// Buy more when little is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoTopUp {
    /// Below this.
    pub threshold: NanoUsd,
    /// So much.
    pub amount: NanoUsd,
}

/// How an organization pays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Billing {
    /// What it is held to.
    pub mode: BillingMode,
    /// Tell when less than this is left.
    pub low_balance: Option<NanoUsd>,
    /// Ask the payment system for more when less than this is left.
    pub auto_top_up: Option<AutoTopUp>,
}

impl Billing {
    /// How far below zero it may go; `None` when it is not held to anything.
    pub fn line(&self) -> Option<NanoUsd> {
        match self.mode {
            BillingMode::Unlimited => None,
            BillingMode::Prepaid => Some(NanoUsd::ZERO),
            BillingMode::Postpaid { credit_line } => Some(credit_line),
        }
    }

    /// The first field that cannot be, and why.
    pub fn unsound(&self) -> Option<(&'static str, &'static str)> {
        let positive = |amount: NanoUsd| amount > NanoUsd::ZERO && amount <= MOVE_MAX;
        if self
            .line()
            .is_some_and(|line| line < NanoUsd::ZERO || line > LINE_MAX)
        {
            return Some((
                "credit_line",
                "must not be negative, and at most 100000000 dollars",
            ));
        }
        if self.low_balance.is_some_and(|amount| !positive(amount)) {
            return Some(("low_balance", "must be above zero and at most 10000000 dollars"));
        }
        let wrong = |rule: AutoTopUp| !positive(rule.threshold) || !positive(rule.amount);
        self.auto_top_up.is_some_and(wrong).then_some((
            "auto_top_up",
            "must have amounts above zero and at most 10000000 dollars",
        ))
    }
}

/// The budget that holds an organization to its credit.
pub fn budget_id(organization: &OrganizationId) -> BudgetId {
    BudgetId::trusted(format!("{CREDIT_PREFIX}{organization}"))
}

/// Whether a budget is one of [`budget_id`].
pub fn is_credit(budget: &BudgetId) -> bool {
    budget.as_str().starts_with(CREDIT_PREFIX)
}

/// Whose credit a budget holds to, if it is one of [`budget_id`].
pub fn organization_of(budget: &BudgetId) -> Option<OrganizationId> {
    let organization = budget.as_str().strip_prefix(CREDIT_PREFIX)?;
    Some(OrganizationId::trusted(organization))
}

/// The budget that holds an organization to its quota of free models.
pub fn quota_id(organization: &OrganizationId) -> BudgetId {
    BudgetId::trusted(format!("{QUOTA_PREFIX}{organization}"))
}

/// Whether a budget is one of [`quota_id`].
pub fn is_quota(budget: &BudgetId) -> bool {
    budget.as_str().starts_with(QUOTA_PREFIX)
}

/// The limit of the budget of a credit: all that may be spent, what has been spent included.
///
/// - `available`: the balance now.
/// - `spent`: what the budget has counted. Spending takes from the balance what it adds here, so the limit stays; a fee on an own
///   credential is only taken from the balance.
pub fn limit(available: i128, line: NanoUsd, spent: i64) -> i64 {
    let limit = available
        .saturating_add(i128::from(line.0))
        .saturating_add(i128::from(spent));
    i64::try_from(limit.clamp(0, i128::from(LIMIT_MAX))).unwrap_or(LIMIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fee_on_buying_credits_is_to_the_nano_dollar() {
        use PayMethod::{Card, Crypto, Invoice, Promo};
        let fees = Fees::default();
        for (method, amount, fee) in [
            (Card, "5", "0.8"),
            (Card, "10", "0.8"),
            (Card, "14.545454545", "0.8"),         // 5.5 % is 0.799999999975
            (Card, "14.545454546", "0.800000001"), // 5.5 % is 0.80000000003: up
            (Card, "19.99", "1.09945"),
            (Card, "100", "5.5"),
            (Card, "1000", "55"),
            (Card, "0.000000001", "0.8"),
            (Card, "10000000", "550000"),
            (Invoice, "25", "1.375"),
            (Invoice, "3", "0.8"),
            (Crypto, "25", "1.25"),
            (Crypto, "10", "0.5"),
            (Crypto, "33.33", "1.6665"),
            (Crypto, "0.000000001", "0.000000001"), // any part of a nano-dollar is one
            (Crypto, "0.00000002", "0.000000001"),
            (Crypto, "0.000000021", "0.000000002"),
            (Promo, "50", "0"),
        ] {
            let amount = NanoUsd::parse(amount).unwrap();
            let found = fees.on(method, amount).unwrap();
            assert_eq!(found.to_string(), fee, "{method:?} {amount}");
        }
        assert_eq!(fees.unsound(), None);
        let rule = FeeRule {
            bps: FEE_BPS_MAX + 1,
            least: NanoUsd::ZERO,
        };
        let invoice = Fees {
            invoice: rule,
            ..fees
        };
        assert_eq!(invoice.unsound(), Some("invoice"));
    }

    #[test]
    fn the_budgets_of_an_organization_have_ids_that_nodes_can_name() {
        let longest = OrganizationId::trusted("o".repeat(ORGANIZATION_BYTES_MAX));
        for id in [budget_id(&longest), quota_id(&longest)] {
            assert_eq!(BudgetId::parse(id.as_str()), Ok(id));
        }
    }

    #[test]
    fn the_limit_follows_credit_and_not_spending() {
        let limit = |available, line, spent| limit(available, NanoUsd(line), spent);
        assert_eq!(limit(100, 0, 0), 100);
        assert_eq!(limit(60, 0, 40), 100);
        assert_eq!(limit(-20, 50, 120), 150);
        assert_eq!(limit(-20, 0, 10), 0, "what is owed is no limit below zero");
        assert_eq!(limit(i128::MAX, i64::MAX, i64::MAX), LIMIT_MAX);
    }

    #[test]
    fn settings_that_cannot_be_name_their_field() {
        let amount = NanoUsd(5);
        let good = Billing {
            mode: BillingMode::Postpaid {
                credit_line: NanoUsd::ZERO,
            },
            low_balance: Some(amount),
            auto_top_up: Some(AutoTopUp {
                threshold: amount,
                amount,
            }),
        };
        assert_eq!(good.unsound(), None);
        let credit_line = NanoUsd(-1);
        let wrong = [
            (
                Billing {
                    mode: BillingMode::Postpaid { credit_line },
                    ..good
                },
                "credit_line",
            ),
            (
                Billing {
                    low_balance: Some(NanoUsd::ZERO),
                    ..good
                },
                "low_balance",
            ),
            (
                Billing {
                    auto_top_up: Some(AutoTopUp {
                        threshold: amount,
                        amount: NanoUsd(MOVE_MAX.0 + 1),
                    }),
                    ..good
                },
                "auto_top_up",
            ),
        ];
        for (billing, field) in wrong {
            assert_eq!(billing.unsound().map(|(field, _)| field), Some(field));
        }
    }

    #[test]
    fn legs_balance_or_are_no_transfer() {
        use AccountName::{Available, CashReceived, RevenueFee};
        let (up, fee) = (NanoUsd(10), NanoUsd(1));
        assert!(balances(&[
            (CashReceived, NanoUsd(-11)),
            (Available, up),
            (RevenueFee, fee)
        ]));
        assert!(!balances(&[
            (CashReceived, NanoUsd(-10)),
            (Available, up),
            (RevenueFee, fee)
        ]));
        assert!(!balances(&[(Available, NanoUsd::ZERO)]));
    }
}
