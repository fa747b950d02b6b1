//! What the tests stand on: mounts that clean up after themselves, callers with identities of their own, conditions
//! to wait for, and the rule for missing privileges.

mod acl;
mod daemon;
mod identity;
mod mount;
mod mountinfo;
mod namespace;
mod needs;
mod pattern;
mod stats;
mod tools;
mod trace;
mod wait;

pub(crate) use acl::{
    ACCESS_ACL, ACL_GROUP, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER, ACL_USER, ACL_USER_OBJ, NO_ID, acl,
};
pub(crate) use daemon::{Daemon, command, limited, program_for, splicefs_binary};
pub(crate) use identity::{Identity, as_caller, unprivileged_user};
pub(crate) use mount::{Mount, MountBuilder};
pub(crate) use mountinfo::{entry_at, is_mounted};
pub(crate) use namespace::with_user_allow_other;
pub(crate) use needs::{Need, long_run, memory_groups, native_control, ready};
pub(crate) use pattern::{fill, first_difference};
pub(crate) use stats::Stats;
pub(crate) use tools::{Random, aligned, drop_file_cache, have_program, read_range, scratch, shell};
pub(crate) use trace::trace;
pub(crate) use wait::{
    Watchdog, thread_state, until, until_dead, until_some, until_stopped, until_umounted, until_unmounted,
};
