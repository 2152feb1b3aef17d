"""Lets torchvision's CUDA build be imported beside a CPU build of torch.

SGLang imports torchvision whatever it serves. The registry's wheel is linked against CUDA, so its operators do not load
beside a CPU torch, and its import stops where it describes `torchvision::nms` and `torchvision::qnms`, which nobody has
defined then. Here both get their schemas, without a kernel, at the moment that torchvision is first asked for: they can
be described, and calling one still fails. A matching pair of wheels, both for CPU or both for CUDA, defines its own and
is left alone. Python reads this module at start, through `sglang_cpu.pth`.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SCHEMA = "{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DefineOperatorsFirst(MetaPathFinder):
    """Finds nothing itself: the import goes on to the usual finders."""

    library: Any = None  # torch forgets the operators once this object is gone

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self.library is None and not metadata.version(fullname).endswith("+cpu"):
            import torch

            if torch.version.cuda is not None:
                return None
            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                self.library.define(SCHEMA.format(name=name))
        return None


sys.meta_path.insert(0, DefineOperatorsFirst())
