//! What may be asked of the store's rows by hour, as SQL. Pure.
//!
//! One query serves every report: what is wanted, by what it is grouped, and a page of the groups. Numbers are added up by the database,
//! each as billions and rest, so that a sum may leave the range of one row; latencies are added up as text, see
//! [`histogram`](super::histogram).

use tollway_shared::time::{Day, UnixMillis};

use super::cell::{Dimension, Sum};
use super::fold::HOUR_MS;
use super::histogram::Histogram;
use super::schema::Sql;

/// Hours in a day.
const DAY_HOURS: i64 = 24;
/// Sums are added up as multiples of this and the rest.
const PART: i128 = 1_000_000_000;

/// By what rows can be grouped and chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A dimension of a series.
    Of(Dimension),
    /// The hour in which requests started.
    Hour,
    /// The UTC day.
    Day,
    /// The UTC week, from Monday.
    Week,
    /// The UTC month.
    Month,
}

/// A value in SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: NULL.
    None,
    /// A whole number.
    Int(i64),
    /// Text.
    Text(String),
}

impl Field {
    fn sql(self, sql: Sql) -> String {
        match (self, sql) {
            (Self::Of(dimension), _) => format!("series.{}", dimension.name()),
            (Self::Hour, _) => "rollup.hour".to_owned(),
            (Self::Day, _) => format!("rollup.hour / {DAY_HOURS}"),
            // 1970-01-01 was a Thursday: three days after a Monday.
            (Self::Week, _) => format!("(rollup.hour / {DAY_HOURS} + 3) / 7"),
            (Self::Month, Sql::Sqlite) => "strftime('%Y-%m', rollup.hour * 3600, 'unixepoch')".to_owned(),
            (Self::Month, Sql::Postgres) => {
                "to_char(to_timestamp(rollup.hour * 3600) AT TIME ZONE 'UTC', 'YYYY-MM') COLLATE \"C\""
                    .to_owned()
            }
        }
    }

    /// A value for people and pages: ids as they are, `2026-11`, `2026-11-22` (of a week its Monday), `2026-11-22T18:00:00.000Z`.
    pub fn text(self, value: &Value) -> String {
        match (self, value) {
            (Self::Hour, Value::Int(hour)) => UnixMillis(hour.saturating_mul(HOUR_MS)).rfc3339(),
            (Self::Day, Value::Int(day)) => Day(i32::try_from(*day).unwrap_or(i32::MAX)).to_string(),
            (Self::Week, Value::Int(week)) => {
                Day(i32::try_from(week * 7 - 3).unwrap_or(i32::MAX)).to_string()
            }
            (_, Value::Int(number)) => number.to_string(),
            (_, Value::Text(text)) => text.clone(),
            (_, Value::None) => String::new(),
        }
    }

    /// Reads what [`Field::text`] writes.
    pub fn value(self, text: &str) -> Option<Value> {
        match self {
            Self::Hour => UnixMillis::parse_rfc3339(text).map(|at| Value::Int(at.0.div_euclid(HOUR_MS))),
            Self::Day => Day::parse(text).map(|day| Value::Int(i64::from(day.0))),
            Self::Week => Day::parse(text).map(|day| Value::Int((i64::from(day.0) + 3).div_euclid(7))),
            Self::Of(_) | Self::Month => Some(Value::Text(text.to_owned())),
        }
    }
}

/// Hours, since 1970: from the first, and until before the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// The first.
    pub from: i64,
    /// The one after the last.
    pub until: i64,
}

impl Hours {
    /// All there are.
    pub const ALL: Self = Self {
        from: i64::MIN,
        until: i64::MAX,
    };

    /// Those of some days, both ends included.
    pub fn of_days(from: Day, to: Day) -> Self {
        Self {
            from: i64::from(from.0) * DAY_HOURS,
            until: (i64::from(to.0) + 1) * DAY_HOURS,
        }
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            from: self.from.max(other.from),
            until: self.until.min(other.until),
        }
    }

    /// Those of an hour, a day or a month by its text.
    pub fn of_field(field: Field, text: &str) -> Option<Self> {
        match field {
            Field::Hour => match field.value(text)? {
                Value::Int(hour) => Some(Self {
                    from: hour,
                    until: hour + 1,
                }),
                Value::Text(_) | Value::None => None,
            },
            Field::Day => Day::parse(text).map(|day| Self::of_days(day, day)),
            Field::Month => {
                let first = Day::parse(&format!("{text}-01"))?;
                let (_, until) = tollway_shared::time::Period::Monthly.window(first.start());
                Some(Self::of_days(first, Day(until?.day().0 - 1)))
            }
            Field::Week => {
                let day = Day::parse(text)?;
                let monday = Day(day.0 - (day.0 + 3).rem_euclid(7));
                Some(Self::of_days(monday, Day(monday.0 + 6)))
            }
            Field::Of(_) => None,
        }
    }
}

/// A set of values of a dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Among {
    /// The dimension.
    pub dimension: Dimension,
    /// The values.
    pub values: Vec<String>,
    /// Whether what has one of them is left out, in place of kept.
    pub none_of: bool,
}

/// A question to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The wanted hours.
    pub hours: Hours,
    /// Wanted values.
    pub equal: Vec<(Dimension, String)>,
    /// Wanted sets of values.
    pub among: Vec<Among>,
    /// By what to group.
    pub by: Vec<Field>,
    /// The group after which the page begins.
    pub after: Option<Vec<Value>>,
    /// Groups on the page.
    pub limit: usize,
    /// Whether latencies are wanted: they cost more than all sums together.
    pub latencies: bool,
}

/// A statement that reads, with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// SQL that both backends understand; parameters are `?1`, `?2`, ….
    pub text: String,
    /// The parameters' values.
    pub values: Vec<Value>,
}

/// A group's sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summed {
    /// By [`Sum`].
    pub sums: [i128; Sum::COUNT],
    /// Times to first bytes.
    pub first_byte: Histogram,
    /// Times of whole answers.
    pub total: Histogram,
}

impl Default for Summed {
    fn default() -> Self {
        Self {
            sums: [0; Sum::COUNT],
            first_byte: Histogram::default(),
            total: Histogram::default(),
        }
    }
}

impl Summed {
    /// One sum.
    pub fn get(&self, sum: Sum) -> i128 {
        self.sums[sum as usize]
    }

    /// Adds another group's.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.sums.iter_mut().zip(other.sums) {
            *sum = sum.saturating_add(more);
        }
        self.first_byte.merge(&other.first_byte);
        self.total.merge(&other.total);
    }

    /// A sum from its parts.
    pub(super) fn put(&mut self, place: usize, billions: i64, rest: i64) {
        self.sums[place] = i128::from(billions) * PART + i128::from(rest);
    }
}

/// Groups by the values of their fields.
pub type Groups = Vec<(Vec<Value>, Summed)>;

impl Query {
    /// The same over everything wanted, as one group.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self {
            by: Vec::new(),
            after: None,
            limit: 1,
            ..self.clone()
        }
    }

    /// The statement. Columns: the group's, then two for each [`Sum`], then the latencies.
    pub fn statement(&self, sql: Sql) -> Statement {
        let mut values = Vec::new();
        let mut place = |value: Value| {
            values.push(value);
            format!("?{}", values.len())
        };
        let fields: Vec<String> = self.by.iter().map(|field| field.sql(sql)).collect();
        let mut wanted = vec![format!(
            "rollup.hour >= {} AND rollup.hour < {}",
            place(Value::Int(self.hours.from)),
            place(Value::Int(self.hours.until))
        )];
        for (dimension, text) in &self.equal {
            wanted.push(format!(
                "series.{} = {}",
                dimension.name(),
                place(Value::Text(text.clone()))
            ));
        }
        for set in &self.among {
            let values: Vec<String> = set
                .values
                .iter()
                .map(|text| place(Value::Text(text.clone())))
                .collect();
            let verb = if set.none_of { "NOT IN" } else { "IN" };
            wanted.push(match values.is_empty() {
                // An empty list is no SQL.
                true => format!("1 = {}", i32::from(set.none_of)),
                false => format!("series.{} {verb} ({})", set.dimension.name(), values.join(", ")),
            });
        }
        if let Some(after) = self.after.as_ref().filter(|_| !fields.is_empty()) {
            let places: Vec<String> = after.iter().map(|value| place(value.clone())).collect();
            wanted.push(format!("({}) > ({})", fields.join(", "), places.join(", ")));
        }
        let mut columns = fields.clone();
        for sum in Sum::ALL {
            let name = sum.name();
            for part in [format!("{name} / {PART}"), format!("{name} % {PART}")] {
                columns.push(format!("CAST(coalesce(sum({part}), 0) AS BIGINT)"));
            }
        }
        let latencies = ["first_byte_ms", "total_ms"];
        for name in latencies.iter().filter(|_| self.latencies) {
            columns.push(match sql {
                Sql::Sqlite => format!("coalesce(group_concat({name}, ','), '')"),
                Sql::Postgres => format!("coalesce(string_agg({name}, ','), '')"),
            });
        }
        let mut text = format!(
            "SELECT {} FROM rollup JOIN series ON series.id = rollup.series WHERE {}",
            columns.join(", "),
            wanted.join(" AND ")
        );
        if !fields.is_empty() {
            let list = fields.join(", ");
            text.push_str(&format!(" GROUP BY {list} ORDER BY {list}"));
        }
        // One more than the page holds tells whether another one follows.
        text.push_str(&format!(" LIMIT {}", self.limit.saturating_add(1)));
        Statement { text, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_its_days_and_a_time_is_its_hour() {
        let day = |text: &str| Day::parse(text).unwrap();
        let february = Hours::of_days(day("2024-02-01"), day("2024-02-29"));
        assert_eq!(Hours::of_field(Field::Month, "2024-02"), Some(february));
        let week = Hours::of_days(day("2024-02-26"), day("2024-03-03"));
        assert_eq!(Hours::of_field(Field::Week, "2024-02-29"), Some(week));
        let hour = Hours::of_field(Field::Hour, "2024-02-29T23:00:00.000Z").unwrap();
        assert_eq!((hour.until, hour.until - hour.from), (february.until, 1));
        for (field, text) in [
            (Field::Month, "2024-13"),
            (Field::Day, "2024-02-30"),
            (Field::Hour, "noon"),
        ] {
            assert_eq!(Hours::of_field(field, text), None, "{text}");
        }
    }

    #[test]
    fn a_group_value_survives_its_text() {
        for (field, text) in [
            (Field::Hour, "2024-02-29T23:00:00.000Z"),
            (Field::Day, "2024-02-29"),
            (Field::Week, "2024-02-26"),
            (Field::Month, "2024-02"),
            (Field::Of(Dimension::User), "a,b;c"),
        ] {
            let value = field.value(text).unwrap();
            assert_eq!(field.text(&value), text);
        }
    }
}
