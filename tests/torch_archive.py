"""An archive as PyTorch's reader shows it, without PyTorch."""

from __future__ import annotations


class Entries(dict[str, bytes]):
    """What is in it, by name."""

    def get_all_records(self) -> list[str]:
        return list(self)

    def get_record(self, name: str) -> bytes:
        return self[name]

    def get_record_size(self, name: str) -> int:
        if name not in self:
            raise RuntimeError("there is no such entry")
        return len(self[name])
