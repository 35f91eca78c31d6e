//! A web service that runs one task for each request, with a time limit. When the client
//! disconnects, the task is killed. When there are too many requests, it refuses some at once, and
//! others that have waited for too long.
//!
//! `cargo run --release --example async_service` starts the service and makes three requests. With
//! `-- --serve` the service keeps running, on port 8080.

use std::time::Duration;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use executor::{Phase, ShutdownOptions, prelude::*};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[task]
fn fibonacci(n: u64) -> u64 {
    if n < 2 { n } else { fibonacci(n - 1) + fibonacci(n - 2) }
}

async fn handler(
    State(pool): State<ProcessPoolExecutor>,
    Path(n): Path<u64>,
) -> (StatusCode, String) {
    let task = fibonacci::task(n).timeout(Duration::from_secs(1));
    let task = task.queue_timeout(Duration::from_secs(2));
    let Ok(future) = pool.try_submit(task) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests\n".into());
    };
    // axum drops this future when the client disconnects. `kill_on_drop` then kills the worker, and
    // the pool replaces it.
    match future.kill_on_drop().await {
        Ok(value) => (StatusCode::OK, format!("{value}\n")),
        Err(TaskError::TimedOut { phase: Phase::Queue, .. }) => {
            (StatusCode::SERVICE_UNAVAILABLE, "no worker was free in time\n".into())
        }
        Err(error) if error.is_timeout() => (StatusCode::GATEWAY_TIMEOUT, format!("{error}\n")),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[executor::main]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = ProcessPoolExecutor::builder().max_workers(2).max_pending(100).build()?;
    let app = Router::new().route("/fibonacci/{n}", get(handler)).with_state(pool.clone());
    let serve = executor::args().any(|arg| arg == "--serve");
    let listener = TcpListener::bind(if serve { "127.0.0.1:8080" } else { "127.0.0.1:0" }).await?;
    let address = listener.local_addr()?;
    println!("http://{address}/fibonacci/30");
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    if serve {
        server.await??;
    }
    print!("{}", request(address, 30).await?);
    print!("{}", request(address, 90).await?);
    // This client disconnects early. Its task would otherwise compute until its timeout of one
    // second.
    drop(tokio::time::timeout(Duration::from_millis(50), request(address, 91)).await);
    // What was accepted is finished, if that does not take too long.
    pool.shutdown_with_async(ShutdownOptions::new().timeout(Duration::from_secs(5))).await;
    Ok(())
}

async fn request(address: std::net::SocketAddr, n: u64) -> std::io::Result<String> {
    let (mut stream, mut answer) = (TcpStream::connect(address).await?, String::new());
    stream.write_all(format!("GET /fibonacci/{n} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split("\r\n\r\n").last().unwrap_or_default().to_owned())
}
