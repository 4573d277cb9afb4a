"""The Huffman code of header compression, RFC 7541, section 5.2 and appendix B."""

from __future__ import annotations

from functools import cache
from typing import Final

_END_OF_STRING: Final = 256
_MAX_PADDING_BITS: Final = 7

# Bits of the code of each byte and, last, of the end of a string; the codes follow from these, since within a length
# they count up with the bytes.
_LENGTHS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
)  # fmt: skip

# For each inner node of the code's tree and each half byte: the node that it leads to, and the byte that is complete
# on the way there or -1.
Steps = list[list[tuple[int, int]]]


def decode(data: bytes) -> bytes:
    """Decodes a string.

    Raises:
        ValueError: If it is damaged.
    """
    steps, ends = _machine()
    out = bytearray()
    node = 0
    for byte in data:
        node, symbol = steps[node][byte >> 4]
        if symbol >= 0:
            out.append(symbol)
        node, symbol = steps[node][byte & 15]
        if symbol >= 0:
            out.append(symbol)
    if node not in ends:
        raise ValueError("a Huffman code is cut short")
    return bytes(out)


@cache
def _machine() -> tuple[Steps, frozenset[int]]:
    """The steps from each node, and the nodes at which a string may end."""
    children = _tree()
    steps = [[_step(children, node, half) for half in range(16)] for node in range(len(children))]
    steps.append([(len(children), -1)] * 16)  # whatever follows the end of a string is an error, as that itself is
    ends, node = {0}, 0
    for _ in range(_MAX_PADDING_BITS):
        node = children[node][1]
        ends.add(node)
    return steps, frozenset(ends)


def _step(children: list[list[int]], node: int, half: int) -> tuple[int, int]:
    symbol = -1
    for bit in (3, 2, 1, 0):
        node = children[node][half >> bit & 1]
        if node < 0:
            symbol = ~node
            if symbol == _END_OF_STRING:
                return len(children), -1
            node = 0
    return node, symbol


def _tree() -> list[list[int]]:
    """Nodes with their two children; a leaf is the complement of its symbol, and the root is 0."""
    children: list[list[int]] = [[0, 0]]
    code = previous = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - previous
        previous = length
        node = 0
        for bit in range(length - 1, 0, -1):
            side = code >> bit & 1
            if not children[node][side]:
                children.append([0, 0])
                children[node][side] = len(children) - 1
            node = children[node][side]
        children[node][code & 1] = ~symbol
        code += 1
    return children
