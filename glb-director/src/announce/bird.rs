//! The `bird` method: enables and disables protocols over BIRD's control socket, and reads their states.
//!
//! The wire protocol is that of `birdc` (BIRD's `doc/reply_codes`). BIRD greets with code `0001`. A reply
//! ends with a line that begins with four digits and a space. Codes `0…` and `1…` are results, `8…` runtime
//! errors, `9…` syntax errors, for example an unknown name.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{AnnouncementState, SessionView, printable};

/// How long BIRD may take to answer one command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a protocol may take to reach the state it was told.
const STATE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest greeting, in bytes.
const LONGEST_GREETING: u64 = 1 << 10;

/// The longest reply, in bytes.
const LONGEST_REPLY: u64 = 4 << 20;

/// Why BIRD does not carry out a state, or cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum BirdError {
    /// No process listens at the path. Another path's BIRD may still announce.
    #[error(
        "cannot ask BIRD on {}: {source}, so what it announces is unknown. Start BIRD, or set \
         `socket` to its control socket", path.display()
    )]
    NotListening {
        /// BIRD's control socket.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The socket does not permit this process to connect.
    #[error(
        "cannot connect to BIRD on {}: {source}. Add this daemon's user to the socket's group (root \
         too: the daemon gives up its rights over other users' files), or start BIRD with `-g` and \
         a group of this user",
        path.display()
    )]
    NotPermitted {
        /// BIRD's control socket.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// BIRD does not answer, or closed the connection.
    #[error("BIRD on {} does not answer: {source}. Check that it runs (`birdc show status`)", path.display())]
    Silent {
        /// BIRD's control socket.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// BIRD has no protocol with a configured name.
    #[error(
        "BIRD on {} has no protocol {name:?}, only {known}. Add it to BIRD's configuration, or \
         correct `protocols` and `low_preference`",
        path.display()
    )]
    NoProtocol {
        /// BIRD's control socket.
        path: PathBuf,
        /// The configured name.
        name: String,
        /// The names that BIRD has.
        known: String,
    },
    /// BIRD rejected a command.
    #[error("BIRD on {} rejects `{command}`: {answer}", path.display())]
    Refused {
        /// BIRD's control socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// BIRD's reply.
        answer: String,
    },
    /// The peer does not speak BIRD's protocol.
    #[error("{} is not BIRD's control socket: {what}. Set `socket` to the path of BIRD's", path.display())]
    NotBird {
        /// BIRD's control socket.
        path: PathBuf,
        /// What the peer sent.
        what: String,
    },
    /// A protocol does not reach the state it was told.
    #[error("protocol {name} of BIRD on {} stays {state:?} instead of {wanted:?}. See BIRD's log", path.display())]
    StuckProtocol {
        /// BIRD's control socket.
        path: PathBuf,
        /// The protocol's name.
        name: String,
        /// Its state.
        state: String,
        /// The state it should have.
        wanted: &'static str,
    },
}

/// A reply: the code and the text of each line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    lines: Vec<(u16, String)>,
}

impl Reply {
    fn code(&self) -> u16 {
        self.lines.last().map_or(0, |(code, _)| *code)
    }

    fn text(&self) -> String {
        let lines = self.lines.iter().map(|(_, text)| text.as_str());
        printable(&lines.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; "))
    }

    /// Adds a line; returns whether it is the last one. A line without a code continues the last code.
    fn push(&mut self, line: &str) -> Result<bool, String> {
        if let Some(text) = line.strip_prefix(' ') {
            self.lines.push((self.code(), text.to_owned()));
            return Ok(false);
        }
        let code = line.get(..4).filter(|code| code.bytes().all(|b| b.is_ascii_digit()));
        let code = code.and_then(|code| code.parse().ok());
        let (Some(code), Some(rest)) = (code, line.get(4..)) else {
            return Err(format!("it says \"{}\"", printable(line)));
        };
        let (is_last, text) = match rest.as_bytes().first() {
            Some(b'-') => (false, &rest[1..]),
            Some(b' ') => (true, &rest[1..]),
            None => (true, ""),
            Some(_) => return Err(format!("it says \"{}\"", printable(line))),
        };
        self.lines.push((code, text.to_owned()));
        Ok(is_last)
    }

    /// The protocols of a reply to `show protocols`, by name.
    fn protocols(&self) -> BTreeMap<String, Protocol> {
        // Columns: name, type, table, state, since (a time, or a date and a time), info.
        let rows = self.lines.iter().filter(|(code, _)| *code == 1002);
        rows.filter_map(|(_, text)| {
            let mut words = text.split_whitespace();
            let (name, kind) = (words.next()?.to_owned(), words.next()?.to_owned());
            let state = words.nth(1)?.to_owned();
            let is_time = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
            let info = words.skip_while(is_time).collect::<Vec<_>>().join(" ");
            Some((name, Protocol { kind, state, info: printable(&info) }))
        })
        .collect()
    }
}

/// A row of `show protocols`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Protocol {
    /// The type, such as `Static` or `BGP`.
    kind: String,
    /// `up`, `down`, `start` or `stop`.
    state: String,
    /// For BGP the session's state and its last error.
    info: String,
}

/// The BIRD protocols of one announcement, and the BGP sessions that carry it.
#[derive(Debug)]
pub struct Bird {
    path: PathBuf,
    protocols: Vec<String>,
    low_preference: Vec<String>,
    /// The configured sessions; if empty, every BGP protocol that is not disabled.
    sessions: Vec<String>,
    prefixes: Vec<String>,
    /// The sessions at the last check.
    seen: Vec<SessionView>,
    connection: Option<BufReader<UnixStream>>,
}

impl Bird {
    /// Names the control socket and the protocols. Connects on first use.
    #[must_use]
    pub fn new(path: &Path, protocols: &[String], low_preference: &[String]) -> Self {
        Self {
            path: path.to_owned(),
            protocols: protocols.to_vec(),
            low_preference: low_preference.to_vec(),
            sessions: Vec::new(),
            prefixes: Vec::new(),
            seen: Vec::new(),
            connection: None,
        }
    }

    /// Names the prefixes, and the BGP sessions that carry them; without names the sessions are found.
    #[must_use]
    pub fn with_sessions(mut self, sessions: &[String], prefixes: &[IpNet]) -> Self {
        self.sessions = sessions.to_vec();
        self.prefixes = prefixes.iter().map(ToString::to_string).collect();
        self
    }

    /// Returns the BGP sessions as [`Self::observe`] or [`Self::apply`] saw them last.
    #[must_use]
    pub fn sessions(&self) -> &[SessionView] {
        &self.seen
    }

    /// Returns the highest state that any of the protocols is in.
    ///
    /// # Errors
    /// When BIRD cannot be asked.
    pub async fn observe(&mut self) -> Result<AnnouncementState, BirdError> {
        let all = self.show_protocols().await?;
        self.check_sessions(&all).await?;
        let any = |names: &[String]| names.iter().any(|name| !is_down(&all, name));
        Ok(match (any(&self.protocols), any(&self.low_preference)) {
            (true, _) => AnnouncementState::Announced,
            (false, true) => AnnouncementState::LowPreference,
            (false, false) => AnnouncementState::Withdrawn,
        })
    }

    /// Enables and disables protocols until the state is reached; leaves those that are right alone.
    ///
    /// # Errors
    /// When BIRD cannot be asked, or does not reach the state.
    pub async fn apply(&mut self, state: AnnouncementState) -> Result<(), BirdError> {
        // Enable first, so that the prefix is never without a route.
        let mut wanted: Vec<(String, bool)> = Vec::new();
        wanted.extend(
            self.low_preference
                .iter()
                .cloned()
                .map(|n| (n, state == AnnouncementState::LowPreference)),
        );
        wanted.extend(
            self.protocols.iter().cloned().map(|n| (n, state == AnnouncementState::Announced)),
        );
        wanted.sort_by_key(|(_, up)| !*up);
        let all = self.show_protocols().await?;
        for (name, up) in &wanted {
            if is_down(&all, name) == *up {
                self.command(if *up { "enable" } else { "disable" }, name).await?;
            }
        }
        let mut waited = Duration::ZERO;
        loop {
            let all = self.show_protocols().await?;
            let not_yet = wanted.iter().find_map(|(name, up)| {
                let state = &all.get(name)?.state;
                let wanted = if *up { "up" } else { "down" };
                (state != wanted).then(|| (name.clone(), state.clone(), wanted))
            });
            let Some((name, state, wanted)) = not_yet else {
                return self.check_sessions(&all).await;
            };
            if waited >= STATE_TIMEOUT {
                let path = self.path.clone();
                return Err(BirdError::StuckProtocol { path, name, state, wanted });
            }
            let pause = Duration::from_millis(20);
            sleep(pause).await;
            waited += pause;
        }
    }

    /// Returns when BIRD closes the connection; never without one.
    pub async fn closed(&mut self) {
        let Some(connection) = &mut self.connection else { return std::future::pending().await };
        // BIRD sends nothing unasked.
        let mut byte = [0];
        drop(connection.read(&mut byte).await);
        self.connection = None;
    }

    /// Returns all protocols of BIRD.
    ///
    /// # Errors
    /// When BIRD cannot be asked, or lacks a configured protocol.
    async fn show_protocols(&mut self) -> Result<BTreeMap<String, Protocol>, BirdError> {
        let found = self.ask("show protocols").await?.protocols();
        let configured = self.protocols.iter().chain(&self.low_preference).chain(&self.sessions);
        if let Some(name) = configured.into_iter().find(|name| !found.contains_key(*name)) {
            let known: Vec<&str> = found.keys().map(String::as_str).collect();
            let (name, known) = (name.clone(), printable(&known.join(", ")));
            return Err(BirdError::NoProtocol { path: self.path.clone(), name, known });
        }
        Ok(found)
    }

    /// Reads the state of the BGP sessions, and whether they export the prefixes.
    async fn check_sessions(&mut self, all: &BTreeMap<String, Protocol>) -> Result<(), BirdError> {
        let is_session = |name: &String, protocol: &Protocol| {
            if self.sessions.is_empty() {
                protocol.kind == "BGP" && protocol.state != "down"
            } else {
                self.sessions.contains(name)
            }
        };
        let found: Vec<(String, Protocol)> = all
            .iter()
            .filter(|(name, protocol)| is_session(name, protocol))
            .map(|(name, protocol)| (name.clone(), protocol.clone()))
            .collect();
        let mut seen = Vec::new();
        for (name, Protocol { state, info, .. }) in found {
            let established = state == "up" && info.starts_with("Established");
            let exports = if established { self.exports(&name).await? } else { None };
            let info = if info.is_empty() { state } else { info };
            seen.push(SessionView { name, established, info, exports });
        }
        self.seen = seen;
        Ok(())
    }

    /// Whether BIRD exports every prefix to an established session; nothing if it does not tell.
    async fn exports(&mut self, session: &str) -> Result<Option<bool>, BirdError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.prefixes.is_empty() || !session.chars().all(is_name) {
            return Ok(None);
        }
        for prefix in self.prefixes.clone() {
            let reply = self.exchange(&format!("show route {prefix} export {session}")).await?;
            match reply.code() {
                // Network not found.
                8001 => return Ok(Some(false)),
                8000.. => return Ok(None),
                // BIRD has the route, and this session's filter rejects it.
                _ if reply.text().is_empty() => return Ok(Some(false)),
                _ => {}
            }
        }
        Ok(Some(true))
    }

    async fn command(&mut self, verb: &str, name: &str) -> Result<(), BirdError> {
        self.ask(&format!("{verb} {name}")).await.map(|_| ())
    }

    /// Sends a command; an error code in the reply is an error.
    async fn ask(&mut self, command: &str) -> Result<Reply, BirdError> {
        let reply = self.exchange(command).await?;
        if reply.code() >= 8000 {
            let (command, answer) = (command.to_owned(), reply.text());
            return Err(BirdError::Refused { path: self.path.clone(), command, answer });
        }
        Ok(reply)
    }

    /// Sends a command and returns any reply, on a new connection if there is none.
    async fn exchange(&mut self, command: &str) -> Result<Reply, BirdError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let line = format!("{command}\n");
        let talk = async {
            connection.write_all(line.as_bytes()).await?;
            reply(&mut connection, LONGEST_REPLY).await
        };
        let reply = self.within(talk).await?;
        self.connection = Some(connection);
        Ok(reply)
    }

    async fn connect(&self) -> Result<BufReader<UnixStream>, BirdError> {
        let path = self.path.clone();
        let stream = match timeout(ANSWER_TIMEOUT, UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(BirdError::NotPermitted { path, source });
            }
            Ok(Err(source)) => return Err(BirdError::NotListening { path, source }),
            Err(_) => return Err(BirdError::Silent { path, source: too_long() }),
        };
        let mut connection = BufReader::new(stream);
        let greeting = self.within(reply(&mut connection, LONGEST_GREETING)).await?;
        if greeting.code() != 1 || !greeting.text().contains("BIRD") {
            return Err(BirdError::NotBird {
                path,
                what: format!("it says \"{}\"", greeting.text()),
            });
        }
        Ok(connection)
    }

    async fn within<T>(&self, work: impl Future<Output = io::Result<T>>) -> Result<T, BirdError> {
        let path = self.path.clone();
        match timeout(ANSWER_TIMEOUT, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(BirdError::NotBird { path, what: error.to_string() })
            }
            Ok(Err(source)) => Err(BirdError::Silent { path, source }),
            Err(_) => Err(BirdError::Silent { path, source: too_long() }),
        }
    }
}

fn is_down(all: &BTreeMap<String, Protocol>, name: &str) -> bool {
    all.get(name).is_some_and(|protocol| protocol.state == "down")
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER_TIMEOUT:?}"))
}

async fn reply(connection: &mut BufReader<UnixStream>, longest: u64) -> io::Result<Reply> {
    let mut reply = Reply { lines: Vec::new() };
    let mut bounded = connection.take(longest);
    loop {
        let mut line = Vec::new();
        if bounded.read_until(b'\n', &mut line).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        let line = String::from_utf8_lossy(&line);
        if !line.ends_with('\n') {
            let what = format!("it says \"{}\" without an end of line", printable(&line));
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let pushed = reply.push(line.trim_end_matches(['\n', '\r']));
        if pushed.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))? {
            return Ok(reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Reply, String> {
        let mut reply = Reply { lines: Vec::new() };
        for line in text.lines() {
            if reply.push(line)? {
                return Ok(reply);
            }
        }
        Err("it does not end".into())
    }

    /// A reply of BIRD 2.0.12.
    const PROTOCOLS: &str = "2002-Name       Proto      Table      State  Since         Info\n\
        1002-device1    Device     ---        up     11:44:01.417  \n \
        vip4       Static     master4    up     11:44:01.417  \n \
        vip4_drain Static     master4    down   2026-11-30 11:44:01  \n \
        rtr        BGP        ---        start  11:44:01.417  Active        Socket: refused\n\
        0000 \n";

    #[test]
    fn protocol_states_are_parsed() {
        let all = parse(PROTOCOLS).unwrap().protocols();
        let state = |name: &str| all.get(name).map(|protocol| protocol.state.as_str());
        assert_eq!(all.len(), 4);
        let router = &all["rtr"];
        assert_eq!((&*router.kind, &*router.info), ("BGP", "Active Socket: refused"));
        assert_eq!(all["vip4_drain"].info, "");
        assert_eq!((state("device1"), state("vip4")), (Some("up"), Some("up")));
        assert_eq!((state("vip4_drain"), state("rtr")), (Some("down"), Some("start")));
    }

    #[test]
    fn replies_end_at_their_last_line_and_carry_its_code() {
        for (text, code, words) in [
            ("0009-vip4: disabled\n0000 \n", 0, "vip4: disabled"),
            ("8007 Access denied\n", 8007, "Access denied"),
            ("9001 syntax error, unexpected CF_SYM_UNDEFINED\n", 9001, "syntax error"),
            ("0001 BIRD 2.0.12 ready.\n", 1, "BIRD 2.0.12 ready."),
            ("0000\n", 0, ""),
        ] {
            let reply = parse(text).unwrap();
            assert_eq!(reply.code(), code, "{text}");
            assert!(reply.text().contains(words), "{reply:?}");
        }
        for text in ["SSH-2.0-OpenSSH_9.2\n", "00\n", "0001+x\n", "1002-a\n", "äöü\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_reply_causes_a_panic(text in "[ 0-9a-zä-]{0,8}([ -~ä\n]{0,80})") {
            if let Ok(reply) = parse(&text) {
                drop((reply.protocols(), reply.text(), reply.code()));
            }
        }

        #[test]
        fn every_protocol_of_a_reply_is_found(
            rows in proptest::collection::btree_map("[a-z_][a-z0-9_]{0,20}", "up|down|start", 1..20)
        ) {
            let mut text = String::from("2002-Name Proto Table State Since Info\n");
            for (index, (name, state)) in rows.iter().enumerate() {
                let mark = if index == 0 { "1002-" } else { " " };
                text += &format!("{mark}{name} Static master4 {state} 11:44:01.417  \n");
            }
            text += "0000 \n";
            let found = parse(&text).unwrap().protocols();
            let found = found.into_iter().map(|(name, protocol)| (name, protocol.state));
            prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), rows);
        }
    }
}
