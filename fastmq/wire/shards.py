"""Which shard holds a queue: every process, and every later one, must agree."""
from fastmq.wire.digest import blake2b


def shard_of(vhost: str, queue: str, shards: int) -> int:
    """The shard of a queue, 0 to `shards` - 1. Queues whose names hold the same `{tag}` share one."""
    opened = queue.find("{")
    closed = queue.find("}", opened + 1)
    name = queue[opened + 1 : closed] if opened >= 0 and closed > opened + 1 else queue
    digest = blake2b(f"{vhost}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shards
