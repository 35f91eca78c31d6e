//! A device for each worker. The devices here are simulated: a file each, which only one process
//! may lock at a time, as a GPU has room for one model.
//!
//! `cargo run --example gpu_slots`

use std::{collections::BTreeMap, fs::File, path::Path};

use executor::{Pin, ProcessPoolBuilder, prelude::*};

const DEVICES: [&str; 3] = ["cuda:0", "cuda:1", "cuda:2"];

/// What a framework would keep on its device.
struct Model {
    device: String,
    /// Locked as long as this worker lives.
    _memory: File,
}

/// Loads the model once in each worker. A framework would look at `CUDA_VISIBLE_DEVICES` in the
/// same way.
#[task]
fn load(devices: &Path) -> std::io::Result<()> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").expect("set by `env_of_slot`");
    let memory = File::create(devices.join(format!("device-{visible}")))?;
    memory.try_lock().map_err(|_| std::io::Error::other("the device is in use"))?;
    executor::worker_state::set(Model { device: visible, _memory: memory });
    Ok(())
}

#[task]
fn infer(image: u32) -> (String, u32) {
    if image == 7 {
        std::process::abort(); // A bad image ends its worker; the next one gets the same device.
    }
    executor::with_worker_state::<Model, _>(|model| {
        // The slot says the same as the environment.
        assert_eq!(executor::slot(), Some(format!("cuda:{}", model.device)));
        std::thread::sleep(std::time::Duration::from_millis(2));
        (executor::slot().unwrap_or_default(), image * image)
    })
}

fn pool(devices: &Path) -> ProcessPoolBuilder {
    ProcessPoolExecutor::builder()
        .name("gpus")
        .slots(DEVICES)
        .env_of_slot(|slot| [("CUDA_VISIBLE_DEVICES", slot.replace("cuda:", ""))])
        .inner_threads(1)
        .pin(Pin::Cores)
        .initializer(load::task(devices))
}

#[executor::main]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let devices = tempfile::tempdir()?;
    let pool = pool(devices.path()).build()?;
    let mut images: BTreeMap<String, u32> = BTreeMap::new();
    for (image, result) in pool.map(infer::task, 0..60).unordered().with_index() {
        match result {
            Ok((device, square)) => {
                assert_eq!(square, (image * image) as u32);
                *images.entry(device).or_default() += 1;
            }
            Err(error) => println!("image {image}: {error}"),
        }
    }
    // Somebody waits for this one, so it goes before the rest of a batch.
    let urgent = pool.submit(infer::task(100).priority(1));
    println!("urgent: {:?}", urgent.result()?);
    for (device, count) in &images {
        println!("{device}: {count} images");
    }
    assert_eq!(images.values().sum::<u32>(), 59);
    Ok(())
}
