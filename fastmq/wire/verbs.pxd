# The verbs of the protocol, and the other numbers that stand in its headers (docs/protocol.md is the specification).
cpdef enum Verb:
    # client to broker: [verb, session id, incarnation, fields...]
    HELLO = 1
    PUBLISH = 2
    SETTLE = 3
    CONSUME = 4
    CANCEL = 5
    GET = 6
    DECLARE_EXCHANGE = 7
    DELETE_EXCHANGE = 8
    DECLARE_QUEUE = 9
    DELETE_QUEUE = 10
    PURGE_QUEUE = 11
    BIND = 12
    UNBIND = 13
    SUBSCRIBE = 14
    UNSUBSCRIBE = 15
    STATUS = 16
    BYE = 17
    # broker to client: [verb, public half of the session id, incarnation, fields...]
    WELCOME = 32
    CONFIRM = 33
    DELIVER = 34
    REPLY = 35
    ERROR = 36
    RESEND = 37
    CANCELLED = 38
    CLOSING = 39


cpdef enum PublishFlag:
    MANDATORY = 1           # refuse what reaches no queue


cpdef enum SettleAction:
    NACK = 1                # back to its old place, marked redelivered and counted
    REJECT = 2              # dropped
    RELEASE = 3             # back to its old place as if never delivered


# What an answer says. The text that clients see is in fastmq/errors.py; a test compares the two.
cpdef enum Code:
    OK = 0
    BAD_REQUEST = 1
    UNKNOWN_VERB = 2
    VERSION = 3
    NO_SESSION = 4
    STALE = 5
    BAD_INCARNATION = 6
    TOO_LARGE = 7
    OVER_WINDOW = 8
    LATE = 9
    NO_QUEUE = 10
    NO_EXCHANGE = 11
    NO_VHOST = 12
    UNROUTABLE = 13
    PRECONDITION_FAILED = 14
    RESOURCE_LOCKED = 15
    ACCESS_REFUSED = 16
    NO_CONSUMER = 17
    CONSUMER_EXISTS = 18
    LIMIT = 19
    UNAVAILABLE = 20
    UNKNOWN = 21
    CLOSING_DOWN = 22
    UNKNOWN_ARGUMENT = 23
    QUEUE_DELETED = 24
    INTERNAL = 25
    DISK_FULL = 26
