//! The driver under the store's executor: it passes requests to the world, and time.

use super::world::{End, World};
use ringlog::rt::driver::{Completion, Driver, Request, Unpark};
use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// See the module.
pub struct SimDriver {
    world: Rc<RefCell<World>>,
    bell: Arc<Bell>,
}

/// There is one thread, so it is never asleep.
#[derive(Default)]
struct Bell(AtomicBool);

impl Unpark for Bell {
    fn unpark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl SimDriver {
    pub fn boxed(world: &Rc<RefCell<World>>) -> Box<dyn Driver> {
        Box::new(Self { world: Rc::clone(world), bell: Arc::default() })
    }
}

/// Of a request, for the trace.
fn shape(request: &Request) -> u64 {
    match *request {
        Request::Read { len, offset, .. } => 1 ^ u64::from(len) << 8 ^ offset << 24,
        Request::Write { buf, len, offset, .. } => {
            // SAFETY: the executor keeps the memory until the completion, which is yet to come.
            let bytes = unsafe { std::slice::from_raw_parts(buf, len as usize) };
            2 ^ u64::from(len) << 8 ^ offset << 24 ^ u64::from(crc32fast::hash(bytes)) << 32
        }
        Request::Fsync { .. } => 3,
        Request::Open { flags, .. } => 4 ^ u64::from(flags.unsigned_abs()) << 8,
        Request::Timeout { .. } => 5,
        _ => 6,
    }
}

// SAFETY: memory is touched in `perform` only, just before the one completion; after the end of a
// life it is not touched any more.
unsafe impl Driver for SimDriver {
    fn push(&mut self, token: u64, request: Request) {
        self.world.borrow_mut().push(token, request);
    }

    fn enter(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        let world = &mut *self.world.borrow_mut();
        if world.ended.is_none() {
            world.step();
        }
        if world.ended.is_some() {
            let left = std::mem::take(&mut world.in_flight);
            let cancelled =
                |job: super::world::Job| Completion { token: job.token, result: -libc::ECANCELED };
            done.extend(left.into_values().map(cancelled));
            return Ok(());
        }
        let rung = self.bell.0.swap(false, Ordering::Relaxed);
        if wait && !rung {
            match world.next_due() {
                Some(due) => world.now = world.now.max(due),
                None => {
                    world.end(End::Stuck);
                    return Ok(());
                }
            }
        }
        while let Some(job) = world.take_due() {
            let result = world.perform(&job);
            if world.talks {
                world.tell(&job.request, result);
            }
            let file = matches!(job.request, Request::Open { .. }) && result >= 0;
            let (now, shown) = (world.now, if file { 1 } else { i64::from(result).unsigned_abs() });
            world.note(now);
            world.note(shape(&job.request) ^ shown << 40);
            done.push(Completion { token: job.token, result });
        }
        Ok(())
    }

    fn ready(&mut self) -> bool {
        false
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::clone(&self.bell) as Arc<dyn Unpark>
    }

    fn now(&self) -> Instant {
        let world = self.world.borrow();
        world.start + Duration::from_nanos(world.now)
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.world.borrow().wall_millis())
    }
    fn write_now(&self, fd: RawFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let written = self.world.borrow_mut().write_now(fd, bytes, offset);
        written.map_err(io::Error::from_raw_os_error)
    }
}
