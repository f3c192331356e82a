# A message's properties on their way out: Python values to msgpack, only those that are not default.
#
# Rules: what the broker's decoder would refuse (deep nesting, sizes, ext types) is refused here. Runs in client processes, with the GIL.

cdef bytes properties_of(headers, bint persistent, int priority, message_id, correlation_id, reply_to, content_type)
