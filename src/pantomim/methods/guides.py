"""Where a method's config names the network that guides it: in the method itself, or in its target."""

from dataclasses import replace
from typing import Any, TypeVar

from pantomim.teachers.choice import TeacherConfig

C = TypeVar("C")


def teacher_of(method: Any) -> TeacherConfig | None:
    """The teacher of a method's config, or of its target's; None where there is none."""
    holder = method if hasattr(method, "teacher") else getattr(method, "target", None)
    return getattr(holder, "teacher", None)


def with_teacher(method: C, teacher: TeacherConfig) -> C:
    """The same config with another teacher."""
    held: Any = method
    if hasattr(held, "teacher"):
        return replace(held, teacher=teacher)
    return replace(held, target=replace(held.target, teacher=teacher))
