//! A read as a value: where the bytes are, not the bytes.
//!
//! A plan borrows and owns nothing, and executing it a second time gives the file's bytes again; that is what makes
//! the copy that follows a failed splice safe.

use std::os::fd::BorrowedFd;

use smallvec::SmallVec;

/// The part of a file a read asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, at most what one reply may carry.
    pub len: usize,
}

/// Why bytes are copied through the daemon instead of being spliced. Each reason is counted apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CopyReason {
    /// Under the size from which splicing is the faster of the two.
    Small,
    /// `splice=off`, or the probe at start found no splice here.
    SpliceOff,
    /// The caller reads past the page cache (`O_DIRECT`), so there is no page to share.
    Direct,
    /// The file has no pages to share or lies about its size (procfs, sysfs and their kind).
    Pseudo,
    /// The bytes are in the daemon's memory.
    Memory,
    /// The source ended before the plan did, or shrank meanwhile.
    Short,
    /// The source refused to be spliced.
    SourceRefused,
    /// No pipe of the size that is needed could be had.
    NoPipe,
    /// The device did not take the spliced reply.
    DeviceRefused,
}

impl CopyReason {
    /// Every reason, in the order in which `stats` shows them.
    pub const ALL: [Self; 9] = [
        Self::Small,
        Self::SpliceOff,
        Self::Direct,
        Self::Pseudo,
        Self::Memory,
        Self::Short,
        Self::SourceRefused,
        Self::NoPipe,
        Self::DeviceRefused,
    ];

    /// The key in `stats`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::SpliceOff => "splice_off",
            Self::Direct => "o_direct",
            Self::Pseudo => "pseudo_file",
            Self::Memory => "memory",
            Self::Short => "source_short",
            Self::SourceRefused => "source_refused",
            Self::NoPipe => "no_pipe",
            Self::DeviceRefused => "device_refused",
        }
    }
}

/// How an extent may be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// By splice(2): the pages of the file are shared, or by copy where that is better.
    Splice,
    /// By pread(2) only.
    Copy(CopyReason),
    /// By read(2) only: the file has no offsets (a stream). Such an extent can be executed once.
    Stream,
}

/// Bytes in a file.
#[derive(Clone, Copy, Debug)]
pub struct FileExtent<'f> {
    /// The file.
    pub fd: BorrowedFd<'f>,
    /// First byte in it.
    pub offset: u64,
    /// Number of bytes.
    pub len: usize,
    /// How they may be moved.
    pub via: Via,
}

/// One piece of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Segment<'f> {
    /// Bytes in a file.
    File(FileExtent<'f>),
    /// That many zero bytes: a hole.
    Zeros(usize),
    /// Bytes in memory.
    Bytes(&'f [u8]),
}

impl Segment<'_> {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::File(extent) => extent.len,
            Self::Zeros(len) => *len,
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Whether the segment holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the bytes of a read are. An empty plan is the end of the file.
#[derive(Clone, Debug, Default)]
pub struct ReadPlan<'f> {
    segments: SmallVec<[Segment<'f>; 4]>,
    len: usize,
}

impl<'f> ReadPlan<'f> {
    /// The end of the file: no bytes.
    pub fn end_of_file() -> Self {
        Self::default()
    }

    /// A plan of one segment.
    pub fn of(segment: Segment<'f>) -> Self {
        let mut plan = Self::default();
        plan.push(segment);
        plan
    }

    /// Appends `segment`; an empty one is dropped.
    pub fn push(&mut self, segment: Segment<'f>) {
        if !segment.is_empty() {
            self.len += segment.len();
            self.segments.push(segment);
        }
    }

    /// The segments, in the order of the file.
    pub fn segments(&self) -> &[Segment<'f>] {
        &self.segments
    }

    /// Number of bytes planned. A source that ends early gives fewer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the plan is the end of the file.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Why the plan as a whole must be copied, if one of its segments says so.
    pub fn must_copy(&self) -> Option<CopyReason> {
        self.segments.iter().find_map(|segment| match segment {
            Segment::File(FileExtent { via: Via::Copy(reason), .. }) => Some(*reason),
            Segment::File(FileExtent { via: Via::Stream, .. }) => Some(CopyReason::Pseudo),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn empty_segments_are_dropped_and_lengths_add_up() {
        let file = tempfile::tempfile().unwrap();
        let extent = FileExtent { fd: file.as_fd(), offset: 0, len: 10, via: Via::Splice };
        let mut plan = ReadPlan::end_of_file();
        assert!(plan.is_empty());
        plan.push(Segment::Zeros(0));
        plan.push(Segment::File(extent));
        plan.push(Segment::Bytes(b"abc"));
        plan.push(Segment::Zeros(7));
        assert_eq!((plan.len(), plan.segments().len()), (20, 3));
        assert_eq!(plan.must_copy(), None);
        plan.push(Segment::File(FileExtent { via: Via::Copy(CopyReason::Direct), ..extent }));
        assert_eq!(plan.must_copy(), Some(CopyReason::Direct));
    }
}
