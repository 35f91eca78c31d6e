"""Process pools of Python, run by the harness: `peers.py PEER PARENT`.

A line of JSON on stdin is one run; the answer is a line of JSON on stdout. As in `measure.rs`, a pool lives for one run,
is warmed up, and is gone before the answer. Workers are forked (loky starts them anew, as it always does).
"""

import collections
import concurrent.futures
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time

WORKERS = 2
FORK = multiprocessing.get_context("fork")


def die_with_parent():
    """PR_SET_PDEATHSIG: nothing of this outlives the harness."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


# The tasks.


def no_op(x):
    return x


def spin(rounds):
    state = 1
    for _ in range(rounds):
        state = (state * 1103515245 + 12345) & 0xFFFFFFFF
    return state


def sleep(milliseconds):
    time.sleep(milliseconds / 1000)
    return milliseconds


def echo(data):
    return data


def attend(path, write):
    """To open a named pipe for reading waits for who opens it for writing."""
    os.close(os.open(path, os.O_WRONLY if write else os.O_RDONLY))
    return os.getpid()


# The pools: `submit(function, *args)` gives what `take` waits for.


class Futures:
    """Whatever is a `concurrent.futures.Executor`."""

    def submit(self, function, *args):
        return self.pool.submit(function, *args)

    def take(self, pending):
        return pending.result()

    def map(self, function, items):
        return self.pool.map(function, items)

    def called_back(self, count):
        """Tasks with callbacks, until the shutdown has waited for the last one."""
        values = []
        started = time.perf_counter()
        for x in range(count):
            self.pool.submit(no_op, x).add_done_callback(lambda future: values.append(future.result()))
        self.pool.shutdown(wait=True)
        elapsed = time.perf_counter() - started
        assert len(values) == count
        return elapsed

    def close(self):
        self.pool.shutdown(wait=True)


class ProcessPoolExecutor(Futures):
    version = "CPython " + sys.version.split()[0]

    def __init__(self):
        self.pool = concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=FORK)


class Pool:
    version = "CPython " + sys.version.split()[0]

    def __init__(self):
        self.pool = FORK.Pool(WORKERS)

    def submit(self, function, *args):
        return self.pool.apply_async(function, args)

    def take(self, pending):
        return pending.get()

    def map(self, function, items):
        return self.pool.map(function, items)

    def called_back(self, count):
        values = []
        started = time.perf_counter()
        for x in range(count):
            self.pool.apply_async(no_op, (x,), callback=values.append)
        self.close()
        elapsed = time.perf_counter() - started
        assert len(values) == count
        return elapsed

    def close(self):
        self.pool.close()
        self.pool.join()


def loky():
    import loky

    class Loky(Futures):
        version = "loky " + loky.__version__

        def __init__(self):
            self.pool = loky.ProcessPoolExecutor(WORKERS, initializer=die_with_parent)

    return Loky


def pebble():
    import importlib.metadata

    import pebble

    class Pebble(Futures):
        version = "Pebble " + importlib.metadata.version("pebble")

        def __init__(self):
            self.pool = pebble.ProcessPool(WORKERS, context=FORK)

        def submit(self, function, *args):
            return self.pool.schedule(function, args=args)

        def map(self, function, items):
            return self.pool.map(function, items).result()

        def close(self):
            self.pool.close()
            self.pool.join()

    return Pebble


def mpire():
    import importlib.metadata

    import mpire

    class Mpire(Pool):
        version = "mpire " + importlib.metadata.version("mpire")

        def __init__(self):
            self.pool = mpire.WorkerPool(WORKERS, start_method="fork", keep_alive=True)

        def close(self):
            self.pool.stop_and_join()

    return Mpire


PEERS = {
    "ProcessPoolExecutor": lambda: ProcessPoolExecutor,
    "multiprocessing.Pool": lambda: Pool,
    "loky": loky,
    "pebble": pebble,
    "mpire": mpire,
}


# The workloads.


def run_all(pool, function, values):
    started = time.perf_counter()
    pending = collections.deque(pool.submit(function, value) for value in values)
    while pending:
        pool.take(pending.popleft())
    return time.perf_counter() - started


def run_window(pool, in_flight, count):
    started = time.perf_counter()
    pending = collections.deque()
    for x in range(count):
        if len(pending) == in_flight:
            pool.take(pending.popleft())
        pending.append(pool.submit(no_op, x))
    while pending:
        pool.take(pending.popleft())
    return time.perf_counter() - started


def completed(pool, count):
    started = time.perf_counter()
    for future in concurrent.futures.as_completed([pool.submit(no_op, x) for x in range(count)]):
        future.result()
    return time.perf_counter() - started


def percentiles(trips):
    trips.sort()
    at = lambda part: trips[min(len(trips) * part // 100, len(trips) - 1)] * 1e6
    return {"p50 µs": at(50), "p99 µs": at(99)}


def trip(pool, value):
    started = time.perf_counter()
    pool.take(pool.submit(no_op, value))
    return time.perf_counter() - started


def map_all(pool, count):
    started = time.perf_counter()
    for _ in pool.map(no_op, range(count)):
        pass
    return time.perf_counter() - started


def echo_rate(pool, size, count):
    data = bytes(range(256)) * (size // 256)

    def once():
        started = time.perf_counter()
        back = pool.take(pool.submit(echo, data))
        elapsed = time.perf_counter() - started
        assert back == data
        return elapsed

    once()
    return size * count / sum(once() for _ in range(count)) / 1e6


def calibrate(seconds):
    some = 20_000
    best = min(serial(some) for _ in range(5))
    return int(some * seconds / best)


def serial(rounds):
    started = time.perf_counter()
    spin(rounds)
    return time.perf_counter() - started


def first(make):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pipe")
        os.mkfifo(path)
        started = time.perf_counter()
        pool = make()
        pending = [pool.submit(attend, path, write) for write in (False, True)]
        pids = {pool.take(one) for one in pending}
        elapsed = time.perf_counter() - started
        assert len(pids) == 2
        pool.close()
    return elapsed


def run(make, request):
    workload, count = request["workload"], request["count"]
    if workload == "first":
        times = sorted(first(make) for _ in range(count))
        return {"ms": times[len(times) // 2] * 1e3}
    pool = make()
    try:
        if workload == "burst":
            run_all(pool, no_op, range(count // 10 + 2))
            return {"tasks/s": count / run_all(pool, no_op, range(count))}
        if workload == "window":
            run_window(pool, request["in_flight"], count // 10 + 2)
            return {"tasks/s": count / run_window(pool, request["in_flight"], count)}
        if workload == "callbacks":
            run_all(pool, no_op, range(count // 10 + 2))
            return {"tasks/s": count / pool.called_back(count)}
        if workload == "as_completed":
            completed(pool, count // 10 + 2)
            return {"tasks/s": count / completed(pool, count)}
        if workload == "map":
            map_all(pool, count // 10 + 1)
            return {"items/s": count / map_all(pool, count)}
        if workload in ("trip", "loaded"):
            run_all(pool, no_op, range(min(max(count // 10, 2), 200)))
            return percentiles([trip(pool, x) for x in range(count)])
        if workload in ("echo", "large"):
            return {f"{size >> 10} KiB MB/s": echo_rate(pool, size, count) for size in request["sizes"]}
        run_all(pool, no_op, range(2))
        if workload == "cpu":
            rounds, half = calibrate(0.005), max(count // 10, 2)
            alone = [serial(rounds) for _ in range(half)]
            parallel = run_all(pool, spin, [rounds] * count)
            alone = sorted(alone + [serial(rounds) for _ in range(half)])
            return {"speed-up": alone[half] * count / parallel}
        if workload == "uneven":
            sleeps = request["sleeps"]
            return {"time / ideal": run_all(pool, sleep, sleeps) / (sum(sleeps) / 1000 / WORKERS)}
        raise ValueError(f"this peer has no workload {workload}")
    finally:
        pool.close()


def main():
    peer, parent = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):
        return
    # All but loky's workers are forks of this process.
    os.register_at_fork(after_in_child=die_with_parent)
    # What a library prints is not for the harness.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        make = PEERS[peer]()
    except ImportError:
        print(json.dumps({"missing": peer}), file=answers)
        return
    print(json.dumps({"ready": True, "version": make.version}), file=answers)
    for line in sys.stdin:
        try:
            answer = {"figures": run(make, json.loads(line))}
        except Exception as error:  # the harness prints it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
