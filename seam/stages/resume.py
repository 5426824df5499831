"""Where a job keeps its checkpoint while it runs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seam import io
from seam.experiment.params import Params


def resume_file(params: Params, stage: str, job: Mapping[str, Any], inputs: Iterable[Path]) -> Path:
    """Checkpoint file of a job; another parameter or input gives another file, so a stale one is never resumed."""
    key = json.dumps([params.slice(stage, **job), dict(job), [io.sha256(path) for path in inputs]], sort_keys=True)
    return Path(params.results) / ".resume" / f"{stage}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"


def forget(resume: Path) -> None:
    """Delete the checkpoints of a finished job."""
    for path in resume.parent.glob(f"{resume.stem}*"):
        path.unlink()
