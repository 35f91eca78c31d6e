use executor::task;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Counter(u64);

#[task]
impl Counter {
    fn add(&mut self, n: u64) {
        self.0 += n;
    }

    fn shared(self: std::rc::Rc<Self>) {}

    fn of<T>(&self) {}

    fn get(&self) -> &u64 {
        &self.0
    }

    fn item(&self, _: Self::Item) {}

    fn next(&self) {}

    fn next_task(&self) {}

    #[task]
    fn twice(&self) {}
}

fn main() {}
