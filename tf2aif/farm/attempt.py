"""The one function that is run on a farm's machines; dask names it, and sends nothing else.

Plain text in, plain text out: Python and its libraries may differ between the machines.
"""

from __future__ import annotations

from typing import Any


def run_remote(text: str) -> str:
    """Do the errand in this specification on the machine that we are on; the word about it."""
    from distributed import get_worker

    worker: Any = get_worker()
    answer: str = worker.tf2aif_host.answer(text, str(worker.get_current_task()))
    return answer
