# What a worker holds, without I/O but its links: its shards, on worker 0 the topology's shard T, the log, a link for each front-end.
#
# The hot messages are the structs of wire/link.pxd. Those of the topology carry msgpack, and are defined here:
#
#   L_TOPOLOGY, to worker 0:  LinkToken, then one msgpack array. Its first element is a number for a request, a str for a notice.
#     request   [verb, sid, vhost, fields...]   verb: DECLARE_EXCHANGE, DELETE_EXCHANGE, DECLARE_QUEUE, DELETE_QUEUE, BIND, UNBIND; the
#                                               fields as in docs/protocol.md, without the request number and what follows the fields
#               -> L_RECORD for each record it made, to every front-end, then L_REPLY to the one that asked: LinkReply{token, code} and
#                  msgpack: with code OK the result of TopologyShard.request ({"id", "name", "shard"} of a queue declared or deleted,
#                  {"id", "name"} of an exchange, nil), with any other code a sentence (str)
#     notices   ["claim", sid]                  the session lives at this front-end (it said HELLO)            token 0, no answer;
#               ["release", sid]                its connection has ended: resume_s begins                      what they delete
#               ["forget", sid]                 it said BYE                                                    comes as L_RECORD
#               ["consumed", queue]             an auto-delete queue has a consumer through this front-end
#               ["unused", queue]               L_UNUSED came for this queue
#   L_HANDBACK, to worker 0:  msgpack [number, records] as Topology.snapshot() gives it; [0, []] from a front-end that knows nothing. Sent
#                             once on each new link to worker 0, after its L_SNAPSHOT came, and after the notices "claim" and "consumed" for
#                             all sessions with exclusive queues and all auto-delete queues with consumers at this front-end.
#   L_SNAPSHOT, from worker 0: msgpack [number, records]: first of all on a new link; again when T has become ready, or has merged. Number 0:
#                             T waits for handbacks. A front-end takes over one whose number is above its own.
#   L_RECORD, from worker 0:  msgpack [number, kind, fields...]: a record (model/topology.py), in ascending order; one not above a front-end's
#                             number is in the snapshot that it has taken over already.
#
# L_SHARD_COUNTS is answered by one L_REPLY: LinkReply and LinkCounts[] of all queues of all shards of the worker.
