//! Follows the dataplane: finds it, brings it to what is wanted if it holds anything else, passes its
//! events on, and tries again what could not be installed.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use dunlin_dataplane_api::{Client, v1 as dp};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::{
    desired::{Desired, TAKE_OVER},
    link::{ANSWER, Outcome, at_work, fill, info},
    transaction::problem_text,
};

/// Between two looks for a dataplane that is not there.
const SEARCH: Duration = Duration::from_millis(100);
/// Between two looks at one that is.
const LOOK: Duration = Duration::from_secs(2);

/// Never ends.
pub async fn run(desired: Arc<Desired>) {
    let mut instance = 0;
    loop {
        let seen = desired.generation();
        let ended = match desired.link.connect().await {
            Ok((client, info)) => match follow(&desired, client, (info, seen), &mut instance).await {
                Ok(()) => "it ended".into(),
                Err(why) => why,
            },
            Err(why) => why,
        };
        if desired.link.client().is_some() {
            tracing::warn!("dataplane lost: {ended}");
        }
        set_client(&desired, Err(ended));
        tokio::time::sleep(SEARCH).await;
    }
}

fn set_client(desired: &Desired, client: Result<Client, String>) {
    let up = client.is_ok();
    if desired.link.set(client) {
        let _ = desired.events.send(dp::Event::now(dp::event::What::Dataplane(dp::DataplaneEvent { up })));
    }
}

/// What was said already, so that the log has it once.
#[derive(Default)]
struct Said {
    pending: String,
    problems: BTreeSet<String>,
}

/// Until the dataplane goes away.
async fn follow(
    desired: &Arc<Desired>,
    mut client: Client,
    (info, seen): (dp::Info, u64),
    instance: &mut u64,
) -> Result<(), String> {
    if *instance != 0 && *instance != info.instance {
        desired.restarts.fetch_add(1, Relaxed);
    }
    *instance = info.instance;
    let watch =
        timeout(ANSWER, client.watch(dp::WatchRequest {})).await.map_err(|_| "it does not answer".to_owned())?;
    let mut events = watch.map_err(|s| s.message().to_owned())?.into_inner();
    let mut said = Said::default();
    let lost = desired.current().revision == 0 && info.generation != 0;
    // A new, empty store beside a dataplane that forwards: the store was lost, rather
    // than that the host is to be cut off. The first change makes it clear.
    desired.take_over.store(lost, Relaxed);
    if lost {
        tracing::warn!("{TAKE_OVER}");
    }
    tracing::info!("dataplane {} found", info.version);
    bring_up_to_date(desired, &client, (info, seen), &mut said).await;
    take_leases(desired, &client).await;
    set_client(desired, Ok(client.clone()));
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    looks.reset();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(e)) => pass_on(desired, &client, e).await,
                Some(Err(e)) => return Err(e.message().to_owned()),
                None => return Ok(()),
            },
            _ = looks.tick() => look(desired, &client, &mut said).await?,
            () = desired.stored.notified() => look(desired, &client, &mut said).await?,
        }
    }
}

async fn pass_on(desired: &Desired, client: &Client, event: dp::Event) {
    match &event.what {
        Some(dp::event::What::Leases(l)) => desired.note_leases(&l.port, l.identity, &l.leases).await,
        // Leases may be among what is missing.
        Some(dp::event::What::Lost(_)) => take_leases(desired, client).await,
        _ => {}
    }
    let _ = desired.events.send(event);
}

/// Takes note of what the dataplane knows of DHCP.
async fn take_leases(desired: &Desired, client: &Client) {
    let mut client = client.clone();
    if let Ok(Ok(state)) = timeout(ANSWER, client.get_state(dp::StateRequest {})).await {
        for p in state.into_inner().ports.iter().filter(|p| !p.leases.is_empty()) {
            desired.note_leases(&p.name, p.identity, &p.leases).await;
        }
    }
}

/// Looks whether the dataplane holds what is stored, and tries again what could not be installed.
async fn look(desired: &Desired, client: &Client, said: &mut Said) -> Result<(), String> {
    let seen = desired.generation();
    let now = info(client).await?;
    bring_up_to_date(desired, client, (now, seen), said).await;
    Ok(())
}

/// Makes the dataplane hold what is stored. A dataplane that refuses is not lost: it keeps what it has, and
/// `status` says why.
///
/// `now` is what the dataplane said after control wanted `seen`.
async fn bring_up_to_date(desired: &Desired, client: &Client, (now, seen): (dp::Info, u64), said: &mut Said) {
    if desired.take_over.load(Relaxed) {
        if desired.current().revision == 0 {
            return desired.link.set_pending("");
        }
        // The operator has decided by a change; what became of it is seen here.
        desired.take_over.store(false, Relaxed);
    }
    // A change that is being made is in force before it is stored: that is no difference to be mended.
    if desired.is_changing() || desired.generation() != seen {
        return;
    }
    let wanted = seen;
    if now.generation == wanted {
        desired.link.set_pending("");
        said.pending.clear();
        note_problems(&now.problems, said);
        if now.applying.is_empty() && !now.problems.is_empty() {
            retry(desired, client, &now.problems).await;
        }
        return;
    }
    let pending = if now.applying.is_empty() {
        let whole = desired.whole();
        let ports = whole.ports.len();
        match fill(client, whole, now.generation).await {
            Outcome::InForce(problems) => {
                tracing::info!("dataplane brought up to date: {ports} ports, {} problems", problems.len());
                note_problems(&problems, said);
                String::new()
            }
            Outcome::Refused(why) => format!("the dataplane refuses the configuration: {why}"),
            Outcome::Stale => "the dataplane changed meanwhile; it is brought up to date".into(),
            Outcome::Pending(why) => why,
        }
    } else {
        at_work(&now)
    };
    if !pending.is_empty() && without_numbers(&pending) != said.pending {
        tracing::warn!("the stored configuration is not in force: {pending}");
    }
    said.pending = without_numbers(&pending);
    // A change may have been made meanwhile, and says itself what became of it.
    if desired.generation() == wanted {
        desired.link.set_pending(pending);
    }
}

/// So that a text that counts seconds is the same text.
fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn note_problems(problems: &[dp::Problem], said: &mut Said) {
    let now: BTreeSet<String> = problems.iter().map(problem_text).collect();
    now.difference(&said.problems).for_each(|p| tracing::warn!("not in force: {p}"));
    said.problems.difference(&now).for_each(|p| tracing::info!("in force again: {p}"));
    said.problems = now;
}

/// Sends the objects that are not in force again.
async fn retry(desired: &Desired, client: &Client, problems: &[dp::Problem]) {
    let again = desired.again(problems);
    if again.set.is_empty() {
        return;
    }
    let generation = again.generation;
    if let Outcome::Refused(why) = fill(client, again, generation).await {
        tracing::warn!("trying again what is not in force: {why}");
    }
}
