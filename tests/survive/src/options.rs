//! How large a run is.

use std::time::Duration;

use crate::{clients, random::Random};

/// A run's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// Every event once, in minutes.
    Short,
    /// Hundreds of megabytes, and every event again and again.
    Long,
}

/// How much is done at once, how large it is and how long it lives.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Idle connections.
    pub(crate) idle: u16,
    /// How long they are silent at a time.
    pub(crate) idle_interval: Duration,
    /// Long polls.
    pub(crate) long_polls: u16,
    /// Clients with short requests.
    pub(crate) requests: u16,
    /// How long each pauses between two.
    pub(crate) request_pause: Duration,
    /// Clones at once.
    pub(crate) clones: u16,
    /// Pushes at once.
    pub(crate) pushes: u16,
    /// Uploads at once.
    pub(crate) uploads: u16,
    /// Downloads at once.
    pub(crate) downloads: u16,
    /// Images that are there to be fetched.
    pub(crate) pool: u16,
    /// The repository's size in MB.
    pub(crate) repository: usize,
    /// Sizes of images in MB, from and to.
    pub(crate) images: (u64, u64),
    /// Seconds that a transfer takes when it is slow, and when it is fast.
    transfer: (u64, u64),
    /// How long connections live at most that could live for ever.
    pub(crate) age: Duration,
    /// The longest that any connection lives, which the plan is told: what takes longer breaks no
    /// rule of the plan's, and is not promised anything by it.
    pub(crate) flow_age: Duration,
    /// Silence after which a client takes its connection to be broken.
    pub(crate) patience: Duration,
}

impl Load {
    /// The load of a form.
    pub(crate) fn of(form: Form) -> Self {
        let seconds = Duration::from_secs;
        match form {
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

    /// Without Glance.
    pub(crate) fn without_glance(mut self) -> Self {
        (self.uploads, self.downloads, self.pool) = (0, 0, 0);
        self
    }

    /// Whether there is any work for Glance.
    pub(crate) const fn has_glance(&self) -> bool {
        self.pool > 0
    }

    /// The longest that a living connection may go without a sign of life.
    pub(crate) fn longest_silence(&self) -> Duration {
        self.idle_interval + self.patience
    }

    /// Bytes a second of a git job: slow or fast.
    pub(crate) fn git_pace(&self, random: &mut Random) -> u64 {
        self.pace((self.repository as u64) << 20, random)
    }

    /// Bytes of an image.
    pub(crate) fn image_size(&self, random: &mut Random) -> u64 {
        let (from, to) = self.images;
        // Not only whole blocks.
        (random.between(from, to) << 20) - random.below(4096)
    }

    /// Bytes a second of an image's transfer: slow or fast.
    pub(crate) fn image_pace(&self, random: &mut Random) -> u64 {
        self.pace(self.images.1 << 20, random)
    }

    fn pace(&self, bytes: u64, random: &mut Random) -> u64 {
        let (slow, fast) = self.transfer;
        bytes / if random.below(2) == 0 { slow } else { fast }
    }
}
