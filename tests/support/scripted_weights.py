"""The weights of the scripted server: no tensors, but their version, and the order in which SGLang takes an update."""

from pathlib import Path
from typing import Any

FIRST_VERSION = "default"
UPDATES = (
    "/begin_weight_update",
    "/end_weight_update",
    "/update_weights_from_tensor",
    "/update_weights_from_disk",
    "/update_weight_version",
)


class ScriptedWeights:
    """Those that a server was started with, until they are updated."""

    def __init__(self) -> None:
        self.version = FIRST_VERSION
        self._open = False

    def update(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one of `UPDATES`; where its `success` is False nothing has changed."""
        if path == "/update_weights_from_disk":
            return self._from_disk(body)
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return _answer(True, f"Weight version updated to {self.version}", new_version=self.version)
        if path == "/begin_weight_update":
            if self._open:
                return _answer(False, "a weight-update session is already open; call end_weight_update() first")
            self._open = True
        elif not self._open:
            return _answer(False, "no weight-update session is open; call begin_weight_update() first")
        elif path == "/end_weight_update":
            self._open = False
        return _answer(True, "Success" + self._stamp(body))

    def _from_disk(self, body: dict[str, Any]) -> dict[str, Any]:
        if not Path(body["model_path"]).is_dir():
            message = f"Failed to get weights iterator: {body['model_path']!r}"
            return _answer(False, message, num_paused_requests=0)
        return _answer(True, "Succeeded to update model weights." + self._stamp(body), num_paused_requests=0)

    def _stamp(self, body: dict[str, Any]) -> str:
        version = body.get("weight_version")
        if version is None:
            return ""
        self.version = version
        return f" Weight version updated to {version}."


def _answer(success: bool, message: str, **more: Any) -> dict[str, Any]:
    return {"success": success, "message": message, **more}
