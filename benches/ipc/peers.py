"""What CPython's multiprocessing takes for the same: one line of JSON for each section."""

import json
import multiprocessing
import time

context = multiprocessing.get_context("fork")


def once(act, count):
    began = time.perf_counter()
    act(count)
    return (time.perf_counter() - began) / count * 1e9


def best(act, count, runs=5):
    act(count // 10)
    return sorted(once(act, count) for _ in range(runs))[runs // 2]


def lock_uncontended(lock):
    def act(count):
        for _ in range(count):
            with lock:
                pass

    return best(act, 200_000)


def contend(lock, count, start, done):
    start.wait()
    for _ in range(count):
        with lock:
            pass
    done.release()


def lock_contended(lock, count=100_000):
    times = []
    for _ in range(5):
        start, done = context.Event(), context.Semaphore(0)
        children = [context.Process(target=contend, args=(lock, count, start, done)) for _ in range(2)]
        for child in children:
            child.start()
        time.sleep(0.05)
        began = time.perf_counter()
        start.set()
        for _ in children:
            done.acquire()
        times.append((time.perf_counter() - began) / (2 * count) * 1e9)
        for child in children:
            child.join()
    return sorted(times)[2]


def increments(value):
    def act(count):
        for _ in range(count):
            with value.get_lock():
                value.value += 1

    return best(act, 100_000)


def hand_over(mebibytes=64):
    array = context.Array("d", mebibytes << 17)
    ready, done = context.Semaphore(0), context.Semaphore(0)

    def child():
        while True:
            ready.acquire()
            first = array.get_obj()[0]
            done.release()
            if first < 0:
                return

    process = context.Process(target=child)
    process.start()

    def act(count):
        for _ in range(count):
            array.get_obj()[0] = 1.0
            ready.release()
            done.acquire()

    figure = best(act, 2_000)
    array.get_obj()[0] = -1.0
    ready.release()
    process.join()
    return figure


print(
    json.dumps(
        {
            "lock, uncontended": lock_uncontended(context.Lock()),
            "lock, two processes": lock_contended(context.Lock()),
            "value += 1": increments(context.Value("q", 0)),
            "64 MiB array handed over and back": hand_over(),
        }
    ),
    flush=True,
)
