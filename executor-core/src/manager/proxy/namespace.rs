//! A bag of named values that processes share.

use serde::{Serialize, de::DeserializeOwned};

use super::{calls, creations, handle};
use crate::manager::{
    Any,
    client::Values,
    protocol::{Kind, Operation},
};

handle! {
    /// A bag of named values that processes share. It corresponds to `manager.Namespace()`.
    ///
    /// [`Manager::namespace`] makes it. A field has the type with which it is set and got. To list
    /// fields of all types, set values of type [`Any`].
    ///
    /// ```
    /// use executor::manager::Manager;
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let settings = manager.namespace()?;
    ///     settings.set("name", "demo")?;
    ///     settings.set("size", &3_u32)?;
    ///     assert_eq!(settings.get::<String>("name")?.as_deref(), Some("demo"));
    ///     assert_eq!(settings.get::<u32>("size")?, Some(3));
    ///     assert_eq!(settings.names()?, ["name", "size"]);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// A field that is got with another type than it was set with is [`ManagerError::Decode`].
    ///
    /// [`Manager::namespace`]: crate::manager::Manager::namespace
    /// [`ManagerError::Decode`]: crate::manager::ManagerError::Decode
    Namespace
}

creations! {
    /// Creates a namespace without fields.
    fn namespace / namespace_async [](&self) -> Namespace
    { self.creation(Kind::Map) }
}

impl Namespace {
    calls! {
        /// Returns a copy of a field.
        fn get / get_async [T](&self, name: &str) -> Option<T>
        where [T: DeserializeOwned]
        { self.reference.request(Operation::MapGet).value(name) => |answer| answer.optional() }

        /// Sets a field.
        fn set / set_async [T](&self, name: &str, value: &T) -> ()
        where [T: Serialize + ?Sized]
        {
            self.reference.request(Operation::MapExtend).value(name).last_value(value)
                => |_answer| Ok(())
        }

        /// Removes a field. Returns whether it was there.
        fn remove / remove_async [](&self, name: &str) -> bool
        {
            self.reference.request(Operation::MapRemove).value(name)
                => |answer| Ok(answer.status() == crate::manager::protocol::Status::Done)
        }

        /// Returns whether a field is there.
        fn contains / contains_async [](&self, name: &str) -> bool
        { self.reference.request(Operation::MapContains).value(name) => |answer| Ok(answer.is_yes()) }

        /// Returns the names of all fields, in the order in which they were first set.
        fn names / names_async [](&self) -> Vec<String>
        {
            self.reference.request(Operation::Snapshot)
                => |answer| answer.each(|values: &mut Values<'_>| {
                    let name = values.next()?;
                    values.skip()?;
                    Ok(name)
                })
        }

        /// Returns copies of all fields, all of which have type [`Any`].
        fn snapshot / snapshot_async [](&self) -> Vec<(String, Any)>
        {
            self.reference.request(Operation::Snapshot)
                => |answer| answer.each(|values: &mut Values<'_>| Ok((values.next()?, values.next()?)))
        }
    }
}
