"""A network of another library as a teacher: timm's, open_clip's, transformers', CLIP's own."""

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.formats.wrapped import WrappedEncoder
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.encoder import Output, check_blocks, describe_output, describe_sight, mean_of_blocks, resize


class WrappedTeacher(Teacher):
    """A network as it is, once and for all; its features are those of its patches.

    Args:
        encoder: On the student's grid, see `fitting.fit_wrapped`; it belongs to the teacher from then on.
        output: Take what the last block says as it is, after the final norm, or after the projection too.
        blocks: Mean over what so many last blocks say, each token of each standardised before; 1: the last block alone.

    Raises:
        ValueError: if the network does not have what is to be taken of it.
    """

    def __init__(self, encoder: WrappedEncoder, *, output: Output = "block", blocks: int = 1) -> None:
        super().__init__()
        if output not in encoder.ends:
            raise ValueError(
                f"TeacherConfig.output must be {' or '.join(encoder.ends)} for {encoder.source}, which has no {output} "
                f"to take features from; got {output}."
            )
        check_blocks(encoder.source, blocks, encoder.num_blocks)
        self.encoder, self.output, self.blocks = encoder, output, blocks
        width = encoder.projected if output == "projection" else encoder.width
        assert width is not None
        self.width, self.grid, self.image_size = width, encoder.grid, encoder.image_size
        self.num_prefix = encoder.num_prefix if encoder.has_class_token else 0
        if encoder.has_attention:
            self.queries = ("class", "mean") if encoder.has_class_token else ("mean",)
        self._freeze()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"], query: Query | None = None) -> Guidance:
        """Features, and attention if asked for; see `Teacher.forward`."""
        self.check_query(query)
        encoder = self.encoder
        with torch.autocast("cpu", enabled=False):  # on a GPU, whatever the student computes in
            last = encoder.last_blocks(resize(images, self.image_size), self.blocks, query)
            tokens = mean_of_blocks(last.tokens)
            if self.output != "block":
                tokens = encoder.norm(tokens)
            if self.output == "projection":
                tokens = encoder.project(tokens)
        return Guidance(tokens[:, : encoder.num_prefix], tokens[:, encoder.num_prefix :], last.attention)

    def describe(self) -> str:
        """Which network, what it sees, what is taken of it."""
        return f"{self.encoder.source}: {self.width} wide; {describe_sight(self)}; {describe_output(self)}"
