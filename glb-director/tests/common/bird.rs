//! A real BIRD in a test's network.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::live::{PATIENCE, Site};

/// A BIRD in this thread's network, killed when it is let go.
pub(crate) struct Bird {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

/// The protocols of the tests, as an administrator would write them.
const PROTOCOLS: &str = "router id 10.0.1.1;\nprotocol device {}\n\
    protocol static vip { disabled; ipv4; route 198.51.100.1/32 blackhole; }\n\
    protocol static vip_drain { disabled; ipv4 { preference 100; };\n\
    route 198.51.100.1/32 blackhole; }\n\
    protocol static elsewhere { ipv4; route 192.0.2.0/24 blackhole; }\n";

impl Bird {
    pub(crate) fn start(site: &Site) -> Self {
        let (conf, socket) = (site.at("bird.conf"), site.at("bird.ctl"));
        fs::write(&conf, PROTOCOLS).unwrap();
        let mut bird = Command::new("bird");
        bird.arg("-f").arg("-c").arg(conf).arg("-s").arg(&socket).stderr(Stdio::null());
        let bird = Self { child: bird.spawn().expect("bird is needed (`./x setup`)"), socket };
        wait("BIRD", || bird.states().contains_key("vip").then_some(()));
        bird
    }

    /// Which protocols are up, by what `birdc` says.
    pub(crate) fn states(&self) -> std::collections::BTreeMap<String, bool> {
        let mut birdc = Command::new("birdc");
        let output = birdc.arg("-s").arg(&self.socket).args(["show", "protocols"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words
            .filter(|words| words.get(1) == Some(&"Static"))
            .map(|words| (words[0].to_owned(), words[3] == "up"))
            .collect()
    }

    /// Waits until just these are up of the announcement's own.
    #[track_caller]
    pub(crate) fn announces(&self, names: &[&str]) {
        let mut last = Vec::new();
        let begun = Instant::now();
        loop {
            let states = self.states();
            assert_eq!(states.get("elsewhere"), Some(&true), "another's protocol was touched");
            let up = states.into_iter().filter(|(name, up)| *up && name != "elsewhere");
            let up: Vec<String> = up.map(|(name, _)| name).collect();
            if up == names {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{up:?} are up, not {names:?}; before: {last:?}");
            last = up;
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Bird {
    /// Stops it, or has it go on: it does not answer meanwhile.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[track_caller]
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} is waited for in vain");
        thread::sleep(Duration::from_millis(20));
    }
}
