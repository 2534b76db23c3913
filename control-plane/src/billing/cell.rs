//! What the store's rows are made of: by what usage is told apart, and what is summed. Pure.
//!
//! A new dimension or a new sum is one line in one of the two lists here and its value in [`fold`](super::fold), and a step of
//! [`SCHEMA`](super::schema::SCHEMA): columns, statements and queries of both backends are made from these lists.

use std::collections::HashMap;

use super::histogram::Histogram;

macro_rules! columns {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every one, in the order of their columns.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its column, and its name in queries.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

columns! {
    /// By what usage is told apart, beside the hour. All are text; what there is not is the empty text.
    Dimension {
        /// The organization.
        Organization = "organization",
        /// The team; empty for a project without one.
        Team = "team",
        /// The project.
        Project = "project",
        /// The API key's id.
        Key = "key",
        /// The caller's label of its end user; empty when there was none.
        User = "user_label",
        /// The model that served.
        Model = "model",
        /// The endpoint that served, or the last one tried.
        Endpoint = "endpoint",
        /// Its provider.
        Provider = "provider",
        /// The node's region.
        Region = "region",
        /// The price version.
        PriceVersion = "price_version",
        /// `true` when served with the organization's own credential, else `false`.
        Byok = "byok",
    }
}

columns! {
    /// What is summed. Counts, token counts and nano-dollars, all of them whole numbers.
    Sum {
        /// Requests that reached a provider.
        Requests = "requests",
        /// Those among them that were answered whole.
        Completed = "completed",
        /// Those that their callers left.
        Cancelled = "cancelled",
        /// Those that no attempt answered, or whose answer broke off.
        Failed = "failed",
        /// Those that were on a node that died.
        Interrupted = "interrupted",
        /// Those whose counts are estimates.
        Estimated = "estimated",
        /// Prompt tokens read at full price.
        TokensInput = "tokens_input",
        /// Prompt tokens read from the provider's cache.
        TokensCacheRead = "tokens_input_cache_read",
        /// Prompt tokens written to the provider's cache.
        TokensCacheWrite = "tokens_input_cache_write",
        /// Prompt tokens written to the provider's cache to be kept for an hour.
        TokensCacheWrite1h = "tokens_input_cache_write_1h",
        /// Completion tokens that the caller can see.
        TokensOutput = "tokens_output",
        /// Completion tokens spent on hidden reasoning.
        TokensReasoning = "tokens_output_reasoning",
        /// List price of prompt tokens at full price.
        ChargeInput = "charge_input",
        /// List price of cache reads.
        ChargeCacheRead = "charge_input_cache_read",
        /// List price of cache writes.
        ChargeCacheWrite = "charge_input_cache_write",
        /// List price of cache writes that are kept for an hour.
        ChargeCacheWrite1h = "charge_input_cache_write_1h",
        /// List price of visible completion tokens.
        ChargeOutput = "charge_output",
        /// List price of hidden reasoning tokens.
        ChargeReasoning = "charge_output_reasoning",
        /// List price of the fixed part per request.
        ChargeRequest = "charge_request",
        /// List price of all: the sum of the lines above.
        Charge = "charge",
        /// What the cached tokens would have cost at the full price of a prompt, less what they cost. Below zero where writing to the
        /// cache cost more than reading from it saved.
        CacheSavings = "cache_savings",
        /// Markups less discounts: what lies between the list price and what is owed, of requests that owe something.
        Adjustment = "adjustment",
        /// What the tenants owe; nothing for requests by own credentials and for free models.
        Billed = "billed",
    }
}

impl Sum {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

impl Dimension {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

/// One combination of dimensions, with the prices of its price version. A `series` row; rows of usage name it by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// By dimension.
    pub values: [String; Dimension::COUNT],
    /// The prices of the price version, as the event's JSON writes them.
    pub prices: String,
}

/// What tells series apart: the first half of SHA-256 over its dimensions and prices.
pub type Digest = [u8; 16];

/// Sums of one cell. Each stays at the end of its range when it would leave it, as the replicated sums do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums(pub [i64; Sum::COUNT]);

impl Default for Sums {
    fn default() -> Self {
        Self([0; Sum::COUNT])
    }
}

impl Sums {
    /// Adds to one sum.
    pub fn add(&mut self, sum: Sum, more: i64) {
        let kept = &mut self.0[sum as usize];
        *kept = kept.saturating_add(more);
    }

    /// Adds every sum of another.
    pub fn merge(&mut self, other: &Self) {
        for (kept, more) in self.0.iter_mut().zip(other.0) {
            *kept = kept.saturating_add(more);
        }
    }

    /// One sum.
    pub fn get(&self, sum: Sum) -> i64 {
        self.0[sum as usize]
    }
}

/// What was used in an hour by a series.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    /// Sums.
    pub sums: Sums,
    /// From the request to the answer's first byte, of those that had one.
    pub first_byte: Histogram,
    /// From the request to its end, of those that were answered whole.
    pub total: Histogram,
}

impl Cell {
    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        self.sums.merge(&other.sums);
        self.first_byte.merge(&other.first_byte);
        self.total.merge(&other.total);
    }
}

/// Cells by hour (since 1970) and series.
pub type Cells = HashMap<(i64, Digest), Cell>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_at_the_place_of_its_variant() {
        for (place, sum) in Sum::ALL.iter().enumerate() {
            assert_eq!(*sum as usize, place);
        }
        for (place, dimension) in Dimension::ALL.iter().enumerate() {
            assert_eq!(*dimension as usize, place);
        }
    }

    #[test]
    fn a_sum_stays_at_the_end_of_its_range() {
        let mut sums = Sums::default();
        sums.add(Sum::Charge, i64::MAX - 1);
        let more = sums.clone();
        sums.merge(&more);
        assert_eq!(sums.get(Sum::Charge), i64::MAX);
    }
}
