# The sizes and counts that the protocol allows, each once. What an operator may change is in fastmq/config.py.
cpdef enum Limit:
    PROTOCOL_VERSION = 1
    NAME_SIZE_MAX = 255                     # bytes of a queue's, exchange's or vhost's name, a routing key or a pattern, as in AMQP 0-9-1
    HEADER_SIZE_MAX = 1048576               # bytes of a request's header frame
    PROPERTIES_SIZE_MAX = 131072            # bytes of one message's properties
    MESSAGE_SIZE_MAX = 134217728            # bytes of one record
    FRAME_SIZE_MAX = 136314880              # bytes of one frame: MAXMSGSIZE; a record and 2 MiB
    BATCH_COUNT_MAX = 65535                 # records of one PUBLISH
    SETTLE_RANGES_MAX = 65536               # ranges and exceptions of one SETTLE
    OPTIONS_MAX = 32                        # keys of an options map
    TEXT_SIZE_MAX = 4096                    # bytes of a str or bin in a request other than PUBLISH and SETTLE
    ELEMENTS_MAX = 64                       # elements of an array or map in one
    WORKERS_MAX = 32                        # an account of open publishes has a bit for each
    SHARDS_MAX = 1024
    CONSUMERS_MAX = 16384                   # of one session
    CONSUMER_WINDOW_MAX = 65535             # messages
    FRAMES_MAX = 2                          # of a request: header, records
    EVENT_SIZE_MAX = 65536                  # bytes of an event's records, unless one record is larger
    DELIVERY_SIZE_MAX = 262144              # bytes of a delivery frame's records, unless one record is larger
