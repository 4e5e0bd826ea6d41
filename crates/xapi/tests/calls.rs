//! Calls against a scripted XAPI that misbehaves as real pools do (xapi-streams.md §1).

mod support;

use serde_json::{Value, json};
use support::{Answer, Pool};
use tls::SelfSigned;
use xapi::{Class, Client, Destroy, Error, Ref, Vdi};

fn error(code: &'static str, params: &[&str]) -> Answer {
    Answer::Error(code, params.iter().map(|param| (*param).to_owned()).collect())
}

#[tokio::test]
async fn a_login_says_who_we_are_and_a_close_gives_the_session_back() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    assert_eq!(pool.calls("session.login_with_password"), [[json!("root"), json!("hunter2"), json!("1.0"), json!("backhaul")]]);
    client.close().await;
    assert_eq!(pool.calls("session.logout").len(), 1);
    drop(client);

    let dropped = pool.client().await;
    drop(dropped);
    pool.until("a dropped handle logs out", |pool| pool.calls("session.logout").len() == 2).await;
}

#[tokio::test]
async fn calls_that_find_the_session_expired_log_in_once_together() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("VM.get_uuid", (0..8).map(|_| error("SESSION_INVALID", &["OpaqueRef:secret-1"])));
    let vm = Ref::from("OpaqueRef:vm");
    let calls = (0..8).map(|_| client.field::<String>("VM", &vm, "uuid"));
    for result in futures::future::join_all(calls).await {
        result.unwrap();
    }
    // Calls that began after the renewal may have used up an answer meant for the others.
    assert!(pool.logins() >= 2 && pool.logins() < 9, "{} logins", pool.logins());
}

#[tokio::test]
async fn a_session_that_stays_invalid_is_an_error_that_does_not_show_it() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("VM.start", (0..2).map(|_| error("SESSION_INVALID", &["OpaqueRef:secret-1"])));
    pool.answer("VM.stop", [error("INTERNAL_ERROR", &["no such thing as /uuid?session_id=OpaqueRef:secret-2"])]);
    for method in ["VM.start", "VM.stop"] {
        let error = client.run(method, json!([])).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    assert_eq!(pool.logins(), 2);
    assert!(!format!("{client:?}").contains("secret"));
}

#[tokio::test]
async fn a_wrong_password_fails_at_once() {
    let pool = Pool::start().await;
    pool.answer("session.login_with_password", [error("SESSION_AUTHENTICATION_FAILED", &["root", "Authentication failure"])]);
    let error = Client::connect(pool.connect()).await.unwrap_err();
    assert_eq!((error.code(), error.class()), ("SESSION_AUTHENTICATION_FAILED", Class::Permanent));
}

#[tokio::test]
async fn a_master_elsewhere_is_followed_when_it_is_trusted() {
    let certificate = SelfSigned::generate(&["localhost"]).unwrap();
    let (slave, master) = (Pool::start_with(certificate.clone()).await, Pool::start_with(certificate).await);
    let address = format!("127.0.0.1:{}", master.port);
    slave.answer("session.login_with_password", [error("HOST_IS_SLAVE", &[&address])]);
    let client = slave.client().await;
    client.run("VM.start", json!([])).await.unwrap();
    assert_eq!((master.logins(), master.calls("VM.start").len()), (1, 1));
    assert_eq!(client.master().await.port(), Some(master.port));

    // The roles may also change under a session.
    master.answer("VM.start", [error("HOST_IS_SLAVE", &[&format!("127.0.0.1:{}", slave.port)])]);
    client.run("VM.start", json!([])).await.unwrap();
    assert_eq!(slave.calls("VM.start").len(), 1);
}

#[tokio::test]
async fn an_unknown_certificate_is_refused_with_both_fingerprints() {
    let (pool, other) = (Pool::start().await, Pool::start().await);
    let seen = other.certificate.fingerprint().unwrap();
    pool.answer("session.login_with_password", [error("HOST_IS_SLAVE", &[&format!("127.0.0.1:{}", other.port)])]);
    match Client::connect(pool.connect()).await.unwrap_err() {
        error @ Error::Certificate { .. } => {
            let text = error.to_string();
            assert!(
                text.contains(&seen.to_string()) && text.contains(&pool.certificate.fingerprint().unwrap().to_string()),
                "{text}"
            );
        }
        error => panic!("{error:?}"),
    }
    assert_eq!(other.logins(), 0, "a password went to a host that is not trusted");
    assert_eq!(xapi::fingerprint(&format!("127.0.0.1:{}", other.port)).await.unwrap(), seen);
}

#[tokio::test]
async fn a_pool_that_is_not_there_is_named() {
    let pool = Pool::start().await;
    let connect = pool.connect();
    let address = format!("127.0.0.1:{}", pool.port);
    drop(pool);
    // The port may be taken by nobody or by another test; either way nobody there is our pool.
    let error = Client::connect(connect).await.unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn a_busy_pool_is_waited_for_but_not_forever() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("VM.start", [error("TOO_MANY_PENDING_TASKS", &[]), Answer::Status(503)]);
    client.run("VM.start", json!([])).await.unwrap();
    assert_eq!(pool.calls("VM.start").len(), 3);

    pool.answer("VM.stop", (0..9).map(|_| error("TOO_MANY_PENDING_TASKS", &[])));
    let error = client.run("VM.stop", json!([])).await.unwrap_err();
    assert_eq!((error.code(), pool.calls("VM.stop").len()), ("TOO_MANY_PENDING_TASKS", 4));
}

#[tokio::test]
async fn a_reading_call_survives_a_broken_connection_and_a_writing_one_is_not_sent_twice() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("VM.get_uuid", [Answer::HangUp]);
    pool.answer("VM.get_uuid", [Answer::Value(json!("u"))]);
    assert_eq!(client.field::<String>("VM", &Ref::null(), "uuid").await.unwrap(), "u");
    pool.answer("VM.create", [Answer::HangUp]);
    let error = client.create_vm(json!({})).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error:?}");
    assert_eq!(pool.calls("VM.create").len(), 1);
}

#[tokio::test]
async fn results_of_tasks_are_unwrapped_and_the_task_is_destroyed() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    let result = client.async_call("VM.snapshot", json!(["OpaqueRef:vm", "name"])).await.unwrap();
    assert_eq!(result, json!("OpaqueRef:made"));
    assert_eq!(pool.tasks(), 0);
}

#[tokio::test]
async fn a_task_is_waited_for_to_its_failure() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    for events in [true, false] {
        if !events {
            pool.answer("event.from", (0..99).map(|_| error("MESSAGE_METHOD_UNKNOWN", &["event.from"])));
        }
        let task = client.create_task("test").await.unwrap();
        let reference = task.reference().to_string();
        let looks = pool.calls("task.get_record").len();
        let wait = tokio::spawn(task.finish());
        pool.until("the task is looked at twice", |pool| pool.calls("task.get_record").len() >= looks + 2).await;
        pool.settle(&reference, "failure", "", &["SR_BACKEND_FAILURE_44", "", "no space"]);
        let error = wait.await.unwrap().unwrap_err();
        assert_eq!(error.code(), "SR_BACKEND_FAILURE_44", "{error}");
        assert_eq!(pool.tasks(), 0);
    }
}

#[tokio::test]
async fn a_task_that_vanishes_or_is_cancelled_is_an_error() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("Async.VM.start", [Answer::Value(json!("OpaqueRef:nowhere"))]);
    let error = client.start_vm(&Ref::null()).await.unwrap_err();
    assert!(matches!(error, Error::TaskVanished { .. }), "{error:?}");

    let task = client.create_task("test").await.unwrap();
    pool.settle(task.reference().as_str(), "cancelled", "", &[]);
    assert_eq!(task.finish().await.unwrap_err().code(), "TASK_CANCELLED");
}

#[tokio::test]
async fn a_wait_that_is_dropped_cancels_the_task_and_leaves_nothing() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    let task = client.create_task("test").await.unwrap();
    let wait = tokio::spawn(task.finish());
    pool.until("somebody waits", |pool| !pool.calls("task.get_record").is_empty()).await;
    wait.abort();
    pool.until("the task is gone", |pool| pool.tasks() == 0).await;
    assert_eq!(pool.calls("task.cancel").len(), 1);

    drop(client.create_task("test").await.unwrap());
    client.close().await;
    assert_eq!(pool.tasks(), 0, "closing waits for what is cleaned up");
}

#[tokio::test]
async fn a_disk_in_use_is_taken_from_control_domains_and_then_destroyed() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("Async.VDI.destroy", [error("VDI_IN_USE", &["OpaqueRef:vdi", "destroy"])]);
    pool.answer("VDI.get_VBDs", [Answer::Value(json!(["OpaqueRef:dom0-vbd", "OpaqueRef:user-vbd"]))]);
    pool.answer("VBD.get_VM", [Answer::Value(json!("OpaqueRef:dom0")), Answer::Value(json!("OpaqueRef:user"))]);
    pool.answer("VM.get_is_control_domain", [Answer::Value(json!(true)), Answer::Value(json!(false))]);
    pool.answer("VBD.unplug_force", [error("VBD_NOT_UNPLUGGABLE", &["OpaqueRef:dom0-vbd"])]);
    client.destroy_vdi(&"OpaqueRef:vdi".into()).await.unwrap();
    assert_eq!(pool.calls("Async.VDI.destroy").len(), 2);
    assert_eq!(pool.calls("VBD.unplug_force").len(), 2);
    assert_eq!(pool.calls("VBD.set_unpluggable"), [[json!("OpaqueRef:dom0-vbd"), json!(true)]]);
    assert_eq!(pool.calls("VBD.destroy"), [[json!("OpaqueRef:dom0-vbd")]], "the VBD of a user's VM is none of our business");

    pool.answer("Async.VDI.destroy", [error("HANDLE_INVALID", &["VDI", "OpaqueRef:vdi"])]);
    client.destroy_vdi(&"OpaqueRef:vdi".into()).await.unwrap();
    pool.answer("Async.VDI.destroy", [error("OPERATION_NOT_ALLOWED", &["no"])]);
    client.destroy_vdi(&"OpaqueRef:vdi".into()).await.unwrap_err();
}

#[tokio::test]
async fn a_vm_is_destroyed_with_its_own_disks_only() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer(
        "VM.get_record",
        [Answer::Value(json!({
            "is_a_template": true, "is_a_snapshot": true, "power_state": "Suspended",
            "blocked_operations": {"destroy": "x", "start": "y"},
        }))],
    );
    pool.answer("VM.set_is_a_template", [error("LICENCE_RESTRICTION", &["x"])]);
    pool.answer("VM.get_VBDs", [Answer::Value(json!(["OpaqueRef:vbd-own", "OpaqueRef:vbd-shared", "OpaqueRef:vbd-cd"]))]);
    let vbd = |vdi: &str, kind: &str| Answer::Value(json!({"VDI": vdi, "type": kind}));
    pool.answer("VBD.get_record", [vbd("OpaqueRef:own", "Disk"), vbd("OpaqueRef:shared", "Disk"), vbd("OpaqueRef:cd", "CD")]);
    pool.answer(
        "VDI.get_VBDs",
        [Answer::Value(json!(["OpaqueRef:vbd-own"])), Answer::Value(json!(["OpaqueRef:vbd-shared", "OpaqueRef:vbd-other"]))],
    );
    let snapshot = json!("OpaqueRef:snapshot");
    pool.answer(
        "VBD.get_VM",
        [snapshot.clone(), snapshot, json!("OpaqueRef:other"), json!("OpaqueRef:other")].map(Answer::Value),
    );
    pool.answer("VM.get_is_control_domain", [Answer::Value(json!(false))]);
    client.destroy_vm(&"OpaqueRef:snapshot".into(), Destroy { disks: true, bypass_blocked: true }).await.unwrap();
    assert_eq!(pool.calls("VM.remove_from_blocked_operations"), [[json!("OpaqueRef:snapshot"), json!("destroy")]]);
    assert_eq!(pool.calls("Async.VM.destroy"), [[json!("OpaqueRef:snapshot")]]);
    assert_eq!(pool.calls("Async.VDI.destroy"), [[json!("OpaqueRef:own")]]);
}

#[tokio::test]
async fn an_older_host_snapshots_without_ignoring_disks() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("Async.VM.snapshot", [error("MESSAGE_PARAMETER_COUNT_MISMATCH", &["VM.snapshot", "3", "2"])]);
    let snapshot = client.snapshot_vm(&"OpaqueRef:vm".into(), "name", &["OpaqueRef:vdi".into()]).await.unwrap();
    assert_eq!(snapshot.as_str(), "OpaqueRef:made");
    assert_eq!(pool.calls("Async.VM.snapshot").iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(pool.calls("VM.set_is_a_template"), [[json!("OpaqueRef:made"), json!(false)]]);
}

#[tokio::test]
async fn a_key_that_somebody_adds_at_the_same_moment_is_set_all_the_same() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("VDI.add_to_other_config", [error("MAP_DUPLICATE_KEY", &["VDI", "other_config", "OpaqueRef:1", "k"])]);
    client.set_other_config("VDI", &"OpaqueRef:1".into(), "k", "v").await.unwrap();
    assert_eq!(pool.calls("VDI.remove_from_other_config").len(), 2);
    assert_eq!(pool.calls("VDI.add_to_other_config").len(), 2);
}

#[tokio::test]
async fn reasons_of_blocked_operations_survive_except_our_own() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    let vm = Ref::from("OpaqueRef:vm");
    pool.answer("VM.get_blocked_operations", [Answer::Value(json!({"pool_migrate": "by an admin", "migrate_send": "ours"}))]);
    let previous = client.blocked(&vm, &["pool_migrate", "migrate_send", "start"], "ours").await.unwrap();
    let expected = [("migrate_send", None), ("pool_migrate", Some("by an admin")), ("start", None)];
    assert_eq!(previous, expected.map(|(name, reason)| (name.to_owned(), reason.map(str::to_owned))).into());
    client.restore_blocked(&vm, &previous).await.unwrap();
    assert_eq!(pool.calls("VM.add_to_blocked_operations"), [[json!(vm), json!("pool_migrate"), json!("by an admin")]]);
    assert_eq!(pool.calls("VM.remove_from_blocked_operations").len(), 3);
}

#[tokio::test]
async fn changed_blocks_come_out_of_the_task_as_a_bitmap() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    let task = client.create_task("x").await.unwrap();
    pool.settle(task.reference().as_str(), "success", "<value>gAAAAAE=</value>", &[]);
    pool.answer("Async.VDI.list_changed_blocks", [Answer::Value(json!(task.reference()))]);
    let changed = client.list_changed_blocks(&"OpaqueRef:a".into(), &"OpaqueRef:b".into()).await.unwrap();
    assert_eq!(changed.blocks(4 << 20, 2 << 20).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn answers_that_make_no_sense_are_named() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.answer("VDI.get_record", [Answer::Value(json!([1])), Answer::Value(Value::Null)]);
    for _ in 0..2 {
        let error = client.get::<Vdi>(&"OpaqueRef:1".into()).await.unwrap_err();
        assert!(matches!(&error, Error::Malformed { what, .. } if what == "VDI.get_record"), "{error:?}");
    }
    pool.answer("VDI.get_uuid", [Answer::Status(500)]);
    let error = client.field::<String>("VDI", &Ref::null(), "uuid").await.unwrap_err();
    assert!(matches!(error, Error::Http { status: 500, .. }), "{error:?}");
}
