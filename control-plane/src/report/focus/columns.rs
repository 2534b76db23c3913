//! The columns of the export, in order, and one row of them.
//!
//! Names, types and rules: FOCUS 1.4, Cost and Usage. Left out are columns of things that we do not sell: commitments, capacity
//! reservations, split costs, availability zones, currencies other than the dollar. Our own columns start with `x_` and come last.

use std::fmt;

use tollway_shared::money::NANO_PER_USD;
use tollway_shared::time::UnixMillis;

/// A decimal number with nine digits after the point: money, prices and quantities alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nano(pub i128);

impl Nano {
    /// A whole number.
    pub fn whole(number: u64) -> Self {
        Self(i128::from(number) * i128::from(NANO_PER_USD))
    }
}

impl fmt::Display for Nano {
    /// As FOCUS writes numbers: no exponent, no plus sign, no zeros at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = u128::from(NANO_PER_USD.unsigned_abs());
        let size = self.0.unsigned_abs();
        let (whole, fraction) = (size / one, size % one);
        if self.0 < 0 {
            f.write_str("-")?;
        }
        if fraction == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{fraction:09}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, or JSON as text.
    Text,
    /// A [`Nano`].
    Decimal,
    /// An instant in UTC.
    Instant,
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its FOCUS name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// A value of a row; absent values are null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// No value.
    Null,
    /// Of [`Kind::Text`].
    Text(&'a str),
    /// Of [`Kind::Decimal`].
    Decimal(Nano),
    /// Of [`Kind::Instant`].
    Instant(UnixMillis),
}

impl<'a> From<&'a Option<String>> for Cell<'a> {
    fn from(value: &'a Option<String>) -> Self {
        value.as_deref().map_or(Self::Null, Self::Text)
    }
}

impl From<&Option<Nano>> for Cell<'_> {
    fn from(value: &Option<Nano>) -> Self {
        value.map_or(Self::Null, Self::Decimal)
    }
}

impl From<&Option<UnixMillis>> for Cell<'_> {
    fn from(value: &Option<UnixMillis>) -> Self {
        value.map_or(Self::Null, Self::Instant)
    }
}

macro_rules! columns {
    ($($name:literal $field:ident: $kind:ident $type:ty,)*) => {
        /// One charge. An absent value is null.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Row {
            $(#[doc = $name] pub $field: Option<$type>,)*
        }

        /// Every column, in order.
        pub const COLUMNS: &[Column] = &[$(Column { name: $name, kind: Kind::$kind },)*];

        impl Row {
            /// The values, in the order of [`COLUMNS`].
            pub fn cells(&self) -> [Cell<'_>; COLUMNS.len()] {
                [$(Cell::from(&self.$field),)*]
            }
        }
    };
}

columns! {
    "BilledCost" billed_cost: Decimal Nano,
    "BillingAccountId" billing_account_id: Text String,
    "BillingAccountName" billing_account_name: Text String,
    "BillingAccountType" billing_account_type: Text String,
    "BillingCurrency" billing_currency: Text String,
    "BillingPeriodEnd" billing_period_end: Instant UnixMillis,
    "BillingPeriodStart" billing_period_start: Instant UnixMillis,
    "ChargeCategory" charge_category: Text String,
    "ChargeClass" charge_class: Text String,
    "ChargeDescription" charge_description: Text String,
    "ChargeFrequency" charge_frequency: Text String,
    "ChargePeriodEnd" charge_period_end: Instant UnixMillis,
    "ChargePeriodStart" charge_period_start: Instant UnixMillis,
    "ConsumedQuantity" consumed_quantity: Decimal Nano,
    "ConsumedUnit" consumed_unit: Text String,
    "ContractedCost" contracted_cost: Decimal Nano,
    "ContractedUnitPrice" contracted_unit_price: Decimal Nano,
    "EffectiveCost" effective_cost: Decimal Nano,
    "HostProviderName" host_provider_name: Text String,
    "InvoiceId" invoice_id: Text String,
    "InvoiceIssuerName" invoice_issuer_name: Text String,
    "ListCost" list_cost: Decimal Nano,
    "ListUnitPrice" list_unit_price: Decimal Nano,
    "PricingCategory" pricing_category: Text String,
    "PricingQuantity" pricing_quantity: Decimal Nano,
    "PricingUnit" pricing_unit: Text String,
    "RegionId" region_id: Text String,
    "RegionName" region_name: Text String,
    "ResourceId" resource_id: Text String,
    "ResourceName" resource_name: Text String,
    "ResourceType" resource_type: Text String,
    "ServiceCategory" service_category: Text String,
    "ServiceName" service_name: Text String,
    "ServiceProviderName" service_provider_name: Text String,
    "ServiceSubcategory" service_subcategory: Text String,
    "SkuId" sku_id: Text String,
    "SkuMeter" sku_meter: Text String,
    "SkuPriceDetails" sku_price_details: Text String,
    "SkuPriceId" sku_price_id: Text String,
    "SubAccountId" sub_account_id: Text String,
    "SubAccountName" sub_account_name: Text String,
    "SubAccountType" sub_account_type: Text String,
    "Tags" tags: Text String,
    "x_Byok" byok: Text String,
    "x_CacheSavings" cache_savings: Decimal Nano,
    "x_EndpointId" endpoint_id: Text String,
    "x_EstimatedRequestCount" estimated_request_count: Decimal Nano,
    "x_ModelId" model_id: Text String,
    "x_RequestCount" request_count: Decimal Nano,
    "x_TeamId" team_id: Text String,
    "x_TokenType" token_type: Text String,
    "x_UpstreamCost" upstream_cost: Decimal Nano,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_without_exponents_signs_or_zeros() {
        for (nano, text) in [
            (0, "0"),
            (1, "0.000000001"),
            (-1_500_000_000, "-1.5"),
            (2_000_000_000, "2"),
            (i128::from(i64::MAX) * 1000, "9223372036854.775807"),
        ] {
            assert_eq!(Nano(nano).to_string(), text);
        }
        assert_eq!(Nano::whole(7).to_string(), "7");
    }
}
