//! One line → its charges. Pure.

use serde_json::json;
use tollway_shared::credit::BillingMode;
use tollway_shared::ids::{OrganizationId, ProviderId};
use tollway_shared::labels::{self, Labels};
use tollway_shared::money::NANO_PER_USD;
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::{DAY_MS, Period, UnixMillis};

use super::columns::{Nano, Row};
use crate::report::account::{Movement, MovementKind};
use crate::report::fee::FeeLine;
use crate::report::invoice::invoice_id;
use crate::report::line::{HOUR_MS, Line};
use crate::report::meter::{self, Meter, Metered};
use crate::state::State;

/// Who sells: the operator, as `ServiceProviderName` and `InvoiceIssuerName`.
pub const OPERATOR: &str = "Tollway";
/// `ServiceName`.
pub const SERVICE: &str = "Tollway LLM Gateway";
/// `BillingCurrency`.
pub const CURRENCY: &str = "USD";
/// `PricingUnit` of tokens.
const MILLION_TOKENS: &str = "1000000 Tokens";
/// Nano-units of one token in units of a million.
const NANO_MILLIONS_PER_TOKEN: i128 = 1_000;

/// The charges of a line.
///
/// - `final_before`: months that end before this are invoiced and carry their invoice's id.
pub fn charges(line: &Line, state: &State, final_before: UnixMillis) -> Vec<Row> {
    let base = base(line, state, final_before);
    let prepaid = is_prepaid(state, &line.path.organization);
    let mut rounding = i128::from(line.charge.total.0);
    let mut rows: Vec<Row> = meter::meters(line)
        .map(|metered| {
            rounding -= metered.product;
            usage(&base, line, &metered)
        })
        .collect();
    if rows.is_empty() {
        rows.push(unused(&base, line));
    }
    if let Some(first) = rows.first_mut() {
        first.request_count = Some(Nano::whole(line.requests));
        first.estimated_request_count = Some(Nano::whole(line.estimated));
    }
    if rounding != 0 {
        let text = "Rounding of each request to a nano-dollar";
        let owed = if line.byok { 0 } else { rounding };
        rows.push(beside(&base, line, rounding, owed, text));
    }
    let adjustment = line.adjustment();
    if adjustment != 0 {
        let text = if adjustment > 0 { "Markup" } else { "Discount" };
        rows.push(beside(&base, line, 0, adjustment, text));
    }
    if prepaid {
        // It was billed when the credit was bought.
        rows.iter_mut().for_each(|row| row.billed_cost = Some(Nano(0)));
    }
    rows
}

fn is_prepaid(state: &State, organization: &OrganizationId) -> bool {
    let billing = state.billing.get(organization);
    billing.is_some_and(|kept| kept.value.mode == BillingMode::Prepaid)
}

/// The charges of a movement of credit: what was bought and its fee are purchases, what went back corrects one, what was given is a
/// credit. Either credit is billed or usage is: of a prepaid organization what was bought and what went back, and otherwise, where credit
/// only pays for usage that is billed, what was given and corrected.
pub fn movement(
    organization: &OrganizationId,
    movement: &Movement,
    state: &State,
    final_before: UnixMillis,
) -> Vec<Row> {
    let mut base = Row {
        charge_frequency: Some("One-Time".into()),
        ..of_organization(organization, movement.at, state, final_before)
    };
    if movement.is_of_month {
        base.charge_period_end = base.billing_period_end;
    }
    let row = |category: &str, text: &str, list: i128, effective: i128| Row {
        charge_category: Some(category.into()),
        charge_description: Some(format!("{text} ({})", movement.reference)),
        list_cost: Some(Nano(list)),
        contracted_cost: Some(Nano(list)),
        billed_cost: Some(Nano(list)),
        effective_cost: Some(Nano(effective)),
        ..base.clone()
    };
    let priced = |sku: &str, unit: &str, quantity: i128, price: i128, row: Row| Row {
        sku_id: Some(sku.into()),
        sku_price_id: Some(sku.into()),
        pricing_category: Some("Standard".into()),
        pricing_quantity: Some(Nano(quantity)),
        pricing_unit: Some(unit.into()),
        list_unit_price: Some(Nano(price)),
        contracted_unit_price: Some(Nano(price)),
        ..row
    };
    let Movement {
        kind, amount, fee, ..
    } = movement;
    let one = i128::from(NANO_PER_USD);
    let first = match kind {
        MovementKind::TopUp => {
            let bought = row("Purchase", "Credits", *amount, 0);
            priced("credits", "Credits", *amount, one, bought)
        }
        MovementKind::Refund => Row {
            charge_class: Some("Correction".into()),
            ..row("Purchase", "Credits given back", *amount, 0)
        },
        MovementKind::Grant => row("Credit", "Credits given", -amount, -amount),
        MovementKind::Adjustment => row("Adjustment", "Correction of the balance", -amount, -amount),
    };
    let is_paid = matches!(kind, MovementKind::TopUp | MovementKind::Refund);
    let mut rows = vec![first];
    if is_paid != is_prepaid(state, organization) {
        rows[0].billed_cost = Some(Nano(0));
    }
    if *fee != 0 {
        let charged = row("Purchase", "Fee on credits", *fee, *fee);
        rows.push(priced("platform-fee", "Fees", one, *fee, charged));
    }
    rows
}

/// The charge of a fee on own credentials: of a day, or of what is left of a month. The operator bills it, whoever served.
pub fn fee(line: &FeeLine, state: &State, final_before: UnixMillis) -> Row {
    let at = line.cell.as_ref().map_or(line.month, |cell| cell.day).start();
    let whole = of_organization(&line.organization, at, state, final_before);
    let end = match &line.cell {
        Some(_) => Some(at.plus_ms(DAY_MS)),
        None => whole.billing_period_end,
    };
    let base = Row {
        charge_period_start: Some(at),
        charge_period_end: end,
        ..whole
    };
    let base = match &line.cell {
        Some(cell) => Row {
            host_provider_name: Some(provider_name(state, &cell.provider)),
            model_id: Some(cell.model.to_string()),
            ..of_path(base, &cell.path, state)
        },
        None => base,
    };
    let billed = if is_prepaid(state, &line.organization) {
        0
    } else {
        line.fee
    };
    let used = line.cell.as_ref().map(|_| Nano::whole(line.requests));
    Row {
        charge_category: Some("Usage".into()),
        charge_frequency: Some("Usage-Based".into()),
        charge_description: Some("Fee on own credentials".into()),
        consumed_quantity: Some(used.unwrap_or(Nano::whole(1))),
        consumed_unit: Some(if used.is_some() { "Requests" } else { "Months" }.into()),
        pricing_category: Some("Standard".into()),
        pricing_quantity: Some(Nano::whole(1)),
        pricing_unit: Some("Fees".into()),
        list_unit_price: Some(Nano(line.fee)),
        contracted_unit_price: Some(Nano(line.fee)),
        list_cost: Some(Nano(line.fee)),
        contracted_cost: Some(Nano(line.fee)),
        effective_cost: Some(Nano(line.fee)),
        billed_cost: Some(Nano(billed)),
        sku_id: Some("byok-fee".into()),
        sku_meter: Some("BYOK Routing Fee".into()),
        sku_price_id: Some("byok-fee".into()),
        byok: Some("true".into()),
        ..base
    }
}

/// What all charges of an hour of an organization have in common.
fn of_organization(
    organization: &OrganizationId,
    at: UnixMillis,
    state: &State,
    final_before: UnixMillis,
) -> Row {
    let text = |text: &str| Some(text.to_owned());
    let name = state.organizations.get(organization);
    let (start, end) = Period::Monthly.window(at);
    let hour = UnixMillis(at.0 - at.0.rem_euclid(HOUR_MS));
    Row {
        billing_account_id: text(organization.as_str()),
        billing_account_name: Some(
            name.map_or_else(|| organization.to_string(), |kept| kept.value.name.clone()),
        ),
        billing_account_type: text("Organization"),
        billing_currency: text(CURRENCY),
        billing_period_start: Some(start),
        billing_period_end: end,
        charge_period_start: Some(hour),
        charge_period_end: Some(hour.plus_ms(HOUR_MS)),
        invoice_id: end
            .filter(|end| *end <= final_before)
            .map(|_| invoice_id(organization, at)),
        invoice_issuer_name: text(OPERATOR),
        service_category: text("AI and Machine Learning"),
        service_subcategory: text("Generative AI"),
        service_name: text(SERVICE),
        service_provider_name: text(OPERATOR),
        ..Row::default()
    }
}

/// What all charges of a line have in common.
fn base(line: &Line, state: &State, final_before: UnixMillis) -> Row {
    let path = &line.path;
    let provider = provider_name(state, &line.provider);
    let seller = if line.byok {
        provider.clone()
    } else {
        OPERATOR.to_owned()
    };
    let text = |text: &str| Some(text.to_owned());
    Row {
        host_provider_name: Some(provider),
        invoice_issuer_name: Some(seller.clone()),
        region_id: text(line.region.as_str()),
        region_name: text(line.region.as_str()),
        service_provider_name: Some(seller),
        byok: text(if line.byok { "true" } else { "false" }),
        endpoint_id: text(line.endpoint.as_str()),
        model_id: text(line.model.as_str()),
        ..of_path(
            of_organization(&path.organization, line.hour, state, final_before),
            path,
            state,
        )
    }
}

fn provider_name(state: &State, id: &ProviderId) -> String {
    let provider = state.providers.get(id);
    provider.map_or_else(|| id.to_string(), |kept| kept.value.name.clone())
}

/// What a charge says of its tenant below the organization.
fn of_path(base: Row, path: &TenantPath, state: &State) -> Row {
    let project = state.projects.get(&path.project);
    let key = state.keys.get(&path.key);
    let text = |text: &str| Some(text.to_owned());
    Row {
        resource_id: text(path.key.as_str()),
        resource_name: Some(key.map_or_else(|| path.key.to_string(), |kept| kept.value.name.clone())),
        resource_type: text("API Key"),
        sub_account_id: text(path.project.as_str()),
        sub_account_name: Some(
            project.map_or_else(|| path.project.to_string(), |kept| kept.value.name.clone()),
        ),
        sub_account_type: text("Project"),
        team_id: path.team.as_ref().map(ToString::to_string),
        tags: tags(
            project.map(|kept| &kept.value.labels),
            key.map(|kept| &kept.value.labels),
        ),
        ..base
    }
}

/// Labels as they are now, a key's own above its project's; nothing where there are none.
fn tags(project: Option<&Labels>, key: Option<&Labels>) -> Option<String> {
    let none = Labels::new();
    let both = labels::of_both(project.unwrap_or(&none), key.unwrap_or(&none));
    (!both.is_empty()).then(|| json!(both).to_string())
}

fn money(row: &mut Row, list: i128, effective: i128) {
    row.list_cost = Some(Nano(list));
    row.effective_cost = Some(Nano(effective));
    row.billed_cost = Some(Nano(effective));
}

/// A meter's charge.
fn usage(base: &Row, line: &Line, metered: &Metered) -> Row {
    let Metered {
        meter,
        quantity,
        unit_price,
        product: list,
        ..
    } = *metered;
    let (consumed, pricing, pricing_unit) = match meter {
        Meter::Requests => ("Requests", Nano::whole(quantity), "Requests"),
        _ => (
            "Tokens",
            Nano(i128::from(quantity) * NANO_MILLIONS_PER_TOKEN),
            MILLION_TOKENS,
        ),
    };
    // What the organization pays us: with its own credential, nothing per unit.
    let contracted = if line.byok { 0 } else { 1 };
    let mut row = Row {
        charge_category: Some("Usage".into()),
        charge_frequency: Some("Usage-Based".into()),
        charge_description: Some(format!(
            "{} of {} at {}",
            meter.title(),
            line.model,
            line.provider
        )),
        consumed_quantity: Some(Nano::whole(quantity)),
        consumed_unit: Some(consumed.into()),
        contracted_cost: Some(Nano(list * contracted)),
        contracted_unit_price: Some(Nano(unit_price * contracted)),
        list_unit_price: Some(Nano(unit_price)),
        pricing_category: Some("Standard".into()),
        pricing_quantity: Some(pricing),
        pricing_unit: Some(pricing_unit.into()),
        sku_id: Some(format!("{}/{}", line.provider, line.model)),
        sku_meter: Some(meter.title().into()),
        sku_price_details: Some(details(line, meter)),
        sku_price_id: Some(format!("{}/{}", line.price, meter.as_str())),
        token_type: (meter != Meter::Requests).then(|| meter.as_str().to_owned()),
        cache_savings: meter::cache_savings(metered, &line.prices).map(Nano),
        upstream_cost: Some(Nano(list)),
        ..base.clone()
    };
    money(&mut row, list, list * contracted);
    row
}

/// A line that used nothing: no provider answered. It is a charge of zero requests, at the price of one.
fn unused(base: &Row, line: &Line) -> Row {
    let nothing = Metered {
        meter: Meter::Requests,
        quantity: 0,
        unit_price: line.prices.request.unwrap_or_default().0.into(),
        charged: 0,
        product: 0,
    };
    Row {
        charge_description: Some(format!(
            "Requests for {} at {} without an answer",
            line.model, line.provider
        )),
        consumed_quantity: Some(Nano::whole(line.requests)),
        ..usage(base, line, &nothing)
    }
}

/// A charge that has no unit.
fn beside(base: &Row, line: &Line, list: i128, owed: i128, text: &str) -> Row {
    let mut row = Row {
        charge_category: Some("Adjustment".into()),
        charge_frequency: Some("Usage-Based".into()),
        charge_description: Some(format!("{text}: {} at {}", line.model, line.provider)),
        contracted_cost: Some(Nano(owed)),
        upstream_cost: Some(Nano(list)),
        ..base.clone()
    };
    money(&mut row, list, owed);
    row
}

/// What the price is for. Keys that FOCUS 1.4 does not define start with `x_`.
fn details(line: &Line, meter: Meter) -> String {
    let (developer, _) = line.model.as_str().split_once('/').unwrap_or_default();
    json!({
        "x_ModelDeveloper": developer,
        "x_ModelId": line.model.as_str(),
        "x_TokenType": meter.as_str(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, Outcome, PutBilling};
    use tollway_shared::cost::Charge;
    use tollway_shared::credit::Billing;
    use tollway_shared::money::NanoUsd;
    use tollway_shared::tokens::TokenCounts;

    use super::*;
    use crate::report::sample;
    use crate::state::samples;

    fn sums(rows: &[Row]) -> (i128, i128, i128) {
        let sum = |of: fn(&Row) -> Option<Nano>| rows.iter().filter_map(of).map(|nano| nano.0).sum();
        (
            sum(|row| row.list_cost),
            sum(|row| row.effective_cost),
            sum(|row| row.request_count),
        )
    }

    #[test]
    fn the_charges_of_any_line_sum_to_what_the_ledger_says() {
        let state = samples::catalog();
        let nothing = Line {
            tokens: TokenCounts::default(),
            charge: Charge::default(),
            ..sample::line()
        };
        for (line, byok, adjustment, rows) in [
            (sample::line(), false, 0, 6),
            (sample::line(), false, -77, 7),
            (sample::line(), true, 0, 6),
            (nothing.clone(), false, 0, 1),
            (nothing, true, 0, 1),
        ] {
            let owed = if byok { 0 } else { line.charge.total.0 };
            let line = Line {
                byok,
                billed: NanoUsd(owed + adjustment),
                ..line
            };
            let found = charges(&line, &state, UnixMillis(0));
            let requests = i128::from(line.requests) * 1_000_000_000;
            let wanted = (line.charge.total.0.into(), line.billed.0.into(), requests);
            assert_eq!(sums(&found), wanted, "{byok} {adjustment}");
            assert_eq!(found.len(), rows, "{found:#?}");
        }
    }

    #[test]
    fn either_credit_is_billed_or_usage_and_effective_is_what_is_used() {
        let (line, organization) = (sample::line(), OrganizationId::trusted("o"));
        let used = i128::from(line.billed.0);
        let postpaid = BillingMode::Postpaid {
            credit_line: NanoUsd(9),
        };
        // What is billed of usage, and of each kind of movement beside its fee.
        for (mode, usage, bought, back, given, corrected) in [
            (BillingMode::Prepaid, 0, 10_000, -3_000, 0, 0),
            (BillingMode::Unlimited, used, 0, 0, -5_000, 40),
            (postpaid, used, 0, 0, -5_000, 40),
        ] {
            let mut state = samples::catalog();
            let billing = PutBilling {
                organization: organization.clone(),
                billing: Billing {
                    mode,
                    ..Billing::default()
                },
            };
            let outcome = samples::run(&mut state, Command::PutBilling(billing));
            assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
            let costs = |rows: Vec<Row>| {
                let sum = |of: fn(&Row) -> Option<Nano>| rows.iter().filter_map(of).map(|nano| nano.0).sum();
                let costs: (i128, i128) = (sum(|row| row.billed_cost), sum(|row| row.effective_cost));
                costs
            };
            let found = costs(charges(&line, &state, UnixMillis(0)));
            assert_eq!(found, (usage, used), "{mode:?}");
            for (kind, amount, fee, billed, effective) in [
                (MovementKind::TopUp, 10_000, 7, bought + 7, 7),
                (MovementKind::Refund, -3_000, 0, back, 0),
                (MovementKind::Grant, 5_000, 0, given, -5_000),
                (MovementKind::Adjustment, -40, 0, corrected, 40),
            ] {
                let moved = Movement {
                    at: line.hour,
                    reference: "o/1".into(),
                    is_of_month: false,
                    kind,
                    amount,
                    fee,
                };
                let found = costs(movement(&organization, &moved, &state, UnixMillis(0)));
                assert_eq!(found, (billed, effective), "{mode:?} {kind:?}");
            }
        }
    }

    #[test]
    fn a_month_that_is_over_names_its_invoice() {
        let (state, line) = (samples::catalog(), sample::line());
        let (_, end) = Period::Monthly.window(line.hour);
        let end = end.unwrap();
        for (final_before, id) in [(end.plus_ms(-1), None), (end, Some("o-2026-11".to_owned()))] {
            let rows = charges(&line, &state, final_before);
            assert!(rows.iter().all(|row| row.invoice_id == id), "{final_before:?}");
        }
    }
}
