"""What CPython's multiprocessing does of the same: one line of JSON."""

import json
import multiprocessing
import sys
import time

context = multiprocessing.get_context("fork")
RUNS = 3


def put_many(queue, start, size, count):
    item = b"\x07" * size
    start.wait()
    for _ in range(count):
        queue.put(item)


def get_many(queue, start, count, done):
    start.wait()
    for _ in range(count):
        queue.get()
    done.release()


def queue_rate(producers, consumers, size, count):
    queue = context.Queue(16 if size > 100_000 else 1024)
    start, done = context.Event(), context.Semaphore(0)
    putting = [
        context.Process(target=put_many, args=(queue, start, size, count // producers)) for _ in range(producers)
    ]
    getting = [
        context.Process(target=get_many, args=(queue, start, count // consumers, done)) for _ in range(consumers)
    ]
    for process in putting + getting:
        process.start()
    time.sleep(0.1)
    began = time.perf_counter()
    start.set()
    for _ in getting:
        done.acquire()
    took = time.perf_counter() - began
    for process in putting + getting:
        process.join()
    return count / took


def median(act):
    return sorted(act() for _ in range(RUNS))[RUNS // 2]


def queues():
    figures = {}
    for size, name, count in [(16, "16 B", 60_000), (1024, "1 KiB", 60_000), (1 << 20, "1 MiB", 800)]:
        for producers, consumers in [(1, 1), (4, 1), (4, 4)]:
            figures[f"{name}, {producers}:{consumers}"] = median(
                lambda: queue_rate(producers, consumers, size, count)
            )
    return figures


def echo(peer):
    try:
        while True:
            peer.send(peer.recv())
    except EOFError:
        pass


def take_bytes(peer, count):
    for _ in range(count):
        peer.recv_bytes()
    peer.send_bytes(b"")


def round_trip(count=10_000):
    ours, theirs = context.Pipe()
    process = context.Process(target=echo, args=(theirs,))
    process.start()
    theirs.close()

    def act():
        began = time.perf_counter()
        for number in range(count):
            ours.send(number)
            ours.recv()
        return (time.perf_counter() - began) / count * 1e6

    figure = median(act)
    process.kill()
    process.join()
    return figure


def one_way(size, count):
    ours, theirs = context.Pipe()
    process = context.Process(target=take_bytes, args=(theirs, count))
    process.start()
    theirs.close()
    message = b"\x07" * size
    began = time.perf_counter()
    for _ in range(count):
        ours.send_bytes(message)
    ours.recv_bytes()
    took = time.perf_counter() - began
    process.join()
    return count / took


def connections():
    figures = {"round trip, microseconds": round_trip()}
    for size, name, count in [(16, "16 B", 60_000), (1024, "1 KiB", 60_000), (1 << 20, "1 MiB", 1_000)]:
        figures[f"{name} one way, messages a second"] = median(lambda: one_way(size, count))
    return figures


print(json.dumps(queues() if sys.argv[1] == "queue" else connections()), flush=True)
