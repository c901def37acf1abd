"""What everything that guides a student has in common: it sees the whole image, and nothing is learned in it."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pantomim.core.modes import Evaluated
from pantomim.core.precision import tf32

Query = Literal["class", "mean"]  # whose attention: the class token's, or the mean over all patches'


class Guidance(NamedTuple):
    """A teacher's output for a batch; `patches` is one feature a patch of the student's grid, in raster order.

    `attention` is how much the query attends to each patch in the last block, mean over heads, as it comes out of the
    softmax (it sums to less than 1 where prefix tokens get a share); None unless asked for.
    """

    prefix: Float[Tensor, "B P K"]  # class and register tokens; none, where the teacher has none
    patches: Float[Tensor, "B N K"]
    attention: Float[Tensor, "B N"] | None = None


class Teacher(Evaluated, ABC):
    """A network with features of every patch of a whole image: always in evaluation mode, never a gradient.

    One whose weights change, an EMA of the student, has `frozen` off and is an `EMACopy`.
    """

    name: str  # in messages: how the user named it
    width: int  # of a feature
    grid: tuple[int, int]  # the student's
    num_prefix: int = 0  # the class token first; 0 where there is no class token
    frozen: bool = True  # its weights never change, so that they are known by a hash and lie in no checkpoint
    float32: bool = False  # whatever the run computes in; on a GPU products are TF32, unless compiled with the student
    queries: tuple[Query, ...] = ()  # whose attention can be asked for

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As `forward`; around the compiled network, too."""
        with tf32() if self.float32 else nullcontext():
            return super().__call__(*given, **named)

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"], query: Query | None = None) -> Guidance:
        """Features of images in the student's scale and size; it resizes and normalises for itself.

        A `query` also asks for its attention, which `check_query` refuses where there is none.
        """

    def check_query(self, query: Query | None) -> None:
        """Raise a ValueError if this attention cannot be had."""
        if query is None or query in self.queries:
            return
        if not self.queries:
            raise ValueError(
                f"{self.name} must have attention over patches to guide a mask; it has none. Choose a vision "
                f"transformer as teacher, or another masker (method.masker.kind random)."
            )
        raise ValueError(
            f"The query whose attention guides must be {' or '.join(self.queries)} for {self.name}; got {query}. It "
            f"has no class token: set method.scores.teacher_query (student_query, guide_query, guide.query) to mean."
        )
