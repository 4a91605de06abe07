//! [`Error`]: everything that can go wrong with a store, and what to do about each.

use crate::rt::{JoinError, SetupError, StopError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// What the operations of a [`Store`](crate::Store) return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. The store holds what it held before, unless the variant says otherwise.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The system refused a call while opening, closing, reading, merging or making a backup. Mend
    /// the cause (permissions, descriptors, the device) and try again.
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Bytes that had been durable are not what was written, or a file is missing. The device, or
    /// somebody else, changed it. Nothing was cut or skipped: restore the whole store from a backup
    /// (never single files: an older copy of one may validate), or open what is left of it with
    /// [`Builder::salvage`](crate::Builder::salvage). Damage to the version field of a file shows as
    /// [`FormatVersion`](Self::FormatVersion).
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in it, in bytes: where what does not fit begins. 0 for a file's header or `STORE`,
        /// and for a file as a whole.
        offset: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// A write or sync of this partition failed before, so nobody knows what of it is on the
    /// device. The outcome of the writes that waited is unknown, later ones did not happen, and
    /// reads go on. Close the store, mend the cause, and open it again: it recovers from the
    /// device.
    Poisoned {
        /// The partition's directory.
        path: PathBuf,
        /// The error that did it.
        cause: Arc<io::Error>,
    },
    /// There is no room: the disk, a quota, or a limit on file size, descriptors or segments is
    /// full. What was refused was not written. Gets go on, deletes and merges too as far as a
    /// reserve goes; make room, and puts work again.
    Full {
        /// The partition's directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The store was closed, by this handle or a clone of it, or the last handle of it was dropped,
    /// or the partition's ring has failed. If a write was under way, its outcome is unknown.
    Closed,
    /// Another process, or another `Store` of this one, has the directory open. Close that one.
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that wrote its id there, for information only.
        holder: Option<u32>,
    },
    /// The key is longer than [`MAX_KEY_LEN`](crate::MAX_KEY_LEN) bytes.
    KeyTooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// The value is longer than [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN) bytes. Split it.
    ValueTooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// The store has another number of partitions. Open it with the number found.
    PartitionMismatch {
        /// What the store was made with.
        found: usize,
        /// What was asked for.
        requested: usize,
    },
    /// The options cannot be met.
    InvalidOptions(&'static str),
    /// A file is of a version that this release does not know. Use the release that wrote it. If
    /// none did, the two bytes of its version, at byte 8, are damaged: the version is judged before
    /// the checksum, which another version may make in another way. Restore the file from a copy.
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
        /// What this release reads.
        supported: u16,
    },
    /// There is no ring, or no thread. The text says why, and what to do.
    Runtime(Arc<SetupError>),
    /// The store's threads did not stop as they should have; all that was acknowledged is durable.
    Stop(Arc<StopError>),
    /// A panic: in the function that [`update`](crate::Store::update) was given, or in ringlog, and
    /// then please report it. The store goes on; after a panic of its own it should be closed, and
    /// verified.
    Bug(String),
}

impl Error {
    /// For `map_err` on calls of the system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())
            }
            Self::Corrupt { path, offset, reason } => write!(
                f,
                "{} is corrupt at byte {offset}: {reason}; it was not changed, restore the whole \
                 store from a backup, or salvage it",
                path.display()
            ),
            Self::Poisoned { path, cause } => write!(
                f,
                "writing to {} failed before ({cause}): mend the cause, then close the store and \
                 open it again",
                path.display()
            ),
            Self::Full { path, source } => write!(
                f,
                "no room in {} ({source}): make room on the disk, or delete and let merges do it",
                path.display()
            ),
            Self::Closed => f.write_str("the store is closed"),
            Self::Locked { path, holder } => {
                write!(f, "the store is open elsewhere: {} is locked", path.display())?;
                holder.map_or(Ok(()), |pid| write!(f, " by process {pid}"))
            }
            Self::KeyTooLarge { len } => {
                write!(f, "a key of {len} bytes: the most is {}", crate::MAX_KEY_LEN)
            }
            Self::ValueTooLarge { len } => {
                write!(f, "a value of {len} bytes: the most is {}", crate::MAX_VALUE_LEN)
            }
            Self::PartitionMismatch { found, requested } => write!(
                f,
                "the store has {found} partitions, and {requested} were asked for: open it with \
                 {found}"
            ),
            Self::InvalidOptions(why) => write!(f, "these options cannot be met: {why}"),
            Self::FormatVersion { path, found, supported } => write!(
                f,
                "{} is of format version {found}, this release reads version {supported}",
                path.display()
            ),
            Self::Runtime(error) => error.fmt(f),
            Self::Stop(error) => error.fmt(f),
            Self::Bug(message) => write!(
                f,
                "a panic, of ringlog (please report it) or of a function that it was given: {message}"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::Full { source, .. } => Some(source),
            Self::Poisoned { cause, .. } => Some(cause),
            Self::Runtime(error) => Some(error),
            Self::Stop(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SetupError> for Error {
    fn from(error: SetupError) -> Self {
        Self::Runtime(Arc::new(error))
    }
}

impl From<StopError> for Error {
    fn from(error: StopError) -> Self {
        Self::Stop(Arc::new(error))
    }
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Panicked(message) => Self::Bug(message),
            _ => Self::Closed,
        }
    }
}
