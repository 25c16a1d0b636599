"""Counts the bytes of the tensors that are alive: what torch allocates on a CPU, against which predictions are held."""

import weakref
from typing import Any

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations take and make, and their sizes: FSDP2 empties and fills some of them."""

    def __init__(self, *held: torch.Tensor) -> None:
        """Args:
        held: tensors that count from the start.
        """
        super().__init__()
        self.now = 0
        self._most = 0
        self._sizes: Any = weakref.WeakKeyDictionary()
        self._resize = torch.UntypedStorage.resize_
        self._follow(held)

    def peak(self) -> int:
        """The most bytes that there were at once since the last call."""
        most, self._most = max(self._most, self.now), 0
        return most

    def __enter__(self):
        def resize(storage, size):
            self._resize(storage, size)
            self._count(storage)
            return storage

        setattr(torch.UntypedStorage, "resize_", resize)  # noqa: B010 (which is not there to be set)
        return super().__enter__()

    def __exit__(self, *exception):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._follow((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._follow(result)
        return result

    def _follow(self, tree) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, DTensor):
                leaf = leaf.to_local()
            if isinstance(leaf, AsyncCollectiveTensor):
                leaf = leaf.elem
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._sizes:
            self._sizes[storage] = [0]
            weakref.finalize(storage, self._forget, self._sizes[storage])
        size = self._sizes[storage]
        self.now += storage.nbytes() - size[0]
        size[0] = storage.nbytes()
        self._most = max(self._most, self.now)

    def _forget(self, size: list[int]) -> None:
        self.now -= size[0]
