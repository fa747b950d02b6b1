//! Questions asked of this machine:
//!
//! - `cargo bench --bench mounts -- cold_read`: is a cold sequential read faster spliced than copied, and by how much?
//! - `cargo bench --bench mounts -- splice_min`: from which size on is one read faster spliced than copied?
//! - `cargo bench --bench mounts -- tmpfs`: how fast are files in memory, beside the kernel's tmpfs and any peer? (As root.)
//!
//! The first two mount the same source twice, with splice on and off, and interleave the runs, so that whatever else the
//! machine does falls on both alike. They need root or fusermount3. `SPLICEFS_BENCH_DIR` says where the source is
//! made (default: /var/tmp). It is in the page cache before anything is measured.

mod cold_read;
mod setup;
mod splice_min;
mod tmpfs;

type Bench = fn() -> setup::Outcome;

fn main() {
    // cargo passes `--bench`, and further flags of libtest that mean nothing here.
    let chosen: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|argument| argument == name);
    let benches: [(&str, Bench); 3] =
        [("cold_read", cold_read::run), ("splice_min", splice_min::run), ("tmpfs", tmpfs::run)];
    for (name, bench) in benches {
        if wanted(name)
            && let Err(error) = bench()
        {
            eprintln!("{name}: {error}");
            std::process::exit(1);
        }
    }
}
