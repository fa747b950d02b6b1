//! SIGINT and its kind: noticed between and during tasks, so that everything is undone on the way out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Result;

static CAME: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on a signal does not end the process.
pub(crate) fn catch() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, CAME.clone())?;
    }
    Ok(())
}

/// Whether the work is to end.
pub(crate) fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}

/// Fails when the work is to end.
pub(crate) fn check() -> Result<()> {
    if came() { Err("interrupted".into()) } else { Ok(()) }
}
