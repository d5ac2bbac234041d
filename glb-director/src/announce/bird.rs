//! BIRD by its control socket: named protocols are enabled and disabled, and their states read back.
//!
//! The protocol is that of `birdc` (BIRD's `doc/reply_codes`): a greeting (`0001`), then for each
//! command lines of which the last begins with four digits and a space. `0…` is well, `8…` a refusal,
//! `9…` a command that BIRD does not understand, such as one with an unknown name.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::Level;

/// How long BIRD may take to answer one command.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a protocol may take from a command to its state.
const SETTLING: Duration = Duration::from_secs(2);

/// Longest answer, in bytes.
const LONGEST: u64 = 4 << 20;

/// Why BIRD does not do what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum BirdError {
    /// Nobody listens.
    #[error("BIRD is not there: {}: {source}; start it, or mend `socket`", path.display())]
    Away {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket's mode says no.
    #[error(
        "not permitted to connect to BIRD at {}: {source}; add this daemon's user (also if it is \
         root, whose power over files it has given up) to the socket's group, or start BIRD with \
         `-g` of a group that it is in",
        path.display()
    )]
    NotPermitted {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It went away in the middle, or does not answer.
    #[error("BIRD at {} does not answer: {source}", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It has no protocol of this name.
    #[error(
        "BIRD at {} has no protocol {name:?}; it has {known}. Add it to BIRD's configuration, or \
         mend `protocols` and `less_wanted`",
        path.display()
    )]
    NoProtocol {
        /// The socket.
        path: PathBuf,
        /// As configured.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A command was refused.
    #[error("BIRD at {} refuses `{command}`: {answer}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What was asked for.
        command: String,
        /// What it said.
        answer: String,
    },
    /// The answer is none of BIRD's.
    #[error("{} is not BIRD's control socket: {what}", path.display())]
    Odd {
        /// The socket.
        path: PathBuf,
        /// What is odd.
        what: String,
    },
    /// A protocol does not get where it was sent.
    #[error("protocol {name} of BIRD at {} is {state:?}, and not {wanted:?}", path.display())]
    Elsewhere {
        /// The socket.
        path: PathBuf,
        /// The protocol.
        name: String,
        /// Where it is.
        state: String,
        /// Where it should be.
        wanted: &'static str,
    },
}

impl BirdError {
    /// Whether there is no BIRD, and so nothing that it would announce.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
}

/// An answer of BIRD's: the code and the text of each line, and the last line's.
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
        lines.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// Takes in one line; whether it is the last one. A line without a code is of the code before.
    fn push(&mut self, line: &str) -> Result<bool, String> {
        if let Some(text) = line.strip_prefix(' ') {
            self.lines.push((self.code(), text.to_owned()));
            return Ok(false);
        }
        let code = line.get(..4).filter(|code| code.bytes().all(|b| b.is_ascii_digit()));
        let code = code.and_then(|code| code.parse().ok());
        let (Some(code), Some(rest)) = (code, line.get(4..)) else {
            return Err(format!("it says {line:?}"));
        };
        let (is_last, text) = match rest.as_bytes().first() {
            Some(b'-') => (false, &rest[1..]),
            Some(b' ') => (true, &rest[1..]),
            None => (true, ""),
            Some(_) => return Err(format!("it says {line:?}")),
        };
        self.lines.push((code, text.to_owned()));
        Ok(is_last)
    }

    /// The states of the answer to `show protocols`.
    fn states(&self) -> BTreeMap<String, String> {
        // RFC-like table: name, kind, table, state, since when, more.
        let rows = self.lines.iter().filter(|(code, _)| *code == 1002);
        rows.filter_map(|(_, text)| {
            let mut words = text.split_whitespace();
            Some((words.next()?.to_owned(), words.nth(2)?.to_owned()))
        })
        .collect()
    }
}

/// The protocols of one announcement.
#[derive(Debug)]
pub struct Bird {
    path: PathBuf,
    protocols: Vec<String>,
    less_wanted: Vec<String>,
    connection: Option<BufReader<UnixStream>>,
}

impl Bird {
    /// Those of the BIRD whose control socket is at `path`. Nothing is asked yet.
    #[must_use]
    pub fn new(path: &Path, protocols: &[String], less_wanted: &[String]) -> Self {
        let (protocols, less_wanted) = (protocols.to_vec(), less_wanted.to_vec());
        Self { path: path.to_owned(), protocols, less_wanted, connection: None }
    }

    /// What is announced now: the most wanted of what any of the protocols does.
    ///
    /// # Errors
    /// When BIRD does not tell.
    pub async fn look(&mut self) -> Result<Level, BirdError> {
        let states = self.states().await?;
        let any = |names: &[String]| names.iter().any(|name| states.get(name) != Some(&down()));
        Ok(match (any(&self.protocols), any(&self.less_wanted)) {
            (true, _) => Level::Announced,
            (false, true) => Level::LessWanted,
            (false, false) => Level::Withdrawn,
        })
    }

    /// Sees to it that exactly this is announced. What is there already is not touched.
    ///
    /// # Errors
    /// When BIRD does not do so.
    pub async fn bring(&mut self, level: Level) -> Result<(), BirdError> {
        // First what is to be there, so that the prefix is never without a route in between.
        let mut wanted: Vec<(String, bool)> = Vec::new();
        wanted.extend(self.less_wanted.iter().cloned().map(|n| (n, level == Level::LessWanted)));
        wanted.extend(self.protocols.iter().cloned().map(|n| (n, level == Level::Announced)));
        wanted.sort_by_key(|(_, up)| !*up);
        let states = self.states().await?;
        for (name, up) in &wanted {
            let is_there = states.get(name).is_some_and(|state| (*state != down()) == *up);
            if !is_there {
                self.say(if *up { "enable" } else { "disable" }, name).await?;
            }
        }
        let mut waited = Duration::ZERO;
        loop {
            let states = self.states().await?;
            let not_yet = wanted.iter().find_map(|(name, up)| {
                let state = states.get(name)?;
                let wanted = if *up { "up" } else { "down" };
                (state != wanted).then(|| (name.clone(), state.clone(), wanted))
            });
            let Some((name, state, wanted)) = not_yet else { return Ok(()) };
            if waited >= SETTLING {
                let path = self.path.clone();
                return Err(BirdError::Elsewhere { path, name, state, wanted });
            }
            let pause = Duration::from_millis(20);
            sleep(pause).await;
            waited += pause;
        }
    }

    /// Waits until BIRD ends, or closes the connection. For ever without one.
    pub async fn gone(&mut self) {
        let Some(connection) = &mut self.connection else { return std::future::pending().await };
        // It says nothing without being asked.
        let mut byte = [0];
        drop(connection.read(&mut byte).await);
        self.connection = None;
    }

    /// The state of every protocol of this announcement.
    async fn states(&mut self) -> Result<BTreeMap<String, String>, BirdError> {
        let reply = self.ask("show protocols").await?;
        let states = reply.states();
        let all = self.protocols.iter().chain(&self.less_wanted);
        if let Some(name) = all.into_iter().find(|name| !states.contains_key(*name)) {
            let known: Vec<&str> = states.keys().map(String::as_str).collect();
            let (name, known) = (name.clone(), known.join(", "));
            return Err(BirdError::NoProtocol { path: self.path.clone(), name, known });
        }
        Ok(states)
    }

    async fn say(&mut self, verb: &str, name: &str) -> Result<(), BirdError> {
        self.ask(&format!("{verb} {name}")).await.map(|_| ())
    }

    /// Asks, on a new connection if the old one has gone.
    async fn ask(&mut self, command: &str) -> Result<Reply, BirdError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let line = format!("{command}\n");
        let talk = async {
            connection.write_all(line.as_bytes()).await?;
            reply(&mut connection).await
        };
        let reply = self.within(talk).await?;
        if reply.code() >= 8000 {
            let (command, answer) = (command.to_owned(), reply.text());
            return Err(BirdError::Refused { path: self.path.clone(), command, answer });
        }
        self.connection = Some(connection);
        Ok(reply)
    }

    async fn connect(&self) -> Result<BufReader<UnixStream>, BirdError> {
        let path = self.path.clone();
        let stream = match timeout(PATIENCE, UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(BirdError::NotPermitted { path, source });
            }
            Ok(Err(source)) => return Err(BirdError::Away { path, source }),
            Err(_) => return Err(BirdError::Silent { path, source: too_long() }),
        };
        let mut connection = BufReader::new(stream);
        let greeting = self.within(reply(&mut connection)).await?;
        if greeting.code() != 1 || !greeting.text().contains("BIRD") {
            return Err(BirdError::Odd { path, what: format!("it says {:?}", greeting.text()) });
        }
        Ok(connection)
    }

    async fn within<T>(&self, work: impl Future<Output = io::Result<T>>) -> Result<T, BirdError> {
        let path = self.path.clone();
        match timeout(PATIENCE, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(BirdError::Odd { path, what: error.to_string() })
            }
            Ok(Err(source)) => Err(BirdError::Silent { path, source }),
            Err(_) => Err(BirdError::Silent { path, source: too_long() }),
        }
    }
}

fn down() -> String {
    "down".to_owned()
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"))
}

async fn reply(connection: &mut BufReader<UnixStream>) -> io::Result<Reply> {
    let mut reply = Reply { lines: Vec::new() };
    let mut bounded = connection.take(LONGEST);
    loop {
        let mut line = Vec::new();
        if bounded.read_until(b'\n', &mut line).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        let line = String::from_utf8_lossy(&line);
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

    /// As BIRD 2.0.12 says it.
    const PROTOCOLS: &str = "2002-Name       Proto      Table      State  Since         Info\n\
        1002-device1    Device     ---        up     11:44:01.417  \n \
        vip4       Static     master4    up     11:44:01.417  \n \
        vip4_drain Static     master4    down   2026-11-30 11:44:01  \n \
        rtr        BGP        ---        start  11:44:01.417  Active        Socket: refused\n\
        0000 \n";

    #[test]
    fn states_are_read() {
        let states = parse(PROTOCOLS).unwrap().states();
        let state = |name: &str| states.get(name).map(String::as_str);
        assert_eq!(states.len(), 4);
        assert_eq!((state("device1"), state("vip4")), (Some("up"), Some("up")));
        assert_eq!((state("vip4_drain"), state("rtr")), (Some("down"), Some("start")));
    }

    #[test]
    fn answers_end_where_they_end_and_say_how_it_went() {
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
        fn nothing_that_is_said_makes_it_panic(text in "[ 0-9a-zä-]{0,8}([ -~ä\n]{0,80})") {
            if let Ok(reply) = parse(&text) {
                drop((reply.states(), reply.text(), reply.code()));
            }
        }

        #[test]
        fn each_protocol_of_an_answer_is_found(
            rows in proptest::collection::btree_map("[a-z_][a-z0-9_]{0,20}", "up|down|start", 1..20)
        ) {
            let mut text = String::from("2002-Name Proto Table State Since Info\n");
            for (index, (name, state)) in rows.iter().enumerate() {
                let mark = if index == 0 { "1002-" } else { " " };
                text += &format!("{mark}{name} Static master4 {state} 11:44:01.417  \n");
            }
            text += "0000 \n";
            prop_assert_eq!(parse(&text).unwrap().states(), rows);
        }
    }
}
