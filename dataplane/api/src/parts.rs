//! Large configurations travel as a stream of parts: messages of the same type whose repeated fields add up.
//!
//! No part is larger than [`PART`] and the largest object in it; the sum is bounded by `MAX_TRANSACTION`.

use std::time::Duration;

use dunlin_model::{configuration::too_large, limits};
use prost::Message;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::v1;

/// Octets after which a part ends. An object is never divided: the largest, a set of 65,536 prefixes, has 3 MiB.
pub const PART: usize = 1 << 20;
/// The most octets of one transaction: a whole configuration, with the keys and the runtime state of its ports.
const MAX_TRANSACTION: usize = limits::OCTETS + (8 << 20);

/// Configurations that are put together at once: changes, and questions, which any reader may ask.
pub static CHANGES: Semaphore = Semaphore::const_new(3);
/// See [`CHANGES`].
pub static QUESTIONS: Semaphore = Semaphore::const_new(1);
/// The longest time between two parts.
const NEXT: Duration = Duration::from_secs(10);

/// A message that may be divided.
pub trait Parts: Message + Default {
    /// Moves objects of the message into `take`, which says whether the part is full. What is not repeated stays.
    fn drain(&mut self, take: &mut Part<Self>);
    /// Adds the objects of a further part.
    fn extend(&mut self, other: Self);
}

/// The part that is being filled.
pub struct Part<M> {
    now: M,
    size: usize,
    done: Vec<M>,
}

impl<M: Parts> Part<M> {
    /// Adds one object of so many octets to the part by `add`.
    pub fn push(&mut self, size: usize, add: impl FnOnce(&mut M)) {
        if self.size + size > PART && self.size > 0 {
            self.done.push(std::mem::take(&mut self.now));
            self.size = 0;
        }
        self.size += size;
        add(&mut self.now);
    }
}

/// Divides a message; the first part has what is not repeated.
pub fn split<M: Parts>(mut whole: M) -> Vec<M> {
    if whole.encoded_len() <= PART {
        return vec![whole];
    }
    let mut part = Part { now: M::default(), size: 0, done: Vec::new() };
    whole.drain(&mut part);
    let mut parts = vec![whole];
    parts.append(&mut part.done);
    parts.push(part.now);
    parts
}

/// Puts a message together again.
///
/// # Errors
/// What the stream ends with, DEADLINE_EXCEEDED if a part does not come in time, and RESOURCE_EXHAUSTED for more than
/// `MAX_TRANSACTION`.
pub async fn join<M: Parts>(mut stream: tonic::Streaming<M>, places: &Semaphore) -> Result<M, Status> {
    let mut whole = next(&mut stream).await?.unwrap_or_default();
    let mut size = whole.encoded_len();
    let Some(mut part) = next(&mut stream).await? else { return Ok(whole) };
    // Some clients at once must not take more memory than a few configurations have.
    let _place = places.acquire().await.map_err(|e| Status::internal(e.to_string()))?;
    loop {
        size += part.encoded_len();
        if size > MAX_TRANSACTION {
            return Err(Status::resource_exhausted(too_large(size)));
        }
        whole.extend(part);
        match next(&mut stream).await? {
            Some(further) => part = further,
            None => return Ok(whole),
        }
    }
}

async fn next<M>(stream: &mut tonic::Streaming<M>) -> Result<Option<M>, Status> {
    let late = |_| Status::deadline_exceeded(format!("no part of the configuration for {} s", NEXT.as_secs()));
    tokio::time::timeout(NEXT, stream.message()).await.map_err(late)?
}

/// Implements [`Parts`] for a message, by the repeated fields of it or of an optional message in it:
/// `parts_of!(Transaction, self: set_ports, set_macs)`, `parts_of!(ApplyRequest, set: port, mac)`.
#[macro_export]
macro_rules! parts_of {
    (@in $m:ident self) => { $m };
    (@in $m:ident $inner:ident) => { $m.$inner.get_or_insert_default() };
    ($message:ty, $inner:tt: $($field:ident),+ $(,)?) => {
        impl $crate::parts::Parts for $message {
            fn drain(&mut self, part: &mut $crate::parts::Part<Self>) {
                let whole = self;
                $(for object in std::mem::take(&mut $crate::parts_of!(@in whole $inner).$field) {
                    part.push(prost::Message::encoded_len(&object) + 8, |m| {
                        $crate::parts_of!(@in m $inner).$field.push(object)
                    });
                })+
            }
            fn extend(&mut self, mut other: Self) {
                let (whole, other) = (self, &mut other);
                $($crate::parts_of!(@in whole $inner).$field.append(&mut $crate::parts_of!(@in other $inner).$field);)+
            }
        }
    };
}

parts_of!(v1::Transaction, self: set, delete, ports);
