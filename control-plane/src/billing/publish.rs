//! Publishes what organizations used by the hour, on the leader: `tollway.billing.v1`, a compacted topic of absolute sums.
//!
//! What has changed is asked of the billing store, in one view with the sums and with how far they go, and published once the
//! replicated state has counted as far. Records and how far they go are one Kafka transaction: a leader that dies leaves neither
//! half, and the next one goes on from there. Opening the transactional producer ends whatever a former leader had under way, and a
//! store that lacks what is published is waited for: a sum goes back only while a former leader's backlog is published by one that is
//! less far, and readers tell by `covers.to_offset`. Nothing here is kept on this machine.
//!
//! | file | what |
//! |---|---|
//! | [`super::hours`] | pure: what to ask the store, rows → aggregates |
//! | here | the loop |
//! | [`super::topic`] | Kafka: the topic, transactions, how far it was published |

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tollway_proto::billing::BillingAggregate;
use tollway_shared::ids::{ClusterId, Revision};
use tollway_shared::time::UnixMillis;

use super::hours::{self, Changes, Offsets};
use super::topic::{Channel, Session};
use super::{Billing, StoreFault};
use crate::ledger::consume::SpendLog;

/// Counter of aggregates published.
pub const PUBLISHED_TOTAL: &str = "tollway_billing_published_total";
/// Counter of faults after which publishing started again from what Kafka has.
pub const PUBLISH_FAULTS_TOTAL: &str = "tollway_billing_publish_faults_total";

/// How often a follower looks whether it leads now.
const LEADERSHIP_POLL: Duration = Duration::from_millis(500);
/// How often a leader that has published everything looks for more: an hour's sum is written at most this often.
const EVERY: Duration = Duration::from_secs(2);
/// How often the replicated state is looked at while it has not counted as far as the store.
const STATE_POLL: Duration = Duration::from_millis(50);
/// How long it may take to.
const STATE_WITHIN: Duration = Duration::from_secs(60);
/// Waits after a fault: doubling from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why nothing is published at the moment.
#[derive(Debug, thiserror::Error)]
pub enum PublishFault {
    /// The billing store.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// Kafka.
    #[error("topic `{topic}`: {fault}")]
    Kafka {
        /// The topic.
        topic: String,
        /// What Kafka says.
        fault: rdkafka::error::KafkaError,
    },
    /// A task of ours panicked.
    #[error("publishing failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// The billing store answers something else than it was asked for.
    #[error("the billing store is not as it should be")]
    Shape,
    /// A copy that lags, or one that is being made anew: its sums would be older than those that are published.
    #[error("the billing store has not yet all that is published")]
    Lacking,
    /// The replicated sums do not follow.
    #[error("the replicated sums are behind the billing store")]
    Behind,
}

/// What the loop works with.
pub struct Publish<L> {
    /// The replicated log.
    pub log: L,
    /// The billing store.
    pub billing: Billing,
    /// The topics.
    pub channel: Channel,
    /// The cluster, as aggregates name it.
    pub cluster: ClusterId,
    /// Wall time.
    pub now: fn() -> UnixMillis,
}

impl<L: SpendLog> Publish<L> {
    /// Runs until `stop`: idle while another replica leads.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = BACKOFF.0;
        loop {
            let wait = if self.log.is_leader() {
                match stop.run_until_cancelled(self.lead(&mut backoff)).await {
                    None => return,
                    Some(Ok(())) => Duration::ZERO,
                    Some(Err(fault)) => {
                        counter!(PUBLISH_FAULTS_TOTAL).increment(1);
                        tracing::warn!(error = %fault, "publishing of sums by the hour starts again from what Kafka has");
                        let wait = backoff;
                        backoff = (backoff * 2).min(BACKOFF.1);
                        wait
                    }
                }
            } else {
                LEADERSHIP_POLL
            };
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// One term.
    async fn lead(&self, backoff: &mut Duration) -> Result<(), PublishFault> {
        let channel = self.channel.clone();
        let opened = tokio::task::spawn_blocking(move || Session::open(channel)).await?;
        let (session, mut published) = opened.map_err(|fault| self.kafka(fault))?;
        let session = Arc::new(session);
        let mut after = self.first(&published).await?;
        while self.log.is_leader() {
            let asked = self.billing.select(hours::statements(after)).await?;
            let changes = hours::changes(asked, after).ok_or(PublishFault::Shape)?;
            if !changes.is_past(&published) {
                return Err(PublishFault::Lacking);
            }
            if changes.through < after {
                // The store was made anew and numbers its rows from the beginning.
                after = self.first(&published).await?;
                continue;
            }
            if changes.through == after {
                sleep(EVERY).await;
                continue;
            }
            let Some(revision) = self.counted(&changes).await? else {
                return Ok(());
            };
            after = changes.through;
            for (partition, offset) in &changes.publishes {
                let kept = published.entry(*partition).or_insert(*offset);
                *kept = (*kept).max(*offset);
            }
            self.publish(&session, changes, &published, revision).await?;
            *backoff = BACKOFF.0;
        }
        Ok(())
    }

    /// The row before the first one that is not published.
    async fn first(&self, published: &Offsets) -> Result<i64, PublishFault> {
        let first = hours::first(published, self.channel.usage.partitions);
        let asked = self.billing.select(vec![first]).await?;
        hours::first_of(&asked).ok_or(PublishFault::Shape)
    }

    /// Waits until the replicated state has counted what is in the sums. `None`: this replica leads no more.
    async fn counted(&self, changes: &Changes) -> Result<Option<Revision>, PublishFault> {
        let begun = Instant::now();
        while self.log.is_leader() {
            let state = self.log.state();
            let counted = |partition: &i32| state.usage_offsets.get(partition).copied().unwrap_or(0);
            if changes
                .reached
                .iter()
                .all(|(partition, next)| counted(partition) >= *next)
            {
                return Ok(Some(Revision(state.applied)));
            }
            if begun.elapsed() > STATE_WITHIN {
                return Err(PublishFault::Behind);
            }
            sleep(STATE_POLL).await;
        }
        Ok(None)
    }

    /// Publishes sums, and that usage is published up to these offsets.
    async fn publish(
        &self,
        session: &Arc<Session>,
        changes: Changes,
        through: &Offsets,
        revision: Revision,
    ) -> Result<(), PublishFault> {
        let cluster = self.cluster.clone();
        let aggregates: Vec<BillingAggregate> = changes
            .hours
            .into_iter()
            .map(|hour| hour.aggregate(&cluster, revision))
            .collect();
        let count = aggregates.len() as u64;
        let (session, through, now) = (session.clone(), through.clone(), (self.now)());
        let done = tokio::task::spawn_blocking(move || session.publish(&aggregates, &through, now));
        done.await?.map_err(|fault| self.kafka(fault))?;
        counter!(PUBLISHED_TOTAL).increment(count);
        Ok(())
    }

    fn kafka(&self, fault: rdkafka::error::KafkaError) -> PublishFault {
        PublishFault::Kafka {
            topic: self.channel.topic.clone(),
            fault,
        }
    }
}
