//! What a store logs changes while it runs: by the Admin service, and by a reload.

use crate::support::calls::{PATIENT, Plain, channel, refused};
use crate::support::cluster::Cluster;
use crate::support::wait::eventually;
use rdb_proto::admin::admin_client::AdminClient;
use rdb_proto::admin::{SetLogLevelRequest, SetLogLevelResponse};
use std::fs;
use tonic::{Code, Status};

async fn set(cluster: &Cluster, level: &str) -> Result<SetLogLevelResponse, Status> {
    let mut admin = AdminClient::new(channel(cluster.addr(0)).await);
    let request = SetLogLevelRequest {
        level: level.to_owned(),
    };
    Ok(admin.set_log_level(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_changes_at_run_time_and_a_reload_puts_the_configured_one_into_force() {
    let mut cluster = Cluster::prepare(1, &[]);
    let file = cluster.dir().join("flaredb.toml");
    let configured = |level: &str| {
        fs::write(&file, format!("[log]\nlevel = \"{level}\"\n")).unwrap();
    };
    configured("info");
    let path = file.display().to_string();
    cluster.node_mut(0).set_flag("--config", &path);
    cluster.restart(0).await;

    let asked = set(&cluster, "").await.unwrap();
    assert_eq!(
        (asked.store_id, &*asked.before, &*asked.level),
        (1, "info", "info")
    );
    let debug = |cluster: &Cluster| cluster.log(0).matches("DEBUG").count();
    assert_eq!(debug(&cluster), 0);
    let changed = set(&cluster, "trace").await.unwrap();
    assert_eq!((&*changed.before, &*changed.level), ("info", "trace"));
    let plain = Plain::on(&cluster, 0).await;
    eventually(PATIENT, "it says more", async || {
        plain
            .put("kQ7zpassport", "vX9wsalary")
            .await
            .map_err(|status| status.to_string())?;
        let log = cluster.log(0);
        if log.contains("TRACE") || log.contains("DEBUG") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;

    // What is none is refused, and changes nothing.
    for wrong in ["verbose", "info,", "a b=info"] {
        refused(set(&cluster, wrong).await)
            .is(Code::InvalidArgument, "INVALID_ARGUMENT")
            .field("level");
    }
    assert_eq!(set(&cluster, "").await.unwrap().level, "trace");

    // The file says info still: reading it again puts that into force.
    cluster.node(0).signal("HUP").unwrap();
    eventually(PATIENT, "a reload puts info into force", async || {
        let now = set(&cluster, "")
            .await
            .map_err(|status| status.to_string())?;
        if now.level == "info" {
            Ok(())
        } else {
            Err(now.level)
        }
    })
    .await;
    configured("warn,rdb_server::store=debug");
    cluster.node(0).signal("HUP").unwrap();
    eventually(PATIENT, "a reload takes up a changed level", async || {
        let now = set(&cluster, "")
            .await
            .map_err(|status| status.to_string())?;
        if now.level.starts_with("warn") {
            Ok(())
        } else {
            Err(now.level)
        }
    })
    .await;
    let log = cluster.log(0);
    assert!(
        log.matches("the log level is changed").count() >= 3,
        "{log}"
    );
    for secret in ["kQ7zpassport", "vX9wsalary"] {
        assert!(!log.contains(secret), "{secret} in a log at level trace");
    }
}
