"""How a command ends: what is said of an error, once, and the exit code."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

import click

from megatron_urpo.config import ConfigError


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A mistake in the user's files is one line and exit code 2, a run that cannot go on one line and exit code 1.

    Either is told once; the loss of another rank is one line and exit code 75; everything else keeps its traceback.
    """
    # megatron-core and torch warn, at import and on first use, of choices that this package made knowingly.
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\b")
    from megatron_urpo.data.errors import DataError
    from megatron_urpo.evaluation.quality import QualityError
    from megatron_urpo.health import TrainingStopped
    from megatron_urpo.protocols import EngineError, RankLost, RankZeroError, SaveFailed, WeightsLost

    try:
        yield
    except (ConfigError, DataError) as error:
        _tell("\n".join(f"error: {line}" for line in str(error).splitlines()))
        sys.exit(2)
    except RankZeroError:
        sys.exit(1)  # rank 0 says it
    except RankLost as error:
        if error.tell:
            click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (TrainingStopped, QualityError, EngineError, WeightsLost, SaveFailed) as error:
        _tell(f"Error: {error}")
        sys.exit(1)


def _tell(text: str) -> None:
    """Once, though every rank meets the same error."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(text, err=True)
