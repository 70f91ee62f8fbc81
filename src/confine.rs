//! What the process gives up at its start, so that others get less of it.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps the memory to this process: no core is dumped, and no process of the same user may trace it or read its memory or
/// its environment out of `/proc` (`PR_SET_DUMPABLE` in prctl(2), and ptrace(2)). Root still may.
///
/// # Errors
/// The first of the two steps that failed; the other one has been tried all the same.
pub fn keep_memory_private() -> Result<(), Errno> {
    // A core that is piped to a collector is not kept back by the limit, but by this.
    let dumpable = keep_own_memory_private();
    // The programs that are run for secrets inherit the limit alone.
    let limit = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    dumpable.and(limit)
}

/// The same for this process alone: programs that are started from here inherit nothing of it.
///
/// # Errors
/// What the kernel says.
pub fn keep_own_memory_private() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
