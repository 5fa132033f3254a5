"""A web service on asyncio: uploads go straight into shared memory, processes work on them there.

python examples/web_service.py        # starts it, posts four images at once, and ends it
"""

import asyncio
import contextlib
import urllib.request
from concurrent.futures import ProcessPoolExecutor

import shmpool


def count_dark(pool: shmpool.Pool, handle: shmpool.Handle) -> int:
    """In a worker: what was uploaded is read where it lies."""
    with pool.open(handle) as buffer:
        return sum(buffer.view[at] < 100 for at in range(0, len(buffer), 1000))


async def receive(reader: asyncio.StreamReader, pool: shmpool.aio.Pool) -> shmpool.Handle:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    nbytes = int(head.split("content-length:")[1].split()[0])
    async with pool.lease(nbytes) as lease:  # waits where the pool is full: so many uploads, no more
        for start in range(0, nbytes, 65536):
            end = min(start + 65536, nbytes)
            lease.view[start:end] = await reader.readexactly(end - start)
        return lease.publish(ttl=60)


async def serve(processes: ProcessPoolExecutor, pool: shmpool.aio.Pool) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            handle = await receive(reader, pool)
            dark = await asyncio.get_running_loop().run_in_executor(processes, count_dark, pool.sync, handle)
            body = str(dark).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
            await writer.drain()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


def post(port: int, image: bytes) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data=image) as answer:
        return int(answer.read())


async def main() -> None:
    with shmpool.Broker(memory_limit="32MiB") as broker, ProcessPoolExecutor(2) as processes:
        async with shmpool.aio.connect(broker.address) as pool, await serve(processes, pool) as server:
            port = server.sockets[0].getsockname()[1]
            images = [bytes([50 * at]) * 2_000_000 for at in range(4)]
            counts = await asyncio.gather(*(asyncio.to_thread(post, port, image) for image in images))
    print(f"dark pixels of {len(images)} images: {counts}")


if __name__ == "__main__":
    asyncio.run(main())
