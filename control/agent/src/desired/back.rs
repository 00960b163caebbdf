//! The way back: a change is confirmed or taken back, the history, and the return to an earlier revision.

use std::{sync::Arc, time::Duration};

use dunlin_control_api::v1::{Plan, Revision};
use dunlin_dataplane_api::unix_ms;
use dunlin_model::objects;

use super::{Current, Desired, How, Next, Refused, blocking};
use crate::history::{self, Pending, Record, Summary};

impl Desired {
    /// Keeps the change that waits for it; its revision.
    ///
    /// # Errors
    /// No change waits, or that can't be stored.
    pub async fn confirm(&self) -> Result<u64, Refused> {
        let _turn = self.turn().await?;
        let current = self.current();
        if current.pending.is_none() {
            return Err(Refused::NotThere("no change waits to be confirmed".into()));
        }
        let store = self.store.clone();
        blocking(move || store.confirm()).await?;
        *self.current.write() = Arc::new(Current { pending: None, ..Current::clone(&current) });
        Ok(current.revision)
    }

    /// The last changes, the newest first; one, if its revision is not 0.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn history(&self, limit: usize, revision: u64) -> Result<Vec<Revision>, Refused> {
        let store = self.store.clone();
        let limit = if limit == 0 { usize::MAX } else { limit };
        let range = if revision == 0 { 0..=u64::MAX } else { revision..=revision };
        blocking(move || {
            let mut revisions = Vec::new();
            store.history(range, |s: Summary| {
                revisions.push(s.into());
                revisions.len() < limit
            })?;
            Ok(revisions)
        })
        .await
        .map_err(Refused::Store)
    }

    /// Goes back to what was configured at `revision`.
    ///
    /// # Errors
    /// See [`Refused`]; the revision is too old, or to come.
    pub async fn roll_back_to(&self, revision: u64, user: &str, command: &str) -> Result<Plan, Refused> {
        let result = async {
            let _turn = self.turn().await?;
            let current = self.current();
            let next = self.next_back(&current, revision).await?;
            self.carry_out(&current, next, How::Asked(None), (user, command)).await
        }
        .await;
        self.count(&result);
        result
    }

    /// Takes a change back that was not confirmed in time; when to look again.
    pub async fn take_back_unconfirmed(&self) -> Duration {
        let current = self.current();
        let Some(p) = &current.pending else { return Duration::from_secs(1) };
        let left = Duration::from_millis(p.until_ms.saturating_sub(unix_ms()));
        if !left.is_zero() {
            return left.min(Duration::from_secs(1));
        }
        if let Err(e) = self.take_back(p).await {
            tracing::error!("taking back revision {}, which was not confirmed: {e}", current.revision);
        }
        Duration::from_secs(1)
    }

    async fn take_back(&self, pending: &Pending) -> Result<(), Refused> {
        let _turn = self.turn().await?;
        let current = self.current();
        // Confirmed, or taken back by the operator, in the meantime.
        if current.pending.as_ref() != Some(pending) {
            return Ok(());
        }
        tracing::warn!("revision {} was not confirmed: it is taken back", current.revision);
        let next = self.next_back(&current, pending.back_to).await?;
        let by = ("dunlin-control", "apply --confirm: not confirmed");
        self.carry_out(&current, next, How::TakenBack, by).await.map(drop)
    }

    async fn next_back(&self, current: &Current, revision: u64) -> Result<Next, Refused> {
        if revision >= current.revision {
            let why = format!("revision {revision}: the configuration is at {}", current.revision);
            return Err(Refused::NotThere(why));
        }
        let (store, mut objects) = (self.store.clone(), current.objects().clone());
        let (steps, result, objects) = blocking(move || {
            let (mut steps, mut result) = (0, Ok(()));
            store.history(revision + 1.., |r: Record| {
                steps += 1;
                result = history::undo(&mut objects, r);
                result.is_ok()
            })?;
            Ok((steps, result, objects))
        })
        .await?;
        result.map_err(Refused::NotThere)?;
        if steps != current.revision - revision {
            let why = format!("revision {revision}: is not kept any more; 'dunlin history' lists them");
            return Err(Refused::NotThere(why));
        }
        let set = objects.iter().map(|(_, o)| (**o).clone()).collect();
        self.planned(current, objects::Change { replace: true, set, ..Default::default() })
    }
}
