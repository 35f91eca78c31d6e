//! Objects that are found by their names.
//!
//! ```text
//!  publish("jobs", &queue) ──► directory of the server: name ─► type, handle ──► published("jobs")
//! ```
//!
//! The directory is a map that each server has
//! ([`ObjectId::DIRECTORY`](super::protocol::ObjectId)). What is in it is kept alive by it. A value
//! is the name of the type that was published, and the value itself. The server does not look at
//! either: the process that asks compares the types.

use std::{any::type_name, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned, SeqAccess, Visitor},
};

use super::{
    Manager, ManagerError,
    client::{Answer, Request},
    protocol::{Operation, Status},
};
use crate::wire::codec::{Format, Postcard};

/// What stands in the directory under a name.
struct Entry<H>(H);

impl<'de, H: Deserialize<'de>> Deserialize<'de> for Entry<H> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<H>(PhantomData<H>);

        impl<'de, H: Deserialize<'de>> Visitor<'de> for Reader<H> {
            type Value = Entry<H>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a type, and a value of it")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Entry<H>, A::Error> {
                let short = || de::Error::custom("it is shorter than what is published");
                let found: String = parts.next_element()?.ok_or_else(short)?;
                let wanted = type_name::<H>();
                if found != wanted {
                    return Err(de::Error::custom(format_args!(
                        "it was published as another type, a `{found}`"
                    )));
                }
                parts.next_element()?.ok_or_else(short).map(Entry)
            }
        }

        deserializer.deserialize_tuple(2, Reader(PhantomData))
    }
}

impl Manager {
    fn at(&self, operation: Operation, name: &str) -> Request<'static> {
        self.request(operation).for_directory().key(name)
    }

    /// Gives an object a name, by which every process that is [connected](Self::connect) to the
    /// server finds it. An object that had the name before loses it.
    ///
    /// The name keeps the object alive, also when this process ends. A handle is published most
    /// often, and any other value can be, such as a tuple of handles.
    ///
    /// ```
    /// use executor::manager::{Manager, ManagerError, Queue};
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     manager.publish("jobs", &manager.queue::<String>(None)?)?;
    ///     // This could be another process.
    ///     let jobs: Option<Queue<String>> = manager.published("jobs")?;
    ///     jobs.expect("published above").put("sweep")?;
    ///     assert!(matches!(manager.published::<Queue<u8>>("jobs"), Err(ManagerError::Decode(_))));
    ///     assert!(manager.unpublish("jobs")?);
    ///     assert!(manager.published::<Queue<String>>("jobs")?.is_none());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ManagerError::Encode`] if the object belongs to another manager.
    pub fn publish<H: Serialize>(&self, name: &str, object: &H) -> Result<(), ManagerError> {
        self.publishing(name, object).call().map(drop)
    }

    /// Does what [`publish`](Self::publish) does, without blocking the thread. If the future is
    /// dropped early, the object may or may not have the name.
    pub async fn publish_async<H: Serialize>(
        &self,
        name: &str,
        object: &H,
    ) -> Result<(), ManagerError> {
        self.publishing(name, object).call_async().await.map(drop)
    }

    fn publishing<H: Serialize>(&self, name: &str, object: &H) -> Request<'static> {
        self.at(Operation::MapInsert, name).value(&(type_name::<H>(), object))
    }

    /// Takes a name away from the object that has it. Returns whether there was one. An object that
    /// nobody has a handle of is gone then.
    pub fn unpublish(&self, name: &str) -> Result<bool, ManagerError> {
        Ok(self.at(Operation::MapRemove, name).call()?.status() == Status::Done)
    }

    /// Does what [`unpublish`](Self::unpublish) does, without blocking the thread. If the future is
    /// dropped early, the object may or may not have lost its name.
    pub async fn unpublish_async(&self, name: &str) -> Result<bool, ManagerError> {
        Ok(self.at(Operation::MapRemove, name).call_async().await?.status() == Status::Done)
    }

    /// Returns the object that has this name, or `None` if there is none.
    ///
    /// The type must be the one that was [published](Self::publish), as the compiler writes its
    /// name. Two programs that share types of their own take them from the same crate, and are
    /// built by the same compiler.
    ///
    /// # Errors
    /// [`ManagerError::Decode`] if an object of another type was published under this name.
    pub fn published<H: DeserializeOwned>(&self, name: &str) -> Result<Option<H>, ManagerError> {
        found(&self.at(Operation::MapGet, name).call()?)
    }

    /// Does what [`published`](Self::published) does, without blocking the thread.
    pub async fn published_async<H: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<H>, ManagerError> {
        found(&self.at(Operation::MapGet, name).call_async().await?)
    }
}

/// Returns what stands under a name. An error names the user's type, and not the entry.
fn found<H: DeserializeOwned>(answer: &Answer) -> Result<Option<H>, ManagerError> {
    if answer.status() == Status::Missing {
        return Ok(None);
    }
    let entry = answer.value_with(type_name::<H>(), |bytes| Postcard::decode(bytes));
    entry.map(|Entry(object)| Some(object))
}
