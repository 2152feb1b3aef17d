"""mbridge between a Hugging Face folder and a Megatron module:  python mbridge_convert.py HF OUT

There: HF into a module in memory, which is all that mbridge does in that direction; nothing is written. Back: the
module to the Hugging Face folder OUT, its bytes on disk. Prints the seconds as JSON. Runs in mbridge's own environment,
where nothing of this project is installed.

mbridge asks for Transformer Engine and a GPU. Here the module has megatron-core's own layers, whose norms have names
that mbridge's table gets beside its own, and it is built without `get_model`, which moves it to a GPU. Weights are not
drawn before they are loaded.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}

import torch  # noqa: E402
from mbridge.core.auto_bridge import AutoBridge  # noqa: E402
from mbridge.models.qwen2 import Qwen2Bridge  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402

LAYER = "model.layers.{layer_number}."
Qwen2Bridge._OTHER_MAPPING = {"input_layernorm.weight": [LAYER + "input_layernorm.weight"]}
Qwen2Bridge._MLP_MAPPING |= {"pre_mlp_layernorm.weight": [LAYER + "post_attention_layernorm.weight"]}


def local_layers(self: Any, vp_stage: int | None = None) -> Any:
    self.has_vp_stage = False
    return get_gpt_layer_local_spec(normalization="RMSNorm")


Qwen2Bridge._get_transformer_layer_spec = local_layers


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    torch.cuda.current_device = lambda: torch.device("cpu")
    seconds = {"imports": time.perf_counter() - START}
    with torch.no_grad():
        begin = time.perf_counter()
        bridge = AutoBridge.from_pretrained(str(source))
        bridge.set_extra_args(use_cpu_initialization=True, perform_initialization=False, masked_softmax_fusion=False)
        model = bridge._model_provider([])(pre_process=True, post_process=True).bfloat16()
        bridge.load_weights([model], str(source))
        seconds["there"] = time.perf_counter() - begin
        begin = time.perf_counter()
        bridge.save_weights([model], str(target))
        for path in target.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        seconds["back"] = time.perf_counter() - begin
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
