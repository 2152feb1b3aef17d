"""How one SGLang server's weights are replaced."""

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_urpo.inference.background import BackgroundLoop
from megatron_urpo.inference.http import HttpServer
from megatron_urpo.protocols import MEMORY_TAGS, NO_WEIGHTS, MemoryTag, ServerRefused

NOT_FOUND = 404
LEAVE_SECONDS = 10.0
FLUSH_POLL_SECONDS = 0.1


class SGLangUpdates:
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
        self._post("/pause_generation", {"mode": "abort"})
        try:
            self._bracket("/begin_weight_update")
        except ServerRefused:
            self._bracket("/end_weight_update")  # of an update that broke off, perhaps of another run
            self._bracket("/begin_weight_update")

    def load_folder(self, folder: Path) -> None:
        self._post("/update_weights_from_disk", {"model_path": str(folder), "flush_cache": False})

    def load_tensors(self, pickled: Sequence[bytes]) -> None:
        parts = [base64.b64encode(part).decode() for part in pickled]
        self._post("/update_weights_from_tensor", {"serialized_named_tensors": parts, "flush_cache": False})

    def join_group(self, group: str, address: str, port: int, rank: int, world_size: int, backend: str) -> None:
        body = {"master_address": address, "master_port": port, "rank_offset": rank, "world_size": world_size}
        self._post("/init_weights_update_group", {**body, "group_name": group, "backend": backend})

    def leave_group(self, group: str) -> None:
        self._background.wait(self._http.post("/destroy_weights_update_group", {"group_name": group}, LEAVE_SECONDS))

    def receive(self, group: str, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
        body = {"names": list(names), "dtypes": list(dtypes), "shapes": [list(shape) for shape in shapes]}
        options = {"group_name": group, "load_format": "flattened_bucket", "flush_cache": False}
        self._post("/update_weights_from_distributed", {**body, **options})

    def end_update(self, version: int) -> None:
        self._bracket("/end_weight_update")
        self._background.wait(self._flush())
        self._post("/update_weight_version", {"new_version": str(version), "abort_all_requests": False})
        self._check_version(str(version))
        self._post("/continue_generation", {})

    def release(self) -> None:
        """Nothing may run then: the server ends of an assertion."""
        self._post("/pause_generation", {"mode": "abort"})
        self._background.wait(self._flush())
        self._released = set(MEMORY_TAGS)
        self._post("/release_memory_occupation", {"tags": list(MEMORY_TAGS)})

    def resume(self, tag: MemoryTag) -> None:
        """A second resume ends the server, so it is forgotten before it is asked for."""
        if tag in self._released:
            self._released.remove(tag)
            self._post("/resume_memory_occupation", {"tags": [tag]})

    def started_anew(self) -> None:
        self._released.clear()

    def give_back(self) -> None:
        self.resume("weights")
        self.resume("kv_cache")
        self._post("/update_weight_version", {"new_version": NO_WEIGHTS, "abort_all_requests": False})
        self._post("/continue_generation", {})

    async def close(self) -> None:
        await self._http.close()

    def _post(self, path: str, body: Any) -> None:
        self._background.wait(self._ask(path, body))

    async def _ask(self, path: str, body: Any) -> None:
        answer = await self._http.post(path, body, self._seconds)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerRefused(f"{self.name}{path}: {answer.get('message')}")

    def _check_version(self, version: str) -> None:
        answer = self._background.wait(self._http.get("/model_info", self._seconds))
        found = answer.get("weight_version") if isinstance(answer, dict) else answer
        if found != version:
            raise ServerRefused(f"{self.name}/model_info: weight_version is {found!r} after it was set to {version}")

    def _bracket(self, path: str) -> None:
        """Servers older than 0.5.21 have no such call and need none."""
        try:
            self._post(path, {})
        except ServerRefused as error:
            if error.status != NOT_FOUND:
                raise

    async def _flush(self) -> None:
        """Refused while the last aborted requests are on their way out."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        while True:
            try:
                await self._http.post("/flush_cache", {}, self._seconds)
                return
            except ServerRefused:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(FLUSH_POLL_SECONDS)
