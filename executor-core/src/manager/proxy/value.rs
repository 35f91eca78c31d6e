//! One value that processes share.

use std::borrow::Borrow;

use serde::{Serialize, de::DeserializeOwned};

use super::{calls, creations, handle};
use crate::manager::{
    Step, StepFn,
    protocol::{Kind, Operation},
};

handle! {
    /// One value that processes share. It corresponds to `manager.Value()`.
    ///
    /// [`Manager::value`] makes it. It can be of any type and size. For a number,
    /// [`Value`](crate::Value) at the root of the crate is a hundred times as fast.
    ///
    /// ```
    /// use executor::{manager::Manager, prelude::*};
    ///
    /// #[task]
    /// fn append(text: String, more: &str) -> String { text + more }
    ///
    /// #[executor::main]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let manager = Manager::start()?;
    ///     let text = manager.value("a".to_owned())?;
    ///     assert_eq!(text.update(append::with("b"))?, "ab");
    ///     text.set("c")?;
    ///     assert_eq!(text.get()?, "c");
    ///     Ok(())
    /// }
    /// ```
    ///
    /// [`Manager::value`]: crate::manager::Manager::value
    Value<T>
}

creations! {
    /// Creates a value.
    fn value / value_async [T](&self, value: T) -> Value<T>
    where [T: Serialize]
    { self.creation(Kind::Cell).last_value(&value) }
}

impl<T: Serialize + DeserializeOwned> Value<T> {
    calls! {
        /// Returns a copy of the value.
        fn get / get_async [](&self) -> T
        { self.reference.request(Operation::CellGet) => |answer| answer.value() }

        /// Sets the value.
        fn set / set_async [Q](&self, value: &Q) -> ()
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::CellSet).last_value(value) => |_answer| Ok(()) }

        /// Sets the value, and returns the previous one.
        fn swap / swap_async [Q](&self, value: &Q) -> T
        where [T: Borrow<Q>, Q: Serialize + ?Sized]
        { self.reference.request(Operation::CellSwap).last_value(value) => |answer| answer.value() }

        /// Sets the value if it is `expected`. Otherwise returns the value that is there, in an
        /// inner `Err`.
        fn compare_exchange / compare_exchange_async [](
            &self,
            expected: &T,
            new: &T,
        ) -> Result<(), T>
        {
            self.reference.request(Operation::CellCompareExchange).value(expected).last_value(new)
                => |answer| match answer.is_yes() {
                    true => Ok(Ok(())),
                    false => Ok(Err(answer.value()?)),
                }
        }

        /// Replaces the value by what the function makes of it, in the server. Returns the new
        /// value. See [`Step`].
        fn update / update_async [F, A](&self, step: Step<F, A>) -> T
        where [T: Borrow<F::Current>, F: StepFn<A, Output = T>]
        {
            {
                let call = step.encode(self.reference.door())?;
                self.reference.request(Operation::CellUpdate).call_of(call)
            } => |answer| answer.value()
        }
    }
}
