//! What an organization used and owes for a month. Pure.
//!
//! Invariant: the `list` of all lines sums to the store's list cost of the month, and `amount` to what is owed for usage and as fees on
//! own credentials, both to the nano-dollar.

use std::collections::BTreeMap;

use tollway_proto::admin::report::{Invoice, InvoiceEntry, InvoiceLine, InvoiceTotals};
use tollway_proto::admin::text::{Text, Usd};
use tollway_proto::admin::usage::Freshness;
use tollway_shared::ids::{ModelId, OrganizationId, ProjectId};
use tollway_shared::money::{MoneyFault, NanoUsd};
use tollway_shared::time::{DAY_MS, Day, UnixMillis};

use super::fee::FeeLine;
use super::line::Line;
use super::meter::{self, Meter};
use crate::state::State;

/// How long after a month's end its invoice becomes final.
pub const FINAL_AFTER_MS: i64 = 3 * DAY_MS;
/// Most lines of an invoice: a project's models by their meters, for the largest organizations.
pub const LINES_MAX: usize = 50_000;

/// Why there is no invoice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvoiceFault {
    /// More lines than [`LINES_MAX`].
    #[error("the invoice would have more than {LINES_MAX} lines; use the FOCUS export")]
    Lines,
    /// A sum that leaves the range of money.
    #[error("a sum {0}")]
    Money(#[from] MoneyFault),
}

/// A calendar month in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Month {
    /// Its first instant.
    pub start: UnixMillis,
    /// The first instant of the next one.
    pub end: UnixMillis,
}

impl Month {
    /// Reads `2026-11`.
    pub fn parse(text: &str) -> Option<Self> {
        let is_month = text.len() == 7 && text.as_bytes()[4] == b'-';
        let first = Day::parse(&format!("{text}-01")).filter(|_| is_month)?;
        let (start, end) = tollway_shared::time::Period::Monthly.window(first.start());
        end.map(|end| Self { start, end })
    }

    /// `2026-11`.
    pub fn text(self) -> String {
        self.start.day().month_text()
    }
}

/// The id of an organization's invoice for the month that `at` lies in: `acme-2026-11`.
pub fn invoice_id(organization: &OrganizationId, at: UnixMillis) -> String {
    format!("{organization}-{}", at.day().month_text())
}

#[derive(Debug, Default, Clone, Copy)]
struct Amounts {
    quantity: u64,
    list: i128,
    amount: i128,
}

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Meter(Meter),
    /// Markup and discount.
    Adjustment,
    /// The fee on the organization's own credential.
    ByokFee,
}

impl Item {
    fn as_str(self) -> &'static str {
        match self {
            Self::Meter(meter) => meter.as_str(),
            Self::Adjustment => "adjustment",
            Self::ByokFee => BYOK_FEE,
        }
    }
}

/// The fee on own credentials, in lines and entries.
const BYOK_FEE: &str = "byok_fee";

/// Project, model, whether with its own credential, and what for.
type Place = (ProjectId, ModelId, bool, Item);

/// An invoice in the making: takes the month's lines in any order.
#[derive(Debug)]
pub struct Draft<'a> {
    state: &'a State,
    organization: OrganizationId,
    month: Month,
    lines: BTreeMap<Place, Amounts>,
    requests: u64,
    estimated: u64,
    list: i128,
    byok_list: i128,
    adjustments: i128,
    byok_fees: i128,
    entries: Vec<InvoiceEntry>,
}

impl<'a> Draft<'a> {
    /// Begins.
    pub fn new(state: &'a State, organization: OrganizationId, month: Month) -> Self {
        Self {
            state,
            organization,
            month,
            lines: BTreeMap::new(),
            requests: 0,
            estimated: 0,
            list: 0,
            byok_list: 0,
            adjustments: 0,
            byok_fees: 0,
            entries: Vec::new(),
        }
    }

    /// Takes a line of this organization and month.
    pub fn push(&mut self, line: &Line) -> Result<(), InvoiceFault> {
        for metered in meter::meters(line) {
            let entry = self.entry(line, Item::Meter(metered.meter));
            entry.quantity = entry.quantity.saturating_add(metered.quantity);
            entry.list += metered.charged;
            if !line.byok {
                entry.amount += metered.charged;
            }
        }
        if line.byok {
            self.byok_list += i128::from(line.charge.total.0);
        }
        let adjustment = line.adjustment();
        if adjustment != 0 {
            self.entry(line, Item::Adjustment).amount += adjustment;
            self.adjustments += adjustment;
        }
        self.requests = self.requests.saturating_add(line.requests);
        self.estimated = self.estimated.saturating_add(line.estimated);
        self.list += i128::from(line.charge.total.0);
        if self.lines.len() > LINES_MAX {
            return Err(InvoiceFault::Lines);
        }
        Ok(())
    }

    /// Takes a fee of this organization and month.
    pub fn push_fee(&mut self, fee: FeeLine) -> Result<(), InvoiceFault> {
        self.byok_fees += fee.fee;
        match fee.cell {
            Some(cell) => {
                let place = (cell.path.project, cell.model, true, Item::ByokFee);
                let line = self.lines.entry(place).or_default();
                line.quantity = line.quantity.saturating_add(fee.requests);
                line.amount += fee.fee;
            }
            None => self.entries.push(InvoiceEntry {
                at: Text(self.month.start),
                kind: BYOK_FEE.into(),
                reference: format!("{}/{}", self.organization, self.month.text()),
                amount: usd(-fee.fee)?,
                fee: Text(NanoUsd::ZERO),
            }),
        }
        Ok(())
    }

    fn entry(&mut self, line: &Line, item: Item) -> &mut Amounts {
        let place = (line.path.project.clone(), line.model.clone(), line.byok, item);
        self.lines.entry(place).or_default()
    }

    /// The invoice.
    ///
    /// - `money`: what the account says of the month.
    pub fn finish(
        mut self,
        mut money: Money,
        freshness: Vec<Freshness>,
        now: UnixMillis,
    ) -> Result<Invoice, InvoiceFault> {
        let usage = self.list - self.byok_list + self.adjustments;
        let fees = i128::from(money.fees.0);
        let totals = InvoiceTotals {
            requests: self.requests,
            estimated: self.estimated,
            list: usd(self.list)?,
            byok_list: usd(self.byok_list)?,
            adjustments: usd(self.adjustments)?,
            usage: usd(usage)?,
            byok_fees: usd(self.byok_fees)?,
            fees: Text(money.fees),
            total: usd(usage + self.byok_fees + fees)?,
        };
        money.entries.append(&mut self.entries);
        let name = self.state.organizations.get(&self.organization);
        let name = name.map_or_else(|| self.organization.to_string(), |kept| kept.value.name.clone());
        let Month { start, end } = self.month;
        let lines = self.lines.iter().map(|(place, sums)| self.line(place, sums));
        Ok(Invoice {
            id: invoice_id(&self.organization, self.month.start),
            organization_name: name,
            month: self.month.text(),
            from: Text(start.day()),
            to: Text(end.plus_ms(-1).day()),
            currency: "USD".into(),
            is_final: now >= end.plus_ms(FINAL_AFTER_MS),
            lines: lines.collect::<Result<_, _>>()?,
            entries: money.entries,
            entries_missing: money.entries_missing,
            totals,
            opening_balance: money.opening.map(Text),
            closing_balance: money.closing.map(Text),
            freshness,
            organization: Text(self.organization),
        })
    }

    fn line(&self, place: &Place, sums: &Amounts) -> Result<InvoiceLine, InvoiceFault> {
        let (project, model, byok, item) = place;
        let name = self.state.projects.get(project);
        Ok(InvoiceLine {
            project: Text(project.clone()),
            project_name: name.map_or_else(|| project.to_string(), |kept| kept.value.name.clone()),
            model: Text(model.clone()),
            meter: item.as_str().into(),
            byok: *byok,
            quantity: sums.quantity,
            list: usd(sums.list)?,
            amount: usd(sums.amount)?,
        })
    }
}

/// What the organization's account says of the month.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Money {
    /// What was paid, given and corrected, by what it does to the balance.
    pub entries: Vec<InvoiceEntry>,
    /// The fees on them.
    pub fees: NanoUsd,
    /// The balance when the month began.
    pub opening: Option<NanoUsd>,
    /// The balance when it ended, or now.
    pub closing: Option<NanoUsd>,
    /// Some entries are sums of the month by kind: their transfers are not kept.
    pub entries_missing: bool,
}

/// A sum as money.
pub(crate) fn usd(nano: i128) -> Result<Usd, MoneyFault> {
    i64::try_from(nano)
        .map(|nano| Text(NanoUsd(nano)))
        .map_err(|_| MoneyFault::Range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use crate::state::samples;

    #[test]
    fn the_lines_of_an_invoice_sum_to_the_lines_it_is_made_of() {
        let state = samples::catalog();
        let month = Month::parse("2026-11").unwrap();
        let mut draft = Draft::new(&state, OrganizationId::trusted("o"), month);
        let (mut list, mut owed) = (0, 0);
        for (byok, adjustment) in [(false, 0), (false, -77), (true, 0), (false, 5), (true, 9)] {
            let mut line = sample::line();
            line.byok = byok;
            line.billed = NanoUsd(i64::try_from(line.list_owed()).unwrap() + adjustment);
            list += i128::from(line.charge.total.0);
            owed += i128::from(line.billed.0);
            draft.push(&line).unwrap();
        }
        let money = Money {
            fees: NanoUsd(1_000),
            ..Money::default()
        };
        let invoice = draft.finish(money, vec![], month.end).unwrap();
        let sum = |of: fn(&InvoiceLine) -> i64| -> i128 {
            invoice.lines.iter().map(|line| i128::from(of(line))).sum()
        };
        assert_eq!(sum(|line| line.list.0.0), list);
        assert_eq!(sum(|line| line.amount.0.0), owed);
        let totals = &invoice.totals;
        assert_eq!(i128::from(totals.list.0.0), list);
        assert_eq!(i128::from(totals.usage.0.0), owed);
        assert_eq!(i128::from(totals.total.0.0), owed + 1_000);
        assert_eq!((totals.requests, invoice.id.as_str()), (50, "o-2026-11"));
    }

    #[test]
    fn an_invoice_is_final_three_days_after_its_month() {
        let state = samples::catalog();
        let month = Month::parse("2026-02").unwrap();
        assert_eq!(month.end.rfc3339(), "2026-03-01T00:00:00.000Z");
        for (now, is_final) in [
            (month.end.plus_ms(FINAL_AFTER_MS - 1), false),
            (month.end.plus_ms(FINAL_AFTER_MS), true),
        ] {
            let draft = Draft::new(&state, OrganizationId::trusted("o"), month);
            let invoice = draft.finish(Money::default(), vec![], now).unwrap();
            assert_eq!(invoice.is_final, is_final);
            assert_eq!(invoice.to.to_string(), "2026-02-28");
        }
        for text in ["2026-13", "2026-1", "2026-11-01", "11-2026", ""] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
    }
}
