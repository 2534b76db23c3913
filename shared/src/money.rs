//! Money without floats: amounts in nano-dollars, prices in nano-dollars per million units, and the only rounding rules.
//!
//! Charges round half to even once per line; holds and fees round up. Arithmetic is checked: an overflow is an error, never a wrap.
//! Range: `i64` nano-dollars is ±9.2 billion dollars. JSON carries decimal strings.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Digits after the decimal point of a dollar amount.
const DECIMALS: usize = 9;
/// Nano-dollars in a dollar.
pub const NANO_PER_USD: i64 = 1_000_000_000;
/// Units that a [`Price`] is quoted for.
pub const UNITS_PER_PRICE: i128 = 1_000_000;

/// Why a text is not an amount, or why a sum has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyFault {
    /// Not a plain decimal number.
    #[error("is not a decimal number such as \"2.50\"")]
    NotDecimal,
    /// More than nine digits after the point.
    #[error("has more than 9 digits after the decimal point")]
    TooPrecise,
    /// Outside ±9.2 billion dollars.
    #[error("is outside the range of ±9223372036 dollars")]
    Range,
}

fn parse_nano(text: &str) -> Result<i64, MoneyFault> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) || digits.ends_with('.') {
        return Err(MoneyFault::NotDecimal);
    }
    if fraction.len() > DECIMALS {
        return Err(MoneyFault::TooPrecise);
    }
    let joined = format!("{whole}{fraction:0<DECIMALS$}");
    let size: i128 = joined.parse().map_err(|_| MoneyFault::Range)?;
    i64::try_from(if negative { -size } else { size }).map_err(|_| MoneyFault::Range)
}

fn write_nano(value: i64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Digits from the last to the first, on the stack: every usage event has a dozen of these.
    let mut text = [0u8; 24]; // sign, ten digits, point, nine digits
    let mut start = text.len();
    let mut put = |byte: u8| {
        start -= 1;
        text[start] = byte;
    };
    let size = value.unsigned_abs();
    let (mut whole, mut fraction) = (size / NANO_PER_USD as u64, size % NANO_PER_USD as u64);
    if fraction > 0 {
        let mut trailing = true;
        for _ in 0..9 {
            let digit = (fraction % 10) as u8;
            fraction /= 10;
            trailing &= digit == 0;
            if !trailing {
                put(b'0' + digit);
            }
        }
        put(b'.');
    }
    loop {
        put(b'0' + (whole % 10) as u8);
        whole /= 10;
        if whole == 0 {
            break;
        }
    }
    if value < 0 {
        put(b'-');
    }
    f.write_str(std::str::from_utf8(&text[start..]).map_err(|_| fmt::Error)?)
}

macro_rules! decimal {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub i64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);

            /// Reads a decimal dollar amount with at most nine digits after the point.
            pub fn parse(text: &str) -> Result<Self, MoneyFault> {
                parse_nano(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_nano(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_nano(self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_i64(self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                    Self::parse(&text).map_err(|fault| serde::de::Error::custom(format!("`{text}` {fault}")))
                } else {
                    i64::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

decimal!(/// An amount of money: billionths of a US dollar. Decimal dollars in JSON and in print.
    NanoUsd);
decimal!(/// A price: billionths of a US dollar per 1,000,000 units (tokens). Decimal dollars per million in JSON.
    Price);

impl NanoUsd {
    /// The sum, or `Range`.
    pub fn plus(self, other: Self) -> Result<Self, MoneyFault> {
        self.0.checked_add(other.0).map(Self).ok_or(MoneyFault::Range)
    }

    /// The difference, or `Range`.
    pub fn minus(self, other: Self) -> Result<Self, MoneyFault> {
        self.0.checked_sub(other.0).map(Self).ok_or(MoneyFault::Range)
    }
}

impl Price {
    /// What `units` cost: one division, rounded half to even to a nano-dollar. For charges.
    pub fn charge(self, units: u64) -> Result<NanoUsd, MoneyFault> {
        let product = i128::from(units) * i128::from(self.0);
        let (floor, rest) = (
            product.div_euclid(UNITS_PER_PRICE),
            product.rem_euclid(UNITS_PER_PRICE),
        );
        let up = match (rest * 2).cmp(&UNITS_PER_PRICE) {
            std::cmp::Ordering::Greater => 1,
            std::cmp::Ordering::Equal => floor & 1,
            std::cmp::Ordering::Less => 0,
        };
        i64::try_from(floor + up)
            .map(NanoUsd)
            .map_err(|_| MoneyFault::Range)
    }

    /// What `units` cost at most: rounded up. For holds and fees.
    pub fn charge_up(self, units: u64) -> Result<NanoUsd, MoneyFault> {
        let product = i128::from(units) * i128::from(self.0);
        let up = i128::from(product.rem_euclid(UNITS_PER_PRICE) != 0);
        i64::try_from(product.div_euclid(UNITS_PER_PRICE) + up)
            .map(NanoUsd)
            .map_err(|_| MoneyFault::Range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_survive_their_decimal_form() {
        for (text, nano) in [
            ("0", 0),
            ("2.5", 2_500_000_000),
            ("-0.000000001", -1),
            ("9223372036.854775807", i64::MAX),
        ] {
            assert_eq!(NanoUsd::parse(text), Ok(NanoUsd(nano)), "{text}");
            assert_eq!(NanoUsd(nano).to_string(), text);
        }
        assert_eq!(NanoUsd::parse("1.50").unwrap().to_string(), "1.5");
    }

    #[test]
    fn what_is_not_an_amount_says_why() {
        for (text, fault) in [
            ("", MoneyFault::NotDecimal),
            ("1.", MoneyFault::NotDecimal),
            (".5", MoneyFault::NotDecimal),
            ("1e3", MoneyFault::NotDecimal),
            ("+1", MoneyFault::NotDecimal),
            ("0.0000000001", MoneyFault::TooPrecise),
            ("9223372037", MoneyFault::Range),
        ] {
            assert_eq!(NanoUsd::parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn charges_round_half_to_even_and_holds_round_up() {
        // price 1 nano per million: 500,000 units are half a nano.
        for (units, even, up) in [
            (499_999, 0, 1),
            (500_000, 0, 1),
            (500_001, 1, 1),
            (1_500_000, 2, 2),
            (2_500_000, 2, 3),
        ] {
            assert_eq!(Price(1).charge(units), Ok(NanoUsd(even)), "{units}");
            assert_eq!(Price(1).charge_up(units), Ok(NanoUsd(up)), "{units}");
        }
        assert_eq!(Price(i64::MAX).charge(u64::MAX), Err(MoneyFault::Range));
    }
}
