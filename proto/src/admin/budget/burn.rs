//! Where a budget is heading: what was spent in its window so far, drawn on to the window's end. Pure.

use tollway_shared::time::UnixMillis;
use tollway_shared::window::Span;

/// What a window will have spent at its end, and when it reaches its limit, if it goes on as until now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Burn {
    /// `spent` × the window's length ÷ the time since its beginning, rounded down; `None` for a window without an end, or that has just
    /// begun.
    pub forecast: Option<i128>,
    /// When `spent` reaches the limit, if that is in this window and not behind us.
    pub exhausted_at: Option<UnixMillis>,
}

/// The burn of a window.
pub fn burn(spent: i128, limit: i128, window: Span, now: UnixMillis) -> Burn {
    let gone = i128::from(now.0) - i128::from(window.start.0);
    let Some(end) = window.end.filter(|_| gone > 0) else {
        return Burn::default();
    };
    let length = i128::from(end.0) - i128::from(window.start.0);
    let reached = spent.checked_mul(length).map(|product| product.div_euclid(gone));
    let at = (spent > 0 && spent < limit)
        .then(|| limit.checked_mul(gone).map(|product| product.div_euclid(spent)))
        .flatten()
        .filter(|ms| *ms < length)
        .and_then(|ms| i64::try_from(ms).ok())
        .map(|ms| window.start.plus_ms(ms));
    Burn {
        forecast: reached,
        exhausted_at: at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_goes_on_as_it_began() {
        let window = Span {
            start: UnixMillis(1_000),
            end: Some(UnixMillis(2_000)),
        };
        let burn = |spent, at| {
            let burn = burn(spent, 100, window, UnixMillis(at));
            (burn.forecast, burn.exhausted_at.map(|at| at.0))
        };
        assert_eq!(burn(0, 1_000), (None, None), "it has just begun");
        assert_eq!(burn(0, 1_500), (Some(0), None));
        assert_eq!(burn(40, 1_500), (Some(80), None));
        assert_eq!(burn(60, 1_500), (Some(120), Some(1_833)));
        assert_eq!(burn(100, 1_500), (Some(200), None), "it is spent already");
        let open = Span { end: None, ..window };
        assert_eq!(super::burn(60, 100, open, UnixMillis(1_500)), Burn::default());
    }
}
