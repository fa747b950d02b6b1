//! The process that does one task and times it.

mod bytes;
mod names;
mod small;

use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::Result;
use crate::task::{Done, Task};

/// Reads a task from stdin, does it, and prints what came of it.
pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Err("the benchmark has ended".into());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    println!("{}", serde_json::to_string(&execute(&serde_json::from_str(&text)?)?)?);
    Ok(())
}

/// Times `work`, which tells how much it has done.
fn timed(work: impl FnOnce() -> Result<u64>) -> Result<Done> {
    let start = Instant::now();
    let amount = work()?;
    Ok(Done { seconds: start.elapsed().as_secs_f64(), amount })
}

fn execute(task: &Task) -> Result<Done> {
    match task {
        Task::Read { files, buffer, passes, drop, direct } => {
            bytes::read(files, *buffer, *passes, *drop, *direct)
        }
        Task::ReadAt { file, size, count, random, drop } => {
            bytes::read_at(file, *size, *count, *random, *drop)
        }
        Task::Map { file, drop } => bytes::map(file, *drop),
        Task::Write { file, length, buffer, new } => bytes::write(file, *length, *buffer, *new),
        Task::WriteAt { file, size, count } => bytes::write_at(file, *size, *count),
        Task::Append { file, size, count } => bytes::append(file, *size, *count),
        Task::Walk { dir, visit } => timed(|| names::walk(dir, *visit)),
        Task::Missing { dir, count } => names::missing(dir, *count),
        Task::StatFs { path, count } => names::statfs(path, *count),
        Task::Files { files, act } => timed(|| small::act(files, *act)),
        Task::Unpack { dir, dirs, each } => timed(|| small::unpack(dir, *dirs, *each)),
        Task::MakeDir { dir } => timed(|| Ok(std::fs::create_dir_all(dir).map(|()| 1)?)),
        Task::Copy { from, to } => timed(|| names::copy(from, to)),
        Task::Spin => loop {
            std::hint::spin_loop();
        },
    }
}
