//! Wall-clock instants as numbers, and the calendar arithmetic on them. There is no `now()` here: time is an argument.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds in a day.
pub const DAY_MS: i64 = 86_400_000;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

/// A calendar day in UTC, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Day(pub i32);

impl UnixMillis {
    /// This instant moved by `ms` milliseconds; stops at the ends of the range.
    pub fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// The UTC day this instant lies in.
    pub fn day(self) -> Day {
        Day(i32::try_from(self.0.div_euclid(DAY_MS)).unwrap_or(i32::MAX))
    }

    /// `2026-11-22T18:00:00.000Z`; instants outside the years ±9999 print as the nearest end.
    pub fn rfc3339(self) -> String {
        let stamp = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::MAX);
        format!("{stamp:.3}")
    }

    /// Reads an RFC 3339 instant.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>()
            .ok()
            .map(|stamp| Self(stamp.as_millisecond()))
    }

    /// The `Sun, 06 Nov 1994 08:49:37 GMT` form of HTTP dates.
    pub fn http_date(self) -> String {
        let stamp = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::MAX);
        stamp.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }
}

impl Day {
    /// The first instant of the day.
    pub fn start(self) -> UnixMillis {
        UnixMillis(i64::from(self.0) * DAY_MS)
    }

    /// The first day of its month.
    pub fn month(self) -> Self {
        Period::Monthly.window(self.start()).0.day()
    }

    /// The month it lies in: `2026-11`.
    pub fn month_text(self) -> String {
        let mut text = self.to_string();
        text.truncate(text.len().saturating_sub("-22".len()));
        text
    }

    /// Reads `2026-11-22`.
    pub fn parse(text: &str) -> Option<Self> {
        let date = text.parse::<jiff::civil::Date>().ok()?;
        let start = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(UnixMillis(start.timestamp().as_millisecond()).day())
    }
}

impl fmt::Display for Day {
    /// `2026-11-22`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.start().rfc3339();
        f.write_str(text.split_once('T').map_or(text.as_str(), |(date, _)| date))
    }
}

/// How often a budget starts again. Boundaries are UTC; weeks start on Monday, months on the 1st.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// From 00:00 to 24:00.
    Daily,
    /// From Monday 00:00.
    Weekly,
    /// From the 1st, 00:00.
    Monthly,
    /// Never starts again.
    Lifetime,
}

impl Period {
    /// The window around `at`: its start, and its end when it has one.
    pub fn window(self, at: UnixMillis) -> (UnixMillis, Option<UnixMillis>) {
        let day = at.day();
        match self {
            Self::Daily => (day.start(), Some(Day(day.0 + 1).start())),
            Self::Weekly => {
                // 1970-01-01 was a Thursday: three days after a Monday.
                let monday = Day(day.0 - (day.0 + 3).rem_euclid(7));
                (monday.start(), Some(Day(monday.0 + 7).start()))
            }
            Self::Monthly => {
                let stamp = jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::MAX);
                let date = stamp.to_zoned(jiff::tz::TimeZone::UTC).date();
                let first = date.first_of_month();
                let start = Day(day.0 - i32::from(date.day()) + 1);
                (
                    start.start(),
                    Some(Day(start.0 + i32::from(first.days_in_month())).start()),
                )
            }
            Self::Lifetime => (UnixMillis(0), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> UnixMillis {
        UnixMillis::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn instants_and_days_survive_their_text_forms() {
        let instant = at("2026-11-22T18:21:04.125Z");
        assert_eq!(instant.rfc3339(), "2026-11-22T18:21:04.125Z");
        assert_eq!(instant.day().to_string(), "2026-11-22");
        assert_eq!(Day::parse("2026-11-22"), Some(instant.day()));
        assert_eq!(instant.day().month_text(), "2026-11");
        assert_eq!(instant.http_date(), "Sun, 22 Nov 2026 18:21:04 GMT");
    }

    #[test]
    fn windows_start_on_calendar_boundaries() {
        let now = at("2026-02-18T13:00:00Z"); // a Wednesday
        assert_eq!(
            Period::Daily.window(now),
            (at("2026-02-18T00:00:00Z"), Some(at("2026-02-19T00:00:00Z")))
        );
        assert_eq!(
            Period::Weekly.window(now),
            (at("2026-02-16T00:00:00Z"), Some(at("2026-02-23T00:00:00Z")))
        );
        assert_eq!(
            Period::Monthly.window(now),
            (at("2026-02-01T00:00:00Z"), Some(at("2026-03-01T00:00:00Z")))
        );
        assert_eq!(Period::Lifetime.window(now), (UnixMillis(0), None));
    }
}
