//! How an executor's ring is set up, and what to say when the kernel refuses one.
//!
//! Left alone, the best tier that the kernel takes is chosen by trying. Raw flags are accepted as
//! the seed had it. Invariant: what cannot work is refused with a name and a cure, never with a bare
//! errno.

use io_uring::IoUring;
use std::time::Duration;
use std::{fmt, io};

/// Kernel-side submission. Set [`ExecutorConfig::sq_thread_idle_ms`]. Costs a core.
pub const SETUP_SQPOLL: u32 = 1 << 1;
/// Ring sizes beyond the kernel's limits are cut to them.
pub const SETUP_CLAMP: u32 = 1 << 4;
/// One bad entry does not hold up those behind it (5.18).
pub const SETUP_SUBMIT_ALL: u32 = 1 << 7;
/// Completions do not interrupt the thread (5.19).
pub const SETUP_COOP_TASKRUN: u32 = 1 << 8;
/// The ring says when completions wait to be run; needs one of the two task-run modes (5.19).
pub const SETUP_TASKRUN_FLAG: u32 = 1 << 9;
/// Only one thread submits, as is the case here (6.0).
pub const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
/// Completions run when the thread waits; needs [`SETUP_SINGLE_ISSUER`] (6.1).
pub const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
/// The submission queue has no index array (6.6).
pub const SETUP_NO_SQARRAY: u32 = 1 << 16;

const NAMES: [(u32, &str); 8] = [
    (SETUP_SQPOLL, "IORING_SETUP_SQPOLL"),
    (SETUP_CLAMP, "IORING_SETUP_CLAMP"),
    (SETUP_SUBMIT_ALL, "IORING_SETUP_SUBMIT_ALL"),
    (SETUP_COOP_TASKRUN, "IORING_SETUP_COOP_TASKRUN"),
    (SETUP_TASKRUN_FLAG, "IORING_SETUP_TASKRUN_FLAG"),
    (SETUP_SINGLE_ISSUER, "IORING_SETUP_SINGLE_ISSUER"),
    (SETUP_DEFER_TASKRUN, "IORING_SETUP_DEFER_TASKRUN"),
    (SETUP_NO_SQARRAY, "IORING_SETUP_NO_SQARRAY"),
];

/// Best first: 6.1, 5.19, any.
const TIERS: [u32; 3] = [
    SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG | SETUP_SUBMIT_ALL,
    SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG | SETUP_SUBMIT_ALL,
    0,
];

/// The most entries that the kernel takes (`IORING_MAX_ENTRIES`).
pub const MAX_ENTRIES: u32 = 32_768;

/// How one executor is set up. `ExecutorConfig::default()` is right for nearly everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// Entries of the submission queue, 1 to [`MAX_ENTRIES`], rounded up to a power of two by the
    /// kernel. Not a limit: operations beyond it wait their turn. Default 256.
    pub entries: u32,
    /// Raw `IORING_SETUP_*` flags. `None`, the default, is the best that the kernel takes.
    pub uring_flags: Option<u32>,
    /// With [`SETUP_SQPOLL`]: milliseconds until the kernel's idle submission thread sleeps.
    pub sq_thread_idle_ms: u32,
    /// How long an idle thread polls before it sleeps, while that pays. `None`, the default, is
    /// 20 us if there are more cores than ring threads, else nothing.
    pub spin: Option<Duration>,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self { entries: 256, uring_flags: None, sq_thread_idle_ms: 0, spin: None }
    }
}

impl ExecutorConfig {
    pub(crate) fn build_ring(&self) -> Result<IoUring, SetupError> {
        if self.entries == 0 || self.entries > MAX_ENTRIES {
            return Err(SetupError::Entries { entries: self.entries });
        }
        let ring = match self.uring_flags {
            Some(flags) => {
                check_flags(flags)?;
                self.try_flags(flags)
            }
            None => self.try_tiers(),
        };
        let ring = ring.map_err(SetupError::from_errno)?;
        // 5.5: a full completion queue loses none. 5.13: polls that stay armed; this feature came
        // with them.
        let params = ring.params();
        if params.is_feature_nodrop() && params.is_feature_resource_tagging() {
            Ok(ring)
        } else {
            Err(SetupError::KernelTooOld)
        }
    }

    fn try_tiers(&self) -> io::Result<IoUring> {
        let mut last = io::Error::from_raw_os_error(libc::EINVAL);
        for flags in TIERS {
            match self.try_flags(flags) {
                // A flag that this kernel does not know.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    fn try_flags(&self, flags: u32) -> io::Result<IoUring> {
        let has = |flag| flags & flag != 0;
        let mut builder = IoUring::builder();
        builder.dontfork();
        if has(SETUP_SQPOLL) {
            builder.setup_sqpoll(self.sq_thread_idle_ms);
        }
        if has(SETUP_CLAMP) {
            builder.setup_clamp();
        }
        if has(SETUP_SUBMIT_ALL) {
            builder.setup_submit_all();
        }
        if has(SETUP_COOP_TASKRUN) {
            builder.setup_coop_taskrun();
        }
        // With either mode: without the flag there is no telling whether completions wait.
        if has(SETUP_TASKRUN_FLAG) || has(SETUP_COOP_TASKRUN) || has(SETUP_DEFER_TASKRUN) {
            builder.setup_taskrun_flag();
        }
        if has(SETUP_SINGLE_ISSUER) {
            builder.setup_single_issuer();
        }
        if has(SETUP_DEFER_TASKRUN) {
            builder.setup_defer_taskrun();
        }
        if has(SETUP_NO_SQARRAY) {
            builder.setup_no_sqarray();
        }
        // Waiting operations (a recv for each connection) outnumber submissions by far.
        builder.setup_cqsize(self.entries.saturating_mul(4).min(2 * MAX_ENTRIES));
        builder.build(self.entries)
    }
}

fn check_flags(flags: u32) -> Result<(), SetupError> {
    let has = |flag| flags & flag != 0;
    let known: u32 = NAMES.iter().map(|(flag, _)| flag).sum();
    let refuse = |why: &'static str| Err(SetupError::Flags { flags, why });
    if flags & !known != 0 {
        return refuse("there are flags among them that this runtime does not support");
    }
    if has(SETUP_DEFER_TASKRUN) && !has(SETUP_SINGLE_ISSUER) {
        return refuse("IORING_SETUP_DEFER_TASKRUN needs IORING_SETUP_SINGLE_ISSUER");
    }
    if has(SETUP_TASKRUN_FLAG) && !has(SETUP_COOP_TASKRUN) && !has(SETUP_DEFER_TASKRUN) {
        return refuse(
            "IORING_SETUP_TASKRUN_FLAG needs IORING_SETUP_COOP_TASKRUN or \
             IORING_SETUP_DEFER_TASKRUN",
        );
    }
    if has(SETUP_SQPOLL)
        && (has(SETUP_COOP_TASKRUN) || has(SETUP_DEFER_TASKRUN) || has(SETUP_TASKRUN_FLAG))
    {
        return refuse(
            "IORING_SETUP_SQPOLL cannot go with IORING_SETUP_COOP_TASKRUN, \
             IORING_SETUP_DEFER_TASKRUN or IORING_SETUP_TASKRUN_FLAG",
        );
    }
    Ok(())
}

fn names(flags: u32) -> String {
    let named = NAMES.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name);
    let known: u32 = NAMES.iter().map(|(flag, _)| flag).sum();
    let mut all: Vec<String> = named.map(str::to_owned).collect();
    if flags & !known != 0 {
        all.push(format!("{:#x}", flags & !known));
    }
    all.join(" | ")
}

/// Why there is no executor. Each says what is likely wrong and what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum SetupError {
    /// [`ExecutorConfig::entries`] is 0 or more than [`MAX_ENTRIES`].
    Entries {
        /// What was asked for.
        entries: u32,
    },
    /// [`ExecutorConfig::uring_flags`] cannot go together, or are not supported.
    Flags {
        /// What was asked for.
        flags: u32,
        /// Which of them, and why.
        why: &'static str,
    },
    /// `EINVAL`: the kernel does not know a flag that was asked for.
    FlagsRefused,
    /// `ENOSYS`: the kernel has no `io_uring`, or a seccomp filter says so.
    NotSupported,
    /// The kernel is older than 5.13.
    KernelTooOld,
    /// `EPERM` or `EACCES`: forbidden, by `kernel.io_uring_disabled` (with its value) or else by a
    /// seccomp filter or security module.
    Denied {
        /// The value of the sysctl, if it could be read.
        io_uring_disabled: Option<u8>,
    },
    /// `ENOMEM`: no memory, or none that may be locked.
    OutOfMemory,
    /// `EMFILE` or `ENFILE`: no descriptor is left.
    TooManyFiles,
    /// The thread could not be started or pinned, or the kernel gave another error.
    Io(io::Error),
}

impl SetupError {
    pub(crate) fn from_errno(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EINVAL) => Self::FlagsRefused,
            Some(libc::ENOSYS) => Self::NotSupported,
            Some(libc::EPERM | libc::EACCES) => Self::Denied {
                io_uring_disabled: std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                    .ok()
                    .and_then(|value| value.trim().parse().ok()),
            },
            Some(libc::ENOMEM) => Self::OutOfMemory,
            Some(libc::EMFILE | libc::ENFILE) => Self::TooManyFiles,
            _ => Self::Io(error),
        }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries { entries } => {
                write!(f, "a ring of {entries} entries: choose 1 to {MAX_ENTRIES}")
            }
            Self::Flags { flags, why } => {
                write!(f, "cannot set up a ring with {}: {why}", names(*flags))
            }
            Self::FlagsRefused => f.write_str(
                "the kernel does not know a ring flag that was asked for: leave uring_flags at \
                 None to get the best that it knows",
            ),
            Self::NotSupported => f.write_str(
                "io_uring is not there (ENOSYS): the kernel was built without it or is older than \
                 5.1, or the container's seccomp filter hides it; allow io_uring_setup, \
                 io_uring_enter and io_uring_register in the seccomp profile",
            ),
            Self::KernelTooOld => {
                f.write_str("this kernel's io_uring is too old: run Linux 6.1 or later")
            }
            Self::Denied { io_uring_disabled: Some(2) } => f.write_str(
                "io_uring is switched off for everybody (kernel.io_uring_disabled = 2): run \
                 `sysctl -w kernel.io_uring_disabled=0`",
            ),
            Self::Denied { io_uring_disabled: Some(1) } => f.write_str(
                "io_uring is switched off for unprivileged users (kernel.io_uring_disabled = 1): \
                 run `sysctl -w kernel.io_uring_disabled=0`, or add the user to the group that \
                 kernel.io_uring_group names",
            ),
            Self::Denied { .. } => f.write_str(
                "io_uring is forbidden (EPERM), most likely by the container's seccomp filter: \
                 allow io_uring_setup, io_uring_enter and io_uring_register in its profile",
            ),
            Self::OutOfMemory => f.write_str(
                "no memory for the ring (ENOMEM): on kernels before 5.12 it counts against the \
                 locked-memory limit, so raise `ulimit -l`; or ask for fewer entries or threads",
            ),
            Self::TooManyFiles => {
                f.write_str("no file descriptor is left for the ring: raise `ulimit -n`")
            }
            Self::Io(error) => write!(f, "cannot start an executor: {error}"),
        }
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SetupError> for io::Error {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Io(error) => error,
            SetupError::Denied { .. } => io::Error::new(io::ErrorKind::PermissionDenied, error),
            SetupError::OutOfMemory => io::Error::new(io::ErrorKind::OutOfMemory, error),
            SetupError::Entries { .. } | SetupError::Flags { .. } => {
                io::Error::new(io::ErrorKind::InvalidInput, error)
            }
            _ => io::Error::new(io::ErrorKind::Unsupported, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: u32) -> ExecutorConfig {
        ExecutorConfig { entries: 8, uring_flags: Some(flags), ..ExecutorConfig::default() }
    }

    #[test]
    fn flags_that_cannot_go_together_are_refused_by_name() {
        for (flags, name) in [
            (SETUP_DEFER_TASKRUN, "SINGLE_ISSUER"),
            (SETUP_DEFER_TASKRUN | SETUP_COOP_TASKRUN, "SINGLE_ISSUER"),
            (SETUP_TASKRUN_FLAG, "COOP_TASKRUN"),
            (SETUP_SQPOLL | SETUP_COOP_TASKRUN, "SQPOLL"),
            (SETUP_SQPOLL | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN, "SQPOLL"),
            (1 << 30, "0x40000000"),
        ] {
            let Err(error) = config(flags).build_ring() else { panic!("{flags:#x} accepted") };
            assert!(matches!(error, SetupError::Flags { .. }));
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn entries_out_of_range_are_refused_with_the_range() {
        for entries in [0, MAX_ENTRIES + 1] {
            let config = ExecutorConfig { entries, ..ExecutorConfig::default() };
            let Err(error) = config.build_ring() else { panic!("{entries} accepted") };
            assert!(error.to_string().contains("32768"), "{error}");
        }
    }

    #[test]
    fn each_errno_of_a_refused_ring_names_its_cause_and_cure() {
        for (errno, cause, cure) in [
            (libc::ENOSYS, "ENOSYS", "seccomp"),
            (libc::EPERM, "io_uring", "allow"),
            (libc::ENOMEM, "ENOMEM", "ulimit -l"),
            (libc::EMFILE, "descriptor", "ulimit -n"),
            (libc::EINVAL, "does not know", "None"),
        ] {
            let error = SetupError::from_errno(io::Error::from_raw_os_error(errno)).to_string();
            assert!(error.contains(cause) && error.contains(cure), "{error}");
        }
        for (value, cure) in [(1, "io_uring_group"), (2, "sysctl -w")] {
            let error = SetupError::Denied { io_uring_disabled: Some(value) }.to_string();
            assert!(error.contains(cure), "{error}");
        }
    }
}
