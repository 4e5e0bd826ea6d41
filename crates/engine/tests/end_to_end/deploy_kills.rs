//! Workers that deploy, change, replace and destroy proxies, killed right after any of their events, and the recover run
//! after it: the pool as it was, or a proxy that works.

use api::{EventKind, Outcome};
use engine::plan::{ReconfigurePlan, Work};

use crate::crash::AS_WORKER;
use crate::fleet::{Fleet, Manner, deploy, outcome};
use crate::site::{announces_the_end, open_intents};

/// Runs a work in a worker and kills it when its `at`-th event has come, before that is acknowledged; meters are not counted,
/// for how many there are is chance. Its events as the journal has them, and whether it was killed.
async fn killed_at(fleet: &Fleet, work: Work, at: usize) -> (Vec<EventKind>, bool) {
    let program = std::env::current_exe().unwrap();
    let mut worker = engine::spawn(&program, &AS_WORKER, fleet.plan(work)).await.unwrap();
    let (control, mut events, mut counted, mut killed) = (worker.control(), Vec::new(), 0, false);
    // What it had written when it was killed is in the journal, too.
    while let Ok(Some(report)) = worker.next().await {
        counted += usize::from(!matches!(report.event, EventKind::TaskProgress { .. }));
        events.push(report.event);
        if counted >= at && !killed {
            killed = true;
            worker.kill().unwrap();
        } else if report.durable && !killed {
            control.ack(report.seq).await.unwrap();
        }
    }
    worker.wait().await.unwrap();
    (events, killed)
}

fn last(events: &[EventKind], at: usize) -> String {
    format!("killed at event {at}: {:?}", events.last())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_killed_anywhere_leaves_the_pool_as_it_was_or_a_proxy_that_works() {
    let fleet = Fleet::new(11).await;
    let before = fleet.pool().dump();
    let mut committed = 0;
    for at in 1.. {
        let (events, killed) = killed_at(&fleet, deploy(fleet.deployment()), at).await;
        let what = last(&events, at);
        let proxy = outcome(&events);
        fleet.recover(open_intents(&events), &[]).await;
        if let Some(proxy) = &proxy {
            committed += 1;
            fleet.assert_works(proxy, 0, &what).await;
            fleet.destroyed(proxy).await;
        }
        fleet.assert_as_but_for_tasks(&before, &what).await;
        assert_eq!(fleet.proxies.count(), (0, 0), "{what}");
        if !killed {
            assert!(at > 20 && committed > 1, "{at} events, {committed} of them after the commit");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_killed_anywhere_is_taken_back_or_complete() {
    let fleet = Fleet::new(12).await;
    let proxy = fleet.deployed().await;
    fleet.proxies.set_jobs(proxy.vm.as_deref().unwrap(), 2);
    let before = fleet.pool().dump();
    for at in 1.. {
        let (events, killed) = killed_at(&fleet, Work::Reconfigure(fleet.reconfiguration(&proxy)), at).await;
        let what = last(&events, at);
        fleet.recover(open_intents(&events), &[&proxy]).await;
        if outcome(&events).is_some() {
            fleet.assert_works(&proxy, 2, &what).await;
            let back = ReconfigurePlan { vcpus: Some(2), ..fleet.reconfiguration(&proxy) };
            fleet.run(Work::Reconfigure(back)).await.assert(Outcome::Success);
        }
        fleet.assert_as_but_for_tasks(&before, &what).await;
        fleet.assert_works(&proxy, 2, &what).await;
        if !killed {
            assert!(at > 15, "{at} events");
            break;
        }
    }
}

async fn replacement(number: u8, manner: Manner) {
    let fleet = Fleet::new(number).await;
    let mut proxy = fleet.replaceable(manner).await;
    let mut replaced = 0;
    for at in 1.. {
        let before = fleet.pool().dump();
        let plan = fleet.replacing(&proxy, manner).await;
        let (events, killed) = killed_at(&fleet, deploy(plan), at).await;
        let what = last(&events, at);
        match fleet.after_replacing(&proxy, &events).await {
            Some(new) => {
                replaced += 1;
                proxy = new;
            }
            None => fleet.assert_as_but_for_tasks(&before, &what).await,
        }
        fleet.assert_works(&proxy, 2, &what).await;
        fleet.assert_vms(&[&proxy], &what);
        if !killed {
            assert!(at > 25 && replaced > 1, "{at} events, {replaced} replacements");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_killed_anywhere_leaves_the_former_proxy_or_the_new_one() {
    replacement(13, Manner::Leased).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_from_a_copy_killed_anywhere_leaves_the_former_proxy_or_the_new_one() {
    replacement(15, Manner::Silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_killed_anywhere_has_not_begun_or_is_finished() {
    let fleet = Fleet::new(14).await;
    let before = fleet.pool().dump();
    for at in 1.. {
        let proxy = fleet.deployed().await;
        fleet.snapshot(&proxy).await;
        let standing = fleet.pool().dump();
        let (events, killed) = killed_at(&fleet, Work::Destroy(fleet.destruction(&proxy)), at).await;
        let what = last(&events, at);
        fleet.recover(open_intents(&events), &[&proxy]).await;
        if !events.iter().any(announces_the_end) {
            fleet.assert_as_but_for_tasks(&standing, &what).await;
            fleet.assert_works(&proxy, 0, &what).await;
            fleet.destroyed(&proxy).await;
        }
        fleet.assert_as_but_for_tasks(&before, &what).await;
        if !killed {
            assert!(at > 8, "{at} events");
            break;
        }
    }
}
