"""The Python face of idmap.pxd, for tests."""
from fastmq.wire.idmap cimport IdEntry, IdMap, idmap_find, idmap_free, idmap_init, idmap_put, idmap_remove


cdef class IdTable:
    """A map from numbers above 0 to numbers, both of 64 bits."""
    cdef IdMap map

    def __cinit__(self):
        idmap_init(&self.map)

    def __dealloc__(self):
        idmap_free(&self.map)

    def __len__(self):
        return self.map.count

    def __setitem__(self, key, value):
        if not idmap_put(&self.map, key, value):
            raise MemoryError

    def __getitem__(self, key):
        cdef IdEntry* entry = idmap_find(&self.map, key)
        if entry == NULL:
            raise KeyError(key)
        return entry.value

    def __delitem__(self, key):
        if not idmap_remove(&self.map, key):
            raise KeyError(key)

    @property
    def room(self):
        """Entries that the table has room for."""
        return self.map.mask + 1 if self.map.entries != NULL else 0
