//! Data: sparse files, preallocation, holes, copies inside the kernel.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::differential;
use super::script::{Script, open, os};
use crate::harness::fill;

const BLOCK: u64 = 4096;

fn create(script: &Script, name: &str) -> File {
    open(&script.at(name), OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, 0o644).expect("create")
}

#[test]
fn sizes_and_holes_from_truncation_and_far_writes() {
    differential(|script| {
        let file = create(script, "file");
        for length in [0, 1, 4095, 4096, 4097, 1 << 20, 100, 0, 5000] {
            script.outcome(format_args!("truncate to {length}"), os(file.set_len(length)));
            script.note("write in the middle", os(file.write_at(b"data", length / 2)));
            script.attributes("file");
            script.contents("file");
        }
        script.note("write far away", os(file.write_at(b"far", 1 << 30)));
        script.attributes("file");
        script.outcome("truncate it away", os(file.set_len(100)));
        script.contents("file");
        // The largest offset that a file can have and one more.
        script.outcome("too far", rustix::io::pwrite(&file, b"x", i64::MAX as u64));
        script.outcome("too long", os(file.set_len(i64::MAX as u64)));
        script.outcome(
            "by path",
            nix::unistd::truncate(&script.at("file"), 17)
                .map_err(|e| rustix::io::Errno::from_raw_os_error(e as i32)),
        );
        script.attributes("file");
    });
}

#[test]
fn reads_stop_at_the_end() {
    differential(|script| {
        let file = create(script, "file");
        for length in [0_u64, 1, 511, 4095, 4096, 4097, 65536, 131_071, 1_048_577] {
            file.set_len(0).expect("truncate");
            let data = fill(0, usize::try_from(length).expect("a small length"));
            file.write_all_at(&data, 0).expect("write");
            for (offset, size) in
                [(0, 1), (0, 4096), (0, 2 << 20), (length / 2, 8192), (length, 1), (length + 5, 10)]
            {
                let mut buffer = vec![0; size];
                let got = os(file.read_at(&mut buffer, offset));
                let right =
                    got.is_ok_and(|got| crate::harness::first_difference(&buffer[..got], offset).is_none());
                script.note(format_args!("read {size} at {offset} of {length}"), (got, right));
            }
        }
    });
}

#[test]
fn vectors_are_read_and_written() {
    differential(|script| {
        let file = create(script, "file");
        let parts = [&b"one"[..], b"", b"three", &[b'x'; 5000]];
        let slices: Vec<_> = parts.iter().map(|part| std::io::IoSlice::new(part)).collect();
        script.note("pwritev", rustix::io::pwritev(&file, &slices, 10));
        let (mut first, mut second) = ([0; 13], [0; 6000]);
        let got = {
            let mut slices = [std::io::IoSliceMut::new(&mut first), std::io::IoSliceMut::new(&mut second)];
            rustix::io::preadv(&file, &mut slices, 5)
        };
        script.note("preadv", (got, first, super::script::summary(&second)));
    });
}

/// COLLAPSE_RANGE, INSERT_RANGE and UNSHARE_RANGE are not here: the kernel's FUSE client refuses them itself.
#[test]
fn preallocation_in_every_mode() {
    differential(|script| {
        let modes = [
            ("plain", FallocateFlags::empty()),
            ("keep size", FallocateFlags::KEEP_SIZE),
            ("punch", FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE)),
            ("zero", FallocateFlags::ZERO_RANGE),
            ("zero, keep size", FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE)),
            ("punch alone", FallocateFlags::PUNCH_HOLE),
        ];
        for (name, mode) in modes {
            for (offset, length) in
                [(0, 100), (0, 10_000), (5000, 3000), (BLOCK, BLOCK), (60_000, 20_000), (9, 0)]
            {
                let file_name = format!("{name}-{offset}-{length}").replace(' ', "-");
                let file = create(script, &file_name);
                file.write_all_at(&fill(0, 65536), 0).expect("write");
                let result = rustix::fs::fallocate(&file, mode, offset, length);
                script.outcome(format_args!("{name} {length} at {offset}"), result);
                script.attributes(&file_name);
                script.contents(&file_name);
            }
        }
        let file = create(script, "file");
        let reader = open(&script.at("file"), OFlags::RDONLY, 0).expect("open");
        script.outcome("on a reader", rustix::fs::fallocate(&reader, FallocateFlags::empty(), 0, 10));
        script.outcome("too far", rustix::fs::fallocate(&file, FallocateFlags::empty(), i64::MAX as u64, 10));
        let directory = open(&script.at(""), OFlags::RDONLY, 0).expect("open");
        script.outcome("on a directory", rustix::fs::fallocate(directory, FallocateFlags::empty(), 0, 10));
    });
}

fn map_of(file: &File) -> Vec<(char, u64)> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(offset)) {
        found.push(('d', data));
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).expect("a hole after data");
        found.push(('h', hole));
        offset = hole;
    }
    found
}

#[test]
fn holes_and_data_are_found() {
    differential(|script| {
        let file = create(script, "file");
        for offset in [0_u64, 1 << 20, 3 << 20, 10 << 20] {
            file.write_all_at(&fill(offset, 100_000), offset).expect("write");
        }
        file.set_len(20 << 20).expect("truncate");
        rustix::fs::fsync(&file).expect("fsync");
        script.note("map", map_of(&file));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 16384, 32768).expect("punch");
        script.note("map after punching", map_of(&file));
        for (step, position) in [
            ("data in a hole", SeekFrom::Data(200_000)),
            ("hole in data", SeekFrom::Hole(5)),
            ("data at the end", SeekFrom::Data(20 << 20)),
            ("data in the last hole", SeekFrom::Data(19 << 20)),
            ("hole past the end", SeekFrom::Hole(1 << 40)),
            ("end", SeekFrom::End(0)),
            ("past the end", SeekFrom::End(5)),
            ("before the start", SeekFrom::Current(-(1 << 50))),
        ] {
            let result = rustix::fs::seek(&file, position);
            script.note(step, result);
        }
        let empty = create(script, "empty");
        script.note("an empty file", (map_of(&empty), rustix::fs::seek(&empty, SeekFrom::Hole(0))));
    });
}

#[test]
fn ranges_are_copied_inside_the_kernel() {
    differential(|script| {
        let from = create(script, "from");
        from.write_all_at(&fill(0, 300_000), 0).expect("write");
        let cases = [
            (0, 0, 1000),
            (0, 0, 300_000),
            (100, 5000, 70_000),
            (299_000, 0, 5000),
            (300_000, 0, 10),
            (7, 9, 0),
        ];
        for (number, (read_at, write_at, length)) in cases.into_iter().enumerate() {
            let name = format!("to{number}");
            let to = create(script, &name);
            let (mut input, mut output) = (read_at, write_at);
            let copied = rustix::fs::copy_file_range(&from, Some(&mut input), &to, Some(&mut output), length);
            script.note(format_args!("copy {length} from {read_at} to {write_at}"), (copied, input, output));
            script.contents(&name);
        }
        let step = |script: &mut Script, name: &str, read_at: u64, write_at: u64| {
            let copied = rustix::fs::copy_file_range(
                &from,
                Some(&mut { read_at }),
                &from,
                Some(&mut { write_at }),
                10_000,
            );
            script.note(name, copied);
        };
        step(script, "within one file", 0, 200_000);
        step(script, "overlapping", 0, 5000);
        script.contents("from");
        // The descriptors' own positions.
        let to = create(script, "positions");
        rustix::fs::seek(&from, SeekFrom::Start(10)).expect("seek");
        script.note("by position", rustix::fs::copy_file_range(&from, None, &to, None, 5000));
        script.note("positions", (rustix::fs::tell(&from), rustix::fs::tell(&to)));
        let reader = open(&script.at("positions"), OFlags::RDONLY, 0).expect("open");
        script.outcome("to a reader", rustix::fs::copy_file_range(&from, None, &reader, None, 10));
        let appender = open(&script.at("positions"), OFlags::WRONLY | OFlags::APPEND, 0).expect("open");
        script.outcome("to an appender", rustix::fs::copy_file_range(&from, None, &appender, None, 10));
        let directory = open(&script.at(""), OFlags::RDONLY, 0).expect("open");
        script.outcome("from a directory", rustix::fs::copy_file_range(&directory, None, &to, None, 10));
    });
}

#[test]
fn a_copy_keeps_what_was_written_just_before() {
    differential(|script| {
        let (from, to) = (create(script, "from"), create(script, "to"));
        for round in 0..20_u64 {
            from.write_all_at(&fill(round * 7, 8192), round * 8192).expect("write");
            let at = round * 8192;
            let copied = rustix::fs::copy_file_range(&from, Some(&mut { at }), &to, Some(&mut { at }), 8192);
            script.note("copied", copied);
            let mut buffer = vec![0; 8192];
            to.read_exact_at(&mut buffer, at).expect("read");
            script.note("right", buffer == fill(round * 7, 8192));
        }
        script.contents("to");
    });
}

#[test]
fn sendfile_and_splice_between_files() {
    differential(|script| {
        let from = create(script, "from");
        from.write_all_at(&fill(0, 200_000), 0).expect("write");
        let to = create(script, "to");
        let mut offset = 1000;
        script.note("sendfile", rustix::fs::sendfile(&to, &from, Some(&mut offset), 150_000));
        script.note("offset", offset);
        script.contents("to");
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        let flags = rustix::pipe::SpliceFlags::empty();
        script.note("splice in", rustix::pipe::splice(&from, Some(&mut 100), &writer, None, 30_000, flags));
        script
            .note("splice out", rustix::pipe::splice(&reader, None, &to, Some(&mut 150_000), 30_000, flags));
        script.contents("to");
    });
}
