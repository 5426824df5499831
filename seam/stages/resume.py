"""Where a job keeps its checkpoint while it runs."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seam import io
from seam.experiment.params import Params
from seam.runtime.distributed import rank


def resume_file(params: Params, stage: str, job: Mapping[str, Any], inputs: Iterable[Path]) -> Path:
    """Checkpoint file of a job. Another parameter, input or version gives another file: one that does not fit is never
    resumed."""
    key = json.dumps(
        [params.slice(stage, **job), dict(job), [io.sha256(path) for path in inputs], io.software()], sort_keys=True
    )
    return Path(params.results) / ".resume" / f"{stage}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def forget(resume: Path) -> None:
    """Delete the checkpoints of a finished job, and what kills in the middle of writing one have left."""
    if rank():
        return
    with contextlib.suppress(OSError):  # the job is done, whatever becomes of them
        for path in resume.parent.iterdir():
            if path.name.lstrip(".").startswith(resume.stem.lstrip(".")):
                path.unlink()
