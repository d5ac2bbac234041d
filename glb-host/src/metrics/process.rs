//! The standard `process_*` metrics, named as in Prometheus' client libraries.

use std::{
    fs,
    sync::atomic::{AtomicI64, AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Registers the process's memory, CPU time, descriptors and start time.
///
/// Values that the kernel does not tell are left out.
pub(super) fn register(registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("process");
    if let Ok(spent) = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID) {
        let counter = Counter::<f64, AtomicU64>::default();
        counter.inc_by(Duration::from(spent).as_secs_f64());
        let help = "Processor time of user and system spent";
        registry.register_with_unit("cpu", help, Unit::Seconds, counter);
    }
    let bytes = |value: u64| {
        let gauge = Gauge::<i64, AtomicI64>::default();
        gauge.set(value.try_into().unwrap_or(i64::MAX));
        gauge
    };
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| size.try_into().ok());
    let memory = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = memory.split(' ').filter_map(|word| word.parse::<u64>().ok());
    if let (Some(page), Some(all), Some(resident)) = (page, pages.next(), pages.next()) {
        let page: u64 = page;
        let help = "Virtual memory size";
        registry.register_with_unit("virtual_memory", help, Unit::Bytes, bytes(all * page));
        let help = "Resident memory size";
        registry.register_with_unit("resident_memory", help, Unit::Bytes, bytes(resident * page));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the opened folder itself.
        let count = (open.count() as u64).saturating_sub(1);
        registry.register("open_fds", "Number of open file descriptors", bytes(count));
    }
    if let Some(started) = started() {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(started);
        let help = "Start time of the process since the epoch";
        registry.register_with_unit("start_time", help, Unit::Seconds, gauge);
    }
}

/// Returns the process's start time in seconds since the epoch.
///
/// The kernel counts it from boot.
fn started() -> Option<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten()? as f64;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The command name, in parentheses, may hold spaces: `starttime` is the 20th field after it.
    let start: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let up = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?).as_secs_f64();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    Some(now - up + start / ticks)
}
