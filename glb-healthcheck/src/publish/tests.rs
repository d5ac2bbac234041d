use std::{collections::HashSet, net::IpAddr, path::Path};

use glb_table::{Format, State, health_overlay::HealthResult, parse_bytes};

use super::*;
use crate::{check::Pace, check_config, engine::Source};

const TEXT: &str = "[[tables]]\nname = \"t\"\nhash_key = \"00000000000000000000000000000000\"\n\
    seed = \"11111111111111111111111111111111\"\n\
    binds = [{ ip = \"1.1.1.1\", proto = \"tcp\", port = 80 }]\n\
    [[tables.backends]]\nip = \"10.0.0.1\"\nstate = \"active\"\n";

fn decision(healthy: bool) -> Option<Arc<Decision>> {
    let path = Path::new("s.toml");
    let set = parse_bytes(path, Format::Toml, TEXT.as_bytes()).unwrap();
    let wanted = check_config::targets(path, &set, &Pace::default()).unwrap();
    let source = Source { path: path.to_owned(), text: TEXT.into(), set, wanted };
    let findings = vec![vec![HealthResult { healthy, state: State::Active }]];
    Some(Arc::new(Decision {
        source: Arc::new(source),
        findings,
        drains: Vec::new(),
        urgent: true,
    }))
}

fn publisher(folder: &Path, command: &str) -> Publisher {
    Publisher {
        checked: folder.join("c.toml"),
        tell: Some(Tell::Command(command.to_owned())),
        timeout: Duration::from_millis(400),
        record: SharedRecord::default(),
    }
}

/// Runs a publisher through the steps; between them it has `wait` of time.
async fn publish(publisher: &Publisher, steps: &[bool], wait: Duration) -> Record {
    let (sender, receiver) = watch::channel(None);
    let running = tokio::spawn(publisher.clone().run(receiver, oneshot::channel().0));
    for healthy in steps {
        sender.send_replace(decision(*healthy));
        tokio::time::sleep(wait).await;
    }
    running.abort();
    publisher.record.get()
}

#[tokio::test]
async fn writes_what_changed_and_tells() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let publisher = publisher(folder.path(), &format!("echo x >> {}", told.display()));
    let wait = Duration::from_millis(300);
    let record = publish(&publisher, &[true, true, false], wait).await;
    assert_eq!((record.writes, record.reloads), (2, 2));
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "x\nx\n");
    let set = glb_table::load(&publisher.checked).unwrap();
    assert!(!set.tables[0].backends[0].healthy);
    // After a restart nothing is written, but the director is told once.
    let record = publish(&publisher, &[false, false], wait).await;
    assert_eq!((record.writes, record.reloads), (2, 3));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn a_command_that_fails_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let command = format!("test -e {0} || {{ touch {0}; echo no >&2; exit 3; }}", once.display());
    let publisher = publisher(folder.path(), &command);
    let record = publish(&publisher, &[true], Duration::from_millis(1200)).await;
    assert_eq!((record.reload_failures, record.reloads), (1, 1));
    assert_eq!(record.trouble(), None);
}

#[tokio::test]
async fn a_command_that_hangs_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(folder.path(), "sleep 1000 & sleep 1000");
    let record = publish(&publisher, &[true], Duration::from_millis(700)).await;
    assert_eq!(record.reload_failures, 1);
    assert!(record.trouble().unwrap().contains("within 400 ms"));
}

#[tokio::test]
async fn a_command_that_takes_its_time_delays_no_write() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let command = format!("sleep 1; echo x >> {}", told.display());
    let mut publisher = publisher(folder.path(), &command);
    publisher.timeout = Duration::from_secs(60);
    let (sender, receiver) = watch::channel(None);
    let running = tokio::spawn(publisher.clone().run(receiver, oneshot::channel().0));
    for (number, healthy) in [true, false, true].into_iter().enumerate() {
        sender.send_replace(decision(healthy));
        while publisher.record.get().writes <= number as u64 {
            assert_eq!(publisher.record.get().reloads, 0, "the write waited for the command");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // It is run once more, for all that was written meanwhile.
    while publisher.record.get().reloads < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(publisher.record.get().reloads, 2);
    assert_eq!(publisher.record.get().trouble(), None);
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "x\nx\n");
    running.abort();
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut publisher = publisher(folder.path(), "true");
    publisher.checked = folder.path().join("missing/c.toml");
    let (sender, receiver) = watch::channel(decision(true));
    let mut receiver_now = receiver;
    receiver_now.mark_changed();
    let running = tokio::spawn(publisher.clone().run(receiver_now, oneshot::channel().0));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let record = publisher.record.get();
    assert_eq!((record.write_failures, record.writes), (1, 0));
    assert!(record.trouble().unwrap().contains("missing/c.toml"));
    std::fs::create_dir(folder.path().join("missing")).unwrap();
    // News wake it before its time.
    sender.send_replace(decision(false));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(publisher.record.get().writes, 1);
    let set = glb_table::load(&publisher.checked).unwrap();
    assert!(!set.tables[0].backends[0].healthy);
    running.abort();
}

#[tokio::test]
async fn a_table_that_somebody_removes_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(folder.path(), "true");
    let (sender, receiver) = watch::channel(None);
    let running = tokio::spawn(publisher.clone().run(receiver, oneshot::channel().0));
    sender.send_replace(decision(false));
    for writes in 1..=3 {
        while publisher.record.get().writes < writes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let set = glb_table::load(&publisher.checked).unwrap();
        assert!(!set.tables[0].backends[0].healthy);
        std::fs::remove_file(&publisher.checked).unwrap();
    }
    running.abort();
}

#[tokio::test]
async fn an_agents_wish_is_left_for_the_next_checker() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(folder.path(), "true");
    let agent = [IpAddr::from([10, 0, 0, 1])];
    let wish = |drains: &[IpAddr]| {
        let decision = decision(true).unwrap();
        Arc::new(Decision { drains: drains.to_vec(), ..Decision::clone(&decision) })
    };
    for drains in [&[][..], &agent, &agent, &[]] {
        publisher.write(&wish(drains)).await.unwrap();
        assert_eq!(drains::read(&publisher.checked), HashSet::from_iter(drains.iter().copied()));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    std::fs::write(drains::file(&publisher.checked), "nonsense").unwrap();
    assert!(drains::read(&publisher.checked).is_empty());
}
