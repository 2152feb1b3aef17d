"""How one vLLM server's weights are replaced: by the methods of `extension/`, called on every rank.

vLLM's own routes for weights (`/update_weights`, `reload_weights`) are not used: on a CPU they leave a damaged model
and answer with success.
"""

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.protocols import MEMORY_TAGS, NO_WEIGHTS, MemoryTag, ServerRefused

RPC = "/collective_rpc"
DESCRIBE = {"method": "urpo_describe"}
LEAVE_SECONDS = 10.0
FLUSH_POLL_SECONDS = 0.1


class VLLMUpdates:
    """Implements `protocols.UpdatableServer`. Its calls block the calling thread, never `background`'s loop."""

    def __init__(self, http: HttpServer, background: BackgroundLoop, *, tensor: int, seconds: float) -> None:
        self._http, self._background, self._tensor, self._seconds = http, background, tensor, seconds
        self._released: set[MemoryTag] = set()

    @property
    def name(self) -> str:
        return self._http.url

    @property
    def tensor(self) -> int:
        return self._tensor

    def begin_update(self) -> None:
        """Requests that run are answered with what they have, `abort`; new ones wait for `end_update`."""
        self._post("/pause?mode=abort", {})

    def load_folder(self, folder: Path) -> None:
        self._call("load_folder", folder=str(folder))

    def load_tensors(self, pickled: Sequence[bytes]) -> None:
        self._call("load_tensors", pickled=[base64.b64encode(part).decode() for part in pickled])

    def join_group(self, group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> None:
        place = {"address": address, "port": port, "rank": rank, "world_size": world_size}
        self._call("join_group", group=group, **place, backend=backend, seconds=self._seconds)

    def leave_group(self, group: str) -> None:
        body = {"method": "urpo_leave_group", "kwargs": {"group": group}}
        self._background.wait(self._http.post(RPC, body, LEAVE_SECONDS))

    def receive(self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        tensors = {"names": list(names), "dtypes": list(dtypes), "shapes": [list(shape) for shape in shapes]}
        self._call("receive", group=group, **tensors)

    def end_update(self, version: int) -> None:
        self._background.wait(self._flush())
        self._post("/update_weight_version", {"new_version": str(version)})
        self._check_version(str(version))
        self._post("/resume", {})

    def release(self) -> None:
        """Level 1 keeps the weights in this machine's memory; levels above lose what an update does not replace."""
        self._post("/pause?mode=abort", {})
        self._background.wait(self._flush())
        self._released = set(MEMORY_TAGS)
        self._post("/sleep?level=1", {})

    def resume(self, tag: MemoryTag) -> None:
        if tag in self._released:
            self._released.remove(tag)
            self._post(f"/wake_up?tags={tag}", {})

    def started_anew(self) -> None:
        self._released.clear()

    def give_back(self) -> None:
        self.resume("weights")
        self.resume("kv_cache")
        self._post("/update_weight_version", {"new_version": NO_WEIGHTS})
        self._post("/resume", {})

    async def close(self) -> None:
        await self._http.close()

    def _call(self, method: str, **arguments: Any) -> None:
        self._post(RPC, {"method": f"urpo_{method}", "kwargs": arguments})

    def _post(self, path: str, body: Any) -> None:
        self._background.wait(self._http.post(path, body, self._seconds))

    def _check_version(self, version: str) -> None:
        answer = self._background.wait(self._http.get("/weight_info", self._seconds))
        found = answer.get("weight_version") if isinstance(answer, dict) else answer
        if found != version:
            raise ServerRefused(f"{self.name}/weight_info: weight_version is {found!r} after it was set to {version}")

    async def _flush(self) -> None:
        """Without it later prompts are continued from keys and values of the old weights.

        Not done, with status 200, while the last aborted requests are on their way out.
        """
        deadline = asyncio.get_running_loop().time() + self._seconds
        while True:
            answer = await self._http.post("/reset_prefix_cache", {}, self._seconds)
            if isinstance(answer, dict) and answer.get("success") is True:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise ServerRefused(f"{self.name}/reset_prefix_cache: {answer}")
            await asyncio.sleep(FLUSH_POLL_SECONDS)
