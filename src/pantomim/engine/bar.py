"""The times beside a progress bar."""

import time

from rich.progress import ProgressColumn, Task
from rich.text import Text

from pantomim.core.progress import duration


class Times(ProgressColumn):
    """As "elapsed 0:17, left 0:03"; what is left by the field `due` (of `time.monotonic`), else by what is done."""

    def render(self, task: Task) -> Text:
        """In words; nothing is said of what is left while nobody can know."""
        elapsed, left = task.elapsed or 0.0, None
        if (due := task.fields.get("due")) is not None:
            left = max(0.0, due - time.monotonic())
        elif task.total and task.completed:
            left = elapsed * (task.total - task.completed) / task.completed
        return Text(f"elapsed {duration(elapsed)}" + ("" if left is None else f", left {duration(left)}"))
