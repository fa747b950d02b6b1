//! Busy processes beside the measurement, as other users' programs would be.

use std::process::Child;

use crate::Result;
use crate::launch;
use crate::task::Task;

/// Processes that only use processor time, of the normal scheduling class. They end when this is dropped.
pub(crate) struct Load(Vec<Child>);

impl Load {
    pub(crate) fn start(count: u32) -> Result<Self> {
        let mut load = Self(Vec::new());
        for _ in 0..count {
            load.0.push(launch::start(&Task::Spin, None)?);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                eprintln!("a busy process cannot be ended: {error}");
            }
        }
    }
}
