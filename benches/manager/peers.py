"""CPython's manager, run by the harness.

A line of JSON on stdin is one job; the answer is a line of JSON on stdout, a list of what each client has measured. The
fields are those of `Job` and `Ran` in `measure.rs`.
"""

import ctypes
import json
import multiprocessing
import multiprocessing.managers
import platform
import signal
import sys
import time

FORK = multiprocessing.get_context("fork")


def die_with_parent():
    """PR_SET_PDEATHSIG: nothing of this outlives the harness."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def get_call(shared, key):
    def call():
        shared[key]

    return call


def set_call(shared, key, value):
    def call():
        shared[key] = value

    return call


def update_call(shared, key):
    """There is no update in one call: this one loses changes of others."""

    def call():
        shared[key] = shared[key] + 1

    return call


def client(shared, job, number, together, results):
    die_with_parent()
    key = "large" if job["bytes"] else f"key {number}"
    call = {
        "get": lambda: get_call(shared, key),
        "set": lambda: set_call(shared, key, bytes(job["bytes"]) if job["bytes"] else 7),
        "update": lambda: update_call(shared, "x"),
    }[job["operation"]]()
    for _ in range(job["warm_up"]):
        call()
    together.wait(60)
    latencies = []
    processor = time.process_time_ns()
    began = last = time.monotonic_ns()
    if job["timed"]:
        for _ in range(job["count"]):
            call()
            now = time.monotonic_ns()
            latencies.append(now - last)
            last = now
    else:
        for _ in range(job["count"]):
            call()
    ended = time.monotonic_ns()
    processor = time.process_time_ns() - processor
    results.put({"began": began, "ended": ended, "processor": processor, "latencies": latencies})


def main():
    die_with_parent()
    manager = multiprocessing.managers.SyncManager(ctx=FORK)
    manager.start(initializer=die_with_parent)
    shared = manager.dict({f"key {number}": 0 for number in range(8)} | {"x": 0})
    hello = {"version": platform.python_version(), "server": manager._process.pid}
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if job["bytes"]:
            shared["large"] = bytes(job["bytes"])
        together, results = FORK.Barrier(job["clients"]), FORK.SimpleQueue()
        arguments = [(shared, job, number, together, results) for number in range(job["clients"])]
        clients = [FORK.Process(target=client, args=each, daemon=True) for each in arguments]
        for each in clients:
            each.start()
        answers = [results.get() for _ in clients]
        for each in clients:
            each.join()
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
