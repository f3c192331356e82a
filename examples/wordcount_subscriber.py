"""The live subscription of wordcount.py: sees everything that passes an exchange while it listens, and keeps nothing.

    python examples/wordcount_subscriber.py URL EXCHANGE

On standard output: `ready`, then, when an event with the routing key `end` has come: lines seen, their bytes, and lines
that it was too slow for.
"""

import sys

import fastmq


def main(url: str, exchange: str) -> None:
    seen = size = 0
    with fastmq.connect(url) as mq, mq.subscribe("#", exchange=exchange, kind="topic") as events:
        print("ready", flush=True)
        for event in events:
            if event.routing_key == "end":
                break
            seen += 1
            size += len(event.body)
        print(seen, size, events.lost, flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (fastmq.FastMQError, BrokenPipeError) as error:  # the broker, or who reads the numbers, is gone
        sys.exit(f"wordcount_subscriber: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
