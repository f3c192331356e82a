"""The thread of a front-end that moves large frames."""

class Bulk:
    done_bell: int

    def start(self) -> None: ...
    def stop(self) -> None: ...
