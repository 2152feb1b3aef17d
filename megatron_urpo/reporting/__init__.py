"""What a run leaves behind and shows: its folder, transcripts, progress, and curves elsewhere where asked for."""

from megatron_urpo.reporting.progress import Progress, before_after_table
from megatron_urpo.reporting.run_folder import RunFolder
from megatron_urpo.reporting.transcripts import write_transcript
from megatron_urpo.reporting.wandb_log import WandbLog

__all__ = ["Progress", "RunFolder", "WandbLog", "before_after_table", "write_transcript"]
