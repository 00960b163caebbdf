//! Follows the dataplane: finds it, fills it if what it holds is not what is wanted, passes its
//! events on, and tries devices again that could not be opened.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use dunlin_dataplane_api::{Client, connect, v1 as dp};
use tokio_stream::StreamExt;

use crate::{
    desired::{Desired, TAKE_OVER},
    leases::now_s,
};

/// Longer than any transaction should take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks for a dataplane that is not there.
const SEARCH: Duration = Duration::from_millis(100);
/// Between two looks at one that is.
const LOOK: Duration = Duration::from_secs(2);

/// Never ends.
pub async fn run(desired: Arc<Desired>) {
    let mut instance = 0;
    loop {
        let ended = match connect(&desired.dataplane_socket).await {
            Ok(client) => follow(&desired, client, &mut instance).await.err().unwrap_or_else(|| "it ended".into()),
            Err(e) => format!("{e}; is dunlin-dataplane running?"),
        };
        if desired.client().await.is_some() {
            tracing::warn!("dataplane lost: {ended}");
        }
        desired.set_client(Err(ended)).await;
        tokio::time::sleep(SEARCH).await;
    }
}

/// Until the dataplane goes away.
async fn follow(desired: &Desired, mut client: Client, instance: &mut u64) -> Result<(), String> {
    let why = |s: tonic::Status| s.message().to_owned();
    let info = client.get_info(dp::InfoRequest {}).await.map_err(why)?.into_inner();
    if *instance != 0 && *instance != info.instance {
        desired.restarts.fetch_add(1, Relaxed);
    }
    *instance = info.instance;
    let mut events = client.watch(dp::WatchRequest {}).await.map_err(why)?.into_inner();
    {
        // No change is made between the look and the filling.
        let current = desired.current().await;
        if info.generation != current.compiled.generation {
            // A new, empty store beside a dataplane that forwards: rather somebody lost the store
            // than wants the host cut off. The first change makes it clear.
            let lost = current.revision == 0 && info.generation != 0;
            desired.take_over.store(lost, Relaxed);
            if lost {
                tracing::warn!("{TAKE_OVER}");
            } else {
                fill(desired, &mut client, &current.compiled).await?;
            }
        }
        desired.set_client(Ok(client.clone())).await;
    }
    tracing::info!("dataplane {} found", info.version);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(e)) => drop(desired.events.send(e)),
                Some(Err(e)) => return Err(why(e)),
                None => return Ok(()),
            },
            _ = looks.tick() => look(desired, &mut client).await.map_err(why)?,
        }
    }
}

/// One transaction brings the dataplane to what is wanted, whatever it holds.
async fn fill(desired: &Desired, client: &mut Client, compiled: &dp::Transaction) -> Result<(), String> {
    let mut all = dp::Transaction { tolerate_device_errors: true, ..compiled.clone() };
    desired.leases.lock().await.give(&mut all.set_ports, now_s());
    let ports = all.set_ports.len();
    let applied = tokio::time::timeout(PATIENCE, client.apply(all))
        .await
        .map_err(|_| format!("it does not answer for {} s", PATIENCE.as_secs()))?
        .map_err(|s| format!("it refuses the configuration: {}", s.message()))?
        .into_inner();
    for e in &applied.device_errors {
        tracing::warn!("port '{}': {}", e.port, e.error);
    }
    tracing::info!("dataplane filled: {ports} ports, {} without their device", applied.device_errors.len());
    Ok(())
}

/// Tries devices again that were not there before.
async fn look(desired: &Desired, client: &mut Client) -> Result<(), tonic::Status> {
    let state = client.get_state(dp::StateRequest {}).await?.into_inner();
    {
        // A change whose answer got lost, or one that could not be taken back.
        let current = desired.current().await;
        let holds = state.info.as_ref().map_or(0, |i| i.generation);
        // One that was just restarted knows of none.
        if holds == current.compiled.generation {
            desired.note_leases(&state.ports).await;
        }
        if holds != current.compiled.generation && !desired.take_over.load(Relaxed) {
            // It may have changed between the two looks.
            let now = client.get_info(dp::InfoRequest {}).await?.into_inner();
            if now.generation != current.compiled.generation {
                fill(desired, client, &current.compiled).await.map_err(tonic::Status::unavailable)?;
            }
        }
    }
    let failed: Vec<&str> = state.ports.iter().filter(|p| !p.error.is_empty()).map(|p| p.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let current = desired.current().await;
    let again = current.compiled.set_ports.iter().filter(|p| failed.contains(&p.name.as_str()));
    let retry = dp::Transaction {
        generation: current.compiled.generation,
        set_ports: again.cloned().collect(),
        tolerate_device_errors: true,
        ..Default::default()
    };
    client.apply(retry).await.map(drop)
}
