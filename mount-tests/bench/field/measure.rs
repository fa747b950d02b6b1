//! The run: systems in turn, rep by rep.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::data::{self, Part, Sizes};
use crate::directory::Directory;
use crate::load::Load;
use crate::machine::Machine;
use crate::mounted::{Common, Mounted};
use crate::processes::Orphans;
use crate::results::{Measured, Results, Unit};
use crate::system::{Kind, System, Way};
use crate::task::{Task, Visit};
use crate::user::{User, is_root};
use crate::workload::{Place, Start, Step, Workload};
use crate::{Result, interrupt};

/// How long a daemon may go on after a task before the next begins.
const SETTLING: Duration = Duration::from_secs(2);

/// Measures everything that is asked for.
pub(crate) fn run(args: &Args, splicefs: &Path) -> Result<Results> {
    let (systems, mut workloads) = (args.systems()?, args.workloads()?);
    workloads.retain(|workload| systems.iter().any(|system| workload.is_for(system.kind)));
    let base = args.base(&systems)?;
    check(args, &systems)?;
    // Dropped last: it ends what is left when everything is unmounted.
    let _orphans = Orphans::adopt()?;
    let directory = Directory::new(args)?;
    let sizes = Sizes::new(args.small);
    let common = prepare(&directory, splicefs, args.user.clone(), &workloads, &sizes)?;
    let mut results = Results::new(&systems, base, args, Machine::this()?, directory.file_system()?);
    let _load = Load::start(args.load)?;
    let mut mounts = Vec::new();
    for (number, system) in systems.iter().enumerate() {
        mounts.push(Mounted::new(system, &common, &directory.path().join(number.to_string()))?);
    }
    for workload in workloads {
        let start = Instant::now();
        for rep in 0..=args.reps {
            interrupt::check()?;
            data::warm(&common.names(), workload.parts)?;
            for turn in 0..mounts.len() {
                let at = (rep as usize + turn) % mounts.len();
                let mounted = &mut mounts[at];
                if workload.is_for(mounted.system.kind) && !results.has_failed(workload, at) {
                    match once(mounted, workload, &sizes) {
                        // The first time warms up.
                        Ok(measured) if rep > 0 => results.add(workload, at, measured),
                        Ok(_) => {}
                        Err(error) => {
                            interrupt::check()?;
                            eprintln!("{}: {}: {error}", workload.name, mounted.system.label);
                            results.fail(workload, at, &error.to_string());
                            // What has failed may be dead.
                            mounted.remount(true)?;
                        }
                    }
                }
            }
        }
        eprintln!("{:22} {:6.1} s", workload.name, start.elapsed().as_secs_f64());
    }
    Ok(results)
}

/// What would fail later, in other words.
fn check(args: &Args, systems: &[System]) -> Result<()> {
    if !is_root() {
        if args.user.is_some() || args.image.is_some() {
            return Err("--user and --image need root".into());
        }
        if let Some(system) = systems.iter().find(|system| matches!(system.way, Way::Kernel(_))) {
            return Err(format!("{} needs root", system.label).into());
        }
    }
    let as_user = args.user.is_some() || !is_root();
    if as_user && systems.iter().any(System::is_fuse) {
        let mode =
            fs::metadata("/dev/fuse").map_err(|error| format!("/dev/fuse: {error}"))?.permissions().mode();
        if mode & 0o006 != 0o006 {
            return Err("users may not open /dev/fuse here (chmod 666 /dev/fuse)".into());
        }
    }
    Ok(())
}

/// Builds the data, and puts the program where every user reaches it.
fn prepare(
    directory: &Directory,
    splicefs: &Path,
    user: Option<User>,
    workloads: &[&Workload],
    sizes: &Sizes,
) -> Result<Common> {
    let copy = directory.path().join("splicefs");
    fs::copy(splicefs, &copy)?;
    let source = directory.path().join("source");
    let common = Common { splicefs: copy, source, user };
    fs::create_dir_all(common.names().0)?;
    fs::create_dir_all(common.source.join("write"))?;
    let all = [Part::Large, Part::Small, Part::Huge];
    let needed = |part: &Part| workloads.iter().any(|workload| workload.parts.contains(part));
    let parts: Vec<_> = all.into_iter().filter(needed).collect();
    data::build(&common.names(), &parts, sizes)?;
    if let Some(user) = &common.user {
        own_tree(user, &common.source)?;
    }
    Ok(common)
}

fn own_tree(user: &User, path: &Path) -> Result<()> {
    user.own(path)?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            own_tree(user, &entry?.path())?;
        }
    }
    Ok(())
}

/// One repetition of `workload` on one system.
fn once(mounted: &mut Mounted<'_>, workload: &Workload, sizes: &Sizes) -> Result<Vec<Measured>> {
    match workload.start {
        Start::Warm => {}
        Start::Cold => mounted.remount(false)?,
        Start::Empty => mounted.remount(true)?,
    }
    mounted.fill(workload.parts)?;
    let place = Place {
        names: mounted.names(),
        fresh: mounted.write().join(workload.name),
        is_fuse: mounted.system.is_fuse(),
        sizes,
    };
    let writes = workload.parts.is_empty();
    if writes {
        mounted.run(&Task::MakeDir { dir: place.fresh.clone() })?;
    }
    mounted.daemon().settle(SETTLING);
    let measured = steps(mounted, workload.steps(&place));
    let cleaned = if writes {
        mounted.run(&Task::Walk { dir: place.fresh, visit: Visit::Remove }).map(drop)
    } else if workload.start == Start::Empty {
        // The workloads after this one find the whole data again.
        mounted.remount(true)
    } else {
        Ok(())
    };
    // The first failure is the one to tell of.
    measured.and_then(|measured| cleaned.map(|()| measured))
}

fn steps(mounted: &Mounted<'_>, steps: Vec<Step>) -> Result<Vec<Measured>> {
    let daemon = mounted.daemon();
    let is_served = daemon.exists();
    let (mut measured, mut mark) = (Vec::new(), 0);
    for step in steps {
        match step {
            Step::Do(task) => {
                mounted.run(&task)?;
            }
            Step::Time(figure, unit, task) => {
                let before = daemon.cpu();
                let done = mounted.run(&task)?;
                daemon.settle(SETTLING);
                let served = is_served.then(|| (daemon.cpu().saturating_sub(before), daemon.rss()));
                measured.push(Measured::timed(figure, unit, done, served));
                continue;
            }
            // Only a daemon's memory can be told apart.
            Step::Rss(_) | Step::Mark | Step::Growth(..) if !is_served => {}
            Step::Rss(figure) => {
                let kib = daemon.rss() as f64 / 1024.0;
                measured.push(Measured::plain(figure, Unit::Kibibytes, kib));
            }
            Step::Mark => mark = daemon.rss(),
            Step::Growth(figure, count) => {
                let growth = daemon.rss() as f64 - mark as f64;
                measured.push(Measured::plain(figure, Unit::BytesEach, growth / count as f64));
            }
            Step::Forget => forget(mounted)?,
        }
        daemon.settle(SETTLING);
    }
    Ok(measured)
}

/// Makes the kernel forget names and attributes (Documentation/admin-guide/sysctl/vm.rst, drop_caches).
fn forget(mounted: &Mounted<'_>) -> Result<()> {
    if mounted.system.kind != Kind::Native {
        fs::write("/proc/sys/vm/drop_caches", "2")
            .map_err(|error| format!("/proc/sys/vm/drop_caches: {error}"))?;
    }
    Ok(())
}
