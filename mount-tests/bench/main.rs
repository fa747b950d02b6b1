//! Two questions about reads, asked of this machine:
//!
//! - `cargo bench --bench reads -- cold_read`: is a cold sequential read faster spliced than copied, and by how much?
//! - `cargo bench --bench reads -- splice_min`: from which size on is one read faster spliced than copied?
//!
//! Both mount the same source twice, with splice on and off, and interleave the runs, so that whatever else the
//! machine does falls on both alike. They need root or fusermount3. `SPLICEFS_BENCH_DIR` says where the source is
//! made (default: /var/tmp). It is in the page cache before anything is measured.

mod cold_read;
mod setup;
mod splice_min;

fn main() {
    // cargo passes `--bench`, and further flags of libtest that mean nothing here.
    let chosen: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|argument| argument == name);
    for (name, bench) in
        [("cold_read", cold_read::run as fn() -> setup::Outcome), ("splice_min", splice_min::run)]
    {
        if wanted(name)
            && let Err(error) = bench()
        {
            eprintln!("{name}: {error}");
            std::process::exit(1);
        }
    }
}
