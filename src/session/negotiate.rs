//! The INIT handshake, by fuser: what this kernel can do, and what of that we use.

use std::io;
use std::os::fd::OwnedFd;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::vfs::Caching;
use fuser::{Config, Filesystem, InitFlags, KernelConfig, Request, Session, SessionACL};

/// The most bytes of data in a WRITE.
pub(super) const MAX_WRITE: usize = 1 << 20;
/// Requests the kernel may queue on its own account (read-ahead, write-back).
const MAX_BACKGROUND: u16 = 64;

/// Files that the kernel serves by itself lie on file systems that are not stacked themselves; then this mount can be
/// a layer of one more (FILESYSTEM_MAX_STACK_DEPTH in include/linux/fs.h is 2).
const STACK_DEPTH: u32 = 1;

/// Every capability we can make use of, each with code behind it.
const WANTED: &[InitFlags] = &[
    // READ requests are answered in any order.
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    // A file handle could only be resolved as long as the kernel remembers its node: open_by_handle_at(2) says so at
    // once instead of failing some of the time.
    InitFlags::FUSE_NO_EXPORT_SUPPORT,
    InitFlags::FUSE_SETXATTR_EXT,
    // Setuid, setgid and capabilities are cleared by the source, for the caller (core::sys::creds).
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_HAS_IOCTL_DIR,
];
/// For files with ACLs. Without them the kernel applies the umask, and checks permissions only where the mount asks for it
/// (`default_permissions`, which FUSE_POSIX_ACL implies).
const WANTED_WITH_ACLS: &[InitFlags] = &[
    // The umask comes with the request, and a default ACL overrides it (core::sys::creds).
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_ACL,
];
/// For files that others change too: that is noticed by their times and size.
const WANTED_OF_CHECKED: &[InitFlags] = &[InitFlags::FUSE_AUTO_INVAL_DATA];
/// For files whose data is dropped when they are opened.
const WANTED_OF_DROPPED: &[InitFlags] = &[InitFlags::FUSE_ASYNC_DIO];
/// For files that the kernel alone changes: it keeps the target of every link then, or of none. Not FUSE_ASYNC_DIO: a direct write that completes later leaves what a reader has put into
/// the page cache meanwhile, and nothing else would ever drop it (xfstests generic/451).
const WANTED_OF_KEPT: &[InitFlags] = &[InitFlags::FUSE_CACHE_SYMLINKS];
/// For files of which nothing is kept (FOPEN_DIRECT_IO): without it they could not be mapped to be shared.
const WANTED_OF_DIRECT: &[InitFlags] = &[InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP];
/// For files that are opened: OPEN truncates (vfs::files). Without an OPEN a SETATTR does.
const WANTED_OF_OPENED: &[InitFlags] = &[InitFlags::FUSE_ATOMIC_O_TRUNC];
/// For files that the kernel writes back later (vfs::writeback).
const WANTED_TO_WRITE_BACK: &[InitFlags] = &[InitFlags::FUSE_WRITEBACK_CACHE];
/// Without these we would misread requests or misjudge permissions: Linux 5.14 and later has them all.
const NEEDED: &[InitFlags] = &[
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_SETXATTR_EXT,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_WRITEBACK_CACHE,
];

/// Answers INIT and nothing else: requests after it are read by our own transport.
pub(super) struct Negotiator {
    /// What the kernel may keep.
    pub(super) caching: Caching,
    /// The kernel is to serve files by itself, if it can.
    pub(super) passthrough: bool,
    /// Files have POSIX ACLs.
    pub(super) acls: bool,
    /// Whether files that are not read from the page cache can be mapped all the same; said by INIT.
    pub(super) maps_direct: Arc<AtomicBool>,
}

impl Negotiator {
    /// The capabilities that this mount has a use for.
    fn wanted(&self) -> impl Iterator<Item = InitFlags> {
        let caching = &self.caching;
        let lists = [
            (true, WANTED),
            (caching.checked, WANTED_OF_CHECKED),
            (caching.links, WANTED_OF_KEPT),
            (!caching.keeps_contents(), WANTED_OF_DROPPED),
            (caching.direct, WANTED_OF_DIRECT),
            (self.acls, WANTED_WITH_ACLS),
            (!caching.unopened, WANTED_OF_OPENED),
            (caching.writeback, WANTED_TO_WRITE_BACK),
        ];
        lists.into_iter().filter(|(wanted, _)| *wanted).flat_map(|(_, flags)| flags.iter().copied())
    }
}

impl Filesystem for Negotiator {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.maps_direct
            .store(config.capabilities().contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP), Ordering::Relaxed);
        for flag in self.wanted() {
            if config.add_capabilities(flag).is_err() {
                if NEEDED.contains(&flag) {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        format!("this kernel lacks {flag:?}; Linux 5.14 or later is needed"),
                    ));
                }
                log::info!("this kernel lacks {flag:?}");
            }
        }
        if self.passthrough {
            match config.add_capabilities(InitFlags::FUSE_PASSTHROUGH) {
                Ok(()) => {
                    config
                        .set_max_stack_depth(STACK_DEPTH)
                        .map_err(|_| io::Error::other("the kernel stacks no file systems"))?;
                }
                Err(_) => log::info!("this kernel serves no files by itself (linux 6.9 does)"),
            }
        }
        let max_write = u32::try_from(MAX_WRITE).unwrap_or(u32::MAX);
        let refused = |what: &str| io::Error::other(format!("the kernel's limits leave no room for {what}"));
        config.set_max_write(max_write).map_err(|_| refused("writes of 1 MiB"))?;
        config.set_max_background(MAX_BACKGROUND).map_err(|_| refused("background requests"))?;
        Ok(())
    }
}

/// A connection after INIT. fuser's own session loop is never run: it knows neither node ids apart from inode numbers,
/// nor the size a READDIR asks for, nor the flags by which setuid bits are to be cleared.
pub(super) struct Handshake(
    #[allow(dead_code, reason = "dropping it closes the connection")] Session<Negotiator>,
);

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handshake")
    }
}

impl Handshake {
    /// Reads INIT from `device` and answers it with what is wanted.
    pub(super) fn new(device: OwnedFd, wanted: Negotiator) -> io::Result<Self> {
        Ok(Self(Session::from_fd(wanted, device, SessionACL::All, Config::default())?))
    }
}
