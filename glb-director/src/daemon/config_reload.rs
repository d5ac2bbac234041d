//! Reads the configuration file anew, and says which keys can change while the daemon runs.

use crate::{announce::DrainLimits, config::Config};

use super::Error;

/// Reads the file of `running` anew.
///
/// # Errors
/// When the file is not valid, or changes a key that needs a restart.
pub(super) fn reload(running: &Config) -> Result<Config, Error> {
    let config = Config::load(&running.path)?;
    let (old, new) = (fixed_keys(running), fixed_keys(&config));
    let changed = old.into_iter().zip(new).find(|(old, new)| old != new);
    match changed {
        Some(((key, _), _)) => Err(Error::NeedsRestart { key }),
        None => {
            for warning in config.warnings() {
                tracing::warn!("{warning}");
            }
            Ok(config)
        }
    }
}

/// The values of all keys that need a restart. The other keys (`table`, `on_unsafe`, `on_stop`,
/// `drain.timeout`, and those of the packet path) can change.
fn fixed_keys(config: &Config) -> [(&'static str, String); 13] {
    let Config {
        path: _,
        table: _,
        options: _,
        on_unsafe: _,
        on_stop: _,
        interfaces,
        bpffs_dir,
        gateway_mac,
        metrics,
        statsd,
        control,
        state_dir,
        flow_age,
        mode,
        announcements,
        drain,
        withdraw,
        probe,
    } = config;
    let drain = DrainLimits { timeout: std::time::Duration::ZERO, ..*drain };
    [
        ("interfaces", format!("{interfaces:?}")),
        ("bpffs_dir", format!("{bpffs_dir:?}")),
        ("gateway_mac", format!("{gateway_mac:?}")),
        ("metrics", format!("{metrics:?}")),
        ("statsd", format!("{statsd:?}")),
        ("control", format!("{control:?}")),
        ("state_dir", format!("{state_dir:?}")),
        ("flow_age", format!("{flow_age:?}")),
        ("mode", format!("{mode:?}")),
        ("announce", format!("{announcements:?}")),
        ("drain", format!("{drain:?}")),
        ("probe", format!("{probe:?}")),
        ("withdraw", format!("{withdraw:?}")),
    ]
}
