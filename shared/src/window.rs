//! When a budget starts again: calendar windows in a time zone of the tenant's.
//!
//! A window is from the first instant of one calendar day to the first instant of another, in an IANA zone with its daylight
//! saving. Windows of one cycle tile the time line: every instant lies in exactly one. The rules of the zones are compiled in.
//!
//! Only a leader works out windows, and stamps them into what it proposes as it stamps the time: replicas of two releases may
//! have two editions of the zones, and must come to the same state all the same.

use std::fmt;
use std::sync::Arc;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::time::{Day, Period, UnixMillis};

/// Longest [`Every::Days`].
pub const DAYS_MAX: u16 = 3_660;
/// Windows that are looked at around an instant. A clock that is set back over midnight moves an instant by one.
const STEPS_MAX: usize = 4;

/// Why there is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowFault {
    /// Not a name in the zone database.
    #[error("`{0}` is not an IANA time zone such as `Europe/Berlin` or `UTC`")]
    Zone(String),
    /// A number of days outside of what is allowed.
    #[error("is {0} days; from 1 to {DAYS_MAX} are allowed")]
    Days(u16),
    /// Outside the years that the calendar knows.
    #[error("is outside the years -9999 to 9999")]
    Range,
}

/// An IANA time zone, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Zone(Arc<str>);

impl Zone {
    /// Looks the name up, in any case; keeps it as the database writes it.
    pub fn parse(text: &str) -> Result<Self, WindowFault> {
        let rules = TimeZone::get(text).map_err(|_| WindowFault::Zone(text.chars().take(64).collect()))?;
        Ok(Self(rules.iana_name().unwrap_or("UTC").into()))
    }

    /// Coordinated universal time.
    pub fn utc() -> Self {
        Self("UTC".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn rules(&self) -> Result<TimeZone, WindowFault> {
        TimeZone::get(&self.0).map_err(|_| WindowFault::Zone(self.0.to_string()))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// From midnight to midnight.
    Day,
    /// From Monday.
    Week,
    /// From the 1st.
    Month,
    /// Never starts again.
    Lifetime,
    /// A number of days, counted from a day on which a window starts.
    Days {
        /// From 1 to [`DAYS_MAX`].
        count: u16,
        /// The first day of some window, in the cycle's zone.
        from: Day,
    },
}

/// How often a budget starts again, and by whose calendar.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cycle {
    /// The length of a window.
    pub every: Every,
    /// Whose midnight.
    pub zone: Zone,
}

/// A stretch of time: from its start up to its end, when it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The first instant.
    pub start: UnixMillis,
    /// The first instant after it.
    pub end: Option<UnixMillis>,
}

impl Span {
    /// All of time.
    pub const LIFETIME: Self = Self {
        start: UnixMillis(0),
        end: None,
    };

    /// Whether `at` lies in it.
    pub fn covers(&self, at: UnixMillis) -> bool {
        self.start <= at && !self.over(at)
    }

    /// Whether it is over at `at`.
    pub fn over(&self, at: UnixMillis) -> bool {
        self.end.is_some_and(|end| end <= at)
    }
}

impl From<Period> for Cycle {
    /// Budgets without a zone go by UTC.
    fn from(period: Period) -> Self {
        let every = match period {
            Period::Daily => Every::Day,
            Period::Weekly => Every::Week,
            Period::Monthly => Every::Month,
            Period::Lifetime => Every::Lifetime,
        };
        Self {
            every,
            zone: Zone::utc(),
        }
    }
}

impl Cycle {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), WindowFault> {
        self.zone.rules()?;
        match self.every {
            Every::Days { count, .. } if count == 0 || count > DAYS_MAX => Err(WindowFault::Days(count)),
            _ => Ok(()),
        }
    }

    /// The window that `at` lies in.
    pub fn span(&self, at: UnixMillis) -> Result<Span, WindowFault> {
        self.check()?;
        if self.every == Every::Lifetime {
            return Ok(Span::LIFETIME);
        }
        let zone = self.zone.rules()?;
        let stamp = jiff::Timestamp::from_millisecond(at.0).map_err(range)?;
        let mut first = self.first(stamp.to_zoned(zone.clone()).date())?;
        // The date of an instant is a guess: where the clock is set back at 00:01 (St. John's until 2011), a day begins, is
        // interrupted by the end of the day before, and goes on.
        for _ in 0..STEPS_MAX {
            let next = self.next(first)?;
            let (start, end) = (midnight(first, &zone)?, midnight(next, &zone)?);
            if at < start {
                first = self.first(first.yesterday().map_err(range)?)?;
            } else if end <= at {
                first = next;
            } else {
                return Ok(Span {
                    start,
                    end: Some(end),
                });
            }
        }
        Err(WindowFault::Range)
    }

    /// The first date of the window that a date lies in.
    fn first(&self, date: Date) -> Result<Date, WindowFault> {
        let back = match self.every {
            Every::Day | Every::Lifetime => 0,
            Every::Week => i64::from(date.weekday().to_monday_zero_offset()),
            Every::Month => i64::from(date.day()) - 1,
            Every::Days { count, from } => (number(date) - i64::from(from.0)).rem_euclid(i64::from(count)),
        };
        plus_days(date, -back)
    }

    /// The first date of the window after the one that starts on `first`.
    fn next(&self, first: Date) -> Result<Date, WindowFault> {
        plus_days(
            first,
            match self.every {
                Every::Day | Every::Lifetime => 1,
                Every::Week => 7,
                Every::Month => i64::from(first.days_in_month()),
                Every::Days { count, .. } => i64::from(count),
            },
        )
    }
}

/// The first instant of a date. A zone may have no midnight on a day, or not have the day at all.
fn midnight(date: Date, zone: &TimeZone) -> Result<UnixMillis, WindowFault> {
    let somewhen = date.to_zoned(zone.clone()).map_err(range)?;
    let start = somewhen.start_of_day().map_err(range)?;
    Ok(UnixMillis(start.timestamp().as_millisecond()))
}

/// Days since 1970-01-01.
fn number(date: Date) -> i64 {
    let since = date - jiff::civil::date(1970, 1, 1);
    i64::from(since.get_days())
}

fn plus_days(date: Date, days: i64) -> Result<Date, WindowFault> {
    date.checked_add(jiff::Span::new().try_days(days).map_err(range)?)
        .map_err(range)
}

fn range(_: jiff::Error) -> WindowFault {
    WindowFault::Range
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> UnixMillis {
        UnixMillis::parse_rfc3339(text).unwrap()
    }

    fn cycle(every: Every, zone: &str) -> Cycle {
        Cycle {
            every,
            zone: Zone::parse(zone).unwrap(),
        }
    }

    fn check(every: Every, zone: &str, now: &str, start: &str, end: &str) {
        let span = cycle(every, zone).span(at(now)).unwrap();
        let wanted = Span {
            start: at(start),
            end: Some(at(end)),
        };
        assert_eq!(
            span,
            wanted,
            "{every:?} in {zone} at {now}: {} .. {}",
            span.start.rfc3339(),
            span.end.unwrap().rfc3339()
        );
    }

    #[test]
    fn windows_begin_at_the_midnight_of_their_zone() {
        let fifteen = Every::Days {
            count: 15,
            from: Day::parse("2026-01-01").unwrap(),
        };
        // Winter, the day of 23 hours and the day of 25, in Berlin.
        check(
            Every::Day,
            "Europe/Berlin",
            "2026-01-15T23:30:00Z",
            "2026-01-15T23:00:00Z",
            "2026-01-16T23:00:00Z",
        );
        check(
            Every::Day,
            "Europe/Berlin",
            "2026-03-29T12:00:00Z",
            "2026-03-28T23:00:00Z",
            "2026-03-29T22:00:00Z",
        );
        check(
            Every::Day,
            "Europe/Berlin",
            "2026-10-25T12:00:00Z",
            "2026-10-24T22:00:00Z",
            "2026-10-25T23:00:00Z",
        );
        check(
            Every::Week,
            "America/New_York",
            "2026-11-22T12:00:00Z",
            "2026-11-16T05:00:00Z",
            "2026-11-23T05:00:00Z",
        );
        check(
            Every::Month,
            "Asia/Kolkata",
            "2026-02-28T18:30:00Z",
            "2026-02-28T18:30:00Z",
            "2026-03-31T18:30:00Z",
        );
        check(
            Every::Month,
            "UTC",
            "2028-02-29T00:00:00Z",
            "2028-02-01T00:00:00Z",
            "2028-03-01T00:00:00Z",
        );
        check(
            fifteen,
            "UTC",
            "2026-01-31T12:00:00Z",
            "2026-01-31T00:00:00Z",
            "2026-02-15T00:00:00Z",
        );
        check(
            fifteen,
            "UTC",
            "2025-12-31T12:00:00Z",
            "2025-12-17T00:00:00Z",
            "2026-01-01T00:00:00Z",
        );
        // No midnight: Cairo's clock goes from 00:00 to 01:00. No such day: Samoa skipped the 30th. Midnight twice: St. John's.
        check(
            Every::Day,
            "Africa/Cairo",
            "2026-04-24T06:00:00Z",
            "2026-04-23T22:00:00Z",
            "2026-04-24T21:00:00Z",
        );
        check(
            Every::Day,
            "Pacific/Apia",
            "2011-12-30T09:00:00Z",
            "2011-12-29T10:00:00Z",
            "2011-12-30T10:00:00Z",
        );
        check(
            Every::Day,
            "America/St_Johns",
            "2010-11-07T02:45:00Z",
            "2010-11-07T02:30:00Z",
            "2010-11-08T03:30:00Z",
        );
        assert_eq!(
            cycle(Every::Lifetime, "UTC").span(at("2026-01-01T00:00:00Z")),
            Ok(Span::LIFETIME)
        );
    }

    #[test]
    fn zones_and_lengths_that_do_not_exist_are_named() {
        assert_eq!(Zone::parse("europe/berlin").unwrap().as_str(), "Europe/Berlin");
        let fault = Zone::parse("Europe/Atlantis").unwrap_err();
        assert!(fault.to_string().contains("`Europe/Atlantis`"), "{fault}");
        let days = |count| Every::Days { count, from: Day(0) };
        assert_eq!(cycle(days(0), "UTC").check(), Err(WindowFault::Days(0)));
        assert_eq!(
            cycle(days(9_999), "UTC").span(UnixMillis(0)),
            Err(WindowFault::Days(9_999))
        );
        assert_eq!(
            cycle(Every::Day, "UTC").span(UnixMillis(i64::MAX)),
            Err(WindowFault::Range)
        );
    }

    proptest! {
        #[test]
        fn every_instant_lies_in_exactly_one_window(
            // 1990 to 2040, with more than its share around changes of the clock.
            seconds in 631_152_000_i64..2_208_988_800,
            zone in prop::sample::select(vec![
                "UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Africa/Cairo", "America/Sao_Paulo",
                "Pacific/Apia", "Asia/Gaza", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana", "Asia/Beirut",
            ]),
            every in prop_oneof![
                Just(Every::Day), Just(Every::Week), Just(Every::Month),
                (1_u16..400, -400_i32..400).prop_map(|(count, from)| Every::Days { count, from: Day(from) }),
            ],
        ) {
            let rules = TimeZone::get(zone).unwrap();
            let stamp = jiff::Timestamp::from_second(seconds).unwrap();
            let change = rules.following(stamp).next().map_or(stamp, |next| next.timestamp());
            let cycle = cycle(every, zone);
            for near in [stamp.as_millisecond(), change.as_millisecond(), change.as_millisecond() - 1, change.as_millisecond() - 1_800_000, change.as_millisecond() + 1_800_000] {
                let now = UnixMillis(near);
                let span = cycle.span(now).unwrap();
                let end = span.end.unwrap();
                prop_assert!(span.start <= now && now < end);
                prop_assert_eq!(cycle.span(span.start).unwrap(), span);
                prop_assert_eq!(cycle.span(UnixMillis(end.0 - 1)).unwrap(), span);
                prop_assert_eq!(cycle.span(end).unwrap().start, end);
            }
        }
    }
}
