//! In a module, in a body, in a macro, re-exported, under another name.
#![allow(unreachable_pub)] // of this workspace alone

use executor::{Task, TaskFn, managed, manager::Manager, task};

mod a {
    pub mod resize {
        #[executor::task(handle = ResizeTask)]
        pub fn resize(x: u8) -> u8 {
            x
        }
    }
    // The module and the function; a `struct resize` would collide with the module.
    pub use resize::{ResizeTask, resize};
}

mod b {
    #[executor::task]
    pub fn add(a: u8, b: u8) -> u8 {
        a + b
    }
}

mod facade {
    pub use executor;
}

#[executor::task(crate = "crate::facade::executor", name = "other/name")]
fn elsewhere() {}

#[task(handle = U8Task)]
fn u8(x: i64) -> i64 {
    x
}

macro_rules! make {
    ($name:ident, $ty:ty) => {
        #[task]
        fn $name(x: $ty, y: &$ty) -> $ty {
            let _ = y;
            x
        }
    };
}
make!(of_macro, String);

#[task]
fn r#type(r#fn: u8) -> u8 {
    r#fn
}

mod counters {
    pub struct Counter<T>(T);

    #[executor::managed(crate = "crate::facade::executor", name = "Shared", codec = "messagepack")]
    impl Counter<Vec<u8>> {
        pub fn new() -> Self {
            Counter(Vec::new())
        }
        pub fn r#type(&mut self, r#fn: u8) -> Result<Self, String> {
            Ok(Counter(vec![r#fn]))
        }
    }

    impl<T: serde::Serialize> serde::Serialize for Counter<T> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }

    impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Counter<T> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            T::deserialize(deserializer).map(Counter)
        }
    }
}

macro_rules! make_managed {
    ($name:ident, $ty:ty, $get:ident) => {
        struct $name($ty);

        #[managed]
        impl $name {
            pub fn new(value: $ty) -> Self {
                $name(value)
            }
            pub fn $get(&self) -> $ty {
                self.0.clone()
            }
        }
    };
}
make_managed!(OfMacro, String, get);

fn main() {
    struct Local;

    #[managed]
    impl Local {
        pub fn new() -> Local {
            Local
        }
        pub fn get(&self) {}
    }
    let _ = |manager: &Manager| {
        LocalProxy::new(manager).unwrap().get().unwrap();
        let _: String = OfMacroProxy::new(manager, String::new()).unwrap().get().unwrap();
        counters::Shared::new(manager).unwrap().r#type(1).map(drop)
    };
    use b::add;
    assert_eq!(add(1, 2), 3);
    let _: Task<b::add, (u8, u8)> = add::task(1, 2);
    assert_eq!(a::resize(1), 1);
    let _: Task<a::ResizeTask, (u8,)> = a::ResizeTask::task(1);
    assert_eq!(elsewhere::NAME, "other/name");
    assert_eq!(U8Task::NAME, concat!(module_path!(), "::u8"));
    let _ = U8Task::task(u8(1));
    let _ = of_macro::task("x".into(), &"y".into());
    assert_eq!(r#type::NAME, concat!(module_path!(), "::type"));
    let _ = r#type::task(1);

    #[task]
    fn local(x: u8) -> u8 {
        x
    }
    assert_eq!(local(1), 1);
    let _ = local::task(1);
    assert!(executor::registry::lookup(<local as TaskFn>::entry().id().unwrap()).is_some());
}
