//! Holding a store's tail still at the offsets that the replicated sums have reached, so that both can be compared.
//!
//! The tail says where it is, the holder waits for a state that is there or further and names that state's offsets, the tail reads on
//! exactly so far and says so, and goes on once the holder lets go. Each wait has a bound, so neither can hold up the other for long.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Billing, StoreFault};

/// How long the tail waits for its holder, each time.
pub const HOLDER_WITHIN: Duration = Duration::from_secs(30);
/// How long the holder waits for the tail, each time.
const TAIL_WITHIN: Duration = Duration::from_secs(30);

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, i64>;

/// The tail's side.
#[derive(Debug)]
pub struct Hold {
    /// Where the tail is.
    pub stands: oneshot::Sender<Offsets>,
    /// Where it should stop.
    pub stops: oneshot::Receiver<Offsets>,
    /// Said when it has.
    pub stopped: oneshot::Sender<()>,
    /// Ends when it may go on.
    pub released: oneshot::Receiver<()>,
}

/// The holder's side. Dropping it lets the tail go on.
#[derive(Debug)]
pub struct Holder {
    stands: oneshot::Receiver<Offsets>,
    stops: Option<oneshot::Sender<Offsets>>,
    stopped: oneshot::Receiver<()>,
    _release: oneshot::Sender<()>,
}

impl Billing {
    /// Asks the tail to hold still. Fails where it does not write the store.
    pub async fn hold(&self) -> Result<Holder, StoreFault> {
        let (stands, stands_at) = oneshot::channel();
        let (stops, stops_at) = oneshot::channel();
        let (stopped, has_stopped) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let hold = Hold {
            stands,
            stops: stops_at,
            stopped,
            released,
        };
        let sent = tokio::time::timeout(TAIL_WITHIN, self.holds.send(hold)).await;
        sent.map_err(|_| StoreFault::Slow)?
            .map_err(|_| StoreFault::Absent)?;
        Ok(Holder {
            stands: stands_at,
            stops: Some(stops),
            stopped: has_stopped,
            _release: release,
        })
    }
}

impl Holder {
    /// Where the tail is.
    pub async fn stands(&mut self) -> Result<Offsets, StoreFault> {
        let stands = tokio::time::timeout(TAIL_WITHIN, &mut self.stands).await;
        stands
            .map_err(|_| StoreFault::Slow)?
            .map_err(|_| StoreFault::Elsewhere)
    }

    /// Lets it go on to some offsets, and waits until it is there.
    pub async fn stops(&mut self, at: Offsets) -> Result<(), StoreFault> {
        if let Some(stops) = self.stops.take() {
            let _ = stops.send(at); // a tail that is gone is noticed below
        }
        let stopped = tokio::time::timeout(TAIL_WITHIN, &mut self.stopped).await;
        stopped
            .map_err(|_| StoreFault::Slow)?
            .map_err(|_| StoreFault::Elsewhere)
    }
}
