//! How a handle of a queue is sent to another process, and how it becomes a `Core` there: a queue
//! that this process has already stays the same `Core`.

use std::{
    fmt,
    os::fd::AsFd,
    sync::{Arc, Weak},
};

use rustix::fs::fstat;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::{super::ring_list::Layout, Core, START, table};
use crate::{
    heap::{
        block::{Block, BlockKind, BlockPlace},
        sparse_file::SparseFile,
    },
    os::{socket, std_or_model::lock},
    wire::attachment::{self, Attachment},
};

/// The serialized form of a queue.
#[derive(Serialize, Deserialize)]
struct Travelling {
    block: BlockPlace,
    file: u8,
    to: u8,
    from: u8,
}

pub(in crate::ipc::queue) fn serialize<S: Serializer>(
    core: &Core,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let attach = |descriptor: &Attachment| {
        attachment::attach::<S>(descriptor)
            .map_err(|error| ser::Error::custom(format_args!("a Queue: {error}")))
    };
    let travelling = Travelling {
        block: core.block.depart::<S>()?,
        file: attach(core.store.file.descriptor())?,
        to: attach(&core.store.to)?,
        from: attach(&core.store.from)?,
    };
    travelling.serialize(serializer)
}

pub(in crate::ipc::queue) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<Core>, D::Error> {
    let failed = |error: &dyn fmt::Display| de::Error::custom(format_args!("a Queue: {error}"));
    let Travelling { block, file, to, from } = Travelling::deserialize(deserializer)?;
    let fits = |len| len == START + size_of::<Layout>();
    let block: Block = Block::arrive(block, &[BlockKind::Queue], None, fits, None)?;
    let detach = |index| attachment::detach(index).map_err(|error| failed(&error));
    let file = detach(file)?;
    let stat = fstat(&file).map_err(|error| failed(&error))?;
    let inode = (stat.st_dev, stat.st_ino);
    let known = || lock(&table().queues).get(&inode).and_then(Weak::upgrade);
    let core = match known() {
        Some(core) => core,
        None => {
            let file = SparseFile::open(file).map_err(|error| failed(&error))?;
            let (to, from) = (detach(to)?, detach(from)?);
            if !socket::is_one(to.as_fd()) || !socket::is_one(from.as_fd()) {
                return Err(failed(&"other descriptors were sent"));
            }
            let new = Core::over(block.clone(), file, to, from).map_err(|error| failed(&error))?;
            let mut queues = lock(&table().queues);
            // Another thread may have been quicker. The superfluous core is dropped after the table
            // is unlocked.
            match queues.get(&inode).and_then(Weak::upgrade) {
                Some(other) => {
                    drop(queues);
                    other
                }
                None => {
                    queues.insert(inode, Arc::downgrade(&new));
                    new
                }
            }
        }
    };
    match core.block == block {
        true => Ok(core),
        false => Err(failed(&"parts of two queues were sent")),
    }
}
