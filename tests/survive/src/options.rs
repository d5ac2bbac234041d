//! The size of a run.

use std::time::Duration;

use crate::{clients, random::Random};

/// The size of a run's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// Light, long-lived connections and the events of directors, routers and daemons. Packet loss
    /// is limited.
    Fleet,
    /// Every event once, in minutes.
    Short,
    /// Hundreds of megabytes, with repeated events.
    Long,
}

/// The number, size and duration of all client jobs.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// The number of idle connections.
    pub(crate) idle: u16,
    /// The silence between two messages.
    pub(crate) idle_interval: Duration,
    /// The number of long polls.
    pub(crate) long_polls: u16,
    /// The number of clients with short requests.
    pub(crate) requests: u16,
    /// The pause of each between two requests.
    pub(crate) request_pause: Duration,
    /// The number of parallel clones.
    pub(crate) clones: u16,
    /// The number of parallel pushes.
    pub(crate) pushes: u16,
    /// The number of parallel uploads.
    pub(crate) uploads: u16,
    /// The number of parallel downloads.
    pub(crate) downloads: u16,
    /// The number of images available for download.
    pub(crate) pool: u16,
    /// The repository's size in MB.
    pub(crate) repository: usize,
    /// The smallest and largest image, in MB.
    pub(crate) images: (u64, u64),
    /// The duration of a slow and of a fast transfer, in seconds.
    transfer: (u64, u64),
    /// The longest life of connections that could stay open for ever.
    pub(crate) age: Duration,
    /// The longest life of any connection, as given to the plan. The plan promises nothing for
    /// longer ones.
    pub(crate) flow_age: Duration,
    /// The silence after which a client treats its connection as broken.
    pub(crate) patience: Duration,
}

impl Form {
    /// Returns the name in file names and on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Short => "short",
            Self::Long => "long",
        }
    }
}

impl Load {
    /// Returns the load of a form.
    pub(crate) fn of(form: Form) -> Self {
        let seconds = Duration::from_secs;
        match form {
            // No connection ends before the run does, so each one lives through every event.
            Form::Fleet => Self {
                idle: 32,
                idle_interval: Duration::from_millis(500),
                long_polls: 24,
                requests: 2,
                request_pause: clients::pause_for(2, 10),
                clones: 1,
                pushes: 0,
                uploads: 0,
                downloads: 0,
                pool: 0,
                repository: 4,
                images: (2, 6),
                transfer: (12, 6),
                age: seconds(3600),
                flow_age: seconds(4000),
                patience: seconds(30),
            },
            Form::Short => Self {
                idle: 16,
                idle_interval: seconds(2),
                long_polls: 8,
                requests: 4,
                request_pause: clients::pause_for(4, 20),
                clones: 3,
                pushes: 2,
                uploads: 5,
                downloads: 10,
                pool: 25,
                repository: 16,
                images: (2, 6),
                transfer: (9, 3),
                age: seconds(14),
                flow_age: seconds(20),
                patience: seconds(12),
            },
            Form::Long => Self {
                idle: 40,
                idle_interval: seconds(60),
                long_polls: 20,
                requests: 8,
                request_pause: clients::pause_for(8, 40),
                clones: 4,
                pushes: 2,
                uploads: 5,
                downloads: 10,
                pool: 25,
                repository: 128,
                images: (200, 260),
                transfer: (160, 75),
                age: seconds(150),
                flow_age: seconds(240),
                patience: seconds(30),
            },
        }
    }

    /// Removes Glance from the load.
    pub(crate) fn without_glance(mut self) -> Self {
        (self.uploads, self.downloads, self.pool) = (0, 0, 0);
        self
    }

    /// Returns whether the load has Glance jobs.
    pub(crate) const fn has_glance(&self) -> bool {
        self.pool > 0
    }

    /// Returns the longest time without a sign of life from a healthy connection.
    pub(crate) fn longest_silence(&self) -> Duration {
        self.idle_interval + self.patience
    }

    /// Picks the pace of a git job, slow or fast, in bytes per second.
    pub(crate) fn git_pace(&self, random: &mut Random) -> u64 {
        self.pace((self.repository as u64) << 20, random)
    }

    /// Picks the size of an image in bytes.
    pub(crate) fn image_size(&self, random: &mut Random) -> u64 {
        let (from, to) = self.images;
        // Sizes are not multiples of a block.
        (random.between(from, to) << 20) - random.below(4096)
    }

    /// Picks the pace of an image transfer, slow or fast, in bytes per second.
    pub(crate) fn image_pace(&self, random: &mut Random) -> u64 {
        self.pace(self.images.1 << 20, random)
    }

    fn pace(&self, bytes: u64, random: &mut Random) -> u64 {
        let (slow, fast) = self.transfer;
        bytes / if random.below(2) == 0 { slow } else { fast }
    }
}
