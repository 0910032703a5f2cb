"""Keys and values of tokens that sequences have begun with before, kept from call to call.

The same texts come back with hundreds of different prompts behind them, and the same frame before
everything that is scored. What a token's layers compute depends on the tokens before it only, so
their keys and values can be kept, and the tokens need not go through the model again: automatic
prefix caching (Kwon et al., arXiv 2309.06180), here over a trie of single tokens, as in
RadixAttention (Zheng et al., arXiv 2312.07104).

Three rules make it hold what comes back, not what has just been there. Tokens are stored when a
sequence begins with them for the second time, so a prompt that is read once after every text takes
no memory. What a caller knows to come back is stored at once, as long as half of the memory is
free. And where memory is short, what is there stays if it has been used of late ("second
chance"), so even texts that come round again and again, more of them than fit, leave what fits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from feddtpt_flwr.language_model.prefix_tree import PrefixTree, TokenIds
from feddtpt_flwr.language_model.tree_attention import TreeAttention

if TYPE_CHECKING:
    import torch

MAX_BYTES = 512 * 2**20
"""Most memory that a model's keys and values may take in a process.

With SmolLM2-135M in float32 (45 KiB per token) it holds 11 650 tokens, almost 400 texts of 30.
"""

MAX_NODES = 2**17
"""Most beginnings that are noted or stored; as many take some 40 MB."""

PATIENCE = 8
"""What is stored may go if this many times as many tokens have been read as fit, and not it.

A process that works for several clients in turn reads all of their texts before the first come
back; shorter, each client's texts would drive out those of the client before it.
"""

ROOT = 0
"""The node of the empty sequence."""


class KeyValueStore:
    """Keys and values of every layer in numbered slots, growing as higher ones are written.

    Parameters
    ----------
    capacity : int
        How many slots there are.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._layers: dict[int, list[torch.Tensor]] = {}

    def read(self, layer: int, slots: "torch.Tensor") -> "list[torch.Tensor]":
        """Return keys and values, each of shape ``(slots, heads, head size)``."""
        return [stored.index_select(0, slots) for stored in self._layers[layer]]

    def write(
        self, layer: int, slots: "torch.Tensor", needed: int, new: "Sequence[torch.Tensor]"
    ) -> None:
        """Store keys and values, each of shape ``(slots, heads, head size)``.

        ``needed`` is one more than the highest slot; to ask a GPU for it would make it wait.
        """
        stored = self._layers.get(layer) or [states[:0] for states in new]
        if len(stored[0]) < needed:
            size = min(max(needed, 2 * len(stored[0])), self._capacity)
            stored = [_enlarged(states, size) for states in stored]
            self._layers[layer] = stored
        for old, states in zip(stored, new, strict=True):
            old.index_copy_(0, slots, states)


@dataclass(frozen=True)
class Plan:
    """What a call takes from the cache, and what it adds.

    Attributes
    ----------
    cached : list[list[int]]
        For each sequence the slots of its first tokens.
    admitted : list[int]
        Nodes to be stored.
    places : list[tuple[int, int]]
        For each of these a sequence and the index of the node's token in it.
    slots : list[int]
        For each of these where it is to be stored.
    """

    cached: list[list[int]]
    admitted: list[int]
    places: list[tuple[int, int]]
    slots: list[int]


class PrefixCache:
    """Remembers the keys and values of what sequences begin with.

    Every beginning that has been read is a node of a trie. Some nodes have a slot, which holds the
    keys and values of the node's last token; then all their ancestors have one. How many slots
    there can be is known after the first call, when every layer has shown its keys and values.

    It holds for one model whose weights do not change, and under ``torch.inference_mode``.

    Parameters
    ----------
    max_bytes : int
        Most memory that keys and values take.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._children: dict[tuple[int, int], int] = {}  # (node, token) -> node
        self._last_node = ROOT
        self._slots: dict[int, int] = {}  # of nodes
        self._free: list[int] = []
        self._capacity = 0
        self._store = KeyValueStore(0)
        self._bytes_per_token: dict[int, int] = {}  # by layer
        self._used: set[int] = set()  # nodes with slots that were read since this was last empty
        self._read = 0  # tokens since then
        self._short = False  # whether there were too few slots since then

    def lengths(self, sequences: Sequence[TokenIds], last: Sequence[int]) -> list[int]:
        """Return how many of each sequence's tokens are cached, without its last ones."""
        return [
            min(len(self._stored(sequence)), len(sequence) - max(n, 1))
            for sequence, n in zip(sequences, last, strict=True)
        ]

    @contextmanager
    def tree(
        self,
        sequences: Sequence[TokenIds],
        last: Sequence[int],
        dtype: "torch.dtype",
        device: "torch.device",
        again: Sequence[int] = (),
    ) -> Iterator[tuple[PrefixTree, TreeAttention]]:
        """Give the tree of ``sequences`` and the attention over it, to go through the layers once.

        Parameters
        ----------
        sequences : Sequence[TokenIds]
            None of them empty.
        last : Sequence[int]
            How many of each sequence's last tokens must be computed, because their states are
            wanted; at least one is.
        dtype, device : torch.dtype, torch.device
            Of the states.
        again : Sequence[int]
            How many of each sequence's first tokens will come again; unknown by default.
        """
        import torch

        plan = self._plan(sequences, last, again)
        tree = PrefixTree.of(sequences, plan.cached)
        read = torch.tensor(tree.slots, device=device)
        write = torch.tensor(plan.slots, device=device)
        new = [tree.paths[row][index] - len(tree.slots) for row, index in plan.places]
        tokens = torch.tensor(new, device=device)
        needed = max(plan.slots, default=-1) + 1

        def all_nodes(
            layer: int, key: "torch.Tensor", value: "torch.Tensor"
        ) -> "tuple[torch.Tensor, torch.Tensor]":
            self._bytes_per_token[layer] = key[0].nbytes + value[0].nbytes
            if len(write):
                chosen = [states.index_select(0, tokens) for states in (key, value)]
                self._store.write(layer, write, needed, chosen)
            if not len(read):
                return key, value
            keys, values = self._store.read(layer, read)
            return torch.cat([keys, key]), torch.cat([values, value])

        yield tree, TreeAttention.over(tree, dtype, device, all_nodes)
        # Only now all layers have been written; a call that fails on the way stores nothing.
        self._admit(plan)

    def _stored(self, sequence: TokenIds) -> list[int]:
        """Return the nodes of the sequence's beginning that have slots."""
        nodes = []
        node = ROOT
        for token in sequence:
            node = self._children.get((node, token), ROOT)
            if node not in self._slots:
                break
            nodes.append(node)
        return nodes

    def _plan(
        self, sequences: Sequence[TokenIds], last: Sequence[int], again: Sequence[int]
    ) -> Plan:
        self._tidy()
        self._read += sum(map(len, sequences))
        stored = [self._stored(sequence) for sequence in sequences]
        self._used.update(*stored)
        # What one sequence needs the states of is computed for all: the tree has each node once.
        needed = {
            node
            for nodes, sequence, n in zip(stored, sequences, last, strict=True)
            for node in nodes[len(sequence) - max(n, 1) :]
        }
        cached = [
            [self._slots[node] for node in takewhile(lambda node: node not in needed, nodes)]
            for nodes in stored
        ]
        wanted: dict[int, tuple[int, int]] = {}
        room = max(0, len(self._free) - self._capacity // 2)
        for sequence, row in {sequence: row for row, sequence in enumerate(sequences)}.items():
            begun = stored[row]
            node = begun[-1] if begun else ROOT
            reached = True  # whether all nodes so far have slots, or will
            for index, token in enumerate(sequence[len(begun) :], len(begun)):
                child = self._children.get((node, token))
                if child is None:
                    child = self._children[node, token] = self._last_node = self._last_node + 1
                    told = bool(again) and index < again[row]
                    reached = reached and told and len(wanted) < room
                if reached and child not in wanted:
                    if len(wanted) < len(self._free):
                        wanted[child] = row, index
                    else:
                        reached, self._short = False, True
                node = child
        slots = self._free[: -len(wanted) - 1 : -1]
        return Plan(cached, list(wanted), list(wanted.values()), slots)

    def _admit(self, plan: Plan) -> None:
        if not self._capacity:
            room = self._max_bytes // sum(self._bytes_per_token.values())
            self._capacity = min(room, MAX_NODES)
            self._store = KeyValueStore(self._capacity)
            self._free = list(reversed(range(self._capacity)))  # taken from the end
        del self._free[len(self._free) - len(plan.slots) :]
        self._slots.update(zip(plan.admitted, plan.slots, strict=True))
        self._used.update(plan.admitted)

    def _tidy(self) -> None:
        """Drop what was not used for long if its memory is wanted, and notes if they are many."""
        if self._read >= PATIENCE * self._capacity:
            if self._short:
                # Who uses a node uses its ancestors, so no node loses these before itself.
                unused = [node for node in self._slots if node not in self._used]
                self._free += [self._slots.pop(node) for node in unused]
            self._used.clear()
            self._read, self._short = 0, False
        if len(self._children) > MAX_NODES:
            self._children = {
                step: node for step, node in self._children.items() if node in self._slots
            }


def _enlarged(states: "torch.Tensor", length: int) -> "torch.Tensor":
    """Return a copy with room for ``length`` rows."""
    larger = states.new_empty(length, *states.shape[1:])
    larger[: len(states)] = states
    return larger
