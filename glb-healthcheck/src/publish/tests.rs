use std::{collections::HashSet, net::IpAddr, path::Path};

use glb_table::{Format, State, health_overlay::HealthResult, parse_bytes};

use super::*;
use crate::{check::Settings, check_config, engine::InputTable};

const TEXT: &str = "[[tables]]\nname = \"t\"\nhash_key = \"00000000000000000000000000000000\"\n\
    seed = \"11111111111111111111111111111111\"\n\
    binds = [{ ip = \"1.1.1.1\", proto = \"tcp\", port = 80 }]\n\
    [[tables.backends]]\nip = \"10.0.0.1\"\nstate = \"active\"\n";

fn update(healthy: bool) -> Option<Arc<TableUpdate>> {
    let path = Path::new("s.toml");
    let set = parse_bytes(path, Format::Toml, TEXT.as_bytes()).unwrap();
    let targets = check_config::read_targets(path, &set, &Settings::default()).unwrap();
    let input = InputTable { path: path.to_owned(), text: TEXT.into(), set, targets };
    let health = vec![vec![HealthResult { healthy, state: State::Active }]];
    Some(Arc::new(TableUpdate { input: Arc::new(input), health, drains: Vec::new(), urgent: true }))
}

fn notify(command: &str, timeout: Duration) -> watch::Receiver<NotifyConfig> {
    let method = Some(ReloadMethod::Command(command.to_owned()));
    watch::channel(NotifyConfig { method, timeout }).1
}

fn publisher(folder: &Path, command: &str) -> Publisher {
    Publisher {
        output: folder.join("c.toml"),
        notify: notify(command, Duration::from_millis(400)),
        record: SharedPublishRecord::default(),
    }
}

/// Sends updates to a publisher, one after each `wait`.
async fn publish(publisher: &Publisher, steps: &[bool], wait: Duration) -> PublishRecord {
    let (sender, receiver) = watch::channel(None);
    let running = tokio::spawn(publisher.clone().run(receiver, oneshot::channel().0));
    for healthy in steps {
        sender.send_replace(update(*healthy));
        tokio::time::sleep(wait).await;
    }
    running.abort();
    publisher.record.get()
}

#[tokio::test]
async fn changed_content_is_written_and_the_director_notified() {
    let folder = tempfile::tempdir().unwrap();
    let reloads_file = folder.path().join("reloads_file");
    let publisher = publisher(folder.path(), &format!("echo x >> {}", reloads_file.display()));
    let wait = Duration::from_millis(300);
    let record = publish(&publisher, &[true, true, false], wait).await;
    assert_eq!((record.writes, record.reloads), (2, 2));
    assert_eq!(std::fs::read_to_string(&reloads_file).unwrap(), "x\nx\n");
    let set = glb_table::load(&publisher.output).unwrap();
    assert!(!set.tables[0].backends[0].healthy);
    // After a restart nothing is written, but the director is notified once.
    let record = publish(&publisher, &[false, false], wait).await;
    assert_eq!((record.writes, record.reloads), (2, 3));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn a_failed_reload_command_is_retried() {
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let command = format!("test -e {0} || {{ touch {0}; echo no >&2; exit 3; }}", once.display());
    let publisher = publisher(folder.path(), &command);
    let record = publish(&publisher, &[true], Duration::from_millis(1200)).await;
    assert_eq!((record.reload_failures, record.reloads), (1, 1));
    assert_eq!(record.problem(), None);
}

#[tokio::test]
async fn a_hanging_reload_command_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(folder.path(), "sleep 1000 & sleep 1000");
    let record = publish(&publisher, &[true], Duration::from_millis(700)).await;
    assert_eq!(record.reload_failures, 1);
    assert!(record.problem().unwrap().contains("within 400 ms"));
}

#[tokio::test]
async fn a_slow_reload_command_delays_no_write() {
    let folder = tempfile::tempdir().unwrap();
    let reloads_file = folder.path().join("reloads_file");
    let command = format!("sleep 1; echo x >> {}", reloads_file.display());
    let mut publisher = publisher(folder.path(), &command);
    publisher.notify = notify(&command, Duration::from_secs(60));
    let (sender, receiver) = watch::channel(None);
    let running = tokio::spawn(publisher.clone().run(receiver, oneshot::channel().0));
    for (number, healthy) in [true, false, true].into_iter().enumerate() {
        sender.send_replace(update(healthy));
        while publisher.record.get().writes <= number as u64 {
            assert_eq!(publisher.record.get().reloads, 0, "the write waited for the command");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // It runs once more, for all writes in the meantime.
    while publisher.record.get().reloads < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(publisher.record.get().reloads, 2);
    assert_eq!(publisher.record.get().problem(), None);
    assert_eq!(std::fs::read_to_string(&reloads_file).unwrap(), "x\nx\n");
    running.abort();
}

#[tokio::test]
async fn a_failed_write_is_retried() {
    let folder = tempfile::tempdir().unwrap();
    let mut publisher = publisher(folder.path(), "true");
    publisher.output = folder.path().join("missing/c.toml");
    let (sender, receiver) = watch::channel(update(true));
    let mut receiver_now = receiver;
    receiver_now.mark_changed();
    let running = tokio::spawn(publisher.clone().run(receiver_now, oneshot::channel().0));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let record = publisher.record.get();
    assert_eq!((record.write_failures, record.writes), (1, 0));
    assert!(record.problem().unwrap().contains("missing/c.toml"));
    std::fs::create_dir(folder.path().join("missing")).unwrap();
    // A new update is written without waiting for the retry.
    sender.send_replace(update(false));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(publisher.record.get().writes, 1);
    let set = glb_table::load(&publisher.output).unwrap();
    assert!(!set.tables[0].backends[0].healthy);
    running.abort();
}

#[tokio::test]
async fn a_removed_output_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(folder.path(), "true");
    let (sender, receiver) = watch::channel(None);
    let running = tokio::spawn(publisher.clone().run(receiver, oneshot::channel().0));
    sender.send_replace(update(false));
    for writes in 1..=3 {
        while publisher.record.get().writes < writes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let set = glb_table::load(&publisher.output).unwrap();
        assert!(!set.tables[0].backends[0].healthy);
        std::fs::remove_file(&publisher.output).unwrap();
    }
    running.abort();
}

#[tokio::test]
async fn agent_drains_are_saved_for_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(folder.path(), "true");
    let agent = [IpAddr::from([10, 0, 0, 1])];
    let update_with = |drains: &[IpAddr]| {
        let update = update(true).unwrap();
        Arc::new(TableUpdate { drains: drains.to_vec(), ..TableUpdate::clone(&update) })
    };
    for drains in [&[][..], &agent, &agent, &[]] {
        publisher.write(&update_with(drains), true).await.unwrap();
        assert_eq!(
            agent_drains::read(&publisher.output),
            HashSet::from_iter(drains.iter().copied())
        );
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    std::fs::write(agent_drains::file(&publisher.output), "nonsense").unwrap();
    assert!(agent_drains::read(&publisher.output).is_empty());
}
